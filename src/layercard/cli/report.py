"""`layercard report`: a run's report as a page, or as Markdown for a pull request."""

from __future__ import annotations

from pathlib import Path

import click

from layercard.cli.help import Command, examples
from layercard.cli.options import CONTEXT, output_options
from layercard.cli.output import Output
from layercard.cli.writable import refuse_unwritable

FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(
    cls=Command,
    context_settings=CONTEXT,
    epilog=examples("layercard report out --compare out-all-layers -o report.html", "layercard report out --markdown"),
)
@click.argument("run", metavar="DIR", type=click.Path(path_type=Path))
@click.option("-o", "--output", "path", type=FILE, help="Write the page here.  [default: DIR/report.html]")
@click.option(
    "--compare", "others", multiple=True, metavar="OTHER", type=click.Path(path_type=Path),
    help="Put another run's numbers beside; may be given several times.",
)  # fmt: skip
@click.option(
    "--markdown", "as_markdown", is_flag=True, help="Print a paragraph and a table instead of writing a page."
)
@output_options
def report(run: Path, path: Path | None, others: tuple[Path, ...], as_markdown: bool, as_json: bool) -> None:
    """Write report.html from the report.json of DIR, the output folder of a placed run (or the file itself)."""
    from layercard.report.files import find_report, load_report
    from layercard.report.markdown import markdown
    from layercard.report.page.render import NAME, save_html
    from layercard.report.tradeoff import as_markdown as tradeoffs
    from layercard.report.tradeoff import of_report
    from layercard.report.verdict import verdict_of

    output = Output(as_json=as_json)
    file = find_report(run)
    page = path or (None if as_markdown else file.parent / NAME)
    refuse_unwritable(page, "--output")
    found = load_report(file)
    beside = [(find_report(other).resolve().parent.name, load_report(find_report(other))) for other in others]
    verdict = verdict_of(found)
    document = {"report": str(file), "page": None, "verdict": verdict.to_dict()}
    if as_markdown:
        rows = [of_report(name, one) for name, one in ((file.resolve().parent.name, found), *beside)]
        output.say(markdown(found) if not beside else f"{markdown(found)}\n\n{tradeoffs(rows)}")
    if page is not None:
        document["page"] = str(save_html(found, page, beside))
        if not as_markdown:
            for line in verdict.lines():
                output.say(line)
        output.say(f"Wrote {page}. Open it in a browser; `--markdown` prints the same for a pull request.")
    output.finish(document)
