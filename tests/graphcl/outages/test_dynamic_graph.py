"""The graph that a storm draws, against MTGNN's dense formula."""

import pytest
import torch

from graphcl.outages import DynamicGraphLearner, LearnedMean


def everyone(num_locations):
    """All other locations of each, as candidates."""
    return torch.tensor([[j for j in range(num_locations) if j != i] for i in range(num_locations)])


def adjacency(mean):
    """What a learned mean weighs others with, before its rows are normalised, dense."""
    size = len(mean.neighbors)
    weight = mean.others / mean.own
    return torch.zeros(size, size, dtype=weight.dtype).scatter(1, mean.neighbors, weight)


def learner(in_channels, channels, num_neighbors):
    torch.manual_seed(0)
    return DynamicGraphLearner(in_channels, channels, num_neighbors)


def normal(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("num_neighbors", [1, 3, 11])
def test_with_all_candidates_it_is_the_dense_formula(num_neighbors):
    graph = learner(5, 3, num_neighbors).double()
    v = normal(12, 5, dtype=torch.float64) / 3
    one = torch.tanh(3 * v @ graph.source.weight.T)
    two = torch.tanh(3 * v @ graph.target.weight.T)
    full = torch.relu(torch.tanh(3 * (one @ two.T - two @ one.T)))
    top = full.topk(num_neighbors, dim=1)
    wanted = torch.zeros_like(full).scatter(1, top.indices, top.values)
    mean = graph(v, everyone(12))
    torch.testing.assert_close(adjacency(mean), wanted)
    rows = wanted + torch.eye(12, dtype=torch.float64)
    x = normal(12, 4, dtype=torch.float64)
    torch.testing.assert_close(mean @ x, rows @ x / rows.sum(1, keepdim=True))


@pytest.mark.parametrize("channels", [3, 5, 8, 16])
def test_of_two_locations_at_most_one_listens_even_if_they_are_alike(channels):
    v = normal(30, 6).repeat(2, 1)
    found = adjacency(learner(6, channels, 59)(v, everyone(60)))
    assert (found > 0).any()
    assert (found * found.T == 0).all()


def test_nobody_listens_to_itself_or_to_more_than_it_may():
    candidates = everyone(20)[:, :9]
    mean = learner(6, 4, 3)(normal(20, 6), candidates)
    assert mean.neighbors.shape == (20, 3)
    assert (mean.neighbors != torch.arange(20)[:, None]).all()
    listed = (mean.neighbors[:, :, None] == candidates[:, None]).any(2)
    assert listed.all()


def test_ties_go_to_the_first_candidates():
    mean = learner(6, 4, 2)(torch.zeros(90, 6), everyone(90))
    assert torch.equal(mean.neighbors, everyone(90)[:, :2])


def test_the_same_weather_draws_the_same_graph():
    graph, v = learner(6, 4, 3), normal(20, 6)
    first, again = graph(v, everyone(20)), graph(v.clone(), everyone(20))
    assert torch.equal(first.neighbors, again.neighbors)
    assert torch.equal(first.others, again.others)


def test_the_gradient_reaches_both_maps_and_the_inputs():
    graph = learner(6, 4, 5)
    v = (normal(20, 6) / 5).requires_grad_()
    (graph(v, everyone(20)) @ normal(20, 3)).square().sum().backward()
    for grad in (graph.source.weight.grad, graph.target.weight.grad, v.grad):
        assert grad.abs().max() > 0
        assert grad.isfinite().all()


def test_a_learned_mean_has_rows_that_sum_to_one_and_is_differentiable():
    neighbors = torch.tensor([[1, 2], [2, 0], [0, 1], [0, 2]])
    x = normal(4, 3, dtype=torch.float64).requires_grad_()
    weight = torch.rand(4, 2, dtype=torch.float64).requires_grad_()
    ones = torch.ones(4, 1, dtype=torch.float64)
    torch.testing.assert_close(LearnedMean(neighbors, weight) @ ones, ones)
    assert torch.autograd.gradcheck(lambda w, x: LearnedMean(neighbors, w) @ x, (weight, x))


def test_without_candidates_every_location_keeps_what_it_has():
    mean = learner(6, 4, 3)(normal(7, 6), torch.empty(7, 0, dtype=torch.long))
    x = normal(7, 2)
    assert torch.equal(mean @ x, x)
