"""The two halves of an algorithm, and what every server half of ours shares."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, Self, runtime_checkable

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords
from torch import Tensor

from federation.experiment import Experiment
from federation.learners import Forward, Learner, Owners, Projector


@dataclass(frozen=True)
class Facts:
    """What the nodes told the server before the first round.

    Attributes:
        nodes: Partition of every node: ``node id -> partition id``.
        channels: Widths of the input features, by name; ``in-channels`` where there is one kind.
        num_classes: Number of classes over all clients.
        public_keys: Of every partition, where replies are masked.
        samples: Number of training samples of every partition.
        names: Hashes of what must be called alike where weights are averaged; each node compares
            them with its own, for it may come when the others have begun.
    """

    nodes: Mapping[int, int]
    channels: Mapping[str, int]
    num_classes: int
    public_keys: Mapping[int, bytes] = field(default_factory=dict)
    samples: Mapping[int, int] = field(default_factory=dict)
    names: Mapping[str, int] = field(default_factory=dict)

    def config(self) -> ConfigRecord:
        """Return what every node is told with every message."""
        return ConfigRecord(dict(self.names))


class Exchange(ABC):
    """Client half of an algorithm: reads what came, shapes the loss, writes the reply.

    Attributes:
        personal: Whether the whole model, with its moments, stays on the node between rounds.
        mixes: Whether :meth:`receive` changes what stays, which an evaluation must not.
        projector: What the algorithm puts between encoder and head; built from its width.
    """

    personal: ClassVar[bool] = True
    mixes: ClassVar[bool] = False

    def __init__(self, experiment: Experiment, learner: Learner):
        self.experiment = experiment
        self.learner = learner

    @classmethod
    def keeps(cls, experiment: Experiment) -> bool:
        """Say whether anything stays on the node from round to round."""
        return cls.personal

    def start(self) -> None:
        """Go back to the state of the first round."""
        self.learner.start()

    def state(self) -> dict[str, Tensor]:
        """Return what stays on the node from round to round."""
        return self.learner.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of :meth:`state`."""
        self.learner.load_state(state)

    @classmethod
    def projector(cls, experiment: Experiment) -> Projector | None:
        """Return what builds the projector from the embedding's width, if there is one."""
        return None

    @abstractmethod
    def receive(self, content: RecordDict) -> None:
        """Take in what the server sent."""

    def penalty(self, out: Forward) -> Mapping[str, Tensor]:
        """Return the algorithm's own terms of the training loss."""
        return {}

    @classmethod
    def penalties(
        cls, exchanges: Sequence[Self], out: Forward, owners: Owners
    ) -> Mapping[str, Tensor]:
        """Return the terms of several clients that share a pass, ``[clients]`` each.

        For algorithms in :data:`federation.tables.BATCHED_STRATEGIES`.
        """
        return {}

    @abstractmethod
    def reply(self) -> RecordDict:
        """Return what goes up after training, without metrics."""

    def predict(self, out: Forward) -> Mapping[str, Tensor]:
        """Return predicted classes by name of the inference; the first is the one that counts."""
        return {"head": out.logits.argmax(-1)}


@runtime_checkable
class KeepsState(Protocol):
    """A server half that a resumed run needs more of than the arrays of the last round."""

    def state(self) -> RecordDict:
        """Return it."""

    def load_state(self, state: RecordDict) -> None:
        """Inverse of :meth:`state`."""


class MessageStrategy(Strategy):
    """Server half of an algorithm whose messages may differ from node to node.

    Args:
        facts: What the nodes told before the first round.
    """

    def __init__(self, facts: Facts):
        self.facts = facts

    @abstractmethod
    def content_for(self, partition: int) -> dict[str, ArrayRecord]:
        """Return what goes down to one client, for training and evaluation alike."""

    def _messages(
        self, server_round: int, config: ConfigRecord, grid: Grid, kind: str
    ) -> Iterable[Message]:
        config = ConfigRecord({**config, "server-round": server_round})
        return [
            Message(
                RecordDict({**self.content_for(self.facts.nodes[node]), "config": config}),
                dst_node_id=node,
                message_type=kind,
            )
            for node in grid.get_node_ids()
        ]

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Address every node of the grid."""
        return self._messages(server_round, config, grid, MessageType.TRAIN)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Address every node of the grid."""
        return self._messages(server_round, config, grid, MessageType.EVALUATE)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average the metrics, weighted by the number of test samples."""
        contents = [reply.content for reply in replies if not reply.has_error()]
        return aggregate_metricrecords(contents, "num-examples") if contents else None

    @abstractmethod
    def state(self) -> RecordDict:
        """Return what a resumed run needs beside the arrays of the last round."""

    @abstractmethod
    def load_state(self, state: RecordDict) -> None:
        """Inverse of :meth:`state`."""

    def summary(self) -> None:
        """Nothing to log: the run directory holds the resolved configuration."""


@dataclass(frozen=True)
class Algorithm:
    """Both halves of a federated algorithm.

    Attributes:
        exchange: Client half.
        strategy: Builds the server half.
        sends: Names of the array records in a training reply.
        check_reply: Raises :class:`graphcl.errors.ReplyError` for a training reply that must not
            enter the aggregate; gets the content, the global arrays and the facts.
        averages: Whether the aggregate is the mean of a reply's arrays by training samples, which
            sums over many replies are enough for.
    """

    exchange: type[Exchange]
    strategy: Callable[[Experiment, Facts], Strategy]
    sends: tuple[str, ...]
    check_reply: Callable[[RecordDict, ArrayRecord, Experiment, Facts], None]
    averages: bool = False
