"""`StudySettings` and `StudyData`: what a Layer Card is built from; frozen, validated once, digested for resuming."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from layercard.errors import SettingsError

if TYPE_CHECKING:
    from layercard.data import Labels


@dataclass(frozen=True)
class StudySettings:
    """The budget that every set of layers is trained under, and how it is judged."""

    steps: int = 48
    batch_size: int = 4
    learning_rate: float = 1e-3
    """Warmed up over the first tenth of the steps, then falling linearly to 0; AdamW."""
    max_length: int = 512
    """Tokens an example, in training, probing and evaluation; longer ones lose their end."""
    seeds: Sequence[int] = (0, 1)
    """Each draws its own training examples, their order, and the adapters' initial values."""
    rank: int = 8
    alpha: int = 16
    target_modules: Sequence[str] | None = None
    """Suffixes of modules' names; None for every linear module of a layer."""
    gradient_checkpointing: bool = False
    heldout_examples: int = 128
    eval_batch_size: int = 8
    generate: int = 0
    """How many held-out examples with references are answered by greedy decoding, for BLEU, chrF, TER and ROUGE."""
    max_new_tokens: int = 64
    probe_examples: int = 64
    probe_batch_size: int = 8
    probe_seeds: int = 3
    """How many probes at least, each with its own examples and projections, for the stability of the ranks."""
    scores: Sequence[str] | None = None
    """Names of scores to record; None for all that are registered. That of the regimes is always among them."""
    probe_ranks: Sequence[int] = (1, 4, 8)
    cost_rounds: int = 5
    """How many times each set of layers is timed, alternating; the first, untimed round measures memory."""
    quick: bool = False

    def validated(self) -> StudySettings:
        """Return the settings, or raise `SettingsError` naming the field and its bad value."""
        for name in _AT_LEAST:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < _AT_LEAST[name]:
                raise SettingsError(f"`{name}` is {value!r}. It is a whole number of at least {_AT_LEAST[name]}.")
        if not 0 < self.learning_rate < 1:
            raise SettingsError(f"`learning_rate` is {self.learning_rate!r}. It is a number between 0 and 1.")
        for name in ("seeds", "probe_ranks"):
            values = list(getattr(self, name))
            if not values or len(set(values)) != len(values) or min(values) < (name == "probe_ranks"):
                raise SettingsError(f"`{name}` is {values}. Give different whole numbers, such as `0,1`.")
        if self.rank not in self.probe_ranks:
            raise SettingsError(
                f"`probe_ranks` is {list(self.probe_ranks)}, without the adapters' `rank` ({self.rank}), which the others "
                "are compared with. Add it."
            )
        return self

    @property
    def probed_seeds(self) -> tuple[int, ...]:
        """The seeds of the probes: those of the trainings, and others up to `probe_seeds`."""
        others = (seed for seed in range(self.probe_seeds + len(self.seeds)) if seed not in self.seeds)
        more = max(0, self.probe_seeds - len(self.seeds))
        return (*self.seeds, *(next(others) for _ in range(more)))

    def smoke(self) -> StudySettings:
        """Return settings that only try whether a card can be built: two steps, one seed, numbers of no worth."""
        few = {"steps": 2, "batch_size": 2, "heldout_examples": 8, "probe_examples": 8, "cost_rounds": 1}
        few |= {"probe_seeds": 2, "generate": min(self.generate, 2), "max_new_tokens": min(self.max_new_tokens, 8)}
        return replace(self, **few, seeds=tuple(self.seeds)[:1], quick=True)  # type: ignore[arg-type]

    def values(self) -> dict[str, Any]:
        """Return every field as JSON holds it."""
        return {n: list(v) if isinstance(v, tuple) else v for n, v in asdict(self).items()}


_AT_LEAST = {
    "steps": 1,
    "batch_size": 1,
    "max_length": 2,
    "rank": 1,
    "alpha": 1,
    "heldout_examples": 1,
    "eval_batch_size": 1,
    "generate": 0,
    "max_new_tokens": 1,
    "probe_examples": 4,
    "probe_batch_size": 1,
    "probe_seeds": 1,
    "cost_rounds": 0,
}


@dataclass(frozen=True)
class StudyData:
    """Where the examples are: two sources of one layout, one to train and probe on, one held out."""

    train: str
    heldout: str
    id: str
    """What the card calls the dataset."""
    split: str = "train"
    heldout_split: str = "validation"
    """Splits are read of folders and of Hub ids alone."""
    config: str | None = None
    revision: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    labels: Labels | None = None
    """How a classifier's labels are read; None where examples have none, or hold numbers and names of their own."""
