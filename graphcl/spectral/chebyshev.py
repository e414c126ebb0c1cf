"""Polynomials of a symmetric operator in the Chebyshev basis.

    h(Lt) v = sum_k c_k T_k(Lt) v
    T_0 v = v,  T_1 v = Lt v,  T_k v = 2 Lt (T_{k-1} v) - T_{k-2} v

``h(Lt)`` is symmetric, so its gradient with respect to ``v`` is a polynomial of the same form:
Clenshaw's recurrence sums any number of filters in one pass. The gradient of ``c_k`` is an inner
product with ``T_k v``, and repeating the recursion for it is cheaper than keeping all terms. Where
some nodes alone are asked for, their rows of the terms are kept and nothing is repeated.
"""

import math
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from graphcl.errors import GraphCLError
from graphcl.spectral.operators import SymmetricOperator, check_product

# Columns do not mix: so many at a time keep the recursion's buffers narrow, where nodes are many.
_WIDTH = 64


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
        Filtering, 2016, sec. 2.1; Clenshaw, A note on the summation of Chebyshev series, 1955.

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
        elif nodes is None:
            out = _Polynomial.apply(operator, v, columns)
        else:
            out = _PolynomialAt.apply(operator, v, columns, nodes)
    return out[0] if coefficients.dim() == 1 else out


class _Polynomial(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, operator: SymmetricOperator, v: Tensor, coefficients: Tensor) -> Tensor:
        ctx.operator = operator
        ctx.save_for_backward(v, coefficients)
        scale = coefficients[:, :, None, None]
        out = scale[0] * v
        for part, columns in zip(out.split(_WIDTH, -1), v.split(_WIDTH, -1), strict=True):
            terms = _terms(operator.matrix, columns, len(scale))
            for factor, term in zip(scale[1:], terms, strict=True):
                part.addcmul_(factor, term)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        (grad,) = grads
        operator: SymmetricOperator = ctx.operator
        v, coefficients = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, *_gradients_on_record(operator, v, coefficients, grad)
        _, v_needed, coefficients_needed = ctx.needs_input_grad
        grad_v = grad_coefficients = None
        if v_needed:
            grad_v = _clenshaw(operator.matrix, grad, coefficients)
        if coefficients_needed:
            grad_coefficients = torch.zeros_like(coefficients)
            for part, columns in zip(grad.split(_WIDTH, -1), v.split(_WIDTH, -1), strict=True):
                flat = part.flatten(1)
                terms = chain([columns], _terms(operator.matrix, columns, len(coefficients)))
                for row, term in zip(grad_coefficients, terms, strict=True):
                    row += flat @ term.flatten()
        return None, grad_v, grad_coefficients


class _PolynomialAt(torch.autograd.Function):
    """Some rows of a polynomial: the others' gradient is zero, and their terms are not kept."""

    @staticmethod
    def forward(
        ctx: Any, operator: SymmetricOperator, v: Tensor, coefficients: Tensor, nodes: Tensor
    ) -> Tensor:
        kept = v.new_empty(len(coefficients), len(nodes), v.size(1))
        terms = chain([v], _terms(operator.matrix, v, len(coefficients)))
        for rows, term in zip(kept, terms, strict=True):
            torch.index_select(term, 0, nodes, out=rows)
        ctx.operator = operator
        ctx.save_for_backward(v, coefficients, nodes, kept)
        return (coefficients.t() @ kept.flatten(1)).unflatten(1, kept.shape[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor | None, Tensor | None, None]:
        (grad,) = grads
        v, coefficients, nodes, kept = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, *_gradients_on_record(ctx.operator, v, coefficients, grad, nodes), None
        _, v_needed, coefficients_needed, _ = ctx.needs_input_grad
        grad_v = grad_coefficients = None
        if v_needed:
            grad_v = _clenshaw_at(ctx.operator.matrix, grad, coefficients, nodes)
        if coefficients_needed:
            grad_coefficients = kept.flatten(1) @ grad.flatten(1).t()
        return None, grad_v, grad_coefficients, None


def _gradients_on_record(
    operator: SymmetricOperator,
    v: Tensor,
    coefficients: Tensor,
    grad: Tensor,
    nodes: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients when a second derivative is on its way: every step on record."""
    wanted = [t for t in (v, coefficients) if t.requires_grad]
    out = _recorded(operator, v, coefficients, nodes)
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
    return (
        next(found) if v.requires_grad else None,
        next(found) if coefficients.requires_grad else None,
    )


def _terms(matrix: Tensor, v: Tensor, count: int) -> Iterator[Tensor]:
    """Yield ``T_1 v .. T_{count-1} v`` in two buffers: each is overwritten two steps later."""
    if count < 2:
        return
    before = v.clone(memory_format=torch.contiguous_format)
    term = matrix @ before
    yield term
    for _ in range(count - 2):
        before, term = term, before.addmm_(matrix, term, beta=-1, alpha=2)
        yield term


def _clenshaw(matrix: Tensor, grad: Tensor, coefficients: Tensor) -> Tensor:
    """Return ``sum_g sum_k c_kg T_k(Lt) grad_g`` with one recursion for all filters.

    ``b_k = sum_g c_kg grad_g + 2 Lt b_{k+1} - b_{k+2}``; the sum is the step for ``k = 0`` with
    ``Lt b_1`` taken once.
    """
    after = torch.zeros_like(grad[0], memory_format=torch.contiguous_format)
    current = torch.zeros_like(after)
    last = len(coefficients) - 1
    for k in range(last, -1, -1):
        if k < last:
            after.addmm_(matrix, current, beta=-1, alpha=2 if k else 1)
        for factor, part in zip(coefficients[k], grad, strict=True):
            after.addcmul_(factor, part)
        after, current = current, after
    return current


def _clenshaw_at(matrix: Tensor, grad: Tensor, coefficients: Tensor, nodes: Tensor) -> Tensor:
    """Return :func:`_clenshaw` of a gradient that is zero but at some nodes, ``[G, n, D]``."""
    after = grad.new_zeros(matrix.size(0), grad.size(2))
    current = torch.zeros_like(after)
    factors = coefficients.tolist()
    last = len(factors) - 1
    for k in range(last, -1, -1):
        if k < last:
            after.addmm_(matrix, current, beta=-1, alpha=2 if k else 1)
        for factor, part in zip(factors[k], grad, strict=True):
            after.index_add_(0, nodes, part, alpha=factor)
        after, current = current, after
    return current


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
