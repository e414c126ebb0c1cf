"""What every forecaster shares: fit, forecast, files; and what every network among them does."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from graphcl.datasets import Scaler, SpatioTemporalSeries, Windows
from graphcl.errors import DataError, GraphCLError, check_fields
from graphcl.prototypes.dual_branch import projector_header, projector_of
from graphcl.spatiotemporal.calendar import Calendar
from graphcl.spatiotemporal.propagation import Diffusion
from graphcl.spatiotemporal.samples import Sample, SampleBatches, in_order
from graphcl.training import (
    clip_gradients,
    fit_best,
    keeps_randomness,
    load_weights,
    save_weights,
    seed_everything,
)


@dataclass(frozen=True)
class ForecasterConfig:
    """What every forecaster is told.

    Attributes:
        history: Steps in.
        horizon: Steps out, all in one pass.
    """

    history: int = 12
    horizon: int = 12

    def __post_init__(self) -> None:
        check_fields(self, ("history", "horizon"), lambda v: v >= 1, "at least 1")


@dataclass(frozen=True)
class NetworkConfig(ForecasterConfig):
    """What every network among the forecasters is told.

    Attributes:
        hidden_channels: Width between the layers.
        dropout: In the hidden layers.
        batch_windows: Windows per step.
        epoch_windows: Windows per epoch, drawn afresh; 0 = all.
        learning_rate, weight_decay: Of Adam.
        epochs: At most.
        patience: Epochs without a better error on validation windows until training ends; what is
            kept is the best.
        seed: Decides weights, batches and dropout.
    """

    hidden_channels: int = 64
    dropout: float = 0.1
    batch_windows: int = 32
    epoch_windows: int = 0
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    epochs: int = 60
    patience: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one = ("hidden_channels", "batch_windows", "epochs", "patience")
        check_fields(self, at_least_one, lambda v: v >= 1, "at least 1")
        check_fields(self, ("learning_rate",), lambda v: v > 0, "above 0")
        check_fields(self, ("weight_decay", "epoch_windows"), lambda v: v >= 0, "at least 0")
        check_fields(self, ("dropout",), lambda v: 0 <= v < 1, "at least 0 and below 1")


class Forecaster(nn.Module, ABC):
    """Forecasts all nodes and channels of one graph, ``horizon`` steps in one pass.

    Args:
        config: The method's frozen configuration.

    Example:
        >>> from graphcl.datasets import chronological_split, confounded_series
        >>> from graphcl.spatiotemporal import LastValue
        >>> train, val, test = chronological_split(confounded_series()[0].series)
        >>> LastValue().fit(train, val).forecast(test)
        SpatioTemporalSeries('client-0', 12 steps of 300 s from 2024-01-08T00:00:00, 20 nodes, ...)
    """

    config_type: ClassVar[type] = ForecasterConfig
    scaler: Scaler
    calendar: Calendar

    def __init__(self, config: Any = None):
        super().__init__()
        self.config = self.config_type() if config is None else config
        self.node: tuple[str, ...] = ()
        self.channel_names: tuple[str, ...] = ()
        # What a federated algorithm puts behind a representation, where there is one.
        self.projector: nn.Module = nn.Identity()

    @abstractmethod
    def build(self) -> None:
        """Create layers and buffers for :attr:`node`, :attr:`channel_names` and the calendar."""

    @abstractmethod
    def forward(self, sample: Sample) -> Tensor:
        """Return standardised forecasts ``[B, horizon, N, C]``."""

    @abstractmethod
    def fit(self, train: SpatioTemporalSeries, val: SpatioTemporalSeries) -> Self:
        """Learn from the training steps; validation steps may choose, never teach.

        Raises:
            DataError: What :meth:`prepare` refuses.
        """

    def prepare(
        self, train: SpatioTemporalSeries, val: SpatioTemporalSeries
    ) -> tuple[Windows, Windows]:
        """Start on the training steps, and return the windows of both parts.

        Raises:
            DataError: A part is shorter than one window or has no observation to forecast, a
                channel has none in training, or validation is of other nodes, channels or steps;
                the forecaster is as it was.
        """
        windows, held_out = self.windows(train), self.windows(val)
        _check_targets(windows)
        _check_targets(held_out)
        _check_alike(val, train.node, train.channel_names, train.interval)
        self.start(train)
        return windows, held_out

    def start(self, train: SpatioTemporalSeries) -> Self:
        """Take scales, calendar and graph from the training steps, and draw the first weights."""
        scaler = Scaler(train.num_channels).fit(train)  # may refuse, so before anything is changed
        self.create(train)
        self.scaler = scaler
        return self.eval()

    def create(self, series: SpatioTemporalSeries) -> None:
        """Create everything for a graph, its nodes and channels."""
        self._create(series.node, series.channel_names, Calendar().fit(series))
        self.set_graph(series)

    def _create(
        self, node: tuple[str, ...], channel_names: tuple[str, ...], calendar: Calendar
    ) -> None:
        self.node, self.channel_names, self.calendar = node, channel_names, calendar
        self.scaler = Scaler(len(channel_names))
        self.build()

    def set_graph(self, series: SpatioTemporalSeries) -> None:
        """Take the graph of a series; nothing to do for those that read none."""

    def windows(self, series: SpatioTemporalSeries) -> Windows:
        """Return the windows of a series, as long as this forecaster reads and writes them."""
        return Windows(series, self.config.history, self.config.horizon)

    @torch.no_grad()
    def predict(self, series: SpatioTemporalSeries, batch_windows: int = 64) -> Tensor:
        """Return the forecast of every window in the units of the series, ``[W, horizon, N, C]``.

        Raises:
            DataError: The series has other nodes or channels, or is shorter than one window.
        """
        self.check(series)
        self.eval()
        samples = in_order(self.windows(series), self.scaler, batch_windows)
        return torch.cat([self.scaler.inverse(self(sample)) for sample in samples])

    @torch.no_grad()
    def forecast(self, window: SpatioTemporalSeries) -> SpatioTemporalSeries:
        """Return the ``horizon`` steps after a series, from its last ``history`` steps.

        They have its name, units and nodes, and the graph of its last step.

        Args:
            window: At least ``history`` steps; missing values are NaN.

        Raises:
            DataError: The window is too short or has other nodes, channels or steps than the
                training series.
        """
        self.check(window)
        history, horizon = self.config.history, self.config.horizon
        if window.num_steps < history:
            raise DataError(
                f"{window.name}: forecast: {window.num_steps} steps are fewer than the {history} "
                "that the forecaster reads; give a longer window"
            )
        self.eval()
        x = window.values[None, -history:]
        steps = torch.arange(window.num_steps - history, window.num_steps + horizon)
        nothing = x.new_empty(0)
        sample = Sample(
            self.scaler(x), ~x.isnan(), nothing, nothing.bool(), window.seconds(steps)[None]
        )
        return replace(
            window,
            values=self.scaler.inverse(self(sample))[0],
            start=window.start + np.timedelta64(window.num_steps * window.interval, "s"),
            edge_ptr=None,
            edge_index=window.graph(window.num_steps - 1)[0],
            edge_weight=window.graph(window.num_steps - 1)[1],
        )

    def check(self, series: SpatioTemporalSeries) -> None:
        """Refuse a series of another graph than the one that was trained on.

        Raises:
            GraphCLError: Nothing was trained yet.
            DataError: Nodes, channels or the interval differ; the message says which.
        """
        if not self.node:
            raise GraphCLError(f"{type(self).__name__} has no weights yet; call fit or load first")
        _check_alike(series, self.node, self.channel_names, int(self.calendar.interval))

    def save(self, path: Any) -> None:
        """Write configuration and weights to a ``.safetensors`` file.

        The graph is not among them: :meth:`load` asks for it.
        """
        header = {
            "config": asdict(self.config),
            "node": self.node,
            "channel_names": self.channel_names,
            "projector": projector_header(self.projector),
        }
        save_weights(path, self.state_dict(), header)

    @classmethod
    def load(cls, path: Any, series: SpatioTemporalSeries) -> Self:
        """Inverse of :meth:`save`, on the graph of a series.

        Raises:
            GraphCLError: The file is not one of this forecaster.
            DataError: The series has other nodes or channels.
        """
        weights, header = load_weights(path)
        try:
            model = cls(cls.config_type(**header["config"]))
            calendar = Calendar()
            calendar.interval.copy_(weights["calendar.interval"])
            calendar.used.copy_(weights["calendar.used"])
            model._create(tuple(header["node"]), tuple(header["channel_names"]), calendar)
            model.projector = projector_of(header.get("projector"))
            model.load_state_dict(weights)
        except (KeyError, TypeError, RuntimeError, GraphCLError) as error:
            raise GraphCLError(f"{path}: no saved {cls.__name__}: {error}") from None
        model.check(series)
        model.set_graph(series)
        return model.eval()


class NetworkForecaster(Forecaster):
    """A forecaster that is trained by gradients."""

    config_type: ClassVar[type] = NetworkConfig
    config: NetworkConfig

    def start(self, train: SpatioTemporalSeries) -> Self:
        seed_everything(self.config.seed, "forecaster")
        return super().start(train)

    def loss(self, sample: Sample) -> dict[str, Tensor]:
        """Return the named terms of the loss on some windows."""
        return {"mae": masked_error(self(sample), sample)}

    def begin_round(self) -> None:
        """Called before an epoch, or before the epochs of a round of a federation."""

    @keeps_randomness()
    def fit(
        self,
        train: SpatioTemporalSeries,
        val: SpatioTemporalSeries,
        on_epoch: Callable[[int, dict[str, float]], None] | None = None,
    ) -> Self:
        """Train; the epoch with the least error on validation windows is kept.

        Args:
            train: Training steps, at least one window.
            val: Validation steps of the same graph, at least one window.
            on_epoch: Called with the epoch (from 1), the mean of every term, and the validation
                error under ``"val"``.

        Raises:
            DataError: What :meth:`prepare` refuses.
            GraphCLError: The loss or a gradient is not finite.
        """
        config = self.config
        windows, held_out = self.prepare(train, val)
        batches = SampleBatches(
            windows, self.scaler, config.batch_windows, config.seed, config.epoch_windows
        )
        fit_best(
            self,
            self.loss,
            batches,
            self.optimizer(),
            partial(self.error, held_out),
            epochs=config.epochs,
            patience=config.patience,
            before_epoch=self.begin_round,
            on_epoch=on_epoch,
        )
        return self

    def optimizer(self) -> torch.optim.Optimizer:
        """Return the optimiser, which clips gradients."""
        optimizer = torch.optim.Adam(
            self.parameters(),
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            fused=True,
        )
        return clip_gradients(optimizer)

    @torch.no_grad()
    def error(self, windows: Windows) -> float:
        """Return the mean absolute error over observed values, each counted alike, standardised.

        Raises:
            DataError: No value to forecast is observed.
        """
        _check_targets(windows)
        self.eval()
        total, count = 0.0, 0
        for sample in in_order(windows, self.scaler, 64):
            off = (self(sample) - sample.y).abs()[sample.y_mask]
            total, count = total + float(off.sum()), count + off.numel()
        return total / count


class GraphForecaster(NetworkForecaster):
    """A network that reads the graph."""

    diffusion: Diffusion

    def set_graph(self, series: SpatioTemporalSeries) -> None:
        self.diffusion = Diffusion.of(series)


def masked_error(forecast: Tensor, sample: Sample) -> Tensor:
    """Return the mean absolute error of standardised forecasts where there is an observation."""
    off = (forecast - sample.y).abs() * sample.y_mask
    return off.sum() / sample.y_mask.sum().clamp(min=1)


def _check_targets(windows: Windows) -> None:
    series = windows.series
    if not series.mask[windows.history :].any():
        raise DataError(
            f"{series.name}: no value is observed in the {series.num_steps - windows.history} "
            f"steps after the first {windows.history} (history), so that there is nothing to "
            "compare a forecast with: give steps with observations"
        )


def _check_alike(
    series: SpatioTemporalSeries,
    node: tuple[str, ...],
    channel_names: tuple[str, ...],
    interval: int,
) -> None:
    """Refuse a series of other nodes, channels or steps than those of training."""
    if series.interval != interval:
        raise DataError(
            f"{series.name}: interval is {series.interval} s, but the forecaster was trained on "
            f"steps of {interval} s: resample the series, or train on such steps"
        )
    for what, known in (("node", node), ("channel_names", channel_names)):
        found = getattr(series, what)
        if known != found:
            missing = ", ".join([name for name in known if name not in found][:5]) or "none"
            unknown = ", ".join([name for name in found if name not in known][:5]) or "none"
            raise DataError(
                f"{series.name}: {what}: the forecaster was trained on {len(known)} in another "
                f"order or of other names: missing {missing}; unknown {unknown}"
            )
