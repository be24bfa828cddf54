"""What the probe's numbers must not depend on, and that the model leaves it as it came."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from oracle import adapted
from torch import nn
from torch.utils.hooks import RemovableHandle

import layercard
from layercard.errors import DataError, ModelError, ProbeError
from layercard.pipeline.probe import score
from layercard.probing.statistics import LayerStatistics
from tiny import ENCODERS, collate, pack, tiny_examples, tiny_model

SCORES = [
    "resnorm",
    "resnorm_per_module",
    "resnorm_algorithm1",
    "activation",
    "cka",
    "gradient_norm",
    "effective_rank",
    "set_gain",
]


def all_scores(statistics: LayerStatistics) -> np.ndarray:
    return np.array([score(statistics, name).raw for name in SCORES])


def batched(examples: list[dict[str, Any]], size: int, **kwargs: Any) -> list[dict[str, torch.Tensor]]:
    return [collate(examples[i : i + size], **kwargs) for i in range(0, len(examples), size)]


@pytest.mark.parametrize("family", ["llama", "gpt2", "deberta", "bert"])
def test_scores_do_not_change_with_batch_size_or_order(family: str) -> None:
    model = tiny_model(family)
    examples = tiny_examples(12, encoder=family in ENCODERS)
    reference = all_scores(layercard.probe(model, batched(examples, 12), scores=SCORES))
    for size in (1, 5):
        np.testing.assert_allclose(
            all_scores(layercard.probe(model, batched(examples, size), scores=SCORES)), reference, rtol=1e-5
        )
    reverse = layercard.probe(model, batched(examples[::-1], 5), scores=SCORES)
    np.testing.assert_allclose(all_scores(reverse), reference, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
@pytest.mark.parametrize("padding", [{"side": "left"}, {"extra": 9}, {"side": "left", "extra": 5}])
def test_padding_never_counts(family: str, padding: dict[str, Any]) -> None:
    model = tiny_model(family)
    examples = tiny_examples(8)
    reference = all_scores(layercard.probe(model, [collate(examples)], scores=SCORES))
    padded = layercard.probe(model, [collate(examples, **padding)], scores=SCORES)
    np.testing.assert_allclose(all_scores(padded), reference, rtol=1e-5)


def test_packing_gives_the_scores_of_padded_rows() -> None:
    model = tiny_model("llama")
    examples = tiny_examples(9)
    rows = all_scores(layercard.probe(model, [collate(examples)], scores=SCORES))
    packed = all_scores(layercard.probe(model, [pack(examples[:5]), pack(examples[5:])], scores=SCORES))
    np.testing.assert_allclose(packed, rows, rtol=1e-5)


def test_documents_are_told_apart_by_seq_idx_too() -> None:
    model = tiny_model("llama")
    examples = tiny_examples(5)
    batch = pack(examples)
    by_position = layercard.probe(model, [batch])
    index = torch.repeat_interleave(torch.arange(5), torch.tensor([len(e["input_ids"]) for e in examples]))
    by_index = layercard.probe(model, [batch | {"seq_idx": index[None].to(torch.int32)}])
    np.testing.assert_allclose(score(by_index, "resnorm").raw, score(by_position, "resnorm").raw, rtol=1e-6)


def test_examples_without_labels_are_left_out() -> None:
    model = tiny_model("llama")
    examples = tiny_examples(6)
    masked = [*examples, {"input_ids": [5, 6, 7], "labels": [-100] * 3}]
    plain = layercard.probe(model, [collate(examples)], scores=SCORES)
    with_masked = layercard.probe(model, [collate(masked)], scores=SCORES)
    assert with_masked.examples == 6
    np.testing.assert_allclose(all_scores(with_masked), all_scores(plain), rtol=1e-5)


def test_a_fused_loss_gives_the_same_scores() -> None:
    """The host may chunk the head and return no logits: only its mean loss is used."""
    model = tiny_model("llama")
    batch = collate(tiny_examples(8))

    def fused(model: nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
        hidden = model.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
        total, count = torch.zeros(()), 0
        for position in range(hidden.shape[1] - 1):  # one position at a time
            target = inputs["labels"][:, position + 1]
            logits = model.lm_head(hidden[:, position])
            total = total + nn.functional.cross_entropy(logits, target, ignore_index=-100, reduction="sum")
            count += int((target != -100).sum())
        return total / count

    own = layercard.probe(model, [batch], scores=SCORES)
    chunked = layercard.probe(model, [batch], scores=SCORES, loss=fused)
    np.testing.assert_allclose(all_scores(chunked), all_scores(own), rtol=1e-5)


def state(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that a probe could leave changed."""
    return {
        "weights": {n: t.clone() for n, t in model.state_dict().items()},
        "requires_grad": {n: p.requires_grad for n, p in model.named_parameters()},
        "grad": {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()},
        "modes": {n: m.training for n, m in model.named_modules()},
        "hooks": {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()},
        "flags": {
            n: {k: v for k, v in vars(m).items() if isinstance(v, bool | float | int)} for n, m in model.named_modules()
        },
        "config": model.config.to_dict(),
        "rng": torch.get_rng_state().clone(),
        "numpy": np.random.get_state()[1].copy(),
    }


def assert_same(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, np.ndarray):
        assert np.array_equal(found, expected)
    else:
        assert found == expected


