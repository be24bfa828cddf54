"""`plan` and `cards match` with Layer Cards: a tiny saved model, a real probe, cards in the user's own library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from card_documents import published
from command_line import Run, questions, runner
from layercard import LayerPlacement
from layercard.cards.strata import regimes
from layercard.probing.statistics import Array
from own_card import LAYERS, deep_model, own_card, put
from tiny import tiny_tokenizer
from transfer_cards import ranking

TARGETS = ("--target-modules", "q_proj,v_proj,down_proj")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    deep_model().save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return questions(tmp_path_factory.mktemp("data"))


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cards"
    monkeypatch.setenv("LAYERCARD_CARDS", str(folder))
    return folder


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


@pytest.fixture
def resnorm(run: Any, model: Path, data: Path) -> Array:
    document = run("probe", model, "--dataset", data, *TARGETS, "--json").document
    return np.array(document["scores"]["resnorm"]["importance"])


def test_match_shows_every_card_and_the_placement_that_follows(
    run: Any, model: Path, data: Path, library: Path, resnorm: Array, tmp_path: Path
) -> None:
    put(library, own_card(resnorm))
    put(library, own_card(resnorm[::-1].copy(), "backwards"))
    put(library, own_card(resnorm, "once", status="community"))
    other = own_card(resnorm, "foreign")
    other["model"] |= {"id": "org/other", "fingerprint": "f" * 64}
    put(library, other)
    (library / "bad.json").write_text("{")
    path = tmp_path / "placement.json"
    document = run("cards", "match", model, data, *TARGETS, "--json", "-o", path).document
    own = {match["card"]: match for match in document["matches"] if match["card"].startswith(("tiny/", "other/"))}
    assert set(own) == {"tiny/numbers", "tiny/backwards", "tiny/once", "other/foreign"}
    assert next(iter(document["matches"]))["card"] == "tiny/numbers"
    same = own["tiny/numbers"]
    assert same["matches"]
    assert same["spearman"] == same["partial_spearman"] == pytest.approx(1)
    assert "below `min_spearman`" in own["tiny/backwards"]["why_not"]
    assert own["tiny/once"]["spearman"] == pytest.approx(1)
    assert "not reproduced" in own["tiny/once"]["why_not"]
    assert own["other/foreign"]["spearman"] is None
    assert "another model" in own["other/foreign"]["why_not"]
    assert document["chosen"]["outcome"] == "mid"
    assert document["placement"]["layers"] == list(regimes(resnorm)["mid"])
    assert document["placement"]["cards"] == ["tiny/numbers"]
    assert "user:bad.json" in document["notes"][0]
    assert LayerPlacement.load(path).to_dict() == document["placement"]
    words = run("cards", "match", model, data, *TARGETS).words
    for part in (
        "tiny/numbers",
        "given depth",
        "1.000",
        "11 measured cards are of another model",
        "at the least",
        "kept 96%",
    ):
        assert part in words


def test_match_without_a_card_of_the_model_reads_no_weights(
    run: Any, model: Path, data: Path, library: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text((model / "config.json").read_text())
    document = run("cards", "match", bare, data, "--json").document
    assert document["chosen"] is None
    assert document["probe"] is None
    assert document["placement"]["evidence"] == "none"
    assert "no measured Layer Card is of this model" in document["placement"]["reason"]
    assert all(match["spearman"] is None for match in document["matches"])


def test_published_cards_of_the_model_are_named_for_people(run: Any, model: Path, data: Path, library: Path) -> None:
    put(library, published(model=f"org/{model.name}"))
    ran = run("plan", model, "--dataset", data, "--no-time-costs", "--json")
    assert f"published ones, for people to read: {model.name}/words" in ran.document["placement"]["reason"]
    assert ran.document["probe"] is None
    matched = run("cards", "match", model, data, "--json").document
    (one,) = [match for match in matched["matches"] if match["card"] == f"{model.name}/words"]
    assert "published" in one["why_not"]
    named = run("plan", model, "--dataset", data, "--cards", f"{model.name}/words")
    assert (named.code, "published: it holds no ranks" in named.words) == (1, True)


def test_match_and_plan_choose_alike(run: Any, model: Path, data: Path, library: Path, resnorm: Array) -> None:
    put(library, own_card(resnorm))
    for flags in (
        (),
        ("--prefer", "quality"),
        ("--min-spearman", "1"),
        ("--cards", "tiny/numbers"),
        ("--num-layers", 5),
    ):
        matched = run("cards", "match", model, data, *TARGETS, *flags, "--json").document["placement"]
        planned = run("plan", model, "--dataset", data, *TARGETS, *flags, "--no-time-costs", "--json").document[
            "placement"
        ]
        assert planned.pop("made_for") is not None  # what it was chosen for is recorded in a plan alone
        assert matched.pop("made_for") is None
        assert matched == planned


def test_plan_says_what_the_card_leads_one_to_expect(
    run: Any, model: Path, data: Path, library: Path, resnorm: Array
) -> None:
    put(library, own_card(resnorm))
    asked = ("plan", model, "--dataset", data, *TARGETS, "--max-length", 64, "--no-time-costs")
    document = run(*asked, "--json").document
    quality = document["expected"]["quality"]
    assert (quality["kind"], quality["evidence"], quality["from"]) == ("predicted", "measured card", ["tiny/numbers"])
    assert quality["share_kept"] == pytest.approx(0.96)
    assert document["placement"]["evidence"] == "measured card"
    assert document["probe"]["examples"] == 12
    ran = run(*asked)
    assert "kept 96% of all-layer LoRA's gain in heldout_loss" in ran.words
    assert "quality is unproven" not in ran.words
    rows = {line.split()[0]: line for line in ran.out.splitlines() if line.strip()}
    assert rows["planned"].endswith("96% kept")
    assert rows["last"].rstrip().endswith("unproven")


def test_a_plan_for_every_layer_is_a_plan(run: Any, model: Path, data: Path, library: Path, resnorm: Array) -> None:
    put(library, own_card(resnorm, kept={"high": (0.7, 0.6), "mid": (0.5, 0.5), "low": (0.3, 0.4)}))
    document = run("plan", model, "--dataset", data, *TARGETS, "--no-time-costs", "--json").document
    assert document["placement"]["layers"] == list(range(LAYERS))
    assert document["expected"]["quality"]["share_kept"] == document["expected"]["step_speedup"] == 1
    assert document["placement"]["expected"]["outcome"] == "all_layers"


def test_plan_without_data_says_that_cards_were_not_asked(
    run: Any, model: Path, data: Path, library: Path, resnorm: Array
) -> None:
    put(library, own_card(resnorm))
    ran = run("plan", model, "--no-time-costs")
    assert ran.code == 0
    assert "give `--dataset` to consult them" in ran.words
    assert "unproven" in ran.words
    named = run("plan", model, "--cards", "tiny/numbers")
    assert named.code == 2
    assert "compared on examples. Give `--dataset`" in named.words


def test_differences_known_to_the_command_are_listed(
    run: Any, model: Path, data: Path, library: Path, resnorm: Array
) -> None:
    put(library, own_card(resnorm))
    words = run("plan", model, "--dataset", data, *TARGETS, "--column", "prompt=prompt", "--no-time-costs").words
    assert "tiny/numbers was measured otherwise: columns {'prompt': 'prompt'} here" in words


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (("--cards", "tiny/nothing"), 1, "There is no Layer Card `tiny/nothing`"),
        (("--cards", "other/foreign"), 1, "another model (org/other)"),
        (("--cards", "tiny/numbers", "--target-modules", "q_proj"), 1, "other target modules"),
        (("--cards", "tiny/backwards", *TARGETS), 1, "cannot decide here: ρ is"),
        (("--cards", "tiny/numbers", "--lora-layers", "last"), 2, "Drop `cards`"),
        (("--min-spearman", "2"), 2, "`min_spearman` is 2.0"),
    ],
)
def test_a_named_card_that_cannot_decide_stops_the_plan(
    run: Any, model: Path, data: Path, library: Path, resnorm: Array, flags: tuple[str, ...], code: int, message: str
) -> None:
    put(library, own_card(resnorm))
    put(library, own_card(resnorm[::-1].copy(), "backwards"))
    foreign = own_card(ranking(layers=LAYERS), "foreign")
    foreign["model"] |= {"id": "org/other", "fingerprint": "f" * 64}
    put(library, foreign)
    ran = run("plan", model, "--dataset", data, *flags)
    assert (ran.code, message in ran.words) == (code, True), ran.words
