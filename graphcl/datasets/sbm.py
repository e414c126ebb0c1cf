"""Contextual stochastic block models: graphs of any size with known homophily and signal."""

import math

import numpy as np
import torch
from torch_geometric.data import Data
from torch_geometric.utils import to_undirected

from graphcl.errors import DataError
from graphcl.training import derive_seed, numpy_rng


def contextual_sbm(
    num_nodes: int,
    num_classes: int,
    num_features: int,
    *,
    avg_degree: float = 10.0,
    homophily: float = 0.8,
    signal: float = 1.0,
    seed: int = 0,
) -> Data:
    """Draw a graph from the contextual stochastic block model.

    Two nodes of one class are joined with one probability, two nodes of different classes with
    another, independently.  Features are ``signal`` times the unit mean vector of the class plus
    standard Gaussian noise.  Time and memory grow with nodes and edges, not with pairs of nodes.

    Args:
        num_nodes: N.
        num_classes: C; class sizes differ by one at most.
        num_features: F.
        avg_degree: Expected number of neighbours of a node.
        homophily: Expected share of edges that join nodes of one class, 0 to 1.
        signal: Length of the class means, in standard deviations of the noise; 0 or more.
        seed: Same seed, same graph.

    Returns:
        ``x`` float32 [N, F]; ``edge_index`` int64 [2, E], both directions, no self-loops; ``y``
        int64 [N].

    Raises:
        DataError: An argument is out of range, or there are too few pairs of nodes for the degree
            and homophily asked for.

    Source:
        Deshpande, Montanari, Mossel and Sen, "Contextual Stochastic Block Models", NeurIPS 2018.
    """
    if not 1 <= num_classes <= num_nodes:
        raise DataError(f"num_classes is {num_classes}, must be 1 to num_nodes = {num_nodes}")
    if num_features < 1:
        raise DataError(f"num_features is {num_features}, must be at least 1")
    if not (0 <= avg_degree < math.inf and 0 <= homophily <= 1 and 0 <= signal < math.inf):
        raise DataError(
            f"avg_degree {avg_degree}, homophily {homophily}, signal {signal}: must be finite and "
            f"not negative, homophily at most 1"
        )
    # Nodes are drawn in the order of their classes, where pairs can be counted, and then shuffled.
    bounds = np.arange(num_classes + 1) * num_nodes // num_classes
    pairs = _draw_pairs(bounds, avg_degree, homophily, numpy_rng(seed, "sbm", "edges"))
    node = numpy_rng(seed, "sbm", "order").permutation(num_nodes)
    y = np.empty(num_nodes, dtype=np.int64)
    y[node] = np.repeat(np.arange(num_classes), np.diff(bounds))
    rng = numpy_rng(seed, "sbm", "features")
    means = rng.standard_normal((num_classes, num_features))
    means *= signal / np.linalg.norm(means, axis=1, keepdims=True)
    return Data(
        x=_features(means, y, rng),
        edge_index=to_undirected(torch.from_numpy(node[pairs]), num_nodes=num_nodes),
        y=torch.from_numpy(y),
    )


