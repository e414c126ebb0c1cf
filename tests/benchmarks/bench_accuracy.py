"""Accuracy and bytes on the wire of every strategy of a configuration, over seeds.

All strategies of one seed have the same partitions, models and budget. The round is the one with
the best validation accuracy; what it reached on test samples is shown as the mean over clients and
over all samples, with 95 % intervals over seeds. Bytes are those of the whole messages of training
rounds, as they are on the wire, and their ratio to FedAvg's. Where clients hold unlike models,
FedAvg and FedProx give all of them the first.

``--ablate`` adds FedDBP with one part off or replaced at a time. Runs that ``--keep`` has put into
a folder are not repeated, so that an interrupted benchmark goes on where it was.

    python tests/benchmarks/bench_accuracy.py [--seeds 3] [--jobs 2] [--ablate] [--keep FOLDER]
        [CONFIG ...]

The configurations on Cora and CIFAR-10 need GRAPHCL_DATA.
"""

import argparse
import hashlib
import json
import multiprocessing
import statistics
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from measuring import interval

from federation.experiment import Experiment, Scalar, load_experiment
from federation.tables import WEIGHT_STRATEGIES
from simulations.run import execute, prepare

CONFIGS = Path(__file__).parents[2] / "configs"
DEFAULT = [CONFIGS / f"{name}.toml" for name in ("quickstart", "cora_fedavg", "cora_fedproto")]
ABLATIONS: dict[str, dict[str, Scalar]] = {
    "without alignment": {"strategy.feddbp.lambda_align": 0.0},
    "without contrast": {"strategy.feddbp.lambda_contrast": 0.0},
    "without branches": {"strategy.feddbp.fuse": "none"},
    "without personal fusion": {"strategy.feddbp.personal": "off"},
    "global mean by count": {"strategy.feddbp.global_weight": "count"},
    "head decides": {"strategy.feddbp.inference": "head"},
}


class Variant(NamedTuple):
    """A row of the table: a strategy, and what is set otherwise for it."""

    label: str
    keys: tuple[tuple[str, Scalar], ...]


class Found(NamedTuple):
    """What one run reached."""

    clients: float  # mean of the clients' accuracies
    samples: float  # accuracy over all samples
    worst: float  # least accuracy of a client
    up: float  # bytes per client and round
    down: float
    seconds: float  # of a client's round, the median


def variants(experiment: Experiment, strategies: list[str], ablate: bool) -> list[Variant]:
    """Return the rows that a configuration has."""
    first = experiment.encoder_names[0]
    rows = []
    for name in strategies:
        keys: dict[str, Scalar] = {"strategy.name": name}
        label = name
        if name in WEIGHT_STRATEGIES and experiment.unlike_models:
            keys["model.encoders"] = first
            label = f"{name}, all with {first}"
        rows.append(Variant(label, tuple(keys.items())))
    if ablate:
        rows += [
            Variant(f"feddbp {label}", (("strategy.name", "feddbp"), *keys.items()))
            for label, keys in ABLATIONS.items()
        ]
    return rows


def work(job: tuple[Path, Variant, int, Path | None]) -> tuple[Variant, int, Found]:
    """Run one row with one seed in this process, or read what it reached before."""
    config, variant, seed, folder = job
    always = {"simulation.engine": "local", "run.compare": "", "run.seed": seed}
    experiment = load_experiment(config, {**dict(variant.keys), **always})
    if folder is None:
        return variant, seed, measure(experiment)
    name = hashlib.sha256(experiment.to_toml().encode()).hexdigest()[:16]
    kept = folder / f"{experiment.run.name}-{variant.label.replace(' ', '-')}-{seed}-{name}.json"
    if not kept.exists():
        kept.write_text(json.dumps(measure(experiment)._asdict()) + "\n")
    return variant, seed, Found(**json.loads(kept.read_text()))


def measure(experiment: Experiment) -> Found:
    """Run an experiment on one thread."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        directory, _ = prepare(experiment, Path(folder))
        (outcome,) = execute(directory)
        lines = [json.loads(line) for line in (directory / "metrics.jsonl").open()]
    summary = outcome.summary or {}
    updates = [line for line in lines if line.get("status") == "ok"]
    tested = [
        line["accuracy"]
        for line in lines
        if line["kind"] == "client"
        and line["round"] == summary["best_round"]
        and line.get("test_examples")
    ]
    return Found(
        clients=statistics.mean(tested),
        samples=summary["test_accuracy"],
        worst=min(tested),
        up=statistics.mean(line["bytes_up"] for line in updates),
        down=statistics.mean(line["bytes_down"] for line in updates),
        seconds=statistics.median(line["seconds"] for line in updates),
    )


def table(rows: list[Variant], found: dict[Variant, list[Found]]) -> list[str]:
    """Return the lines of a table, the figures in the order of the rows."""
    head = ("", "mean over clients", "over samples", "worst client", "kB up", "kB down")
    head = (*head, "of FedAvg's bytes", "ms per client-round")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    traffic = {row: statistics.mean(one.up + one.down for one in found[row]) for row in rows}
    whole = next((traffic[row] for row in rows if row.label.startswith("fedavg")), 0.0)
    for row in rows:
        columns = Found(*zip(*found[row], strict=True))  # type: ignore[arg-type]
        cells = [interval([100 * v for v in values], 2) for values in columns[:3]]  # type: ignore[attr-defined]
        cells += [f"{statistics.mean(values) / 1e3:.1f}" for values in columns[3:5]]  # type: ignore[arg-type]
        cells.append(f"1/{whole / traffic[row]:.0f}" if whole > 1.5 * traffic[row] else "")
        cells.append(f"{1e3 * statistics.mean(columns.seconds):.0f}")  # type: ignore[arg-type]
        lines.append(f"| {row.label} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Print one table per configuration."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", type=Path, nargs="*", default=DEFAULT, help="experiment files")
    parser.add_argument("--seeds", type=int, default=3, help="runs of every row (default: 3)")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once (default: 2)")
    parser.add_argument("--rounds", type=int, help="instead of the file's")
    parser.add_argument("--strategies", help="instead of the file's, e.g. 'local, fedavg'")
    parser.add_argument("--ablate", action="store_true", help="FedDBP with a part off at a time")
    parser.add_argument("--keep", type=Path, help="folder of runs that need not be repeated")
    told = parser.parse_args()
    if told.keep:
        told.keep.mkdir(parents=True, exist_ok=True)
    for config in told.configs:
        base = load_experiment(config)
        own = f"{base.strategy.name}, {base.run.compare}"
        names = [name for name in (told.strategies or own).split(", ") if name]
        rounds = (("run.rounds", told.rounds),) if told.rounds else ()
        rows = [
            Variant(row.label, (*row.keys, *rounds)) for row in variants(base, names, told.ablate)
        ]
        jobs = [(config, row, seed, told.keep) for seed in range(told.seeds) for row in rows]
        found: dict[Variant, list[Found]] = {row: [] for row in rows}
        with multiprocessing.get_context("spawn").Pool(told.jobs, maxtasksperchild=1) as pool:
            for row, seed, one in pool.imap(work, jobs):
                found[row].append(one)
                print(f"{config.stem}: {row.label}, seed {seed}: {one.clients:.4f}", flush=True)
        print(f"\n{config.stem}: {told.rounds or base.run.rounds} rounds, {told.seeds} seeds\n")
        print("\n".join(table(rows, found)), flush=True)


if __name__ == "__main__":
    main()
