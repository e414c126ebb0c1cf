"""Client graphs and the report: what a client holds, and no edge unaccounted for."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data
from torch_geometric.utils import to_undirected

from federation.partition import (
    Silos,
    dirichlet,
    natural,
    natural_report,
    partition_report,
    subgraph,
)
from graphcl.datasets import contextual_sbm, split_nodes, validate
from graphcl.errors import PartitionError


@pytest.fixture
def square():
    """Four nodes in a ring, 0-1-2-3-0, with a self-loop at 3; two classes."""
    return Data(
        x=torch.arange(4.0).reshape(4, 1),
        edge_index=to_undirected(torch.tensor([[0, 1, 2, 3, 3], [1, 2, 3, 0, 3]])),
        y=torch.tensor([0, 0, 1, 1]),
        train_mask=torch.tensor([True, False, False, True]),
        val_mask=torch.tensor([[True, False]] * 4),
    )


def test_subgraph_relabels_nodes_and_carries_every_field(square):
    part = subgraph(square, np.array([3, 0, 2]))
    assert part.num_nodes == 3
    assert part.x.flatten().tolist() == [3, 0, 2]
    assert part.y.tolist() == [1, 0, 1]
    assert part.edge_index.tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 0, 0]]
    assert part.train_mask.tolist() == [True, True, False]
    assert part.val_mask.shape == (3, 2)
    assert square.num_nodes == 4


@pytest.mark.parametrize(
    ("nodes", "message"),
    [([0, 4], "0 to 3"), ([-1, 2], "go from -1"), ([1, 1, 2], "1 nodes twice")],
)
def test_subgraph_refuses_wrong_nodes(square, nodes, message):
    with pytest.raises(PartitionError, match=message):
        subgraph(square, np.array(nodes))


def test_report_of_a_cut_ring(square):
    report = partition_report(square, [np.array([0, 1, 2]), np.array([3])])
    first, second = report.clients
    assert (first.nodes, first.edges, first.class_counts) == (3, 2, (2, 1))
    assert first.edge_homophily == 0.5
    entropy = -(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(1 / 3)
    assert first.label_entropy == pytest.approx(entropy)
    assert (second.nodes, second.edges, second.class_counts) == (1, 1, (0, 1))
    assert second.label_entropy == 0
    assert (report.edges, report.cut_edges, report.cut_share) == (5, 2, 0.4)


def test_report_without_classes_has_the_same_edges(square):
    parts = [np.array([0, 1, 2]), np.array([3])]
    plain = Data(edge_index=square.edge_index, num_nodes=4)
    for report, labelled in (
        (partition_report(plain, parts), partition_report(square, parts)),
        (natural_report([plain, plain]), natural_report([square, square])),
    ):
        assert (report.edges, report.cut_edges) == (labelled.edges, labelled.cut_edges)
        for client, other in zip(report.clients, labelled.clients, strict=True):
            assert (client.nodes, client.edges) == (other.nodes, other.edges)
            assert (client.class_counts, client.label_entropy) == ((), 0)
            assert client.edge_homophily is None


def test_report_without_edges():
    data = Data(edge_index=torch.empty(2, 0, dtype=torch.int64), y=torch.tensor([0, 1]))
    report = partition_report(data, [np.array([0]), np.array([1])])
    assert report.clients[0].edge_homophily is None
    assert (report.edges, report.cut_edges, report.cut_share) == (0, 0, 0.0)


@settings(max_examples=30, deadline=None)
@given(
    num_nodes=st.integers(12, 60),
    num_clients=st.integers(1, 4),
    homophily=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_nothing_is_lost_or_counted_twice(num_nodes, num_clients, homophily, seed):
    data = contextual_sbm(num_nodes, 3, 4, avg_degree=2.0, homophily=homophily, seed=seed)
    data.train_mask, data.val_mask, data.test_mask = split_nodes(data.y, 0.5, 0.2, seed=seed)
    parts = dirichlet(data.y, num_clients, alpha=1.0, seed=seed)
    report = partition_report(data, parts)
    graphs = [subgraph(data, part) for part in parts]
    for graph, cut in zip(graphs, Silos(data, parts), strict=True):
        assert set(graph.keys()) == set(cut.keys())
        assert all(torch.equal(graph[key], cut[key]) for key in graph.keys())  # noqa: SIM118

    assert report.edges == data.num_edges // 2
    assert sum(client.edges for client in report.clients) + report.cut_edges == report.edges
    assert [client.edges for client in report.clients] == [g.num_edges // 2 for g in graphs]
    assert sum(client.nodes for client in report.clients) == num_nodes
    totals = np.sum([client.class_counts for client in report.clients], axis=0)
    assert totals.tolist() == torch.bincount(data.y).tolist()
    for graph, part, client in zip(graphs, parts, report.clients, strict=True):
        validate(graph, every_class=False)
        assert graph.is_undirected()
        assert graph.is_coalesced()
        for key in ("x", "y", "train_mask", "val_mask", "test_mask"):
            assert torch.equal(graph[key], data[key][part])
        if client.edges:
            source, target = graph.edge_index
            alike = (graph.y[source] == graph.y[target]).double().mean().item()
            assert client.edge_homophily == pytest.approx(alike)

    # The same clients, given as graphs of their own, differ in the cut edges only.
    apart = natural_report(graphs)
    assert apart.cut_edges == 0
    assert [(c.nodes, c.edges, c.label_entropy) for c in apart.clients] == [
        (c.nodes, c.edges, c.label_entropy) for c in report.clients
    ]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([[0, 1], [3]], "node 2 belongs to 0 clients"),
        ([[0, 1], [1, 2, 3]], "node 1 belongs to 2 clients"),
    ],
)
def test_report_refuses_what_is_no_partition(square, parts, message):
    with pytest.raises(PartitionError, match=message):
        partition_report(square, [np.array(part) for part in parts])


def test_natural_graphs_are_one_per_client(square):
    graphs = [square, square]
    assert natural(graphs, 2) == graphs
    with pytest.raises(PartitionError, match=r"num_clients is 3.*set num_clients to 2"):
        natural(graphs, 3)
