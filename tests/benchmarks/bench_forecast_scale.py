"""Cost of SC-FSGL against sensors, dense beside sparse, and of a federation against clients.

First table: two steps of diffusion along and against the edges, forward and backward, for a batch
of 16 windows of width 64; and an epoch of 64 windows of SC-FSGL, width 64.  Graphs are of points in
a square, each joined to its four nearest.  Second table (``--clients``): a federation of simulated
clients of 20 sensors under SC-FSGL, in one process, one round after the first.  Every case runs in
a fresh process on one thread.

    python tests/benchmarks/bench_forecast_scale.py [--plot FILE.png] [--sizes 200,500]
    python tests/benchmarks/bench_forecast_scale.py --clients [--plot FILE.png] [--sizes 5,20]
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from measuring import in_fresh_process, numbers, peak, slope
from scipy.spatial import cKDTree

from federation.experiment import Experiment
from graphcl.datasets import SpatioTemporalSeries
from graphcl.spatiotemporal import SCFSGL, Diffusion, SCFSGLConfig, propagation
from graphcl.spatiotemporal.samples import SampleBatches
from simulations.run import execute, prepare

NODES = (50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)
CLIENTS = (5, 20, 100, 500)
STORAGES = ("dense", "sparse")
WINDOWS, BATCH, WIDTH, NEIGHBORS = 64, 16, 64, 4
HISTORY = HORIZON = 12


class Figures(NamedTuple):
    """Seconds of a diffusion, seconds of an epoch, MiB."""

    diffusion: float
    epoch: float
    peak: float


class Round(NamedTuple):
    """Seconds of a round, MiB, bytes that a client sends in one."""

    seconds: float
    peak: float
    sent: float


def measure(nodes: int, storage: str) -> Figures:
    """Diffuse and train in this process."""
    series = _series(nodes)
    propagation.DENSE_BELOW = nodes + 1 if storage == "dense" else 0
    diffusion = Diffusion.of(series)
    x = torch.randn(BATCH, nodes, WIDTH, requires_grad=True)
    walk = _seconds(lambda: sum(hop.sum() for hop in diffusion.hops(x, 2)).backward())
    model = SCFSGL(SCFSGLConfig(hidden_channels=WIDTH)).start(series).train()
    batches = SampleBatches(model.windows(series), model.scaler, BATCH, 0)
    optimizer = model.optimizer()

    def epoch() -> None:
        for sample in batches:
            optimizer.zero_grad()
            torch.stack(tuple(model.loss(sample).values())).sum().backward()
            optimizer.step()

    return Figures(walk, _seconds(epoch), peak())


def _series(nodes: int) -> SpatioTemporalSeries:
    rng = np.random.default_rng(0)
    place = rng.uniform(size=(nodes, 2))
    nearest = cKDTree(place).query(place, NEIGHBORS + 1)[1][:, 1:]
    edges = np.stack([np.repeat(np.arange(nodes), NEIGHBORS), nearest.ravel()])
    steps = WINDOWS + HISTORY + HORIZON - 1
    return SpatioTemporalSeries(
        name=f"{nodes} points",
        values=torch.from_numpy(rng.standard_normal((steps, nodes, 1)).astype(np.float32)),
        channel_names=("signal [1]",),
        node=tuple(map(str, range(nodes))),
        edge_index=torch.from_numpy(edges),
        edge_weight=torch.ones(edges.shape[1]),
        start=np.datetime64("2024-01-01", "s"),
        interval=300,
    )


def _seconds(act: Callable[[], object]) -> float:
    """Return the median seconds of three goes after a first one."""
    act()
    stamps = [time.process_time()]
    for _ in range(3):
        act()
        stamps.append(time.process_time())
    return statistics.median(np.diff(stamps).tolist())


def federate(clients: int) -> Round:
    """Run a federation of some rounds in this process."""
    experiment = Experiment.from_flat(
        {
            "run.rounds": 3,
            "run.evaluate_every": 3,
            "task.name": "forecast",
            "data.source": "confounded",
            "data.series.steps": 600,
            "partition.scheme": "natural",
            "partition.clients": clients,
            "model.embedding_channels": 32,
            "train.epochs": 1,
            "train.learning_rate": 0.002,
            "strategy.name": "scfsgl",
            "simulation.engine": "local",
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        directory, _ = prepare(experiment, Path(folder))
        (outcome,) = execute(directory)
        lines = (outcome.directory / "metrics.jsonl").read_text().splitlines()
    rounds = [line for line in map(json.loads, lines) if line["kind"] == "round"]
    return Round(rounds[1]["seconds"], peak(), rounds[1]["bytes_up"] / clients)


def by_nodes(nodes: list[int], plot: Path | None) -> None:
    """Print the first table and where the lines cross."""
    print(f"torch {torch.__version__}, one thread")
    print(f"{'nodes':>7}{'storage':>9}{'diffusion ms':>14}{'epoch s':>9}{'peak MiB':>10}")
    found: dict[str, dict[int, Figures]] = {storage: {} for storage in STORAGES}
    for size in nodes:
        for storage in STORAGES:
            figures = Figures(*numbers(in_fresh_process(__file__, size, storage)))
            found[storage][size] = figures
            print(
                f"{size:>7,}{storage:>9}{1000 * figures.diffusion:>14.1f}{figures.epoch:>9.2f}"
                f"{figures.peak:>10.0f}",
                flush=True,
            )
    for storage, rows in found.items():
        large = [n for n in nodes if n >= 1_000] or nodes
        grown = slope(large, [rows[n].epoch for n in large])
        print(f"{storage}: epoch ~ nodes^{grown:.2f} from {large[0]:,} nodes")
    wins = [n for n in nodes if found["dense"][n].epoch < found["sparse"][n].epoch]
    print(f"dense is the faster one up to {max(wins, default=0):,} nodes")
    if plot:
        lines = {
            f"{field}, {storage}": [getattr(f, field) for f in rows.values()]
            for field in ("epoch", "diffusion")
            for storage, rows in found.items()
        }
        memory = {storage: [f.peak for f in rows.values()] for storage, rows in found.items()}
        draw(plot, "sensors", nodes, lines, memory)


def by_clients(clients: list[int], plot: Path | None) -> None:
    """Print the second table."""
    print(f"{'clients':>8}{'round s':>9}{'peak MiB':>10}{'kB up per client':>18}")
    found = []
    for number in clients:
        found.append(Round(*numbers(in_fresh_process(__file__, number))))
        seconds, held, sent = found[-1]
        print(f"{number:>8}{seconds:>9.2f}{held:>10.0f}{sent / 1000:>18.1f}", flush=True)
    print(f"round ~ clients^{slope(clients, [f.seconds for f in found]):.2f}")
    if plot:
        lines = {"round": [f.seconds for f in found]}
        draw(plot, "clients", clients, lines, {"process": [f.peak for f in found]})


def draw(
    path: Path, along: str, x: list[int], lines: dict[str, list[float]], memory: dict[str, list]
) -> None:
    """Draw seconds and memory, on logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, drawn, label in ((axes[0], lines, "seconds"), (axes[1], memory, "MiB")):
        for name, y in drawn.items():
            axis.loglog(x, y, "o-", label=name)
        axis.set(xlabel=along, ylabel=label)
        axis.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Print a table, fit the slopes, and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", action="store_true", help="the table of a federation")
    parser.add_argument("--sizes", help="sensors, or clients, instead of those of the table")
    parser.add_argument("--plot", type=Path, help="a PNG to draw the curves into")
    parser.add_argument("--case", nargs="+", help=argparse.SUPPRESS)
    told = parser.parse_args()
    torch.set_num_threads(1)
    if told.case:
        size, *storage = told.case
        print(*(measure(int(size), *storage) if storage else federate(int(size))))
        return
    sizes = [int(size) for size in told.sizes.split(",")] if told.sizes else None
    if told.clients:
        by_clients(sizes or list(CLIENTS), told.plot)
    else:
        by_nodes(sizes or list(NODES), told.plot)


if __name__ == "__main__":
    main()
