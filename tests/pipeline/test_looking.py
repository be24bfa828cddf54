"""Where no score decides, nothing about a score stops a run; what would keep training from working still does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from layercard import hookimpl, place
from layercard.errors import DataError, LayercardError, NothingToLearnError, ProbeError, UntrainableError
from layercard.plugins import build_manager
from layercard.probing.statistics import LayerStatistics
from layercard.scores.base import LayerScores
from tiny import collate, tiny_examples
from trainers import Rows, make_trainer

LINE = "Chosen by depth without a look at the data, which no score needs here: "


def said(capfd: Any) -> str:
    return " ".join(capfd.readouterr().err.split())


def renamed(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What a model of sentences reads: two texts and no labels."""
    batch = collate(rows)
    return {"anchor": batch["input_ids"], "positive": batch["input_ids"].flip(1), "mask": batch["attention_mask"]}


class Embeds(Trainer):
    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        one, other = (model(input_ids=inputs[name]).logits.mean(1) for name in ("anchor", "positive"))
        loss = (one - other).square().mean()
        return (loss, one) if return_outputs else loss


def embedding(folder: Path) -> Any:
    trainer = make_trainer(folder, kind=Embeds)
    trainer.data_collator = renamed
    return trainer


def one_example(folder: Path) -> Any:
    trainer = make_trainer(folder)
    trainer.train_dataset = Rows(tiny_examples(1))
    return trainer


TRAINABLE = {"other inputs": embedding, "one example": one_example}


@pytest.mark.parametrize("choice", ["auto", {"prefer": "quality"}, {"cards": "off"}], ids=str)
@pytest.mark.parametrize("kind", TRAINABLE)
def test_auto_goes_by_depth_and_says_what_it_could_not_look_at(
    kind: str, choice: Any, tmp_path: Path, capfd: Any
) -> None:
    trainer = TRAINABLE[kind](tmp_path / "seen")
    run = place(trainer, lora_layers=choice, guard=False, probe_budget=0.5)
    text = said(capfd)
    assert LINE in text
    assert "A batch holds [" in text or "example" in text
    assert run.statistics is None
    assert (
        run.layers == place(make_trainer(tmp_path / "other"), lora_layers=choice, guard=False, probe_budget=0.5).layers
    )
    trainer.train()


@pytest.mark.parametrize("kind", TRAINABLE)
def test_a_score_that_was_asked_for_is_an_error(kind: str, tmp_path: Path) -> None:
    trainer = TRAINABLE[kind](tmp_path)
    before = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    with pytest.raises(LayercardError):
        place(trainer, lora_layers="high")
    assert [name for name, p in trainer.model.named_parameters() if p.requires_grad] == before


def masked(folder: Path) -> Any:
    trainer = make_trainer(folder)
    trainer.train_dataset = Rows([{**row, "labels": [-100] * len(row["labels"])} for row in tiny_examples(20)])
    return trainer


def empty(folder: Path) -> Any:
    trainer = make_trainer(folder)
    trainer.train_dataset = Rows([])
    return trainer


def broken(folder: Path) -> Any:
    trainer = make_trainer(folder)
    with torch.no_grad():
        trainer.model.get_base_model().lm_head.weight.fill_(float("nan"))
    return trainer


@pytest.mark.parametrize(("make", "kind"), [(masked, DataError), (empty, DataError), (broken, ProbeError)])
def test_what_training_cannot_work_with_stops_auto_too(make: Any, kind: type, tmp_path: Path) -> None:
    with pytest.raises(UntrainableError) as caught:
        place(make(tmp_path), lora_layers="auto", probe_budget=0.5)
    assert isinstance(caught.value, kind)
    assert isinstance(caught.value, NothingToLearnError) == (kind is DataError)


def test_a_score_that_a_plugin_leaves_undefined_stops_who_asked_for_it(tmp_path: Path) -> None:
    class Undefined:
        name = "undefined"
        needs = frozenset({"energy"})

        def score(self, statistics: LayerStatistics) -> LayerScores:
            nothing = torch.full((statistics.num_layers,), float("nan")).double().numpy()
            return LayerScores(self.name, nothing, nothing)

    class Plugin:
        @staticmethod
        @hookimpl
        def register_scorers(register: Any) -> None:
            register(Undefined())

    manager = build_manager([("mine", Plugin)], entry_points=False)
    with pytest.raises(ProbeError, match="`undefined` is undefined for layer 0"):
        place(make_trainer(tmp_path), lora_layers={"strategy": "high", "score": "undefined"}, manager=manager)
