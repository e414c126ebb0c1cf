"""What a sweep found: settings ordered by validation alone, as a table, JSON, Markdown, a plot."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from federation.experiment import Scalar
from federation.scores import SCORES, Score
from graphcl.errors import GraphCLError
from simulations.compare import SWEEP_FILE, interval, setting_json, write_json
from simulations.report.settings_plot import plot_settings
from simulations.report.units import DASH, duration, size
from simulations.settings import (
    FinishedRun,
    SettingRuns,
    data_of,
    finished_runs,
    setting_of,
    varied,
)
from simulations.sweep import Trial


@dataclass(frozen=True)
class Row:
    """One setting of a sweep.

    Attributes:
        values: The values of the ranged keys.
        runs: Its finished trials; None without one.
        failed: Why trials failed, by seed.
        waiting: Seeds whose trials are still to be run.
    """

    values: Mapping[str, Scalar]
    runs: SettingRuns | None
    failed: Mapping[int, str]
    waiting: Sequence[int]

    @property
    def complete(self) -> bool:
        """Whether all its trials are finished."""
        return self.runs is not None and not self.failed and not self.waiting


@dataclass(frozen=True)
class SweepResult:
    """All settings of a sweep.

    Attributes:
        name: Of the experiment.
        score: What settings are ordered by, on validation examples.
        keys: The ranged keys.
        seeds: The seeds of every setting.
        rows: Complete settings by mean validation score, the best first; then the others so; last
            those without a finished trial.
        comparable: Whether all settings learn one task from the same data and partition, so that
            one of them can be called the best.
    """

    name: str
    score: Score
    keys: Sequence[str]
    seeds: Sequence[int]
    rows: Sequence[Row]
    comparable: bool

    @property
    def best(self) -> Row | None:
        """The complete setting with the best mean validation score."""
        first = self.rows[0]
        return first if self.comparable and first.complete and len(self.rows) > 1 else None

    @property
    def settings(self) -> list[SettingRuns]:
        """The settings with finished trials, in the order of the rows."""
        return [row.runs for row in self.rows if row.runs]

    @cached_property
    def failures(self) -> list[str]:
        """A line for every trial that failed."""
        return [
            f"{_named(row.values) or self.name}, seed {seed}: {reason}"
            for row in self.rows
            for seed, reason in row.failed.items()
        ]


def sweep_result(trials: Sequence[Trial], failed: Mapping[Path, str]) -> SweepResult:
    """Read what the trials of a sweep left.

    Args:
        trials: All of them.
        failed: Why trials failed that did in this session, by directory.
    """
    first = trials[0].experiment
    score = SCORES[first.task.name][0]
    by_values: dict[tuple[tuple[str, Scalar], ...], list[Trial]] = {}
    for trial in trials:
        by_values.setdefault(tuple(trial.values.items()), []).append(trial)
    rows = [_row(group, failed) for group in by_values.values()]
    data = [data_of(setting_of(group[0].experiment)) for group in by_values.values()]

    def order(row: Row) -> tuple[int, float]:
        if row.runs is None:
            return 2, 0.0
        return int(not row.complete), -score.rank(row.runs.mean(score.val_key).mean)

    return SweepResult(
        first.run.name,
        score,
        list(trials[0].values),
        sorted({trial.experiment.run.seed for trial in trials}),
        sorted(rows, key=order),
        not varied(data),
    )


def result_table(result: SweepResult) -> Table:
    """Return the settings for the terminal."""
    table = Table(
        title=f"By mean validation {result.score.label}; the test score decides nothing",
        title_justify="left",
        box=SIMPLE,
        padding=(0, 1, 0, 0),
    )
    header, rows = _cells(result)
    for name in header:
        table.add_column(name, justify="left" if name in result.keys else "right")
    for cells in rows:
        table.add_row(*map(escape, cells))
    return table


def best_settings(row: Row) -> str:
    """Return a setting as arguments of ``graphcl run``, quoted for a shell."""
    return " ".join(f"--set {shlex.quote(f'{k}={_text(v)}')}" for k, v in row.values.items())


def explain(result: SweepResult) -> list[str]:
    """Return what a reader must know of the table, a sentence or two each."""
    count = len(result.seeds)
    notes = [
        f"Means over {count} seed{'s'[: count > 1]} at each run's best validation round; ± is half "
        "a 95 % interval of the mean by Student's t"
        + (", which a single seed does not have." if count == 1 else ".")
    ]
    if not result.comparable:
        notes.append(
            "The settings differ in their data or partition: no score tells which is best."
        )
    elif result.best and count > 1:
        notes.append(
            "The best of several means is partly luck: its validation score is too good by some. "
            "graphcl compare with this folder tests the differences on test data."
        )
    return notes


def write_result(result: SweepResult, out: Path) -> None:
    """Write ``sweep.json``, ``sweep.md`` and ``sweep.png`` into the sweep's folder."""
    write_json(out / SWEEP_FILE, _json(result, out))
    (out / "sweep.md").write_text(_markdown(result), encoding="utf-8")
    if result.settings:
        plot_settings(result.settings, result.keys, result.score, out / "sweep.png")


