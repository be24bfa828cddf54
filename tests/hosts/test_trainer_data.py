"""What a short training on trial reads of a trainer: rows held out, and the micro-batches of optimizer steps."""

import datasets
import pytest
import torch
from transformers import Trainer

from adapted import lora_config, with_adapters
from layercard.errors import DataError
from layercard.hosts.plain import PlainHost
from tiny import collate, tiny_examples, tiny_model
from trainers import Rows, arguments


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


class Once(Stream):
    def __iter__(self):
        return self.rows


def _host(folder, train, evaluation=None, **changes):
    model = with_adapters(tiny_model("llama"), lora_config("llama"))
    args = arguments(folder, **changes)
    return PlainHost(
        Trainer(model=model, args=args, train_dataset=train, eval_dataset=evaluation, data_collator=collate)
    )


def _rows(batches):
    """The rows of padded batches, as the examples they were."""
    return {
        tuple(ids[mask == 1].tolist())
        for batch in batches
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    }


@pytest.mark.parametrize("kind", [Rows, Stream, datasets.Dataset.from_list])
def test_held_out_rows_come_from_the_eval_set_one_by_one(tmp_path, kind):
    own = tiny_examples(20, seed=3)
    held = _host(tmp_path, Rows(tiny_examples(20)), kind(own)).heldout_batches(6)
    assert (held.source, held.held_back, len(held.batches)) == ("eval_dataset", 0, 6)
    assert {len(batch["input_ids"]) for batch in held.batches} == {1}
    assert _rows(held.batches) <= {tuple(row["input_ids"]) for row in own}


def test_the_first_of_several_eval_sets_is_read(tmp_path):
    sets = {"own": Rows(tiny_examples(9, seed=3)), "other": Rows(tiny_examples(9, seed=4))}
    held = _host(tmp_path, Rows(tiny_examples(20)), sets).heldout_batches(64)
    assert _rows(held.batches) == {tuple(row["input_ids"]) for row in sets["own"].rows}


@pytest.mark.parametrize("evaluation", [None, Rows([]), Once(iter(tiny_examples(5)))])
@pytest.mark.parametrize("kind", [Rows, Stream])
def test_without_an_eval_set_rows_are_held_back_from_the_training_set(tmp_path, kind, evaluation):
    host = _host(tmp_path, kind(tiny_examples(40)), evaluation)
    held = host.heldout_batches(8)
    assert (held.source, held.held_back) == ("training set", 8)
    micros = [inputs for update in host.update_batches(12, held.held_back) for inputs, _ in update]
    assert not _rows(held.batches) & _rows(micros)
    assert len(_rows(micros)) == 24


def test_at_most_a_quarter_of_the_training_set_is_held_back(tmp_path):
    assert _host(tmp_path, Rows(tiny_examples(11))).heldout_batches(64).held_back == 2
    assert _host(tmp_path, Rows(tiny_examples(3))).heldout_batches(64).batches == []


def test_an_optimizer_step_counts_its_labels_over_all_its_micro_batches(tmp_path):
    host = _host(tmp_path, Rows(tiny_examples(40)), gradient_accumulation_steps=3)
    for update in host.update_batches(2, 0):
        assert len(update) == 3
        labels = sum(int(inputs["labels"][:, 1:].ne(-100).sum()) for inputs, _ in update)
        assert [int(items) for _, items in update] == [labels] * 3


def test_few_rows_are_read_again_and_again(tmp_path):
    host = _host(tmp_path, Rows(tiny_examples(5)))
    assert len(host.update_batches(20, 1)) == 20
    with pytest.raises(DataError, match="nothing is left"):
        host.update_batches(1, 5)


def test_reading_draws_nothing_from_the_random_state(tmp_path):
    host = _host(tmp_path, Rows(tiny_examples(40)))
    before = torch.get_rng_state()
    host.heldout_batches(4)
    host.update_batches(2, 4)
    assert torch.equal(before, torch.get_rng_state())
