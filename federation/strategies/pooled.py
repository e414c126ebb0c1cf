"""Pooled training: what the clients would reach if they could put their data together.

No federation but the baseline that one is measured against. Client 0 trains one model on the union
of all clients' graphs (see :func:`federation.learners.graphs.graph_of`), as many steps a round as
every client of a federation, with moments that outlive the round; then all clients evaluate that
model on their own validation and test nodes. The bytes reported are those of the weights on their
way to be evaluated; the data, which every node of a simulation can read, are not counted.
"""

from collections.abc import Iterable

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, Strategy

from federation.experiment import Experiment
from federation.records import to_arrays, to_tensors
from federation.strategies.base import Algorithm, Exchange, Facts
from federation.strategies.weights import ALL, FEDAVG


class PooledExchange(Exchange):
    """Client half of the one that trains and of those that only evaluate.

    Wire, both ways: ``arrays``, the model's state dict.
    """

    def receive(self, content: RecordDict) -> None:
        self.learner.load_weights(to_tensors(content.array_records["arrays"]))

    def reply(self) -> RecordDict:
        return RecordDict({"arrays": to_arrays(self.learner.model.state_dict())})


class PooledStrategy(FedAvg):
    """Server half: passes on what the one client sends.

    A mean, even of one, would make floats of its whole numbers.
    """

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        for reply in replies:
            return reply.content.array_records["arrays"], None
        return None, None


def _pooled(experiment: Experiment, facts: Facts) -> Strategy:
    return PooledStrategy(**ALL)  # type: ignore[arg-type]


POOLED = Algorithm(PooledExchange, _pooled, FEDAVG.sends, FEDAVG.check_reply)
