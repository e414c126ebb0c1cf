"""FedAvg and FedProx: Flower's own server halves, and the client half they expect.

FedAvg: McMahan et al., 2017. FedProx: Li et al., 2020. Clients are stateless: every round starts
from the server's weights with fresh optimiser moments, as in Flower's own examples.
"""

from collections.abc import Mapping

from flwr.app import ArrayRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, FedProx, Strategy
from torch import Tensor

from federation.experiment import Experiment
from federation.learners import Forward
from federation.records import check_dtype, check_finite, check_shape, to_arrays, to_tensors
from federation.strategies.base import Algorithm, Exchange, Facts
from graphcl.errors import ReplyError


class WeightsExchange(Exchange):
    """Client half: load the weights, train, send them back.

    Wire, both ways: ``arrays``, the model's state dict.
    """

    personal = False

    def receive(self, content: RecordDict) -> None:
        self.received = to_tensors(content.array_records["arrays"])
        self.learner.load_weights(self.received)
        self.learner.reset_optimizer()
        self.proximal_mu = float(content.config_records["config"].get("proximal-mu", 0.0))  # type: ignore[arg-type]
        if self.proximal_mu:
            anchor = {
                k: v.to(next(self.learner.model.parameters())) for k, v in self.received.items()
            }
            self._anchor = [
                (parameter, anchor[name])
                for name, parameter in self.learner.model.named_parameters()
            ]

    def penalty(self, out: Forward) -> Mapping[str, Tensor]:
        if not self.proximal_mu:
            return {}
        square = sum(((p - a).square().sum() for p, a in self._anchor), out.logits.new_zeros(()))
        return {"proximal": self.proximal_mu / 2 * square}

    def reply(self) -> RecordDict:
        return RecordDict({"arrays": to_arrays(self.learner.model.state_dict())})


def _check(content: RecordDict, arrays: ArrayRecord, experiment: Experiment, facts: Facts) -> None:
    received = content.array_records.get("arrays")
    if received is None or set(received) != set(arrays):
        raise ReplyError(
            f"expected the arrays {sorted(arrays)}, got {sorted(received or {})}: "
            "the client holds another model"
        )
    ours = to_tensors(arrays)
    for name, tensor in to_tensors(received).items():
        check_dtype(name, tensor, ours[name].dtype)
        check_shape(name, tensor, tuple(ours[name].shape))
        check_finite(name, tensor)


# Cohorts are drawn by the round loop; the strategy trains every node it is shown.
_ALL = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}


def _fedavg(experiment: Experiment, facts: Facts) -> Strategy:
    return FedAvg(**_ALL)  # type: ignore[arg-type]


def _fedprox(experiment: Experiment, facts: Facts) -> Strategy:
    return FedProx(proximal_mu=experiment.strategy.fedprox.proximal_mu, **_ALL)  # type: ignore[arg-type]


FEDAVG = Algorithm(WeightsExchange, _fedavg, ("arrays",), _check)
FEDPROX = Algorithm(WeightsExchange, _fedprox, ("arrays",), _check)
