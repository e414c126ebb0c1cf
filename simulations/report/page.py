"""The page of a run: its readings and plots in the template, written beside its files."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulations.report import plots, units
from simulations.report.drawing import LOOKS
from simulations.report.reading import RunReading, read_run
from simulations.report.writing import write_page

_TEMPLATE = "report.html.jinja"
_SHOWN_FAILURES = 200


@dataclass(frozen=True)
class ClientRow:
    """One client at the best round of every strategy.

    Attributes:
        client: Its partition.
        encoder: Its encoder.
        test_examples: Number of its test examples, if it was ever evaluated.
        values: What it is judged by, under every strategy.
    """

    client: int
    encoder: str
    test_examples: int | None
    values: tuple[float | None, ...]


def write_report(directory: Path) -> Path:
    """Write ``report.html`` of a run directory: one file that needs no other and no network.

    Args:
        directory: A finished or unfinished run; nothing outside it is read.

    Returns:
        The path of the report.

    Raises:
        FederationError: If a file of the run is missing or damaged; the message names it.
    """
    directory = Path(directory)
    return write_page(
        directory / "report.html",
        _TEMPLATE,
        _values(read_run(directory)),
        percent=units.percent,
        size=units.size,
        duration=units.duration,
        number=units.number,
        scored=units.scored,
    )


def _values(reading: RunReading) -> dict[str, Any]:
    """Return what the template shows."""
    return {
        "reading": reading,
        "main": reading.runs[0],
        "experiment": reading.experiment,
        "client_rows": _client_rows(reading),
        "most_rows": plots.MOST_ROWS,
        "score": reading.scores[0],
        "other_scores": reading.scores[1:],
        "best_value": _best_value(reading),
        "curves": _drawn(
            plots.score_curves(reading.runs, reading.scores[0]),
            plots.loss_curves(reading.runs),
            plots.score_over_time(reading.runs, reading.scores[0]),
        ),
        "clients": plots.client_dots(reading),
        "classes": plots.class_shares(reading, reading.partition) if reading.partition else None,
        "wire": _drawn(plots.bytes_per_round(reading.runs), plots.bytes_in_total(reading.runs)),
        "failures": reading.failures,
        "shown_failures": _SHOWN_FAILURES,
        "looks": LOOKS,
    }


def _drawn(*drawn: plots.Plot | None) -> list[plots.Plot]:
    return [plot for plot in drawn if plot is not None]


def _client_rows(reading: RunReading) -> list[ClientRow]:
    """Return the rows of all clients, or of those that fare worst where there are too many."""
    examples = reading.test_examples
    shown: Iterable[int] = range(reading.num_clients)
    if reading.num_clients > plots.MOST_ROWS:
        scores = reading.runs[0].client_scores
        worst = sorted(scores, key=lambda client: (reading.scores[0].rank(scores[client]), client))
        shown = worst[: plots.MOST_ROWS]
    return [
        ClientRow(
            client,
            reading.encoder(client),
            examples.get(client),
            tuple(run.client_scores.get(client) for run in reading.runs),
        )
        for client in shown
    ]


def _best_value(reading: RunReading) -> float | None:
    """Return the best score of the table, where there is something to compare."""
    score = reading.scores[0]
    values = [run.best.scores[score.key] for run in reading.runs if run.best]
    return max(values, key=score.rank) if len(values) > 1 else None
