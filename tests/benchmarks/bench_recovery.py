"""Does SC-FSGL's separation recover what the clients of ``confounded_series`` share?

Four federated clients whose confounders obey opposite laws; of every test window, the changes of
the true shared part s and of the confounder c until each step ahead. Asked is which of them a part
of the representation is *used* for: a forecast is what it is without either part, plus a
contribution of the shared and one of the own part (the mean over both orders of adding them:
Shapley's value), and each contribution is correlated with the change of s and of c. With r the
correlation over windows,

    separation = (r(shared, s) - r(own, s) + r(own, c) - r(shared, c)) / 2

is 0 where both parts do the same, and negative where they do each other's work.  Beside it stands
the error on validation windows, standardised: what the separation costs.

Parts are separated by transfer, or by the masks alone. Controls: the module off, where even
channels stand for the shared part and odd ones for the own, and transfer before its first round.
Marks to measure by: a linear rule of all clients with each one's own linear correction of it, which
is what transfer can tell apart of itself; and a regression of each true part on its own past, about
the most there is. Steps of half an hour, where s and c change alike within a horizon; within an
hour s hardly does. Design and figures while it was worked on are of seed 10, those reported of
others.

Run with ``python tests/benchmarks/bench_recovery.py --seeds 0 1 2``; about six minutes.
"""

import argparse
import math
import statistics
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from scipy.stats import t as student
from torch import Tensor

from federation.client_app import forget_learners
from federation.experiment import Experiment, load_experiment
from federation.learners import ForecastLearner
from federation.records import unpack
from federation.strategies import ALGORITHMS
from federation.strategies.base import Facts
from graphcl.datasets import ConfoundedSeries, confounded_series, save_series
from graphcl.spatiotemporal import SCFSGL, Sample
from graphcl.spatiotemporal.sc_fsgl import Parts, Represented
from simulations.carriers.local import LocalGrid

CONFIG = Path("configs/series.toml")
CLIENTS, NODES, STEPS, INTERVAL = 4, 12, 2016, 1800
SETTINGS = {
    "run.compare": "",
    "simulation.engine": "local",
    "model.embedding_channels": 32,
    "forecast.epoch_windows": 640,
    "partition.clients": CLIENTS,
}
ROUNDS = 10
ROWS = {  # separation, rounds
    "transfer": ("transfer", ROUNDS),
    "transfer, untrained": ("transfer", 0),
    "conditional": ("conditional", ROUNDS),
    "off, channels halved": ("off", ROUNDS),
}
COLUMNS = ("shared, s", "shared, c", "own, s", "own, c", "separation", "val MAE")
_RIDGE = 1e-3


def federate(experiment: Experiment, rounds: int) -> list[ForecastLearner]:
    """Train all clients; return them as they stand after the last aggregate."""
    forget_learners()
    grid, algorithm = LocalGrid(experiment), ALGORITHMS[experiment.strategy.name]
    nodes = {node: partition for partition, node in enumerate(grid.get_node_ids())}
    strategy = algorithm.strategy(experiment, Facts(nodes, {}, experiment.forecast.num_prototypes))
    for server_round in range(1, rounds + 1):
        messages = strategy.configure_train(server_round, ArrayRecord(), ConfigRecord(), grid)
        strategy.aggregate_train(server_round, grid.send_and_receive(messages))
    learners = []
    for partition in nodes.values():
        learners.append(ForecastLearner(experiment, partition))
        exchange = algorithm.exchange(experiment, learners[-1])
        for state in grid.contexts[
            partition
        ].state.array_records.values():  # none before the first round
            exchange.load_state(unpack(state))
        exchange.receive(RecordDict(dict(strategy.content_for(partition))))
    return learners


@torch.no_grad()
def contributions(learner: ForecastLearner) -> Tensor:
    """Return what both parts add to the forecasts of all test windows, ``[2, W, F, N]``."""
    learner.model.eval()
    network, windows = learner.model.network, learner.windows["test"]
    found = []
    for index in torch.arange(len(windows)).split(64):
        sample = Sample.of(windows.batch(index), network.scaler)
        found.append(_contributions(network, network.represent(sample)))
    return torch.cat(found, 1)


