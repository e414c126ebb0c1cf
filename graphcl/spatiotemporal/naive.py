"""Forecasters that every network must beat, and that need no gradient."""

from typing import Self

import torch
from torch import Tensor

from graphcl.datasets import SpatioTemporalSeries
from graphcl.spatiotemporal.forecaster import Forecaster
from graphcl.spatiotemporal.profile import Profile
from graphcl.spatiotemporal.samples import Sample, in_order, last_observed

_RIDGE = 1e-3  # of the mean over features of their sums of squares


class LastValue(Forecaster):
    """Expects the last observed value to stay; the mean where the window has none."""

    def build(self) -> None:
        pass

    def forward(self, sample: Sample) -> Tensor:
        return last_observed(sample)[:, None].repeat(1, self.config.horizon, 1, 1)

    def fit(self, train: SpatioTemporalSeries, val: SpatioTemporalSeries) -> Self:
        self.prepare(train, val)
        return self


class HistoricalAverage(Forecaster):
    """Expects a node's mean at this place in the longest cycle that training saw twice.

    That is the time of the week, say, or of the year; the node's mean where no cycle was seen
    twice, and where all values at this place are missing; the channel's mean at a node without a
    value in training.  The window is not read.
    """

    def build(self) -> None:
        self.profile = Profile(self.calendar, len(self.node), len(self.channel_names))

    def forward(self, sample: Sample) -> Tensor:
        time = sample.time[:, -self.config.horizon :]
        nothing = sample.x.new_empty(0)  # no step is left out, so that no observation is read
        return self.profile(self.calendar.slot(time), time, nothing, nothing.bool())

    def fit(self, train: SpatioTemporalSeries, val: SpatioTemporalSeries) -> Self:
        self.prepare(train, val)
        self.profile.fit(train, self.scaler, self.calendar)
        return self


class LinearForecaster(Forecaster):
    """Each step ahead is a linear function of the window, alike for all nodes: ridge regression.

    A channel has weights of its own, on all channels' windows.  The last observed value is taken
    off the window and put back on the forecast, so that what is learned does not depend on the
    level.

    Source:
        Zeng et al., AAAI 2023 (NLinear), fitted in closed form.
    """

    weight: Tensor

    def build(self) -> None:
        C, config = len(self.channel_names), self.config
        self.register_buffer("weight", torch.zeros(config.history * C + C + 1, config.horizon * C))

    def forward(self, sample: Sample) -> Tensor:
        features, level = self._features(sample)
        out = (features @ self.weight).unflatten(-1, (self.config.horizon, -1))
        return out.transpose(1, 2) + level[:, None]

    def _features(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """Return ``[B, N, history C + C + 1]`` and the level ``[B, N, C]``."""
        level = last_observed(sample)
        off = (sample.x - level[:, None]) * sample.x_mask
        ones = torch.ones_like(level[..., :1])
        return torch.cat([off.transpose(1, 2).flatten(2), level, ones], -1), level

    def fit(self, train: SpatioTemporalSeries, val: SpatioTemporalSeries) -> Self:
        windows, _ = self.prepare(train, val)
        rows, outputs = self.weight.shape
        gram = torch.zeros(outputs, rows, rows, dtype=torch.float64)
        moment = torch.zeros(outputs, rows, dtype=torch.float64)
        for sample in in_order(windows, self.scaler, 64):
            features, level = self._features(sample)
            flat = features.flatten(0, 1).double()
            y = ((sample.y - level[:, None]) * sample.y_mask).transpose(1, 2).flatten(2)
            known = sample.y_mask.transpose(1, 2).flatten(2).flatten(0, 1)
            moment += y.flatten(0, 1).double().T @ flat
            if bool(known.all()):
                gram += flat.T @ flat
            else:  # each output has rows of its own that are known
                for output in range(outputs):
                    kept = flat[known[:, output]]
                    gram[output] += kept.T @ kept
        squares = gram.diagonal(dim1=1, dim2=2).mean(1)
        scale = torch.where(squares > 0, squares, 1.0)  # 0 where an output was never observed
        ridge = _RIDGE * scale[:, None, None] * torch.eye(rows, dtype=torch.float64)
        self.weight.copy_(torch.linalg.solve(gram + ridge, moment[..., None])[..., 0].T)
        return self
