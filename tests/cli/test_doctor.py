"""`layercard doctor` on this installation, and each check where it does not hold: made so on purpose, never pretended."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import Ran, Run, runner
from layercard import __version__, hookimpl, plugins, precision
from layercard.doctor import machine, toy
from layercard.doctor.check import Check, warning

LONGEST = 80


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", str(LONGEST))
    return runner(capfd, "doctor")


def by_name(ran: Ran) -> dict[str, dict[str, Any]]:
    rows = {row["name"]: row for row in ran.document["checks"]}
    assert len(rows) == len(ran.document["checks"])
    assert all((row["advice"] is None) is (row["status"] == "ok") for row in rows.values())
    assert ran.document["ok"] is all(row["status"] != "failed" for row in rows.values()) is (ran.code == 0)
    return rows


def fails(row: dict[str, Any], *words: str) -> None:
    assert row["status"] == "failed"
    assert all(word in f"{row['found']} {row['advice']}" for word in words), row


def test_this_installation_is_sound(run: Run, tmp_path: Path) -> None:
    ran = run("--output-dir", tmp_path / "out", "--json")
    rows = by_name(ran)
    assert ran.code == 0
    for package in ("torch", "transformers", "peft", "accelerate", "trl"):
        assert rows[package]["found"].startswith(importlib.metadata.version(package))
    assert "locate_host" in rows["plugin trl"]["found"]
    assert rows["transformers run"]["status"] == rows["TRL run"]["status"] == "ok"
    assert "trl.SFTTrainer was placed" in rows["TRL run"]["found"]
    assert rows["gradient entry"]["status"] == rows["output folder"]["status"] == "ok"
    assert rows["timing"]["status"] in ("ok", "warning")
    assert list(tmp_path.iterdir()) == []  # nothing is left behind
    assert max(map(len, ran.err.splitlines()[-3:])) <= LONGEST
    assert "layercard works here." in ran.err


def test_people_get_a_table_that_fits_and_ends_with_what_it_means(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "installed_names", list)  # the hosts' own runs are tried above
    ran = run()
    assert ran.code == 0
    assert [line for line in ran.out.splitlines() if len(line) > LONGEST] == []
    assert "layercard works here." in ran.out
    assert "Next:" in ran.out
    assert "[layercard]" not in ran.out + ran.err  # the toy runs speak for nobody


@pytest.fixture
def bare(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, dict[str, Any]]]:
    """Run without installed plugins and with those given, in a folder of its own."""

    def ran(*given: tuple[str, Any]) -> dict[str, dict[str, Any]]:
        build = plugins.build_manager
        monkeypatch.setattr(plugins, "installed_names", list)
        monkeypatch.setattr(plugins, "build_manager", lambda installed=(): build(given, entry_points=False))
        return by_name(run("--output-dir", tmp_path, "--json"))

    return ran


def test_releases_that_are_too_old_missing_or_newer_are_told_apart(
    bare: Callable[..., dict[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = importlib.metadata.version
    told = {"peft": "0.9.0", "transformers": "99.0", "layercard-trl": "0.0.1", "axolotl": "0.19.0"}

    def version(package: str) -> str:
        if package in ("accelerate", "layercard-axolotl"):
            raise importlib.metadata.PackageNotFoundError(package)
        return told.get(package) or known(package)

    monkeypatch.setattr("layercard.versions.version", version)
    rows = bare()
    fails(rows["peft"], "0.9.0", "pip install 'peft>=0.18'")
    fails(rows["accelerate"], "not installed", "pip install 'accelerate>=1.10.1'")
    fails(rows["layercard-trl"], "0.0.1", f"layercard=={__version__}")
    assert rows["transformers"]["status"] == "warning"
    assert "Newer than what was tested" in rows["transformers"]["advice"]
    assert rows["axolotl"]["status"] == "warning"
    assert "pip install layercard-axolotl" in rows["axolotl"]["advice"]


def test_a_folder_that_cannot_be_written_fails_and_the_toy_runs_all_the_same(run: Run, tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("no folder")
    ran = run("--output-dir", in_the_way / "out", "--json")
    rows = by_name(ran)
    assert ran.code == 3
    fails(rows["output folder"], "Not a directory", "--output-dir")
    assert rows["gradient entry"]["status"] == "ok"
    assert "Failed: output folder." in ran.words


def test_an_entry_that_stays_is_a_warning_with_its_reason(
    bare: Callable[..., dict[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy, "WANTED", toy.WANTED | {"gradient_entry": False})
    row = bare()["gradient entry"]
    assert row["status"] == "warning"
    assert row["found"].startswith("not moved to layer")
    assert "`gradient_entry` is off" in row["found"]


class Undoes:
    """A host whose adapters are put back after every step, as by an optimizer that does not hold them."""

    @hookimpl(tryfirst=True)
    def locate_host(self, trainer: Any) -> Any:
        from transformers import TrainerCallback

        from layercard.hosts.plain import PlainHost

        class Zero(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
                with torch.no_grad():
                    for name, value in model.named_parameters():
                        if "lora_B" in name:
                            value.zero_()

        trainer.add_callback(Zero())
        return PlainHost(trainer)


def test_adapters_that_do_not_learn_fail(bare: Callable[..., dict[str, dict[str, Any]]]) -> None:
    fails(bare(("undoes", Undoes()))["transformers run"], "[] learned", "Do not train")


class NoHost:
    @hookimpl(tryfirst=True)
    def locate_host(self, trainer: Any) -> Any:
        raise RuntimeError("the host has moved")


def test_a_run_that_cannot_be_placed_fails_with_its_reason(bare: Callable[..., dict[str, dict[str, Any]]]) -> None:
    rows = bare(("moved", NoHost()))
    fails(rows["toy run"], "RuntimeError: the host has moved")
    fails(rows["output folder"], "does not exist")
    assert "gradient entry" not in rows


class Sick:
    @hookimpl
    def diagnose(self, folder: Path) -> Iterable[Check]:
        assert list(folder.iterdir()) == []
        yield warning("sick host", "half of it is there", "Wait.")
        raise ImportError("the other half")


def test_what_a_plugin_says_of_its_host_stands_and_what_it_raises_fails(
    bare: Callable[..., dict[str, dict[str, Any]]],
) -> None:
    rows = bare(("sick", Sick()))
    assert rows["sick host"]["status"] == "warning"
    fails(rows["host of sick"], "ImportError: the other half")


def test_steps_that_cannot_be_timed_are_a_warning(
    bare: Callable[..., dict[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy, "BUDGET", 0.0)
    row = bare()["timing"]
    assert row["status"] == "warning"
    assert "too short" in row["found"]


def test_a_cpu_that_is_slow_in_bfloat16_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(dtype: torch.dtype) -> float:
        return 1.0 if dtype == torch.float32 else 5.0

    precision.slowdown.cache_clear()
    monkeypatch.setattr(precision, "_seconds", seconds)
    rows = {check.name: check for check in machine.check_dtypes()}
    precision.slowdown.cache_clear()
    assert rows["bfloat16"].status == "warning"
    assert "5.00 times" in rows["bfloat16"].found
    assert "bf16=False" in str(rows["bfloat16"].advice)
    assert rows["float16"].status == "ok"


def installed(folder: Path, name: str, code: str) -> Path:
    """Install a distribution with one plugin, as a wheel would: a module, and metadata with an entry point."""
    (folder / f"{name}_module.py").write_text(code)
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[layercard]\n{name} = {name}_module\n")
    return folder


CLASH = """
import click
from layercard import hookimpl

