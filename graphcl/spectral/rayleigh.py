"""The Rayleigh quotient: where in the spectrum the energy of node signals sits."""

import torch
from torch import Tensor

from graphcl.spectral.operators import SymmetricOperator, check_product


def rayleigh_quotient(x: Tensor, laplacian: SymmetricOperator | Tensor) -> Tensor:
    """Return ``tr(X^T L X) / tr(X^T X)``, in [0, 2] up to rounding for a normalised Laplacian.

    Differentiable in ``x``, and in a dense Laplacian. For ``x = 0`` it is 0, with gradient 0.

    Shapes:
        x: ``[N, D]``; laplacian: ``[N, N]``. Returns a scalar.

    Args:
        x: Node signals, in the Laplacian's type.
        laplacian: ``L``, from :func:`~graphcl.spectral.laplacian` or dense. Of the shifted
            ``L - I`` the quotient is less by 1.

    Raises:
        GraphCLError: The shapes, types or devices do not fit.

    Example:
        >>> path = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
        >>> rayleigh_quotient(torch.tensor([[1.0], [-1.0]]), path)
        tensor(2.)
    """
    check_product(laplacian, x, "rayleigh_quotient")
    total = x.square().sum()
    return (x * (laplacian @ x)).sum() / torch.where(total > 0, total, 1)
