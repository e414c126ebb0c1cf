"""The plots of a report: what is drawn, and how to read it."""

import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgb
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from federation.partition import PartitionReport
from federation.scores import Score
from simulations.report.drawing import INK, LOOKS, MUTED, SHADE, Plot, draw
from simulations.report.reading import RoundLine, RunReading, StrategyRun
from simulations.report.units import scored, size

_MANY_RUNS = 3  # beyond which validation curves would only confuse
MOST_ROWS = 500  # of clients that are shown each on its own
_MANY_CLIENTS = 25  # beyond which not every row has a label
_MANY_CLASSES = 12  # beyond which cells are too narrow for numbers
_FAR_APART = 20  # the ratio from which amounts need a logarithmic scale


def score_curves(runs: Sequence[StrategyRun], score: Score) -> Plot | None:
    """Draw what the runs are judged by over the rounds; None before anything was evaluated."""
    runs = [run for run in runs if run.evaluated]
    if not runs:
        return None
    with_validation = len(runs) <= _MANY_RUNS

    def paint(axes: Axes) -> None:
        for run in runs:
            if with_validation:
                validated = [line.scores[score.val_key] for line in run.evaluated]
                _curve(axes, run, run.evaluated, validated, thin=True)
            _curve(axes, run, run.evaluated, [line.scores[score.key] for line in run.evaluated])
            _mark_best(axes, run, lambda line: line.scores[score.key])
        _ticks(axes.yaxis, score)
        _rounds(axes)

    tops = [
        f"{run.name} {scored(run.best.scores[score.key], score)} at round {run.best.round}"
        for run in runs
        if run.best
    ]
    return draw(
        score.key,
        f"Test {score.label}",
        f"Test {score.label} over the rounds. At the best validation round: {'; '.join(tops)}.",
        f"Mean over the clients, weighted by their test examples; {score.better} is better, and "
        f"the mark is the round with the best validation {score.label}"
        + (", which is the thin dashed line." if with_validation else "."),
        paint,
    )


def loss_curves(runs: Sequence[StrategyRun]) -> Plot | None:
    """Draw the training loss over the rounds; None before anything was trained."""
    runs = [run for run in runs if run.trained]
    if not runs:
        return None

    def paint(axes: Axes) -> None:
        for run in runs:
            losses = [line.loss for line in run.trained if line.loss is not None]
            _curve(axes, run, run.trained, losses)
            _mark_best(axes, run, lambda line: line.loss)
        _rounds(axes)

    ends = [f"{run.name} {run.trained[-1].loss:.3g}" for run in runs]
    return draw(
        "loss",
        "Training loss",
        f"Training loss over the rounds. In the last round: {'; '.join(ends)}.",
        "Mean over the clients, weighted by their training examples; compare the shapes and not "
        "the heights, as every strategy adds terms of its own to the loss.",
        paint,
    )


def score_over_time(runs: Sequence[StrategyRun], score: Score) -> Plot | None:
    """Draw what the runs are judged by over virtual time; None where none was simulated."""
    timed = {run.name: _timed(run, score) for run in runs}
    runs = [run for run in runs if timed[run.name]]
    if not runs:
        return None

    def paint(axes: Axes) -> None:
        for run in runs:
            axes.plot(*zip(*timed[run.name], strict=True), color=LOOKS[run.name].light, lw=1.7)
        _ticks(axes.yaxis, score)
        axes.set_xlabel("virtual seconds")
        axes.margins(x=0.02)
        axes.grid(axis="y")

    ends = [f"{run.name} {timed[run.name][-1][0]:.3g} s" for run in runs]
    return draw(
        "time",
        f"Test {score.label} over virtual time",
        f"Test {score.label} over the simulated devices' time. The last round ends at: "
        f"{'; '.join(ends)}.",
        "Time as devices of the drawn speeds would take it, of which one of median speed passes "
        "over a thousand samples in a second; sending takes none.",
        paint,
    )


def _timed(run: StrategyRun, score: Score) -> list[tuple[float, float]]:
    return [
        (line.virtual_seconds, line.scores[score.key])
        for line in run.evaluated
        if line.virtual_seconds is not None
    ]


