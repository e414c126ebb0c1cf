"""The round loop: cohort, messages, checked replies, aggregate, metrics, checkpoint.

Flower's own ``Strategy.start`` begins at round 1 and keeps only aggregates; this loop drives the
same strategies, resumes, orders replies by partition before anything is summed, and records every
client of every round.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from federation.cohort import CohortGrid, discover, draw_cohort
from federation.experiment import WEIGHT_STRATEGIES, Experiment
from federation.learners.nodes import build_classifier
from federation.records import num_bytes, to_arrays
from federation.run_directory import KeepsClientStates, Line, RunDirectory
from federation.strategies import ALGORITHMS, Facts
from federation.strategies.base import MessageStrategy
from graphcl.errors import FederationError, ReplyError


def federate(grid: Grid, experiment: Experiment, run: RunDirectory) -> None:
    """Run all rounds of an experiment, or those that are left of it.

    Raises:
        FederationError: If nodes are missing, or fewer than ``run.min_success`` of a cohort
            succeed; the last complete round stays in the checkpoint.
    """
    facts = discover(grid, experiment)
    algorithm = ALGORITHMS[experiment.strategy.name]
    strategy = algorithm.strategy(experiment, facts)
    arrays, first = _begin(grid, experiment, facts, strategy, run)
    for server_round in range(first, experiment.run.rounds + 1):
        started = time.perf_counter()
        cohort = draw_cohort(experiment, server_round)
        train = Exchanged(grid, facts, cohort, experiment.run.timeout)
        train.send(strategy.configure_train(server_round, arrays, ConfigRecord(), train.grid))
        train.check(
            lambda content, current=arrays: algorithm.check_reply(  # type: ignore[misc]
                content, current, experiment, facts
            )
        )
        if train.success < experiment.run.min_success:
            run.record(_client_lines(server_round, train, None))
            raise FederationError(_too_few(server_round, train, experiment))
        aggregated, _ = strategy.aggregate_train(server_round, train.good)
        arrays = arrays if aggregated is None else aggregated
        evaluation = None
        if (
            server_round % experiment.run.evaluate_every == 0
            or server_round == experiment.run.rounds
        ):
            evaluation = Exchanged(grid, facts, list(facts.nodes.values()), experiment.run.timeout)
            evaluation.send(
                strategy.configure_evaluate(server_round, arrays, ConfigRecord(), evaluation.grid)
            )
            evaluation.check()
        seconds = time.perf_counter() - started
        run.record(
            [
                *_client_lines(server_round, train, evaluation),
                _round_line(server_round, train, evaluation, seconds),
            ]
        )
        changed = grid.take_client_states() if isinstance(grid, KeepsClientStates) else None
        run.checkpoint(server_round, arrays, _strategy_state(strategy), changed)
    server = RecordDict({"arrays": arrays, **_strategy_state(strategy)})
    run.finish(_summary(experiment, run.lines()), server)


def _begin(
    grid: Grid, experiment: Experiment, facts: Facts, strategy: Strategy, run: RunDirectory
) -> tuple[ArrayRecord, int]:
    """Return the arrays and the number of the first round to run."""
    checkpoint = run.resume()
    if checkpoint is None:
        return _initial_arrays(experiment, facts), 1
    if isinstance(strategy, MessageStrategy):
        strategy.load_state(checkpoint.strategy)
    if ALGORITHMS[experiment.strategy.name].exchange.personal:
        if checkpoint.clients is None or not isinstance(grid, KeepsClientStates):
            raise FederationError(
                f"{run.path}: '{experiment.strategy.name}' keeps models on the clients, and "
                "Flower's engine kept them out of the checkpoint; start the run anew, on the "
                "engine local or ray if it must be resumable"
            )
        grid.put_client_states(checkpoint.clients)
    return checkpoint.arrays, checkpoint.server_round + 1


def _initial_arrays(experiment: Experiment, facts: Facts) -> ArrayRecord:
    if experiment.strategy.name not in WEIGHT_STRATEGIES:
        return ArrayRecord()
    model = build_classifier(experiment, "server", facts.in_channels, facts.num_classes)
    return to_arrays(model.state_dict())


def _strategy_state(strategy: Strategy) -> RecordDict:
    return strategy.state() if isinstance(strategy, MessageStrategy) else RecordDict()


@dataclass
class Exchanged:
    """One phase of a round: what went to a cohort and what came back.

    Attributes:
        cohort: Partitions addressed, ascending.
        good: Replies that passed every check, in the order of their partitions.
        reasons: Why a partition's reply did not count.
        bytes_down, bytes_up: Content sent and received, by partition.
    """

    whole_grid: Grid
    facts: Facts
    cohort: Sequence[int]
    timeout: float
    good: list[Message] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)
    bytes_down: dict[int, int] = field(default_factory=dict)
    bytes_up: dict[int, int] = field(default_factory=dict)

    @property
    def grid(self) -> Grid:
        """The grid as the strategy may see it: this cohort only."""
        members = set(self.cohort)
        return CohortGrid(
            self.whole_grid, [node for node, part in self.facts.nodes.items() if part in members]
        )

    @property
    def success(self) -> float:
        """Share of the cohort whose reply counts."""
        return len(self.good) / len(self.cohort)

    def send(self, messages: Iterable[Message]) -> None:
        """Send a strategy's messages and collect the replies, ordered by partition."""
        sizes: dict[int, int] = {}  # a content shared by many messages is measured once
        messages = list(messages)
        for message in messages:
            key = id(message.content)
            sizes[key] = sizes.get(key) or num_bytes(message.content)
            self.bytes_down[self.facts.nodes[message.metadata.dst_node_id]] = sizes[key]
        replies = self.whole_grid.send_and_receive(messages, timeout=self.timeout or None)
        by_partition = {self.facts.nodes[reply.metadata.src_node_id]: reply for reply in replies}
        for partition in self.cohort:
            reply = by_partition.get(partition)
            if reply is None:
                self.reasons[partition] = f"no reply within {self.timeout:g} s"
            elif reply.has_error():
                self.reasons[partition] = reply.error.reason or f"error {reply.error.code}"
            else:
                self.bytes_up[partition] = num_bytes(reply.content)
                self.good.append(reply)

    def check(self, check_reply: Callable[[RecordDict], None] | None = None) -> None:
        """Drop replies that must not count, and note why."""
        passed = []
        for reply in self.good:
            partition = self.facts.nodes[reply.metadata.src_node_id]
            try:
                _check_metrics(reply.content, partition)
                if check_reply is not None:
                    check_reply(reply.content)
                passed.append(reply)
            except ReplyError as error:
                self.reasons[partition] = f"ReplyError: {error}"
        self.good = passed

    def metrics(self) -> dict[int, dict[str, Any]]:
        """Return the metrics of the replies that count, by partition."""
        return {
            self.facts.nodes[reply.metadata.src_node_id]: dict(reply.content["metrics"])
            for reply in self.good
        }


