"""Node features that are mostly zero, such as words: stored and multiplied as such.

A linear map of 1,433 word columns of which 18 are set costs as much as one of 18 columns.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from graphcl.spectral.sparse import building_csr, product, row_entries

# Above this share of non-zeros a dense product is as fast (measured on two CPU cores).
MAX_DENSITY = 0.1


class SparseRows:
    """A constant sparse matrix ``[N, F]`` by rows, which knows its transpose.

    Args:
        matrix: CSR, ``[N, F]``.
    """

    def __init__(self, matrix: Tensor):
        self.matrix = matrix
        self.shape = matrix.shape
        rows = torch.repeat_interleave(
            torch.arange(matrix.size(0)), matrix.crow_indices().diff(), output_size=matrix._nnz()
        )
        columns = matrix.col_indices()
        self._order = columns.argsort(stable=True)  # of the values, by column
        self._columns = columns
        counts = torch.bincount(columns, minlength=matrix.size(1))
        self._ends = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        self._rows = rows[self._order]

    @classmethod
    def from_dense(cls, x: Tensor) -> "SparseRows":
        """Store a dense matrix."""
        # torch's own conversion takes more than twice the memory of the matrix.
        rows, columns = x.nonzero(as_tuple=True)
        crow = torch.searchsorted(rows, torch.arange(len(x) + 1))
        return cls(_csr(crow, columns, x[rows, columns], x.shape))

    def __deepcopy__(self, memo: dict[int, Any]) -> "SparseRows":
        return self  # a constant, and torch copies no CSR matrix

    def __len__(self) -> int:
        return int(self.shape[0])

    def size(self, dim: int) -> int:
        """Return the size of a dimension, as a tensor does."""
        return int(self.shape[dim])

    def __getitem__(self, nodes: Tensor) -> "SparseRows":
        """Return some rows, ``[n, F]``, in the order of ``nodes [n]``."""
        ends = self.matrix.crow_indices()
        row, entry = row_entries(ends[nodes], ends[nodes + 1])
        crow = torch.searchsorted(row, torch.arange(len(nodes) + 1))
        values = self.matrix.values()[entry]
        return SparseRows(_csr(crow, self._columns[entry], values, (len(nodes), self.size(1))))

    def scaled(self, factor: Callable[[Tensor, Tensor], Tensor]) -> "SparseRows":
        """Return the same pattern with values ``factor(values, columns)``."""
        other = object.__new__(SparseRows)
        other.__dict__.update(self.__dict__)
        other.__dict__.pop("transposed", None)
        values = factor(self.matrix.values(), self._columns)
        other.matrix = _csr(self.matrix.crow_indices(), self._columns, values, self.shape)
        return other

    @cached_property
    def transposed(self) -> Tensor:
        """The transpose as CSR, ``[F, N]``."""
        values = self.matrix.values()[self._order]
        return _csr(self._ends, self._rows, values, (self.shape[1], self.shape[0]))


Features = Tensor | SparseRows
RowNorm = Literal["l1", "l2"]


def sparse_if_worth(x: Tensor) -> Features:
    """Store features sparsely where they are so already, or where a linear map gets faster."""
    if x.layout != torch.strided:
        return SparseRows(x)
    if x.numel() and int(x.count_nonzero()) <= MAX_DENSITY * x.numel():
        return SparseRows.from_dense(x)
    return x


def unit_rows(x: Features, norm: RowNorm = "l1") -> Features:
    """Divide every row by its sum of magnitudes, or by its length; a zero row stays zero."""
    order = {"l1": 1, "l2": 2}[norm]
    if norm == "l2":
        x = unit_rows(x)  # squares of tiny numbers would vanish
    if isinstance(x, Tensor):
        sizes = torch.linalg.vector_norm(x, order, dim=1, keepdim=True)
        return x / torch.where(sizes > 0, sizes, 1)
    ends = x.matrix.crow_indices()
    powers = x.matrix.values().abs() ** order
    sizes = torch.segment_reduce(powers, "sum", offsets=ends, initial=0) ** (1 / order)
    divisors = torch.where(sizes > 0, sizes, 1).repeat_interleave(ends.diff())
    return x.scaled(lambda values, _: values / divisors)


def rows(x: Features, index: Tensor) -> Tensor:
    """Return the features of some nodes as a dense matrix, ``[len(index), F]``."""
    return dense(x[index])


def dense(x: Features) -> Tensor:
    """Return features as a dense matrix, ``[N, F]``."""
    return x if isinstance(x, Tensor) else x.matrix.to_dense()


def linear(x: Features, weight: Tensor) -> Tensor:
    """Return ``x weight^T``, differentiable in the weight (and in ``x`` where it is dense).

    Shapes:
        - **x**: ``[N, F]``, **weight**: ``[D, F]``, **output**: ``[N, D]``
    """
    if isinstance(x, Tensor):
        return F.linear(x, weight)
    out: Tensor = _SparseLinear.apply(weight, x)
    return out


def drop(x: Features, p: float, training: bool) -> Features:
    """Drop single features, as :func:`torch.nn.functional.dropout` does."""
    if isinstance(x, Tensor):
        return F.dropout(x, p, training)
    return x.scaled(lambda values, _: F.dropout(values, p)) if training else x


def drop_columns(x: Features, p: float) -> Features:
    """Drop whole feature columns, the same for all nodes; the others keep their values."""
    kept = (torch.rand(x.size(1)) >= p).float()
    if isinstance(x, Tensor):
        return x * kept
    return x.scaled(lambda values, columns: values * kept[columns])


class _SparseLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, x: SparseRows) -> Tensor:
        ctx.x = x
        return product(x.matrix, weight.t())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return product(ctx.x.transposed, grads[0]).t().contiguous(), None


def _csr(ends: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    with building_csr(check=False):
        return torch.sparse_csr_tensor(ends, columns, values, tuple(shape))
