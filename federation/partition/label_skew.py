"""Label skew: clients that hold the classes in different shares."""

import math
from collections.abc import Callable

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
    labels = _labels(y, num_clients, min_nodes)
    _check_alpha(alpha)
    sizes = np.unique(labels, return_counts=True)[1]
    rng = numpy_rng(seed, "dirichlet", "shares")

    def draw() -> np.ndarray:
        ends = np.cumsum(rng.dirichlet(np.full(num_clients, alpha), size=len(sizes)), axis=1)
        return _counts(ends, sizes)

    counts = _drawn(draw, min_nodes, f"raise alpha (now {alpha})", num_clients)
    return _parts(labels, counts, numpy_rng(seed, "dirichlet", "nodes"))


def practical(
    y: torch.Tensor | np.ndarray,
    num_clients: int,
    *,
    alpha: float,
    min_nodes: int = 1,
    seed: int,
) -> list[np.ndarray]:
    """Divide the nodes as :func:`dirichlet` does, but give a client with its even share no more.

    The classes are dealt out one after the other. Of each, a client that already holds N / K nodes
    or more gets none, and the others' shares are scaled to sum to 1.

    Args:
        y: See :func:`dirichlet`, as for the next four.
        num_clients: K.
        alpha: Concentration, above 0.
        min_nodes: Nodes the smallest client needs; all is drawn again until it has them.
        seed: Same seed, same parts.

    Returns:
        K sorted int64 arrays of nodes, disjoint and covering all.

    Raises:
        PartitionError: See :func:`dirichlet`.

    Source:
        The practical setting of PFLlib and HtFLlib (Zhang et al., 2025).
    """
    labels = _labels(y, num_clients, min_nodes)
    _check_alpha(alpha)
    sizes = np.unique(labels, return_counts=True)[1]
    rng = numpy_rng(seed, "practical", "shares")

    def draw() -> np.ndarray:
        counts = np.zeros((len(sizes), num_clients), dtype=np.int64)
        for label in range(len(sizes)):
            open_ = counts.sum(axis=0) * num_clients < len(labels)
            share = rng.dirichlet(np.full(num_clients, alpha)) * open_
            # A tiny alpha can round the shares of all open clients to nothing.
            share = share / share.sum() if share.sum() else open_ / open_.sum()
            counts[label] = _counts(np.cumsum(share)[None], sizes[label : label + 1])[0]
        return counts

    counts = _drawn(draw, min_nodes, f"raise alpha (now {alpha})", num_clients)
    return _parts(labels, counts, numpy_rng(seed, "practical", "nodes"))


def pathological(
    y: torch.Tensor | np.ndarray,
    num_clients: int,
    *,
    classes: int,
    min_nodes: int = 1,
    seed: int,
) -> list[np.ndarray]:
    """Divide the nodes such that every client holds a few classes, in unequal amounts.

    The clients take turns to pick ``classes`` classes each, and of every class as many clients hold
    some as of any other, up to one. Of a class, each of them but one gets between a tenth of an
    even share and all of it, at random, and that one the rest.

    Args:
        y: See :func:`dirichlet`, as for the next one.
        num_clients: K.
        classes: Classes of every client, at least 1, so many that each class has a client.
        min_nodes: Nodes the smallest client needs; the amounts are drawn again until it has them.
        seed: Same seed, same parts.

    Returns:
        K sorted int64 arrays of nodes, disjoint and covering all.

    Raises:
        PartitionError: The nodes are too few, ``classes`` is out of range, a class has fewer nodes
            than clients, or no draw of many gave each client ``min_nodes``.

    Source:
        The pathological setting of PFLlib and HtFLlib (Zhang et al., 2025).
    """
    labels = _labels(y, num_clients, min_nodes)
    held, sizes = np.unique(labels, return_counts=True)
    least = -(-len(held) // num_clients)
    if not least <= classes <= len(held):
        raise PartitionError(
            f"classes is {classes}, must be {least} to {len(held)}, so that each of the "
            f"{len(held)} classes has one of the {num_clients} clients"
        )
    rng = numpy_rng(seed, "pathological", "shares")
    owners = _owners(len(held), num_clients, classes, rng)
    for label, size in enumerate(sizes):
        if size < owners[label].sum():
            raise PartitionError(
                f"class {held[label]} has {size} nodes for the {owners[label].sum()} clients that "
                "hold it: lower classes or num_clients"
            )

    def draw() -> np.ndarray:
        counts = np.zeros(owners.shape, dtype=np.int64)
        for label, size in enumerate(sizes):
            takers = rng.permutation(np.flatnonzero(owners[label]))
            even = size // len(takers)
            amounts = rng.integers(-(-even // 10), even, len(takers) - 1, endpoint=True)
            counts[label, takers] = [*amounts, size - amounts.sum()]
        return counts

    counts = _drawn(draw, min_nodes, f"raise classes (now {classes})", num_clients)
    return _parts(labels, counts, numpy_rng(seed, "pathological", "nodes"))


def _owners(num_classes: int, num_clients: int, each: int, rng: np.random.Generator) -> np.ndarray:
    """Return which client holds which class, bool [C, K]."""
    picks = np.arange(num_clients * each).reshape(num_clients, each) % num_classes
    picks = rng.permutation(num_classes)[picks]  # a client's picks follow one another: all unlike
    owners = np.zeros((num_classes, num_clients), dtype=bool)
    owners[picks, rng.permutation(num_clients)[:, None]] = True
    return owners


def _labels(y: torch.Tensor | np.ndarray, num_clients: int, min_nodes: int) -> np.ndarray:
    labels = np.asarray(y)
    check_clients(len(labels), num_clients, min_nodes)
    return labels


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < math.inf:
        raise PartitionError(f"alpha is {alpha}, must be a finite number above 0")


def _counts(ends: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Cut classes of these sizes where the clients' shares end, [C, K], into numbers of nodes."""
    cuts = np.rint(ends * sizes[:, None]).astype(np.int64)
    cuts[:, -1] = sizes  # the shares sum to 1 up to rounding
    return np.diff(cuts, axis=1, prepend=0)


def _drawn(
    draw: Callable[[], np.ndarray], min_nodes: int, remedy: str, num_clients: int
) -> np.ndarray:
    """Return the first draw of nodes per class and client, int64 [C, K], that has the smallest."""
    for _ in range(MAX_DRAWS):
        counts = draw()
        if counts.sum(axis=0).min() >= min_nodes:
            return counts
    raise PartitionError(
        f"none of {MAX_DRAWS} draws gave each client min_nodes = {min_nodes}: {remedy}, or lower "
        f"min_nodes or num_clients (now {num_clients})"
    )


def _parts(labels: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Return so many nodes of each class for each client, drawn at random."""
    num_clients = counts.shape[1]
    # Nodes shuffled, then sorted by class without disturbing the shuffle inside each class.
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    owner = np.empty(len(labels), dtype=np.int64)
    owner[by_class] = np.repeat(np.tile(np.arange(num_clients), len(counts)), counts.ravel())
    in_order = np.argsort(owner, kind="stable")
    return np.split(in_order, np.cumsum(counts.sum(axis=0))[:-1])
