"""The learner for the next steps of one site's series: SC-FSGL on its own graph."""

from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np
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
    is_named,
    optimizer_for,
)
from federation.learners.probe import fit_probe
from federation.learners.sites import sites, splits_of
from federation.scores import HORIZONS
from federation.tables import PROTOTYPE_STRATEGIES
from graphcl.datasets import SpatioTemporalSeries, Windows
from graphcl.errors import DataError
from graphcl.metrics import masked_mae, masked_mape, masked_rmse
from graphcl.spatiotemporal import SCFSGL, LastValue, Sample, SCFSGLConfig
from graphcl.spatiotemporal.samples import SampleBatches
from graphcl.spatiotemporal.sc_fsgl import Represented
from graphcl.training import clip_gradients, derive_seed, fit

_SPREAD = 64  # windows that stand for all of a part
_PROBE_DECAY = 0.1
# What belongs to the sensors of one site, and its encoder of the round before.
_OWN = (
    "network.scaler",
    "network.calendar",
    "network.profile",
    "network.encoder.node",
    "network.own.encoder.node",
    "network.previous",
)


class ForecastNetwork(Projected):
    """SC-FSGL and, behind what it decodes, the projector of the algorithm."""

    network: SCFSGL

    def forward(self, sample: Sample) -> tuple[Represented, Tensor]:
        """Return representations, ``fused`` behind the projector, and forecasts from them."""
        represented = self.network.represent(sample)
        represented = represented._replace(fused=self.projector(represented.fused))
        return represented, self.network.forecast_of(represented, sample)


