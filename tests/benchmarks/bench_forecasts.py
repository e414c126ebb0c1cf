"""Forecasts of unlike clients: SC-FSGL, the other strategies and forecasters without a federation.

Each strategy of an experiment file runs on each seed; each forecaster is trained alone on every
client's series, for as many epochs of as many windows as a federation has rounds.  Scores are
those of test steps, of the round or epoch with the least error on validation steps; a federation
has one best round for all clients.  Printed per client: MAE, RMSE and MAPE at steps 3, 6 and 12
and over all steps, in the units of the series, with the half-width of a 95 % interval over seeds,
and MAE relative to the last value's, the only figure that may be averaged over unlike units.

    python tests/benchmarks/bench_forecasts.py configs/five_series.toml --out five_series.md
    python tests/benchmarks/bench_forecasts.py configs/regions/*.toml --out regions.md

need GRAPHCL_DATA and two cores for about half an hour each.
"""

import argparse
import json
import math
import multiprocessing
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from measuring import interval

from federation.experiment import Experiment, load_experiment
from federation.learners.forecasting import mape_floor
from federation.learners.sites import sites
from federation.scores import HORIZONS
from graphcl.datasets import SpatioTemporalSeries
from graphcl.metrics import masked_mae, masked_mape, masked_rmse
from graphcl.spatiotemporal import (
    STGCN,
    STID,
    Forecaster,
    ForecasterConfig,
    GraphWaveNet,
    HistoricalAverage,
    LastValue,
    LinearForecaster,
    NetworkConfig,
)
from simulations.run import execute, prepare

NAIVE = (LastValue, HistoricalAverage, LinearForecaster)
NETWORKS = (STID, STGCN, GraphWaveNet)
FORECASTERS: dict[str, type[Forecaster]] = {kind.__name__: kind for kind in (*NAIVE, *NETWORKS)}
STEPS = ("", *(f"-{h}" for h in HORIZONS))
Scores = dict[str, float]
Job = tuple[str, str, int]  # config, strategy or forecaster, seed


def federate(experiment: Experiment) -> list[Scores]:
    """Run a strategy; return each client's scores in the best round."""
    with tempfile.TemporaryDirectory() as folder:
        directory, _ = prepare(experiment, Path(folder))
        (outcome,) = execute(directory)
        best = json.loads((outcome.directory / "summary.json").read_text())["best_round"]
        lines = (outcome.directory / "metrics.jsonl").read_text().splitlines()
        lines = [json.loads(line) for line in lines]
        sent = sum(line["bytes_up"] for line in lines if line["kind"] == "round")
        rounds, clients = experiment.run.rounds, experiment.partition.clients
        found = [line for line in lines if line["kind"] == "client" and line["round"] == best]
        return [
            {
                **{k.replace("_", "-"): v for k, v in line.items() if isinstance(v, float)},
                "bytes": sent / rounds / clients,
            }
            for line in sorted(found, key=lambda line: line["partition"])
        ]


def train_alone(experiment: Experiment, kind: type[Forecaster]) -> list[Scores]:
    """Train a forecaster on every client's series."""
    scores = []
    for splits in sites(experiment).splits:
        config = kind.config_type(**budget(experiment, kind))
        model = kind(config).fit(splits["train"], splits["val"])
        last = LastValue(ForecasterConfig(config.history, config.horizon))
        last.fit(splits["train"], splits["val"])
        floor = mape_floor(splits["train"])
        own, reference = (errors(m, splits["test"], floor) for m in (model, last))
        scores.append({**own, "relative-mae": own["mae"] / reference["mae"], "bytes": 0.0})
    return scores


def budget(experiment: Experiment, kind: type[Forecaster]) -> dict[str, Any]:
    """Return what a forecaster is told, so that it sees as many windows as a federation."""
    table = experiment.forecast
    told: dict[str, Any] = {"history": table.history, "horizon": table.horizon}
    if issubclass(kind.config_type, NetworkConfig):
        told |= {
            "batch_windows": table.batch_windows,
            "epoch_windows": table.epoch_windows,
            "epochs": experiment.run.rounds * experiment.train.epochs,
            "patience": experiment.run.rounds * experiment.train.epochs,
            "seed": experiment.run.seed,
        }
    return told


def errors(model: Forecaster, test: SpatioTemporalSeries, floor: float) -> Scores:
    """Return the errors of a forecaster over the test steps."""
    windows, forecast = model.windows(test), model.predict(test)
    y = windows.batch(torch.arange(len(windows))).y
    scores: Scores = {}
    for suffix, step in zip(
        STEPS, (slice(None), *(slice(h - 1, h) for h in HORIZONS)), strict=True
    ):
        part = forecast[:, step], y[:, step], ~y[:, step].isnan()
        scores["mae" + suffix] = masked_mae(*part)
        scores["rmse" + suffix] = masked_rmse(*part)
        scores["mape" + suffix] = masked_mape(*part, floor=floor)
    return scores


def work(job: Job) -> tuple[Job, list[Scores]]:
    """Do one job in a process of its own."""
    torch.set_num_threads(1)
    config, name, seed = job
    base = load_experiment(config, {"simulation.engine": "local", "run.seed": seed})
    if name in FORECASTERS:
        return job, train_alone(base, FORECASTERS[name])
    return job, federate(base.override({"strategy.name": name, "run.compare": ""}))


