"""Handwritten digits as a graph: real data that needs no download."""

import torch
from torch_geometric.data import Data
from torch_geometric.utils import from_scipy_sparse_matrix

from graphcl.errors import DataError


def digits_graph(num_neighbors: int = 8) -> Data:
    """Return scikit-learn's 1,797 handwritten digits, joined to their nearest neighbours.

    Two digits are joined if either is among the ``num_neighbors`` nearest of the other by the
    Euclidean distance of their pixels.

    Args:
        num_neighbors: Neighbours each digit picks, 1 to 1,796; degrees are at least this.

    Returns:
        ``x`` float32 [1797, 64], pixel intensities from 0 to 1; ``edge_index`` int64 [2, E], both
        directions; ``y`` int64 [1797], the digit.

    Raises:
        DataError: ``num_neighbors`` is out of range.

    Source:
        Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (test part).
    """
    # Imported here: scikit-learn takes most of a second, which every other data set would wait for.
    from sklearn.datasets import load_digits
    from sklearn.neighbors import kneighbors_graph

    pixels, digit = load_digits(return_X_y=True)
    if not 1 <= num_neighbors < len(pixels):
        raise DataError(f"num_neighbors is {num_neighbors}, must be 1 to {len(pixels) - 1}")
    picks = kneighbors_graph(pixels, num_neighbors)
    edge_index, _ = from_scipy_sparse_matrix(picks.maximum(picks.T).tocsr().sorted_indices())
    return Data(
        x=torch.as_tensor(pixels / 16, dtype=torch.float32),
        edge_index=edge_index.long(),
        y=torch.as_tensor(digit, dtype=torch.int64),
    )
