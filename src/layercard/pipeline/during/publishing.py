"""Where a run's report goes: report.json and report.html, the adapter's model card, the trainer's trackers.

`Publisher` is told of each new report. Nothing here stops a training: what cannot be written is said in the log.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from layercard.report.files import save_report
from layercard.report.model_card import CardSection
from layercard.report.page.render import NAME as PAGE
from layercard.report.page.render import html, save_html
from layercard.report.trackers import tell_trackers

if TYPE_CHECKING:
    from pathlib import Path

    from layercard.cost.speedup import SpeedupReport
    from layercard.hosts.protocol import Host

log = logging.getLogger("layercard")


class Publisher:
    """Publishes the reports of one run, on the first rank."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._card = CardSection(host.model, host.trainer)

    def join(self) -> None:
        """Follow whatever writes model cards in this run."""
        self._card.join()

    def leave(self) -> None:
        """Undo `join`."""
        self._card.leave()

    def publish(self, report: SpeedupReport) -> None:
        """Write report.json and report.html, and hand the report to the model cards."""
        if not self._host.trainer.is_world_process_zero():
            return
        write_files(report, self._host.output_dir)
        self._card.tell(report)

    def track(self, report: SpeedupReport) -> None:
        """Tell the trackers, which are open: the numbers, and where training has ended the whole report."""
        if self._host.trainer.is_world_process_zero():
            tell_trackers(self._host.trainer, report, None if report.partial else html(report))


def write_files(report: SpeedupReport, folder: Path) -> None:
    """Write both files; a full disk, or numbers that cannot be drawn, do not stop the training."""
    try:
        save_report(report, folder)
    except (OSError, ValueError) as error:
        log.warning("report.json could not be written to %s: %s", folder, error)
    try:
        save_html(report, folder / PAGE)
    except (OSError, TemplateError, ArithmeticError, ValueError) as error:
        log.warning("%s could not be written to %s: %s", PAGE, folder, error)
