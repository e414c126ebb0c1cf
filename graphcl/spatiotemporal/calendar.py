"""What the time of a step tells: the phases of day, week and year, where training saw them."""

import math
from typing import Self

import torch
from torch import Tensor, nn

from graphcl.datasets import SpatioTemporalSeries

DAY = 86_400  # seconds
CYCLES = (DAY, 7 * DAY, 31_556_952)  # day, week, mean Gregorian year
_HARMONICS = 2
_MOST_PLACES = 2016
_MONDAY = 4 * DAY  # 1970 began on a Thursday


class Calendar(nn.Module):
    """Phases of the cycles that the training steps went through at least twice.

    A cycle seen once is a cycle whose other phases are unknown: a network that read the day of the
    week would learn the days of one week by heart, and one that read the time of day from weekly
    steps would read a constant.  Such cycles read 0, so that the width is the same for all series.

    Attributes:
        used: Which of :data:`CYCLES` are read, bool ``[3]``.
        interval: Seconds from step to step.

    Shapes:
        - **input**: int64 ``[...]``, seconds since 1970 in UTC
        - **output**: float32 ``[..., 12]``, sine and cosine of two harmonics of each cycle

    Example:
        >>> calendar = Calendar()
        >>> calendar.used[0] = True
        >>> calendar(torch.tensor([43_200]))[0, :2].round()
        tensor([ 0., -1.])
    """

    used: Tensor
    interval: Tensor
    width = 2 * _HARMONICS * len(CYCLES)

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("used", torch.zeros(len(CYCLES), dtype=torch.bool))
        self.register_buffer("interval", torch.ones((), dtype=torch.int64))

    def fit(self, train: SpatioTemporalSeries) -> Self:
        """Choose the cycles: at least twice in the training steps, of at least four steps each."""
        span = train.num_steps * train.interval
        for index, cycle in enumerate(CYCLES):
            self.used[index] = 4 * train.interval <= cycle <= span / 2
        self.interval.fill_(train.interval)
        return self

    @property
    def num_slots(self) -> int:
        """Number of values that :meth:`slot` can take."""
        return self._cycle() // int(self.interval)

    def slot(self, seconds: Tensor) -> Tensor:
        """Return the place in a cycle, int64 of any shape; 0 where none is used.

        The cycle is the longest one used that has at most 2016 places, a week of five minutes each:
        two years of hours hold each hour of the year but twice, and each hour of the week a hundred
        times.
        A place is as long as a step; the last one also takes what is left of a cycle that is no
        multiple of it, for a place shorter than a step would be passed over in most cycles.
        """
        place = (seconds - _MONDAY) % self._cycle() // self.interval
        return place.clamp(max=self.num_slots - 1)

    @property
    def num_places(self) -> list[int]:
        """Number of values that each tensor of :meth:`places` can take."""
        return [cycle // unit for cycle, unit in self._units()]

    def places(self, seconds: Tensor) -> list[Tensor]:
        """Return the time of day, day of week and week of year, of those cycles that are used.

        Each is int64 of the shape of ``seconds``, and counts steps where these are longer; the last
        place takes what is left of a cycle, as in :meth:`slot`.
        """
        return [
            ((seconds - _MONDAY) % cycle // unit).clamp(max=cycle // unit - 1)
            for cycle, unit in self._units()
        ]

    def _units(self) -> list[tuple[int, int]]:
        """Return the length of each cycle used, and of what it is counted in."""
        interval = int(self.interval)
        counted = (interval, max(interval, DAY), max(interval, 7 * DAY))
        pairs = zip(CYCLES, counted, strict=True)
        return [pair for pair, use in zip(pairs, self.used.tolist(), strict=True) if use]

    def _cycle(self) -> int:
        interval = int(self.interval)
        used = [cycle for cycle, use in zip(CYCLES, self.used.tolist(), strict=True) if use]
        short = [cycle for cycle in used if cycle <= _MOST_PLACES * interval]
        return max(short, default=min(used, default=interval))

    def forward(self, seconds: Tensor) -> Tensor:
        cycles = torch.tensor(CYCLES, device=seconds.device)
        phase = ((seconds[..., None] - _MONDAY) % cycles).double() / cycles  # of float32 too coarse
        harmonics = torch.arange(1, _HARMONICS + 1, device=seconds.device)
        angle = 2 * math.pi * phase[..., None] * harmonics
        waves = torch.stack([angle.sin(), angle.cos()], -1) * self.used[:, None, None]
        return waves.flatten(-3).float()
