"""One phase of a round: messages out, replies in, and which of them count."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from federation.cohort import CohortGrid
from federation.faults import RoundFaults
from federation.records import num_bytes
from federation.scores import Score
from federation.strategies import Facts
from federation.strategies.sums import SUM
from graphcl.errors import ReplyError

TRAINING_METRICS = frozenset({"partition-id", "num-examples", "loss", "seconds"})
EVALUATION_METRICS = frozenset({"partition-id", "num-examples", "val-examples", "test-loss"})
_MOST = 2**40  # samples of a client; with more of them a weighted mean could overflow
MALFORMED = (TypeError, ValueError, KeyError, IndexError, RuntimeError)
"""What a client made up may break our reading of it with, in a way that no check foresees."""


@dataclass
class Exchanged:
    """What went to a cohort and what came back.

    Attributes:
        cohort: Partitions addressed, ascending.
        good: Replies that passed every check, in the order of their partitions.
        reasons: Why a partition's reply did not count.
        bytes_down, bytes_up: Content sent and received, by partition.
        faults: What goes wrong on purpose.
        staleness: How many aggregates overtook a partition's reply, where they do not wait.
        reduced: Whether the grid may have added up the arrays of replies that pass the checks, so
            that one of them has a sum in the place of its own and the others have an empty one.
    """

    whole_grid: Grid
    facts: Facts
    cohort: Sequence[int]
    timeout: float
    good: list[Message] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)
    bytes_down: dict[int, int] = field(default_factory=dict)
    bytes_up: dict[int, int] = field(default_factory=dict)
    faults: RoundFaults = field(default_factory=RoundFaults)
    staleness: dict[int, int] = field(default_factory=dict)
    reduced: bool = False
    _addressed: dict[int, Message] = field(default_factory=dict, init=False)
    _sizes: dict[int, int] = field(default_factory=dict, init=False)

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
        sent = self.outgoing(messages)
        self.take(self.whole_grid.send_and_receive(sent, timeout=self.timeout or None))

    def outgoing(self, messages: Iterable[Message]) -> list[Message]:
        """Return those of a strategy's messages that go out, measured."""
        sizes: dict[int, int] = {}  # a content shared by many messages is measured once
        self._addressed = {
            self.facts.nodes[message.metadata.dst_node_id]: message for message in messages
        }
        sent = {p: message for p, message in self._addressed.items() if self.faults.reaches(p)}
        for partition, message in sent.items():
            key = id(message.content)
            sizes[key] = sizes.get(key) or num_bytes(message.content)
            self.bytes_down[partition] = sizes[key]
        return list(sent.values())

    def take(self, replies: Iterable[Message]) -> None:
        """Take in the replies to what :meth:`outgoing` returned, ordered by partition."""
        by_partition = {self.facts.nodes[reply.metadata.src_node_id]: reply for reply in replies}
        for partition in self.cohort:
            reply = by_partition.get(partition)
            if partition in self._addressed and partition not in self.bytes_down:
                self.reasons[partition] = self.faults.reason(partition)
            elif reply is None:
                self.reasons[partition] = f"no reply within {self.timeout:g} s"
            elif reply.has_error():
                self.reasons[partition] = reply.error.reason or f"error {reply.error.code}"
            else:
                self._receive(partition, self._addressed[partition], reply)

    def _receive(self, partition: int, sent: Message, reply: Message) -> None:
        """Take in what the faults leave of a client's reply."""
        try:
            content = self.faults.arriving(
                partition, sent.content, reply.content, self.facts.num_classes
            )
        except MALFORMED as error:
            self.reasons[partition] = _malformed(error)
            return
        if content is None:
            self.reasons[partition] = self.faults.reason(partition)
            return
        reply.content = content
        self.bytes_up[partition] = self._num_bytes(sent.content, content)
        self.good.append(reply)

    def _is_reduced(self, content: RecordDict) -> bool:
        return self.reduced and set(content) == {"metrics", SUM}

    def _num_bytes(self, sent: RecordDict, content: RecordDict) -> int:
        """Return the size of what a client said, whose weights are as large as those it got."""
        if not self._is_reduced(content):
            return num_bytes(content)
        key = id(sent.array_records["arrays"])
        if key not in self._sizes:
            self._sizes[key] = num_bytes(RecordDict({"arrays": sent.array_records["arrays"]}))
        return self._sizes[key] + num_bytes(RecordDict({"metrics": content["metrics"]}))

    def check_training(
        self, arrays: Sequence[str], check_reply: Callable[[RecordDict], None]
    ) -> None:
        """Drop training replies that must not enter the aggregate.

        Args:
            arrays: Names of the array records that a reply holds, beside its metrics.
            check_reply: The algorithm's own check of a content.
        """

        def check(content: RecordDict, partition: int) -> None:
            if not self._is_reduced(content):  # else it was checked before
                check_training_reply(content, partition, arrays, check_reply)

        self._keep(check)

    def check_evaluation(self, scores: Sequence[Score]) -> None:
        """Drop evaluation replies whose metrics cannot be used.

        Args:
            scores: Every reply must have the first of test and of validation examples, and of the
                others the number of examples that they are means over.
        """
        score = scores[0]
        expected = EVALUATION_METRICS | {score.name, score.val_name}

        def check(content: RecordDict, partition: int) -> None:
            metrics = _metrics(content, partition)
            weights = {other.weight for other in scores if other.name in metrics}
            if missing := (expected | weights) - set(metrics):
                raise ReplyError(f"the metrics lack {sorted(missing)}")

        self._keep(check)

    def _keep(self, check: Callable[[RecordDict, int], None]) -> None:
        passed = []
        for reply in self.good:
            partition = self.facts.nodes[reply.metadata.src_node_id]
            if reason := objection(check, reply.content, partition):
                self.reasons[partition] = reason
            else:
                passed.append(reply)
        self.good = passed

    def metrics(self) -> dict[int, dict[str, Any]]:
        """Return the metrics of the replies that count, by partition."""
        return {
            self.facts.nodes[reply.metadata.src_node_id]: dict(reply.content["metrics"])
            for reply in self.good
        }


