"""The own part that corrects the shared part's forecast: separation by transfer.

Ours, not the paper's.  There one network decodes the sum of both parts, and is free to use either
for either.  Here the shared part forecasts alone, trained by the error of its own forecast (the
risk that the invariance penalty stands beside in IRM), and the own part, with an encoder and last
layers of its own and alone in knowing the sensors, by what is left.  In a federation by SC-FSGL the
weights behind the shared part are the clients' mean, so that it holds what one rule tells at all of
them (:mod:`federation.strategies.scfsgl`); alone, nothing is left that tells the parts apart.

It brings parts that follow what clients share and what is their own, where no one rule tells both
(``tests/benchmarks/bench_recovery.py``).  It costs a second encoder, in a federation a copy of the
network that is asked in training, and may cost accuracy: one network may use either part for all.
"""

from torch import Tensor, nn

from graphcl.spatiotemporal.encoder import Anchor, Encoder, Parts


class Correction(nn.Module):
    """The weights behind the own part: its encoder and what it adds to a forecast.

    Args:
        encoder: What the own part is taken from.
        width: D.
        horizon: F.
        dropout: In the hidden layer.
    """

    def __init__(self, encoder: Encoder, width: int, horizon: int, dropout: float):
        super().__init__()
        D = width
        self.encoder = encoder
        self.gate = nn.Linear(2 * D, D)
        self.hidden = nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Dropout(dropout))
        self.usual = nn.Linear(D, horizon)
        self.out = nn.Linear(D, horizon)

    def forward(self, own: Parts, anchor: Anchor) -> Tensor:
        """Return what the own part adds to a standardised forecast, ``[B, F, N, C]``."""
        hidden = self.hidden(own.joined(self.gate))
        share, rest = (layer(hidden).permute(0, 3, 1, 2) for layer in (self.usual, self.out))
        return share * (anchor.usual - anchor.last[:, None]) + rest
