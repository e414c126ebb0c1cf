"""Generated graphs have the size, degree, homophily and signal that were asked for."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.utils import degree, homophily

from graphcl.datasets import contextual_sbm, digits_graph, mixed_sbm, validate
from graphcl.errors import DataError


def test_digits_are_joined_to_their_neighbours():
    data = validate(digits_graph())
    assert data.x.shape == (1797, 64)
    assert (data.x.min(), data.x.max()) == (0.0, 1.0)
    assert data.y.unique().tolist() == list(range(10))
    assert data.is_undirected()
    assert data.is_coalesced()
    assert not data.has_self_loops()
    assert degree(data.edge_index[0], 1797).min() >= 8
    assert data.num_edges < 2 * 8 * 1797  # mutual picks are one edge
    assert homophily(data.edge_index, data.y) > 0.95


def test_of_equally_near_digits_the_first_are_picked():
    """In whole numbers, by hand: no rounding, and no choice that threads could change."""
    pixels = (digits_graph().x * 16).long()
    joined = torch.zeros(1797, 1797, dtype=torch.bool)
    tied = 0
    for node in range(1797):
        distance = (pixels - pixels[node]).square().sum(1).tolist()
        others = [(far, other) for other, far in enumerate(distance) if other != node]
        near = sorted(others)[:4]
        joined[node, [other for _, other in near[:3]]] = True
        tied += near[2][0] == near[3][0]
    assert tied > 10
    edges = digits_graph(num_neighbors=3).edge_index
    assert torch.equal(edges, (joined | joined.T).nonzero().T)


def test_one_neighbour_is_the_nearest_digit():
    data = digits_graph(num_neighbors=1)
    distance = torch.cdist(data.x, data.x).fill_diagonal_(math.inf)
    source, target = data.edge_index
    picked = (
        distance[source, target]
        <= torch.maximum(distance.min(dim=1).values[source], distance.min(dim=1).values[target])
        + 1e-5
    )
    assert picked.all()
    assert degree(source, 1797).min() >= 1


@pytest.mark.parametrize("num_neighbors", [0, -1, 1797])
def test_digits_refuse_impossible_neighbours(num_neighbors):
    with pytest.raises(DataError, match="must be 1 to 1796"):
        digits_graph(num_neighbors)


@pytest.mark.parametrize("asked_homophily", [0.0, 0.1, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("asked_degree", [2.0, 15.0])
def test_sbm_meets_degree_and_homophily(asked_homophily, asked_degree):
    data = contextual_sbm(10_000, 5, 4, avg_degree=asked_degree, homophily=asked_homophily, seed=3)
    edges = 10_000 * asked_degree / 2
    # Five standard deviations of a binomial with that expectation.
    assert abs(data.num_edges / 2 - edges) < 5 * math.sqrt(edges)
    measured = homophily(data.edge_index, data.y)
    deviation = math.sqrt(asked_homophily * (1 - asked_homophily) / edges)
    assert abs(measured - asked_homophily) <= 5 * deviation + 1e-6


def test_sbm_joins_all_pairs_alike():
    """In a full draw over many seeds no pair is favoured: the ranks map to pairs one to one."""
    counts = torch.zeros(7, 7)
    for seed in range(400):
        data = contextual_sbm(7, 1, 1, avg_degree=3.0, homophily=1.0, seed=seed)
        counts[data.edge_index[0], data.edge_index[1]] += 1
    pairs = counts[torch.triu_indices(7, 7, 1).unbind()]
    assert counts.diagonal().sum() == 0
    # Each of 21 pairs is joined with probability 1/2: 200 times, standard deviation 10.
    assert pairs.min() > 150
    assert pairs.max() < 250


def test_sbm_draws_the_complete_graph_when_asked():
    data = contextual_sbm(9, 3, 1, avg_degree=8.0, homophily=0.25, seed=0)
    assert data.num_edges == 9 * 8


@settings(max_examples=40, deadline=None)
@given(
    num_nodes=st.integers(1, 60),
    num_classes=st.integers(1, 6),
    avg_degree=st.floats(0, 4),
    seed=st.integers(0, 2**32),
)
def test_sbm_is_a_legal_graph_with_balanced_classes(num_nodes, num_classes, avg_degree, seed):
    try:
        data = contextual_sbm(
            num_nodes, num_classes, 3, avg_degree=avg_degree, homophily=0.7, seed=seed
        )
    except DataError:
        return  # too few pairs or nodes for what was asked
    validate(data)
    sizes = torch.bincount(data.y, minlength=num_classes)
    assert sizes.max() - sizes.min() <= 1
    assert data.is_undirected()
    assert data.is_coalesced()
    assert not data.has_self_loops()


@pytest.mark.parametrize("signal", [0.0, 4.0])
def test_sbm_features_are_class_means_plus_unit_noise(signal):
    data = contextual_sbm(20_000, 2, 8, signal=signal, seed=1)
    for label in range(2):
        x = data.x[data.y == label]
        # The mean of 10,000 unit Gaussians in 8 dimensions is about sqrt(8 / 10,000) long.
        assert x.mean(dim=0).norm().item() == pytest.approx(signal, abs=0.1)
        assert x.std(dim=0).tolist() == pytest.approx([1.0] * 8, abs=0.05)


def test_sbm_repeats_by_seed_and_shuffles_its_nodes():
    one, again, other = (contextual_sbm(300, 3, 4, seed=seed) for seed in (1, 1, 2))
    for key in ("x", "edge_index", "y"):
        assert torch.equal(one[key], again[key])
        assert not torch.equal(one[key], other[key])
    assert not torch.equal(one.y, one.y.sort().values)


def test_sbm_grows_with_edges_not_with_pairs():
    data = contextual_sbm(300_000, 10, 2, avg_degree=4.0)  # all pairs would not fit in memory
    assert data.num_edges / 300_000 == pytest.approx(4.0, abs=0.05)


IMPOSSIBLE = {
    "no classes": ((10, 0, 2), {}, "num_classes is 0"),
    "more classes than nodes": ((3, 4, 2), {}, "must be 1 to num_nodes = 3"),
    "no features": ((10, 2, 0), {}, "num_features is 0"),
    "negative degree": ((10, 2, 2), {"avg_degree": -1.0}, "avg_degree -1.0"),
    "endless degree": ((10, 2, 2), {"avg_degree": math.inf}, "must be finite"),
    "homophily": ((10, 2, 2), {"homophily": 1.5}, "homophily at most 1"),
    "nan signal": ((10, 2, 2), {"signal": math.nan}, "signal nan"),
    "too dense": ((10, 2, 2), {"avg_degree": 9.0, "homophily": 0.9}, "within classes"),
    "one class": ((30, 1, 2), {"avg_degree": 2.0, "homophily": 0.5}, "across classes.*only 0"),
}


@pytest.mark.parametrize(("sizes", "options", "message"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_sbm_refuses_the_impossible(sizes, options, message):
    with pytest.raises(DataError, match=message):
        contextual_sbm(*sizes, **options)


def test_mixed_sbm_is_homophilic_in_one_half_and_heterophilic_in_the_other() -> None:
    data = mixed_sbm(2000, 8, homophily=0.9, bridges=0.2, signal=1.5, seed=3)
    source, target = data.edge_index
    inside = data.homophilic[source] & data.homophilic[target]
    outside = ~data.homophilic[source] & ~data.homophilic[target]
    same = (data.y[source] == data.y[target]).float()
    assert same[inside].mean() == pytest.approx(0.9, abs=0.02)
    assert same[outside].mean() == pytest.approx(0.1, abs=0.02)
    bridges = data.homophilic[source] != data.homophilic[target]
    assert bridges.sum() / 2000 == pytest.approx(0.2, abs=0.05)
    assert len(source) / 2000 == pytest.approx(10.2, abs=0.4)
    # The features of a class have one mean in both halves, 2 * 1.5 apart from the other class.
    means = [
        data.x[(data.y == c) & half].mean(0)
        for half in (data.homophilic, ~data.homophilic)
        for c in (0, 1)
    ]
    assert float((means[1] - means[0]).norm()) == pytest.approx(3.0, abs=0.2)
    assert float((means[0] - means[2]).norm()) < 0.5
    assert torch.equal(mixed_sbm(2000, 8, signal=1.5, seed=3).x, data.x)
    with pytest.raises(DataError, match="8 nodes or more"):
        mixed_sbm(4)
