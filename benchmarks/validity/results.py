"""Reads kept results: one file a configuration, below one folder a pair; what each pair says so far."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from validity.judging import Curve, mean_curve, mean_interval, predicted, regrets, spearman, time_ratio, times

ALL_LAYER = "all-layer"
CHANCE = ("random 0", "random 1")
"""Sets of a third of the layers, drawn by chance."""
NEW_EXAMPLES = "new_examples"
"""The folder, below a pair's, of runs that see no example twice."""
EVERY_STEP = [{"at": 0, "seen": 1.0, "checked": 1.0, "cached": 1.0}]
"""What all-layer LoRA's steps cost."""
DIVERGED = 1e9
"""The loss of a run that diverged, worse than any other."""


def key_text(key: Mapping[str, Any]) -> str:
    """Return an arm's key as one string."""
    return json.dumps(key, sort_keys=True)


@dataclass
class PairResults:
    """What is kept of a pair: its choices, and its trainings."""

    name: str
    choices: dict[str, Any] | None = None
    runs: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)
    """By arm and seed."""
    steps: int = 0
    rates: dict[str, float] = field(default_factory=dict)
    schedules: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Arms that no selector chose, by their label."""
    clocks: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """What an arm's steps cost under gradient checkpointing."""
    epoch_steps: int = 0

    def curve(self, key: Mapping[str, Any], seeds: Sequence[int], *, checkpointed: bool = False) -> Curve | None:
        """Return the mean curve of an arm, its times over all-layer LoRA's of the same seed; None where a seed is missing.

        `checkpointed`: its times under gradient checkpointing, over all-layer LoRA's under it; None where they were not taken.
        """
        found, whole = self.runs.get(key_text(key), {}), self._whole
        if self.choices is None or not seeds or not all(seed in found and seed in whole for seed in seeds):
            return None
        before = self.choices["loss_before"]
        if checkpointed:
            phases = EVERY_STEP if key == self._all_layer else self.clocks.get(key_text(key))
            return phases and mean_curve([self._on_clock(curve_of(found[s], before), phases) for s in seeds])
        return mean_curve([_timed(curve_of(found[s], before), curve_of(whole[s], before), self.steps) for s in seeds])

    def _on_clock(self, curve: Curve, phases: Sequence[Mapping[str, Any]]) -> Curve:
        spent = times(phases, self.epoch_steps, curve.steps)
        return Curve(curve.steps, tuple(time / self.steps for time in spent), curve.losses)

    @property
    def seeds(self) -> list[int]:
        """The seeds that all-layer LoRA was trained from, and with it the comparison."""
        return sorted(self._whole)

    @property
    def _whole(self) -> dict[int, dict[str, Any]]:
        return self.runs.get(key_text(self._all_layer), {})

    @property
    def _all_layer(self) -> dict[str, Any]:
        return {} if self.choices is None else {"layers": list(range(self.choices["depth"]))}

    def arms(self) -> dict[str, dict[str, Any]]:
        """Return every selector's and schedule's key."""
        selectors = {} if self.choices is None else self.choices["selectors"]
        keys = {name: {part: sorted(chosen) for part, chosen in key.items()} for name, key in selectors.items()}
        return keys | self.schedules


def read(folder: Path, name: str, *, new_examples: bool = False) -> PairResults:
    """Return what `folder` holds of the pair `name`; with `new_examples` its runs that see no example twice.

    Raises `ValueError` where files of different settings lie there, or two runs of one arm and seed: they cannot be compared.
    """
    found = _read(folder / name, name)
    if not new_examples:
        return found
    return replace(_read(folder / name / NEW_EXAMPLES, name), choices=found.choices, clocks=found.clocks)


