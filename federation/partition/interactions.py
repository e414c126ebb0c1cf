"""Interactions over clients: whose users are whose, what each offers, and what that did."""

from collections.abc import Sequence

import numpy as np

from federation.partition.checks import check_clients
from federation.partition.report import ClientReport, PartitionReport, label_entropy
from graphcl.training import numpy_rng


def deal(num_users: int, num_clients: int, *, seed: int) -> list[np.ndarray]:
    """Deal out users at random, as evenly as their number allows.

    Args:
        num_users: N.
        num_clients: K; K = N gives every client one user.
        seed: Same seed, same parts.

    Returns:
        K sorted int64 arrays of users, disjoint and covering all.

    Raises:
        PartitionError: There are fewer users than clients.
    """
    check_clients(num_users, num_clients)
    shuffled = numpy_rng(seed, "deal").permutation(num_users)
    return [np.sort(part) for part in np.array_split(shuffled, num_clients)]


def catalogues(num_items: int, num_clients: int, share: float, *, seed: int) -> np.ndarray:
    """Draw what each client offers of one catalogue, bool ``[num_clients, num_items + 1]``.

    Args:
        num_items: Items, from 1; padding's entry is False.
        num_clients: Clients, who draw independently of one another.
        share: Of the items, rounded, at least one of them.
        seed: Same seed, same catalogues.
    """
    count = max(1, round(share * num_items))
    rng = numpy_rng(seed, "catalogues")
    offered = np.zeros((num_clients, num_items + 1), dtype=bool)
    for row in offered:
        row[1 + rng.permutation(num_items)[:count]] = True
    return offered


def events_report(
    num_users: Sequence[int], class_counts: np.ndarray, events: Sequence[int], lost: int
) -> PartitionReport:
    """Return a division of users as one of a graph, whose edges are the events.

    Args:
        num_users: Users of each client, its nodes.
        class_counts: Events with items of each category, integer ``[num_clients, C]``.
        events: Events of each client.
        lost: Events that no client holds, since its user's does not offer the item.
    """
    total = sum(events) + lost
    return PartitionReport(
        clients=tuple(
            ClientReport(users, count, tuple(row.tolist()), label_entropy(row), None)
            for users, count, row in zip(num_users, events, class_counts, strict=True)
        ),
        edges=total,
        cut_edges=lost,
        cut_share=lost / total,
    )
