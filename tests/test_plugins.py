"""Plugins: the registries they fill, clashes that name both owners, and that built-ins use the same hooks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click
import pluggy
import pytest

from layercard import hookimpl, hookspecs
from layercard.cli.commands import command_registry
from layercard.cli.main import build_cli
from layercard.errors import PluginError, SettingsError
from layercard.plugins import build_manager, scorers, strategies


@dataclass(frozen=True)
class Thing:
    name: str


def supplying(hook: str, *things: Thing) -> Any:
    """Return a plugin whose `hook` registers these."""

    def implementation(register: Callable[[Any], None]) -> None:
        for thing in things:
            register(thing)

    implementation.__name__ = hook
    return type("Plugin", (), {hook: staticmethod(hookimpl(implementation))})


@pytest.mark.parametrize(("hook", "fill"), [("register_scorers", scorers), ("register_strategies", strategies)])
def test_a_plugin_fills_the_registry_beside_the_built_ins(hook: str, fill: Callable[..., Any]) -> None:
    plain = fill(build_manager(entry_points=False))
    filled = fill(build_manager([("mine", supplying(hook, Thing("new")))], entry_points=False))
    assert set(filled) == {*plain, "new"}
    assert filled.owner("new") == "mine"
    assert {filled.owner(name) for name in plain} == {"layercard"}


@pytest.mark.parametrize(
    ("hook", "fill", "taken"),
    [("register_scorers", scorers, "resnorm"), ("register_strategies", strategies, "uniform")],
)
def test_a_clash_names_the_name_and_both_owners(hook: str, fill: Callable[..., Any], taken: str) -> None:
    manager = build_manager([("mine", supplying(hook, Thing(taken)))], entry_points=False)
    with pytest.raises(PluginError, match=rf"`{taken}`") as caught:
        fill(manager)
    assert "`layercard`" in str(caught.value)
    assert "`mine`" in str(caught.value)


def test_a_clash_between_two_plugins_names_both() -> None:
    pair = [(name, supplying("register_scorers", Thing("new"))) for name in ("one", "two")]
    with pytest.raises(PluginError, match=r"`one`.*`two`|`two`.*`one`"):
        scorers(build_manager(pair, entry_points=False))


def test_an_unknown_name_suggests_the_nearest_and_lists_all() -> None:
    with pytest.raises(SettingsError, match=r"`score` is 'resnrom'.*Did you mean `resnorm`\?.*`cka`"):
        scorers(build_manager(entry_points=False))["resnrom"]
    with pytest.raises(SettingsError, match=r"`strategy` is 'zzz', which no plugin registers\. Known are"):
        strategies(build_manager(entry_points=False))["zzz"]


def test_a_command_clash_names_both_owners() -> None:
    class Plugin:
        @staticmethod
        @hookimpl
        def register_commands(cli: click.Group) -> None:
            cli.add_command(click.Command("probe"))

    with pytest.raises(PluginError, match=r"the command `probe`"):
        command_registry(build_manager([("mine", Plugin)], entry_points=False))


def test_a_hook_that_does_not_exist_is_refused_at_once() -> None:
    class Plugin:
        @staticmethod
        @hookimpl
        def register_scorer(register: Callable[[Any], None]) -> None:
            """Register nothing: the hook's name lacks an s."""

    with pytest.raises(pluggy.PluginValidationError, match="register_scorer"):
        build_manager([("mine", Plugin)], entry_points=False)


def test_a_hook_with_an_unknown_argument_is_refused_at_once() -> None:
    class Plugin:
        @staticmethod
        @hookimpl
        def register_scorers(registry: Any) -> None:
            """Register nothing: the argument is called `register`."""

    with pytest.raises(pluggy.PluginValidationError, match="registry"):
        build_manager([("mine", Plugin)], entry_points=False)


def test_managers_share_nothing() -> None:
    build_manager([("mine", supplying("register_scorers", Thing("new")))], entry_points=False)
    assert "new" not in scorers(build_manager(entry_points=False))


def test_plugins_answer_before_the_built_ins_where_the_first_answer_counts() -> None:
    answer = object()

    class Plugin:
        @staticmethod
        @hookimpl
        def locate_decoder_layers(model: Any) -> Any:
            return answer

    manager = build_manager([("mine", Plugin)], entry_points=False)
    assert manager.hook.locate_decoder_layers(model=None) is answer


def test_every_hook_is_documented() -> None:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    names = [name for name, value in vars(hookspecs).items() if hasattr(value, "layercard_spec")]
    assert len(names) >= 6
    assert all(vars(hookspecs)[name].__doc__ for name in names)


def test_a_plugin_extends_another_plugins_command_in_its_own_command_line_alone() -> None:
    class Plugin:
        @staticmethod
        @hookimpl
        def extend_command(command: click.Command) -> None:
            if command.name == "plan":
                command.params.append(click.Option(["--mine"]))

    extended = build_cli(build_manager([("mine", Plugin)], entry_points=False))
    plain = build_cli(build_manager(entry_points=False))
    names = [{p.name for p in cli.commands["plan"].params} for cli in (extended, plain)]
    assert names[0] - names[1] == {"mine"}
