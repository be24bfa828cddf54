"""Runs the stages of one case where packages of its own are found: `try_case.py FOLDER NAME`; a test starts it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from peft_cases import CASES
from peft_stages import tried


def main(folder: Path, name: str) -> None:
    (folder / "outcome.json").write_text(json.dumps(asdict(tried(CASES[name], folder))), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
