import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spectral_graphs import EMPTY, GRAPHS, dense_shifted, random_edges
from torch.autograd import gradcheck, gradgradcheck

from graphcl.errors import GraphCLError
from graphcl.spectral import EdgePattern, SymmetricOperator, laplacian

FLOAT = torch.float64


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("dtype", [torch.float32, FLOAT])
def test_laplacians_equal_the_formula(name: str, dtype: torch.dtype) -> None:
    edge_index, n = GRAPHS[name]
    dense = dense_shifted(edge_index, n).to(dtype)
    shifted = EdgePattern(edge_index, n).shifted_laplacian(dtype=dtype)
    whole = laplacian(edge_index, n, dtype=dtype)
    assert shifted.num_nodes == whole.num_nodes == n
    assert shifted.dtype == dtype
    torch.testing.assert_close(shifted.to_dense(), dense)
    torch.testing.assert_close(whole.to_dense(), dense + torch.eye(n, dtype=dtype))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 15), st.integers(0, 40), st.integers(0, 1000))
def test_eigenvalues_stay_in_range(n: int, e: int, seed: int) -> None:
    pattern = EdgePattern(random_edges(n, e, seed), n)
    dense = pattern.shifted_laplacian(dtype=FLOAT).to_dense()
    torch.testing.assert_close(dense, dense.T, rtol=0, atol=0)
    assert torch.linalg.eigvalsh(dense).abs().max() <= 1 + 1e-12


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 15), st.integers(0, 40), st.integers(0, 1000), st.floats(0, 1))
def test_mask_equals_rebuilding(n: int, e: int, seed: int, p: float) -> None:
    pattern = EdgePattern(random_edges(n, e, seed), n)
    keep = pattern.drop_edges(p, torch.Generator().manual_seed(seed))
    masked = pattern.shifted_laplacian(keep, dtype=FLOAT)
    kept = pattern.edge_index[:, keep]
    rebuilt = EdgePattern(kept, n)
    assert rebuilt.num_edges == keep.sum()
    assert torch.equal(masked.to_dense(), rebuilt.shifted_laplacian(dtype=FLOAT).to_dense())
    torch.testing.assert_close(masked.to_dense(), dense_shifted(kept, n))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 15), st.integers(0, 40), st.integers(0, 1000), st.data())
def test_subgraph_equals_rebuilding_from_its_edges(n: int, e: int, seed: int, data) -> None:
    edges = random_edges(n, e, seed)
    nodes = torch.tensor(sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1))))
    sub = EdgePattern(edges, n).subgraph(nodes)
    inside = torch.isin(edges, nodes).all(0)
    rebuilt = EdgePattern(torch.searchsorted(nodes, edges[:, inside]), len(nodes))
    assert torch.equal(sub.edge_index, rebuilt.edge_index)
    keep = sub.drop_edges(0.4, torch.Generator().manual_seed(seed))
    for mask in (None, keep):
        built = sub.shifted_laplacian(mask, dtype=FLOAT).to_dense()
        assert torch.equal(built, rebuilt.shifted_laplacian(mask, dtype=FLOAT).to_dense())


@pytest.mark.parametrize("nodes", [[], [1, 0], [1, 1], [-1, 0], [3, 20], [[0, 1]], [0.0, 1.0]])
def test_nodes_of_a_subgraph_that_do_not_fit_are_refused(nodes: list) -> None:
    with pytest.raises(GraphCLError, match=r"subgraph: nodes, torch\.\w+ of shape"):
        EdgePattern(*GRAPHS["random"]).subgraph(torch.tensor(nodes))


def test_pattern_survives_its_masks() -> None:
    pattern = EdgePattern(*GRAPHS["random"])
    before = pattern.shifted_laplacian().to_dense()
    pattern.shifted_laplacian(torch.zeros(pattern.num_edges, dtype=torch.bool))
    assert torch.equal(pattern.shifted_laplacian().to_dense(), before)


def test_edges_are_undirected_sorted_and_unique() -> None:
    pattern = EdgePattern(torch.tensor([[3, 0, 2, 1, 0, 3], [1, 2, 0, 3, 1, 3]]), 5)
    assert pattern.edge_index.tolist() == [[0, 0, 1], [1, 2, 3]]
    assert EdgePattern(torch.tensor([[0], [1]], dtype=torch.int32), 2).num_edges == 1


def test_dropping_has_the_asked_rate() -> None:
    pattern = EdgePattern(random_edges(300, 6000), 300)
    keep = pattern.drop_edges(0.3, torch.Generator().manual_seed(0))
    assert keep.dtype == torch.bool
    assert keep.float().mean().item() == pytest.approx(0.7, abs=0.03)
    assert torch.equal(keep, pattern.drop_edges(0.3, torch.Generator().manual_seed(0)))
    assert not torch.equal(keep, pattern.drop_edges(0.3, torch.Generator().manual_seed(1)))
    assert pattern.drop_edges(0).all()
    assert not pattern.drop_edges(1).any()
    assert EdgePattern(EMPTY, 3).drop_edges(0.5).shape == (0,)


