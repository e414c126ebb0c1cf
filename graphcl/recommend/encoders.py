"""Encoders of sequences: from vectors of events to states that see no later event.

All keep the contract ``encoder(x, mask, last=False)``: from left-padded ``[B, T, D]`` and bool
``[B, T]`` to ``[B, T, D]``, in which padding changes nothing but the states of padding; with
``last`` to the state after the latest event alone, ``[B, 1, D]``.
"""

import torch
from torch import Tensor, nn

from graphcl.recommend.dropout import Dropout
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
        self.dropout = Dropout(dropout)
        self.layers = CausalLayers(channels, dropout, num_layers, num_heads)

    def forward(self, x: Tensor, mask: Tensor, last: bool = False) -> Tensor:
        x = self.dropout(self.norm(x + self.position[-x.size(1) :]))
        states: Tensor = self.layers(x, mask, last)
        return states


class CausalLayers(nn.ModuleList):
    """The layers of :class:`TransformerEncoder`, for vectors that know their positions.

    Args:
        channels: D.
        dropout: Of attention and of hidden layers.
        num_layers: Layers, of the post-norm kind.
        num_heads: Heads of each; divides D.
    """

    def __init__(self, channels: int, dropout: float, num_layers: int = 2, num_heads: int = 2):
        super().__init__(CausalLayer(channels, dropout, num_heads) for _ in range(num_layers))

    def forward(self, x: Tensor, mask: Tensor, last: bool = False) -> Tensor:
        place = torch.arange(x.size(1), device=x.device)
        # Padding sees itself: a softmax over nothing would be NaN.
        visible = mask[:, None] & (place[:, None] >= place) | (place[:, None] == place)
        bias = torch.zeros_like(visible, dtype=x.dtype).masked_fill_(~visible, -torch.inf)
        for layer in self:
            x = layer(x, bias, last and layer is self[-1])
        return x


class CausalLayer(nn.Module):
    """Self-attention and two linear layers, each with what came in added and then normalised.

    It is PyTorch's own layer of the post-norm kind with GELU, but on a CPU faster: with dropout
    that costs less, and where the latest state is all that is asked for, without the others.

    Args:
        channels: D.
        dropout: Of attention, of hidden units and of what is added.
        num_heads: Heads; divides D.
    """

    def __init__(self, channels: int, dropout: float, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.project = nn.Linear(channels, 3 * channels)
        self.mix = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.project.weight)
        for linear in (self.project, self.mix):
            nn.init.zeros_(linear.bias)
        self.up = nn.Linear(channels, 4 * channels)
        self.down = nn.Linear(4 * channels, channels)
        self.attention_norm = nn.LayerNorm(channels)
        self.norm = nn.LayerNorm(channels)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor, last: bool = False) -> Tensor:
        """Return the states of all events, ``[B, T, D]``, or of the latest, ``[B, 1, D]``.

        Shapes:
            x: ``[B, T, D]``; bias: ``[B, T, T]``, added to what an event (row) makes of another.
        """
        heads = self.project(x).unflatten(2, (3, self.num_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind()
        if last:
            query, x, bias = query[:, :, -1:], x[:, -1:], bias[:, -1:]
        scores = (query * query.size(3) ** -0.5) @ key.transpose(2, 3) + bias[:, None]
        read = self.dropout(scores.softmax(3)) @ value
        mixed = self.mix(read.transpose(1, 2).flatten(2))
        x = self.attention_norm(x + self.dropout(mixed))
        hidden = self.dropout(nn.functional.gelu(self.up(x)))
        states: Tensor = self.norm(x + self.dropout(self.down(hidden)))
        return states


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
        self.dropout = Dropout(dropout)
        self.gru = nn.GRU(channels, channels, batch_first=True)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, mask: Tensor, last: bool = False) -> Tensor:
        hidden, _ = self.gru(pad_right(self.dropout(x), mask))
        hidden = pad_left(hidden, mask)
        states: Tensor = self.out(hidden[:, -1:] if last else hidden)
        return states
