"""Who takes part: discovery of the nodes, and the seeded cohort of every round."""

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from logging import ERROR
from typing import Protocol, runtime_checkable

from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from federation.experiment import Experiment
from federation.privacy.masking import KEY_BYTES
from federation.strategies import Facts
from federation.tables import WEIGHT_STRATEGIES
from graphcl.errors import FederationError
from graphcl.training import numpy_rng

_FACTS = frozenset({"partition-id", "num-examples", "num-classes"})  # beside widths and names


@runtime_checkable
class KnowsPartitions(Protocol):
    """A grid that knows for itself which partition a node holds."""

    def partitions(self) -> Mapping[int, int]:
        """Return the partition of every known node: ``node id -> partition id``."""


def discover(grid: Grid, experiment: Experiment) -> Facts:
    """Wait for all nodes, and ask each for its partition and the shape of its data.

    A grid that knows its partitions may begin with ``run.min_success`` of them: a node whose data
    are broken, or that is not there, is addressed in every round and takes part once it answers.

    Raises:
        FederationError: If nodes are missing, two claim one partition, or their data do not fit
            one another.
    """
    known = grid.partitions() if isinstance(grid, KnowsPartitions) else None
    nodes = _wait_for_nodes(grid, experiment, known is not None)
    messages = [
        Message(RecordDict(), dst_node_id=node, message_type=f"{MessageType.QUERY}.hello")
        for node in nodes
    ]
    found: dict[int, int] = {}
    facts: dict[int, dict[str, int]] = {}
    keys: dict[int, bytes] = {}
    absent: list[str] = []
    replies = list(grid.send_and_receive(messages, timeout=experiment.run.timeout or None))
    usual = _usual_names(replies)
    for reply in replies:
        node = reply.metadata.src_node_id
        try:
            told = _told(reply, experiment, known)
            _check_alike(node, told, usual)
            key = _public_key(reply) if experiment.masked else b""
        except FederationError as error:
            if known is None:
                raise
            log(ERROR, "%s", error)
            absent.append(str(error))
            continue
        partition = told["partition-id"]
        if partition in facts:
            raise FederationError(
                f"two nodes claim partition {partition}; give every node its own 'partition-id'"
            )
        found[node] = partition
        facts[partition] = told
        if experiment.masked:
            keys[partition] = key
    _check_enough(facts, absent, experiment, known is not None)
    averaged = experiment.strategy.name in WEIGHT_STRATEGIES
    first = next(iter(facts.values()))
    return Facts(
        nodes=dict(sorted((known or found).items(), key=lambda item: item[1])),
        channels={
            name: _agree(facts, name, averaged) for name in first if name.endswith("-channels")
        },
        num_classes=_agree(facts, "num-classes", True),
        public_keys=keys,
        samples=_samples(facts, known),
        names={
            name: _agree(facts, name, True)
            for name in first
            if averaged and name.endswith("-names")
        },
    )


def _samples(
    facts: Mapping[int, Mapping[str, int]], known: Mapping[int, int] | None
) -> dict[int, int]:
    """Return the training samples of every partition; the mean for one that is not there yet."""
    told = {partition: one["num-examples"] for partition, one in facts.items()}
    mean = round(sum(told.values()) / len(told))
    partitions = told if known is None else sorted(known.values())
    return {partition: told.get(partition, mean) for partition in partitions}


def _told(
    reply: Message, experiment: Experiment, known: Mapping[int, int] | None
) -> dict[str, int]:
    """Return what a node told of itself.

    Raises:
        FederationError: If it could not start, tells no counts, or speaks for a partition that is
            not its own.
    """
    node = reply.metadata.src_node_id
    if reply.has_error():
        raise FederationError(f"node {node} could not start: {reply.error.reason}")
    told: dict[str, int] = {}
    for name, value in reply.content.metric_records.get("facts", MetricRecord()).items():
        if not isinstance(value, int) or (value < 0 and name != "partition-id"):
            raise FederationError(f"node {node} tells '{name[:80]}', which is no count")
        told[name] = value
    if missing := sorted(_FACTS - set(told)):
        raise FederationError(f"node {node} does not tell {', '.join(missing)}")
    partition = told["partition-id"]
    if not 0 <= partition < experiment.partition.clients:
        raise FederationError(
            f"node {node} claims partition {partition}, which does not lie in "
            f"0..{experiment.partition.clients - 1} (partition.clients)"
        )
    if known is not None and known[node] != partition:
        raise FederationError(
            f"the node of partition {known[node]}, known by its key, claims partition {partition}"
        )
    return told


