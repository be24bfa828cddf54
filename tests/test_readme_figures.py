"""Every measured figure of the README and of its picture is one of `benchmarks/results/`, rounded.

`statements` computes from kept results what the README must say, word for word. What is left of the README without
them, its commands and its code may hold no number that looks measured, but for `NOT_MEASURED`.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any
from xml.etree import ElementTree

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import picture
from validity import results as validity

ROOT = Path(__file__).parents[1]
Results = Callable[[str], Any]

NOT_MEASURED = (
    "aletheia-lora/) 0.1.2",
    "abs/2403.17919",
    "abs/2406.06623",
    "Python 3.11",
    "Apache-2.0",
    "by default at most 2%",
)
"""Versions, papers' numbers, and a setting's default."""

MEASURED = re.compile(r"\d+\.\d+|\d+(?:\.\d+)?(?:x\b|%| MiB\b| s\b)|ρ of \d")
"""What looks measured: decimals, times, shares, sizes, seconds."""

SHARE = "share of the run's time"
NAMES = {"host": "as the host leaves it", "entry": "entry", "cache": "cache"}


def kept(pattern: str) -> Any:
    """Return the one kept document of this name."""
    paths = list((ROOT / "benchmarks" / "results").glob(f"{pattern}.json"))
    assert len(paths) == 1, f"{pattern} names {len(paths)} kept results; the README speaks of one"
    return json.loads(paths[0].read_text(encoding="utf-8"))


def scaled(value: Any) -> Any:
    """Return the document with every fraction but learning rates a tenth larger."""
    if isinstance(value, dict):
        return {key: inner if key == "rate" else scaled(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [scaled(inner) for inner in value]
    return value * 1.1 if isinstance(value, float) else value


def ratio(results: Results, setup: str, placement: str, variant: str) -> str:
    """Return how many times as fast as all-layer LoRA's a step is."""
    rows = results(f"gradient_entry-{setup}")["results"]
    (row,) = (row for row in rows if row["placement"] == placement)
    return f"{row['faster than all-layer LoRA'][NAMES[variant]]['value']:.2f}x"


def shares(results: Results, placement: str) -> list[float]:
    """Return the shares of all-layer LoRA's gain that a placement kept at the end of each run, from the losses themselves."""
    runs = results("guard-ground-truth")["results"]
    base = {(run["data"], run["rate"]): run["heldout_losses"] for run in runs if run["placement"] == "all-layer"}
    found = []
    for run in runs:
        if run["placement"] == placement:
            of = base[run["data"], run["rate"]]
            before, all_layers = mean(of["0"]), mean(of["200"])
            found.append((before - mean(run["heldout_losses"]["200"])) / (before - all_layers))
    return sorted(found)


Pairs = dict[str, dict[str, dict[str, Any]]]
"""By pair and arm, what the validity benchmark says of it."""


def two_seeds(*, checkpointed: bool = True) -> Pairs:
    """Return what all seeds say of the arms that were trained from each, by default on the clock of gradient checkpointing."""
    found = pairs_of_data()
    assert all(len(pair.seeds) == 2 for pair in found)  # "two seeds"
    return {
        pair.name: {row["arm"]: row for row in validity.rows(pair, pair.seeds, checkpointed=checkpointed)}
        for pair in found
    }


def pairs_of_data() -> list[validity.PairResults]:
    """Return what is kept of each pair of a model and a data set."""
    folder = ROOT / "benchmarks" / "results" / "validity"
    found = [validity.read(folder, path.name) for path in sorted(folder.iterdir())]
    assert len(found) == 6  # "six" in words
    return found


def spread(pairs: Pairs, arm: str, what: str) -> str:
    """Return the smallest and the largest value of an arm over the pairs, in percent."""
    return ends([rows[arm] for rows in pairs.values()], what)


def ends(rows: list[dict[str, Any]], what: str) -> str:
    """Return the smallest and the largest value of rows, in percent."""
    found = [row[what] for row in rows]
    return f"{min(found):.0%} to {max(found):.0%}"


def most_sooner(pairs: Pairs, share: float) -> int:
    """Return on how many pairs the best of the arms reached all-layer LoRA's loss within a share of its time."""
    counted = Counter(
        arm
        for rows in pairs.values()
        for arm, row in rows.items()
        if arm != validity.ALL_LAYER and (row["time_to_all_layer"] or 1) <= share
    )
    return max(counted.values())


