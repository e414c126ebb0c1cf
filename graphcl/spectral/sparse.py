"""How this package builds torch's sparse CSR matrices."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def building_csr(*, check: bool = True) -> Iterator[None]:
    """Build CSR matrices without torch's notice that they are in beta.

    Args:
        check: Whether torch checks the invariants; False where the pattern was checked before.
    """
    with warnings.catch_warnings(), torch.sparse.check_sparse_tensor_invariants(check):
        warnings.filterwarnings("ignore", message="Sparse CSR", category=UserWarning)
        yield
