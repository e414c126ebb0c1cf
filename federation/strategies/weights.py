"""FedAvg and its kin: Flower's own server halves, and the client half they expect.

FedAvg: McMahan et al., 2017. FedProx: Li et al., 2020. Every round starts from the server's weights
with fresh optimiser moments, as in Flower's own examples. What ``strategy.personal_weights`` names
stays on its node, as does what belongs to the data of one client; without any, clients are
stateless. More than 32 clients a round are averaged in double precision, by way of sums over blocks
of them. FedPer (Arivazhagan et al., 2019) is FedAvg that leaves the last layers on their node;
LG-FedAvg (Liang et al., 2020) averages these alone, so that the clients' encoders may differ.
FedMedian and FedTrimmedAvg (Yin et al., 2018) and Krum (Blanchard et al., 2017) are FedAvg that few
hostile clients cannot steer; they do not weigh clients by their samples.
"""

from collections.abc import Mapping

import torch
from flwr.app import ArrayRecord, RecordDict
from flwr.serverapp.strategy import FedMedian, FedTrimmedAvg, Krum, Strategy
from torch import Tensor, nn

from federation.experiment import Experiment
from federation.learners import LEARNERS, Forward, Learner
from federation.learners.base import is_named
from federation.records import check_dtype, check_finite, check_shape, to_arrays, to_tensors
from federation.strategies.base import Algorithm, Exchange, Facts
from federation.strategies.sums import BlockFedAvg, BlockFedProx
from graphcl.errors import ConfigError, ReplyError


class WeightsExchange(Exchange):
    """Client half: load the weights, train, send them back.

    Wire, both ways: ``arrays``, the model's state dict without the personal weights.
    """

    personal = False

    @classmethod
    def keeps(cls, experiment: Experiment) -> bool:
        return experiment.strategy.name == "lgfedavg" or bool(personal_names(experiment))

    def __init__(self, experiment: Experiment, learner: Learner):
        super().__init__(experiment, learner)
        self._shared = list(shared_weights(learner.model, experiment))

    def state(self) -> dict[str, Tensor]:
        weights = self.learner.bench.weights.items()
        return {name: value for name, value in weights if name not in self._shared}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.learner.load_weights({**self.learner.bench.weights, **state})

    def receive(self, content: RecordDict) -> None:
        received = to_tensors(content.array_records["arrays"])
        self.learner.load_weights({**self.state(), **received})
        self.learner.reset_optimizer()
        self.proximal_mu = float(content.config_records["config"].get("proximal-mu", 0.0))  # type: ignore[arg-type]
        if self.proximal_mu:
            anchor = {k: v.to(next(self.learner.model.parameters())) for k, v in received.items()}
            self._anchor = [
                (parameter, anchor[name])
                for name, parameter in self.learner.model.named_parameters()
                if name in anchor
            ]

    def penalty(self, out: Forward) -> Mapping[str, Tensor]:
        if not self.proximal_mu:
            return {}
        square = sum(((p - a).square().sum() for p, a in self._anchor), out.logits.new_zeros(()))
        return {"proximal": self.proximal_mu / 2 * square}

    def reply(self) -> RecordDict:
        weights = self.learner.bench.weights
        return RecordDict({"arrays": to_arrays({name: weights[name] for name in self._shared})})


def personal_names(experiment: Experiment) -> list[str]:
    """Return the names of the weights, or of modules of them, that stay on their node."""
    learner_type = LEARNERS[experiment.task.name]
    heads = learner_type.heads if experiment.strategy.name == "fedper" else ()
    return [*learner_type.own_names(experiment), *heads, *experiment.strategy.personal_names]


def shared_weights(model: nn.Module, experiment: Experiment) -> dict[str, Tensor]:
    """Return the weights that cross the wire: all but the personal ones."""
    weights, stay = model.state_dict().items(), personal_names(experiment)
    shared = {name: value for name, value in weights if not is_named(name, stay)}
    if experiment.strategy.name == "lgfedavg":
        heads = LEARNERS[experiment.task.name].heads
        return {name: value for name, value in shared.items() if is_named(name, heads)}
    return shared