def of_validity() -> list[str]:
    """Return what the README must say of the validity benchmark."""
    timed, chosen = two_seeds(), two_seeds(checkpointed=False)
    drawn = [rows[arm] for rows in timed.values() for arm in validity.CHANCE]
    (last,) = (
        row
        for row in validity.against_chance({pair.name: (pair, pair.seeds) for pair in pairs_of_data()})
        if row["arm"] == "last"
    )
    behind, least, most = (-100 * last[part] for part in ("ahead", "high", "low"))
    return [
        f"`auto` kept {spread(timed, 'auto balanced', 'kept')} of all-layer LoRA's gain in as many steps, in "
        f"{spread(timed, 'auto balanced', 'step_time')} of its time",
        f"spread over all depth {spread(timed, 'uniform', 'kept')} in {spread(timed, 'uniform', 'step_time')}.",
        f"a third of the layers by chance kept {ends(drawn, 'kept')} in {ends(drawn, 'step_time')} (two draws), "
        "aletheia-lora's third "
        f"{spread(chosen, 'aletheia third', 'kept')}, KappaTune's {spread(chosen, 'kappa third', 'kept')}.",
        f"the last third fell {behind:.0f} points behind chance (95% interval {least:.0f} to {most:.0f}), in "
        f"{spread(timed, 'last', 'step_time')} of the time.",
        f"three quarters of its time on more than {max(most_sooner(timed, 0.75), most_sooner(chosen, 0.75))} of the six.",
    ]


def statements(results: Results) -> list[str]:
    """Return what the README must say."""
    smollm2 = {
        (where, variant): ratio(results, "smollm2-checkpointing", where, variant)
        for where in ("last 5", "upper half")
        for variant in NAMES
    }
    plain = {variant: ratio(results, "smollm2-no-checkpointing", "last 5", variant) for variant in NAMES}
    last, half = shares(results, "last 5"), shares(results, "upper half")
    (peaks,) = (
        row["peak MiB"]
        for row in results("gradient_entry-smollm2-checkpointing")["results"]
        if row["placement"] == "last 5"
    )
    trials = results("guard")["results"]["trials"]
    ends = [row["end"] for row in trials["rows"]]
    unseen = trials["as shipped, not fitted on"]
    warned = unseen["warnings"]["0.9"]
    gemma = [
        row["step_seconds_ratio"]
        for row in results("transfer")["results"]["gemma-3-270m"]["left_out"]
        if row["layers"] == 6  # of 18
    ]
    probes = results("probe")["results"]
    probe = [
        row[kind]["probe over all-layer LoRA forward+backward"]["value"]
        for row in probes
        for kind in ("checkpointing off", "checkpointing on")
    ]
    aletheia = [row["other ways over probe"]["aletheia-lora 0.1.2"]["value"] for row in probes]
    overhead = results("overhead")["results"]
    order = results("set_gain")["results"]["order"]
    axolotl = results("axolotl")["results"]
    (demo,) = (
        row["wall_seconds"]
        for row in results("first_run")["results"]["rows"]
        if (row["processor"], row["command"]) == ("as it is", "demo")
    )
    pairs = {
        variant["pairs"]
        for row in results("gradient_entry-smollm2-checkpointing")["results"]
        for variant in row["faster than all-layer LoRA"].values()
    }
    return [
        f"a step is {smollm2['last 5', 'host']} as fast as all-layer LoRA in TRL and {smollm2['last 5', 'entry']} with",
        f"kept {last[0]:.0%} to {last[-1]:.0%} of all-layer LoRA's gain, the upper half {half[0]:.0%} to {half[-1]:.0%}.]",
        f"medians of {pairs.pop() if len(pairs) == 1 else pairs} pairs",
        f"train {smollm2['last 5', 'entry']} as fast as all layers, where TRL with the same layers reaches "
        f"{smollm2['last 5', 'host']}; the upper half {smollm2['upper half', 'entry']}.",
        f"{peaks['entry']} MiB for {peaks['all-layer']} MiB",
        f"5 layers kept {last[0]:.0%} to {last[-1]:.0%} of all-layer LoRA's gain in held-out loss, the upper half "
        f"{half[0]:.0%} to {half[-1]:.0%}.",
        f"Of {len(ends)} placements {sum(high < 1 for _, _, high in ends)} ended behind all-layer LoRA; "
        f"{sum(low <= 1 <= high for _, low, high in ends)}, all on ARC-easy",
        *of_validity(),
        f"took {min(gemma):.0%} to {max(gemma):.0%} of the time",
        f"{demo:.0f} s on two cores",
        f"| {smollm2['last 5', 'entry']} as fast | {smollm2['upper half', 'entry']} as fast | 1 |",
        f"| {smollm2['last 5', 'host']} as fast | {smollm2['upper half', 'host']} as fast | none |",
        f"| {min(aletheia):.2f} to {max(aletheia):.2f} |",
        f"last {len(axolotl['adapted'])} of {axolotl['layers']} layers under QLoRA, layercard's step is "
        f"{axolotl['speedup']['value']:.2f}x as fast",
        f"difference of losses over {len(axolotl['losses'])} steps is {axolotl['largest_difference_of_losses']:.1f}.",
        f"the last 5 layers are {plain['host']} as fast in TRL, {plain['entry']} with layercard.",
        f"takes {min(probe):.2f} to {max(probe):.2f} of a training step's",
        f"took {overhead[SHARE]:.1%} of a {overhead['steps']}-step run, where 3% was the aim: "
        f"{overhead['step speedup']:.2f}x as fast a step, {overhead['end-to-end speedup']:.2f}x as fast a run.",
        f"Of {unseen['placements']} placements that its constants were not fitted on, the trial warned rightly of "
        f"{warned['right']}, wrongly of {warned['wrong']}, and missed {warned['missed']}.",
        f"all {faster_learners(results)} placements kept more at 1e-3 than at 2e-4",
        f"mean ρ of {order['sum of resnorm']['mean']:.2f}, the mere number of layers (of equal ones the lower) with "
        f"{order['number of layers, then depth']['mean']:.2f}.",
        f"30-layer Llama shape are {ratio(results, 'nf4-hidden-768', 'last 5', 'entry')} as fast as all.",
    ]


