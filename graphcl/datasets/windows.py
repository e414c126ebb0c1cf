"""From a series to samples of forecasting: parts in time order, a scale, windows."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from graphcl.datasets.series import SpatioTemporalSeries
from graphcl.errors import DataError


class WindowBatch(NamedTuple):
    """B windows; what is missing is NaN in ``x`` and ``y`` and False in their masks.

    Shapes:
        - **x**: float32 ``[B, history, N, C]``; **x_mask**: bool, the same
        - **y**: float32 ``[B, horizon, N, C]``; **y_mask**: bool, the same
        - **time**: int64 ``[B, history + horizon]``, seconds since 1970 in UTC
    """

    x: Tensor
    x_mask: Tensor
    y: Tensor
    y_mask: Tensor
    time: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Windows:
    """All windows of a series: ``history`` steps in, the ``horizon`` steps after them out.

    Window i begins at step i.  Only :meth:`batch` copies anything, and only what it returns.  Cut a
    series into parts first (:func:`chronological_split`), so that no window reaches across.

    Raises:
        DataError: The series is shorter than one window, or a length is not positive.
    """

    series: SpatioTemporalSeries
    history: int
    horizon: int

    def __post_init__(self) -> None:
        if min(self.history, self.horizon) < 1:
            raise DataError(
                f"windows: history is {self.history} and horizon {self.horizon}: both must be at "
                "least 1"
            )
        if len(self) < 1:
            raise DataError(
                f"{self.series.name}: {self.series.num_steps} steps are fewer than the "
                f"{self.history + self.horizon} of one window (history {self.history} and horizon "
                f"{self.horizon}): give a longer series or a shorter window"
            )

    def __len__(self) -> int:
        return max(0, self.series.num_steps - self.history - self.horizon + 1)

    def __repr__(self) -> str:
        return (
            f"Windows({len(self)} of history {self.history} and horizon {self.horizon} in "
            f"{self.series!r})"
        )

    def batch(self, indices: Tensor | Sequence[int]) -> WindowBatch:
        """Return some of the windows, in the order given; a window may be asked for repeatedly.

        Args:
            indices: int64 [B], 0 to ``len(self) - 1``.

        Raises:
            DataError: The indices are none or out of range.
        """
        index = torch.as_tensor(indices)
        if index.dtype != torch.int64 or index.ndim != 1 or not len(index):
            raise DataError(
                f"{self.series.name}: batch: indices is {index.dtype} of shape "
                f"{list(index.shape)}, must be int64 [B], at least one"
            )
        bad = index[(index < 0) | (index >= len(self))]
        if len(bad):
            raise DataError(
                f"{self.series.name}: batch: indices holds {int(bad[0])}, must be 0 to "
                f"{len(self) - 1}"
            )
        steps = index[:, None] + torch.arange(self.history + self.horizon)
        x, y = self.series.values[steps].split([self.history, self.horizon], dim=1)
        return WindowBatch(
            x=x,
            x_mask=~x.isnan(),
            y=y,
            y_mask=~y.isnan(),
            time=self.series.seconds(steps),
        )


def chronological_split(
    series: SpatioTemporalSeries, train_ratio: float = 0.7, val_ratio: float = 0.1
) -> tuple[SpatioTemporalSeries, SpatioTemporalSeries, SpatioTemporalSeries]:
    """Cut a series into its first, middle and last steps, to train, validate and test on.

    The parts are views, in this order without a gap or an overlap, and together the whole.

    Raises:
        DataError: A ratio leaves one of the parts without a step.
    """
    train_end = round(series.num_steps * train_ratio)
    val_end = round(series.num_steps * (train_ratio + val_ratio))
    bounds = (0, train_end, val_end, series.num_steps)
    train, val, test = (end - start for start, end in pairwise(bounds))
    if min(train, val, test) < 1:
        raise DataError(
            f"{series.name}: train_ratio {train_ratio} and val_ratio {val_ratio} divide its "
            f"{series.num_steps} steps into {train}, {val} and {test}: each part needs one"
        )
    return (
        series.between(0, train_end),
        series.between(train_end, val_end),
        series.between(val_end, series.num_steps),
    )


class Scaler(nn.Module):
    """Standardises each channel to mean 0 and deviation 1 over what it was fitted to.

    A missing value (NaN) becomes 0, the mean, so that a network takes the output as it is: pass the
    mask along with it.

    Args:
        num_channels: C.

    Shapes:
        - **input**: ``[..., C]``, NaN where missing
        - **output**: ``[..., C]``, finite

    Example:
        .. code-block:: python

            train, val, test = chronological_split(series)
            scaler = Scaler(series.num_channels).fit(train)
            batch = Windows(train, history=12, horizon=12).batch([0, 1])
            forecast = scaler.inverse(model(scaler(batch.x), batch.x_mask))
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, num_channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_channels))
        self.register_buffer("deviation", torch.ones(num_channels))

    def fit(self, train: SpatioTemporalSeries) -> Self:
        """Take mean and deviation from the observed values of the training steps.

        A constant channel keeps the deviation 1.

        Raises:
            DataError: A channel has no observed value, or the channels are not C.
        """
        if train.num_channels != len(self.mean):
            raise DataError(
                f"{train.name}: {train.num_channels} channels, but the scaler has {len(self.mean)}"
            )
        for channel, name in enumerate(train.channel_names):
            values = train.values[..., channel]
            observed = values[~values.isnan()].double()
            if not len(observed):
                raise DataError(
                    f"{train.name}: {name!r} has no observed value to fit a scale to: leave the "
                    "channel out or train on more steps"
                )
            constant = bool(observed.min() == observed.max())
            self.mean[channel] = observed.mean()
            self.deviation[channel] = 1.0 if constant else observed.std(correction=0)
        return self

    def forward(self, values: Tensor) -> Tensor:
        return torch.where(values.isnan(), 0.0, (values - self.mean) / self.deviation)

    def inverse(self, scaled: Tensor) -> Tensor:
        """Return standardised values ``[..., C]`` in the units of the series."""
        return scaled * self.deviation + self.mean
