"""The same rows give the same scores whatever their padding and width, for every kind of label a model's loss reads.

The oracle is `loss.backward()` on one unpadded example at a time, through the adapters themselves.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds import BARTS, BERT, ENCODER, KINDS, LABELS, Kind, bert, build, hidden, llama, oracle, rows, several, spoken

import layercard
from layercard.anatomy.layers import find_layers
from layercard.errors import DataError, ProbeError
from layercard.pipeline.probe import score
from layercard.probing.labels import read_labels_of


@cache
def examples_of(name: str) -> tuple[Any, list[dict[str, Any]], np.ndarray]:
    """Return the model, six examples of 2 to 9 tokens, and their scores by autograd."""
    kind = KINDS[name]
    model = build(kind)
    generator = torch.Generator().manual_seed(5)
    examples = [kind.example(generator, length) for length in (9, 4, 6, 2, 7, 6)]
    layers = find_layers(model, path=kind.stack).layers
    return model, examples, oracle(model, [rows([example]) for example in examples], layers)


def probed(name: str, batches: list[dict[str, torch.Tensor]]) -> Any:
    return layercard.probe(examples_of(name)[0], batches, layers_path=KINDS[name].stack, show_progress=False)


@pytest.mark.parametrize("name", KINDS)
@given(data=st.data())
@settings(max_examples=6, deadline=None)
def test_scores_are_those_of_each_example_alone(name: str, data: st.DataObject) -> None:
    _, examples, expected = examples_of(name)
    sides = st.sampled_from(["right", "left"] if KINDS[name].relative else ["right"])
    size = data.draw(st.integers(1, 6), label="batch size")
    order = data.draw(st.permutations(range(len(examples))), label="order")
    batches = []
    for first in range(0, len(examples), size):
        group = [examples[i] for i in order[first : first + size]]
        paddings = {"extra": data.draw(st.integers(0, 4)), "target_extra": data.draw(st.integers(0, 4))}
        batches.append(rows(group, side=data.draw(sides), **paddings))
    statistics = probed(name, batches)
    assert statistics.examples == len(examples)
    np.testing.assert_allclose(score(statistics, "resnorm").raw, expected, rtol=2e-5)


SCORES = [
    "resnorm_per_module",
    "resnorm_algorithm1",
    "gradient_norm",
    "activation",
    "cka",
    "effective_rank",
    "set_gain",
]


@pytest.mark.parametrize("name", KINDS)
def test_no_other_score_changes_with_padding_or_batch_size(name: str) -> None:
    model, examples, _ = examples_of(name)
    side = "left" if KINDS[name].relative else "right"
    cuts = ([rows(examples)], [rows(examples[:4], extra=3, target_extra=2, side=side), rows(examples[4:], extra=1)])
    found = []
    for batches in (*cuts, [rows([example]) for example in examples]):
        statistics = layercard.probe(model, batches, layers_path=KINDS[name].stack, scores=SCORES)
        found.append([score(statistics, each).raw for each in SCORES])
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=5e-5)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "image classification"])
def test_a_loss_of_ones_own_is_taken_one_example_at_a_time(name: str) -> None:
    """Whatever it divides by: here the sum over the batch, of which no example's share can be told."""
    model, examples, expected = examples_of(name)

    def summed(model: Any, inputs: Any) -> torch.Tensor:
        return model(**inputs).loss * len(next(iter(inputs.values())))

    batches = [rows(examples[:4], extra=2, target_extra=2), rows(examples[4:])]
    statistics = layercard.probe(model, batches, loss=summed, objective="own", layers_path=KINDS[name].stack)
    np.testing.assert_allclose(score(statistics, "resnorm").raw, expected, rtol=2e-5)
    assert any("one at a time" in note for note in statistics.notes)


@pytest.mark.parametrize("name", [name for name in KINDS if "labels" in name or KINDS[name].stack is None])
def test_whether_labels_are_shifted_is_what_the_loss_does(name: str) -> None:
    """The first label of a row moves the loss of every model but those that predict the next token."""
    model, examples, _ = examples_of(name)
    if "token_labels" not in examples[0]:
        return
    batch = rows([examples[0]])
    losses = []
    for label in (1, 2):
        batch["labels"][0, 0] = label
        with torch.no_grad():
            losses.append(model.eval()(**batch).loss.item())
    assert read_labels_of(model).shifted == (losses[0] == losses[1])