def test_permuting_nodes_permutes_the_operator() -> None:
    edge_index, n = GRAPHS["random"]
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    moved = EdgePattern(order[edge_index], n).shifted_laplacian().to_dense()
    still = EdgePattern(edge_index, n).shifted_laplacian().to_dense()
    torch.testing.assert_close(moved[order][:, order], still)


@pytest.mark.parametrize("name", GRAPHS)
def test_product_and_gradients(name: str) -> None:
    edge_index, n = GRAPHS[name]
    operator = EdgePattern(edge_index, n).shifted_laplacian(dtype=FLOAT)
    x = torch.randn(n, 3, dtype=FLOAT, requires_grad=True)
    torch.testing.assert_close(operator @ x, dense_shifted(edge_index, n) @ x)
    assert gradcheck(lambda x: operator @ x, x)
    assert gradgradcheck(lambda x: (operator @ x).pow(3), x)


def test_gradient_equals_that_of_torch() -> None:
    operator = laplacian(*GRAPHS["random"])
    x = torch.randn(20, 5, requires_grad=True)
    weight = torch.randn(5, 20).T  # not contiguous
    (ours,) = torch.autograd.grad(((operator @ x) * weight).sum(), x)
    (theirs,) = torch.autograd.grad(((operator.matrix @ x) * weight).sum(), x)
    torch.testing.assert_close(ours, theirs)
    (ours,) = torch.autograd.grad((operator @ x).sum(), x)  # a gradient with stride 0
    torch.testing.assert_close(ours, operator @ torch.ones(20, 5))


def test_operator_moves_between_types() -> None:
    operator = laplacian(*GRAPHS["random"], dtype=FLOAT)
    single = operator.to(dtype=torch.float32)
    assert (single.dtype, operator.dtype) == (torch.float32, FLOAT)
    torch.testing.assert_close(single.to_dense().double(), operator.to_dense(), rtol=1e-6, atol=0)
    assert operator.to("cpu").dtype == FLOAT
    assert torch.equal(
        EdgePattern(*GRAPHS["random"]).to("cpu").edge_index,
        EdgePattern(*GRAPHS["random"]).edge_index,
    )


def test_construction_is_silent(recwarn: pytest.WarningsRecorder) -> None:
    laplacian(*GRAPHS["random"])
    assert not recwarn.list


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_product_under_autocast(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    operator = laplacian(*GRAPHS["random"]).to(device)
    x = torch.randn(20, 4, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        out = operator @ x
    torch.testing.assert_close(out, operator @ x)


@pytest.mark.parametrize(
    ("edge_index", "num_nodes", "match"),
    [
        (torch.tensor([[0], [3]]), 3, "from 0 to 2"),
        (torch.tensor([[-1], [1]]), 3, "from -1 to 1"),
        (torch.zeros(3, 2, dtype=torch.long), 3, r"shape \[2, num_edges\]"),
        (torch.zeros(2, 2), 3, "integers"),
        (torch.zeros(2, 2, dtype=torch.bool), 3, "integers"),
        (EMPTY, 0, "num_nodes is 0"),
    ],
)
def test_bad_edges(edge_index: torch.Tensor, num_nodes: int, match: str) -> None:
    with pytest.raises(GraphCLError, match=match):
        EdgePattern(edge_index, num_nodes)
    with pytest.raises(GraphCLError, match=match):
        laplacian(edge_index, num_nodes)


def test_bad_masks_factors_and_parts() -> None:
    pattern = EdgePattern(*GRAPHS["random"])
    with pytest.raises(GraphCLError, match="one bool"):
        pattern.shifted_laplacian(torch.ones(pattern.num_edges))
    with pytest.raises(GraphCLError, match="one bool"):
        pattern.shifted_laplacian(torch.ones(pattern.num_edges + 1, dtype=torch.bool))
    with pytest.raises(GraphCLError, match="probability"):
        pattern.drop_edges(1.5)
    with pytest.raises(GraphCLError, match="float32 or float64"):
        pattern.shifted_laplacian(dtype=torch.float16)
    operator = pattern.shifted_laplacian()
    with pytest.raises(GraphCLError, match="one row per node"):
        operator @ torch.randn(19, 2)
    with pytest.raises(GraphCLError, match="one row per node"):
        operator @ torch.randn(20)
    with pytest.raises(GraphCLError, match="float64"):
        operator @ torch.randn(20, 2, dtype=FLOAT)
    with pytest.raises(GraphCLError, match="no CSR matrix"):
        SymmetricOperator(torch.tensor([0, 2]), torch.tensor([0]), torch.ones(1))