def mixed_sbm(
    num_nodes: int = 800,
    num_features: int = 50,
    *,
    avg_degree: float = 10.0,
    homophily: float = 0.9,
    bridges: float = 0.2,
    signal: float = 1.0,
    seed: int = 0,
) -> Data:
    """Draw a graph whose first half is homophilic and whose second half is heterophilic.

    Each half is a contextual block model of two classes, equally large; the features of a class
    are the same in both: ``+signal`` or ``-signal`` times one unit vector, plus standard Gaussian
    noise. What tells the classes apart is the low frequencies in one half and the high ones in the
    other, so that no single mixture serves all nodes.

    Args:
        num_nodes: N, at least 8.
        num_features: F.
        avg_degree: Expected number of neighbours within a node's half.
        homophily: Expected share of edges within a class in the first half; ``1 - homophily`` in
            the second.
        bridges: Expected number of neighbours in the other half, of any class.
        signal: Length of the class means, in standard deviations of the noise.
        seed: Same seed, same graph.

    Returns:
        As :func:`contextual_sbm`, and ``homophilic`` bool [N], True in the first half.

    Raises:
        DataError: An argument is out of range, or there are too few pairs of nodes.

    Source:
        Ours, for the claim of ASPECT (Li et al., 2026) that one mixture of frequencies for all
        nodes cannot serve a graph that mixes such regions.
    """
    if num_nodes < 8 or not 0 <= bridges < math.inf:
        raise DataError(
            f"mixed_sbm: num_nodes is {num_nodes} and bridges {bridges}; pass 8 nodes or more, and "
            "bridges of zero or more"
        )
    half = num_nodes // 2
    parts = [
        contextual_sbm(
            size,
            2,
            num_features,
            avg_degree=avg_degree,
            homophily=share,
            signal=signal,
            seed=derive_seed(seed, "mixed", part),
        )
        for part, (size, share) in enumerate(((half, homophily), (num_nodes - half, 1 - homophily)))
    ]
    rng = numpy_rng(seed, "mixed", "bridges")
    ranks, _ = _draw_ranks(
        np.array([half * (num_nodes - half)]), bridges * num_nodes / 2, "between the halves", rng
    )
    across = torch.from_numpy(np.stack([ranks % half, half + ranks // half]))
    edges = torch.cat([parts[0].edge_index, parts[1].edge_index + half, across], 1)
    y = torch.cat([part.y for part in parts])
    rng = numpy_rng(seed, "mixed", "features")
    axis = rng.standard_normal(num_features)
    axis *= signal / np.linalg.norm(axis)
    return Data(
        x=_features(np.stack([-axis, axis]), y.numpy(), rng),
        edge_index=to_undirected(edges, num_nodes=num_nodes),
        y=y,
        homophilic=torch.arange(num_nodes) < half,
    )


def _features(means: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """Return the mean of each node's class plus standard Gaussian noise, float32 [N, F]."""
    x = rng.standard_normal((len(y), means.shape[1]), dtype=np.float32)
    x += means.astype(np.float32)[y]
    return torch.from_numpy(x)


def _draw_pairs(
    bounds: np.ndarray, avg_degree: float, homophily: float, rng: np.random.Generator
) -> np.ndarray:
    """Return the joined pairs, int64 [2, M], of nodes sorted by class (class c: bounds[c:c+2])."""
    start, end, size = bounds[:-1], bounds[1:], np.diff(bounds)
    later = bounds[-1] - end  # nodes in later classes: each pair across classes is counted once
    expected = bounds[-1] * avg_degree / 2
    within, class_w = _draw_ranks(size * (size - 1) // 2, expected * homophily, "within", rng)
    across, class_a = _draw_ranks(size * later, expected * (1 - homophily), "across", rng)
    # Rank r of a class numbers the pairs i < j row by row: j is the triangular root of r.
    j = ((1 + np.sqrt(1 + 8 * within)) / 2).astype(np.int64)
    i = within - j * (j - 1) // 2
    return np.concatenate(
        [
            np.stack([start[class_w] + i, start[class_w] + j]),
            np.stack(
                [start[class_a] + across // later[class_a], end[class_a] + across % later[class_a]]
            ),
        ],
        axis=1,
    )


def _draw_ranks(
    pairs: np.ndarray, expected: float, kind: str, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw each pair with one probability; return ranks inside the classes and the classes.

    Given their number, the chosen pairs are a uniform subset, so a binomial number and a draw
    without replacement replace a coin for each pair.
    """
    offset = np.concatenate([[0], np.cumsum(pairs)])
    total = int(offset[-1])
    if expected > total:
        raise DataError(
            f"avg_degree and homophily ask for {expected:.1f} edges {kind} classes, but there are "
            f"only {total} such pairs: lower avg_degree, or change homophily or num_classes"
        )
    count = rng.binomial(total, expected / total) if total else 0
    ranks = rng.choice(total, count, replace=False, shuffle=False) if count else np.arange(0)
    owner = np.searchsorted(offset, ranks, side="right") - 1
    return ranks - offset[owner], owner