def _contributions(network: SCFSGL, represented: Represented) -> Tensor:
    shared, own = _parts(network, represented)
    none = Parts(*(torch.zeros_like(part) for part in shared))

    def forecast(shared: Parts, own: Parts) -> Tensor:
        whole = Parts(*(c + o for c, o in zip(shared, own, strict=True)))
        if network.config.separation == "off":
            shared = whole
        if network.own is None:
            return network.decode(network.fuse(whole, shared)[0], represented.anchor)[..., 0]
        told = network.decode(network.fuse(shared, shared)[0], represented.anchor)
        return (told + network.own(own, represented.anchor))[..., 0]

    full, nothing = forecast(shared, own), forecast(none, none)
    of_shared, of_own = forecast(shared, none), forecast(none, own)
    first, second = (of_shared - nothing + full - of_own), (of_own - nothing + full - of_shared)
    return torch.stack([first, second]) / 2


def _parts(network: SCFSGL, represented: Represented) -> tuple[Parts, Parts]:
    """Return the shared and the own part; halves of the channels where nothing is separated."""
    if network.config.separation != "off":
        return represented.shared, represented.own
    even = torch.arange(network.config.hidden_channels) % 2 == 0
    whole = represented.shared
    return Parts(*(part * even for part in whole)), Parts(*(part * ~even for part in whole))


class Regression:
    """Ridge regressions from windows of some signal to its changes, all clients and sensors alike.

    Args:
        signals: Of each client, ``[T, N]``.
        history: Steps in.
        horizon: Steps out.
        train_steps: The first steps, whose windows are fitted to.
    """

    def __init__(self, signals: list[Tensor], history: int, horizon: int, train_steps: int):
        self.y = [changes(signal, history, horizon).movedim(1, 2).double() for signal in signals]
        self.x = [_inputs(signal, history, len(self.y[0])) for signal in signals]
        self.known = train_steps - history - horizon + 1

    def fit(self, targets: list[Tensor], clients: list[int]) -> Tensor:
        """Return weights that are fitted to the training windows of some clients."""
        x = torch.cat([self.x[k][: self.known].flatten(0, 1) for k in clients])
        y = torch.cat([targets[k][: self.known].flatten(0, 1) for k in clients])
        penalty = _RIDGE * torch.eye(x.size(1))
        return torch.linalg.solve(x.T @ x / len(x) + penalty, x.T @ y / len(x))

    def alone(self, client: int) -> Tensor:
        """Return what a client's own regression forecasts in all windows, ``[W, F, N]``."""
        return (self.x[client] @ self.fit(self.y, [client])).movedim(2, 1)

    def common_and_own(self, client: int) -> Tensor:
        """Return a rule of all clients, and what the client's own adds, ``[2, W, F, N]``."""
        rule = self.fit(self.y, list(range(len(self.x))))
        rest = [y - x @ rule for x, y in zip(self.x, self.y, strict=True)]
        weights = torch.stack([rule, self.fit(rest, [client])])
        return torch.stack([self.x[client] @ weight for weight in weights]).movedim(3, 2)


def changes(signal: Tensor, history: int, horizon: int) -> Tensor:
    """Return how a signal changes after the last step of each of its windows, ``[W, F, N]``."""
    ahead = signal[history:].unfold(0, horizon, 1).movedim(-1, 1)
    return ahead - signal[history - 1 : len(signal) - horizon, None]


def _inputs(signal: Tensor, history: int, windows: int) -> Tensor:
    """Return the past of a signal, its daily phase and 1, ``[W, N, history + 5]``."""
    past = signal.unfold(0, history, 1)[:windows].double()
    day = 2 * math.pi * (torch.arange(windows).double() + history - 1) * INTERVAL / 86400
    clock = torch.stack([f(k * day) for f in (torch.sin, torch.cos) for k in (0, 1, 2)][1:], -1)
    return torch.cat([past, clock[:, None].expand(-1, past.size(1), -1)], -1)