def _row(trials: Sequence[Trial], failed: Mapping[Path, str]) -> Row:
    runs: dict[int, FinishedRun] = {}
    reasons: dict[int, str] = {}
    waiting = []
    for trial in trials:
        seed = trial.experiment.run.seed
        if trial.directory in failed:
            reasons[seed] = failed[trial.directory]
        elif not trial.finished:
            waiting.append(seed)
        else:
            try:
                [runs[seed]] = finished_runs(trial.directory)
            except GraphCLError as error:
                reasons[seed] = str(error)
    setting = setting_of(trials[0].experiment)
    return Row(trials[0].values, SettingRuns(setting, runs) if runs else None, reasons, waiting)


def _cells(result: SweepResult) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of the table, as text."""
    label = result.score.label
    extra = _extra(result)
    header = [
        *result.keys,
        "seeds",
        f"val {label}",
        f"test {label}",
        *(f"test {score.label}" for score in extra),
        "sent",
        "time",
    ]
    rows = []
    for row in result.rows:
        done = len(row.runs.runs) if row.runs else 0
        seeds = f"{done}" if row.complete else f"{done} of {len(result.seeds)}"
        figures = [DASH] * (len(header) - len(result.keys) - 1)
        if row.runs:
            figures = [
                interval(row.runs.mean(result.score.val_key), result.score),
                interval(row.runs.mean(result.score.key), result.score),
                *(interval(row.runs.mean(score.key), score) for score in extra),
                size(row.runs.sent_bytes),
                duration(row.runs.seconds),
            ]
        rows.append([*(_text(row.values[key]) for key in result.keys), seeds, *figures])
    return header, rows


def _extra(result: SweepResult) -> list[Score]:
    """Return the further scores that every setting with a finished trial has."""
    if not result.settings:
        return []
    first, *others = (setting.scores for setting in result.settings)
    return [score for score in first[1:] if not score.detail and all(score in o for o in others)]


def _json(result: SweepResult, out: Path) -> dict[str, Any]:
    return {
        "name": result.name,
        "score": result.score.key,
        "better": result.score.better,
        "keys": list(result.keys),
        "seeds": list(result.seeds),
        "best": dict(result.best.values) if result.best else None,
        "settings": [
            {
                "values": dict(row.values),
                **(setting_json(row.runs, out) if row.runs else {}),
                "failed": {str(seed): reason for seed, reason in row.failed.items()},
                "waiting": list(row.waiting),
            }
            for row in result.rows
        ],
    }


def _markdown(result: SweepResult) -> str:
    header, rows = _cells(result)
    lines = [f"# Sweep of {result.name}", ""]
    table = [header, ["---"] * len(header), *rows]
    lines += [f"| {' | '.join(c.replace('|', chr(92) + '|') for c in cells)} |" for cells in table]
    lines += ["", *explain(result)]
    if result.best:
        lines += ["", f"Best on validation: `{best_settings(result.best)}`"]
    lines += ["", *(f"- failed: {line}" for line in result.failures)]
    waiting = sum(len(row.waiting) for row in result.rows)
    if waiting:
        lines.append(f"- {waiting} trials are still to be run: give the same command again")
    return "\n".join(lines).rstrip() + "\n"


def _named(values: Mapping[str, Scalar]) -> str:
    return ", ".join(f"{key}={_text(value)}" for key, value in values.items())


def _text(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
