"""The cache rolls forward where the entry rises: the weights without it, the layers between alone, one state an example."""

from __future__ import annotations

import gc
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from caching import LIMIT, apart, shuffled
from layercard.anatomy.checkpoint_names import OLD, current_name
from layercard.anatomy.layers import find_layers
from layercard.errors import PlacementError
from rises import phase, risen, train_rising
from tiny import ENCODERS, FAMILIES, collate, pack, tiny_examples

ENTRIES = [1, 3, 4]


def counts(uses: list[Any]) -> list[tuple[int, int, int]]:
    return [(use.hits, use.rolled, use.misses) for use in uses]


def states(examples: list[Any], itemsize: int = 4) -> int:
    """Bytes of one state an example."""
    return sum(len(example["input_ids"]) for example in examples) * 32 * itemsize


@pytest.mark.parametrize(("alike", "bound"), [(True, 1e-6), (False, 1e-4)])
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_those_without_the_cache(family: str, alike: bool, bound: float) -> None:
    if family == "modernbert" and current_name() == OLD:
        pytest.skip("it hands its layers a number of rows, which the cache does not read")
    examples = tiny_examples(8, encoder=family in ENCODERS)

    def batches(number: int) -> Any:
        return shuffled(examples, 2, alike=alike)

    expected, _ = train_rising(risen(family), batches, ENTRIES, limit=None)
    found, uses = train_rising(risen(family), batches, ENTRIES)
    assert apart(found, expected) < bound
    assert counts(uses) == [(8, 0, 8), (8, 8, 0), (8, 8, 0)]
    assert [(use.off, use.bypassed) for use in uses] == [(None, {})] * 3


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 5e-2), (torch.float16, 1e-2)])
def test_half_precision_stays_within_its_stated_bound(dtype: torch.dtype, bound: float) -> None:
    examples = tiny_examples(8)
    expected, _ = train_rising(risen(dtype=dtype), lambda _: shuffled(examples, 2), ENTRIES, limit=None)
    found, uses = train_rising(risen(dtype=dtype), lambda _: shuffled(examples, 2), ENTRIES)
    assert apart(found, expected) < bound
    assert counts(uses) == [(8, 0, 8), (8, 8, 0), (8, 8, 0)]
    assert uses[-1].off is None


def test_only_the_layers_between_run_and_each_example_once() -> None:
    model = risen()
    ran: list[int] = []
    for index, layer in enumerate(find_layers(model).layers):
        layer.self_attn.register_forward_hook(lambda *_, index=index: ran.append(index))
    first, second = (collate(tiny_examples(2, seed=seed)) for seed in (0, 1))

    def runs(batch: Any) -> list[int]:
        ran.clear()
        model(**batch)
        return list(ran)

    with phase(model, 1) as cache:
        for batch in (first, second, first):
            runs(batch)
        earlier = cache.hand_over()
    with phase(model, 3, earlier):
        runs(first)  # proved by computing it too
        assert runs(second) == [1, 2, 3, 4, 5]
        runs(first)  # the same of what is held
        assert runs(second) == [3, 4, 5]
        assert runs(collate(tiny_examples(2, seed=2))) == [0, 1, 2, 3, 4, 5]


def test_one_state_an_example_is_held_at_any_time() -> None:
    examples = tiny_examples(20)
    held: list[int] = []
    _, uses = train_rising(
        risen(), lambda _: shuffled(examples, 1), ENTRIES, after_each=lambda use: held.append(use.bytes_in_memory)
    )
    assert set(held[9:]) == {states(examples)}
    assert uses[-1].bytes_on_disk == 0


