"""CPU seconds per epoch and peak memory of ASPECT against nodes and edges of generated graphs.

Contextual block models with communities of a hundred nodes, 80 % of the edges inside them; width
128, order 10. Every case runs in a fresh process on one thread. ``fit`` and ``embed`` are peaks of
the process up to the end of each; embedding is always of the whole graph. ``kept`` is the share of
the edges that are inside a batch.

Run with ``python tests/benchmarks/bench_scale.py [--plot FILE.png] [--quick]``.
"""

import argparse
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from measuring import in_fresh_process, numbers, peak, slope

from graphcl.datasets import contextual_sbm
from graphcl.nodes import ASPECT, ASPECTConfig
from graphcl.nodes.batches import NodeBatches
from graphcl.nodes.prepared import prepare

COMMUNITY, FEATURES, WIDTH = 100, 32, 128


class Case(NamedTuple):
    """A graph and how it is trained on; ``batch`` 0 is the whole graph."""

    nodes: int
    degree: int
    batch: int = 0


BY_NODES = [Case(10_000, 10), Case(100_000, 10), Case(1_000_000, 10)]
BY_EDGES = [Case(100_000, 5), Case(100_000, 10), Case(100_000, 20), Case(100_000, 50)]
BATCHED = [Case(100_000, 10, 50_000), Case(1_000_000, 10, 50_000)]


class Figures(NamedTuple):
    """What a case costs: seconds, MiB, and the share of edges inside a batch."""

    epoch: float
    fit: float
    embed_seconds: float
    embed: float
    kept: float


def measure(case: Case) -> Figures:
    """Train and embed in this process."""
    data = contextual_sbm(
        case.nodes, case.nodes // COMMUNITY, FEATURES, avg_degree=case.degree, homophily=0.8
    )
    epochs = 2 if case.nodes > 100_000 else 3
    config = ASPECTConfig(hidden_channels=WIDTH, batch_nodes=case.batch, epochs=epochs)
    stamps: list[float] = []
    method = ASPECT(config).fit(data, lambda *_: stamps.append(time.process_time()))
    fit = peak()
    start = time.process_time()
    method.embed(data)
    embed_seconds, embed = time.process_time() - start, peak()
    graph = prepare(data)
    inside = sum(b.pattern.num_edges for b in NodeBatches(graph, case.batch, config.seed))
    epoch = statistics.median(b - a for a, b in pairwise(stamps))
    return Figures(epoch, fit, embed_seconds, embed, inside / graph.pattern.num_edges)


def shown(case: Case) -> Figures:
    """Return a case's figures, printed as a row of the table."""
    figures = Figures(*numbers(in_fresh_process(__file__, *case)))
    print(
        f"{case.nodes:>9,}{case.degree:>8}{case.batch or 'whole':>8}{figures.kept:>6.2f}"
        f"{figures.epoch:>10.2f}{figures.fit:>9.0f}{figures.embed_seconds:>10.2f}"
        f"{figures.embed:>11.0f}",
        flush=True,
    )
    return figures


def draw(path: Path, results: dict[Case, Figures]) -> None:
    """Draw seconds and memory against nodes, and seconds against edges, on logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    batched = [case for case in BATCHED if case in results]
    for axis, field, label in ((axes[0], "epoch", "seconds per epoch"), (axes[1], "fit", "MiB")):
        for cases, name in ((BY_NODES, "whole graph"), (batched, "batches of 50,000")):
            shown = [case for case in cases if case in results]
            values = [getattr(results[case], field) for case in shown]
            axis.loglog([case.nodes for case in shown], values, "o-", label=name)
        axis.set(xlabel="nodes, degree 10", ylabel=label)
        axis.legend()
    shown = [case for case in BY_EDGES if case in results]
    edges = [case.nodes * case.degree / 2 for case in shown]
    axes[2].loglog(edges, [results[case].epoch for case in shown], "o-")
    axes[2].set(xlabel="edges, 100,000 nodes", ylabel="seconds per epoch")
    figure.savefig(path, dpi=150)


def main() -> None:
    """Print one table, fit the slopes, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", type=Path, help="a PNG to draw the curves into")
    parser.add_argument("--quick", action="store_true", help="leave a million nodes out")
    parser.add_argument("--case", type=int, nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        torch.set_num_threads(1)
        print(*measure(Case(*options.case)))
        return
    print(
        f"{'nodes':>9}{'degree':>8}{'batch':>8}{'kept':>6}{'epoch s':>10}{'fit MiB':>9}"
        f"{'embed s':>10}{'embed MiB':>11}"
    )
    results = {
        case: shown(case)
        for case in dict.fromkeys(BY_NODES + BY_EDGES + BATCHED)
        if case.nodes < 1_000_000 or not options.quick
    }
    nodes = [case for case in BY_NODES if case in results]
    print(f"epoch ~ nodes^{slope([c.nodes for c in nodes], [results[c].epoch for c in nodes]):.2f}")
    edges = [case.nodes * case.degree / 2 for case in BY_EDGES]
    print(
        f"epoch ~ edges^{slope(edges, [results[c].epoch for c in BY_EDGES]):.2f} at 100,000 nodes"
    )
    if options.plot:
        draw(options.plot, results)


if __name__ == "__main__":
    main()
