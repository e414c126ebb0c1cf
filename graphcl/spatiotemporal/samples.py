"""Windows as networks read them, in batches."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from graphcl.datasets import Scaler, WindowBatch, Windows
from graphcl.training import torch_rng


class Sample(NamedTuple):
    """B windows, standardised; what is missing is 0 and False in its mask.

    Shapes:
        - **x**, **x_mask**: ``[B, history, N, C]``
        - **y**, **y_mask**: ``[B, horizon, N, C]``; empty where the future is unknown
        - **time**: int64 ``[B, history + horizon]``, seconds since 1970 in UTC
    """

    x: Tensor
    x_mask: Tensor
    y: Tensor
    y_mask: Tensor
    time: Tensor

    @classmethod
    def of(cls, batch: WindowBatch, scaler: Scaler) -> "Sample":
        """Standardise a batch of windows."""
        return cls(scaler(batch.x), batch.x_mask, scaler(batch.y), batch.y_mask, batch.time)


class SampleBatches:
    """Windows in a fresh order every epoch.

    Args:
        windows: Of one series.
        scaler: Fitted to its training steps.
        size: Windows per batch.
        seed: Decides the order.
        limit: Windows per epoch, at most: a fresh draw each time; 0 = all.
    """

    def __init__(self, windows: Windows, scaler: Scaler, size: int, seed: int, limit: int = 0):
        self.windows, self.scaler, self.size = windows, scaler, size
        self.drawn = min(limit or len(windows), len(windows))
        self.generator = torch_rng(seed, "sample batches")

    def __len__(self) -> int:
        return -(-self.drawn // self.size)

    def __iter__(self) -> Iterator[Sample]:
        order = torch.randperm(len(self.windows), generator=self.generator)[: self.drawn]
        for index in order.split(self.size):
            yield Sample.of(self.windows.batch(index), self.scaler)


def in_order(windows: Windows, scaler: Scaler, size: int) -> Iterator[Sample]:
    """Yield all windows in the order of time."""
    for index in torch.arange(len(windows)).split(size):
        yield Sample.of(windows.batch(index), scaler)


def last_observed(sample: Sample) -> Tensor:
    """Return each variable's last observed value in the window, ``[B, N, C]``; 0 if none."""
    steps = sample.x.size(1)
    place = torch.arange(1, steps + 1, device=sample.x.device)
    rank = sample.x_mask * place.view(-1, 1, 1)
    latest, where = rank.max(1)
    value = sample.x.gather(1, where[:, None]).squeeze(1)
    return torch.where(latest > 0, value, 0.0)
