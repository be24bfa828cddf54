"""Installing layercard into a working Axolotl environment changes no other package."""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict
from contextlib import nullcontext
from importlib.metadata import entry_points, requires, version
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from runs import BY_ENTRY_POINT, PLUGIN, check_files, command, sft, train_here, write

AS_INSTALLED = Path(sys.prefix) / "axolotl-as-installed.txt"
"""What `pip freeze` said before layercard came; the Makefile wrote it."""


def frozen() -> set[str]:
    done = subprocess.run([sys.executable, "-m", "pip", "freeze"], capture_output=True, text=True, check=True)
    return {line for line in done.stdout.splitlines() if "==" in line and not line.startswith("#")}


def test_no_package_was_changed_or_removed():
    before = {line for line in AS_INSTALLED.read_text().splitlines() if "==" in line}
    assert len(before) > 100
    assert before <= frozen()


def test_every_requirement_is_met():
    subprocess.run([sys.executable, "-m", "pip", "check"], check=True)


@pytest.mark.parametrize("package", ["layercard", "layercard-axolotl"])
def test_what_axolotl_pins_is_never_pinned_again(package):
    pinned = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "bitsandbytes", "axolotl")
    for requirement in requires(package) or []:
        name = requirement.split(";")[0].strip()
        if name.startswith(pinned) and "extra" not in requirement:
            assert "<" not in name
            assert "==" not in name
            assert not name.startswith(("trl", "axolotl"))


def test_versions_are_one():
    assert version("layercard") == version("layercard-axolotl")


@pytest.mark.parametrize(
    ("asking", "stops"),
    [
        ({"plugins": [PLUGIN], "lora_layers": "auto"}, True),
        ({"plugins": [PLUGIN]}, True),
        ({"lora_layers": "auto"}, BY_ENTRY_POINT),
        ({}, False),
    ],
    ids=["line and key", "line", "key", "neither"],
)
def test_a_broken_installation_stops_the_runs_that_ask_for_it_instead_of_being_logged(monkeypatch, asking, stops):
    """Axolotl logs a plugin whose import fails, and trains without it; 0.21 does where no line names it."""
    from axolotl.cli.config import prepare_plugins
    from axolotl.integrations.base import PluginManager
    from axolotl.utils.dict import DictDefault

    import layercard_axolotl

    monkeypatch.setattr(PluginManager.get_instance(), "plugins", OrderedDict())
    monkeypatch.setitem(sys.modules, "layercard_axolotl.plugin", None)
    stopped = pytest.raises(layercard_axolotl.BrokenInstallationError, match="cannot be used here")
    with stopped if stops else nullcontext():
        prepare_plugins(DictDefault(asking))


def test_axolotl_finds_the_plugin_by_its_entry_point_under_the_name_that_yaml_uses():
    (found,) = (point for point in entry_points(group="axolotl.plugins") if point.dist.name == "layercard-axolotl")
    assert found.value.replace(":", ".") == PLUGIN
    assert found.load().__name__ == PLUGIN.rpartition(".")[2]


def test_axolotls_own_command_line_gets_a_command_that_plans(folder, tmp_path):
    """Axolotl 0.21 and later takes the entry point; here it is called as that does."""
    (found,) = (point for point in entry_points(group="axolotl.cli_commands") if point.name == "layercard-plan")
    path = write(sft(folder, lora_layers={"strategy": "last", "num_layers": 2}), tmp_path / "out")
    done = CliRunner().invoke(found.load(), [str(path), "-o", str(tmp_path / "placed.yml"), "--json"])
    assert done.exit_code == 0, done.output
    assert yaml.safe_load((tmp_path / "placed.yml").read_text())["peft_layers_to_transform"] == [2, 3]
    assert CliRunner().invoke(found.load(), [str(path), "--strategy", "lats"]).exit_code == 2
    shown = CliRunner().invoke(found.load(), ["--help"]).output
    assert "layercard plan" in shown


def test_the_command_imports_nothing_heavy():
    code = (
        "import sys, layercard_axolotl.axolotl_command\n"
        "assert not {'torch', 'axolotl', 'transformers', 'ruamel'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not BY_ENTRY_POINT, reason="Axolotl 0.21 and later")
def test_axolotl_shows_and_runs_the_command(folder, tmp_path):
    shown = command("axolotl", "--help")
    assert "layercard-plan" in shown.stdout
    path = write(sft(folder, lora_layers="last"), tmp_path / "out")
    done = command("axolotl", "layercard-plan", path, "-o", tmp_path / "placed.yml")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "placed.yml").exists()


@pytest.mark.skipif(not BY_ENTRY_POINT, reason="Axolotl 0.21 and later")
def test_no_line_is_needed_and_a_misspelt_one_is_an_error(folder, tmp_path):
    run = train_here(write(sft(folder, plugins=None, lora_layers=[3]), tmp_path / "out"))
    assert run.layers == (3,)
    check_files(tmp_path / "out", [3])
    assert train_here(write(sft(folder, plugins=None, lora_layers=None), tmp_path / "none" / "out")) is None
    with pytest.raises(ImportError, match="layercard_axolotI"):
        train_here(write(sft(folder, plugins=["layercard_axolotI.LayerCardPlugin"]), tmp_path / "other" / "out"))


def test_the_package_itself_imports_neither_torch_nor_axolotl():
    code = "import sys, layercard_axolotl; assert not {'torch', 'axolotl', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_of_the_extended_command_imports_nothing_heavy():
    code = (
        "import sys\nfrom layercard.cli.main import main\ncode = main(['plan', '--help'])\n"
        "assert not {'torch', 'axolotl', 'transformers', 'ruamel'} & set(sys.modules)\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--axolotl CONFIG" in done.stdout
