"""A run killed while it trains leaves a readable report of what was measured, and its page."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from layercard.report.files import load_report

HERE = Path(__file__).parent


def test_a_killed_run_leaves_a_partial_report(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(HERE / "killed_run.py"), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    report = load_report(tmp_path / "report.json")
    assert report.partial
    assert report.step_speedup is not None
    assert report.backward_layers == (2, 3)
    assert report.unexplained() == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json"]
    page = (tmp_path / "report.html").read_text()
    assert page.endswith("</html>\n") and "Training had not ended when this was written." in page
