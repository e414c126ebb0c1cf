"""Diffusion against a slow dense reference in float64, forward and through two derivatives."""

import re
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from forecast_series import NAN, noise, series_of
from torch import Tensor

from graphcl.errors import GraphCLError
from graphcl.spatiotemporal import Diffusion
from graphcl.spatiotemporal.propagation import DENSE_BELOW

N = 9
# One way only, both ways, a self-loop; 6 is only read, 7 only reads, and 8 has no edge.
EDGES = torch.tensor([[0, 1, 2, 3, 3, 4, 5, 5, 6, 1, 0], [1, 0, 3, 2, 3, 0, 0, 7, 2, 7, 5]])
WEIGHT = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.25, 1.5, 1.0, 0.1, 4.0, 0.7, 1.0])

both = pytest.mark.parametrize("storage", ["dense", "sparse"])


def reference(edge_index: Tensor, weight: Tensor, x: Tensor, num_hops: int) -> list[Tensor]:
    """Return the hops of float64 ``x`` by full matrices, edge by edge."""
    reads = torch.zeros(x.size(1), x.size(1), dtype=torch.float64)
    for (source, target), w in zip(edge_index.T.tolist(), weight.tolist(), strict=True):
        reads[target, source] += w
    hops = []
    for matrix in (reads, reads.T):
        total = matrix.sum(1, keepdim=True)
        walk = torch.where(total > 0, matrix / total, 0.0)
        hops += [torch.linalg.matrix_power(walk, k) @ x for k in range(1, num_hops + 1)]
    return hops


@both
def test_hops_are_powers_of_the_weighted_means_along_and_against(storage) -> None:
    x = noise(4, N, 3)
    found = Diffusion(EDGES, WEIGHT, N, storage).hops(x, 3)
    expected = reference(EDGES, WEIGHT, x.double(), 3)
    assert len(found) == 6
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=1e-6)


def first_and_second(hops, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the derivative of a function of the hops, and that of its squared norm."""
    x = x.clone().requires_grad_()
    value = sum(((k + 1) * h.pow(3)).sum() for k, h in enumerate(hops(x)))
    (first,) = torch.autograd.grad(value, x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    return first.detach().double(), second.double()


@both
def test_first_and_second_derivatives_are_those_of_the_reference(storage) -> None:
    x = noise(2, N, 2)
    diffusion = Diffusion(EDGES, WEIGHT, N, storage)
    found = first_and_second(lambda x: diffusion.hops(x, 2), x)
    expected = first_and_second(lambda x: reference(EDGES, WEIGHT, x, 2), x.double())
    for one, other in zip(found, expected, strict=True):
        assert other.abs().max() > 1
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@both
def test_a_node_reads_its_sources_along_and_its_targets_against(storage) -> None:
    x = torch.zeros(1, N, 1)
    x[0, 5] = 1
    along, against = Diffusion(EDGES, WEIGHT, N, storage).hops(x, 1)
    # 5 -> 0 beside 1 -> 0 and 4 -> 0; 5 -> 7 beside 1 -> 7.
    expected = torch.zeros(N)
    expected[0], expected[7] = 1.0 / (2.0 + 1.5 + 1.0), 0.1 / (0.1 + 0.7)
    torch.testing.assert_close(along.flatten(), expected)
    expected = torch.zeros(N)
    expected[0] = 1.0 / (0.5 + 1.0)  # 0 -> 5 beside 0 -> 1
    torch.testing.assert_close(against.flatten(), expected)


@both
def test_a_node_without_such_an_edge_reads_0(storage) -> None:
    along, against = Diffusion(EDGES, WEIGHT, N, storage).hops(torch.ones(1, N, 1), 1)
    assert along.flatten().eq(0).nonzero().flatten().tolist() == [4, 6, 8]
    assert against.flatten().eq(0).nonzero().flatten().tolist() == [7, 8]


@both
def test_a_graph_without_edges_reads_0(storage) -> None:
    none = Diffusion(torch.empty(2, 0, dtype=torch.int64), torch.empty(0), N, storage)
    x = noise(2, N, 3).requires_grad_()
    hops = none.hops(x, 2)
    assert [h.shape for h in hops] == [x.shape] * 4
    torch.stack(hops).sum().backward()
    assert not torch.stack(hops).any()
    assert x.grad is not None
    assert not x.grad.any()


@both
def test_graphs_per_step_count_as_their_mean_over_steps(storage) -> None:
    series = series_of(torch.zeros(4, N, 1))
    kept = [torch.tensor(edges) for edges in ([0, 1, 2], [], [2, 3, 4, 5, 6, 7, 8, 9, 10], [0, 2])]
    edges = torch.cat([step.long() for step in kept])
    weight = WEIGHT[edges] * torch.arange(1.0, len(edges) + 1)
    moving = replace(
        series,
        edge_index=EDGES[:, edges],
        edge_weight=weight,
        edge_ptr=torch.tensor([0, 3, 3, 12, 14]),
    ).validate()
    x = noise(2, N, 2)
    # The reference adds up edges of one pair, and what is added up counts as its mean.
    expected = reference(EDGES[:, edges], weight, x.double(), 2)
    for one, other in zip(Diffusion.of(moving, storage).hops(x, 2), expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=1e-6)


def test_storage_goes_by_the_number_of_nodes() -> None:
    for num_nodes, storage in ((DENSE_BELOW - 1, "dense"), (DENSE_BELOW, "sparse")):
        assert Diffusion(EDGES, WEIGHT, num_nodes).storage == storage


@both
def test_a_copy_diffuses_alike(storage) -> None:
    diffusion, x = Diffusion(EDGES, WEIGHT, N, storage), noise(1, N, 2)
    for one, other in zip(deepcopy(diffusion).hops(x, 2), diffusion.hops(x, 2), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("edges", "weight", "message"),
    [
        ([[0, 1], [1, 9]], [1.0, 1.0], "edge_index[:, 1] is [1, 9] (1 such), must be 0 to 8"),
        ([[0, -1], [1, 2]], [1.0, 1.0], "edge_index[:, 1] is [-1, 2] (1 such)"),
        ([[0, 1], [1, 2]], [1.0, 0.0], "edge_weight[1] is 0.0 (1 such), must be positive"),
        ([[0, 1], [1, 2]], [NAN, -1.0], "edge_weight[0] is nan (2 such), must be positive"),
        ([[0, 1], [1, 2]], [1.0], "shape [2, 2] and edge_weight [1], must be [2, E] and [E]"),
        ([[0, 1], [1, 2]], [[1.0], [1.0]], "edge_weight [2, 1], must be [2, E] and [E]"),
        ([[0, 1], [1, 2], [2, 0]], [1.0, 1.0], "shape [3, 2] and edge_weight [2], must be"),
    ],
)
def test_an_impossible_graph_is_refused(edges, weight, message) -> None:
    with pytest.raises(GraphCLError, match=f"^Diffusion: .*{re.escape(message)}"):
        Diffusion(torch.tensor(edges), torch.tensor(weight), N)


@pytest.mark.parametrize("shape", [(2, N + 1, 1), (N, 1), (2, 3, N, 1)])
def test_other_nodes_than_those_of_the_graph_are_refused(shape) -> None:
    message = re.escape(f"has shape {list(shape)}, must be [B, N, D] with N = {N} nodes")
    with pytest.raises(GraphCLError, match=message):
        Diffusion(EDGES, WEIGHT, N).hops(torch.zeros(shape), 1)
