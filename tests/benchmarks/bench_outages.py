"""CPU seconds per epoch and peak memory of SA-HGNN against locations and events of storms.

Width 32, all events in one step up to eight. Every case runs in a fresh process on one thread;
``forecast`` is one storm at all locations, its graph included.

Run with ``python tests/benchmarks/bench_outages.py [--plot FILE.png]``; it takes some minutes.
"""

import argparse
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from measuring import in_fresh_process, numbers, peak, slope

from graphcl.datasets import simulate_storms
from graphcl.outages import SAHGNN, SAHGNNConfig


class Case(NamedTuple):
    """How much there is to learn from."""

    locations: int
    events: int


BY_LOCATIONS = [Case(1_000, 8), Case(10_000, 8), Case(100_000, 8)]
BY_EVENTS = [Case(10_000, 8), Case(10_000, 16), Case(10_000, 32)]


class Figures(NamedTuple):
    """What a case costs: seconds, seconds, MiB."""

    epoch: float
    forecast: float
    peak: float


def measure(case: Case) -> Figures:
    """Train and forecast in this process."""
    events = simulate_storms(case.locations, case.events).events
    stamps: list[float] = []
    model = SAHGNN(SAHGNNConfig(epochs=3))
    model.fit(events, lambda *_: stamps.append(time.process_time()))
    start = time.process_time()
    model.predict(events.of([0]))
    forecast = time.process_time() - start
    return Figures(statistics.median(b - a for a, b in pairwise(stamps)), forecast, peak())


def shown(case: Case) -> Figures:
    """Return a case's figures, printed as a row of the table."""
    figures = Figures(*numbers(in_fresh_process(__file__, *case)))
    print(
        f"{case.locations:>9,}{case.events:>8}{figures.epoch:>10.2f}{figures.forecast:>12.2f}"
        f"{figures.peak:>10.0f}",
        flush=True,
    )
    return figures


def draw(path: Path, results: dict[Case, Figures]) -> None:
    """Draw seconds and memory against locations and events, on logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    locations = [case.locations for case in BY_LOCATIONS]
    axes[0].loglog(locations, [results[case].epoch for case in BY_LOCATIONS], "o-")
    axes[0].set(xlabel="locations, 8 events", ylabel="seconds per epoch")
    axes[1].loglog(locations, [results[case].peak for case in BY_LOCATIONS], "o-")
    axes[1].set(xlabel="locations, 8 events", ylabel="MiB")
    events = [case.events for case in BY_EVENTS]
    axes[2].loglog(events, [results[case].epoch for case in BY_EVENTS], "o-")
    axes[2].set(xlabel="events, 10,000 locations", ylabel="seconds per epoch")
    figure.savefig(path, dpi=150)


def main() -> None:
    """Print one table, fit the slopes, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", type=Path, help="a PNG to draw the curves into")
    parser.add_argument("--case", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        torch.set_num_threads(1)
        print(*measure(Case(*options.case)))
        return
    print(f"{'locations':>9}{'events':>8}{'epoch s':>10}{'forecast s':>12}{'peak MiB':>10}")
    results = {case: shown(case) for case in dict.fromkeys(BY_LOCATIONS + BY_EVENTS)}
    by_locations = [results[case].epoch for case in BY_LOCATIONS]
    by_events = [results[case].epoch for case in BY_EVENTS]
    print(f"epoch ~ locations^{slope([c.locations for c in BY_LOCATIONS], by_locations):.2f}")
    print(f"epoch ~ events^{slope([c.events for c in BY_EVENTS], by_events):.2f}")
    if options.plot:
        draw(options.plot, results)


if __name__ == "__main__":
    main()
