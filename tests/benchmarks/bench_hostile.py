"""Accuracy with one client in five hostile: every attack against every way of joining replies.

A row is a strategy and its rule (``strategy.robust`` for prototypes, Flower's strategies for
weights), a column an attack; the first has none and shows what a rule costs. A cell is the test
accuracy as a mean over honest clients, the same ones in every column, at the round that is best on
their validation examples, with half its 95 % interval over seeds; below it the difference from the
mean without an attack, seed by seed, since seeds differ by more than rules do. The prototype
algorithms are read by both inferences; the row ``backdoor`` is the share of the drawn class that is
taken for the target, mean over the clients that have any of it. Weights are compared with the first
encoder everywhere.

Run with ``python tests/benchmarks/bench_hostile.py [CONFIG] [--seeds 3] [--rounds 15]``.
"""

import argparse
import json
import logging
import math
import statistics
import tempfile
from pathlib import Path

from scipy import stats

from federation.experiment import Experiment, load_experiment
from federation.faults import hostile_clients
from simulations.carriers.local import LocalCarrier

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.toml"
SHARE = 0.2
ATTACKS = {"none": 1.0, "sign_flip": 1.0, "scale": 10.0, "label_swap": 1.0, "backdoor": 1.0}
RULES = ("mean", "median", "trimmed", "krum")
WEIGHTS = ("fedavg", "fedmedian", "fedtrimmedavg", "krum")
TRUSTING = ("fedproto mean", "feddbp mean", "fedavg")  # what the rows after them are held against
INFERENCES = ("accuracy_head", "accuracy_prototype", "backdoor")


def accuracies(experiment: Experiment, honest: set[int]) -> dict[str, float]:
    """Run an experiment; return the honest clients' mean accuracies at the best round."""
    with tempfile.TemporaryDirectory() as folder:
        own = experiment.override({"run.directory": folder})
        with LocalCarrier(own) as carrier:
            carrier.run(own)
        text = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    rounds: dict[int, list[dict]] = {}
    for line in map(json.loads, text):
        if line["kind"] == "client" and line["partition"] in honest and "val_accuracy" in line:
            rounds.setdefault(line["round"], []).append(line)

    def mean(lines: list[dict], name: str) -> float:
        return statistics.mean(line[name] for line in lines if name in line)

    best = max(rounds.values(), key=lambda lines: mean(lines, "val_accuracy"))
    return {name: mean(best, name) for name in INFERENCES if any(name in line for line in best)}


def cell(values: list[float], sign: str = "") -> str:
    """Return a mean in per cent with half its 95 % interval."""
    text = f"{100 * statistics.mean(values):{sign}.1f}"
    if len(values) > 1:
        spread = statistics.stdev(values) / math.sqrt(len(values))
        text += f" ± {100 * spread * stats.t.ppf(0.975, len(values) - 1):.1f}"
    return text


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", nargs="?", type=Path, default=CONFIG)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    base = load_experiment(
        asked.config,
        {"simulation.engine": "local", "run.compare": "", "run.rounds": asked.rounds},
    )
    cases = [
        (f"{name} {rule}", {"strategy.name": name, "strategy.robust.rule": rule}, ATTACKS)
        for name in ("fedproto", "feddbp")
        for rule in RULES
    ]
    first = base.encoder_names[0]
    on_weights = {name: ATTACKS[name] for name in ("none", "sign_flip", "scale")}
    alike = {"model.encoders": first} if base.unlike_models else {}
    cases += [(name, {"strategy.name": name, **alike}, on_weights) for name in WEIGHTS]
    print(f"{asked.config.stem}, {asked.seeds} seeds, {asked.rounds} rounds, {SHARE:.0%} hostile")
    print(f"{'':<17}{'inference':<11}" + "".join(f"{name:>14}" for name in ATTACKS), flush=True)
    trusting: dict[str, list[float]] = {}
    for name, keys, attacks in cases:
        found: dict[str, dict[str, list[float]]] = {}
        for attack, strength in attacks.items():
            for seed in range(asked.seeds):
                plan = {"run.seed": seed, "faults.hostile": SHARE}
                if attack != "none":
                    plan |= {"faults.attack": attack, "faults.strength": strength}
                elif "backdoor" in attacks:  # to see what goes that way without an attack
                    plan |= {"faults.attack": "backdoor"}
                attacked = base.override({**keys, **plan})
                honest = set(range(base.partition.clients)) - hostile_clients(attacked)
                peaceful = attacked.override({"faults.hostile": 0.0})
                scores = accuracies(peaceful if attack == "none" else attacked, honest)
                for inference, score in scores.items():
                    found.setdefault(inference, {}).setdefault(attack, []).append(score)
        for inference, columns in found.items():
            if name in TRUSTING:
                trusting[inference] = columns["none"]
            beside = {
                attack: [a - b for a, b in zip(values, trusting[inference], strict=True)]
                for attack, values in columns.items()
            }
            row = f"{name:<17}{inference.removeprefix('accuracy_'):<11}"
            shown = (cell(columns[a]) if a in columns else "-" for a in ATTACKS)
            print(row + "".join(f"{text:>14}" for text in shown))
            shown = (cell(beside[a], "+") if a in beside else "" for a in ATTACKS)
            print(" " * len(row) + "".join(f"{text:>14}" for text in shown), flush=True)


if __name__ == "__main__":
    main()
