"""From the replies of a round to lines of metrics, and from those to the figures of a run."""

import math
from collections.abc import Sequence
from typing import Any

from federation.experiment import Experiment
from federation.replies import Exchanged
from federation.run_directory import Line
from federation.scores import SCORES, Score


def client_lines(
    server_round: int, train: Exchanged, evaluation: Exchanged | None, scores: Sequence[Score]
) -> list[Line]:
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
        if partition in train.staleness:
            line["staleness"] = train.staleness[partition]
        if fault := train.faults.told(partition):
            line["fault"] = fault
        line["bytes_down"] = train.bytes_down.get(partition, 0)
        line["bytes_up"] = train.bytes_up.get(partition, 0)
        if partition in evaluated:
            line |= {
                name.replace("-", "_"): evaluated[partition][name]
                for name in (*_weights(scores), "val-examples")
                if name in evaluated[partition]
            }
            line["test_examples"] = int(evaluated[partition]["num-examples"])
        elif evaluation and partition in evaluation.reasons:
            line["evaluation"] = evaluation.reasons[partition]
        lines.append(line)
    return lines


def round_line(
    server_round: int,
    train: Exchanged,
    evaluation: Exchanged | None,
    scores: Sequence[Score],
    seconds: float,
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
        line |= _means(list(evaluation.metrics().values()), scores)
        line["evaluation_bytes"] = sum(evaluation.bytes_down.values()) + sum(
            evaluation.bytes_up.values()
        )
    return line


def summarise(experiment: Experiment, lines: Sequence[Line]) -> dict[str, Any]:
    """Return the figures of a finished run; the best round is chosen on validation alone.

    Scores are missing where no evaluation ever succeeded.
    """
    score, *others = SCORES[experiment.task.name]
    rounds = [line for line in lines if line["kind"] == "round"]
    evaluated = [line for line in rounds if score.key in line and score.val_key in line]
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
    if rounds and "virtual_seconds" in rounds[-1]:
        summary["virtual_seconds"] = rounds[-1]["virtual_seconds"]
    if overtaken := [line["staleness"] for line in lines if "staleness" in line]:
        summary["mean_staleness"] = sum(overtaken) / len(overtaken)
    if experiment.faults.summary:
        summary["faults"] = experiment.faults.summary
    if evaluated:
        best = max(evaluated, key=lambda line: (score.rank(line[score.val_key]), -line["round"]))
        clients = [
            line[score.key]
            for line in lines
            if line["kind"] == "client"
            and line["round"] == best["round"]
            and line.get("test_examples")
        ]
        summary |= {
            "best_round": best["round"],
            f"test_{score.key}": best[score.key],
            score.val_key: best[score.val_key],
            f"final_test_{score.key}": evaluated[-1][score.key],
            f"worst_client_{score.key}": min(clients, key=score.rank, default=0.0),
            **{f"test_{other.key}": best[other.key] for other in others if other.key in best},
        }
    return summary


def _weights(scores: Sequence[Score]) -> dict[str, str]:
    """Return what an evaluation may tell, and what weighs it in the mean over clients."""
    first, *others = scores
    return {
        first.name: "num-examples",
        first.val_name: "val-examples",
        "test-loss": "num-examples",
        **{other.name: other.weight for other in others},
    }


def _means(evaluated: Sequence[dict[str, Any]], scores: Sequence[Score]) -> Line:
    """Return the means over clients of what they told.

    The mean of no example is 0. That is the best error there is, so that it is left out where
    lower is better: a round without a validation example must not be chosen for it.
    """
    errors = {name for s in scores if s.better == "lower" for name in (s.name, s.val_name)}
    return {
        name.replace("-", "_"): weighted_mean(evaluated, name, weight)
        for name, weight in _weights(scores).items()
        if any(name in metrics and (metrics[weight] or name not in errors) for metrics in evaluated)
    }


def weighted_mean(metrics: Sequence[dict[str, Any]], name: str, weight: str) -> float:
    """Return the mean of a metric over those who have it; 0 where all weights are zero."""
    total = math.fsum(m[weight] for m in metrics if name in m)
    return math.fsum(m[name] * m[weight] for m in metrics if name in m) / total if total else 0.0
