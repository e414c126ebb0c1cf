"""Two learnable filters that stay monotone at the nodes: one low-pass, one high-pass."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from graphcl.errors import GraphCLError
from graphcl.spectral.chebyshev import chebyshev_nodes, filter_polynomial, interpolation_matrix
from graphcl.spectral.operators import SymmetricOperator

FilterMode = Literal["simplex", "compat"]

# Share of the whole fall below which no increment starts: one of zero would never learn.
_LEAST_STEP = 1e-3


class MonotoneFilters(nn.Module):
    """A low-pass and a high-pass polynomial filter with monotone values at the Chebyshev nodes.

    With increments ``u_1 .. u_K >= 0`` of its own, each filter interpolates

        high: g_0 = 0, g_j = g_{j-1} + u_j          low: g_0 = 2, g_j = g_{j-1} - u_j

    They start in a band: low ``2 (1 - lam / cutoff)^sharpness`` up to the cutoff and nothing above,
    high its mirror image (scaled to end at 0 and 2 exactly). The straight start, sharpness 1 and
    cutoff 2, sums to 2 at every frequency: mixed equally the two are the identity. At cutoff 1
    either filter leaves the middle of the spectrum out, where signals vary at random along edges.
    Between the nodes a polynomial may leave [0, 2] a little.

    Args:
        order: ``K``, the degree of the polynomials.
        mode: ``"simplex"``, ``u = 2 softmax(theta)`` from 0: low always ends at 0 and high at 2.
            ``"compat"``, ``u = relu(theta)`` from ``2 / K``, as in PolyGCL: a large step can turn
            every increment off for good, and low into the constant 2.
        sharpness: Exponent of the start; larger values keep a narrower band. ``"simplex"`` only.
        cutoff: Frequency from which the low-pass starts with nothing, in (0, 2]. ``"simplex"``
            only.

    Attributes:
        theta: ``[order, 2]``; here and everywhere column 0 is low and column 1 high.

    Shapes:
        - **v**, **v_high**: ``[N, D]``, in the operator's type; **nodes**: ``[n]``
        - **output**: low ``[N, D]``, high ``[N, D]``; ``[n, D]`` with ``nodes``

    Raises:
        GraphCLError: ``order`` is below 1 or the mode unknown; or an input does not fit.

    Source:
        Chen et al., PolyGCL: Graph Contrastive Learning via Learnable Spectral Polynomial Filters,
        2024; the simplex is ours.

    Example:
        >>> from graphcl.spectral import EdgePattern
        >>> pair = EdgePattern(torch.tensor([[0], [1]]), num_nodes=2).shifted_laplacian()
        >>> low, high = MonotoneFilters(order=4)(pair, torch.tensor([[1.0], [0.0]]))
        >>> torch.allclose((low + high) / 2, torch.tensor([[1.0], [0.0]]), atol=1e-6)
        True
    """

    def __init__(
        self,
        order: int = 10,
        mode: FilterMode = "simplex",
        sharpness: float = 1.0,
        cutoff: float = 2.0,
    ):
        super().__init__()
        if order < 1:
            raise GraphCLError(f"MonotoneFilters: order is {order}; pass 1 or more")
        if mode not in get_args(FilterMode):
            raise GraphCLError(
                f"MonotoneFilters: unknown mode {mode!r}; use one of "
                f"{', '.join(get_args(FilterMode))}"
            )
        if not (sharpness > 0 and (mode == "simplex" or sharpness == 1)):
            raise GraphCLError(
                f"MonotoneFilters: sharpness is {sharpness}; pass more than 0, and 1 with 'compat'"
            )
        if not (0 < cutoff <= 2 and (mode == "simplex" or cutoff == 2)):
            raise GraphCLError(
                f"MonotoneFilters: cutoff is {cutoff}; pass a frequency in (0, 2], and 2 with "
                "'compat'"
            )
        self.order = order
        self.mode = mode
        self.sharpness = sharpness
        self.cutoff = cutoff
        self.theta = nn.Parameter(torch.empty(order, 2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Return to the filters of the start."""
        if self.mode == "compat":
            nn.init.constant_(self.theta, 2 / self.order)
            return
        lam = chebyshev_nodes(self.order) + 1
        falls = -((1 - lam / self.cutoff).clamp(min=0) ** self.sharpness).diff()
        if not falls.sum() > 0:
            raise GraphCLError(
                f"MonotoneFilters: below cutoff {self.cutoff} lies no node of order {self.order}, "
                f"the lowest is {float(lam[0]):.3g}; raise one of them"
            )
        falls = (falls / falls.sum()).clamp(min=_LEAST_STEP)
        with torch.no_grad():  # the high-pass rises in the mirror image of the low-pass's fall
            self.theta.copy_(torch.stack([falls, falls.flip(0)], 1).log())

    def values(self) -> Tensor:
        """Return the filters' values at the nodes, ``[order + 1, 2]``."""
        u = 2 * self.theta.softmax(0) if self.mode == "simplex" else self.theta.relu()
        rise = F.pad(u.cumsum(0), (0, 0, 1, 0))
        return torch.stack([2 - rise[:, 0], rise[:, 1]], 1)

    def coefficients(self) -> Tensor:
        """Return the Chebyshev coefficients of the filters, ``[order + 1, 2]``."""
        values = self.values()
        return interpolation_matrix(self.order).to(values) @ values

    def response(self, lam: Tensor) -> Tensor:
        """Return the filters' responses at frequencies, eigenvalues of ``L``, for plots.

        Shapes:
            lam: ``[M]``. Returns ``[M, 2]``.

        Args:
            lam: Frequencies in [0, 2].

        Raises:
            GraphCLError: ``lam`` is no vector or leaves [0, 2].
        """
        # A comparison with NaN is false, so this form of the test refuses NaN too.
        if lam.dim() != 1 or not bool(((lam >= 0) & (lam <= 2)).all()):
            raise GraphCLError(
                f"MonotoneFilters.response: lam of shape {tuple(lam.shape)} is no vector within "
                "[0, 2]; pass frequencies, eigenvalues of L"
            )
        degrees = torch.arange(self.order + 1, dtype=torch.float64)
        basis = torch.cos(degrees * torch.acos(lam.detach().cpu().double() - 1)[:, None])
        coefficients = self.coefficients()
        return basis.to(coefficients) @ coefficients

    def frequencies(self) -> Tensor:
        """Return the frequencies of the nodes, where the responses equal :meth:`values`."""
        return chebyshev_nodes(self.order).to(self.theta) + 1

    def forward(
        self,
        operator: SymmetricOperator | Tensor,
        v: Tensor,
        v_high: Tensor | None = None,
        nodes: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Filter ``v`` twice in one recursion, or ``v`` low and ``v_high`` high.

        Args:
            operator: ``Lt``, from :meth:`~graphcl.spectral.EdgePattern.shifted_laplacian`; or
                dense, and then it receives gradients.
            v: Signals for both filters, or for the low-pass alone.
            v_high: Signals for the high-pass, if it has its own.
            nodes: The rows to return, see :func:`filter_polynomial`; all of them if ``None``.
        """
        coefficients = self.coefficients().to(v.dtype)
        if v_high is None:
            low, high = filter_polynomial(operator, v, coefficients, nodes).unbind(0)
            return low, high
        return (
            filter_polynomial(operator, v, coefficients[:, 0], nodes),
            filter_polynomial(operator, v_high, coefficients[:, 1], nodes),
        )

    def extra_repr(self) -> str:
        return (
            f"order={self.order}, mode={self.mode!r}, sharpness={self.sharpness}, "
            f"cutoff={self.cutoff}"
        )
