"""Simulated interactions: users whose interest drifts, so that the best possible guess is known."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from graphcl.datasets.interactions import Interactions
from graphcl.datasets.series import DAY
from graphcl.errors import DataError
from graphcl.training import numpy_rng

STAY = 0.7
"""Chance that the next item is of the same cluster as the last one."""
DRIFT = 0.2
"""Chance that it is of the following cluster instead; otherwise it may be of any."""

_SHORTEST = 5  # sequence: one event to validate, one to test on, a few to learn from
_EXTRA = 10  # mean of what a sequence has beyond that
_PAUSE = 120  # mean seconds between two items of one session
_MISLABELLED = 0.1  # share of items whose category tells nothing of their cluster
_TEXT_CHANNELS = 16
_TEXT_NOISE = 0.5  # deviation, where that of the clusters' centres is 1
_START = 1_704_067_200  # Monday 2024-01-01


@dataclass(frozen=True, eq=False)
class InteractionSimulation:
    """Simulated interactions and the truth behind them.

    Shapes:
        - **cluster**: int64 ``[num_items + 1]``, from 0; that of padding says nothing
        - **share**: float64 ``[num_items + 1]``, chance of each item among those of its cluster, 0
          of padding
        - **transition**: float64 ``[num_clusters, num_clusters]``, chance of the next cluster (a
          column) after the last one (a row)
    """

    interactions: Interactions
    cluster: Tensor
    share: Tensor
    transition: Tensor

    def next_item(self, item: Tensor) -> Tensor:
        """Return the chance of each item to be the next, float64 ``[B, num_items + 1]``.

        No model ranks better than by these chances, with the items that a user took left out: the
        next one is drawn from the rest in proportion to them.

        Args:
            item: The last item of each of B sequences, int64 ``[B]``.
        """
        return self.transition[self.cluster[item]][:, self.cluster] * self.share


def simulate_interactions(
    num_users: int = 1000,
    num_items: int = 500,
    *,
    num_clusters: int = 10,
    seed: int = 0,
) -> InteractionSimulation:
    """Simulate users who take items of one cluster for a while and then drift to the next.

    The clusters lie on a ring: after an item of one comes, by chance, another of it, one of the
    following cluster, or one of any.  Within a cluster the r-th most popular item is taken 1 / r
    times as often as the first.  No user takes an item twice.  A session, for
    :meth:`Interactions.sessions` with a gap of 1,800 seconds, lasts as long as the cluster; after
    it the user is away for over a day.  The category of nine items in ten is their cluster, and the
    text embedding is that of the cluster with noise.

    Args:
        num_users: Each has 5 events or more, 15 on average unless the items are few.
        num_items: At least 4 times num_clusters, and at least 20.
        num_clusters: At least 2.
        seed: Same seed, same simulation.

    Raises:
        DataError: An argument is out of range.

    Source:
        Ours.
    """
    fewest = max(4 * _SHORTEST, 4 * num_clusters)
    for argument, value, least in (
        ("num_users", num_users, 1),
        ("num_clusters", num_clusters, 2),
        ("num_items", num_items, fewest),
    ):
        if value < least:
            raise DataError(
                f"simulate_interactions: {argument} is {value}, must be at least {least}"
            )
    items = numpy_rng(seed, "interactions", "items")
    # Shuffled, so that an item's number tells neither its cluster nor its popularity.
    place = items.permutation(num_items)
    cluster, rank = place % num_clusters, place // num_clusters
    share = 1 / (rank + 1)
    share /= np.bincount(cluster, share)[cluster]
    transition = _transition(num_clusters)
    rng = numpy_rng(seed, "interactions", "users")
    longest = num_items // 4  # what is left to take stays more than what is taken
    length = np.minimum(_SHORTEST + rng.geometric(1 / (_EXTRA + 1), num_users) - 1, longest)
    taken = _walk(length, cluster, share, transition, rng)
    there = np.arange(taken.shape[1]) < length[:, None]
    label = items.integers(num_clusters, size=num_items)
    category = np.where(items.random(num_items) < _MISLABELLED, label, cluster)
    centers = items.standard_normal((num_clusters, _TEXT_CHANNELS))
    text = centers[cluster] + _TEXT_NOISE * items.standard_normal((num_items, _TEXT_CHANNELS))
    interactions = Interactions(
        name="simulated",
        user=torch.arange(num_users).repeat_interleave(torch.from_numpy(length)),
        item=torch.from_numpy(taken[there] + 1),
        num_users=num_users,
        num_items=num_items,
        time=torch.from_numpy(_times(cluster[taken], rng)[there]),
        category=_padded(category + 1),
        category_name=("", *(f"category-{c}" for c in range(num_clusters))),
        text=_padded(text.astype(np.float32)),
    )
    return InteractionSimulation(
        interactions=interactions.validate(),
        cluster=_padded(cluster),
        share=_padded(share),
        transition=torch.from_numpy(transition),
    )


def _transition(num_clusters: int) -> np.ndarray:
    same = np.eye(num_clusters)
    anywhere = (1 - STAY - DRIFT) / num_clusters
    return STAY * same + DRIFT * np.roll(same, 1, axis=1) + anywhere


def _walk(
    length: np.ndarray,
    cluster: np.ndarray,
    share: np.ndarray,
    transition: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return what each user takes, items from 0, [num_users, longest], then -1."""
    by_cluster = cluster.argsort(kind="stable")
    # Cluster c fills the interval from c to c + 1: one search draws an item of any cluster.
    bound = share[by_cluster].cumsum()
    taken = np.full((len(length), length.max()), -1)
    for step in range(taken.shape[1]):
        rows = np.flatnonzero(step < length)
        while len(rows):
            if step:
                chance = transition[cluster[taken[rows, step - 1]]].cumsum(axis=1)
                nxt = (rng.random((len(rows), 1)) > chance[:, :-1]).sum(axis=1)
            else:
                nxt = rng.integers(len(transition), size=len(rows))
            drawn = np.searchsorted(bound, nxt + rng.random(len(rows)), side="right")
            item = by_cluster[drawn.clip(max=len(bound) - 1)]
            again = (taken[rows, :step] == item[:, None]).any(axis=1)
            taken[rows[~again], step] = item[~again]
            rows = rows[again]
    return taken


def _times(cluster: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return seconds [num_users, longest]: short pauses within a cluster, days between two."""
    pause = (1 + rng.exponential(_PAUSE, cluster.shape)).clip(max=10 * _PAUSE)
    moved = np.diff(cluster, axis=1, prepend=cluster[:, :1]) != 0
    pause[moved] += DAY * (1 + rng.exponential(3, int(moved.sum())))
    pause[:, 0] += rng.uniform(0, 30 * DAY, len(cluster))
    return _START + pause.astype(np.int64).cumsum(axis=1)


def _padded(values: np.ndarray) -> Tensor:
    """Return one row per item with a row of zeros, that of padding, before them."""
    return torch.from_numpy(np.concatenate([np.zeros_like(values[:1]), values]))
