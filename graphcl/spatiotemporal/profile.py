"""What is usual at a node at this time of the day, week or year."""

from typing import Self

import torch
from torch import Tensor, nn

from graphcl.datasets import Scaler, SpatioTemporalSeries
from graphcl.spatiotemporal.calendar import Calendar


class Profile(nn.Module):
    """Means of the training values at each place in the cycle of :meth:`Calendar.slot`.

    A training step is left out of its own mean, be it that of the place or of the node, so that
    what a network learns to make of a profile holds for steps that no mean has seen.

    Args:
        calendar: Fitted to the training steps.
        num_nodes: N.
        num_channels: C.

    Shapes:
        - **slot**: int64 ``[B, T]``, places in the cycle (:meth:`Calendar.slot`)
        - **time**: int64 ``[B, T]``, seconds since 1970 in UTC
        - **values**, **mask**: ``[B, T, N, C]``, what was observed then; empty if unknown
        - **output**: ``[B, T, N, C]``, standardised; the node's mean where the cycle's place was
          never observed, 0 where the node was not
    """

    total: Tensor  # [num_slots, N, C], sums of standardised training values
    count: Tensor  # [num_slots, N, C]
    span: Tensor  # [2], seconds of the first training step and of the one after the last

    def __init__(self, calendar: Calendar, num_nodes: int, num_channels: int):
        super().__init__()
        shape = (calendar.num_slots, num_nodes, num_channels)
        self.register_buffer("total", torch.zeros(shape))
        self.register_buffer("count", torch.zeros(shape))
        self.register_buffer("span", torch.zeros(2, dtype=torch.int64))

    def fit(self, train: SpatioTemporalSeries, scaler: Scaler, calendar: Calendar) -> Self:
        """Sum up the training values."""
        seconds = train.seconds(torch.arange(train.num_steps))
        slot = calendar.slot(seconds)
        self.total.zero_().index_add_(0, slot, scaler(train.values))
        self.count.zero_().index_add_(0, slot, train.mask.float())
        self.span.copy_(torch.stack([seconds[0], seconds[-1] + train.interval]))
        return self

    def forward(self, slot: Tensor, time: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        total, count = self.total[slot], self.count[slot]
        node_total, node_count = self.total.sum(0), self.count.sum(0)
        if values.numel():
            own = (time >= self.span[0]) & (time < self.span[1])
            own = own[..., None, None] & mask
            value, one = torch.where(own, values, 0.0), own.float()
            total, node_total = total - value, node_total - value
            count, node_count = count - one, node_count - one
        overall = node_total / node_count.clamp(min=1)
        return torch.where(count > 0, total / count.clamp(min=1), overall)
