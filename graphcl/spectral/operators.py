"""A fixed symmetric sparse matrix that multiplies dense ones and passes gradients on cheaply."""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from graphcl.errors import GraphCLError
from graphcl.spectral.sparse import building_csr, product, scaled


class SymmetricOperator:
    """A constant symmetric matrix in CSR form; ``operator @ x`` is differentiable in ``x``.

    ``M^T = M``, so the gradient of the product is the same product. torch does not know this of a
    CSR tensor and would transpose it on the way back.

    Args:
        crow: Start of each row in ``col`` and ``value``, and their length at the end.
        col: Columns, ascending in each row.
        value: Entries, float32 or float64. They are constants: no gradient reaches them. Symmetry
            is the caller's promise; it isn't checked.

    Shapes:
        crow: ``[N + 1]``; col and value: ``[nnz]``. ``operator @ x`` maps ``[N, D]`` to ``[N, D]``.

    Raises:
        GraphCLError: The entries are neither float32 nor float64, the three tensors are no CSR
            matrix, or, in a product, ``x`` does not fit the matrix.

    Example:
        >>> swap = SymmetricOperator(
        ...     torch.tensor([0, 1, 2]), torch.tensor([1, 0]), torch.tensor([1.0, 1.0])
        ... )
        >>> swap @ torch.tensor([[1.0], [2.0]])
        tensor([[2.],
                [1.]])
    """

    def __init__(self, crow: Tensor, col: Tensor, value: Tensor):
        if value.dtype not in (torch.float32, torch.float64):
            raise GraphCLError(
                f"SymmetricOperator: entries of type {value.dtype}; pass float32 or float64"
            )
        size = (len(crow) - 1, len(crow) - 1)
        try:
            with building_csr():
                self.matrix = torch.sparse_csr_tensor(crow, col, value.detach(), size)
        except RuntimeError as error:
            raise GraphCLError(
                f"SymmetricOperator: crow, col and value are no CSR matrix of size {size}: "
                f"{str(error).splitlines()[0]}; pass ascending columns within each row"
            ) from error

    @cached_property
    def twice(self) -> Tensor:
        """Twice the matrix, as the recursion of Chebyshev polynomials takes it."""
        return scaled(self.matrix, 2)

    def __deepcopy__(self, memo: dict[int, Any]) -> "SymmetricOperator":
        return self  # a constant, and torch copies no CSR matrix

    @property
    def num_nodes(self) -> int:
        """Number of rows, and of columns."""
        return self.matrix.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """Type of the entries."""
        return self.matrix.dtype

    @property
    def device(self) -> torch.device:
        """Where the entries are."""
        return self.matrix.device

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "SymmetricOperator":
        """Return the operator on another device or in another precision."""
        crow, col = self.matrix.crow_indices(), self.matrix.col_indices()
        value = self.matrix.values().to(device=device, dtype=dtype)
        return SymmetricOperator(crow.to(value.device), col.to(value.device), value)

    def to_dense(self) -> Tensor:
        """Return the matrix as ``[N, N]``."""
        return self.matrix.to_dense()

    def check(self, x: Tensor, where: str) -> None:
        """Refuse an ``x`` that the matrix cannot multiply.

        Args:
            x: The dense factor.
            where: Who asks, for the message.

        Raises:
            GraphCLError: ``x`` has the wrong shape, type or device.
        """
        if x.dim() != 2 or len(x) != self.num_nodes:
            raise GraphCLError(
                f"{where}: x has shape {tuple(x.shape)} and the operator {self.num_nodes} nodes; "
                "pass a matrix with one row per node"
            )
        if x.dtype != self.dtype or x.device != self.device:
            raise GraphCLError(
                f"{where}: x is {x.dtype} on {x.device} and the operator {self.dtype} on "
                f"{self.device}; move one with .to"
            )

    def __matmul__(self, x: Tensor) -> Tensor:
        self.check(x, "SymmetricOperator")
        # Autocast would ask for a CSR product in half precision.
        with torch.autocast(x.device.type, enabled=False):
            return _Product.apply(self.matrix, x)


def check_product(matrix: SymmetricOperator | Tensor, x: Tensor, where: str) -> None:
    """Refuse an ``x`` that a symmetric matrix, sparse or dense, cannot multiply.

    Args:
        matrix: ``[N, N]``.
        x: The dense factor.
        where: Who asks, for the message.

    Raises:
        GraphCLError: ``x`` or a dense matrix has the wrong shape, type or device.
    """
    if isinstance(matrix, SymmetricOperator):
        matrix.check(x, where)
        return
    if x.dim() != 2 or matrix.shape != (len(x), len(x)):
        raise GraphCLError(
            f"{where}: x has shape {tuple(x.shape)} and the matrix {tuple(matrix.shape)}; "
            "pass [N, D] and [N, N]"
        )
    if x.dtype != matrix.dtype or x.device != matrix.device:
        raise GraphCLError(
            f"{where}: x is {x.dtype} on {x.device} and the matrix {matrix.dtype} on "
            f"{matrix.device}; move one with .to"
        )


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor, x: Tensor) -> Tensor:
        ctx.matrix = matrix
        return product(matrix, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        # Through the function again, so that the map may be differentiated any number of times.
        return None, _Product.apply(ctx.matrix, grads[0])
