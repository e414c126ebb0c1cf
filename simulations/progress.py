"""A live line per strategy in the terminal, read from the metrics file that any engine writes."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import Progress

from federation.experiment import Experiment
from federation.run_directory import RunDirectory
from federation.scores import SCORES, Score
from simulations import terminal

_POLL_SECONDS = 0.2


@contextmanager
def watch(experiment: Experiment, console: Console) -> Iterator[None]:
    """Show a strategy's rounds and their metrics while the block runs."""
    with Progress(*terminal.COLUMNS, console=console) as progress:
        task = progress.add_task(
            experiment.strategy.name, total=experiment.run.rounds, figures="starting"
        )
        stop = threading.Event()
        tail = _Tail(RunDirectory(experiment.run.directory))
        score = SCORES[experiment.task.name][0]

        def update() -> None:
            for line in tail.new_rounds():
                progress.update(task, completed=line["round"], figures=_figures(line, score))

        def follow() -> None:
            while not stop.wait(_POLL_SECONDS):
                update()

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            update()


class _Tail:
    """Reads the complete lines that a metrics file has gained."""

    def __init__(self, run: RunDirectory):
        self._path = run.metrics
        self._position = 0

    def new_rounds(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        if self._path.stat().st_size < self._position:
            self._position = 0  # a resumed run cut off the rounds it will repeat
        with self._path.open("rb") as file:
            file.seek(self._position)
            data = file.read()
        complete = data[: data.rfind(b"\n") + 1]
        self._position += len(complete)
        return [line for text in complete.splitlines() if (line := _round(text))]


def _round(text: bytes) -> dict[str, Any] | None:
    """Return a round's line; None for others, and for half a line after a cut."""
    try:
        line: dict[str, Any] = json.loads(text)
    except ValueError:
        return None
    return line if line.get("kind") == "round" else None


def _figures(line: dict[str, Any], score: Score) -> str:
    parts = [f"loss {line['loss']:.3f}"] if "loss" in line else []
    for part, name in (("val", score.val_key), ("test", score.key)):
        if name in line:
            parts.append(f"{part} {line[name]:.3f}")
    parts.append(f"{(line['bytes_up'] + line['bytes_down']) / 1e6:.2f} MB")
    if line["failed"]:
        parts.append(f"[red]{line['failed']} failed[/red]")
    return "  ".join(parts)