@pytest.mark.parametrize("limit", [1, 2**17], ids=["all on disk", "partly on disk"])
def test_what_is_on_disk_is_rolled_and_its_old_files_go(tmp_path: Path, limit: int) -> None:
    examples = tiny_examples(100, low=12, high=20)
    seen: list[Any] = []
    expected, _ = train_rising(risen(), lambda _: shuffled(examples, 2), ENTRIES, limit=None)
    found, uses = train_rising(
        risen(),
        lambda _: shuffled(examples, 2),
        ENTRIES,
        limit=limit,
        directory=tmp_path / "cache",
        after_each=seen.append,
    )
    assert apart(found, expected) < 1e-4
    assert counts(uses) == [(100, 0, 100), (100, 100, 0), (100, 100, 0)]
    assert max(use.bytes_in_memory for use in seen) <= 2**17  # that limit, or a file's worth of each entry
    once = uses[0].bytes_on_disk
    assert once > 0
    assert max(use.bytes_on_disk for use in seen) > once  # files of both entries, on the way
    assert abs(uses[-1].bytes_on_disk - once) < 2**17  # and of one in the end
    assert list(tmp_path.iterdir()) == []


def test_a_batch_of_which_some_is_held_some_rolled_and_some_new() -> None:
    held, rolled, new = (tiny_examples(2, seed=seed) for seed in range(3))
    model = risen().eval()
    mixed = collate([held[0], rolled[0], new[0], rolled[1], new[0], rolled[1]], side="left")
    expected = model(**mixed).logits
    with phase(model, 1) as cache:
        model(**collate([*held, *rolled]))
        earlier = cache.hand_over()
    with phase(model, 3, earlier) as cache:
        model(**collate(held))
        before = counts([cache.use])[0]
        found = model(**mixed).logits
        after = counts([cache.use])[0]
        assert tuple(b - a for a, b in zip(before, after, strict=True)) == (1, 3, 2)
        assert cache.use.bytes_in_memory == states([*held, *rolled, new[0]])
        assert cache.use.off is None
    real = mixed["attention_mask"].bool()
    torch.testing.assert_close(found[real], expected[real], rtol=1e-4, atol=1e-5)


def test_states_of_two_earlier_entries_roll_in_one_batch() -> None:
    low, middle = (tiny_examples(2, seed=seed) for seed in range(2))
    model = risen().eval()
    batch = collate([low[0], middle[0], low[1], middle[1]])
    expected = model(**batch).loss
    with phase(model, 1) as cache:
        model(**batch)
        earlier = cache.hand_over()
    with phase(model, 2, earlier) as cache:
        model(**collate(middle))
        earlier = cache.hand_over()
    assert [layer for layer, _ in earlier.stores] == [2, 1]
    with phase(model, 4, earlier) as cache:
        torch.testing.assert_close(model(**batch).loss, expected)
        assert counts([cache.use]) == [(0, 4, 0)]
        assert cache.use.off is None
        assert cache.hand_over().stores[0][0] == 4
        assert len(cache.hand_over().stores) == 1


def test_documents_of_a_packed_row_roll_each_by_itself() -> None:
    examples = tiny_examples(6)
    rows = [pack(examples[:3]), pack([examples[i] for i in (3, 1, 4)])]
    later = [
        pack([examples[i] for i in (4, 0)]),
        pack([examples[i] for i in (1, 4, 3)]),
        pack([examples[i] for i in (2, 5)]),
    ]

    def batches(number: int) -> Any:
        return later if number else rows

    expected, _ = train_rising(risen(), batches, [1, 3], limit=None)
    found, uses = train_rising(risen(), batches, [1, 3])
    assert apart(found, expected) < 1e-4
    # both of the first row roll; of the second one is held; the third has a new one, so that its row is computed
    assert counts(uses) == [(1, 0, 5), (1, 4, 2)]
    assert uses[-1].off is None


def test_rows_whose_documents_see_each_other_roll_whole() -> None:
    row = pack(tiny_examples(3))
    row |= {"attention_mask": torch.ones_like(row["input_ids"])}
    expected, _ = train_rising(risen(), lambda _: [row, row], [1, 3], limit=None)
    found, uses = train_rising(risen(), lambda _: [row, row], [1, 3])
    assert apart(found, expected) < 1e-6
    assert counts(uses) == [(1, 0, 1), (1, 1, 0)]


