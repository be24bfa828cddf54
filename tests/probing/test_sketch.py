"""Sketches of gradients keep their inner products, and the probe's Gram matrices are those of autograd's gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from oracle import adapted, gradients

import layercard
from layercard.pipeline.probe import score
from layercard.probing.sketch import SKETCH_WIDTH, sketch
from layercard.scores.set_gain import SetGain
from tiny import ENCODERS, collate, tiny_examples, tiny_model

EXAMPLES = 6


def drawn(out: int, rank: int, seed: int = 0) -> torch.Tensor:
    """Gradients of a few examples that have something in common and a few large rows, in float64."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(1, out, rank, generator=generator, dtype=torch.float64)
    rows = 1.0 + 20.0 * (torch.rand(out, 1, generator=generator, dtype=torch.float64) > 0.98)
    return (common + torch.randn(4, out, rank, generator=generator, dtype=torch.float64)) * rows


def products(x: torch.Tensor) -> torch.Tensor:
    flat = x.flatten(1)
    return flat @ flat.T


@pytest.mark.parametrize(("out", "rank", "width"), [(300, 4, 64), (97, 3, 32), (640, 8, 1024)])
def test_inner_products_are_right_on_average_and_vary_no_more_than_said(out: int, rank: int, width: int) -> None:
    x, trials = drawn(out, rank), 400
    exact = products(x)
    found = torch.stack([products(sketch(x, (layer, 5), width)) for layer in range(trials)])
    squares = exact.diagonal()
    variance = (squares[:, None] * squares[None] + exact**2) / width
    off = (found.mean(0) - exact).abs()
    assert bool((off <= 5 * (variance / trials).sqrt()).all())
    assert bool((found.var(0) <= 1.5 * variance).all())


def test_sketches_of_many_small_modules_add_up_to_no_larger_error() -> None:
    modules, trials, width = [drawn(24, 4, seed) for seed in range(7)], 400, 256
    exact = sum(products(x) for x in modules)
    assert isinstance(exact, torch.Tensor)
    found = []
    for layer in range(trials):
        rows = sum(sketch(x, (layer, column), width) for column, x in enumerate(modules))
        assert isinstance(rows, torch.Tensor)
        found.append(rows @ rows.T)
    squares = exact.diagonal()
    variance = (squares[:, None] * squares[None] + exact**2) / width
    assert bool(((torch.stack(found).mean(0) - exact).abs() <= 5 * (variance / trials).sqrt()).all())
    assert bool((torch.stack(found).var(0) <= 1.5 * variance).all())


def test_what_fits_into_the_sketch_is_exact() -> None:
    x = drawn(16, 4)
    torch.testing.assert_close(products(sketch(x, (3, 2), 64)), products(x))
    torch.testing.assert_close(products(sketch(x, (3, 2))), products(x))


def test_a_sketch_is_linear_and_its_places_own() -> None:
    x, y = drawn(90, 4, 1), drawn(90, 4, 2)
    torch.testing.assert_close(sketch(x + 2 * y, (1, 0), 32), sketch(x, (1, 0), 32) + 2 * sketch(y, (1, 0), 32))
    state = torch.get_rng_state()
    assert torch.equal(sketch(x, (1, 0), 32), sketch(x, (1, 0), 32))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(sketch(x, (1, 0), 32), sketch(x, (0, 1), 32))


def of_autograd(family: str, examples: list[dict[str, Any]]) -> tuple[Any, list[dict[tuple[int, str], np.ndarray]]]:
    model = adapted(tiny_model(family), family)
    return model, [gradients(model, collate([example])) for example in examples]


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "deberta"])
def test_the_probes_inner_products_are_those_of_sketched_autograd_gradients(family: str) -> None:
    examples = tiny_examples(EXAMPLES, encoder=family in ENCODERS)
    model, found = of_autograd(family, examples)
    statistics = layercard.probe(model, [collate(examples[:4]), collate(examples[4:])], scores=["set_gain"])
    assert statistics.gradient_gram is not None
    assert statistics.gradient_norm is None
    names = {target: column for column, target in enumerate(statistics.targets)}
    for layer in range(4):
        rows = torch.zeros(EXAMPLES, SKETCH_WIDTH, dtype=torch.float64)
        exact = np.zeros((EXAMPLES, EXAMPLES))
        for target in {target for at, target in found[0] if at == layer}:
            stacked = np.stack([example[layer, target] for example in found])
            rows += sketch(torch.from_numpy(stacked), (layer, names[target]))
            flat = stacked.reshape(EXAMPLES, -1)
            exact += flat @ flat.T
        gram, scale = statistics.gradient_gram[layer], np.trace(exact)
        np.testing.assert_allclose(gram, (rows @ rows.T).numpy(), rtol=1e-4, atol=1e-5 * scale)
        lengths = np.sqrt(np.diag(exact))
        error = np.sqrt((np.outer(lengths, lengths) ** 2 + exact**2) / SKETCH_WIDTH)
        assert (np.abs(gram - exact) <= 5 * error).all()


def test_the_gain_by_sketches_is_near_that_by_exact_inner_products() -> None:
    examples = tiny_examples(16)
    model, found = of_autograd("llama", examples)
    statistics = layercard.probe(model, [collate(examples)], scores=["set_gain"])
    scores = score(statistics, "set_gain")
    flat = [
        np.stack([np.concatenate([g.ravel() for (at, _), g in e.items() if at == i]) for e in found]) for i in range(4)
    ]
    exact = SetGain.of_grams(np.stack([f @ f.T for f in flat]), range(4))
    assert scores.sets is not None
    for layers in ([0], [1, 2], [0, 3], [0, 1, 2, 3]):
        assert scores.sets.of(layers) == pytest.approx(exact.of(layers), rel=0.05)


def test_what_nobody_asked_for_is_not_sketched() -> None:
    model, examples = tiny_model("llama"), tiny_examples(4)
    assert layercard.probe(model, [collate(examples)]).gradient_gram is None


def test_batches_and_order_permute_examples_alone() -> None:
    model, examples = tiny_model("llama"), tiny_examples(7)
    whole = layercard.probe(model, [collate(examples)], scores=["set_gain"]).gradient_gram
    singles = layercard.probe(model, [collate([e]) for e in examples[::-1]], scores=["set_gain"]).gradient_gram
    assert whole is not None and singles is not None
    assert whole.shape == (4, 7, 7)
    np.testing.assert_allclose(singles[:, ::-1, ::-1], whole, rtol=1e-4, atol=1e-5 * np.abs(whole).max())
