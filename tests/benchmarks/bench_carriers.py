"""What a client update costs on each carrier, and what a federation of many clients costs.

One table: milliseconds and processor milliseconds per client update, start-up, peak memory of all
processes and bytes on the wire, for three workloads, several numbers of clients, and the three
carriers side by side, each in a fresh process:

- ``mlp``: clients of 64 samples, a perceptron 32-64-10 with a linear head, FedAvg with 3 epochs;
- ``cora``: clients of 27 nodes or more of Cora, a two-layer GCN each, FedAvg with 3 epochs; beyond
  100 clients Cora is there several times, so that a client still has a graph;
- ``feddbp``: the data of ``mlp``, but every client keeps a model and Adam's moments of its own;
- ``mlp-batch`` and ``feddbp-batch``: the same without dropout, ten clients as one batch
  (``simulation.batch_clients``), beside Flower's engine, which has no such thing, with the same
  clients alone.

A round trains a twentieth of the clients, at least 20. Wall-clock figures are medians over the
rounds between the first, which starts workers, and the last, which evaluates all clients. Times
of all processes are what to compare on a machine that others use too.

Run with ``python tests/benchmarks/bench_carriers.py``; ``--help`` tells how to choose less. Nothing
is asserted but that the carriers end in the same digest.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from family import Family
from measuring import slope
from torch_geometric.data import Data

from federation.experiment import Experiment, Scalar
from graphcl.datasets import load, save_npz

ENGINES = ("local", "ray", "flower")
SIZES = (10, 100, 1_000, 10_000)

_TABULAR: dict[str, Scalar] = {
    "data.source": "csbm",
    "data.csbm.classes": 10,
    "data.csbm.features": 32,
    "partition.alpha": 100000.0,
    "model.encoders": "mlp",
    "model.hidden_channels": 64,
    "model.embedding_channels": 10,
}
WORKLOADS: dict[str, dict[str, Scalar]] = {
    "mlp": {**_TABULAR, "strategy.name": "fedavg", "train.optimizer": "sgd"},
    "cora": {
        "partition.alpha": 100000.0,
        "model.encoders": "gcn",
        "train.learning_rate": 0.005,
        "strategy.name": "fedavg",
    },
    "feddbp": {**_TABULAR, "strategy.name": "feddbp"},
}
_BATCH: dict[str, Scalar] = {"model.dropout": 0.0, "simulation.batch_clients": 10}
BATCHED = {f"{name}-batch": {**WORKLOADS[name], **_BATCH} for name in ("mlp", "feddbp")}
WORKLOADS |= BATCHED
_NODES = {"mlp": 64, "cora": 27, "feddbp": 64}


@dataclass
class Figures:
    """What one run cost.

    Attributes:
        update_ms: Seconds of a round over its client updates, median, in ms.
        processor_ms: Processor time of all processes over client updates, in ms.
        startup_s: From the command to the start of the first round.
        wall_s: The whole command, with evaluation and end.
        peak_mib: Most memory of all processes at once.
        kib_per_update: What went down and up, by client update.
        digest: Of all that was computed.
    """

    update_ms: float
    processor_ms: float
    startup_s: float
    wall_s: float
    peak_mib: float
    kib_per_update: float
    digest: str


def cohort(clients: int) -> int:
    """Return how many clients train in a round."""
    return min(clients, max(20, clients // 20))


def experiment(workload: str, clients: int, rounds: int, folder: Path) -> Experiment:
    """Return a workload for a number of clients; writes the graph that it reads into a folder."""
    keys: dict[str, Scalar] = {
        "run.name": f"{workload}-{clients}",
        "run.rounds": rounds,
        "run.evaluate_every": rounds,
        "run.timeout": 3600.0,
        "partition.clients": clients,
        "strategy.fraction": cohort(clients) / clients,
        **WORKLOADS[workload],
    }
    nodes = _NODES[workload.removesuffix("-batch")] * clients
    if workload == "cora":
        keys["data.source"] = str(_copies_of_cora(nodes, folder))
        keys["data.root"] = str(folder)
    else:
        keys["data.csbm.nodes"] = nodes
    return Experiment.from_flat(keys)


def _copies_of_cora(nodes: int, folder: Path) -> Path:
    """Write Cora as often as it takes to have so many nodes."""
    cora = load("graphs/cora.npz")
    copies, size = -(-nodes // cora.num_nodes), cora.num_nodes
    path = folder / f"cora-{copies}.npz"
    if not path.exists():
        edges = torch.cat([cora.edge_index + copy * size for copy in range(copies)], dim=1)
        save_npz(Data(cora.x.repeat(copies, 1), edges, y=cora.y.repeat(copies)), path)
    return path


def measure(run: Experiment, engine: str, actors: int, folder: Path) -> Figures:
    """Run an experiment on one carrier in a fresh process."""
    out = folder / f"{run.run.name}-{engine}"
    config = folder / f"{out.name}.toml"
    config.write_text(run.to_toml())
    command = [sys.executable, "-m", "simulations.cli", "run", str(config), "--out", str(out)]
    command += ["--engine", engine, "--set", f"simulation.actors={actors}"]
    if engine == "flower":
        command += ["--set", "simulation.batch_clients=0"]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    family, marks, written = Family(process.pid), dict[int, tuple[float, float]](), 0
    try:
        while process.poll() is None:
            time.sleep(0.05)
            size = sum(path.stat().st_size for path in out.glob("*/metrics.jsonl"))
            if size > written:  # reading it costs what is to be measured
                written, done = size, len(_rounds(out))
                marks.setdefault(done, (time.perf_counter(), family.processor_seconds()))
    finally:
        family.stop()
    wall = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"{run.run.name} on {engine} failed:\n{process.stderr.read().decode()}")
    rounds = _rounds(out)
    seconds = [line["seconds"] for line in rounds]
    # Rounds may pass faster than they are looked at: then no processor time is known.
    seen = [n for n in marks if 0 < n < len(rounds)] or [min(n for n in marks if n)]
    first, last = min(seen), max(seen)
    summary = json.loads((next(out.iterdir()) / "summary.json").read_text())
    updates = sum(line["ok"] for line in rounds)
    return Figures(
        update_ms=1e3 * statistics.median(seconds[1:-1]) / rounds[0]["cohort"],
        processor_ms=1e3
        * (marks[last][1] - marks[first][1])
        / (sum(line["ok"] for line in rounds[first:last]) or math.nan),
        startup_s=marks[first][0] - started - sum(seconds[:first]),
        wall_s=wall,
        peak_mib=family.peak_mib,
        kib_per_update=(summary["bytes_up"] + summary["bytes_down"]) / updates / 1024,
        digest=summary["digest"],
    )


def _rounds(out: Path) -> list[dict[str, float]]:
    """Return the lines of the rounds that are done so far."""
    lines = [line for path in out.glob("*/metrics.jsonl") for line in path.read_text().split("\n")]
    kept = [line for line in lines if line.endswith("}") and '"kind": "round"' in line]
    return [json.loads(line) for line in kept]


def draw(found: Mapping[tuple[str, int, str], Figures], path: Path) -> None:
    """Draw seconds of the whole run and its peak memory against the number of clients."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    curves = dict.fromkeys((workload, engine) for workload, _, engine in found)
    for axis, name, label in zip(
        axes, ("wall_s", "peak_mib"), ("whole run, s", "peak memory, MiB"), strict=True
    ):
        for workload, engine in curves:
            points = {
                clients: getattr(figures, name)
                for (w, clients, e), figures in found.items()
                if (w, e) == (workload, engine)
            }
            axis.loglog(list(points), list(points.values()), "o-", label=f"{workload}, {engine}")
        axis.set(xlabel="clients", ylabel=label)
    axes[0].legend(fontsize="small")
    figure.savefig(path)


