"""`LayerCardPlugin`: what Axolotl calls while it trains, and where in it layers are placed.

Without fused LoRA kernels Axolotl or TRL builds the adapter on every layer, and `post_trainer_create` narrows it: the
trainer, its data and its collator are there, no optimizer is, and all-layer LoRA can be measured against. With fused
kernels, which are patched into the layers that have adapters, and where weights are on one rank alone, the layers are
chosen in `pre_lora_load` and Axolotl builds the adapter on them alone. Every exception in these hooks ends the run; that
placement happened is proven once more when training begins.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axolotl.integrations.base import BasePlugin
from transformers import TrainerCallback

from layercard import place
from layercard.anatomy.layers import describe
from layercard.errors import HostError, LayercardError
from layercard.placement.placement import LayerPlacement
from layercard_axolotl import compat
from layercard_axolotl.arguments import settings_of
from layercard_axolotl.asked import KEY, named
from layercard_axolotl.before_adapter import choose_before_adapter, verify_built
from layercard_axolotl.refusals import OWN_CHOICE, refuse_trained_adapter, weights_on_one_rank

if TYPE_CHECKING:
    from layercard.pipeline.before.choosing import Chosen
    from layercard.pipeline.placed_run import PlacedRun
    from layercard.settings import PlacementSettings

log = logging.getLogger("layercard")


class LayerCardPlugin(BasePlugin):
    """The Axolotl plugin behind `lora_layers`; one instance serves one run."""

    def __init__(self) -> None:
        super().__init__()
        self._forget()

    def _forget(self) -> None:
        self._settings: PlacementSettings | None = None
        self._early = False
        self._data: Any = None
        self._chosen: Chosen | None = None
        self.run: PlacedRun | None = None

    def register(self, cfg: dict[str, Any]) -> None:
        """Begin anew: Axolotl keeps one instance for all the configurations that a process loads."""
        self._forget()

    def get_input_args(self) -> str:
        """Name the class that adds `lora_layers` to Axolotl's schema."""
        return "layercard_axolotl.arguments.LayerCardArgs"

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> Any:
        """Keep the tokenized data where layers are chosen before the trainer exists; None leaves loading to Axolotl."""
        settings = settings_of(cfg)
        if settings is None:
            level = logging.WARNING if named(cfg) else logging.DEBUG
            log.log(level, "`%s` is not in the configuration, so layercard does nothing in this run.", KEY)
            _warn_of_placed_checkpoint(cfg, preprocess)
            return None
        if preprocess:
            return None
        refuse_trained_adapter(cfg)
        self._settings = settings
        sharded = weights_on_one_rank(cfg)
        self._early = sharded or bool(compat.fused_kernels(cfg) and not cfg.rl)
        if self._early and not sharded:
            self._data = compat.load_training_data(cfg)
        return self._data

    def pre_lora_load(self, cfg: Any, model: Any) -> None:
        """Choose layers on the base model, where the adapter is to be built on them alone."""
        if self._settings is None or not self._early or self._chosen is not None:
            return
        early = choose_before_adapter(cfg, model, self._data and self._data.train_dataset, self._settings)
        early.write(cfg)
        self._chosen = early.chosen
        kernels = compat.fused_kernels(cfg)
        if kernels and self._data is not None:
            log.warning(
                "Fused LoRA kernels are on (%s), so the adapter is built on the chosen layers alone and all-layer LoRA cannot be "
                "measured against. To have it measured, set them to false.",
                ", ".join(kernels),
            )

    def post_lora_load(self, cfg: Any, model: Any) -> None:
        """Check that Axolotl built the adapter on the chosen layers and nowhere else."""
        if self._settings is not None and self._chosen is not None:
            verify_built(model, self._chosen.placement, self._settings.layers_path)

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[TrainerCallback]:
        """Return the callback that stops a training whose layers were not placed."""
        return [] if settings_of(cfg) is None else [PlacementProof(self, trainer)]

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """Narrow the trainer's adapters to the layers worth adapting, and attach the measurements and the report."""
        if self._settings is None:
            return
        trainer.args.resume_from_checkpoint = compat.checkpoint_to_resume(cfg)
        self.run = place(trainer, lora_layers=self._settings, chosen=self._chosen)


def _warn_of_placed_checkpoint(cfg: Any, preprocess: bool) -> None:
    """Say that a checkpoint of some layers is resumed with adapters on all, which Axolotl does not."""
    checkpoint = None if preprocess or any(cfg.get(key) for key in OWN_CHOICE) else compat.checkpoint_to_resume(cfg)
    path = checkpoint and Path(checkpoint) / "placement.json"
    if not path or not path.is_file():
        return
    try:
        placement = LayerPlacement.load(path)
    except LayercardError:  # no run that does without layercard stops for its files
        return
    log.warning(
        "%s adapts %s, and without `%s` this run adapts all that the target modules select. To go on with those layers, give "
        "`%s: auto`, which keeps them.",
        checkpoint,
        describe(placement.layers, placement.num_layers),
        KEY,
        KEY,
    )


class PlacementProof(TrainerCallback):
    """Raises `HostError` when training begins without a placement."""

    def __init__(self, plugin: LayerCardPlugin, trainer: Any) -> None:
        self._plugin, self._trainer = plugin, trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Compare the trainer that begins with the one that was placed."""
        run = self._plugin.run
        if run is None or run.host.trainer is not self._trainer:
            raise HostError(
                f"Training begins and no layers were placed, although the configuration holds `{KEY}`: Axolotl did not call the "
                "hooks `load_datasets` and `post_trainer_create` of layercard's plugin for this trainer. Train with `axolotl "
                f"train`, or drop `{KEY}`."
            )
