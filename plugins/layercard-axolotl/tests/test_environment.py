"""Installing layercard into a working Axolotl environment changes no other package."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path

import pytest

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


def test_a_broken_installation_stops_the_run_instead_of_being_logged(monkeypatch):
    """Axolotl logs a plugin whose import raises `ImportError`, and trains without it."""
    from axolotl.integrations.base import PluginManager

    import layercard_axolotl

    monkeypatch.setitem(sys.modules, "layercard_axolotl.plugin", None)
    with pytest.raises(layercard_axolotl.BrokenInstallationError, match="cannot be used here"):
        PluginManager.get_instance().register("layercard_axolotl.LayerCardPlugin")


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