def main() -> None:
    """Print the table; write the plot and the figures if asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clients", nargs="+", type=int, default=list(SIZES), metavar="N")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--flower-limit", type=int, default=1000, help="most clients under Flower")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--actors", type=int, default=os.cpu_count(), help="worker processes")
    parser.add_argument("--plot", type=Path, help="where the plot goes")
    parser.add_argument("--figures", type=Path, help="where the figures go, as JSON")
    chosen = parser.parse_args()
    found: dict[tuple[str, int, str], Figures] = {}
    print(
        f"{'workload':<13}{'clients':>8} {'carrier':<8}{'ms/update':>10}{'faster':>8}"
        f"{'cpu ms/update':>15}{'start-up s':>12}{'run s':>8}{'peak MiB':>10}{'KiB/update':>12}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for workload in chosen.workloads:
            for clients in chosen.clients:
                run = experiment(workload, clients, chosen.rounds, Path(folder))
                _row(run, workload, clients, chosen, found, Path(folder))
    for workload, engine in dict.fromkeys((w, e) for w, _, e in found):
        _growth(workload, engine, found)
    if chosen.plot:
        draw(found, chosen.plot)
    if chosen.figures:
        lines = [[*key, asdict(figures)] for key, figures in found.items()]
        chosen.figures.write_text(json.dumps(lines, indent=1) + "\n")


def _row(
    run: Experiment,
    workload: str,
    clients: int,
    chosen: argparse.Namespace,
    found: dict[tuple[str, int, str], Figures],
    folder: Path,
) -> None:
    """Measure one workload at one size on every carrier, Flower's first, and print it."""
    base: Figures | None = None
    for engine in sorted(chosen.engines):
        head = f"{workload:<13}{clients:>8} {engine:<8}"
        if engine == "flower" and clients > chosen.flower_limit:
            print(f"{head}{f'left out above {chosen.flower_limit} clients':>10}")
            continue
        figures = found[workload, clients, engine] = measure(run, engine, chosen.actors, folder)
        base = figures if engine == "flower" else base
        faster = f"{base.update_ms / figures.update_ms:.2f}" if base else "-"
        print(
            f"{head}{figures.update_ms:>10.2f}{faster:>8}{figures.processor_ms:>15.2f}"
            f"{figures.startup_s:>12.2f}{figures.wall_s:>8.1f}{figures.peak_mib:>10.0f}"
            f"{figures.kib_per_update:>12.2f}",
            flush=True,
        )
    digests = {
        figures.digest
        for (w, n, engine), figures in found.items()
        if (w, n) == (workload, clients) and not (engine == "flower" and workload in BATCHED)
    }
    assert len(digests) == 1, f"the carriers disagree: {digests}"


def _growth(workload: str, engine: str, found: Mapping[tuple[str, int, str], Figures]) -> None:
    """Print how cost grows with the number of clients: the exponent from the largest two sizes."""
    points: Sequence[tuple[int, Figures]] = sorted(
        (n, figures) for (w, n, e), figures in found.items() if (w, e) == (workload, engine)
    )[-2:]
    if len(points) == 2:
        (few, small), (many, large) = points
        exponents = [
            slope([few, many], [getattr(small, name), getattr(large, name)])
            for name in ("wall_s", "peak_mib")
        ]
        print(
            f"{workload} on {engine}, {few} to {many} clients: seconds grow with exponent "
            f"{exponents[0]:.2f}, memory with {exponents[1]:.2f}"
        )


if __name__ == "__main__":
    main()
