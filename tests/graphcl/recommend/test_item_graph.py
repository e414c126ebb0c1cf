"""The graph of items against a loop over users, in double precision."""

from pathlib import Path

import pytest
import torch
from test_sequences import of_lists
from torch import Tensor

from graphcl.datasets import Interactions, load_interactions, simulate_interactions
from graphcl.errors import GraphCLError
from graphcl.recommend.item_graph import co_occurrence, normalized_adjacency, propagate

SPECIFIED = [[1, 2, 3], [2, 3, 1]]


def random_lists(seed: int, users: int = 12) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (users,), generator=generator).tolist()
    return [torch.randint(1, 13, (n,), generator=generator).tolist() for n in lengths]


def slow_adjacency(sequences: list[list[int]], window: int, size: int) -> Tensor:
    """The weights as the method's description has them, a pair at a time."""
    A = torch.zeros(size, size, dtype=torch.float64)
    for items in sequences:
        for at, i in enumerate(items):
            for k in range(1, window + 1):
                if at + k < len(items) and items[at + k] != i:
                    A[i, items[at + k]] += 1 / k
                    A[items[at + k], i] += 1 / k
    return A


def slow_normalized(adjacency: Tensor) -> Tensor:
    scale = adjacency.new_tensor([d**-0.5 if d else 0.0 for d in adjacency.sum(1).tolist()])
    return scale[:, None] * adjacency * scale


def graph_of(sequences: list[list[int]], window: int) -> tuple[Tensor, Tensor]:
    return co_occurrence(of_lists(sequences), window)


def test_weights_normalisation_and_propagation_are_those_worked_out_by_hand() -> None:
    edge_index, edge_weight = graph_of(SPECIFIED, 2)
    assert edge_index.tolist() == [[1, 1, 2], [2, 3, 3]]
    assert edge_weight.tolist() == [1.5, 1.5, 2]
    operator = normalized_adjacency(edge_index, edge_weight, 4)
    dense = operator.to_dense()
    torch.testing.assert_close(
        dense[[1, 1, 2], [2, 3, 3]], torch.tensor([0.462910, 0.462910, 0.571429])
    )
    x = torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1]])
    wanted = torch.tensor([[0, 0], [0.718667, 0.484953], [0.504381, 0.775510], [0.756082, 0.77551]])
    torch.testing.assert_close(propagate(operator, x, 2), wanted)