def client_dots(reading: RunReading) -> Plot | None:
    """Draw every client's score at the best round; None before anything was evaluated."""
    runs = [run for run in reading.runs if run.client_scores]
    if not runs:
        return None
    score = reading.scores[0]
    count = reading.num_clients
    if count > MOST_ROWS:
        return _client_ranks(runs, score, count)

    def paint(axes: Axes) -> None:
        shifts = np.linspace(-0.2, 0.2, len(runs)) if len(runs) > 1 else [0.0]
        for client in range(count):
            values = [run.client_scores[client] for run in runs if client in run.client_scores]
            if values:
                axes.plot(
                    [min(values), max(values)],
                    [client] * 2,
                    color=MUTED,
                    alpha=0.45,
                    lw=1,
                    zorder=1,
                )
        for run, shift in zip(runs, shifts, strict=True):
            look = LOOKS[run.name]
            axes.scatter(
                list(run.client_scores.values()),
                [client + shift for client in run.client_scores],
                s=34 if count <= _MANY_CLIENTS else 12,
                color=look.light,
                marker=look.marker,
                linewidths=0,
                alpha=0.9,
                zorder=2,
            )
        _ticks(axes.xaxis, score)
        axes.grid(axis="x")
        _client_rows(axes, reading)

    return draw(
        "clients",
        f"Test {score.label} of every client",
        f"Test {score.label} of {count} clients. The worst: {_worst(runs, score)}.",
        f"One row per client{_row_names(reading)}, one mark per strategy at its best validation "
        f"round; the further {'right' if score.better == 'higher' else 'left'} the better, and a "
        "long line is a client to whom the choice matters.",
        paint,
        _rows_height(count),
    )


def _client_ranks(runs: Sequence[StrategyRun], score: Score, count: int) -> Plot:
    """Draw the scores of more clients than there could be rows, from the worst to the best."""

    def paint(axes: Axes) -> None:
        for run in runs:
            scores = np.sort(list(run.client_scores.values()))
            scores = scores if score.better == "higher" else scores[::-1]
            shares = np.linspace(0, 1, len(scores))
            points = np.linspace(0, len(scores) - 1, min(len(scores), MOST_ROWS)).round()
            places = points.astype(int)
            look = LOOKS[run.name]
            axes.plot(100 * shares[places], scores[places], color=look.light, linewidth=1.7)
        axes.set_xlabel("clients, % from the worst on")
        _ticks(axes.yaxis, score)
        axes.grid(axis="y")

    return draw(
        "clients",
        f"Test {score.label} of all clients",
        f"Test {score.label} of {count} clients. The worst: {_worst(runs, score)}.",
        "All clients of a strategy at its best validation round, from the worst on the left to the "
        "best: a point says how many percent of them do no better.",
        paint,
    )


def _worst(runs: Sequence[StrategyRun], score: Score) -> str:
    return "; ".join(
        f"{run.name} client {run.worst_client[1]} with {scored(run.worst_client[0], score)}"
        for run in runs
        if run.worst_client
    )


def class_shares(reading: RunReading, partition: PartitionReport) -> Plot | None:
    """Draw which classes every client holds; None without classes, or room for a row each."""
    counts = np.array([client.class_counts for client in partition.clients])
    num_clients, num_classes = counts.shape
    if not num_classes or num_clients > MOST_ROWS:
        return None
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    with_numbers = num_clients <= _MANY_CLIENTS and num_classes <= _MANY_CLASSES
    what = reading.classified

    def paint(axes: Axes) -> None:
        shade = np.empty((num_clients, num_classes, 4))
        shade[..., :3] = to_rgb(SHADE)
        shade[..., 3] = 0.04 + 0.86 * shares / max(shares.max(), 1e-9)
        axes.pcolormesh(
            np.arange(num_classes + 1) - 0.5,
            np.arange(num_clients + 1) - 0.5,
            shade,
            edgecolors="none",
        )
        if with_numbers:
            for client, label in itertools.product(range(num_clients), range(num_classes)):
                if amount := counts[client, label]:
                    axes.text(label, client, str(amount), size=8.5, ha="center", va="center")
        axes.set_xlabel("class")
        axes.xaxis.set_major_locator(MaxNLocator(min(num_classes, _MANY_CLASSES), integer=True))
        axes.set_xlim(-0.5, num_classes - 0.5)
        axes.spines[:].set_visible(False)
        _client_rows(axes, reading)

    return draw(
        "partition",
        "Classes of every client",
        f"How the {what} of {num_classes} classes lie on {num_clients} clients; "
        f"{int((counts == 0).sum())} of {counts.size} combinations are empty.",
        f"The stronger the colour, the larger the class's share of the client's {what}"
        + (f"; the number counts the {what}." if with_numbers else "."),
        paint,
        _rows_height(num_clients),
    )


