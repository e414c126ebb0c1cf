"""Communities: no node is dropped, communities stay whole, sizes come out even."""

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.partition import louvain
from graphcl.datasets import contextual_sbm
from graphcl.errors import PartitionError


def edges_of(graph):
    return np.array(graph.edges, dtype=np.int64).reshape(-1, 2).T


CLIQUES = edges_of(nx.disjoint_union_all(nx.complete_graph(size) for size in (3, 6, 10, 4, 5)))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), num_nodes=st.integers(1, 25), seed=st.integers(0, 2**32))
def test_parts_cover_once_and_none_is_empty(data, num_nodes, seed):
    node = st.integers(0, num_nodes - 1)
    pairs = data.draw(st.lists(st.tuples(node, node), max_size=40))
    num_clients = data.draw(st.integers(1, num_nodes))
    edge_index = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).t()
    parts = louvain(edge_index, num_nodes, num_clients, seed=seed)
    assert len(parts) == num_clients
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(num_nodes))
    for part in parts:
        assert len(part) > 0
        assert np.array_equal(part, np.sort(part))


def test_surplus_communities_go_to_the_smallest_client():
    parts = louvain(CLIQUES, 28, 2, seed=0)
    # Largest first: 10 | 6, then 10 | 11, then 14 | 11, then 14 | 14.
    assert [len(part) for part in parts] == [14, 14]
    assert parts[0].tolist() == [*range(9, 19), *range(19, 23)]


def test_largest_community_is_halved_when_there_are_too_few():
    parts = louvain(CLIQUES, 28, 7, seed=0)
    # 10 becomes 5 and 5, then 6 becomes 3 and 3.
    assert sorted(len(part) for part in parts) == [3, 3, 3, 4, 5, 5, 5]


def test_halves_of_a_path_stay_connected():
    path = nx.path_graph(np.random.default_rng(0).permutation(8).tolist())
    edges = edges_of(path)
    parts = louvain(edges, 8, 6, seed=0)
    assert all(nx.is_connected(path.subgraph(part.tolist())) for part in parts)


def test_isolated_nodes_are_spread():
    parts = louvain(np.empty((2, 0), dtype=np.int64), 10, 4, seed=0)
    assert sorted(len(part) for part in parts) == [2, 2, 3, 3]


def test_direction_and_order_of_stored_edges_do_not_matter_to_clear_communities():
    both = np.concatenate([CLIQUES, CLIQUES[::-1]], axis=1)
    one, other = louvain(CLIQUES, 28, 3, seed=0), louvain(both[:, ::-1], 28, 3, seed=0)
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_seed_decides():
    data = contextual_sbm(200, 4, 1, avg_degree=6.0, homophily=0.5)
    one, again, other = (louvain(data.edge_index, 200, 5, seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("num_clients", [0, 29])
def test_impossible_numbers_of_clients(num_clients):
    with pytest.raises(PartitionError, match="num_clients"):
        louvain(CLIQUES, 28, num_clients, seed=0)