class ForecastLearner(LabelledLearner):
    """Forecasts of one site.

    A sample is a channel of a sensor in a window. Its class, of which prototype algorithms exchange
    the prototypes, is the row of the codebook that its temporal side matches best; the codebook is
    the same everywhere and at rest under them, so that a class means the same on every client.
    Predicted are the next steps, under every algorithm.

    Args:
        experiment: The whole experiment.
        partition: Which client this is.
        projector: Put behind the representation, if the algorithm has one.

    Raises:
        DataError: If no error relative to the last value's can be told of a part.
    """

    heads: ClassVar[tuple[str, ...]] = (
        "network.gate",
        "network.recall",
        "network.hidden",
        "network.usual",
        "network.out",
        "network.own.gate",
        "network.own.hidden",
        "network.own.usual",
        "network.own.out",
    )
    model: ForecastNetwork

    def __init__(self, experiment: Experiment, partition: int, projector: Projector | None = None):
        self.config = experiment
        splits = splits_of(experiment, partition)
        # Under pooled training a client's network sees all sensors and is asked about its own.
        pooled = experiment.strategy.name == "pooled"
        self.asked: Tensor | slice = sites(experiment).nodes[partition] if pooled else slice(None)
        self.num_classes = max(1, experiment.forecast.num_prototypes)
        self.embedding_channels = experiment.model.embedding_channels
        self.supervised = experiment.strategy.name in PROTOTYPE_STRATEGIES
        model = self.build(experiment, partition, {}, self.num_classes, projector)
        self.windows = {split: model.network.windows(part) for split, part in splits.items()}
        self.floor = mape_floor(splits["train"])
        persistence = LastValue(model.network.config).fit(splits["train"], splits["val"])
        self.reference = {
            split: self._reference(split, persistence.predict(splits[split]))
            for split in ("val", "test")
        }
        self.head = nn.Linear(self.embedding_channels, self.num_classes)
        super().__init__(model)

    @staticmethod
    def own_names(experiment: Experiment) -> tuple[str, ...]:
        return _OWN

    def facts(self) -> dict[str, int]:
        windows = self.windows["train"]
        described = min(_SPREAD, len(windows)) * windows.series.values[0].numel()
        return {
            "num-examples": described if self.supervised else len(windows),
            "num-classes": self.num_classes,
        }

    def new_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        moving = [p for p in model.parameters() if p.requires_grad]
        return clip_gradients(optimizer_for(moving, self.config.train))

    def fit(self, penalty: Penalty) -> dict[str, float]:
        network = self.model.network

        def loss(sample: Sample) -> dict[str, Tensor]:
            represented, forecast = self.model(sample)
            terms = network.terms(represented, forecast, sample)
            return {**terms, **penalty(self._labelled(represented))}

        network.begin_round()
        self.model.train()
        order = int(torch.randint(2**31, ()))  # of the windows, from the round's own stream
        table = self.config.forecast
        batches = SampleBatches(
            self.windows["train"], network.scaler, table.batch_windows, order, table.epoch_windows
        )
        return fit(loss, batches, self.optimizer, epochs=self.config.train.epochs)

    def _labelled(self, represented: Represented) -> Forward:
        """Return what the algorithm may see of samples and their classes."""
        if not self.supervised:
            return self.no_samples()
        embedding = represented.fused.flatten(0, 2)
        return self.unscored(embedding, represented.matches[0].best.flatten())

    @torch.no_grad()
    def features(self) -> Forward:
        parts = [self._labelled(represented) for represented in self._described()]
        z, y = (torch.cat([part[i] for part in parts]) for i in (0, 2))
        fit_probe(self.head, z, y, _PROBE_DECAY)
        return Forward(z, self.head(z), y)

    @torch.no_grad()
    def support(self) -> Tensor:
        """Return how often each row of the codebook matches best, over both sides, ``[rows]``."""
        best = [m.best.flatten() for described in self._described() for m in described.matches]
        return torch.bincount(torch.cat(best), minlength=self.num_classes)

    @torch.no_grad()
    def val_error(self) -> float:
        """Return the standardised mean absolute error on some validation windows."""
        self.model.eval()
        off = count = 0.0
        for sample in self._spread("val"):
            off += float(((self.model(sample)[1] - sample.y).abs() * sample.y_mask).sum())
            count += float(sample.y_mask.sum())
        return off / max(count, 1.0)

    def _described(self) -> Iterator[Represented]:
        """Yield representations of some training windows."""
        self.model.eval()
        for sample in self._spread("train"):
            yield self.model(sample)[0]

    def _spread(self, split: str) -> Iterator[Sample]:
        """Yield windows that lie evenly over the steps of a part, few where there are many."""
        windows = self.windows[split]
        count = min(_SPREAD, len(windows))
        index = torch.arange(count) * len(windows) // count
        for part in index.split(self.config.forecast.batch_windows):
            yield Sample.of(windows.batch(part), self.model.network.scaler)

    def evaluate(self, predict: Predict) -> dict[str, float]:
        val, test = (self._metrics(split, self._predict(split)) for split in ("val", "test"))
        reference = self.reference
        return {
            "num-examples": len(self.windows["test"]),
            "val-examples": len(self.windows["val"]),
            "test-loss": test["mae"] / reference["test"],
            "val-relative-mae": val["mae"] / reference["val"],
            "relative-mae": test["mae"] / reference["test"],
            **test,
        }

    @torch.no_grad()
    def _predict(self, split: str) -> Tensor:
        """Return forecasts of all windows in the units of the series, ``[W, F, N, C]``."""
        self.model.eval()
        windows, scaler = self.windows[split], self.model.network.scaler
        parts = torch.arange(len(windows)).split(64)
        samples = (Sample.of(windows.batch(part), scaler) for part in parts)
        return torch.cat([scaler.inverse(self.model(sample)[1]) for sample in samples])

    def _reference(self, split: str, forecast: Tensor) -> float:
        """Return the error of the last value, which all others are divided by."""
        error = self._metrics(split, forecast).get("mae")
        if not error:
            what = "nothing is observed to forecast" if error is None else "nothing ever changes"
            raise DataError(
                f"{self.windows[split].series.name}: {what} in its {split} steps, so that no error "
                "relative to the last value's can be told: change data.series.train_ratio or "
                "data.series.val_ratio, or leave the site out"
            )
        return error

    def _metrics(self, split: str, forecast: Tensor) -> dict[str, float]:
        """Return the errors at all sensors asked about, of all steps and of single ones."""
        y = _futures(self.windows[split])[:, :, self.asked]
        forecast, mask = forecast[:, :, self.asked], ~y.isnan()
        metrics = {}
        steps = {"": slice(None), **{f"-{h}": slice(h - 1, h) for h in HORIZONS}}
        for suffix, step in steps.items():
            if step.stop is not None and step.stop > y.size(1):
                continue
            part = forecast[:, step], y[:, step], mask[:, step]
            if part[2].any():
                metrics[f"mae{suffix}"] = masked_mae(*part)
                metrics[f"rmse{suffix}"] = masked_rmse(*part)
            if (part[1][part[2]].abs() > self.floor).any():
                metrics[f"mape{suffix}"] = masked_mape(*part, floor=self.floor)
        return metrics

    @staticmethod
    def build(
        experiment: Experiment,
        client: int | str,
        channels: Mapping[str, int],
        num_classes: int,
        projector: Projector | None = None,
    ) -> ForecastNetwork:
        """Build the network of one client, or the server's; see :meth:`Learner.build`.

        The server's knows no sensor, and all clients start from its weights, but for those that
        belong to their sensors. Under pooled training all have the network of the whole city.
        """
        seed, pooled = experiment.run.seed, experiment.strategy.name == "pooled"
        network = _network(experiment, seed, _nowhere())
        if pooled or client != "server":
            train = splits_of(experiment, 0 if client == "server" else int(client))["train"]
            shared = network.state_dict()
            network = _network(experiment, derive_seed(seed, "sensors", client), train)
            kept = {n: v for n, v in shared.items() if not is_named(f"network.{n}", _OWN)}
            network.load_state_dict(kept, strict=False)
        if experiment.strategy.name in PROTOTYPE_STRATEGIES:
            network.codebook.requires_grad_(False)
        with drawn_for(experiment, client):
            width = experiment.model.embedding_channels
            return ForecastNetwork(network, None if projector is None else projector(width))


def _network(experiment: Experiment, seed: int, train: SpatioTemporalSeries) -> SCFSGL:
    """Return a network that has seen no step yet but for scales and usual values."""
    config = SCFSGLConfig(
        hidden_channels=experiment.model.embedding_channels,
        dropout=experiment.model.dropout,
        seed=seed,
        **experiment.forecast.model_dump(),
    )
    with torch.random.fork_rng(devices=[]):
        return SCFSGL(config).start(train)


def _nowhere() -> SpatioTemporalSeries:
    """Return a series of one sensor, for the server, which has none."""
    return SpatioTemporalSeries(
        name="server",
        values=torch.zeros(1, 1, 1),
        channel_names=("value [1]",),
        node=("none",),
        edge_index=torch.empty(2, 0, dtype=torch.long),
        edge_weight=torch.empty(0),
        start=np.datetime64(0, "s"),
        interval=1,
    )


def mape_floor(train: SpatioTemporalSeries) -> float:
    """Return the size up to which an observation counts in no error in percent.

    A hundredth of the mean size in training: some files hold 1e-17 for what was not measured.
    """
    return 0.01 * float(train.values.double().abs().nanmean())


def _futures(windows: Windows) -> Tensor:
    """Return what followed each window, ``[W, F, N, C]``, a view of the series."""
    values = windows.series.values[windows.history :]
    return values.unfold(0, windows.horizon, 1).movedim(-1, 1)