def lived_in(family: str) -> Any:
    """A model in the middle of its life: mixed modes, a gradient, dropout, checkpointing."""
    model = adapted(tiny_model(family, attention_dropout=0.3), family, lora_dropout=0.1)
    model.train()
    next(iter(model.modules())).config.use_cache = True
    trainable = [p for p in model.parameters() if p.requires_grad]
    trainable[0].grad = torch.ones_like(trainable[0])
    trainable[1].requires_grad_(False)
    model.base_model.model.get_input_embeddings().eval()
    return model


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_probed_model_is_as_it_was(family: str, checkpointing: bool) -> None:
    model = lived_in(family)
    before = state(model)
    batches = batched(tiny_examples(8, encoder=family in ENCODERS), 4)
    layercard.probe(model, batches, scores=SCORES, checkpointing=checkpointing)
    assert_same(state(model), before)


def test_a_probe_that_fails_half_way_leaves_the_model_as_it_was() -> None:
    model = lived_in("llama")
    before = state(model)
    calls = iter(range(10))

    def failing(model: nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
        loss = model(**inputs).loss
        return loss if next(calls) < 1 else loss * torch.nan

    with pytest.raises(ProbeError, match="loss of the base model on a probe batch is nan"):
        layercard.probe(model, batched(tiny_examples(8), 4), scores=SCORES, loss=failing)
    assert_same(state(model), before)


class OutOfMemoryAbove:
    """Raises torch's own error in a layer that is given more rows than fit."""

    def __init__(self, layer: nn.Module, rows: int) -> None:
        self.rows, self.refused = rows, 0
        self.handle: RemovableHandle = layer.register_forward_pre_hook(self)

    def __call__(self, module: nn.Module, args: Any) -> None:
        if args[0].shape[0] > self.rows:
            self.refused += 1
            raise torch.OutOfMemoryError("no room")


@pytest.fixture
def small_memory() -> Iterator[tuple[Any, OutOfMemoryAbove]]:
    model = tiny_model("llama")
    limit = OutOfMemoryAbove(model.model.layers[2], rows=2)
    yield model, limit
    limit.handle.remove()


def test_out_of_memory_halves_the_batch(small_memory: tuple[Any, OutOfMemoryAbove]) -> None:
    model, limit = small_memory
    batch = collate(tiny_examples(8))
    halved = layercard.probe(model, [batch], scores=SCORES)
    assert limit.refused > 0
    limit.handle.remove()
    np.testing.assert_allclose(
        all_scores(halved), all_scores(layercard.probe(model, [batch], scores=SCORES)), rtol=1e-5
    )


def test_one_example_that_does_not_fit_is_an_error(small_memory: tuple[Any, OutOfMemoryAbove]) -> None:
    model, limit = small_memory
    limit.rows = 0
    with pytest.raises(ProbeError, match="does not fit in the memory"):
        layercard.probe(model, [collate(tiny_examples(4))])


def test_no_backward_pass_unless_a_scorer_asks() -> None:
    model = tiny_model("llama")
    seen = []

    def loss(model: nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
        seen.append(torch.is_grad_enabled())
        return model(**inputs).loss

    layercard.probe(model, [collate(tiny_examples(4))], scores=["activation", "cka"], loss=loss)
    layercard.probe(model, [collate(tiny_examples(4))], scores=["gradient_norm"], loss=loss)
    assert seen == [False, True]


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "dataset is empty"),
        (
            [collate([{"input_ids": [5, 6, 7], "labels": [-100] * 3}] * 4)],
            "Every label of every probe example is masked",
        ),
        ([collate(tiny_examples(1))], "found 1 example"),
        ([{"input_ids": torch.ones(2, 3, dtype=torch.long)}], "no tensor `labels`"),
    ],
)
def test_data_that_cannot_be_probed_is_named(batches: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        layercard.probe(tiny_model("llama"), batches)


def test_cka_refuses_fewer_than_four_examples() -> None:
    with pytest.raises(DataError, match="at least 4"):
        layercard.probe(tiny_model("llama"), [collate(tiny_examples(3))], scores=["cka"])


def test_target_modules_that_do_not_exist_are_named() -> None:
    with pytest.raises(ModelError, match="`q_proj_typo`"):
        layercard.probe(tiny_model("llama"), [collate(tiny_examples(4))], target_modules=["q_proj_typo"])


def test_layers_without_attention_are_an_error_for_activation() -> None:
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.mixer = layer.self_attn.o_proj
        del layer.self_attn
    with pytest.raises(ModelError, match="No attention block"):
        layercard.probe(model, [collate(tiny_examples(4))], scores=["activation"])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_packed_documents_that_attention_mixes_are_noted(family: str) -> None:
    """With positions alone the kernels separate documents; an attention mask of ones makes them one sequence."""
    model = tiny_model(family)
    batch = pack(tiny_examples(6))
    assert layercard.probe(model, [batch]).notes == ()
    mixed = layercard.probe(model, [batch | {"attention_mask": torch.ones_like(batch["input_ids"])}])
    assert any("does not keep packed documents apart" in note for note in mixed.notes)


def test_layers_on_several_devices_are_refused() -> None:
    model = tiny_model("llama")
    model.model.layers[3].to("meta")
    with pytest.raises(ModelError, match="spread over cpu, meta"):
        layercard.probe(model, [collate(tiny_examples(4))])
