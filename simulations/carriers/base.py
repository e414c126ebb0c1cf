"""The contract of a carrier, and the grid that the in-process and the Ray carrier share.

This is the one module that touches what Flower keeps private: the identity of the running task,
without which no Message can be made, and the fields that a SuperLink fills in.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

from flwr.app import Context, Error, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from federation.experiment import Experiment
from federation.faults import ailments
from federation.records import round_of
from federation.server_app import app as server_app
from federation.strategies.sums import block_size
from simulations.carriers.reduction import reducible

_SERVER_NODE = 0
_RUN = 1


class Carrier(ABC):
    """Runs experiments, one after the other; what is costly to start is started once."""

    def __init__(self, experiment: Experiment):
        self.experiment = experiment

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def start(self) -> None:
        """Start what all runs share."""

    @abstractmethod
    def close(self) -> None:
        """Stop what :meth:`start` started, also where it failed half-way."""

    @abstractmethod
    def run(self, experiment: Experiment) -> None:
        """Run the ServerApp of an experiment to its end."""


class SimulatedGrid(Grid, ABC):
    """A grid of simulated nodes: node ``p + 1`` holds partition ``p``.

    Args:
        experiment: Says how many clients there are; its keys are the nodes' run configuration.
    """

    def __init__(self, experiment: Experiment):
        self.run_config = experiment.flat()
        self.num_clients = experiment.partition.clients
        self._together = experiment.simulation.batch_clients
        self._reducible = reducible(experiment)
        self._ids = itertools.count(1)
        self._replies: dict[str, Message] = {}
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = _RUN, _RUN, _SERVER_NODE

    @abstractmethod
    def deliver(self, messages: list[Message], timeout: float | None) -> list[Message]:
        """Carry messages to their nodes; return one reply each, in the same order."""

    @abstractmethod
    def take_client_states(self) -> dict[int, bytes]:
        """Return the client states that changed since the last call, by partition."""

    @abstractmethod
    def put_client_states(self, states: Mapping[int, bytes]) -> None:
        """Replace the states of clients."""

    @abstractmethod
    def rest_client_states(self, states: Mapping[int, bytes]) -> None:
        """Learn where all states can be read, so that not all need to stay in memory."""

    def batched(self, messages: Sequence[Message]) -> bool:
        """Say whether clients answer these messages as one batch."""
        kinds = {message.metadata.message_type for message in messages}
        return self._together > 0 and kinds == {MessageType.TRAIN}

    def reduces(self, messages: Sequence[Message]) -> bool:
        """Say whether the replies to these messages are added up, block by block."""
        kinds = {message.metadata.message_type for message in messages}
        return self._reducible and kinds == {MessageType.TRAIN} and block_size(len(messages)) > 1

    def blocks(self, messages: Sequence[Message]) -> list[list[int]]:
        """Return the positions of messages that are answered at once or added up.

        Who is in a block must not depend on how many workers there are, for the results do on it.
        """
        positions = sorted(range(len(messages)), key=lambda index: partition_of(messages[index]))
        size = self._together if self.batched(messages) else 1
        if self.reduces(messages):
            size = block_size(len(messages))
        return [positions[start : start + size] for start in range(0, len(positions), size)]

    def serve(self) -> None:
        """Run the ServerApp on this grid."""
        context = Context(_RUN, _SERVER_NODE, {}, RecordDict(), dict(self.run_config))
        server_app(self, context)

    def set_run(self, run: Run) -> None:
        """Do nothing: a simulated grid holds one run."""

    @property
    def run(self) -> Run:
        """The run of this grid."""
        return Run.create_empty(_RUN)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message; part of Flower's interface, ``Message(...)`` does the same."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes, in the order of their partitions."""
        return range(1, self.num_clients + 1)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return all nodes."""
        return [NodeInfo(node_id=node) for node in self.get_node_ids()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Carry messages at once; their replies wait to be pulled."""
        messages = list(messages)
        replies = self.send_and_receive(messages)
        ids = [message.metadata.message_id for message in messages]
        self._replies |= dict(zip(ids, replies, strict=True))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to these messages."""
        return [self._replies.pop(key) for key in message_ids if key in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Carry messages to their nodes and return the replies, in the same order."""
        messages = list(messages)
        for message in messages:
            # A SuperLink would fill this in.
            message.metadata.__dict__["_message_id"] = str(next(self._ids))
        return self.deliver(messages, timeout)


def partition_of(message: Message) -> int:
    """Return the partition that a message is addressed to."""
    return message.metadata.dst_node_id - 1


def client_context(
    partition: int, run_config: dict[str, bool | int | float | str], num_clients: int
) -> Context:
    """Return the fresh context of a simulated node."""
    node_config = {"partition-id": partition, "num-partitions": num_clients}
    # Thousands of contexts share one configuration, which nobody writes to.
    return Context(_RUN, partition + 1, node_config, RecordDict(), run_config)  # type: ignore[arg-type]


def ailment_of(message: Message, experiment: Experiment) -> str:
    """Return how a client's process is to fail under a message; empty where it is not."""
    if not experiment.faults.of_processes or message.metadata.message_type != MessageType.TRAIN:
        return ""
    return ailments(experiment, round_of(message.content)).get(partition_of(message), "")


def error_reply(message: Message, reason: str) -> Message:
    """Return the reply of a node that could not answer."""
    return Message(Error(ErrorCode.CLIENT_APP_CRASHED, reason=reason), reply_to=message)
