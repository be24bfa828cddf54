"""A third-party scorer and strategy work by name alone: from the command line as installed, and in Python."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import layercard_example.plugin
from card_documents import measured
from layercard import PlacementSettings, hookimpl, plugins
from layercard.cards.card import LayerCard
from layercard.cards.library import Library, save_card
from layercard.cli.main import main
from layercard.errors import PluginError
from layercard.placement.choose import choose_placement
from tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_model("llama", num_layers=6).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    rows = [{"prompt": f"question {i} ", "completion": f"answer {i}"} for i in range(8)]
    (path / "data.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return path


Command = Callable[..., dict[str, Any]]


@pytest.fixture
def layercard(capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line, which finds the plugin through its entry point."""

    def run(*arguments: str) -> dict[str, Any]:
        code, printed = main([*arguments, "--json"]), capsys.readouterr()
        assert code == 0, printed.err
        document: dict[str, Any] = json.loads(printed.out.splitlines()[-1])
        return document

    return run


def test_the_installed_plugin_is_listed_with_what_it_supplies() -> None:
    command = [str(Path(sys.executable).parent / "layercard"), "plugins", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    listed = json.loads(done.stdout.splitlines()[-1])["plugins"]
    (row,) = [row for row in listed if row["name"] == "example"]
    assert (row["scores"], row["strategies"]) == (["deep_energy"], ["odd_layers"])


def test_the_score_works_by_name(layercard: Command, model: Path) -> None:
    found = layercard("probe", str(model), "--dataset", str(model / "data.jsonl"), "--score", "deep_energy")
    scores = found["scores"]["deep_energy"]
    weight = np.arange(1, 7) / 6
    np.testing.assert_allclose(scores["importance"], weight * np.array(found["activation_energy"]))
    np.testing.assert_allclose(scores["raw"], found["activation_energy"])


def test_a_strategy_by_score_ranks_by_it(layercard: Command, model: Path) -> None:
    data = ["--dataset", str(model / "data.jsonl")]
    plan = layercard("plan", str(model), *data, "--strategy", "high", "--score", "deep_energy", "--num-layers", "2")
    importance = plan["scores"]["deep_energy"]["importance"]
    assert plan["placement"]["layers"] == sorted(np.argsort(importance)[-2:].tolist())
    assert plan["placement"]["score"] == "deep_energy"


def test_the_strategy_works_by_name(layercard: Command, model: Path) -> None:
    plan = layercard("plan", str(model), "--lora-layers", "odd_layers", "--num-layers", "2")
    assert (plan["placement"]["layers"], plan["placement"]["strategy"]) == ([3, 5], "odd_layers")


def test_it_works_in_python_with_a_manager_of_ones_own() -> None:
    manager = plugins.build_manager([("example", layercard_example.plugin)], entry_points=False)
    settings = PlacementSettings.from_user("odd_layers", num_layers=2, min_entry=2)
    placement = choose_placement(settings, 6, strategies=plugins.strategies(manager))
    assert placement.layers == (3, 5)


def test_a_plugins_cards_are_in_the_library_by_name(tmp_path: Path) -> None:
    """A plugin that ships Layer Cards answers one hook with the folder that holds them."""
    save_card(LayerCard(measured(model="example/tiny", dataset="odd-numbers"), "example"), tmp_path / "any.json")

    class CardsOfMine:
        @staticmethod
        @hookimpl
        def provide_cards() -> list[Path]:
            return [tmp_path]

    manager = plugins.build_manager([("example", layercard_example.plugin), ("mine", CardsOfMine)], entry_points=False)
    (card,) = Library.open(plugins.card_folders(manager), user_dir=tmp_path / "none").named("tiny/odd-numbers")
    assert card.source == "mine:any.json"


def test_registered_twice_both_owners_are_named() -> None:
    twice = [("one", layercard_example.plugin), ("two", type(sys)("copy"))]
    twice[1][1].__dict__.update(vars(layercard_example.plugin))
    manager = plugins.build_manager(twice, entry_points=False)
    with pytest.raises(PluginError, match=r"`(one|two)` and `(one|two)` both register the score `deep_energy`"):
        plugins.scorers(manager)