def _check_metrics(content: RecordDict, partition: int) -> None:
    """Raise ReplyError for metrics that are missing, not finite, or another partition's."""
    metrics = content.metric_records.get("metrics")
    if metrics is None or "num-examples" not in metrics:
        raise ReplyError("the reply holds no metrics with 'num-examples'")
    for name, value in metrics.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ReplyError(f"metric '{name}' is {value}, not a finite number")
    if metrics["num-examples"] < 0:  # type: ignore[operator]
        raise ReplyError(f"metric 'num-examples' is {metrics['num-examples']}")
    if metrics.get("partition-id") != partition:
        raise ReplyError(
            f"the node of partition {partition} speaks for {metrics.get('partition-id')}"
        )


def _too_few(server_round: int, train: Exchanged, experiment: Experiment) -> str:
    reasons = "; ".join(f"client {p}: {why}" for p, why in sorted(train.reasons.items())[:3])
    return (
        f"round {server_round}: {len(train.good)} of {len(train.cohort)} clients succeeded, below "
        f"run.min_success = {experiment.run.min_success:g} ({reasons}); mend the clients and "
        "resume, or lower run.min_success"
    )


_EVALUATED = {
    "accuracy": "num-examples",
    "val-accuracy": "val-examples",
    "test-loss": "num-examples",
    "accuracy-head": "num-examples",
    "accuracy-prototype": "num-examples",
}


def _client_lines(server_round: int, train: Exchanged, evaluation: Exchanged | None) -> list[Line]:
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


def _round_line(
    server_round: int, train: Exchanged, evaluation: Exchanged | None, seconds: float
) -> Line:
    trained = list(train.metrics().values())
    line: Line = {
        "kind": "round",
        "round": server_round,
        "cohort": len(train.cohort),
        "ok": len(train.good),
        "failed": len(train.reasons),
        "loss": _mean(trained, "loss", "num-examples"),
        "bytes_down": sum(train.bytes_down.values()),
        "bytes_up": sum(train.bytes_up.values()),
        "seconds": seconds,
    }
    if evaluation:
        evaluated = list(evaluation.metrics().values())
        for name, weight in _EVALUATED.items():
            if any(name in metrics for metrics in evaluated):
                line[name.replace("-", "_")] = _mean(evaluated, name, weight)
        line["evaluation_bytes"] = sum(evaluation.bytes_down.values()) + sum(
            evaluation.bytes_up.values()
        )
    return line


def _mean(metrics: Sequence[dict[str, Any]], name: str, weight: str) -> float:
    total = math.fsum(m[weight] for m in metrics if name in m)
    return math.fsum(m[name] * m[weight] for m in metrics if name in m) / total if total else 0.0


def _summary(experiment: Experiment, lines: Sequence[Line]) -> dict[str, Any]:
    """Return the figures of a finished run; the best round is chosen on validation alone."""
    rounds = [line for line in lines if line["kind"] == "round"]
    evaluated = [line for line in rounds if "accuracy" in line]
    best = max(evaluated, key=lambda line: (line["val_accuracy"], -line["round"]))
    clients = [
        line for line in lines if line["kind"] == "client" and line["round"] == best["round"]
    ]
    return {
        "name": experiment.run.name,
        "strategy": experiment.strategy.name,
        "encoders": experiment.model.encoders,
        "seed": experiment.run.seed,
        "rounds": experiment.run.rounds,
        "best_round": best["round"],
        "test_accuracy": best["accuracy"],
        "val_accuracy": best["val_accuracy"],
        "final_test_accuracy": evaluated[-1]["accuracy"],
        "worst_client_accuracy": min(c["accuracy"] for c in clients if "accuracy" in c),
        **{
            f"test_{name}": best[name]
            for name in ("accuracy_head", "accuracy_prototype")
            if name in best
        },
        "failed_updates": sum(line["failed"] for line in rounds),
        "bytes_up": sum(line["bytes_up"] for line in rounds),
        "bytes_down": sum(line["bytes_down"] for line in rounds),
        "seconds": math.fsum(line["seconds"] for line in rounds),
    }
