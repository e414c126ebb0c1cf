"""Sparse features are the dense ones, only faster."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from graphcl.nodes.features import (
    SparseRows,
    drop,
    drop_columns,
    linear,
    sparse_if_worth,
    unit_rows,
)


@pytest.fixture
def x() -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(30, 40, generator=rng, dtype=torch.float64)
    x[torch.rand(30, 40, generator=rng) < 0.95] = 0
    x[3] = 0
    x[:, 7] = 0
    return x


def test_linear_map_and_its_gradient_are_the_dense_ones(x) -> None:
    weight = torch.randn(5, 40, dtype=torch.float64, requires_grad=True)
    sparse = SparseRows.from_dense(x)
    torch.testing.assert_close(linear(sparse, weight), F.linear(x, weight))
    assert torch.autograd.gradcheck(lambda w: linear(sparse, w), weight)
    torch.testing.assert_close(sparse.transposed.to_dense(), x.T)


def test_dropping_features_keeps_the_mean_and_the_pattern(x) -> None:
    sparse = SparseRows.from_dense(x)
    torch.manual_seed(0)
    total = sum(drop(sparse, 0.4, True).matrix.to_dense() for _ in range(3000)) / 3000
    torch.testing.assert_close(total, x, atol=0.08, rtol=0)
    assert drop(sparse, 0.4, False) is sparse
    dropped = drop(sparse, 0.4, True)
    torch.testing.assert_close(dropped.transposed.to_dense(), dropped.matrix.to_dense().T)


@pytest.mark.parametrize("stored", [lambda x: x, SparseRows.from_dense], ids=["dense", "sparse"])
def test_dropping_columns_drops_them_for_all_nodes(x, stored) -> None:
    torch.manual_seed(0)
    dropped = drop_columns(stored(x), 0.5)
    dense = dropped if isinstance(dropped, torch.Tensor) else dropped.matrix.to_dense()
    gone = ((dense == 0) & (x != 0)).any(0)
    assert gone.any()
    assert (dense[:, gone] == 0).all()
    torch.testing.assert_close(dense[:, ~gone], x[:, ~gone])


def test_only_mostly_zero_features_are_stored_sparsely(x) -> None:
    assert isinstance(sparse_if_worth(x), SparseRows)
    assert isinstance(sparse_if_worth(torch.ones(3, 3)), torch.Tensor)
    assert isinstance(sparse_if_worth(torch.empty(3, 0)), torch.Tensor)


def test_rows_are_those_asked_for_in_their_order(x) -> None:
    sparse, nodes = SparseRows.from_dense(x), torch.tensor([7, 3, 3, 29, 0])
    rows = sparse[nodes]
    assert torch.equal(rows.matrix.to_dense(), x[nodes])
    assert torch.equal(rows.transposed.to_dense(), x[nodes].T)
    assert sparse[nodes[:0]].matrix.shape == (0, 40)


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("stored", [lambda x: x, SparseRows.from_dense], ids=["dense", "sparse"])
def test_rows_are_scaled_to_unit_size_and_zero_rows_stay(x, stored, norm) -> None:
    x = torch.where(torch.arange(40) % 3 == 0, -1e-20 * x, 1e-20 * x)  # no floor under tiny rows
    scaled = unit_rows(stored(x), norm)
    dense = scaled if isinstance(scaled, torch.Tensor) else scaled.matrix.to_dense()
    for row, original in zip(dense, x, strict=True):
        size = original.double().abs() ** int(norm[1])
        total = (size.sum() ** (1 / int(norm[1]))).float()
        torch.testing.assert_close(row, original / total if total else original)
    assert (dense[3] == 0).all()
