"""Environments of their own that cost little: one package in a folder of its own, found before those that are installed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

UNREACHABLE = ("(from versions: none)", "Connection", "connection", "Name or service not known", "timed out")


def installed_apart(requirements: Sequence[str], folder: Path, *options: str) -> Path:
    """Install packages without what they depend on; skip the test where no package index answers."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*command, "--retries", "1", "--timeout", "20", "--target", str(folder), *options, *requirements],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode and any(sign in done.stderr for sign in UNREACHABLE):
        pytest.skip(f"no package index was reached for {', '.join(requirements)}")
    assert done.returncode == 0, done.stderr
    return folder


def run_apart(script: str, arguments: Sequence[str], folder: Path) -> None:
    """Run a script of this folder with the packages of `folder` before all others."""
    path = os.pathsep.join([str(folder), *sys.path])
    command = [sys.executable, str(Path(__file__).with_name(script)), *arguments]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
