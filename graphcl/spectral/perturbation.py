"""Random perturbations of a graph: flipped edges, noisy features, or both.

They ask how much a result hangs on single edges and exact features. Each depends on its seed
alone, so that methods can be compared on the same perturbed graphs.
"""

import copy

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from graphcl.errors import GraphCLError
from graphcl.spectral.laplacian import EdgePattern
from graphcl.training import numpy_rng, torch_rng


def random_flips(edge_index: Tensor, num_nodes: int, ratio: float, *, seed: int) -> Tensor:
    """Flip as many node pairs as a share of the edges: an edge goes, a missing one comes.

    The pairs are distinct and drawn uniformly from all ``N (N - 1) / 2``, so that in a sparse
    graph nearly all flips add an edge.

    Shapes:
        edge_index: ``[2, E]``. Returns ``[2, 2 E']``, both directions of every edge, sorted.

    Args:
        edge_index: Read as in :class:`~graphcl.spectral.EdgePattern`: undirected, no loops.
        num_nodes: Number of nodes.
        ratio: Flips per undirected edge, in [0, 1]; their number is rounded.
        seed: Same seed, same flips.

    Raises:
        GraphCLError: The ratio is outside [0, 1], or ``edge_index`` does not fit.

    Source:
        The ``flip`` of DeepRobust's random attack, with distinct pairs.

    Example:
        >>> random_flips(torch.tensor([[0, 1], [1, 0]]), num_nodes=2, ratio=1.0, seed=0).shape
        torch.Size([2, 0])
    """
    if not 0 <= ratio <= 1:
        raise GraphCLError(f"random_flips: ratio is {ratio}; pass a share of the edges from 0 to 1")
    low, high = EdgePattern(edge_index, num_nodes).edge_index.cpu().numpy()
    num_pairs = num_nodes * (num_nodes - 1) // 2
    # A graph has no more edges than pairs, so there are enough of them.
    drawn = numpy_rng(seed, "edge flips").choice(num_pairs, round(ratio * len(low)), replace=False)
    # Pair i < j has the number j (j - 1) / 2 + i.
    kept = np.setxor1d(high * (high - 1) // 2 + low, drawn, assume_unique=True)
    high = ((1 + np.sqrt(1 + 8.0 * kept)) // 2).astype(np.int64)
    low = kept - high * (high - 1) // 2
    both = np.stack([np.concatenate([low, high]), np.concatenate([high, low])])
    order = np.lexsort((both[1], both[0]))
    return torch.from_numpy(both[:, order]).to(edge_index.device)


def feature_noise(x: Tensor, ratio: float, *, seed: int) -> Tensor:
    """Add Gaussian noise of ``ratio`` times each feature's own standard deviation.

    Shapes:
        x: ``[N, F]``. Returns ``[N, F]``.

    Args:
        x: Node features; a constant one stays as it is.
        ratio: Not negative.
        seed: Same seed, same noise, on every device.

    Raises:
        GraphCLError: The ratio is negative or ``x`` is no floating-point matrix.

    Example:
        >>> feature_noise(torch.ones(3, 2), 0.5, seed=0)
        tensor([[1., 1.],
                [1., 1.],
                [1., 1.]])
    """
    if x.layout != torch.strided:
        raise GraphCLError("feature_noise: x is sparse, and noise is not: pass x.to_dense()")
    if not ratio >= 0 or x.dim() != 2 or not x.is_floating_point():
        raise GraphCLError(
            f"feature_noise: ratio is {ratio} and x {x.dtype} of shape {tuple(x.shape)}; pass a "
            "ratio of at least 0 and floating-point features [N, F]"
        )
    noise = torch.randn(x.shape, generator=torch_rng(seed, "feature noise"), dtype=x.dtype)
    return x + ratio * x.std(0, correction=0) * noise.to(x.device)


def random_perturbation(data: Data, ratio: float, *, seed: int) -> Data:
    """Perturb structure and features of a graph together; labels and masks stay.

    :func:`random_flips` of the edges and :func:`feature_noise`, both with the same ratio.

    Args:
        data: ``x [N, F]`` and ``edge_index [2, E]``; it is not changed. Edges with features of
            their own are no case here.
        ratio: In [0, 1].
        seed: Same seed, same perturbation.

    Raises:
        GraphCLError: As for the two parts.

    Source:
        Li et al., ASPECT, 2026, name a joint perturbation; its form is completed by us.

    Example:
        >>> data = Data(x=torch.eye(3), edge_index=torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]))
        >>> random_perturbation(data, 0.5, seed=0).x.shape
        torch.Size([3, 3])
    """
    perturbed = copy.copy(data)
    perturbed.edge_index = random_flips(data.edge_index, data.num_nodes, ratio, seed=seed)
    perturbed.x = feature_noise(data.x, ratio, seed=seed)
    return perturbed