def test_passes_that_wait_for_their_backward_keep_their_states() -> None:
    """Two forward passes with an example in common, then both backward passes."""
    examples = tiny_examples(3)
    batches = [collate(examples[:2]), collate(examples[1:])]

    def gradients(model: Any) -> list[torch.Tensor]:
        losses = [model(**batch).loss for batch in batches]
        for loss in losses:
            loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain, model = risen(), risen()
    for layer in find_layers(plain).layers[:3]:
        layer.requires_grad_(False)
    expected = gradients(plain)
    with phase(model, 1) as cache:
        model(**collate(examples))
        earlier = cache.hand_over()
    with phase(model, 3, earlier) as cache:
        found = gradients(model)
        assert counts([cache.use]) == [(1, 3, 0)]
    assert apart(found, expected) < 1e-4


def test_other_padding_and_autocast_are_kept_apart_as_in_the_cache() -> None:
    examples = tiny_examples(2)
    model = risen().eval()
    left = collate(examples, side="left", extra=3)
    expected = model(**left).loss
    with phase(model, 1) as cache:
        model(**collate(examples))
        earlier = cache.hand_over()
    with phase(model, 3, earlier) as cache:
        with torch.autocast("cpu", torch.bfloat16):
            model(**left)
        assert counts([cache.use]) == [(0, 0, 2)]
        torch.testing.assert_close(model(**left).loss, expected)
        assert counts([cache.use]) == [(0, 2, 2)]


def test_what_was_cached_under_autocast_rolls_under_it() -> None:
    batch = collate(tiny_examples(2))
    model = risen().eval()
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(**batch).loss
        with phase(model, 1) as cache:
            model(**batch)
            earlier = cache.hand_over()
        with phase(model, 3, earlier) as cache:
            assert torch.equal(model(**batch).loss, expected)
            assert counts([cache.use]) == [(0, 2, 0)]


def test_a_wrong_roll_is_found_out_and_never_used(caplog: pytest.LogCaptureFixture) -> None:
    batch, other = (collate(tiny_examples(2, seed=seed)) for seed in (0, 1))
    model = risen().eval()
    expected = model(**batch).loss
    with phase(model, 1) as cache:
        for each in (batch, other):
            model(**each)
        earlier = cache.hand_over()
    for hidden in earlier.stores[0][1]._memory.values():
        hidden.mul_(1.01)
    with phase(model, 3, earlier) as cache, caplog.at_level(logging.WARNING, "layercard"):
        assert torch.equal(model(**batch).loss, expected)
        assert "rolled and computed hidden states differ" in str(cache.use.off)
        assert (cache.use.bytes_in_memory, len(cache.hand_over().stores)) == (0, 0)
        assert torch.equal(model(**other).loss, model(**other).loss)
    assert "switched off" in caplog.text


def test_what_a_layer_between_reads_from_below_shows_in_the_comparison() -> None:
    """A model that no rule knows: layer 2 reads what layer 0 left behind, which does not run where states are rolled."""
    model = risen().eval()
    stack = find_layers(model)
    left: list[torch.Tensor] = []
    stack.layers[0].self_attn.register_forward_hook(lambda module, inputs, output: left.append(output[0]))
    stack.layers[2].register_forward_hook(lambda module, inputs, output: output + left.pop() if left else output)
    batch = collate(tiny_examples(2))
    expected = model(**batch).loss
    with phase(model, 1) as cache:
        model(**batch)
        earlier = cache.hand_over()
    with phase(model, 3, earlier) as cache:
        left.clear()
        loss = model(**batch).loss
        assert cache.use.off is not None
    assert torch.equal(loss, expected)


@pytest.mark.parametrize("when", ["before the rise", "after it"])
@pytest.mark.parametrize("layer", [0, 2])
def test_a_changed_base_model_is_never_rolled_from(when: str, layer: int) -> None:
    batch = collate(tiny_examples(2))
    model = risen().eval()

    def change() -> None:
        with torch.no_grad():
            find_layers(model).layers[layer].mlp.up_proj.weight.mul_(1.5)

    with phase(model, 1) as cache:
        model(**batch)
        if when == "before the rise":
            change()
        earlier = cache.hand_over()
    with phase(model, 3, earlier) as cache:
        if when == "after it":
            change()
        found = model(**batch).loss
        rolled = cache.use.rolled
    torch.testing.assert_close(model(**batch).loss, found)
    # layer 2 stands above the old states: they are right where it changed before the rise
    assert rolled == (2 if (layer, when) == (2, "before the rise") else 0)


