"""Products with sparse matrices are those with dense ones."""

import pytest
import torch

from graphcl.spectral import EdgePattern, filter_polynomial, sparse
from graphcl.spectral.sparse import building_csr, product

WIDTH = 16


@pytest.fixture(autouse=True)
def narrow_blocks(monkeypatch) -> None:
    """Blocks of sixteen columns, as those of large matrices are."""
    monkeypatch.setattr(sparse, "CACHED", 1)
    monkeypatch.setattr(sparse, "LEAST_COLUMNS", WIDTH)


def sparse_matrix(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A matrix of which most is zero, and its second row altogether."""
    rng = torch.Generator().manual_seed(rows)
    dense = torch.randn(rows, columns, generator=rng, dtype=dtype)
    dense[torch.rand(rows, columns, generator=rng) < 0.8] = 0
    dense[1] = 0
    return dense


@pytest.mark.parametrize("columns", [1, 3, WIDTH - 1, WIDTH, WIDTH + 1, 3 * WIDTH + 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_product_is_the_dense_one_at_any_width(columns, dtype) -> None:
    dense = sparse_matrix(40, 30, dtype)
    x = torch.randn(30, columns, dtype=dtype)
    with building_csr():
        found = product(dense.to_sparse_csr(), x)
    torch.testing.assert_close(found, dense @ x)
    assert found.is_contiguous()
    assert not found[1].any()


@pytest.mark.parametrize(
    "view", [lambda x: x.t(), lambda x: x[:, 7:90], lambda x: x[::2].expand(2, -1, -1)[1]]
)
def test_views_are_read_as_they_are(view) -> None:
    x = view(torch.randn(120, 120))
    dense = sparse_matrix(25, len(x))
    with building_csr():
        torch.testing.assert_close(product(dense.to_sparse_csr(), x), dense @ x)


@pytest.mark.parametrize("columns", [0, 5, 2 * WIDTH])
def test_a_matrix_without_entries_and_one_without_columns(columns) -> None:
    empty = EdgePattern(torch.empty(2, 0, dtype=torch.long), 4).shifted_laplacian().matrix
    found = product(empty, torch.ones(4, columns))
    assert found.shape == (4, columns)
    assert not found.any()


def test_numbers_that_are_not_finite_stay_where_they_belong() -> None:
    pair = EdgePattern(torch.tensor([[0, 2], [1, 3]]), 5).shifted_laplacian().matrix
    x = torch.ones(5, 3)
    x[0, 1] = torch.nan
    found = product(pair, x)
    assert found[1].isnan().tolist() == [False, True, False]
    assert found[[0, 2, 3, 4]].isfinite().all()


def test_threads_change_no_bit() -> None:
    dense = sparse_matrix(500, 400)
    x = torch.randn(400, 150)
    before = torch.get_num_threads()
    found = []
    with building_csr():
        matrix = dense.to_sparse_csr()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(product(matrix, x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("nodes", [None, torch.tensor([3, 0, 3, 7])])
@pytest.mark.parametrize("filters", [1, 2])
def test_a_filter_is_the_dense_one_over_several_blocks(nodes, filters) -> None:
    edges = torch.randint(12, (2, 30), generator=torch.Generator().manual_seed(0))
    operator = EdgePattern(edges, 12).shifted_laplacian()
    v = torch.randn(12, 2 * WIDTH + 3, requires_grad=True)
    c = torch.randn(4, filters, requires_grad=True)
    found = filter_polynomial(operator, v, c, nodes)
    expected = filter_polynomial(operator.to_dense(), v, c, nodes)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(found)
    for grad, wanted in zip(
        torch.autograd.grad(found, (v, c), upstream),
        torch.autograd.grad(expected, (v, c), upstream),
        strict=True,
    ):
        torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-4)


def test_a_product_of_another_kind_is_torch_own() -> None:
    dense = sparse_matrix(6, 5, torch.float64)
    torch.testing.assert_close(product(dense, torch.ones(5).double()), dense.sum(1))
    with pytest.raises(RuntimeError):
        product(dense, torch.ones(4, 0).double())