@hookimpl
def register_commands(cli):
    cli.add_command(click.Command("plan"))
"""


HOOK = "from layercard import hookimpl\n@hookimpl\n"
BROKEN = {
    "absent": ("import a_package_that_is_not_there", "No module named 'a_package_that_is_not_there'"),
    "raising": ("raise RuntimeError('out of order')", "RuntimeError: out of order"),
    "unread": ("this is no Python", "SyntaxError"),
    "misspelt": (f"{HOOK}def register_scorer(register): ...", "register_scorer"),
    "clashing": (CLASH, "the command `plan`"),
    "dividing": (f"{HOOK}def register_scorers(register):\n    register(1 / 0)", "division"),
}
"""Plugins by name: their code, and what is said of them."""


def test_broken_plugins_are_named_and_the_other_checks_go_on(tmp_path: Path) -> None:
    for name, (code, _) in BROKEN.items():
        installed(tmp_path, name, code)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "layercard", "doctor", "--json", "--output-dir", str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    rows = {row["name"]: row for row in json.loads(done.stdout)["checks"]}
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    for name, (_, reason) in BROKEN.items():
        fails(rows[f"plugin {name}"], reason, "uninstall")
    assert rows["gradient entry"]["status"] == rows["TRL run"]["status"] == "ok"


def test_every_other_command_stops_at_a_plugin_that_cannot_be_loaded_and_names_it(tmp_path: Path) -> None:
    folder = installed(tmp_path, "sickly", "raise RuntimeError('out of order')")
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "layercard", "plugins"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: The plugin `sickly` cannot be loaded: RuntimeError: out of order.")
    assert "layercard doctor" in done.stderr


def test_its_help_imports_no_torch() -> None:
    code = (
        "import sys\nfrom layercard.cli.main import main\nmain(['doctor', '--help'])\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--output-dir" in done.stdout