def _read(folder: Path, name: str) -> PairResults:
    found, common = PairResults(name), {}
    for path in sorted(folder.glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        inputs, result = document["inputs"], document["result"]
        seed = inputs.get("seed", "before training")
        for kind, settings in _settings(inputs, seed).items():
            if common.setdefault(kind, settings) != settings:
                raise ValueError(
                    f"{path} has other settings than the files beside it ({kind}): {settings}, not {common[kind]}. "
                    "Move one of them."
                )
        if inputs["kind"] == "choices":
            found.choices = result
        elif inputs["kind"] == "clock":
            found.clocks[key_text(inputs["arm"])] = result["phases"]
        elif inputs["kind"] == "run":
            found.steps, found.epoch_steps = inputs["recipe"]["steps"], inputs["recipe"]["epoch_steps"]
            of_arm = found.runs.setdefault(key_text(inputs["arm"]), {})
            if inputs["seed"] in of_arm:
                raise ValueError(f"{path} is a second run of its arm and seed. Remove the one at the wrong rate.")
            of_arm[inputs["seed"]] = result
            found.rates[inputs["group"]] = inputs["rate"]
            if "schedule" in inputs["arm"]:
                found.schedules[inputs["arm"]["schedule"]] = inputs["arm"]
    return found


def _settings(inputs: Mapping[str, Any], seed: Any) -> dict[str, Any]:
    """Return what all files of a pair must agree in, and what those of one seed must."""
    return {"all": {part: inputs[part] for part in ("pair", "recipe")}, f"seed {seed}": inputs["dtype"]}


def dtype_of_choices(folder: Path) -> str | None:
    """Return the dtype that selectors chose in; None where none has chosen yet."""
    for path in sorted(folder.glob("choices-*.json")):
        dtype: str = json.loads(path.read_text(encoding="utf-8"))["inputs"]["dtype"]
        return dtype
    return None


def _timed(curve: Curve, whole: Curve, steps: int) -> Curve:
    """Return the curve with its times over all-layer LoRA's at `steps`: seeds were trained on different machines."""
    unit = whole.time_at_step(steps)
    assert unit is not None
    return Curve(curve.steps, tuple(time / unit for time in curve.times), curve.losses)


def curve_of(result: Mapping[str, Any], before: float) -> Curve:
    """Return a run's curve in units of reference passes, from the loss before training."""
    points = [{"step": 0, "units": 0.0, "loss": before}, *result["points"]]
    losses = tuple(DIVERGED if p["loss"] is None else p["loss"] for p in points)
    return Curve(tuple(p["step"] for p in points), tuple(p["units"] for p in points), losses)


def rows(pair: PairResults, seeds: Sequence[int], *, checkpointed: bool = False) -> list[dict[str, Any]]:
    """Return one row a selector or schedule whose runs are there: losses, gains kept, time, regret.

    `checkpointed`: at times under gradient checkpointing, of the arms whose steps were timed so.
    """

    def curve_at(key: Mapping[str, Any]) -> Curve | None:
        return pair.curve(key, seeds, checkpointed=checkpointed)

    whole = curve_at({"layers": list(range(pair.choices["depth"]))}) if pair.choices else None
    if whole is None:
        return []
    curves = {name: curve for name, key in pair.arms().items() if (curve := curve_at(key)) is not None}
    budget = whole.time_at_step(pair.steps)
    assert budget is not None
    at_steps = {name: curve.at_step(pair.steps) for name, curve in curves.items()}
    ended = {name: DIVERGED if loss is None else loss for name, loss in at_steps.items()}
    behind = regrets(ended, whole.losses[0])
    gain = whole.losses[0] - ended[ALL_LAYER]
    out = []
    for name, curve in curves.items():
        in_time, spent = curve.at_time(budget), curve.time_at_step(pair.steps)
        out.append(
            {
                "arm": name,
                "size": size(pair.arms()[name]),
                "loss_at_equal_steps": ended[name],
                "kept": (whole.losses[0] - ended[name]) / gain,
                "loss_at_equal_time": in_time,
                "kept_at_equal_time": None if in_time is None else (whole.losses[0] - in_time) / gain,
                "step_time": None if spent is None else spent / budget,
                "time_to_all_layer": time_ratio(curve, whole, pair.steps),
                "regret": behind[name],
            }
        )
    return out


def against_chance(pairs: Mapping[str, tuple[PairResults, Sequence[int]]]) -> list[dict[str, Any]]:
    """Return, an arm a row, how much more of all-layer LoRA's gain it kept at equal steps than sets drawn by chance did.

    A pair's difference is the mean over its seeds, of each to the mean of chance's draws from the same seed; the interval is
    Student's over pairs, which differ in data and model and so are what could be drawn anew. Only arms of every pair.
    """
    kept = {name: _kept_by_seed(pair, seeds) for name, (pair, seeds) in pairs.items()}
    everywhere = set.intersection(*(set(by_arm) for by_arm in kept.values())) if kept else set()
    out = []
    for arm in sorted(everywhere) if set(CHANCE) <= everywhere else ():
        ahead = [_ahead_of_chance(by_arm, arm) for by_arm in kept.values()]
        every = [share for by_arm in kept.values() for share in by_arm[arm].values()]
        mean, low, high = mean_interval(ahead)
        out.append(
            {"arm": arm, "mean": fmean(every), "lowest": min(every), "ahead": mean, "low": low, "high": high}
            | {"pairs_ahead": sum(difference > 0 for difference in ahead), "pairs": len(ahead)}
        )
    return sorted(out, key=lambda row: -row["ahead"])


def _kept_by_seed(pair: PairResults, seeds: Sequence[int]) -> dict[str, dict[int, float]]:
    """What each arm of all `seeds` kept, seed by seed."""
    by_seed = {seed: {row["arm"]: row["kept"] for row in rows(pair, [seed])} for seed in seeds}
    arms = set.intersection(*(set(found) for found in by_seed.values())) if by_seed else set()
    return {arm: {seed: found[arm] for seed, found in by_seed.items()} for arm in arms}


def _ahead_of_chance(kept: Mapping[str, Mapping[int, float]], arm: str) -> float:
    return fmean(share - fmean(kept[draw][seed] for draw in CHANCE) for seed, share in kept[arm].items())


def size(key: Mapping[str, Any]) -> int | None:
    """Return how many layers a set has, None for schedules and sets of modules."""
    return len(key["layers"]) if "layers" in key else None


def correlations(pair: PairResults, seeds: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Return, by scorer, Spearman's ρ of predicted and achieved: over the sets of the commonest size, and over all."""
    if pair.choices is None:
        return {}
    reached: dict[tuple[int, ...], float] = {}
    for key in pair.arms().values():
        curve = pair.curve(key, seeds) if set(key) == {"layers"} else None
        loss = None if curve is None else curve.at_step(pair.steps)
        if loss is not None:
            reached[tuple(key["layers"])] = -loss
    sizes = [len(layers) for layers in reached if len(layers) < pair.choices["depth"]]
    if not sizes:
        return {}
    common = max(sorted(set(sizes)), key=sizes.count)
    equal = [layers for layers in reached if len(layers) == common]
    return {
        name: {
            "equal_size": _correlation(importance, equal, reached, total=True),
            "sets_of_equal_size": len(equal),
            "all_by_sum": _correlation(importance, list(reached), reached, total=True),
            "all_by_mean": _correlation(importance, list(reached), reached, total=False),
            "sets": len(reached),
        }
        for name, importance in pair.choices["scores"].items()
    }


def _correlation(
    importance: Sequence[float],
    sets: Sequence[tuple[int, ...]],
    reached: Mapping[tuple[int, ...], float],
    *,
    total: bool,
) -> float | None:
    said = [predicted(importance, layers, total=total) for layers in sets]
    return spearman(said, [reached[layers] for layers in sets])


def regret_at_equal_size(pair: PairResults, seeds: Sequence[int]) -> dict[str, float]:
    """Return each selector's regret among the sets of its own size, where there are others."""
    found = rows(pair, seeds)
    out: dict[str, float] = {}
    for count in {row["size"] for row in found} - {None}:
        losses = {row["arm"]: row["loss_at_equal_steps"] for row in found if row["size"] == count}
        if len(losses) > 1:
            before = pair.curve({"layers": list(range(pair.choices["depth"]))}, seeds).losses[0]
            out |= regrets(losses, before)
    return out


def summary(pair: PairResults, seeds: Sequence[int]) -> dict[str, Any]:
    """Return everything that is said of a pair, rounded for reading."""
    return {
        "seeds": list(seeds),
        "rates": pair.rates,
        "rows": [_rounded(row) for row in rows(pair, seeds)],
        "spearman": {name: _rounded(found) for name, found in correlations(pair, seeds).items()},
        "regret_at_equal_size": _rounded(regret_at_equal_size(pair, seeds)),
    }


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: round(v, 4) if isinstance(v, float) and math.isfinite(v) else v for k, v in values.items()}
