"""Encoders of sequences: from vectors of events to states that see no later event.

All keep the contract ``encoder(x, mask)``, left-padded ``[B, T, D]`` and bool ``[B, T]`` to
``[B, T, D]``, in which padding changes nothing but the states of padding.
"""

import torch
from torch import Tensor, nn

from graphcl.recommend.sequences import pad_left, pad_right


class TransformerEncoder(nn.Module):
    """SASRec's self-attention: positions, counted from the latest event, and causal layers.

    Args:
        channels: D.
        length: Longest sequence.
        dropout: Of what comes in, of attention and of hidden layers.
        num_layers: Layers, of the post-norm kind.
        num_heads: Heads of each; divides D.

    Source:
        Kang and McAuley, ICDM 2018, in the form of Zhou et al., CIKM 2020 (S3-Rec), whose layers
        have four times the width inside and GELU.
    """

    def __init__(
        self,
        channels: int,
        length: int,
        dropout: float,
        num_layers: int = 2,
        num_heads: int = 2,
    ):
        super().__init__()
        self.position = nn.Parameter(torch.empty(length, channels))
        nn.init.normal_(self.position, std=0.02)
        self.norm = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)
        self.layers = CausalLayers(channels, dropout, num_layers, num_heads)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.dropout(self.norm(x + self.position[-x.size(1) :]))
        return self.layers(x, mask)


class CausalLayers(nn.ModuleList):
    """The layers of :class:`TransformerEncoder`, for vectors that know their positions.

    Args:
        channels: D.
        dropout: Of attention and of hidden layers.
        num_layers: Layers, of the post-norm kind.
        num_heads: Heads of each; divides D.
    """

    def __init__(self, channels: int, dropout: float, num_layers: int = 2, num_heads: int = 2):
        super().__init__(
            nn.TransformerEncoderLayer(
                channels, num_heads, 4 * channels, dropout, "gelu", batch_first=True
            )
            for _ in range(num_layers)
        )
        self.num_heads = num_heads

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        place = torch.arange(x.size(1), device=x.device)
        # Padding sees itself: a softmax over nothing would be NaN.
        visible = mask[:, None] & (place[:, None] >= place) | (place[:, None] == place)
        hidden = (~visible).repeat_interleave(self.num_heads, dim=0)
        for layer in self:
            x = layer(x, src_mask=hidden)
        return x


class GRUEncoder(nn.Module):
    """A gated recurrent layer.

    Args:
        channels: D.
        dropout: Of what comes in.

    Source:
        Hidasi et al., ICLR 2016 (GRU4Rec).
    """

    def __init__(self, channels: int, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(channels, channels, batch_first=True)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        hidden, _ = self.gru(pad_right(self.dropout(x), mask))
        return self.out(pad_left(hidden, mask))