def _usual_names(replies: Iterable[Message]) -> frozenset[str]:
    """Return the names of what most nodes tell, whoever of them answers first."""
    told = [r.content.metric_records.get("facts") for r in replies if not r.has_error()]
    counts = Counter(frozenset(facts) for facts in told if facts is not None)
    return max(counts, key=lambda names: (counts[names], sorted(names)), default=frozenset())


def _check_alike(node: int, told: Mapping[str, int], usual: frozenset[str]) -> None:
    """Refuse a node that tells other things than most."""
    if differ := sorted(set(told) ^ usual):
        raise FederationError(
            f"node {node} differs from the others in what it tells: {', '.join(differ)[:80]}; "
            "all need the same task and the same version"
        )


def _public_key(reply: Message) -> bytes:
    """Return the key that a node drew for its masks.

    Raises:
        FederationError: If it sent none.
    """
    key = reply.content.config_records.get("masking", ConfigRecord()).get("public")
    if not isinstance(key, bytes) or len(key) != KEY_BYTES:
        raise FederationError(f"node {reply.metadata.src_node_id} sent no key for its masks")
    return key


def _check_enough(
    facts: Mapping[int, object], absent: list[str], experiment: Experiment, known: bool
) -> None:
    clients = experiment.partition.clients
    needed = clients
    if known and not experiment.masked:
        needed = max(1, math.ceil(experiment.run.min_success * clients))
    if len(facts) < needed:
        why = f" ({'; '.join(absent[:3])})" if absent else ""
        raise FederationError(
            f"{len(facts)} of {clients} nodes said hello within {experiment.run.timeout:g} s{why}"
        )


def _wait_for_nodes(grid: Grid, experiment: Experiment, known: bool) -> list[int]:
    """Poll until all nodes are there: a simulation starts before they are registered."""
    expected = experiment.partition.clients
    deadline = time.monotonic() + (experiment.run.timeout or math.inf)
    while len(nodes := list(grid.get_node_ids())) < expected:
        if time.monotonic() > deadline:
            if known and nodes:
                break  # whether they are enough shows when they have said hello
            raise FederationError(
                f"{len(nodes)} of partition.clients = {expected} nodes are connected after "
                f"{experiment.run.timeout:g} s; start the others or lower partition.clients"
            )
        time.sleep(0.05)
    return nodes


def _agree(facts: Mapping[int, Mapping[str, int]], name: str, needed: bool) -> int:
    values = {partition: told[name] for partition, told in facts.items()}
    if needed and len(set(values.values())) > 1:
        raise FederationError(f"the clients differ in {name}: {dict(sorted(values.items()))}")
    return max(values.values())


def draw_cohort(experiment: Experiment, server_round: int) -> list[int]:
    """Return the partitions that train in a round, ascending.

    They are drawn over partitions, never over node ids, which Flower makes up anew in every run.
    """
    if experiment.strategy.name == "pooled":
        return [0]  # it holds the union of all clients' data
    clients = experiment.partition.clients
    size = max(1, round(experiment.strategy.fraction * clients))
    rng = numpy_rng(experiment.run.seed, "cohort", server_round)
    return sorted(int(partition) for partition in rng.choice(clients, size, replace=False))


class CohortGrid(Grid):
    """A grid that shows a strategy the nodes of one cohort and forwards everything else.

    Flower's strategies draw their own cohorts over the nodes they see; shown just the cohort,
    they take all of it.
    """

    def __init__(self, grid: Grid, nodes: Iterable[int]):
        self._grid = grid
        self._nodes = list(nodes)

    def get_node_ids(self) -> Iterable[int]:
        """Return the cohort."""
        return self._nodes

    @property
    def run(self) -> Run:
        """The run of the grid behind."""
        return self._grid.run

    def set_run(self, run: Run) -> None:
        """Forward to the grid behind."""
        self._grid.set_run(run)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Forward to the grid behind."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Forward to the grid behind."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Forward to the grid behind."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Forward to the grid behind."""
        return self._grid.send_and_receive(messages, timeout=timeout)
