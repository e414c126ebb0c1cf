"""Small series that this room's tests share."""

import numpy as np
import torch
from torch import Tensor

from graphcl.datasets import SpatioTemporalSeries

NAN = float("nan")
HOUR = 3600
DAY = 24 * HOUR


def series_of(
    values: Tensor, interval: int = HOUR, start: str = "2024-01-01T00:00:00"
) -> SpatioTemporalSeries:
    """Return values ``[T, N, C]`` as a series on a directed ring, from a Monday."""
    N, C = values.shape[1:]
    node = torch.arange(N)
    return SpatioTemporalSeries(
        name="road",
        values=values,
        channel_names=tuple(f"x{c} [1]" for c in range(C)),
        node=tuple(f"n{i}" for i in range(N)),
        edge_index=torch.stack([node, (node + 1) % N]),
        edge_weight=torch.ones(N),
        start=np.datetime64(start, "s"),
        interval=interval,
    )


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Return standard normal numbers, the same every time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def holed(values: Tensor, share: float = 0.2, seed: int = 1) -> Tensor:
    """Return values of which a share is missing at random."""
    drawn = torch.rand(values.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(drawn < share, NAN, values)
