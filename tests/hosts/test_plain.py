"""`PlainHost` reads a real trainer's batches, losses and steps and leaves the trainer as it was."""

import copy
import random

import datasets
import numpy as np
import pytest
import torch
from transformers import DataCollatorWithFlattening, Trainer

from adapted import lora_config, with_adapters
from layercard.errors import DataError, HostError
from layercard.hosts.plain import PlainHost
from tiny import collate, pack, tiny_examples, tiny_model
from trainers import Rows, arguments, make_trainer


def _trainer(folder, dataset, collator=collate, **changes):
    model = with_adapters(tiny_model("llama"), lora_config("llama"))
    return Trainer(model=model, args=arguments(folder, **changes), train_dataset=dataset, data_collator=collator)


def _random_state():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def _flat(batches):
    return [{name: value.tolist() for name, value in batch.items()} for batch in batches]


def _loss_to(inputs, model):
    return model(**inputs).loss


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


class Once(torch.utils.data.IterableDataset):
    def __init__(self, rows):
        self.iterator = iter(rows)

    def __iter__(self):
        return self.iterator


def test_it_answers_for_trainers_and_for_nothing_else(tmp_path):
    class Mine(Trainer):
        def compute_loss(self, model, inputs, **kwargs):
            return 2 * super().compute_loss(model, inputs, **kwargs)

    assert PlainHost.answer(object()) is None
    trainer = make_trainer(tmp_path)
    assert PlainHost.answer(trainer).name == "transformers.Trainer"
    mine = PlainHost.answer(make_trainer(tmp_path, kind=Mine))
    inputs = collate(tiny_examples(2))
    mine.model.eval()
    assert mine.loss(mine.model, inputs).item() == pytest.approx(2 * mine.model(**inputs).loss.item())


def test_a_framework_that_defines_its_own_loss_is_refused_by_class_name(tmp_path):
    odd = type("OddTrainer", (Trainer,), {"compute_loss": Trainer.compute_loss, "__module__": "trl.odd"})
    with pytest.raises(HostError, match=r"OddTrainer.*compute_loss.*layercard-trl"):
        PlainHost.answer(make_trainer(tmp_path, kind=odd))


@pytest.mark.parametrize("kind", ["arrow", "torch", "stream", "arrow stream"])
def test_probe_batches_hold_so_many_documents_and_move_nothing(tmp_path, kind):
    examples = [{**example, "length": 1} for example in tiny_examples(20)]
    arrow = datasets.Dataset.from_list(examples)
    dataset = {
        "arrow": arrow,
        "torch": Rows(examples),
        "stream": Stream(examples),
        "arrow stream": arrow.to_iterable_dataset(),
    }[kind]
    trainer = _trainer(tmp_path, dataset, remove_unused_columns=True)
    host = PlainHost(trainer)
    before, moved = _random_state(), copy.deepcopy(trainer.accelerator.gradient_state.__dict__)
    batches = list(host.probe_batches(7, 3, seed=1))
    assert [batch["input_ids"].shape[0] for batch in batches] == [3, 3, 1]
    assert set(batches[0]) == {"input_ids", "labels", "attention_mask"}
    assert _random_state() == before
    assert trainer.accelerator.gradient_state.__dict__ == moved
    assert trainer.accelerator._dataloaders == []
    assert _flat(host.probe_batches(7, 3, seed=1)) == _flat(batches)
    differs = _flat(host.probe_batches(7, 3, seed=2)) != _flat(batches)
    assert differs == ("stream" not in kind)


def test_the_trainer_reads_the_same_batches_afterwards(tmp_path):
    orders = []
    for probe in (True, False):
        trainer = make_trainer(tmp_path)
        torch.manual_seed(5)
        if probe:
            list(PlainHost(trainer).probe_batches(9, None, seed=0))
            PlainHost(trainer).step_batches(3)
        orders.append(_flat(trainer.get_train_dataloader()))
    assert orders[0] == orders[1]