UNKNOWN: dict[str, Kind] = {
    "unshifted in its own code": Kind(
        lambda: hf.BartForCausalLM(hf.BartConfig(**BARTS)), ["self_attn.q_proj", "fc1"], spoken
    ),
    "two losses": Kind(bert("BertForPreTraining"), BERT, hidden),
    "a class of one's own": Kind(lambda: Halved(hf.BertConfig(**ENCODER, num_labels=LABELS)), BERT, several),
}


class Halved(hf.BertForSequenceClassification):
    """Half of a loss on two of its labels: nothing that a name or a configuration tells."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, labels: Any = None, **kwargs: Any) -> Any:
        found = super().forward(input_ids=input_ids, attention_mask=attention_mask)
        found.loss = (found.logits[:, :2] - labels[:, :2]).square().sum() / 2
        return found


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_head_that_is_not_known_is_run_one_example_at_a_time(name: str) -> None:
    kind = UNKNOWN[name]
    model = build(kind)
    generator = torch.Generator().manual_seed(5)
    examples = [kind.example(generator, length) for length in (9, 4, 6, 2, 7, 6)]
    both = {"next_sentence_label": torch.ones(1, dtype=torch.long)} if name == "two losses" else {}
    expected = oracle(model, [rows([e]) | both for e in examples], find_layers(model).layers)
    assert read_labels_of(model).kind == "unknown"
    both = {key: value.repeat(3) for key, value in both.items()}
    statistics = layercard.probe(model, [rows(examples[:3], extra=2) | both, rows(examples[3:]) | both])
    np.testing.assert_allclose(score(statistics, "resnorm").raw, expected, rtol=2e-5)


def test_a_forward_that_was_exchanged_is_no_longer_known() -> None:
    model = llama("LlamaForCausalLM")()
    assert read_labels_of(model).shifted
    own = model.forward
    model.forward = lambda *args, **kwargs: own(*args, **kwargs)
    assert read_labels_of(model).kind == "unknown"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("causal", {"labels": torch.zeros(4, dtype=torch.long)}, "one label a token of `input_ids`"),
        ("T5 decoder", {"labels": torch.zeros(4, dtype=torch.long)}, "one label a token of its target"),
        ("classification", {"labels": torch.zeros(3, dtype=torch.long)}, "a row"),
        ("question answering", {"start_positions": None}, "`start_positions` and `end_positions`"),
        ("classification", {"labels": None}, "no tensor `labels`"),
        ("classification", {"input_ids": None}, "none of `input_ids`"),
    ],
)
def test_labels_that_the_loss_cannot_read_are_named(name: str, change: dict[str, Any], message: str) -> None:
    _, examples, _ = examples_of(name)
    batch = {key: value for key, value in (rows(examples[:4]) | change).items() if value is not None}
    with pytest.raises(DataError, match=message):
        probed(name, [batch])


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("classification", torch.tensor([0, 1, LABELS, 2]), "IndexError: Target 6 is out of bounds.*`num_labels`"),
        ("multi-label", torch.zeros(4, 3), "ValueError: Target size"),
    ],
)
def test_what_the_model_raises_becomes_an_error_with_advice(name: str, labels: torch.Tensor, message: str) -> None:
    _, examples, _ = examples_of(name)
    with pytest.raises(ProbeError, match=message):
        probed(name, [rows(examples[:4]) | {"labels": labels}])


def test_a_label_of_minus_100_is_a_number_for_a_regression_and_masks_a_class() -> None:
    _, examples, _ = examples_of("regression")
    changed = [*examples[:5], {**examples[5], "labels": -100.0}]
    assert probed("regression", [rows(changed)]).examples == 6
    _, classes, _ = examples_of("classification")
    assert probed("classification", [rows([*classes[:5], {**classes[5], "labels": -100}])]).examples == 5


def test_answers_outside_their_row_are_left_out() -> None:
    model, examples, _ = examples_of("question answering")
    batch = rows(examples)
    batch["end_positions"][1] = 60
    inside = [rows([example]) for number, example in enumerate(examples) if number != 1]
    found = probed("question answering", [batch])
    assert found.examples == 5
    expected = oracle(model, inside, find_layers(model).layers)
    np.testing.assert_allclose(score(found, "resnorm").raw, expected, rtol=2e-5)
