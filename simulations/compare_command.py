"""``graphcl compare``: finished runs side by side, with a test of their differences."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from simulations import terminal


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, or the folder of a sweep.")],
    json: Annotated[Path | None, typer.Option(help="Write all figures to this file too.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw them as this PNG file too.")] = None,
) -> None:
    """Set finished runs side by side, with a test of their differences to the first.

    Runs that differ in run.seed alone are one setting: a line with the mean
    over its seeds. The strategies that a run compared are settings too. The
    first setting is what all others are compared with, on the seeds that both
    ran or, where that is a single one, on its clients.

    Only runs of one task on the same data and partition compare. A verdict
    needs at least 6 pairs, more where several settings are compared: with 3
    seeds read the interval of the difference.

    For example:

      graphcl compare runs/20260101-120000-quickstart

      graphcl compare runs/*-fedproto runs/*-feddbp --json figures.json

      graphcl compare runs/quickstart-sweep --plot sweep.png
    """
    with terminal.loading():
        from simulations.compare import (
            compare,
            comparison_table,
            explain,
            read_runs,
            write_comparison,
        )
        from simulations.report.settings_plot import plot_settings

    with terminal.console.status("Reading the runs"):
        comparison = compare(read_runs(runs))
    if json:
        write_comparison(comparison, json)
    if plot:
        plot_settings(comparison.settings, comparison.keys, comparison.scores[0], plot)
    terminal.console.print(comparison_table(comparison))
    for note in explain(comparison):
        terminal.say(escape(note))
    for path in filter(None, (json, plot)):
        terminal.say(f"Written: [bold]{escape(str(path))}[/bold]")
