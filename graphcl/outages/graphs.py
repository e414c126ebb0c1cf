"""Spatial graphs of locations on the sphere: who is near whom, and how much that counts."""

import numpy as np
import torch
from scipy.sparse import coo_matrix, diags_array, eye_array
from scipy.spatial import cKDTree
from torch import Tensor

from graphcl.errors import GraphCLError
from graphcl.spectral import SymmetricOperator

EARTH_RADIUS_KM = 6371.0088


def nearest_neighbors(latlon: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the nearest other locations of each location, nearest first, and how far they are.

    Shapes:
        latlon: ``[N, 2]``, degrees north and east. Returns ``[N, k']`` indices and ``[N, k']``
        great-circle distances in km, with ``k' = min(k, N - 1)``.

    Args:
        latlon: Where the locations are; several may share a point.
        k: Number of neighbours, at least 1.

    Raises:
        GraphCLError: ``k`` is below 1, or ``latlon`` is no matrix of two columns.

    Source:
        Chords between points of the unit sphere order them as great circles do, so a k-d tree
        finds them: exact, over poles and the date line.

    Example:
        >>> index, km = nearest_neighbors(torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 3.0]]), 1)
        >>> index.flatten(), km.round().flatten()
        (tensor([1, 0, 1]), tensor([111., 111., 222.], dtype=torch.float64))
    """
    if k < 1 or latlon.dim() != 2 or latlon.size(1) != 2:
        raise GraphCLError(
            f"nearest_neighbors: k is {k} and latlon has shape {tuple(latlon.shape)}; pass at "
            "least 1 and degrees [N, 2]"
        )
    k = min(k, len(latlon) - 1)
    if k == 0:
        return torch.empty(len(latlon), 0, dtype=torch.long), torch.empty(len(latlon), 0)
    points = _on_sphere(latlon)
    chord, index = cKDTree(points).query(points, k=k + 1)
    # The location itself is among them, but not always first: others may share its point.
    own = index == np.arange(len(index))[:, None]
    own[~own.any(1), -1] = True
    rest = (len(index), k)
    distance = 2 * EARTH_RADIUS_KM * np.arcsin(np.clip(chord[~own].reshape(rest) / 2, 0, 1))
    return torch.from_numpy(index[~own].reshape(rest)), torch.from_numpy(distance)


class RowMean:
    """A fixed graph as a mean over each location and its neighbours: ``rn(A) = D^-1 (A + I)``.

    Args:
        edges: Pairs of different locations, in one direction or both, none of them twice.
        weight: Of each pair, positive; of two directions, the larger one counts.
        num_locations: N.

    Shapes:
        edges: ``[2, E]``; weight: ``[E]``. ``mean @ x`` maps ``[N, D]`` to ``[N, D]``.

    Source:
        Wu et al., MTGNN, KDD 2020, for the row normalisation. ``D^-1 S`` with a symmetric ``S``
        is ``D^-1/2 (D^-1/2 S D^-1/2) D^1/2``, so the product and its gradient are symmetric ones.

    Example:
        >>> mean = RowMean(torch.tensor([[0], [1]]), torch.tensor([1.0]), 3)
        >>> mean @ torch.tensor([[0.0], [1.0], [5.0]])
        tensor([[0.5000],
                [0.5000],
                [5.0000]])
    """

    def __init__(self, edges: Tensor, weight: Tensor, num_locations: int):
        row, column = edges.numpy()
        shape = (num_locations, num_locations)
        one_way = coo_matrix((weight.double().numpy(), (row, column)), shape).tocsr()
        adjacency = one_way.maximum(one_way.T) + eye_array(num_locations, format="csr")
        degree = np.asarray(adjacency.sum(1)).ravel()
        scale = diags_array(1 / np.sqrt(degree))
        scaled = (scale @ adjacency @ scale).tocsr().astype(np.float32)
        scaled.sort_indices()
        self.operator = SymmetricOperator(
            torch.from_numpy(scaled.indptr.astype(np.int64)),
            torch.from_numpy(scaled.indices.astype(np.int64)),
            torch.from_numpy(scaled.data),
        )
        self.scale = torch.from_numpy(np.sqrt(degree).astype(np.float32))[:, None]

    def __matmul__(self, x: Tensor) -> Tensor:
        return (self.operator @ (x * self.scale)) / self.scale


def gaussian_knn(latlon: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the edges of a k-nearest-neighbour graph and their Gaussian weights.

    ``exp(-d^2 / (2 s^2))`` with ``s`` the median distance to the k-th neighbour.

    Shapes:
        latlon: ``[N, 2]``. Returns ``[2, N k']`` and ``[N k']``.

    Source:
        Usual kernel graph; the paper names a static spatial graph only.
    """
    index, distance = nearest_neighbors(latlon, k)
    row = torch.arange(len(index)).repeat_interleave(index.size(1))
    edges = torch.stack([row, index.flatten()])
    scale = distance[:, -1].median().clamp(min=1e-3) if index.size(1) else distance.new_ones(())
    weight = torch.exp(-distance.square() / (2 * scale**2)).clamp(min=1e-6)
    return edges, weight.flatten()


def _on_sphere(latlon: Tensor) -> np.ndarray:
    latitude, longitude = np.radians(latlon.double().numpy()).T
    around = np.cos(latitude)
    return np.stack([around * np.cos(longitude), around * np.sin(longitude), np.sin(latitude)], 1)
