"""Settings: what a user may write, one clear error for what not, and that the class joins a real TrlParser."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layercard import LayercardError, PlacementSettings
from layercard.errors import EXIT_USAGE, SettingsError
from trl_names import uses_trl

NAMES = [field.name for field in dataclasses.fields(PlacementSettings)]


def same(written: Any, **values: Any) -> bool:
    """Whether both spellings choose alike."""
    one, other = PlacementSettings.from_user(written), PlacementSettings.from_user(**values)
    return dataclasses.replace(one, lora_layers="") == dataclasses.replace(other, lora_layers="")


def test_every_spelling_of_a_choice_means_the_same() -> None:
    assert same("uniform", strategy="uniform")
    assert same({"strategy": "uniform"}, strategy="uniform")
    for written in ([3, 7], (3, 7), "3,7", "[3, 7]", {"indices": [3, 7]}):
        assert list(PlacementSettings.from_user(written).indices or ()) == [3, 7], written
    assert PlacementSettings.from_user("[3]").indices == [3]
    assert PlacementSettings.from_user(Path("a/placement.json")).placement_path == Path("a/placement.json")


def test_auto_is_auto_and_nothing_else_is() -> None:
    assert PlacementSettings.from_user().is_auto
    assert PlacementSettings.from_user("auto", prefer="speed", num_layers=4).is_auto
    for written in ("uniform", [1], "placement.json", {"strategy": "high"}):
        assert not PlacementSettings.from_user(written).is_auto, written


def test_single_settings_win_over_the_mapping() -> None:
    assert PlacementSettings.from_user({"prefer": "speed", "min_entry": 2}, prefer="quality").prefer == "quality"


@pytest.mark.parametrize("written", ["{strategy: high, fraction: 0.5}", ' {"strategy": "high", "fraction": 0.5}'])
def test_a_shells_mapping_is_read_as_yaml(written: str) -> None:
    assert PlacementSettings.from_user(written) == PlacementSettings.from_user({"strategy": "high", "fraction": 0.5})


@pytest.mark.parametrize("written", ["{strategy: high", "{strategy:high}", "{strategy", "{1: 2}", "{{{"])
def test_what_begins_like_a_mapping_and_is_none_is_refused(written: str) -> None:
    with pytest.raises(SettingsError, match=r"begins like a mapping and is none.*in quotes"):
        PlacementSettings.from_user(written)


@pytest.mark.parametrize("written", ["auto", "uniform", [1, 2], {"strategy": "high", "fraction": 0.5}, "p.json"])
def test_validating_twice_changes_nothing(written: Any) -> None:
    settings = PlacementSettings.from_user(written)
    assert settings.validated() == settings
    assert PlacementSettings.from_user(settings) == settings


def test_a_value_of_none_means_the_default() -> None:
    assert PlacementSettings.from_user({"min_entry": None}, prefer=None) == PlacementSettings.from_user()


@pytest.mark.parametrize(("written", "kept"), [(True, "on"), (False, "off"), ("8GiB", "8GiB")])
def test_yaml_may_read_on_and_off_as_true_and_false(written: Any, kept: str) -> None:
    assert PlacementSettings.from_user(prefix_cache=written).prefix_cache == kept


def test_cards_are_consulted_by_auto_unless_they_are_off() -> None:
    assert PlacementSettings.from_user().consults_cards
    assert PlacementSettings.from_user(cards="model/data").consults_cards
    for off in ("off", False):  # a YAML parser may read `off` as false
        assert not PlacementSettings.from_user(cards=off).consults_cards
    assert not PlacementSettings.from_user("uniform", cards="off").consults_cards


BAD: list[tuple[str, Any]] = [
    ("num_layers", 0),
    ("num_layers", 2.0),
    ("num_layers", True),
    ("guard", "yes"),
    ("on_quality_loss", "panic"),
    ("quality_threshold", 1.5),
    ("guard_budget", 0.6),
    ("control", 3),
    ("schedule", 0.5),
    ("schedule", True),
    ("schedule", "later"),
    ("schedule", "0.5:0.5:0.5"),
    ("control", True),
    ("control", ""),
    ("fraction", 0),
    ("fraction", 1.5),
    ("fraction", "half"),
    ("fraction", float("nan")),
    ("indices", []),
    ("indices", 3),
    ("indices", "3"),
    ("indices", [-1]),
    ("indices", [1.0]),
    ("indices", [True]),
    ("indices", [2, 2]),
    ("cumulative_threshold", 0.0),
    ("cumulative_threshold", 1.01),
    ("budget", 0.0),
    ("budget", 1.2),
    ("budget", "0.6"),
    ("min_gain", 0.0),
    ("min_gain", 1.2),
    ("max_memory", "24"),
    ("max_memory", ""),
    ("max_memory", 24),
    ("lora_layers", ""),
    ("strategy", 3),
    ("strategy", ""),
    ("score", 3),
    ("prefer", "fast"),
    ("cards", True),
    ("cards", ""),
    ("community_cards", "yes"),
    ("min_spearman", 1.1),
    ("min_spearman", -0.1),
    ("min_entry", -1),
    ("layers_path", 3),
    ("other_stacks", "drop"),
    ("other_stacks", True),
    ("random_seed", -1),
    ("random_seed", 0.5),
    ("probe_examples", 0),
    ("probe_batch_size", 0),
    ("probe_rank", 0),
    ("measure", "yes"),
    ("probe_budget", 0.6),
    ("measure_budget", 0.6),
    ("measure_budget", -0.1),
    ("gradient_entry", 1),
    ("checkpointing_above_entry", "on"),
    ("prefix_cache", 8),
    ("prefix_cache", "8 gigs"),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_an_error_that_names_its_field(name: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=f"`{name}`") as caught:
        PlacementSettings.from_user(**{name: value})
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, LayercardError)
    assert caught.value.exit_code == EXIT_USAGE


def test_a_reaction_without_a_guard_is_refused() -> None:
    with pytest.raises(SettingsError, match="`on_quality_loss` is 'stop' and `guard` is false"):
        PlacementSettings.from_user(on_quality_loss="stop", guard=False)


def test_every_field_is_tried_with_a_bad_value() -> None:
    assert {name for name, _ in BAD} == set(NAMES)


def test_a_choice_names_what_is_allowed_and_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"`quality`, `balanced`, `speed`\.? Did you mean `balanced`\?"):
        PlacementSettings.from_user(prefer="balance")
    with pytest.raises(SettingsError, match=r"`num_layer` is not a setting\. Did you mean `num_layers`\?"):
        PlacementSettings.from_user({"num_layer": 3})


@pytest.mark.parametrize("written", [5, "5", -1, 2.5])
def test_a_bare_number_is_refused_with_both_readings(written: Any) -> None:
    with pytest.raises(SettingsError, match=r"bare number.*\[.*\].*num_layers"):
        PlacementSettings.from_user(written)


@pytest.mark.parametrize(
    ("written", "advice"),
    [
        (0, "`[0]`"),
        (0.5, "`{fraction: 0.5}`"),
        ("0.5", "`{fraction: 0.5}`"),
        (-1, "whole numbers from 0"),
        ("3-5", "`[3, 4, 5]`"),
        ("3:5", "`[3, 4, 5]`"),
        ("3 5", "`[3, 5]`"),
        ("AUTO", "Did you mean `auto`?"),
        ("none", "Leave it out"),
        ("strategy: last", "stands in braces"),
        ("last:2", "stands in braces"),
        ("{strategy: last, strategy: first}", "holds `strategy` twice"),
    ],
)
def test_what_people_write_for_something_else_comes_with_what_to_write(written: Any, advice: str) -> None:
    with pytest.raises(SettingsError) as caught:
        PlacementSettings.from_user(written)
    assert advice in str(caught.value)
    wanted = [text for text in str(caught.value).split("`") if text.startswith(("[", "{"))]
    for text in wanted:  # the advice can be followed
        PlacementSettings.from_user(text)


def test_what_yaml_makes_of_off_and_of_exponents_is_understood() -> None:
    assert PlacementSettings.from_user("{checkpointing_above_entry: off}").checkpointing_above_entry == "off"
    assert PlacementSettings.from_user("{probe_budget: 1e-2}").probe_budget == 0.01
    with pytest.raises(SettingsError, match="`probe_budget`"):
        PlacementSettings.from_user({"probe_budget": "1e1"})


@pytest.mark.parametrize(
    "written", [None, True, False, b"auto", {1, 2}, [], "[]", "-1,2", "1,1", "indices", "strategy"]
)
def test_what_chooses_nothing_is_refused(written: Any) -> None:
    with pytest.raises(SettingsError, match=r"`lora_layers`|`indices`"):
        PlacementSettings.from_user(written)


@pytest.mark.parametrize(
    ("written", "values"),
    [
        ("auto", {"num_layers": 3, "fraction": 0.5}),
        ("auto", {"indices": [1], "num_layers": 1}),
        ("cumulative", {"cumulative_threshold": 0.5, "num_layers": 1}),
        ([1, 2], {"strategy": "high"}),
        ("uniform", {"strategy": "high"}),
        ("1,2", {"indices": [3]}),
        ([1, 5], {"min_entry": 2}),
        ("placement.json", {"num_layers": 3}),
        ("uniform", {"cards": "model/data"}),
        ([1, 2], {"cards": "card.json"}),
        ("placement.json", {"strategy": "high"}),
    ],
)
def test_two_answers_to_one_question_are_refused(written: Any, values: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=r"Give one|Exactly one|Raise one|[Dd]rop"):
        PlacementSettings.from_user(written, **values)


@given(indices=st.lists(st.integers(0, 200), min_size=2, unique=True))
def test_indices_survive_every_spelling(indices: list[int]) -> None:
    text = ", ".join(map(str, indices))
    for written in (indices, text, f"[{text}]"):
        assert PlacementSettings.from_user(written).indices == indices


@given(written=st.one_of(st.integers(), st.floats(), st.text(max_size=8), st.lists(st.integers(-3, 9), max_size=4)))
def test_anything_written_gives_settings_or_a_settings_error(written: Any) -> None:
    with contextlib.suppress(SettingsError):
        settings = PlacementSettings.from_user(written)
        assert settings.is_auto or settings.strategy or settings.indices or settings.placement_path


def trl_parser() -> Any:
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig, TrlParser

    return TrlParser((ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig, PlacementSettings))


OFFLINE = ["--output_dir", "out", "--use_cpu", "True", "--bf16", "False"]


@uses_trl
def test_it_joins_a_trl_parser_beside_every_class_of_trl() -> None:
    flags = ["--lora_layers", "uniform", "--fraction", "0.5", "--score", "resnorm", "--no_measure", "--lora_r", "8"]
    *_, model, _, settings = trl_parser().parse_args_and_config(args=[*OFFLINE, *flags])
    assert model.lora_r == 8
    validated = PlacementSettings.from_user(settings)
    assert (validated.strategy, validated.fraction, validated.measure) == ("uniform", 0.5, False)


@uses_trl
def test_it_is_read_from_a_yaml_config_of_trl(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("lora_layers: last\nnum_layers: 3\nmin_entry: 1\nlearning_rate: 0.1\n")
    _, training, *_, settings = trl_parser().parse_args_and_config(args=["--config", str(config), *OFFLINE])
    assert training.learning_rate == 0.1
    validated = PlacementSettings.from_user(settings)
    assert (validated.strategy, validated.num_layers, validated.min_entry) == ("last", 3, 1)


@uses_trl
@pytest.mark.parametrize(
    ("written", "indices", "strategy"), [("[3, 7]", [3, 7], None), ("{strategy: high, num_layers: 2}", None, "high")]
)
def test_yaml_of_trl_may_hold_a_list_or_a_mapping(
    tmp_path: Path, written: str, indices: list[int] | None, strategy: str | None
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"lora_layers: {written}\n")
    *_, settings = trl_parser().parse_args_and_config(args=["--config", str(config), *OFFLINE])
    validated = PlacementSettings.from_user(settings)
    assert (validated.indices, validated.strategy) == (indices, strategy)


def test_no_name_is_one_of_trls_own() -> None:
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig

    for kind in (ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig):
        assert not {field.name for field in dataclasses.fields(kind)} & set(NAMES), kind.__name__


def test_rises_are_read_as_a_list_too_which_a_shell_s_mapping_needs():
    listed = PlacementSettings.from_user("{schedule: [0.25:0.33, 0.5:0.67]}")
    assert listed == PlacementSettings.from_user("auto", schedule="0.25:0.33, 0.5:0.67")
    with pytest.raises(SettingsError, match=r"A value that holds commas stands in brackets: `'\{schedule: \["):
        PlacementSettings.from_user("{schedule: 0.25:0.33, 0.5:0.67}")
    for wrong in ([], [0.25], ["0.5:0.67", "0.25:0.33"]):
        with pytest.raises(SettingsError, match="`schedule` is"):
            PlacementSettings.from_user("auto", schedule=wrong)