def test_dropout_between_is_refused_and_what_was_held_can_be_closed(tmp_path: Path) -> None:
    model = risen(dropout=0.1)
    with phase(model, 1, limit=1, directory=tmp_path / "cache") as cache:
        for batch in shuffled(tiny_examples(100, low=12, high=20), 1):
            model(**batch)
        earlier = cache.hand_over()
    assert earlier.bytes_on_disk > 0
    with pytest.raises(PlacementError, match="Dropout is active"), phase(model, 3, earlier):
        pass
    earlier.close()
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_is_off_hands_nothing_over() -> None:
    batch = collate(tiny_examples(2))
    model = risen().eval()
    with phase(model, 1) as cache:
        model(**batch)
        for hidden in cache._store._memory.values():
            hidden.mul_(1.01)
        model(**batch)
        assert cache.hand_over().stores == ()
    with phase(model, 3, cache.hand_over()) as cache:
        model(**batch)
        assert counts([cache.use]) == [(0, 0, 2)]


def test_where_the_disk_takes_no_more_states_stay_where_they_are(tmp_path: Path) -> None:
    examples = tiny_examples(100, low=12, high=20)
    model = risen().eval()
    batches = [collate(examples[i : i + 10]) for i in range(0, 100, 10)]
    expected = [model(**batch).loss for batch in batches]
    with phase(model, 1, limit=1, directory=tmp_path / "cache") as cache:
        for batch in batches:
            model(**batch)
        earlier = cache.hand_over()
    with phase(model, 3, earlier, limit=1, directory=tmp_path / "cache") as cache:
        cache._store._disk_full = True
        for _ in range(2):
            for batch, loss in zip(batches, expected, strict=True):
                torch.testing.assert_close(model(**batch).loss, loss)
        # what was not yet in a file took its own place in memory at most; all the rest rolls every time
        assert cache.use.misses <= 2 * 25
        assert cache.use.rolled > 100
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_behind_by_a_trainer_that_failed_after_a_rise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = risen()
    examples = tiny_examples(100, low=12, high=20)
    with phase(model, 1, limit=1) as cache:
        for batch in shuffled(examples, 1):
            model(**batch)
        earlier = cache.hand_over()
    inside = phase(model, 3, earlier, limit=1)
    inside.__enter__()  # no callback is called to leave it
    for batch in list(shuffled(examples, 1))[:40]:
        model(**batch)
    assert len(list(tmp_path.rglob("*.layercard-prefix"))) > 2
    del model, cache, earlier, inside
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_files_of_two_entries_lie_in_one_folder_and_a_killed_runs_do_not_mislead(tmp_path: Path) -> None:
    """What a run that was killed after a rise left behind: files of the new entry count, those of the old one go."""
    import shutil

    examples = tiny_examples(100, low=12, high=20)
    batches = list(shuffled(examples, 1))
    model = risen().eval()
    folder, killed = tmp_path / "cache", tmp_path / "killed"
    with phase(model, 1, limit=1, directory=folder) as cache:
        for batch in batches:
            model(**batch)
        earlier = cache.hand_over()
    with phase(model, 3, earlier, limit=1, directory=folder) as cache:
        for batch in batches[:25]:
            model(**batch)
        shutil.copytree(folder, killed)
    expected = [model(**batch).loss for batch in batches]
    with phase(model, 3, limit=LIMIT, directory=killed) as cache:
        for batch, loss in zip(batches, expected, strict=True):
            torch.testing.assert_close(model(**batch).loss, loss)
        assert (cache.use.off, cache.use.rolled) == (None, 0)
        assert 0 < cache.use.hits <= 50
    assert list(tmp_path.iterdir()) == []