class LearnedWeights:
    """Which weights training moves, in steps that can be continued, scaled or added up.

    The others are measured or counted, such as scales of features: of these one can but take a
    mean.

    Args:
        experiment: The whole experiment.
        facts: What the nodes told before the first round.
    """

    def __init__(self, experiment: Experiment, facts: Facts):
        learner_type = LEARNERS[experiment.task.name]
        model = learner_type.build(experiment, "server", facts.channels, facts.num_classes)
        first = dict(model.named_parameters())
        self._names = set(first)
        self._placeholders = {
            name: weight.detach().clone()
            for name, weight in first.items()
            if is_named(name, learner_type.computed)
        }

    def moved_from(self, weights: Mapping[str, Tensor]) -> set[str]:
        """Return the names of those that clients moved who began with some weights.

        What clients compute before they train has not moved from what it was at first.
        """
        return self._names - {
            name
            for name, first in self._placeholders.items()
            if name in weights and torch.equal(weights[name], first)
        }


def first_weights(model: nn.Module, experiment: Experiment) -> dict[str, Tensor]:
    """Return the weights that the server begins with.

    Raises:
        ConfigError: If a personal name names no weight, or none is left to share.
    """
    if experiment.strategy.name == "pooled":  # one client holds the data of all
        return model.state_dict()
    names = list(model.state_dict())
    for personal in experiment.strategy.personal_names:
        if not any(is_named(name, [personal]) for name in names):
            modules = dict.fromkeys(".".join(name.split(".")[:2]) for name in names)
            raise ConfigError(
                f"strategy.personal_weights: '{personal}' names no weight of the model; it has "
                f"{', '.join(modules)}"
            )
    shared = shared_weights(model, experiment)
    if not shared:
        raise ConfigError(
            "strategy.personal_weights: no weight is left to share; name fewer, or compare with "
            "'local'"
        )
    return shared


def check_weights(content: RecordDict, arrays: ArrayRecord) -> None:
    """Raise for arrays that are not like the global ones.

    Raises:
        ReplyError: Naming the array and what is wrong with it.
    """
    received = content.array_records.get("arrays")
    if received is None or set(received) != set(arrays):
        raise ReplyError(
            f"expected the arrays {sorted(arrays)}, got {sorted(received or {})}: "
            "the client holds another model"
        )
    tensors = to_tensors(received)
    for name, tensor in tensors.items():
        ours = arrays[name]  # stays packed: what it says of itself is enough
        check_dtype(name, tensor, getattr(torch, ours.dtype))
        check_shape(name, tensor, tuple(ours.shape))
    check_finite(tensors)


def _check(content: RecordDict, arrays: ArrayRecord, experiment: Experiment, facts: Facts) -> None:
    check_weights(content, arrays)


# Cohorts are drawn by the round loop; the strategy trains every node it is shown.
ALL = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}


def _fedavg(experiment: Experiment, facts: Facts) -> Strategy:
    return BlockFedAvg(facts, not experiment.asynchronous, **ALL)


def _fedprox(experiment: Experiment, facts: Facts) -> Strategy:
    mu = experiment.strategy.fedprox.proximal_mu
    return BlockFedProx(facts, not experiment.asynchronous, proximal_mu=mu, **ALL)


def _fedmedian(experiment: Experiment, facts: Facts) -> Strategy:
    return FedMedian(**ALL)  # type: ignore[arg-type]


def _fedtrimmedavg(experiment: Experiment, facts: Facts) -> Strategy:
    return FedTrimmedAvg(beta=experiment.strategy.robust.trim, **ALL)  # type: ignore[arg-type]


def _krum(experiment: Experiment, facts: Facts) -> Strategy:
    return Krum(num_malicious_nodes=experiment.strategy.robust.hostile, **ALL)  # type: ignore[arg-type]


FEDAVG = Algorithm(WeightsExchange, _fedavg, ("arrays",), _check, averages=True)
FEDPER = LGFEDAVG = FEDAVG  # what stays is told by the strategy's name
FEDPROX = Algorithm(WeightsExchange, _fedprox, ("arrays",), _check, averages=True)
FEDMEDIAN = Algorithm(WeightsExchange, _fedmedian, ("arrays",), _check)
FEDTRIMMEDAVG = Algorithm(WeightsExchange, _fedtrimmedavg, ("arrays",), _check)
KRUM = Algorithm(WeightsExchange, _krum, ("arrays",), _check)
