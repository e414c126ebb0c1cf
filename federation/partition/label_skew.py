"""Label skew: clients that hold the classes in different shares."""

import math

import numpy as np
import torch

from federation.partition.checks import check_clients
from graphcl.errors import PartitionError
from graphcl.training import numpy_rng

#: Draws before giving up; one draw costs only classes x clients numbers.
MAX_DRAWS = 1000


def dirichlet(
    y: torch.Tensor | np.ndarray,
    num_clients: int,
    *,
    alpha: float,
    min_nodes: int = 1,
    seed: int,
) -> list[np.ndarray]:
    """Divide the nodes by shares of each class drawn from a Dirichlet distribution.

    How many nodes of each class a client gets depends on the class sizes and the seed only, not on
    the order of the nodes.

    Args:
        y: Class ids, integer [N].
        num_clients: K.
        alpha: Concentration, above 0: large for even shares, small for clients of few classes.
        min_nodes: Nodes the smallest client needs; shares are drawn again until it has them.
        seed: Same seed, same parts.

    Returns:
        K sorted int64 arrays of nodes, disjoint and covering all.

    Raises:
        PartitionError: The nodes are too few, ``alpha`` is not positive, or no draw of many gave
            each client ``min_nodes``.

    Source:
        Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated
        Visual Classification", 2019.
    """
    labels = np.asarray(y)
    check_clients(len(labels), num_clients, min_nodes)
    if not 0 < alpha < math.inf:
        raise PartitionError(f"alpha is {alpha}, must be a finite number above 0")
    _, sizes = np.unique(labels, return_counts=True)
    ends = _draw_ends(sizes, num_clients, alpha, min_nodes, numpy_rng(seed, "dirichlet", "shares"))

    rng = numpy_rng(seed, "dirichlet", "nodes")
    # Nodes shuffled, then sorted by class without disturbing the shuffle inside each class.
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    owner = np.empty(len(labels), dtype=np.int64)
    shares = np.diff(ends, axis=1, prepend=0)
    owner[by_class] = np.repeat(np.tile(np.arange(num_clients), len(sizes)), shares.ravel())
    return [np.flatnonzero(owner == client) for client in range(num_clients)]


def _draw_ends(
    sizes: np.ndarray, num_clients: int, alpha: float, min_nodes: int, rng: np.random.Generator
) -> np.ndarray:
    """Return where each client's nodes end in each class, int64 [C, K]."""
    for _ in range(MAX_DRAWS):
        shares = rng.dirichlet(np.full(num_clients, alpha), size=len(sizes))
        ends = np.rint(np.cumsum(shares, axis=1) * sizes[:, None]).astype(np.int64)
        ends[:, -1] = sizes  # the shares sum to 1 up to rounding
        if np.diff(ends, axis=1, prepend=0).sum(axis=0).min() >= min_nodes:
            return ends
    raise PartitionError(
        f"none of {MAX_DRAWS} draws gave each client min_nodes = {min_nodes}: raise alpha (now "
        f"{alpha}), or lower min_nodes or num_clients (now {num_clients})"
    )
