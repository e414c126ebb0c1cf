"""The learner for storm outages in one territory: SA-HGNN on its own locations and storms."""

from collections.abc import Mapping
from typing import ClassVar
from zlib import crc32

import torch
from torch import Tensor, nn

from federation.experiment import Experiment
from federation.learners.base import (
    Forward,
    LabelledLearner,
    Penalty,
    Predict,
    Projected,
    Projector,
    drawn_for,
    optimizer_for,
)
from federation.learners.probe import fit_probe
from federation.learners.territories import territory_of
from federation.tables import PROTOTYPE_STRATEGIES
from graphcl.metrics import mean_absolute_error, morisita_horn, root_mean_squared_error
from graphcl.outages import NUM_SEVERITIES, SAHGNN, SAHGNNConfig, severity
from graphcl.outages.model import EventBatches, Storms
from graphcl.training import fit


class OutageNetwork(Projected):
    """SA-HGNN and, behind its embedding of a situation, the projector of the algorithm."""

    network: SAHGNN

    def forward(self, storms: Storms) -> tuple[Tensor, Tensor]:
        """Return embeddings ``[B, N, hidden_channels]`` and expected counts ``[B, N]``."""
        z: Tensor = self.projector(self.network.situations(storms))
        return z, self.network.counts(z, storms.territory.customers)


class OutageLearner(LabelledLearner):
    """Outage counts of one territory.

    A sample is a location in an event. Its class, of which prototype algorithms exchange the
    prototypes, is the severity of its count; predicted are counts, under every algorithm.

    Where weights are averaged, so are the scales of features: a client that receives a network
    without scales takes them from its own training events, and from the second round on all have
    the mean of these, or of those who came first where no round waits for all. A feature's mean
    and deviation cross the wire for it.

    Args:
        experiment: The whole experiment.
        partition: Which client this is.
        projector: Put behind the embedding, if the algorithm has one.
    """

    heads: ClassVar[tuple[str, ...]] = ("network.hidden", "network.rate")
    computed: ClassVar[tuple[str, ...]] = ("network.rate.bias",)
    model: OutageNetwork

    def __init__(self, experiment: Experiment, partition: int, projector: Projector | None = None):
        self.config = experiment
        territory = territory_of(experiment, partition)
        events = territory.events
        # Under pooled training a client's network sees all locations and is asked about its own.
        self.asked: Tensor | slice = territory.asked
        self.num_classes, self.embedding_channels = (
            NUM_SEVERITIES,
            experiment.model.embedding_channels,
        )
        self.supervised = experiment.strategy.name in PROTOTYPE_STRATEGIES
        self.widths = {
            "static-channels": len(events.static_names),
            "weather-channels": len(events.weather_names),
        }
        self.names = crc32("\n".join((*events.static_names, *events.weather_names)).encode())
        model = self.build(experiment, partition, self.widths, self.num_classes, projector)
        storms = model.network.prepare(events)
        self.storms = {
            split: storms.of(torch.tensor(which)) for split, which in territory.splits.items()
        }
        model.network.fit_scales(self.storms["train"])
        self.head = nn.Linear(self.embedding_channels, self.num_classes)
        super().__init__(model)

    def facts(self) -> dict[str, int]:
        return {
            "num-examples": self.storms["train"].outages.numel(),
            "num-classes": self.num_classes,
            "feature-names": self.names,
            **self.widths,
        }

    def new_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return optimizer_for(model.parameters(), self.config.train)

    def fit(self, penalty: Penalty) -> dict[str, float]:
        network = self.model.network
        if not (network.static_scale.fitted and network.weather_scale.fitted):
            network.fit_scales(self.storms["train"])

        def loss(storms: Storms) -> dict[str, Tensor]:
            z, expected = self.model(storms)
            terms = network.count_loss(expected, storms.outages)
            contrast = network.contrast_loss(z, storms)
            # Under a name of its own: FedDBP has a term that is called contrast, too.
            terms |= {f"situation-{name}": term for name, term in contrast.items()}
            return {**terms, **penalty(self._labelled(z, storms))}

        self.model.train()
        order = int(torch.randint(2**31, ()))  # of the events, from the round's own stream
        batches = EventBatches(self.storms["train"], network.config.batch_events, order)
        return fit(loss, batches, self.optimizer, epochs=self.config.train.epochs)

    def _labelled(self, z: Tensor, storms: Storms) -> Forward:
        """Return what the algorithm may see of samples and their classes."""
        if not self.supervised:
            return self.no_samples()
        y = severity(storms.outages, storms.territory.customers).flatten()
        return self.unscored(z.flatten(0, 1), y)

    @torch.no_grad()
    def features(self) -> Forward:
        self.model.eval()
        storms = self.storms["train"]
        z = self.model(storms)[0].flatten(0, 1)
        y = severity(storms.outages, storms.territory.customers).flatten()
        fit_probe(self.head, z, y, self.config.pretrain.probe_decay)
        return Forward(z, self.head(z), y)

    @torch.no_grad()
    def evaluate(self, predict: Predict) -> dict[str, float]:
        self.model.eval()
        val, test = (self._expected(split) for split in ("val", "test"))
        return {
            "num-examples": test[1].numel(),
            "val-examples": val[1].numel(),
            "test-loss": float(sum(self.model.network.count_loss(*test).values())),
            "val-mae": mean_absolute_error(*val),
            "mae": mean_absolute_error(*test),
            "rmse": root_mean_squared_error(*test),
            "total-error": _total_error(*test),
            "morisita-horn": sum(map(morisita_horn, *test)) / len(test[0]),
        }

    def _expected(self, split: str) -> tuple[Tensor, Tensor]:
        """Return expected and observed counts of the client's own locations, ``[B, N]``."""
        storms = self.storms[split]
        return self.model(storms)[1][:, self.asked], storms.outages[:, self.asked]

    @staticmethod
    def build(
        experiment: Experiment,
        client: int | str,
        channels: Mapping[str, int],
        num_classes: int,
        projector: Projector | None = None,
    ) -> OutageNetwork:
        table, width = experiment.outages, experiment.model.embedding_channels
        config = SAHGNNConfig(hidden_channels=width, **table.model_dump())
        with drawn_for(experiment, client):
            network = SAHGNN(config)
            static, weather = (channels[f"{kind}-channels"] for kind in ("static", "weather"))
            network.create(list(map(str, range(static))), list(map(str, range(weather))))
            return OutageNetwork(network, None if projector is None else projector(width))


def _total_error(expected: Tensor, observed: Tensor) -> float:
    """Return how far the totals of events are off, per location, so that clients can be averaged.

    In percent it would be without bound where a district was spared.
    """
    off = expected.double().sum(1) - observed.double().sum(1)
    return float(off.abs().sum() / observed.numel())
