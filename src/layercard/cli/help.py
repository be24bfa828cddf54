"""How help reads: options in groups, examples below them, and lists of commands whose summaries are whole.

An option's group follows from its name, so that options which commands share stand under one heading everywhere. What no
group names, such as a plugin's option, stands under a heading of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

OPTIONS = {
    "Model": ("target_modules", "task", "dtype", "load_in_4bit", "device", "model_id", "model_revision", "gguf"),
    "Data": ("dataset", "dataset_config", "split", "column", "max_length", "heldout", "heldout_split", "dataset_id"),
    "Layers": (
        "lora_layers", "layers", "sweep", "strategy", "num_layers", "fraction", "indices", "cumulative_threshold", "budget",
        "min_gain", "max_memory", "score", "prefer", "schedule", "min_entry", "layers_path", "other_stacks", "random_seed",
    ),
    "Layer Cards": ("cards", "community_cards", "min_spearman"),
    "Probe": ("scores", "probe_examples", "probe_batch_size", "probe_rank", "probe_budget", "probe_seeds"),
    "Training": ("steps", "batch_size", "learning_rate", "seeds", "rank", "alpha", "gradient_checkpointing"),
    "Prediction": ("checkpointing", "time_costs", "gradient_entry", "checkpointing_above_entry"),
    "Measuring": ("rounds", "inference", "new_tokens"),
    "Judging": ("heldout_examples", "eval_batch_size", "generate", "max_new_tokens", "cost_rounds"),
    "Memory": ("memory", "load_in_8bit", "lora_rank", "loss_head", "bf16", "optimizer"),
    "Output": ("path", "output", "work", "check", "quick", "as_json", "help"),
}  # fmt: skip
"""Headings with the names of the parameters below them."""
COMMANDS = {
    "Before training": ("probe", "plan", "cards", "measure"),
    "Training": ("trl-sft", "demo"),
    "After training": ("report", "compare"),
    "This installation": ("doctor", "plugins"),
}
FEW = 8
"""As many options need no headings."""
WHOLE = 1000
"""Letters of a summary at most: all of its first sentence."""
PLUGINS = {"--axolotl": "layercard-axolotl", "trl-sft": "layercard-trl", "demo": "layercard-trl"}
"""Options and commands of layercard's own plugins, which may not be installed."""


def examples(*lines: str) -> str:
    """Return an epilog that shows these command lines as they are."""
    return "\b\n" + "\n".join([f"Example{'s' * (len(lines) > 1)}:", *(f"  {line}" for line in lines)])


class Command(click.Command):
    """A command whose options are listed in groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, under headings where there are many."""
        options = [p for p in self.get_params(ctx) if isinstance(p, click.Option)]
        shown = [(_name(p), row) for p in options if (row := p.get_help_record(ctx)) is not None]
        if len(shown) <= FEW:
            super().format_options(ctx, formatter)
            return
        _write(formatter, _grouped(shown, OPTIONS, "Other options"))


class Group(click.Group):
    """A group whose commands are listed by when they are used, with whole summaries."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write every command with the first sentence of its help."""
        names = sorted(self.commands, key=_order)
        shown = [(name, (name, self.commands[name].get_short_help_str(WHOLE))) for name in names]
        if any(name in used for used in COMMANDS.values() for name in names):
            _write(formatter, _grouped(shown, COMMANDS, "Other commands"))
        else:
            _write(formatter, {"Commands": [row for _, row in shown]})

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; where it is a plugin's that is not installed, name the plugin."""
        if args and args[0] in PLUGINS and args[0] not in self.commands:
            raise click.UsageError(f"The command `{args[0]}` {missing(args[0])}", ctx)
        return super().resolve_command(ctx, args)


def missing(name: str) -> str:
    """Say which plugin supplies an option or command, and how it is installed."""
    plugin = PLUGINS[name]
    return (
        f"comes with {plugin}, which is not installed. Install it with `pip install {plugin}`, or from a checkout with "
        f"`pip install ./plugins/{plugin}`."
    )


def _name(option: click.Option) -> str:
    """Return an option's name; click names its own `--help` differently from release to release."""
    return "help" if "--help" in option.opts else option.name or ""


def _order(name: str) -> int:
    known = [command for used in COMMANDS.values() for command in used]
    return known.index(name) if name in known else len(known)


def _grouped(
    shown: Sequence[tuple[str, tuple[str, str]]], headings: Mapping[str, Sequence[str]], others: str
) -> dict[str, list[tuple[str, str]]]:
    found = {heading: [row for name, row in shown if name in names] for heading, names in headings.items()}
    named = {name for names in headings.values() for name in names}
    found[others] = [row for name, row in shown if name not in named]
    return {heading: rows for heading, rows in found.items() if rows}


def _write(formatter: click.HelpFormatter, groups: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    for heading, rows in groups.items():
        with formatter.section(heading):
            formatter.write_dl(list(rows))
