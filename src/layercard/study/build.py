"""`build_card`: Stage I of layer-card.txt's Algorithm 1, from a model and data to a Layer Card's document.

The parts, each kept as soon as it is finished (`store.py`): the main probe with every score; probes with other seeds and
adapter ranks; the model without adapted layers; the cost of every set of layers; and a training of every set from every
seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layercard import __version__
from layercard.data import Task
from layercard.registry import Extensions
from layercard.study.adapting import refuse_without_adapters
from layercard.study.arms import UNTUNED, Arm, make_arms
from layercard.study.cost import clock_name, measure_costs
from layercard.study.document import Findings, card_document
from layercard.study.examples import content_digest, heldout_examples
from layercard.study.generation import with_references
from layercard.study.pace import Pace, Part
from layercard.study.probes import SCORE, importance, run_probe
from layercard.study.settings import StudyData, StudySettings
from layercard.study.store import Store
from layercard.study.training import Subject, judge, train_arm

if TYPE_CHECKING:
    from torch import nn

PROBING = ("max_length", "probe_examples", "probe_batch_size", "target_modules")
JUDGING = ("max_length", "heldout_examples", "generate", "max_new_tokens")
TRAINING = (
    "steps", "batch_size", "learning_rate", "max_length", "rank", "alpha", "target_modules", "gradient_checkpointing",
)  # fmt: skip
"""What the parts depend on, by the names of settings."""


@dataclass(frozen=True)
class StudyModel:
    """A loaded base model, and what a card says of it (`model_fingerprint`)."""

    base: nn.Module
    tokenizer: Any
    task: Task
    facts: Mapping[str, Any]


def build_card(
    model: StudyModel,
    data: StudyData,
    settings: StudySettings,
    *,
    work: Path,
    extensions: Extensions,
    command: Sequence[str] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Return a measured card's document; parts that a run before it finished in `work` are not made again.

    `say` is told of every part, with the time left; `command` is what the card says built it. Raises what probing and
    placing raise, `DataError` and `SettingsError`, before anything is trained where that can be known.
    """
    refuse_without_adapters(model.task)
    study = _Study(model, data, settings.validated(), work, extensions, say)
    findings = study.run()
    return card_document(model.facts, data, settings, findings, model.tokenizer, command)


def score_names(settings: StudySettings, extensions: Extensions) -> tuple[str, ...]:
    """Return the names of the scores to record; raise `SettingsError` where one is not registered."""
    registry = extensions.scorers
    wanted = registry if settings.scores is None else {SCORE, *settings.scores}
    return tuple(sorted(registry[name].name for name in wanted))


class _Study:
    """One study: its parts in their order, each by the name of its file."""

    def __init__(
        self,
        model: StudyModel,
        data: StudyData,
        settings: StudySettings,
        work: Path,
        extensions: Extensions,
        say: Callable[[str], None],
    ) -> None:
        self._settings = settings
        heldout = heldout_examples(data, model.tokenizer, model.task, settings, tokenize=extensions.tokenize_examples)
        texts = with_references(heldout, settings.generate)
        self._subject = Subject(model.base, model.tokenizer, model.task, data, settings, heldout, texts, extensions)
        self._digests = content_digest(data.train), content_digest(data.heldout)
        self._store = Store(work, self._inputs(model, data))
        self._say = say

    def _inputs(self, model: StudyModel, data: StudyData) -> dict[str, Any]:
        facts = {name: model.facts[name] for name in ("fingerprint", "dtype", "quantization")}
        sources = {"train": self._digests[0] or data.train, "heldout": self._digests[1] or data.heldout}
        read = {"columns": dict(data.columns), "splits": [data.split, data.heldout_split, data.config]}
        return {"layercard": __version__, "task": model.task} | facts | sources | read

    def run(self) -> Findings:
        """Make what is missing and return everything."""
        settings = self._settings
        first, *others = settings.probed_seeds
        pace = Pace(self._say)
        names = score_names(settings, self._subject.extensions)
        main = next(iter(pace.through(self._store, [self._probe(first, settings.rank, names)])))
        arms = make_arms(importance(main))
        by_seed = [self._probe(seed, settings.rank, (SCORE,)) for seed in others]
        by_rank = [self._probe(first, rank, (SCORE,)) for rank in settings.probe_ranks if rank != settings.rank]
        runs = [(arm.name, self._training(arm, seed)) for seed in settings.seeds for arm in arms]
        before = self._untuned()
        parts = [*by_seed, *by_rank, *before, self._cost(arms), *(part for _, part in runs)]
        results = list(pace.through(self._store, parts))
        probes, results = results[: len(others)], results[len(others) :]
        ranks, results = results[: len(by_rank)], results[len(by_rank) :]
        untuned, (costs, *trained) = results[: len(before)], results[len(before) :]
        reached: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in arms}
        for (name, _), result in zip(runs, trained, strict=True):
            reached[name].append(result)
        return Findings(
            arms, [main, *probes], [main, *ranks], untuned, costs, reached, self._digests, len(self._subject.heldout)
        )

    def _probe(self, seed: int, rank: int, scores: tuple[str, ...]) -> Part:
        s, settings = self._subject, self._settings

        def make() -> dict[str, Any]:
            return run_probe(
                s.base,
                s.tokenizer,
                s.task,
                s.data,
                settings,
                seed=seed,
                rank=rank,
                scores=scores,
                extensions=s.extensions,
            )

        own = self._values(PROBING) | {"seed": seed, "rank": rank, "scores": list(scores)}
        return Part(f"probe-seed{seed}-rank{rank}", "probe", own, make)

    def _untuned(self) -> list[Part]:
        """What layers are judged against: a language model as it is; a classifier whose new head alone is trained.

        A head learns how often each label comes and more; what it gains without any layer is no layer's merit.
        """
        if self._subject.task == "classification":
            return [self._training(Arm(UNTUNED, "reference", ()), seed) for seed in self._settings.seeds]

        def make() -> dict[str, Any]:
            return {"metrics": judge(self._subject.base, self._subject)}

        return [Part(UNTUNED, "evaluation", self._values(JUDGING), make)]

    def _cost(self, arms: Sequence[Arm]) -> Part:
        own = self._values((*TRAINING, "cost_rounds")) | {"arms": [[arm.name, list(arm.layers)] for arm in arms]}
        own |= {"clock": clock_name(next(self._subject.base.parameters()).device)}
        seed = self._settings.seeds[0]
        return Part("cost", "cost", own, lambda: measure_costs(self._subject, arms, seed))

    def _training(self, arm: Arm, seed: int) -> Part:
        own = self._values((*TRAINING, *JUDGING)) | {"layers": list(arm.layers), "seed": seed}
        return Part(f"train-{arm.name}-seed{seed}", "training", own, lambda: train_arm(self._subject, arm.layers, seed))

    def _values(self, names: Sequence[str]) -> dict[str, Any]:
        values = self._settings.values()
        return {name: values[name] for name in names}