def faster_learners(results: Results) -> int | None:
    """Return how many placements of data sets there are, where every one kept more at the higher rate."""
    found: dict[tuple[str, str], dict[float, float]] = {}
    for row in results("guard")["results"]["trials"]["rows"]:
        found.setdefault((row["data"], row["placement"]), {})[row["rate"]] = row["end"][0]
    return len(found) if all(of[1e-3] > of[2e-4] for of in found.values()) else None


def problems(readme: str, results: Results) -> list[str]:
    """Return what the README does not say as results have it, and what it says that no statement covers."""
    one_line = " ".join(readme.split())
    wanted = statements(results)
    missing = [f"not said: {words}" for words in wanted if words not in one_line]
    left = one_line
    for words in sorted([*wanted, *NOT_MEASURED], key=len, reverse=True):
        left = left.replace(words, " ")
    for block in re.findall(r"(?m)^ {4}(?!make ).*$", readme):
        left = left.replace(" ".join(block.split()), " ")
    return missing + [f"from no result: {found[0]} in …{around(left, found)}…" for found in MEASURED.finditer(left)]


def around(text: str, found: re.Match[str]) -> str:
    """Return what stands about a match."""
    return text[max(0, found.start() - 40) : found.end() + 40]


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_figure_is_one_of_the_results(readme: str) -> None:
    assert problems(readme, kept) == []


def test_a_figure_of_no_result_is_found(readme: str) -> None:
    for words in ("It is 3.21x as fast.", "It kept 97% of the gain.", "It took 41 MiB.", "It took 17 s in all."):
        assert len(problems(f"{readme}\n{words}\n", kept)) == 1


def test_every_statement_is_missed_where_a_digit_is_another(readme: str) -> None:
    one_line = " ".join(readme.split())
    for words in statements(kept):
        assert re.search(r"\d", words), words
        changed = re.sub(r"\d", lambda digit: str((int(digit[0]) + 1) % 10), words, count=1)
        assert any(words in problem for problem in problems(one_line.replace(words, changed), kept)), words


def test_other_results_make_other_statements(readme: str) -> None:
    def others(name: str) -> Any:
        return scaled(kept(name))

    assert len([problem for problem in problems(readme, others) if problem.startswith("not said")]) > 12


def test_the_picture_is_that_of_the_results() -> None:
    assert picture.PICTURE.read_text(encoding="utf-8") == picture.drawn(picture.rows())


def test_the_picture_says_what_the_results_say() -> None:
    svg = ElementTree.fromstring(picture.PICTURE.read_text(encoding="utf-8"))
    said = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    for in_times, in_shares, label in picture.PLACEMENTS:
        here = said.index(label)
        found = shares(kept, in_shares)
        wanted = [ratio(kept, "smollm2-checkpointing", in_times, variant) for variant in NAMES]
        assert said[here + 1 : here + 6] == [*wanted, f"{found[0]:.0%}", f"{found[-1]:.0%}"]
        ends = [row["end"][0] for row in kept("guard")["results"]["trials"]["rows"] if row["placement"] == in_shares]
        assert found == pytest.approx(sorted(ends), abs=6e-4)


def test_bars_are_as_long_as_their_labels_say() -> None:
    svg = ElementTree.fromstring(picture.PICTURE.read_text(encoding="utf-8"))
    bars = [
        r for r in svg.iter("{http://www.w3.org/2000/svg}rect") if r.get("class") in NAMES and r.get("height") == "13"
    ]
    labels = [t for t in svg.iter("{http://www.w3.org/2000/svg}text") if re.fullmatch(r"\d\.\d\dx", t.text or "")]
    assert len(bars) == len(labels) == 12
    for bar, label in zip(bars, labels, strict=True):
        assert float(bar.attrib["width"]) / float((label.text or "")[:-1]) == pytest.approx(290 / 3, rel=0.005)
