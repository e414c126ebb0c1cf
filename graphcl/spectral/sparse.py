"""How this package builds torch's sparse CSR matrices, and multiplies with them."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

CACHED = 2**17  # numbers in a block of columns, half a megabyte
LEAST_COLUMNS = 64


@contextmanager
def building_csr(*, check: bool = True) -> Iterator[None]:
    """Build CSR matrices without torch's notice that they are in beta.

    Args:
        check: Whether torch checks the invariants; False where the pattern was checked before.
    """
    with warnings.catch_warnings(), torch.sparse.check_sparse_tensor_invariants(check):
        warnings.filterwarnings("ignore", message="Sparse CSR", category=UserWarning)
        yield


def row_entries(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the entries of some rows of a CSR matrix are, at the cost of these alone.

    Shapes:
        start, end: ``[n]``, bounds of each row. Returns the number of the row, 0 to n - 1, and
        the position of each entry, row after row.
    """
    length = end - start
    row = torch.arange(len(start), device=start.device).repeat_interleave(length)
    shift = start - (length.cumsum(0) - length)  # from places in the result to those in the matrix
    return row, torch.arange(len(row), device=start.device) + shift[row]


def product(matrix: Tensor, x: Tensor) -> Tensor:
    """Return ``matrix @ x``; no gradient passes.

    In single precision on a CPU it is torch's weighted sum of the rows in a bag, which keeps a row
    in registers until it is added up, for few columns at a time: two to three times as fast as
    torch's product of a CSR matrix (``tests/benchmarks/bench_products.py``).

    Shapes:
        matrix: CSR or dense, ``[N, M]``; x: ``[M, D]``. Returns ``[N, D]``.
    """
    if not _in_bags(matrix, x):
        return matrix @ x
    multiply, blocks = multiplier(matrix, x), column_blocks(x)
    if len(blocks) == 1:
        return multiply(x.contiguous())
    out = x.new_empty(matrix.size(0), x.size(1))
    for block in blocks:
        out[:, block] = multiply(x[:, block].contiguous())
    return out


def multiplier(matrix: Tensor, x: Tensor) -> Callable[[Tensor], Tensor]:
    """Return what multiplies ``matrix [N, M]`` with contiguous columns of the kind of ``x``."""
    if not _in_bags(matrix, x):
        return matrix.matmul
    columns, ends, values = matrix.col_indices(), matrix.crow_indices(), matrix.values()
    # The arguments: by frequency, mode "sum", sparse gradient, weights, the last end is there.
    return lambda block: torch.embedding_bag(block, columns, ends, False, 0, False, values, True)[0]


def _in_bags(matrix: Tensor, x: Tensor) -> bool:
    single = x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() > 0
    return single and matrix.layout == torch.sparse_csr


def column_blocks(x: Tensor) -> list[slice]:
    """Return the columns of ``x [N, D]``, as many at a time as :func:`block_width` says."""
    many = x.size(1)
    step = block_width(len(x), many, x.device)
    return [slice(start, start + step) for start in range(0, many, step)]


def block_width(rows: int, columns: int, device: torch.device) -> int:
    """Return how many columns of a matrix to multiply at a time, perhaps more than it has.

    On another device than a CPU, all. Columns do not mix: a product of so few stays in a core's own
    cache.
    """
    if device.type != "cpu":
        return max(1, columns)
    return max(LEAST_COLUMNS, CACHED // max(1, rows))


def scaled(matrix: Tensor, factor: float) -> Tensor:
    """Return a CSR matrix times a number; its pattern is shared."""
    with building_csr(check=False):
        return torch.sparse_csr_tensor(
            matrix.crow_indices(), matrix.col_indices(), matrix.values() * factor, matrix.shape
        )
