"""All kinds of forecasters on tiny windows, among them two networks of the tests' own."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from graphcl.spatiotemporal import (
    Forecaster,
    ForecasterConfig,
    HistoricalAverage,
    LastValue,
    LinearForecaster,
    NetworkConfig,
    NetworkForecaster,
)
from graphcl.spatiotemporal.forecaster import GraphForecaster
from graphcl.spatiotemporal.samples import Sample

HISTORY, HORIZON = 4, 3
TINY = {"history": HISTORY, "horizon": HORIZON, "epochs": 2, "batch_windows": 16}


class OneLayer(NetworkForecaster):
    """Each step ahead is a linear function of the window, behind dropout."""

    def build(self) -> None:
        self.layer = nn.Linear(self.config.history, self.config.horizon)
        self.dropout = nn.Dropout(self.config.dropout)

    def forward(self, sample: Sample) -> Tensor:
        return self.layer(self.dropout(sample.x).transpose(1, 3)).transpose(1, 3)


class Seasonal(GraphForecaster):
    """A layer on the windows of a node and its neighbours, and a table over the calendar."""

    def build(self) -> None:
        self.layer = nn.Linear(3 * self.config.history, self.config.horizon)
        self.season = nn.Embedding(self.calendar.num_slots, self.config.horizon)
        self.phase = nn.Linear(self.calendar.width, self.config.horizon)

    def forward(self, sample: Sample) -> Tensor:
        x = sample.x.permute(0, 2, 3, 1)  # [B, N, C, history]
        near = [h.unflatten(2, x.shape[2:]) for h in self.diffusion.hops(x.flatten(2), 1)]
        now = sample.time[:, self.config.history - 1]
        season = self.season(self.calendar.slot(now)) + self.phase(self.calendar(now))
        ahead = self.layer(torch.cat([x, *near], -1))
        return (ahead + season[:, None, None]).permute(0, 3, 1, 2)


def one_layer(**changes: float) -> OneLayer:
    return OneLayer(NetworkConfig(**{**TINY, **changes}))


def seasonal(**changes: float) -> Seasonal:
    return Seasonal(NetworkConfig(**{**TINY, **changes}))


MAKERS: dict[str, Callable[[], Forecaster]] = {
    "last value": lambda: LastValue(ForecasterConfig(HISTORY, HORIZON)),
    "average": lambda: HistoricalAverage(ForecasterConfig(HISTORY, HORIZON)),
    "linear": lambda: LinearForecaster(ForecasterConfig(HISTORY, HORIZON)),
    "one layer": one_layer,
    "seasonal": seasonal,
}
every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
