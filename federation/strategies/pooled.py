"""Pooled training: what the clients would reach if they could put their data together.

No federation but the baseline that one is measured against. Client 0 trains one model on the union
of all clients' graphs (see :func:`federation.learners.graphs.graph_of`), as many steps a round as
every client of a federation, with moments that outlive the round; then all clients evaluate that
model on their own validation and test nodes. The bytes reported are those of the weights on their
way to be evaluated; the data, which every node of a simulation can read, are not counted.
"""

from flwr.app import RecordDict

from federation.records import to_arrays, to_tensors
from federation.strategies.base import Algorithm, Exchange
from federation.strategies.weights import FEDAVG


class PooledExchange(Exchange):
    """Client half of the one that trains and of those that only evaluate.

    Wire, both ways: ``arrays``, the model's state dict.
    """

    def receive(self, content: RecordDict) -> None:
        self.learner.load_weights(to_tensors(content.array_records["arrays"]))

    def reply(self) -> RecordDict:
        return RecordDict({"arrays": to_arrays(self.learner.model.state_dict())})


# The mean over one client is that client.
POOLED = Algorithm(PooledExchange, FEDAVG.strategy, FEDAVG.sends, FEDAVG.check_reply)
