"""`auto` with Layer Cards, end to end: a real trainer, a real probe, a card of that very model in the user's library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers as hf

import layercard
from adapted import LIKE_LLAMA
from layercard import PlacementSettings, plugins
from layercard.anatomy.layers import find_layers
from layercard.cards.card import LayerCard
from layercard.cards.strata import regimes
from layercard.errors import CardError, SettingsError
from layercard.hosts.plain import PlainHost
from layercard.pipeline.before.choosing import Chosen, choose_layers
from layercard.pipeline.before.looking import RunToPlace
from layercard.probing.statistics import Array
from own_card import LAYERS, deep_model, deep_trainer, own_card, put, resnorm_of
from tiny import collate, tiny_examples
from trainers import Rows, arguments
from transfer_cards import ranking

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def resnorm(tmp_path_factory: pytest.TempPathFactory) -> Array:
    return resnorm_of(tmp_path_factory.mktemp("probed"))


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cards"
    monkeypatch.setenv("LAYERCARD_CARDS", str(folder))
    return folder


def place(tmp_path: Path, **settings: Any) -> Any:
    return layercard.place(deep_trainer(tmp_path / "out"), measure=False, **settings)


def test_a_card_of_this_model_chooses(
    tmp_path: Path, library: Path, resnorm: Array, capfd: pytest.CaptureFixture[str]
) -> None:
    put(library, own_card(resnorm))
    run = place(tmp_path)
    placement = run.placement
    assert run.layers == regimes(resnorm)["mid"]  # the cheapest that kept 95%
    assert (placement.evidence, placement.cards, placement.score) == ("measured card", ("tiny/numbers",), "resnorm")
    assert placement.expected is not None
    assert placement.expected["share_kept"] == pytest.approx(0.96)
    assert placement.expected["step_seconds_ratio"] == pytest.approx(0.7)
    assert run.statistics.examples == 32
    saved = json.loads((tmp_path / "out" / "placement.json").read_text())
    assert saved["evidence"] == "measured card"
    assert saved["expected"]["cards"][0]["spearman"] == pytest.approx(1)
    said = capfd.readouterr().err
    quality = (
        "Quality (measured card): 96% of all-layer LoRA's gain in heldout_loss was kept by `mid` on the Layer Card"
    )
    for part in ("tiny/numbers", "ρ 1.00", "given depth", "kept 96%", "a step 1.43x as fast", quality):
        assert part in " ".join(said.split())


@pytest.mark.parametrize(("prefer", "regime"), [("quality", "high"), ("speed", "mid")])
def test_prefer_decides_among_what_the_card_tried(
    tmp_path: Path, library: Path, resnorm: Array, prefer: str, regime: str
) -> None:
    put(library, own_card(resnorm))
    assert place(tmp_path, prefer=prefer).layers == regimes(resnorm)[regime]


def test_where_the_card_saw_placement_lose_every_layer_stays_adapted(
    tmp_path: Path, library: Path, resnorm: Array, capfd: pytest.CaptureFixture[str]
) -> None:
    put(library, own_card(resnorm, kept={"high": (0.7, 0.6), "mid": (0.5, 0.5), "low": (0.3, 0.4)}))
    run = place(tmp_path)
    assert run.placement.is_all
    assert run.placement.evidence == "measured card"
    assert sum("lora_A" in name for name, p in run.host.model.named_parameters() if p.requires_grad) == 3 * LAYERS
    assert "every layer, for nothing tried on the Layer Card" in " ".join(capfd.readouterr().err.split())
    assert place(tmp_path / "fast", prefer="speed").layers == regimes(resnorm)["high"]


def test_a_resumed_run_keeps_what_the_cards_chose(tmp_path: Path, library: Path, resnorm: Array) -> None:
    path = put(library, own_card(resnorm))
    first = place(tmp_path)
    path.unlink()
    resumed = layercard.place(deep_trainer(tmp_path / "out", resume_from_checkpoint="True"), measure=False)
    assert resumed.placement == first.placement


def test_a_run_of_a_model_without_cards_pays_for_a_look_alone(tmp_path: Path, library: Path) -> None:
    document = own_card(ranking(layers=LAYERS + 1))
    document["model"] |= {"id": "org/other", "fingerprint": "f" * 64, "num_layers": LAYERS + 1}
    put(library, document)
    run = place(tmp_path)
    assert run.statistics.examples == 8
    assert run.placement.evidence == "none"
    assert "no measured Layer Card is of this model" in run.placement.reason


def test_a_card_of_another_model_of_that_shape_is_not_used(tmp_path: Path, library: Path, resnorm: Array) -> None:
    document = own_card(resnorm)
    document["model"] |= {"id": "org/other", "fingerprint": "f" * 64}
    put(library, document)
    run = place(tmp_path)
    assert run.statistics.examples == 8
    assert run.placement.evidence == "none"
    with pytest.raises(CardError, match=r"another model \(org/other\)"):
        place(tmp_path / "named", cards="other/numbers")


def test_off_consults_none(tmp_path: Path, library: Path, resnorm: Array) -> None:
    put(library, own_card(resnorm))
    assert place(tmp_path, cards="off").placement.evidence == "none"


def test_community_cards_need_a_word(tmp_path: Path, library: Path, resnorm: Array) -> None:
    put(library, own_card(resnorm, status="community"))
    without = place(tmp_path / "without")
    assert without.statistics.examples == 8
    assert "tiny/numbers: measured once and not reproduced" in without.placement.reason
    assert place(tmp_path / "let in", community_cards=True).placement.cards == ("tiny/numbers",)
    assert place(tmp_path / "named", cards="tiny/numbers").placement.cards == ("tiny/numbers",)


def test_where_none_matches_it_goes_by_depth_and_says_how_near_they_were(
    tmp_path: Path, library: Path, resnorm: Array
) -> None:
    put(library, own_card(resnorm[::-1].copy()))
    run = place(tmp_path)
    assert run.statistics.examples == 32
    assert run.placement.evidence == "none"
    for part in ("unproven", "no Layer Card matches; the nearest, tiny/numbers (ρ ", "below `min_spearman` (0.9)"):
        assert part in run.placement.reason
    with pytest.raises(CardError, match="cannot decide here: ρ is"):
        place(tmp_path / "named", cards="tiny/numbers")


def test_a_card_is_named_by_its_path_too(tmp_path: Path, library: Path, resnorm: Array) -> None:
    path = put(tmp_path / "elsewhere", own_card(resnorm))
    assert place(tmp_path / "free").placement.evidence == "none"
    assert place(tmp_path / "named", cards=str(path)).placement.cards == ("tiny/numbers",)


def test_settings_beside_auto_are_honoured(tmp_path: Path, library: Path, resnorm: Array) -> None:
    put(library, own_card(resnorm))
    lowest = min(min(layers) for layers in regimes(resnorm).values())
    above = place(tmp_path / "above", min_entry=LAYERS - 1)
    assert above.layers == (LAYERS - 1,)
    assert f"tried no set from layer {LAYERS - 1} up" in above.placement.reason
    counted = place(tmp_path / "counted", num_layers=5)
    assert len(counted.layers) == 5
    assert "tried no set of 5 layers" in counted.placement.reason
    assert lowest == 0
    with pytest.raises(SettingsError, match="`cards` names"):
        place(tmp_path / "list", lora_layers=[1, 2], cards="tiny/numbers")


def test_differences_from_the_cards_run_are_said(
    tmp_path: Path, library: Path, resnorm: Array, capfd: pytest.CaptureFixture[str]
) -> None:
    put(library, own_card(resnorm, lora={"rank": 16, "alpha": 8, "targets": ["q_proj", "v_proj", "down_proj"]}))
    place(tmp_path)
    said = " ".join(capfd.readouterr().err.split())
    assert "tiny/numbers was measured otherwise: LoRA rank 4 here, 16 on the card." in said


def test_cards_that_differ_alike_are_said_once(
    tmp_path: Path, library: Path, resnorm: Array, capfd: pytest.CaptureFixture[str]
) -> None:
    lora = {"rank": 16, "alpha": 8, "targets": ["q_proj", "v_proj", "down_proj"]}
    for dataset in ("numbers", "words"):
        put(library, own_card(resnorm, dataset, lora=lora))
    place(tmp_path)
    said = " ".join(capfd.readouterr().err.split())
    assert "Layer Cards tiny/numbers, tiny/words were measured otherwise: LoRA rank 4 here, 16 on the card." in said
    assert said.count("measured otherwise") == 1


def test_a_model_without_adapters_yet_is_asked_about_by_its_target_modules(tmp_path: Path, library: Path) -> None:
    """As where a host builds its adapter from a placement."""
    model = deep_model()
    trainer = hf.Trainer(
        model=model, args=arguments(tmp_path / "out"), train_dataset=Rows(tiny_examples(40)), data_collator=collate
    )
    trainer.args.max_steps = 1000  # long enough to pay for a whole probe
    host, stack, extensions = PlainHost(trainer), find_layers(model), plugins.extensions()

    def chosen(**settings: Any) -> Chosen:
        wanted = PlacementSettings.from_user(**settings)
        return choose_layers(RunToPlace(host, wanted, stack, extensions, LIKE_LLAMA))

    resnorm = chosen(strategy="high").scores["resnorm"].importance
    put(library, own_card(resnorm))
    found = chosen()
    assert found.placement.cards == ("tiny/numbers",)
    assert found.placement.layers == regimes(resnorm)["mid"]
    put(library, own_card(resnorm, lora={"rank": 8, "alpha": 16, "targets": ["q_proj"]}))
    assert "other target modules" in chosen().placement.reason


def bad_cards(document: dict[str, Any]) -> dict[str, str]:
    """Return the text of every kind of bad card, by the kind."""
    layers = document["layers"]
    deep: Any = 1
    for _ in range(100):
        deep = [deep]
    return {
        "not a number": json.dumps(document).replace(str(layers[2]["scores"]["resnorm"]["importance"]), "NaN"),
        "a layer is missing": json.dumps(document | {"layers": layers[:-1]}),
        "a layer twice": json.dumps(document | {"layers": [*layers, layers[0]]}),
        "newer": json.dumps(document | {"schema_version": 2}),
        "too large": json.dumps(document | {"note": "x" * (5 * 2**20)}),
        "nested": json.dumps(document | {"note": deep}),
        "broken": json.dumps(document)[:-5],
    }


KINDS = ["not a number", "a layer is missing", "a layer twice", "newer", "too large", "nested", "broken"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_card_is_named_and_the_others_still_choose(
    tmp_path: Path, library: Path, resnorm: Array, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    put(library, own_card(resnorm))
    (library / "tiny" / "bad.json").write_text(bad_cards(own_card(resnorm, "bad"))[kind])
    assert place(tmp_path).placement.cards == ("tiny/numbers",)
    said = " ".join(capfd.readouterr().err.split())
    assert "Layer Cards that were left out (1): user:tiny/bad.json" in said
    with pytest.raises(CardError, match="tiny/bad"):
        place(tmp_path / "named", cards="tiny/bad")
    assert not (tmp_path / "named" / "out" / "placement.json").exists()


def test_a_link_out_of_the_library_is_refused(
    tmp_path: Path, library: Path, resnorm: Array, capfd: pytest.CaptureFixture[str]
) -> None:
    outside = put(tmp_path / "outside", own_card(resnorm))
    (library / "tiny").mkdir(parents=True)
    (library / "tiny" / "numbers.json").symlink_to(outside)
    assert place(tmp_path).placement.evidence == "none"
    assert "leads out of the folder" in " ".join(capfd.readouterr().err.split())


def test_two_cards_for_one_key_that_disagree_are_both_refused(tmp_path: Path, library: Path, resnorm: Array) -> None:
    put(library, own_card(resnorm))
    put(library, own_card(resnorm, "words"))
    twin = LayerCard(own_card(resnorm, kept={"high": (0.5, 0.9)}), "")
    (library / "tiny" / "twin.json").write_text(json.dumps(twin.document))
    assert place(tmp_path).placement.cards == ("tiny/words",)
    with pytest.raises(CardError, match="disagree"):
        place(tmp_path / "named", cards="tiny/numbers")


def test_a_card_that_is_not_there_is_an_error_where_it_was_named(tmp_path: Path, library: Path) -> None:
    for name in ("tiny/nubers", str(tmp_path / "nowhere.json")):
        with pytest.raises(CardError, match="no "):
            place(tmp_path, cards=name)


@pytest.mark.xdist_group("torchrun")
def test_two_ranks_place_by_the_same_card_as_one(tmp_path: Path, library: Path, resnorm: Array) -> None:
    put(library, own_card(resnorm))
    alone = place(tmp_path / "alone")
    folder = tmp_path / "ranks"
    folder.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(HERE / "cards_run.py"), str(folder)],
        env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = [json.loads((folder / f"rank{r}.json").read_text()) for r in (0, 1)]
    assert told[0] == told[1]
    assert tuple(told[0]["layers"]) == alone.layers
    assert told[0]["cards"] == ["tiny/numbers"]
    assert told[0]["scores"] == pytest.approx(alone.scores["resnorm"].importance.tolist(), rel=1e-4)