def correlation(contribution: Tensor, change: Tensor) -> float:
    """Return the correlation over windows, the mean over steps ahead and sensors."""
    a, b = (z - z.mean(0) for z in (contribution, change))
    return float(F.cosine_similarity(a, b, dim=0).mean())


def scores(contribution: Tensor, truth: ConfoundedSeries) -> list[float]:
    """Return both correlations of the shared part, both of the own part, and the separation.

    Shapes:
        contribution: ``[2, W, F, N]``, in the last windows of the series.
    """
    _, windows, horizon, _ = contribution.shape
    parts = [part[-windows - horizon :] for part in (truth.shared, truth.confounder)]
    change = [changes(part, 1, horizon) for part in parts]
    r = [correlation(part, true) for part in contribution for true in change]
    return [*r, (r[0] - r[2] + r[3] - r[1]) / 2]


def measure(seed: int) -> dict[str, list[float]]:
    """Return all columns of all rows, means over clients; those of regressions lack the last."""
    truths = confounded_series(CLIENTS, NODES, STEPS, interval=INTERVAL, laws="opposite", seed=seed)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        files = [f"{folder}/{truth.series.name}.npz" for truth in truths]
        for file, truth in zip(files, truths, strict=True):
            save_series(truth.series, file)
        given = {**SETTINGS, "run.seed": seed, "data.source": ", ".join(files)}
        for row, (separation, rounds) in ROWS.items():
            experiment = load_experiment(CONFIG, {**given, "forecast.separation": separation})
            learners = federate(experiment, rounds)
            found[row] = _mean(
                [
                    [*scores(contributions(learner), truth), learner.val_error()]
                    for learner, truth in zip(learners, truths, strict=True)
                ]
            )
    return {**found, **_regressions(learners[0], truths)}


def _regressions(
    learner: ForecastLearner, truths: tuple[ConfoundedSeries, ...]
) -> dict[str, list[float]]:
    """Return the rows of ridge regressions, whose windows are those of a learner."""
    config = learner.model.network.config
    steps = config.history, config.horizon, learner.windows["train"].series.num_steps
    values = Regression([truth.series.values[..., 0] for truth in truths], *steps)
    shared = Regression([truth.shared for truth in truths], *steps)
    confounder = Regression([truth.confounder for truth in truths], *steps)
    rows: dict[str, list[list[float]]] = {"ridge, common and own": [], "ridge, true parts": []}
    tested = len(learner.windows["test"])
    for client, truth in enumerate(truths):
        told = values.common_and_own(client)
        ideal = torch.stack([part.alone(client) for part in (shared, confounder)])
        for row, contribution in zip(rows.values(), (told, ideal), strict=True):
            row.append(scores(contribution[:, -tested:], truth))
    return {name: _mean(row) for name, row in rows.items()}


def _mean(rows: list[list[float]]) -> list[float]:
    return [statistics.mean(column) for column in zip(*rows, strict=True)]


def interval(values: list[float]) -> str:
    """Return mean and 95 % interval over seeds."""
    if len(values) < 2:
        return f"{values[0]:.3f}"
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.3f} ± {half:.3f}"


def main() -> None:
    """Print one row per network, and how far transfer is ahead of the others."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    torch.set_num_threads(1)
    found = [measure(seed) for seed in parser.parse_args().seeds]
    print(f"{'correlation of':<30}" + "".join(f"{name:>17}" for name in COLUMNS))
    for row in found[0]:
        columns = zip(*(one[row] for one in found), strict=True)
        print(f"{row:<30}" + "".join(f"{interval(list(column)):>17}" for column in columns))
    place = COLUMNS.index("separation")
    on, *others = ROWS
    for other in others:
        ahead = [one[on][place] - one[other][place] for one in found]
        print(f"separation, {on} ahead of {other} by {interval(ahead)} (95 % over seeds)")


if __name__ == "__main__":
    main()
