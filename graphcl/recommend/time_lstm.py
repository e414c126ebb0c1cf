"""A recurrent cell that is told how much time passed."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class TimeLSTM(nn.Module):
    """An LSTM whose two further gates open by time, without peepholes.

    With ``i, g, f, o`` for affine maps of what comes in, x, and of the state before, h::

        A = tanh(age w1 + b1)                    B = tanh(since w2 + b2)
        Ta = sigmoid(x Wa + A Va + ba)           Tb = sigmoid(x Wb + B Vb + bb)
        c' = sigmoid(f + 1) Tb c + sigmoid(i) Ta tanh(g)
        h' = sigmoid(o + A Oa + B Ob) tanh(c')

    Args:
        channels: D, of x and of h.

    Source:
        Zhu et al., IJCAI 2017, in the form of Yu et al., IJCAI 2019 (SLi-Rec), which the code of
        Zheng et al., WWW 2022 (CLSR), has.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.input = nn.Linear(channels, 6 * channels)  # i, f, o, g, and those of Ta and Tb
        self.hidden = nn.Linear(channels, 4 * channels, bias=False)
        self.age = nn.Linear(1, channels)
        self.since = nn.Linear(1, channels)
        self.by_age = nn.Linear(channels, 2 * channels, bias=False)  # Oa, Va
        self.by_since = nn.Linear(channels, 2 * channels, bias=False)  # Ob, Vb

    def forward(self, x: Tensor, age: Tensor, since: Tensor, sizes: Sequence[int]) -> Tensor:
        """Return the states of packed runs of events.

        Shapes:
            - **x**: ``[n, D]``; **age**, **since**: ``[n]``; returns ``[n, D]``
            - **sizes**: how many runs have a first event, a second one, ...; the n rows are all
              first events, then the second ones of as many of the same runs, and so on
        """
        if not sizes:
            return x
        width = x.size(1)
        gates, input_open, kept_open = self.input(x).split([4 * width, width, width], dim=1)
        output_age, open_age = self.by_age(self.age(age[:, None]).tanh()).chunk(2, 1)
        output_since, open_since = self.by_since(self.since(since[:, None]).tanh()).chunk(2, 1)
        i, f, o, g = gates.chunk(4, 1)
        gates = torch.cat([i, f + 1, o + output_age + output_since, g], dim=1)
        opened = (input_open + open_age).sigmoid(), (kept_open + open_since).sigmoid()
        h = c = x.new_zeros(sizes[0], width)
        states = []
        for gate, ta, tb in zip(*(part.split(sizes) for part in (gates, *opened)), strict=True):
            sums = gate + self.hidden(h[: len(gate)])
            i, f, o = sums[:, : 3 * width].sigmoid().chunk(3, 1)
            c = f * tb * c[: len(gate)] + i * ta * sums[:, 3 * width :].tanh()
            h = o * c.tanh()
            states.append(h)
        return torch.cat(states)