@pytest.mark.parametrize("window", [1, 3, 200])
@pytest.mark.parametrize("seed", [0, 1])
def test_graph_equals_the_loop_over_users_and_pairs(window: int, seed: int) -> None:
    sequences = random_lists(seed)
    edge_index, edge_weight = graph_of(sequences, window)
    wanted = slow_adjacency(sequences, window, 21)
    found = torch.zeros(21, 21, dtype=torch.float64)
    found[tuple(edge_index)] = edge_weight.double()
    torch.testing.assert_close(found, wanted.triu(), rtol=1e-6, atol=0)
    dense = normalized_adjacency(edge_index, edge_weight, 21).to_dense()
    assert dense.equal(dense.T)
    torch.testing.assert_close(dense.double(), slow_normalized(wanted), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("hops", [0, 1, 3])
def test_propagation_and_its_gradient_equal_powers_of_the_dense_matrix(hops: int) -> None:
    sequences = random_lists(2)
    operator = normalized_adjacency(*graph_of(sequences, 3), 21).to(dtype=torch.float64)
    M = operator.to_dense()
    powers = torch.stack([torch.linalg.matrix_power(M, hop) for hop in range(hops + 1)]).mean(0)
    x = torch.randn(21, 5, dtype=torch.float64).requires_grad_()
    weight = torch.randn(21, 5, dtype=torch.float64)
    found = propagate(operator, x, hops)
    torch.testing.assert_close(found, powers @ x)
    (grad,) = torch.autograd.grad((found * weight).sum(), x)
    torch.testing.assert_close(grad, powers.T @ weight)


def test_padding_has_no_edge_and_an_item_alone_keeps_its_own_direction() -> None:
    operator = normalized_adjacency(*graph_of(SPECIFIED, 2), 21)
    assert not operator.to_dense()[0].any()
    x = torch.randn(21, 3)
    x[0] = 0
    spread = propagate(operator, x, 2)
    assert not spread[0].any()
    torch.testing.assert_close(spread[4:], x[4:] / 3)


def test_no_edge_joins_items_of_different_users_or_an_item_with_itself() -> None:
    edge_index, edge_weight = graph_of([[1, 1, 1], [2], [3, 3]], 3)
    assert edge_index.shape == (2, 0)
    assert edge_weight.shape == (0,)
    operator = normalized_adjacency(edge_index, edge_weight, 21)
    assert not operator.to_dense().any()


def test_graphs_of_several_parties_put_behind_one_another_are_that_of_them_all() -> None:
    sequences = random_lists(3)
    parts = [graph_of(part, 3) for part in (sequences[:5], sequences[5:])]
    edges, weights = (torch.cat([part[i] for part in parts], dim=-1) for i in (0, 1))
    torch.testing.assert_close(
        normalized_adjacency(edges, weights, 21).to_dense(),
        normalized_adjacency(*graph_of(sequences, 3), 21).to_dense(),
    )


def test_order_of_users_and_direction_of_time_change_nothing() -> None:
    sequences = random_lists(4)
    edge_index, edge_weight = graph_of(sequences, 3)
    for other in (sequences[::-1], [items[::-1] for items in sequences]):
        found = graph_of(other, 3)
        assert found[0].equal(edge_index)
        torch.testing.assert_close(found[1], edge_weight)


def test_propagation_never_makes_a_vector_of_all_items_longer() -> None:
    interactions = simulate_interactions(200, 60).interactions
    operator = normalized_adjacency(*co_occurrence(interactions, 3), 61)
    eigenvalues = torch.linalg.eigvalsh(operator.to_dense().double())
    assert eigenvalues.abs().max() <= 1 + 1e-6


@pytest.mark.parametrize(("window", "directed_edges"), [(1, 223_298), (3, 530_266)])
def test_the_graph_of_amazon_beauty_has_the_edges_that_were_counted(
    data_root: Path, window: int, directed_edges: int
) -> None:
    source = data_root / "recsys" / "amazon_beauty.npz"
    if not source.exists():
        pytest.skip(f"{source.name} is not under GRAPHCL_DATA")
    train = load_interactions(source).leave_one_out().train
    edge_index, _ = co_occurrence(train, window)
    assert 2 * edge_index.shape[1] == directed_edges


def test_a_window_without_an_event_is_refused() -> None:
    with pytest.raises(GraphCLError, match="co_occurrence: window is 0; use 1"):
        graph_of(SPECIFIED, 0)


def test_a_window_longer_than_all_rows_is_none_too_long() -> None:
    one = Interactions("one", torch.tensor([0]), torch.tensor([1]), 1, 1)
    assert co_occurrence(one, 3)[0].shape == (2, 0)


@pytest.mark.parametrize(
    ("edge_index", "edge_weight", "message"),
    [
        ([[1, 4], [2, 1]], [1.0, 1.0], "edge 1 joins 4 and 1"),
        ([[1, -1], [2, 1]], [1.0, 1.0], "edge 1 joins -1 and 1"),
        ([[1, 2], [2, 2]], [1.0, 1.0], "edge 1 joins 2 and 2"),
        ([[1, 2], [2, 3]], [1.0, 0.0], r"edge 1 joins 2 and 3 with weight 0 \(1 such\)"),
        ([[1, 2], [2, 3]], [torch.nan, -1.0], r"with weight nan \(2 such\); .* 0 to 3 with a"),
        ([[1, 2], [2, 3]], [1.0], r"shape \[2, 2\] for 1 weights"),
        ([[1.0], [2.0]], [1.0], "edge_index is torch.float32"),
    ],
)
def test_edges_that_are_none_are_refused_by_their_place(
    edge_index: list[list[int]], edge_weight: list[float], message: str
) -> None:
    with pytest.raises(GraphCLError, match=f"normalized_adjacency: .*{message}"):
        normalized_adjacency(torch.tensor(edge_index), torch.tensor(edge_weight), 4)
