"""The skews of federated image benchmarks: both are partitions, each with its own promise."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.partition import dirichlet, pathological, practical
from graphcl.errors import PartitionError

LABELS = np.repeat(np.arange(10), 300)


def counts(y, parts):
    """Nodes of each client and class, [K, C]."""
    return np.array([np.bincount(y[part], minlength=y.max() + 1) for part in parts])


def check_partition(y, parts, num_clients, min_nodes):
    assert len(parts) == num_clients
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(y)))
    for part in parts:
        assert len(part) >= min_nodes
        assert np.array_equal(part, np.sort(part))
        assert part.dtype == np.int64


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 3), min_size=12, max_size=120),
    num_clients=st.integers(1, 4),
    alpha=st.floats(0.5, 100),
    seed=st.integers(0, 2**32),
)
def test_practical_parts_cover_once(labels, num_clients, alpha, seed):
    y = torch.tensor(labels)
    parts = practical(y, num_clients, alpha=alpha, seed=seed)
    check_partition(y.numpy(), parts, num_clients, 1)


@pytest.mark.parametrize("alpha", [0.1, 1e-4])
def test_a_client_with_its_even_share_gets_no_more_of_later_classes(alpha):
    full = 0
    for seed in range(20):
        held = counts(LABELS, practical(LABELS, 5, alpha=alpha, min_nodes=1, seed=seed))
        before = held.cumsum(axis=1) - held  # of earlier classes
        closed = before * 5 >= len(LABELS)
        assert not held[closed].any()
        full += closed.any()
    assert full > 10  # or nothing was tested


def test_practical_is_more_even_than_dirichlet():
    def largest(divide):
        sizes = [[len(p) for p in divide(LABELS, 20, alpha=0.1, seed=seed)] for seed in range(20)]
        return np.max(sizes, axis=1).mean()

    assert largest(practical) < 0.9 * largest(dirichlet)


def test_practical_draws_again_until_the_smallest_client_has_enough():
    parts = [practical(LABELS, 20, alpha=0.1, min_nodes=40, seed=seed) for seed in range(5)]
    for one in parts:
        check_partition(LABELS, one, 20, 40)
    with pytest.raises(PartitionError, match=r"raise alpha \(now 0.1\), or lower min_nodes or num"):
        practical(LABELS, 20, alpha=0.1, min_nodes=150, seed=0)


@settings(deadline=None)
@given(
    num_classes=st.integers(1, 6),
    num_clients=st.integers(1, 8),
    classes=st.integers(1, 6),
    seed=st.integers(0, 2**32),
)
def test_every_client_holds_so_many_classes_and_every_class_so_many_clients(
    num_classes, num_clients, classes, seed
):
    y = np.arange(40 * num_classes) % num_classes
    if not -(-num_classes // num_clients) <= classes <= num_classes:
        with pytest.raises(PartitionError, match=f"classes is {classes}, must be"):
            pathological(y, num_clients, classes=classes, seed=seed)
        return
    parts = pathological(y, num_clients, classes=classes, seed=seed)
    check_partition(y, parts, num_clients, 1)
    held = counts(y, parts) > 0
    assert (held.sum(axis=1) == classes).all()
    clients = held.sum(axis=0)
    assert clients.max() - clients.min() <= 1


def test_all_but_one_client_of_a_class_get_a_tenth_to_all_of_an_even_share():
    amounts = []
    for seed in range(20):
        held = counts(LABELS, pathological(LABELS, 20, classes=2, seed=seed))
        for column in held.T:
            least, *rest = np.sort(column[column > 0])
            assert len(rest) == 3  # 20 clients of 2 classes: 4 for each of 10
            even, (*others, last) = 300 // 4, rest
            assert 0.1 * even <= least
            assert max(others) <= even <= last
            amounts += [least, *others]
    assert min(amounts) < 15
    assert max(amounts) > 70


def test_amounts_are_drawn_again_until_the_smallest_client_has_enough():
    assert min(map(len, pathological(LABELS, 20, classes=2, min_nodes=60, seed=1))) >= 60
    with pytest.raises(PartitionError, match=r"raise classes \(now 2\), or lower min_nodes"):
        pathological(LABELS, 20, classes=2, min_nodes=150, seed=1)


def test_a_class_needs_a_node_for_each_of_its_clients():
    y = np.array([0] * 50 + [1] * 3)
    with pytest.raises(PartitionError, match="class 1 has 3 nodes for the 4 clients that hold it"):
        pathological(y, 4, classes=2, seed=0)


@pytest.mark.parametrize(
    ("divide", "options"), [(practical, {"alpha": 0.1}), (pathological, {"classes": 2})]
)
def test_the_seed_decides_and_nodes_of_a_class_are_dealt_at_random(divide, options):
    one, again, other = (divide(LABELS, 20, seed=seed, **options) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    # Dealt in order, the nodes of a class would be runs.
    assert any((np.diff(part[LABELS[part] == LABELS[part[0]]]) > 1).any() for part in one)


@pytest.mark.parametrize(
    ("divide", "options"), [(practical, {"alpha": 0.1}), (pathological, {"classes": 2})]
)
def test_impossible_numbers_are_refused(divide, options):
    with pytest.raises(PartitionError, match="3000 nodes are too few for num_clients = 20"):
        divide(LABELS, 20, min_nodes=151, seed=0, **options)
    with pytest.raises(PartitionError, match="num_clients is 0"):
        divide(LABELS, 0, seed=0, **options)


def test_alpha_must_be_positive():
    with pytest.raises(PartitionError, match=r"alpha is 0\.0"):
        practical(LABELS, 2, alpha=0.0, seed=0)
