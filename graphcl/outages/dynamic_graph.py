"""The graph that a storm draws: a directed adjacency learned from what the event does where."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class LearnedMean:
    """A learned graph as a mean over each location and its neighbours, ``rn(A)``.

    Args:
        neighbors: Whom a location listens to.
        weight: How much, not negative; a location counts itself with 1.

    Shapes:
        neighbors, weight: ``[N, k]``. ``mean @ x`` maps ``[N, D]`` to ``[N, D]``, differentiable in
        ``x`` and ``weight``.

    Source:
        Wu et al., MTGNN, KDD 2020, for the row normalisation.

    Example:
        >>> mean = LearnedMean(torch.tensor([[1], [0]]), torch.tensor([[1.0], [0.0]]))
        >>> mean @ torch.tensor([[0.0], [1.0]])
        tensor([[0.5000],
                [1.0000]])
    """

    def __init__(self, neighbors: Tensor, weight: Tensor):
        self.neighbors = neighbors
        degree = 1 + weight.sum(1, keepdim=True)
        self.own, self.others = 1 / degree, weight / degree

    def __matmul__(self, x: Tensor) -> Tensor:
        if not self.neighbors.size(1):
            return x
        gathered = F.embedding_bag(self.neighbors, x, per_sample_weights=self.others, mode="sum")
        return self.own * x + gathered


class DynamicGraphLearner(nn.Module):
    """Learns who listens to whom among nearby locations, one directed graph per event.

    ``Q = M1 M2^T - M2 M1^T`` with ``M = tanh(alpha v G)`` is antisymmetric, so that of two
    locations at most one listens to the other; ``A = relu(tanh(alpha Q))``, of which each location
    keeps its largest entries. Only pairs of candidates are ever computed: ``O(N m)``.

    Args:
        in_channels: Width of ``v``.
        channels: Width of ``M``.
        num_neighbors: Entries that a location keeps, at most.
        saturation: ``alpha``.

    Shapes:
        - **v**: ``[N, in_channels]``; **candidates**: ``[N, m]``, indices, none twice in a row
        - **output**: a :class:`LearnedMean` over ``min(num_neighbors, m)`` neighbours

    Source:
        Wu et al., MTGNN, KDD 2020, eq. 1 to 6, with the event's own inputs in the place of node
        embeddings, candidates in the place of all pairs, and ties broken by order.

    Example:
        >>> learner = DynamicGraphLearner(4, 2, num_neighbors=1)
        >>> mean = learner(torch.randn(3, 4), torch.tensor([[1, 2], [0, 2], [0, 1]]))
        >>> mean.neighbors.shape
        torch.Size([3, 1])
    """

    def __init__(
        self, in_channels: int, channels: int, num_neighbors: int, saturation: float = 3.0
    ):
        super().__init__()
        self.source = nn.Linear(in_channels, channels, bias=False)
        self.target = nn.Linear(in_channels, channels, bias=False)
        self.num_neighbors, self.saturation = num_neighbors, saturation

    def forward(self, v: Tensor, candidates: Tensor) -> LearnedMean:
        one = torch.tanh(self.saturation * self.source(v))
        two = torch.tanh(self.saturation * self.target(v))
        # [N, 1, d] x [N, m, d] by rows: Q of the candidates alone.
        asked = torch.cat([one, -two], 1)[:, None]
        # Not by [candidates], whose way back takes longer.
        heard = torch.cat([two, one], 1).index_select(0, candidates.flatten())
        heard = heard.view(*candidates.shape, asked.size(-1))
        # The two halves are subtracted before any sum: rounding then keeps Q antisymmetric.
        q = (asked * heard).unflatten(-1, (2, -1)).sum(2).sum(-1)
        weight = torch.relu(torch.tanh(self.saturation * q))
        kept = weight.sort(dim=1, descending=True, stable=True)
        width = min(self.num_neighbors, candidates.size(1))
        order = kept.indices[:, :width]
        return LearnedMean(candidates.gather(1, order), kept.values[:, :width])
