"""How this package builds torch's sparse CSR matrices."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


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
