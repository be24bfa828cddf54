"""What is done with every case: probed, narrowed, trained, saved, and read again by PEFT alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel
from peft_cases import LAYERS, Case
from stages import check_probe, check_reload, check_training, trainer_of

from adapted import adapter_names
from layercard.anatomy.layers import find_layers
from layercard.anatomy.verify import verify_placement
from layercard.errors import ModelError


@dataclass(frozen=True)
class Outcome:
    """What one case did, stage by stage, in words for the table."""

    probe: str
    entry: str
    cache: str
    reload: str


def tried(case: Case, folder: Path) -> Outcome:
    """Run every stage; raise what layercard raises where it refuses the case."""
    probe = check_scores(case, folder)
    model, by_hand = case.adapted(folder), case.adapted(folder, **case.by_hand)
    start_alike(by_hand, model)
    placed = trainer_of(model, case.kind, folder / "placed")
    entry, cache = check_training(trainer_of(by_hand, case.kind, folder / "by hand"), placed, LAYERS)
    check_narrowed(model, by_hand)
    reload = check_reload(model, case.bare(folder), case.kind, folder / "adapter")
    return Outcome(probe, entry, cache, reload)


def check_scores(case: Case, folder: Path) -> str:
    """Compare the probe with autograd; where it reads nothing of the case, return its own words."""
    model = case.adapted(folder)
    stack = find_layers(model)
    if case.scored:
        return check_probe(model, stack, case.kind)
    try:
        check_probe(model, stack, case.kind)
    except ModelError as error:
        return f"refused: {error}"
    raise AssertionError("the probe reads it after all: say so in its case")


def start_alike(model: PeftModel, source: PeftModel) -> None:
    """Give adapters, frozen ones too, and all else that trains the values of the same name in `source`."""
    values = dict(source.named_parameters())
    for name, parameter in model.named_parameters():
        if name in values and (parameter.requires_grad or ".lora_" in name):
            parameter.data.copy_(values[name].data)


def check_narrowed(model: PeftModel, by_hand: PeftModel) -> None:
    """The adapters that are there, and that trained, are those of the model that was placed by hand."""
    verify_placement(model, find_layers(model), LAYERS)
    assert adapter_names(model) == adapter_names(by_hand)
    tuners = model.base_model, by_hand.base_model
    for name in ("targeted_module_names", "targeted_parameter_names"):
        assert [*getattr(tuners[0], name)] == [*getattr(tuners[1], name)], name
    assert any(p.any() for name, p in model.named_parameters() if ".lora_B." in name and p.requires_grad)