def check_training_reply(
    content: RecordDict,
    partition: int,
    arrays: Sequence[str],
    check_reply: Callable[[RecordDict], None],
) -> None:
    """Raise for a training reply that must not enter the aggregate.

    Args:
        content: The reply's.
        partition: Whose it is.
        arrays: Names of the array records that it holds, beside its metrics.
        check_reply: The algorithm's own check of a content.

    Raises:
        ReplyError: Saying what is wrong.
    """
    metrics = _metrics(content, partition)
    if set(metrics) != TRAINING_METRICS:
        raise ReplyError(f"expected the metrics {sorted(TRAINING_METRICS)}, got {sorted(metrics)}")
    if set(content) != {"metrics", *arrays}:
        raise ReplyError(
            f"expected the records {sorted({'metrics', *arrays})}, got {sorted(content)}"
        )
    if metrics["num-examples"] < 1:
        raise ReplyError("a client without a training sample cannot be weighted")
    check_reply(content)


def objection(
    check: Callable[[RecordDict, int], None], content: RecordDict, partition: int
) -> str | None:
    """Return why a check refuses a client's content; None where it does not."""
    try:
        check(content, partition)
    except ReplyError as error:
        return f"ReplyError: {error}"
    except MALFORMED as error:
        return _malformed(error)
    return None


def _malformed(error: Exception) -> str:
    return f"malformed reply: {type(error).__name__}: {error}"


def _metrics(content: RecordDict, partition: int) -> dict[str, Any]:
    """Return a reply's metrics, finite numbers of its own partition.

    Raises:
        ReplyError: If they are anything else.
    """
    record = content.metric_records.get("metrics")
    if record is None or "num-examples" not in record:
        raise ReplyError("the reply holds no metrics with 'num-examples'")
    metrics: dict[str, Any] = dict(record)
    for name, value in metrics.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ReplyError(f"metric '{name}' is {value}, not a finite number")
        if name.endswith("examples") and not (0 <= value < _MOST and value == int(value)):
            raise ReplyError(f"metric '{name}' is {value}, not a count")
    if metrics.get("partition-id") != partition:
        raise ReplyError(
            f"the node of partition {partition} speaks for {metrics.get('partition-id')}"
        )
    return metrics
