"""Attention by a perceptron, and attention among sessions."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from graphcl.recommend.sessions import Sessions

_HEADS = 2


class PairScore(nn.Module):
    """How much a query asks for a key: a perceptron of both, their difference and product.

    ``MLP([k'; q; k' - q; k' q])`` with ``k' = W k``.  Its first layer is linear in the first three,
    so that only the product is multiplied for every pair; the others are once for a key or query.

    Args:
        keys: Width of a key.
        queries: Width of a query.

    Source:
        The code of Zheng et al., WWW 2022 (CLSR), here without batch normalisation, which small
        batches and those of one client mislead.
    """

    def __init__(self, keys: int, queries: int):
        super().__init__()
        self.key = nn.Linear(keys, queries, bias=False)
        self.hidden = nn.Linear(4 * queries, 80)
        # A bias of the score would leave every softmax as it is.
        self.out = nn.Sequential(nn.ReLU(inplace=True), perceptron(80, 40, bias=False))

    def forward(self, keys: Tensor, queries: Tensor, key: Tensor | None, query: Tensor) -> Tensor:
        """Return the scores of P pairs, ``[P]``.

        Shapes:
            - **keys**: ``[K, keys]``; **queries**: ``[Q, queries]``
            - **key**, **query**: int64 ``[P]``; without **key** each key is in one pair, in order
        """
        mapped = self.key(keys)
        alone, asked, apart, both = self.hidden.weight.chunk(4, 1)
        of_key = linear(mapped, alone + apart, self.hidden.bias)
        of_query = linear(queries, asked - apart).index_select(0, query)
        if key is not None:
            mapped, of_key = mapped.index_select(0, key), of_key.index_select(0, key)
        product = linear(mapped * queries.index_select(0, query), both)
        # In place: with long sessions these are by far the largest tensors of a step.
        return self.out(product.add_(of_key).add_(of_query)).squeeze(1)


class SessionAttention(nn.Module):
    """Reads a user's sessions together: self-attention among them, then attention of the user.

    ``v~_k = LayerNorm(v_k + MHA(v)_k + r_{m-k})`` for the sessions k = 1 to m, with a vector r for
    how long ago a session was, and of these the mean weighted by :class:`PairScore`.

    Args:
        channels: D; even.
        most: Sessions that are read, the latest.

    Source:
        Feng et al., IJCAI 2019 (DSIN), for the two levels.
    """

    def __init__(self, channels: int, most: int):
        super().__init__()
        self.project = nn.Linear(channels, 3 * channels)
        self.mix = nn.Linear(channels, channels)
        self.recency = nn.Parameter(torch.empty(most, channels))
        nn.init.normal_(self.recency, std=0.02)
        self.norm = nn.LayerNorm(channels)
        self.score = PairScore(channels, channels)

    def forward(self, prefix: Tensor, sessions: Sessions, users: Tensor, event: Tensor) -> Tensor:
        """Return what a user's sessions up to some events amount to, ``[a, D]``.

        Shapes:
            - **prefix**: ``[n, D]``, the vector of each event's session up to that event
            - **users**: ``[B, D]``, which ask
            - **event**: int64 ``[a]``
        """
        projected = self.project(prefix)
        places, means = [event[:0]], [prefix[:0]]
        for place, token in sessions.tokens(event, len(self.recency)):
            k, c = token.shape
            token = token.flatten()
            heads = projected.index_select(0, token).view(k, c, 3, _HEADS, -1)
            mixed = scaled_dot_product_attention(*heads.permute(2, 0, 3, 1, 4).unbind())
            mixed = self.mix(mixed.transpose(1, 2).reshape(k * c, -1))
            own = prefix.index_select(0, token) + mixed
            read = self.norm(own.view(k, c, -1) + self.recency[:c].flip(0))
            asks = sessions.row[event[place]].repeat_interleave(c)
            scores = self.score(read.flatten(0, 1), users, None, asks)
            places.append(place)
            means.append((scores.view(k, 1, c).softmax(2) @ read).squeeze(1))
        return torch.cat(means).index_select(0, torch.cat(places).argsort())


def perceptron(channels: int, *hidden: int, bias: bool = True) -> nn.Sequential:
    """Return layers that end in one number, with ReLU between them.

    Args:
        channels: Width of what comes in.
        hidden: Widths of the hidden layers.
        bias: Whether the last layer has one.
    """
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(channels, width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.Linear(channels, 1, bias=bias))
