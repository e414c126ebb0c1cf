"""FedAvgM and FedAdam: the mean move of the clients is a gradient to an optimiser of the server.

FedAvgM: Hsu et al., Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification, 2019. FedAdam: Reddi et al., Adaptive Federated Optimization, ICLR 2021, algorithm
2. The client half is FedAvg's. Ours: the optimisers are torch's, so that Adam corrects the bias of
both moments (Flower's FedAdam: with another power of the decays); they step weights alone, while
scales, counts and the like are averaged as under FedAvg; the mean is taken in double precision,
lest Adam take the rounding of what nobody moved for a direction; moments outlast a stop.
"""

from collections.abc import Callable, Iterable
from typing import ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from federation.experiment import Experiment
from federation.records import to_arrays, to_tensors
from federation.strategies.base import Algorithm, Facts
from federation.strategies.sums import BlockFedAvg
from federation.strategies.weights import ALL, FEDAVG, LearnedWeights

# The record of the moments in the state of a server.
_MOMENTS = "moments"


class ServerOptimizer(BlockFedAvg):
    """FedAvg whose mean is where the clients would go, and an optimiser says how far.

    Args:
        facts: What the nodes told before the first round.
        learned: Which weights the optimiser steps.
        optimizer: Makes the optimiser of the tensors it is given.
        in_blocks: See :class:`BlockFedAvg`.
    """

    exact: ClassVar[bool] = True

    def __init__(
        self,
        facts: Facts,
        learned: LearnedWeights,
        optimizer: Callable[[list[Tensor]], Optimizer],
        in_blocks: bool = True,
    ):
        super().__init__(facts, in_blocks=in_blocks, **ALL)
        self._learned = learned
        self._make = optimizer
        self._weights: dict[str, Tensor] = {}
        self._moments: dict[str, Tensor] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Keep the weights from which the clients set out."""
        self._weights = to_tensors(arrays)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take a step along the clients' mean move."""
        mean, metrics = super().aggregate_train(server_round, replies)
        if mean is None:
            return None, metrics
        means, learned = to_tensors(mean), self._learned.moved_from(self._weights)
        moved = {name: w for name, w in self._weights.items() if name in learned}
        for name, weight in moved.items():
            weight.grad = weight - means[name]
        optimizer = self._make(list(moved.values()))
        for key, value in self._moments.items():
            slot, name = key.split("/", 1)
            optimizer.state[moved[name]][slot] = value.clone()  # it changes in place
        optimizer.step()
        self._moments = {
            f"{slot}/{name}": value
            for name, weight in moved.items()
            for slot, value in optimizer.state[weight].items()
        }
        return to_arrays({**means, **moved}), metrics

    def state(self) -> RecordDict:
        """Return the moments."""
        return RecordDict({_MOMENTS: to_arrays(self._moments)})

    def load_state(self, state: RecordDict) -> None:
        """Inverse of :meth:`state`."""
        self._moments = to_tensors(state.array_records[_MOMENTS])


def _fedavgm(experiment: Experiment, facts: Facts) -> ServerOptimizer:
    table = experiment.strategy.fedavgm
    return ServerOptimizer(
        facts,
        LearnedWeights(experiment, facts),
        lambda weights: SGD(weights, table.learning_rate, table.momentum),
        not experiment.asynchronous,
    )


def _fedadam(experiment: Experiment, facts: Facts) -> ServerOptimizer:
    table = experiment.strategy.fedadam
    return ServerOptimizer(
        facts,
        LearnedWeights(experiment, facts),
        lambda weights: Adam(
            weights, table.learning_rate, (table.beta_1, table.beta_2), eps=table.tau
        ),
        not experiment.asynchronous,
    )


FEDAVGM = Algorithm(FEDAVG.exchange, _fedavgm, FEDAVG.sends, FEDAVG.check_reply, averages=True)
FEDADAM = Algorithm(FEDAVG.exchange, _fedadam, FEDAVG.sends, FEDAVG.check_reply, averages=True)
