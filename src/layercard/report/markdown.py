"""A report as Markdown: a paragraph and a table, for a pull request or an adapter's model card.

Nothing that is private stands in it: no paths, no command, no name of data.
"""

from __future__ import annotations

from layercard.cost.speedup import SpeedupReport, StepCost, count_text, seconds_text, speedup_text
from layercard.report.console import quality_cell
from layercard.report.forgetting import forgetting_cells
from layercard.report.tables import markdown_table, plain
from layercard.report.verdict import verdict_of
from layercard.report.words import layers_words, sentence
from layercard.sizes import bytes_text

HEADER = ("run", "layers adapted", "step", "peak memory", "trainable", "speed", "quality")


def markdown(report: SpeedupReport) -> str:
    """Return the verdict, a paragraph, and the table of the run beside all-layer LoRA."""
    verdict = verdict_of(report)
    chosen = layers_words(report.layers, report.num_layers)
    head = sentence(f"LoRA on {chosen}, placed by layercard {report.versions.get('layercard', '')}".strip())
    said = [head, f"**Speed:** {verdict.speed.sentence}", f"**Quality:** {verdict.quality.sentence}", *verdict.notes]
    forgotten = forgetting_cells(report.quality)
    header = HEADER if forgotten is None else (*HEADER, "forgetting")
    every, placed = ((cell,) for cell in forgotten) if forgotten is not None else ((), ())
    rows = [
        ("all-layer LoRA", f"0–{report.num_layers - 1}", *_costs(report.baseline), "1.00x", "reference", *every),
        ("placed", chosen, *_costs(report.placed), speedup_text(report), quality_cell(verdict.quality), *placed),
    ]
    return "\n\n".join([" ".join(plain(text) for text in said), markdown_table(header, rows, right=(2, 3, 4, 5))])


def _costs(cost: StepCost) -> tuple[str, str, str]:
    return seconds_text(cost.step_seconds), bytes_text(cost.peak_bytes), count_text(cost.trainable_parameters)
