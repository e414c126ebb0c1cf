"""From the replies of a round to lines of metrics, and from those to the figures of a run."""

import math
from collections.abc import Sequence
from typing import Any

from federation.experiment import Experiment
from federation.replies import Exchanged
from federation.run_directory import Line

# Evaluated metrics, and what weighs them in the mean over clients.
_EVALUATED = {
    "accuracy": "num-examples",
    "val-accuracy": "val-examples",
    "test-loss": "num-examples",
    "accuracy-head": "num-examples",
    "accuracy-prototype": "num-examples",
    "roc-auc": "num-examples",
}


def client_lines(server_round: int, train: Exchanged, evaluation: Exchanged | None) -> list[Line]:
    """Return one line per client that trained or was evaluated."""
    trained = train.metrics()
    evaluated = evaluation.metrics() if evaluation else {}
    lines = []
    for partition in sorted(set(train.cohort) | set(evaluated)):
        line: Line = {"kind": "client", "round": server_round, "partition": partition}
        if partition in trained:
            metrics = trained[partition]
            line |= {
                "status": "ok",
                "loss": metrics["loss"],
                "support": int(metrics["num-examples"]),
                "seconds": metrics["seconds"],
            }
        elif partition in train.reasons:
            line |= {"status": "failed", "reason": train.reasons[partition]}
        else:
            line |= {"status": "idle"}
        line["bytes_down"] = train.bytes_down.get(partition, 0)
        line["bytes_up"] = train.bytes_up.get(partition, 0)
        if partition in evaluated:
            line |= {
                name.replace("-", "_"): evaluated[partition][name]
                for name in (*_EVALUATED, "val-examples")
                if name in evaluated[partition]
            }
            line["test_examples"] = int(evaluated[partition]["num-examples"])
        elif evaluation and partition in evaluation.reasons:
            line["evaluation"] = evaluation.reasons[partition]
        lines.append(line)
    return lines


def round_line(
    server_round: int, train: Exchanged, evaluation: Exchanged | None, seconds: float
) -> Line:
    """Return the line of a round: counts, weighted means, bytes."""
    trained = list(train.metrics().values())
    line: Line = {
        "kind": "round",
        "round": server_round,
        "cohort": len(train.cohort),
        "ok": len(train.good),
        "failed": len(train.reasons),
        "bytes_down": sum(train.bytes_down.values()),
        "bytes_up": sum(train.bytes_up.values()),
        "seconds": seconds,
    }
    if trained:
        line["loss"] = weighted_mean(trained, "loss", "num-examples")
    if evaluation:
        evaluated = list(evaluation.metrics().values())
        for name, weight in _EVALUATED.items():
            if any(name in metrics for metrics in evaluated):
                line[name.replace("-", "_")] = weighted_mean(evaluated, name, weight)
        line["evaluation_bytes"] = sum(evaluation.bytes_down.values()) + sum(
            evaluation.bytes_up.values()
        )
    return line


def summarise(experiment: Experiment, lines: Sequence[Line]) -> dict[str, Any]:
    """Return the figures of a finished run; the best round is chosen on validation alone.

    Accuracies are missing where no evaluation ever succeeded.
    """
    rounds = [line for line in lines if line["kind"] == "round"]
    evaluated = [line for line in rounds if "accuracy" in line]
    summary: dict[str, Any] = {
        "name": experiment.run.name,
        "strategy": experiment.strategy.name,
        "encoders": ", ".join(experiment.encoder_names),
        "seed": experiment.run.seed,
        "rounds": experiment.run.rounds,
        "failed_updates": sum(line["failed"] for line in rounds),
        "bytes_up": sum(line["bytes_up"] for line in rounds),
        "bytes_down": sum(line["bytes_down"] for line in rounds),
        "seconds": math.fsum(line["seconds"] for line in rounds),
    }
    if evaluated:
        best = max(evaluated, key=lambda line: (line["val_accuracy"], -line["round"]))
        clients = [
            line["accuracy"]
            for line in lines
            if line["kind"] == "client"
            and line["round"] == best["round"]
            and line.get("test_examples")
        ]
        summary |= {
            "best_round": best["round"],
            "test_accuracy": best["accuracy"],
            "val_accuracy": best["val_accuracy"],
            "final_test_accuracy": evaluated[-1]["accuracy"],
            "worst_client_accuracy": min(clients, default=0.0),
        }
        for name in ("accuracy_head", "accuracy_prototype", "roc_auc"):
            if name in best:
                summary[f"test_{name}"] = best[name]
    return summary


def weighted_mean(metrics: Sequence[dict[str, Any]], name: str, weight: str) -> float:
    """Return the mean of a metric over those who have it; 0 where all weights are zero."""
    total = math.fsum(m[weight] for m in metrics if name in m)
    return math.fsum(m[name] * m[weight] for m in metrics if name in m) / total if total else 0.0