def shown(values: Sequence[float]) -> str:
    """Return a mean of three digits and the half-width of its 95 % interval."""
    mean = statistics.mean(values)
    return interval(values, min(3, max(0, 2 - math.floor(math.log10(abs(mean))))) if mean else 2)


def tables(
    names: list[str], found: dict[str, list[list[Scores]]], units: list[str]
) -> Iterable[str]:
    """Yield the lines of the tables: over all clients, then one per client."""
    yield f"| | mean relative MAE | {' | '.join(names)} | bytes up per client and round |"
    yield "|---" * (len(names) + 3) + "|"
    for method, seeds in found.items():
        relative = [[client["relative-mae"] for client in clients] for clients in seeds]
        cells = [shown([statistics.mean(row) for row in relative])]
        cells += [shown(column) for column in zip(*relative, strict=True)]
        cells.append(f"{statistics.mean(c['bytes'] for clients in seeds for c in clients):.0f}")
        yield f"| {method} | {' | '.join(cells)} |"
    if "local" in found:
        yield ""
        yield "MAE against training alone, paired by seed, in %; above 0 is harm:"
        yield ""
        yield f"| | mean | {' | '.join(names)} |"
        yield "|---" * (len(names) + 2) + "|"
        for method in [m for m in found if m not in (*FORECASTERS, "local")]:
            change = [
                [100 * (c["mae"] / own["mae"] - 1) for c, own in zip(clients, alone, strict=True)]
                for clients, alone in zip(found[method], found["local"], strict=True)
            ]
            cells = [shown([statistics.mean(row) for row in change])]
            cells += [shown(column) for column in zip(*change, strict=True)]
            yield f"| {method} | {' | '.join(cells)} |"
    columns = [name + suffix for suffix in (*STEPS[1:], "") for name in ("mae", "rmse", "mape")]
    heads = [
        f"{name} {suffix.removeprefix('-') or 'all'}"
        for suffix in (*STEPS[1:], "")
        for name in ("MAE", "RMSE", "MAPE %")
    ]
    for client, (name, unit) in enumerate(zip(names, units, strict=True)):
        yield ""
        yield f"{name} ({unit}), at steps 3, 6, 12 and over all:"
        yield ""
        yield f"| | {' | '.join(heads)} |"
        yield "|---" * (len(heads) + 1) + "|"
        for method, seeds in found.items():
            cells = [shown([clients[client][column] for clients in seeds]) for column in columns]
            yield f"| {method} | {' | '.join(cells)} |"


def main() -> None:
    """Run all jobs, print the tables and write them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="+", help="experiment files with task.name = 'forecast'")
    parser.add_argument("--seeds", type=int, default=3, help="runs of every method (default: 3)")
    parser.add_argument(
        "--heavy-seeds", type=int, default=1, help="runs of STGCN and GraphWaveNet (default: 1)"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes at once (default: 2)")
    parser.add_argument("--strategies", help="instead of the file's, e.g. 'local, fedavg'")
    parser.add_argument(
        "--alone", default=", ".join(FORECASTERS), help="forecasters to train alone"
    )
    parser.add_argument("--out", type=Path, help="file for the tables")
    told = parser.parse_args()
    lines = [line for config in told.config for line in (*scenario(config, told), "")]
    if told.out:
        told.out.write_text("\n".join(lines), encoding="utf-8")


def scenario(config: str, told: argparse.Namespace) -> list[str]:
    """Run all jobs of an experiment file; print and return its tables."""
    base = load_experiment(config)
    own = f"{base.strategy.name}, {base.run.compare}"
    strategies = [name for name in (told.strategies or own).split(", ") if name]
    alone = [name for name in told.alone.split(", ") if name]
    runs = {
        **dict.fromkeys(strategies, told.seeds),
        **{name: 1 if FORECASTERS[name] in NAIVE else told.seeds for name in alone},
        **{name: told.heavy_seeds for name in alone if FORECASTERS[name] in (STGCN, GraphWaveNet)},
    }
    jobs = [(config, name, seed) for name, seeds in runs.items() for seed in range(seeds)]
    found: dict[str, list[list[Scores]]] = {name: [[]] * seeds for name, seeds in runs.items()}
    with multiprocessing.get_context("spawn").Pool(told.jobs, maxtasksperchild=1) as pool:
        for (_, name, seed), scores in pool.imap_unordered(work, jobs):
            found[name][seed] = scores
            mean = statistics.mean(client["relative-mae"] for client in scores)
            print(f"{name} seed {seed}: mean relative MAE {mean:.4f}", flush=True)
    clients = sites(base)
    units = [", ".join(series.channel_names) for series in clients.series]
    report = clients.report
    lines = [
        f"{config}: {base.run.rounds} rounds of {base.forecast.epoch_windows or 'all'} "
        f"windows, {told.seeds} seeds; {report.cut_edges} of {report.edges} edges cut",
        "",
        *tables(clients.names, found, units),
    ]
    print("\n".join(lines), flush=True)
    return lines


if __name__ == "__main__":
    main()
