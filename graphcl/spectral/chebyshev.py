"""Polynomials of a symmetric operator in the Chebyshev basis.

    h(Lt) v = sum_k c_k T_k(Lt) v
    T_0 v = v,  T_1 v = Lt v,  T_k v = 2 Lt (T_{k-1} v) - T_{k-2} v

``T_k(Lt)`` is symmetric, so with ``g`` for the gradient of the result the recursion over ``g``
gives both gradients: of ``v`` it is ``sum_k c_k T_k(Lt) g``, of ``c_k`` the inner product of ``v``
and ``T_k(Lt) g``. Nothing but ``v`` is kept on the way forward.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from graphcl.errors import GraphCLError
from graphcl.spectral.operators import SymmetricOperator, check_product
from graphcl.spectral.sparse import column_blocks, multiplier


def chebyshev_nodes(order: int) -> Tensor:
    """Return ``x_j = cos((K - j + 1/2) pi / (K + 1))``: the zeros of ``T_{K+1}``, ascending.

    Shapes:
        Returns ``[K + 1]``, float64, inside (-1, 1); node ``x_j`` is the frequency ``x_j + 1``.

    Args:
        order: ``K``.

    Raises:
        GraphCLError: ``order`` is negative.
    """
    return torch.cos(_angles(order))


def interpolation_matrix(order: int) -> Tensor:
    """Return the matrix that maps the values at the nodes to coefficients.

    ``c_k = 2 / (K + 1) sum_j g_j T_k(x_j)``, with ``c_0`` already halved, so that
    ``h(x) = sum_k c_k T_k(x)`` passes through every ``g_j``.

    Shapes:
        Returns ``[K + 1, K + 1]``, float64.

    Args:
        order: ``K``.

    Raises:
        GraphCLError: ``order`` is negative.

    Source:
        He et al., Convolutional Neural Networks on Graphs with Chebyshev Approximation, Revisited,
        2022.
    """
    angles = _angles(order)
    degrees = torch.arange(order + 1, dtype=torch.float64)
    matrix = torch.cos(degrees[:, None] * angles) * (2 / (order + 1))
    matrix[0] /= 2
    return matrix


def filter_polynomial(
    operator: SymmetricOperator | Tensor,
    v: Tensor,
    coefficients: Tensor,
    nodes: Tensor | None = None,
) -> Tensor:
    """Return ``sum_k c_k T_k(Lt) v``, for one filter or for several that share the recursion.

    Filters with inputs of their own are separate calls: a product with wide matrices is no faster
    than two with narrow ones.

    Shapes:
        v: ``[N, D]``; coefficients: ``[K + 1]`` or ``[K + 1, G]``; nodes: ``[n]``. Returns
        ``[N, D]`` or ``[G, N, D]``, with n in place of N where there are ``nodes``.

    Args:
        operator: ``Lt``, eigenvalues in [-1, 1]; a dense one, ``[N, N]``, receives gradients.
        v: The signals to filter.
        coefficients: ``c``, a column per filter, ``c_0`` not to be halved again.
        nodes: The rows to return, instead of all; cheaper where they are few, above all on the way
            back. A node may come more than once.

    Raises:
        GraphCLError: A shape, type or device does not fit.

    Source:
        Defferrard et al., Convolutional Neural Networks on Graphs with Fast Localized Spectral
        Filtering, 2016, sec. 2.1.

    Example:
        >>> from graphcl.spectral import EdgePattern
        >>> pair = EdgePattern(torch.tensor([[0], [1]]), num_nodes=2).shifted_laplacian()
        >>> filter_polynomial(pair, torch.tensor([[1.0], [0.0]]), torch.tensor([0.5, -0.5]))
        tensor([[0.5000],
                [0.5000]])
    """
    check_product(operator, v, "filter_polynomial")
    if coefficients.dim() not in (1, 2) or 0 in coefficients.shape:
        raise GraphCLError(
            f"filter_polynomial: coefficients have shape {tuple(coefficients.shape)}; pass "
            "[order + 1], or [order + 1, filters]"
        )
    if coefficients.dtype != v.dtype or coefficients.device != v.device:
        raise GraphCLError(
            f"filter_polynomial: coefficients are {coefficients.dtype} on {coefficients.device} "
            f"and v is {v.dtype} on {v.device}; move one with .to"
        )
    columns = coefficients[:, None] if coefficients.dim() == 1 else coefficients
    if nodes is not None and (nodes.dim() != 1 or nodes.dtype != torch.long):
        raise GraphCLError(
            f"filter_polynomial: nodes are {nodes.dtype} of shape {tuple(nodes.shape)}; pass "
            "torch.long, [n]"
        )
    # Autocast would ask for a CSR product in half precision.
    with torch.autocast(v.device.type, enabled=False):
        if isinstance(operator, Tensor):
            out = _recorded(operator, v, columns, nodes)
        else:
            out = _Polynomial.apply(operator, v, columns, nodes)
    return out[0] if coefficients.dim() == 1 else out


class _Polynomial(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        operator: SymmetricOperator,
        v: Tensor,
        coefficients: Tensor,
        nodes: Tensor | None,
    ) -> Tensor:
        ctx.operator = operator
        ctx.save_for_backward(v, coefficients, nodes)
        shape = coefficients.size(1), len(v) if nodes is None else len(nodes), v.size(1)
        out, factors = v.new_zeros(shape), coefficients.tolist()
        for block in column_blocks(v):
            totals = out[..., block].unbind(0)
            terms = _terms(operator, v[:, block].contiguous(), len(factors))
            for row, term in zip(factors, terms, strict=True):
                rows = term if nodes is None else term.index_select(0, nodes)
                for total, factor in zip(totals, row, strict=True):
                    total.add_(rows, alpha=factor)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor | None, Tensor | None, None]:
        (grad,) = grads
        operator: SymmetricOperator = ctx.operator
        v, coefficients, nodes = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, *_gradients_on_record(operator, v, coefficients, grad, nodes), None
        _, v_needed, coefficients_needed, _ = ctx.needs_input_grad
        grad_v = torch.empty_like(v) if v_needed else None
        slopes = torch.zeros_like(coefficients) if coefficients_needed else None
        factors = coefficients.tolist()
        for block in column_blocks(v):
            columns = v[:, block].contiguous()
            flat, total = columns.view(-1), torch.zeros_like(columns)
            for g, part in enumerate(grad[..., block]):
                if nodes is None:
                    start = part.contiguous()
                else:
                    start = torch.zeros_like(columns).index_add_(0, nodes, part)
                found = []
                for row, term in zip(factors, _terms(operator, start, len(factors)), strict=True):
                    if grad_v is not None:
                        total.add_(term, alpha=row[g])
                    if slopes is not None:
                        found.append(flat.dot(term.view(-1)))
                if slopes is not None:
                    slopes[:, g] += torch.stack(found)
            if grad_v is not None and total.shape == v.shape:
                grad_v = total
            elif grad_v is not None:
                grad_v[:, block] = total
        return None, grad_v, slopes, None


def _gradients_on_record(
    operator: SymmetricOperator,
    v: Tensor,
    coefficients: Tensor,
    grad: Tensor,
    nodes: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients when a second derivative is on its way: every step on record."""
    # Views, lest what one of the two was computed from the other counts here and once more outside.
    v, coefficients = v.view_as(v), coefficients.view_as(coefficients)
    wanted = [t for t in (v, coefficients) if t.requires_grad]
    out = _recorded(operator, v, coefficients, nodes)
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
    return (
        next(found) if v.requires_grad else None,
        next(found) if coefficients.requires_grad else None,
    )


def _terms(operator: SymmetricOperator, v: Tensor, count: int) -> Iterator[Tensor]:
    """Yield ``T_0 v .. T_{count-1} v``."""
    yield v
    if count < 2:
        return
    before, term = v, multiplier(operator.matrix, v)(v)
    yield term
    twice = multiplier(operator.twice, v)
    for _ in range(count - 2):
        step = twice(term)
        before, term = term, step.sub_(before)
        yield term


def _recorded(
    operator: SymmetricOperator | Tensor, v: Tensor, coefficients: Tensor, nodes: Tensor | None
) -> Tensor:
    terms = [v]
    for k in range(1, len(coefficients)):
        step = operator @ terms[-1]
        terms.append(step if k == 1 else 2 * step - terms[-2])
    if nodes is not None:
        terms = [term[nodes] for term in terms]
    return torch.einsum("kg,knd->gnd", coefficients, torch.stack(terms))


def _angles(order: int) -> Tensor:
    if order < 0:
        raise GraphCLError(f"chebyshev_nodes: order is {order}; pass 0 or more")
    steps = order - torch.arange(order + 1, dtype=torch.float64) + 0.5
    return steps * (math.pi / (order + 1))
