"""`layercard doctor` here: a real toy run of Axolotl, and what is said where the plugin is not called."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pytest

from command_line import runner
from layercard_axolotl import diagnosis
from layercard_axolotl.plugin import LayerCardPlugin

HOOKS = ("register", "get_input_args", "load_datasets", "add_callbacks_post_trainer", "post_trainer_create")


def test_the_doctor_trains_the_toy_and_names_the_hooks_that_axolotl_called(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ran = runner(capfd)("doctor", "--output-dir", tmp_path / "out", "--json")
    rows = {row["name"]: row for row in json.loads(ran.out.splitlines()[-1])["checks"]}
    found = rows["Axolotl run"]
    assert found["status"] == "ok", found
    assert "learned" in found["found"]
    assert all(hook in found["found"].partition("hooks called: ")[2].split(", ") for hook in HOOKS), found
    assert rows["plugin axolotl"]["status"] == "ok"
    assert rows["trl"]["found"].endswith(f"as axolotl {version('axolotl')} asks for")
    assert ran.code == 0
    assert list(tmp_path.iterdir()) == []


def test_hooks_are_as_they_were_afterwards() -> None:
    before = dict(vars(LayerCardPlugin))
    with diagnosis.called_hooks(LayerCardPlugin) as called:
        LayerCardPlugin().register({})
    assert called == ["register"]
    assert dict(vars(LayerCardPlugin)) == before


def test_a_run_in_which_nothing_was_placed_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LayerCardPlugin, "load_datasets", lambda self, cfg, preprocess=False: None)
    monkeypatch.setattr(LayerCardPlugin, "add_callbacks_post_trainer", lambda self, cfg, trainer: [])
    check = diagnosis.check_run(tmp_path)
    assert check.status == "failed"
    assert "nothing was placed" in check.found
    assert "post_trainer_create" in check.found