def bytes_per_round(runs: Sequence[StrategyRun]) -> Plot | None:
    """Draw the bytes of every round; None before the first."""
    return _bytes_plot(
        runs,
        "bytes",
        "Bytes per round",
        "Solid lines (a lone round: filled marks) go up to the server, dashed lines (hollow marks) "
        "down to the clients; training messages only, summed over the clients of the round.",
        list,
    )


def bytes_in_total(runs: Sequence[StrategyRun]) -> Plot | None:
    """Draw the bytes up to every round; None before the first."""
    return _bytes_plot(
        runs,
        "total",
        "Bytes in total",
        "The same, added up from the first round on: where a line ends is what the run cost.",
        itertools.accumulate,
    )


def _bytes_plot(
    runs: Sequence[StrategyRun],
    name: str,
    title: str,
    caption: str,
    gather: Callable[[Iterable[int]], Iterable[int]],
) -> Plot | None:
    runs = [run for run in runs if run.rounds]
    if not runs:
        return None
    totals = [total for run in runs for total in (run.bytes_up, run.bytes_down) if total]
    logarithmic = bool(totals) and max(totals) > _FAR_APART * min(totals)

    def paint(axes: Axes) -> None:
        for run in runs:
            up = list(gather(line.bytes_up for line in run.rounds))
            down = list(gather(line.bytes_down for line in run.rounds))
            _curve(axes, run, run.rounds, up)
            _curve(axes, run, run.rounds, down, style=(0, (4, 2)))
        if logarithmic:
            axes.set_yscale("log", nonpositive="mask")
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value)))
        _rounds(axes)

    sums = [f"{run.name} {size(run.bytes_up)} up, {size(run.bytes_down)} down" for run in runs]
    scale = " The scale is logarithmic: every step is a factor of ten." if logarithmic else ""
    return draw(
        name, title, f"{title}. Over all rounds: {'; '.join(sums)}.", caption + scale, paint
    )


def _curve(
    axes: Axes,
    run: StrategyRun,
    lines: Sequence[RoundLine],
    values: Sequence[float],
    *,
    thin: bool = False,
    style: str | tuple[int, tuple[int, int]] = "-",
) -> None:
    """Draw one curve of a strategy; a single point, which no line shows, gets a marker."""
    look = LOOKS[run.name]
    axes.plot(
        [line.round for line in lines],
        values,
        color=look.light,
        linestyle=(0, (3, 2)) if thin else style,
        linewidth=0.9 if thin else 1.7,
        alpha=0.6 if thin else 1.0,
        marker=look.marker if len(lines) == 1 else "",
        markersize=6,
        markerfacecolor=look.light if style == "-" else "none",
    )


def _mark_best(axes: Axes, run: StrategyRun, value: Callable[[RoundLine], float | None]) -> None:
    if run.best is not None and (height := value(run.best)) is not None:
        look = LOOKS[run.name]
        axes.plot(
            run.best.round,
            height,
            color=look.light,
            marker=look.marker,
            markersize=8,
            markeredgecolor=INK,
            markeredgewidth=1,
            zorder=5,
        )


def _ticks(axis: Axis, score: Score) -> None:
    if score.percent:
        axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g}%"))


def _rounds(axes: Axes) -> None:
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axes.margins(x=0.02)
    axes.grid(axis="y")


def _client_rows(axes: Axes, reading: RunReading) -> None:
    """Make the vertical axis one row per client, the first on top."""
    count = reading.num_clients
    if count <= _MANY_CLIENTS:
        examples = reading.test_examples
        labels = [
            f"{client} · {reading.encoder(client)}"
            + (f" · {examples[client]}" if client in examples else "")
            for client in range(count)
        ]
        axes.set_yticks(range(count), labels)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(10, integer=True))
        axes.set_ylabel("client")
    axes.tick_params(axis="y", length=0, labelcolor=MUTED)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(count - 0.5, -0.5)


def _row_names(reading: RunReading) -> str:
    """Return what the label of a row holds, in words."""
    named = reading.num_clients <= _MANY_CLIENTS
    return " (number, encoder, test examples)" if named and reading.test_examples else ""


def _rows_height(count: int) -> float:
    row = 24 if count <= _MANY_CLIENTS else max(6.0, 600 / count)
    return round(60 + row * max(count, 3))
