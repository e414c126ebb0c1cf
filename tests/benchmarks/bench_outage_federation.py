"""What federation brings to outage forecasts: counties of Taiwan, and a county with one storm only.

First table: ``configs/taiwan_outages.toml``, all counties, over three seeds. Second: one county
at a time trains on a single storm, the others on all; its own error, alone and in the federation.
Scores are those of the round with the best validation error.

Run with ``python tests/benchmarks/bench_outage_federation.py``, GRAPHCL_DATA set; it takes an hour.
"""

import json
import statistics
import tempfile
from pathlib import Path

from federation.experiment import Experiment, load_experiment
from federation.learners.territories import territories
from simulations.run import execute, prepare

CONFIG = Path("configs/taiwan_outages.toml")
SEEDS = range(3)
FEW = "Soudelor"  # the one storm that a newcomer has seen: the largest
NEWCOMERS = ("宜蘭縣", "屏東縣", "台南市")  # spared in 2016, hit by both storms, hit by one


def run(experiment: Experiment) -> dict[str, dict]:
    """Run an experiment with its comparisons; return what each strategy came to."""
    with tempfile.TemporaryDirectory() as folder:
        directory, _ = prepare(experiment, Path(folder))
        outcomes = execute(directory)
        return {o.strategy: _read(o.directory) for o in outcomes}


def _read(directory: Path) -> dict:
    summary = json.loads((directory / "summary.json").read_text())
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    clients = {
        line["partition"]: line
        for line in lines
        if line["kind"] == "client" and line["round"] == summary["best_round"]
    }
    return {"summary": summary, "clients": clients}


def main() -> None:
    """Print both tables."""
    base = load_experiment(CONFIG, {"simulation.engine": "local"})
    scores = ("mae", "rmse", "total_error", "morisita_horn")
    found: dict[str, list[dict]] = {}
    for seed in SEEDS:
        runs = run(base.override({"run.seed": seed}))
        for strategy, told in runs.items():
            found.setdefault(strategy, []).append(told["summary"])
    print(f"{'all counties':<14}" + "".join(f"{name:>20}" for name in scores))
    for strategy, summaries in found.items():
        row = f"{strategy:<14}"
        for name in scores:
            values = [summary[f"test_{name}"] for summary in summaries]
            row += f"{statistics.mean(values):>12.3f} ± {statistics.stdev(values):.3f}"
        print(row, flush=True)
    means = {s: statistics.mean(x["test_mae"] for x in found[s]) for s in found}
    for strategy in means.keys() - {"local", "pooled"}:
        share = (means["local"] - means[strategy]) / (means["local"] - means["pooled"])
        print(f"{strategy} closes {100 * share:.0f} % of the gap in MAE from local to pooled")

    clients = territories(base)
    columns = ("local", "fedavg", "feddbp", "no outages")
    print(f"{'newcomer':<14}" + "".join(f"{name:>20}" for name in columns))
    for newcomer in NEWCOMERS:
        own = {"data.outages.newcomer": newcomer, "data.outages.newcomer_events": FEW}
        runs = run(base.override({**own, "run.compare": "local, feddbp"}))
        client = [one.name for one in clients.territories].index(newcomer)
        maes = [runs[s]["clients"][client]["mae"] for s in columns[:-1]]
        # What expecting nothing is off by is what there was.
        tested = clients.whole.outages[clients.territories[0].splits["test"]]
        maes.append(float(tested[:, clients.locations[client]].double().mean()))
        print(f"{newcomer:<14}" + "".join(f"{mae:>20.1f}" for mae in maes), flush=True)


if __name__ == "__main__":
    main()
