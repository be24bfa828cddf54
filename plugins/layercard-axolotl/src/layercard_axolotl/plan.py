"""`layercard plan --axolotl`: chooses layers for an Axolotl configuration in one process, and writes them into it.

What shards a model over processes is left out for the plan, so that it works where the run itself cannot be probed
(ZeRO-3, FSDP with meta tensors). The written configuration trains with Axolotl alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axolotl.integrations.base import BasePlugin, PluginManager

from layercard import __version__, plugins
from layercard.anatomy.layers import describe
from layercard.cli.next_steps import say_command, say_next, say_sentences
from layercard.cli.writable import refuse_unwritable
from layercard.cost.predict import predict_step
from layercard.errors import SettingsError
from layercard.files import write_text
from layercard.pipeline.before.looking import locate_layers
from layercard.placement.choose import choose_placement, needed_score
from layercard.report.words import as_fast
from layercard.settings import PlacementSettings
from layercard_axolotl import compat
from layercard_axolotl.adapter_keys import Selection
from layercard_axolotl.asked import KEY
from layercard_axolotl.before_adapter import Early, choose_before_adapter
from layercard_axolotl.refusals import refuse_choice
from layercard_axolotl.yaml_file import ConfigFile

if TYPE_CHECKING:
    from layercard.cli.output import Output
    from layercard.placement.placement import LayerPlacement

SHARDING = ("deepspeed", "fsdp", "fsdp_config", "fsdp_version")
NAME = "layercard-plan"


def plan_configuration(config: Path, output: Path | None, asked: Mapping[str, Any], say: Output) -> dict[str, Any]:
    """Choose layers as the configuration's `lora_layers` and `asked` say, write it to `output`; return the plan's JSON.

    Raises `SettingsError` where layers cannot be placed in such a run, and what `layercard.place` raises.
    """
    refuse_unwritable(output, "--output")
    file = ConfigFile.read(config)
    refuse_choice(file.values)
    wanted = file.values.get(KEY)
    settings = PlacementSettings.from_user(*([] if wanted is None else [wanted]), **asked)
    name = settings.cost_setting
    if name is not None:
        value = getattr(settings, name)
        raise SettingsError(
            f"`{name}` is {value}, and a configuration for Axolotl alone does not end backpropagation at the lowest adapted "
            "layer, on which most of the predicted saving rests. Say here how many layers with `num_layers` or `fraction`; or "
            f"leave `{KEY}: {{{name}: {value}}}` in the configuration and train with the plugin."
        )
    if settings.schedule is not None:
        raise SettingsError(
            f"`schedule` is {settings.schedule!r}, and a configuration for Axolotl alone trains the same layers all the time. "
            f"Leave `{KEY}: {{schedule: ...}}` in the configuration and train with the plugin."
        )
    placement, keys = _choose(file.values, settings)
    predicted = predict_step(
        placement.num_layers,
        placement.layers,
        checkpointing=bool(file.values.get("gradient_checkpointing")),
        gradient_entry=False,
        adaptable=placement.adaptable,
    )
    reason = f"layercard {__version__} chose {describe(placement.layers, placement.num_layers)}: {placement.reason}"
    say.say(f"Adapt {describe(placement.layers, placement.num_layers)}.")
    say_sentences(say, [placement.reason])
    say.say(
        f"Predicted with Axolotl alone: a step is {as_fast(predicted.speedup)} as with all-layer LoRA; "
        f"quality: {_quality(placement)}."
    )
    say.say("Axolotl alone does not end backpropagation at the lowest adapted layer.")
    say.say(f"`{KEY}: {list(placement.layers)}` does, where the run is not sharded.")
    text = file.with_keys(keys, reason)
    if output is None:
        say.say(text)
        say_next(say, "write it with `-o FILE`, and train it.", "  axolotl train FILE")
    else:
        write_text(output, text)
        say.say(f"Wrote {output}.")
        say_command(say, "train it.", "axolotl", "train", str(output))
    expected = {"step_speedup": predicted.speedup, "step_ratio": predicted.ratio, "gradient_entry": False}
    return {"placement": placement.to_dict(), "expected": expected, "config": None if output is None else str(output)}


def _quality(placement: LayerPlacement) -> str:
    """Return what Layer Cards lead one to expect, or that nothing does."""
    share = (placement.expected or {}).get("share_kept")
    return "unproven" if share is None else f"{share:.0%} of its gain kept"


def _choose(values: Mapping[str, Any], settings: PlacementSettings) -> tuple[LayerPlacement, Mapping[str, Any]]:
    """Return the placement and the keys that say it; weights and data are loaded only where the choice reads them."""
    extensions = plugins.extensions()
    strategies = extensions.strategies
    single = _single(values)
    selection = Selection(compat.mapping(single), compat.skeleton(single))
    stack = locate_layers(selection.model, settings.layers_path or selection.stack_path(), extensions)
    layers = selection.layers_of(stack)
    score = needed_score(settings, strategies)
    if score is not None and values.get("rl"):
        raise SettingsError(
            f"`strategy` is {settings.strategy!r}, which reads the score `{score}`, and `rl` is {values['rl']!r}: the plan "
            "probes supervised examples. Choose by depth, such as `lora_layers: uniform`, or plan on supervised data."
        )
    if score is None and (not settings.is_auto or values.get("rl")):
        placement = choose_placement(settings, len(stack), strategies=strategies, adaptable=layers)
        return placement, selection.keys_on(stack, placement.layers)
    early = _probed(single, settings)
    return early.chosen.placement, early.keys


def _single(values: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration for one process without kernels, and without layercard's own key and plugin."""
    single = {key: value for key, value in values.items() if key not in (*SHARDING, KEY)}
    single |= dict.fromkeys(compat.FUSED_KERNELS, False)
    single["plugins"] = [name for name in values.get("plugins") or [] if not name.startswith("layercard_axolotl.")]
    return single


def _probed(single: Mapping[str, Any], settings: PlacementSettings) -> Early:
    """Load data and base model as Axolotl does, in one process, and choose."""
    from axolotl.cli.config import load_cfg
    from axolotl.loaders import ModelLoader

    with tempfile.TemporaryDirectory() as folder:
        cfg = load_cfg(compat.mapping({**single, "output_dir": folder}))
        planner = _Planner(settings, compat.load_training_data(cfg).train_dataset)
        PluginManager.get_instance().plugins[NAME] = planner
        try:
            ModelLoader(cfg, compat.load_tokenizer(cfg)).load()
        finally:
            del PluginManager.get_instance().plugins[NAME]
    assert planner.early is not None
    return planner.early


class _Planner(BasePlugin):
    """Chooses at the moment at which a training run with fused kernels would."""

    def __init__(self, settings: PlacementSettings, data: Any) -> None:
        super().__init__()
        self._settings, self._data = settings, data
        self.early: Early | None = None

    def pre_lora_load(self, cfg: Any, model: Any) -> None:
        """Choose on the base model."""
        self.early = choose_before_adapter(cfg, model, self._data, self._settings)
