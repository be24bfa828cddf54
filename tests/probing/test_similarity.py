"""CKA and effective rank against independent float64 implementations, and the position that CKA compares."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import layercard
from layercard.errors import ProbeError
from layercard.pipeline.probe import score
from layercard.probing.similarity import debiased_linear_cka, effective_rank
from tiny import collate, tiny_examples, tiny_model


def naive_hsic(k: np.ndarray, l_: np.ndarray) -> float:
    """Song et al. 2012, eq. 4, summed over distinct index tuples instead of by its closed form."""
    n = len(k)
    total = 0.0
    for i in range(n):
        for j in range(n):
            for q in range(n):
                for r in range(n):
                    if len({i, j, q, r}) == 4:
                        total += k[i, j] * (l_[i, j] + l_[q, r] - 2 * l_[i, q])
    return total / (n * (n - 1) * (n - 2) * (n - 3))


def test_cka_equals_the_u_statistic() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 5)), rng.normal(size=(7, 3))
    y[:, :2] += x[:, :2]
    k, l_ = x @ x.T, y @ y.T
    expected = naive_hsic(k, l_) / np.sqrt(naive_hsic(k, k) * naive_hsic(l_, l_))
    assert debiased_linear_cka(x, y) == pytest.approx(expected, rel=1e-9)


def test_cka_is_invariant_to_rotation_scale_and_shift() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(20, 6)), rng.normal(size=(20, 6))
    rotation, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    assert debiased_linear_cka(3.0 * x @ rotation + 5.0, y) == pytest.approx(debiased_linear_cka(x, y), rel=1e-9)
    assert debiased_linear_cka(x, 2.0 * x @ rotation) == pytest.approx(1.0)


def test_cka_of_the_probe_equals_that_of_saved_activations() -> None:
    model = tiny_model("llama")
    examples = tiny_examples(10)
    statistics = layercard.probe(model, [collate(examples[:6]), collate(examples[6:])], scores=["cka"])
    states: list[list[np.ndarray]] = []
    with torch.no_grad():
        for example in examples:
            out = model.double()(input_ids=torch.tensor([example["input_ids"]]), output_hidden_states=True)
            states.append([h[0, -1].numpy() for h in out.hidden_states])
    last_before_norm: list[Any] = []
    model.model.norm.register_forward_pre_hook(lambda _, args: last_before_norm.append(args[0][0, -1].detach().numpy()))
    for example in examples:
        model(input_ids=torch.tensor([example["input_ids"]]))
    inputs = [np.array([s[i] for s in states]) for i in range(4)]
    outputs = [*inputs[1:], np.array(last_before_norm)]
    expected = [debiased_linear_cka(x, y) for x, y in zip(inputs, outputs, strict=True)]
    assert statistics.cka is not None
    np.testing.assert_allclose(statistics.cka, expected, rtol=1e-4)


def ending_alike(count: int, ending: list[int]) -> list[dict[str, Any]]:
    return [
        {"input_ids": e["input_ids"] + ending, "labels": e["labels"] + ending}
        for e in tiny_examples(count, low=18, high=24)
    ]


def test_a_constant_last_token_moves_the_position() -> None:
    model = tiny_model("llama")
    statistics = layercard.probe(model, [collate(ending_alike(8, [7, 2]))], scores=["cka"])
    assert statistics.cka_position == "token -3"
    assert any("token -3" in note for note in statistics.notes)
    assert statistics.cka is not None
    assert np.isfinite(statistics.cka).all()


def test_a_long_constant_ending_is_averaged_over_tokens() -> None:
    statistics = layercard.probe(tiny_model("llama"), [collate(ending_alike(8, [7] * 16))], scores=["cka"])
    assert statistics.cka_position == "mean over tokens"
    assert score(statistics, "cka").importance.shape == (4,)


def test_a_constant_representation_is_reported_not_nan() -> None:
    same = [tiny_examples(1)[0]] * 6
    statistics = layercard.probe(tiny_model("llama"), [collate(same)], scores=["cka"])
    with pytest.raises(ProbeError, match="`cka` is undefined for layer 0"):
        score(statistics, "cka")


def test_effective_rank_counts_equal_directions() -> None:
    assert effective_rank(np.eye(6)[:, :4].repeat(3, axis=0)) == pytest.approx(4.0)
    assert effective_rank(np.ones((5, 3))) == pytest.approx(1.0)


def test_effective_rank_reads_at_most_2048_tokens() -> None:
    model = tiny_model("llama", num_layers=2)
    batches = [collate(tiny_examples(24, low=30, high=60, seed=i)) for i in range(3)]
    statistics = layercard.probe(model, batches, scores=["effective_rank"])
    assert statistics.tokens > 2048
    again = layercard.probe(
        model,
        [collate(tiny_examples(24, low=30, high=60, seed=i)) for i in (2, 0, 1)],
        scores=["effective_rank"],
    )
    np.testing.assert_allclose(score(statistics, "effective_rank").raw, score(again, "effective_rank").raw, rtol=1e-5)
