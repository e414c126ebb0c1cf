"""Virtual time and accuracy of aggregates that wait for a few replies, beside rounds that wait.

The same data, devices, seeds and number of client updates in every row; ``buffer`` 0 are rounds of
all clients. Virtual time is what devices of the drawn speeds would take; how long it takes until a
validation accuracy is reached tells more than where the run ends. The target is the rounds' own
best one less a point; the last column is how many times sooner it was reached, seed by seed, as a
geometric mean over the seeds that did, whose number is in brackets.

Run with ``python tests/benchmarks/bench_asynchrony.py [CONFIG] [--seeds 3] [--buffers 3 5]``.
"""

import argparse
import json
import logging
import math
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from scipy import stats

from federation.experiment import Experiment, load_experiment
from federation.run_directory import Line
from simulations.carriers.local import LocalCarrier

CONFIG = Path(__file__).parents[2] / "configs" / "asynchronous.toml"


def rounds_of(experiment: Experiment) -> tuple[dict, list[Line]]:
    """Run an experiment; return its summary and the lines of its rounds."""
    with tempfile.TemporaryDirectory() as folder:
        own = experiment.override({"run.directory": folder})
        with LocalCarrier(own) as carrier:
            carrier.run(own)
        summary = json.loads((Path(folder) / "summary.json").read_text())
        lines = map(json.loads, (Path(folder) / "metrics.jsonl").read_text().splitlines())
        return summary, [line for line in lines if line["kind"] == "round"]


def interval(values: Sequence[float], digits: int = 1) -> str:
    """Return a mean with half its 95 % interval."""
    spread = 0.0
    if len(values) > 1:
        half = stats.t.ppf(0.975, len(values) - 1) / math.sqrt(len(values))
        spread = half * statistics.stdev(values)
    return f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", nargs="?", type=Path, default=CONFIG)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--buffers", type=int, nargs="+", default=[3, 5], help="beside rounds")
    parser.add_argument("--updates", type=int, default=400, help="of clients, in every run")
    asked = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    clients = load_experiment(asked.config).partition.clients
    targets: dict[int, tuple[float, float]] = {}  # accuracy, and when rounds reach it
    print(f"{asked.config.stem}: {clients} clients, {asked.updates} updates, {asked.seeds} seeds")
    print(f"{'buffer':>6}{'staleness':>11}{'accuracy %':>16}{'virtual s':>16}{'sooner':>12}")
    for buffer in [0, *asked.buffers]:
        rows = []
        for seed in range(asked.seeds):
            keys = {
                "run.seed": seed,
                "run.rounds": asked.updates // (buffer or clients),
                "asynchrony.buffer": buffer,
                "asynchrony.concurrency": clients if buffer else 0,
                "simulation.engine": "local",
            }
            summary, rounds = rounds_of(load_experiment(asked.config, keys))
            target, _ = targets.get(seed, (summary["val_accuracy"] - 0.01, 0.0))
            reached = [r["virtual_seconds"] for r in rounds if r["val_accuracy"] >= target]
            if not buffer:
                targets[seed] = target, reached[0]
            _, first = targets[seed]
            rows.append(
                (
                    summary.get("mean_staleness", 0.0),
                    100 * summary["test_accuracy"],
                    summary["virtual_seconds"],
                    first / reached[0] if reached else None,
                )
            )
        staleness, accuracy, seconds, sooner = zip(*rows, strict=True)
        times = [ratio for ratio in sooner if ratio is not None]
        mean = f"{statistics.geometric_mean(times):.2f}" if times else "never"
        print(
            f"{buffer:>6}{statistics.mean(staleness):>11.2f}{interval(accuracy):>16}"
            f"{interval(seconds):>16}{mean + f' ({len(times)})':>12}",
            flush=True,
        )


if __name__ == "__main__":
    main()
