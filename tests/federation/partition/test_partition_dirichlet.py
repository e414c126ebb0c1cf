"""Label skew: the parts are a partition, and alpha decides how skewed it is."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.partition import dirichlet
from graphcl.errors import PartitionError

LABELS = np.repeat(np.arange(4), [100, 60, 30, 10])


def class_counts(y, parts):
    return [np.bincount(y[part], minlength=y.max() + 1).tolist() for part in parts]


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 3), min_size=12, max_size=120),
    num_clients=st.integers(1, 4),
    alpha=st.floats(0.5, 100),
    min_nodes=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_parts_cover_once_and_are_large_enough(labels, num_clients, alpha, min_nodes, seed):
    y = torch.tensor(labels)
    parts = dirichlet(y, num_clients, alpha=alpha, min_nodes=min_nodes, seed=seed)
    assert len(parts) == num_clients
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    for part in parts:
        assert len(part) >= min_nodes
        assert np.array_equal(part, np.sort(part))
        assert part.dtype == np.int64


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), order=st.permutations(range(30)))
def test_class_counts_do_not_depend_on_the_order_of_nodes(seed, order):
    y = np.arange(30) % 3
    moved = y[np.array(order)]
    one = dirichlet(y, 3, alpha=1.0, seed=seed)
    other = dirichlet(moved, 3, alpha=1.0, seed=seed)
    assert class_counts(y, one) == class_counts(moved, other)


def test_seed_decides():
    one, again, other = (dirichlet(LABELS, 5, alpha=0.5, seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_nodes_of_a_class_are_dealt_at_random():
    parts = dirichlet(np.zeros(100, dtype=int), 2, alpha=100.0, seed=0)
    assert parts[0].max() > parts[1].min()
    assert parts[1].max() > parts[0].min()


def test_alpha_goes_from_even_to_skewed():
    def largest_share(alpha):
        y = np.arange(4000) % 4
        counts = np.array(class_counts(y, dirichlet(y, 4, alpha=alpha, seed=7)))
        return (counts.max(axis=0) / counts.sum(axis=0)).mean()

    assert largest_share(1e6) == pytest.approx(0.25, abs=0.01)
    assert largest_share(0.05) > 0.8


def test_shares_have_the_mean_and_variance_of_the_distribution():
    y = np.zeros(1000, dtype=int)
    first = np.array([len(dirichlet(y, 4, alpha=2.0, seed=seed)[0]) for seed in range(300)]) / 1000
    # Dir(2, 2, 2, 2): mean 1/4, variance 2 * 6 / (8^2 * 9).
    assert first.mean() == pytest.approx(0.25, abs=0.03)
    assert first.var() == pytest.approx(12 / 576, rel=0.3)


def test_draws_again_until_the_smallest_client_has_enough():
    seeds = range(40)
    small = [min(map(len, dirichlet(LABELS, 4, alpha=0.3, seed=seed))) for seed in seeds]
    enough = [
        min(map(len, dirichlet(LABELS, 4, alpha=0.3, min_nodes=20, seed=seed))) for seed in seeds
    ]
    assert min(small) < 20 <= min(enough)


def test_gives_up_and_says_what_to_change():
    with pytest.raises(
        PartitionError, match=r"raise alpha \(now 0.01\), or lower min_nodes or num"
    ):
        dirichlet(LABELS, 10, alpha=0.01, min_nodes=20, seed=0)


@pytest.mark.parametrize(
    ("num_clients", "options", "message"),
    [
        (201, {}, "200 nodes are too few for num_clients = 201"),
        (20, {"min_nodes": 11}, "min_nodes = 11 each"),
        (0, {}, "num_clients is 0"),
        (2, {"min_nodes": 0}, "min_nodes 0"),
        (2, {"alpha": 0.0}, "alpha is 0.0"),
        (2, {"alpha": float("nan")}, "alpha is nan"),
    ],
)
def test_impossible_arguments(num_clients, options, message):
    with pytest.raises(PartitionError, match=message):
        dirichlet(LABELS, num_clients, **({"alpha": 1.0, "seed": 0} | options))