def test_a_collator_that_draws_is_fed_from_the_seed_alone(tmp_path):
    def noisy(rows):
        batch = collate(rows)
        batch["labels"] = batch["labels"].masked_fill(torch.rand(batch["labels"].shape) < random.random(), -100)
        return batch

    host = PlainHost(_trainer(tmp_path, Rows(tiny_examples(20)), noisy))
    before = _random_state()
    first = _flat(host.probe_batches(6, 2, seed=4))
    assert _random_state() == before
    random.random()
    torch.rand(3)
    assert _flat(host.probe_batches(6, 2, seed=4)) == first


def test_packed_rows_count_their_documents(tmp_path):
    rows = [{name: value[0].tolist() for name, value in pack(tiny_examples(4, seed=i)).items()} for i in range(8)]
    merge = lambda rows: {name: torch.tensor([rows[0][name]]) for name in rows[0]}  # noqa: E731
    by_position = list(PlainHost(_trainer(tmp_path, Rows(rows), merge)).probe_batches(10, 1, seed=0))
    assert sum(int((batch["position_ids"] == 0).sum()) for batch in by_position) == 12
    lengths = [{"input_ids": row["input_ids"], "seq_lengths": [3, 4, 5]} for row in rows]
    batches = PlainHost(_trainer(tmp_path, Rows(lengths), lambda rows: {"rows": len(rows)})).probe_batches(7, 2, 0)
    assert sum(batch["rows"] for batch in batches) == 3


def test_padding_free_batches_hold_a_document_for_each_row(tmp_path):
    host = PlainHost(_trainer(tmp_path, Rows(tiny_examples(20)), DataCollatorWithFlattening()))
    batches = list(host.probe_batches(6, 3, seed=0))
    assert [int((batch["position_ids"] == 0).sum()) for batch in batches] == [3, 3]


@pytest.mark.parametrize("dataset", [Rows([]), Stream([]), datasets.Dataset.from_list([])])
def test_an_empty_dataset_is_an_error(tmp_path, dataset):
    trainer = make_trainer(tmp_path)
    trainer.train_dataset = dataset
    trainer.args.remove_unused_columns = False
    with pytest.raises(DataError, match="empty"):
        list(PlainHost(trainer).probe_batches(4, 2, 0))


def test_a_dataset_that_can_be_read_once_is_not_consumed(tmp_path):
    dataset = Once(tiny_examples(6))
    host = PlainHost(_trainer(tmp_path, dataset))
    with pytest.raises(DataError, match="only once"):
        list(host.probe_batches(4, 2, 0))
    assert len(list(dataset)) == 6


def test_a_trainer_without_a_training_set_is_refused(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train_dataset = None
    with pytest.raises(HostError, match="train_dataset"):
        PlainHost(trainer).step_batches(1)


def test_the_loss_is_the_mean_over_label_terms_and_leaves_metrics_alone(tmp_path):
    class Counting(Trainer):
        seen = 0

        def compute_loss(self, model, inputs, *args, **kwargs):
            self.seen += 1
            self.state.num_input_tokens_seen += inputs["input_ids"].numel()
            return super().compute_loss(model, inputs, *args, **kwargs)

    trainer = make_trainer(tmp_path, kind=Counting)
    host = PlainHost(trainer)
    inputs = collate(tiny_examples(3))
    host.model.eval()
    logits = host.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten())
    assert host.loss(host.model, inputs).item() == pytest.approx(expected.item(), rel=1e-5)
    assert "labels" in inputs
    assert (trainer.seen, trainer.state.num_input_tokens_seen) == (0, 0)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_step_gives_the_gradients_of_the_trainers_own_step(tmp_path, family):
    trainer = make_trainer(tmp_path, family=family)
    trainer.optimizer = None
    host = PlainHost(trainer)
    model = host.model
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    batches = host.step_batches(30)  # more than the training set holds
    assert len(batches) == 30
    assert {inputs["input_ids"].shape[0] for inputs, _ in batches} == {2}
    with host.preserved():
        host.training_step(model, batches[0])
    got = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model(**batches[0][0]).loss.backward()
    assert got
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(got[name], parameter.grad)
    assert "current_gradient_accumulation_steps" not in vars(trainer)
