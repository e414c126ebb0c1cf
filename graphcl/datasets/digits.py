"""Handwritten digits as a graph: real data that needs no download."""

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from graphcl.errors import DataError


def digits_graph(num_neighbors: int = 8) -> Data:
    """Return scikit-learn's 1,797 handwritten digits, joined to their nearest neighbours.

    Two digits are joined if either is among the ``num_neighbors`` nearest of the other by the
    Euclidean distance of their pixels; of equally near ones those that come first in the data.

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

    pixels, digit = load_digits(return_X_y=True)
    if not 1 <= num_neighbors < len(pixels):
        raise DataError(f"num_neighbors is {num_neighbors}, must be 1 to {len(pixels) - 1}")
    return Data(
        x=torch.as_tensor(pixels / 16, dtype=torch.float32),
        edge_index=_nearest(pixels, num_neighbors),
        y=torch.as_tensor(digit, dtype=torch.int64),
    )


def _nearest(pixels: np.ndarray, num_neighbors: int) -> Tensor:
    """Return the edges between rows of whole numbers, both directions, sorted.

    Computed by hand, since a library's choice among equally near neighbours, of which pixels from 0
    to 16 have many, may change with the number of threads.
    """
    num_nodes = len(pixels)
    # Sums of products of small whole numbers are exact, whatever the order of adding.
    squares = np.square(pixels).sum(1)
    distance = squares[:, None] + squares - 2 * pixels @ pixels.T
    np.fill_diagonal(distance, np.inf)
    picks = np.argsort(distance, axis=1, kind="stable")[:, :num_neighbors]
    adjacency = np.zeros((num_nodes, num_nodes), dtype=bool)
    adjacency[np.arange(num_nodes)[:, None], picks] = True
    return torch.from_numpy(np.stack((adjacency | adjacency.T).nonzero()))
