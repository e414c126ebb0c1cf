"""An adversary that looks for the worst small change of a graph's edges and features.

It ascends any objective of ``(Lt, X)`` by projected gradient steps; it knows no model. The
algebra is dense, so it is for graphs of some hundred nodes, such as sampled induced subgraphs.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from graphcl.errors import GraphCLError
from graphcl.spectral.rayleigh import rayleigh_quotient

Objective = Callable[[Tensor, Tensor], Tensor]


class Attack(NamedTuple):
    """What :func:`find_attack` found."""

    adjacency: Tensor  # [n, n], 0 or 1, symmetric, no loops: the graph with the drawn flips
    x: Tensor  # [n, F], the features with their change
    strength: Tensor  # [n, n], zero on and below the diagonal: probability of each flip
    history: list[float]  # what was ascended, before every step


def relaxed_laplacian(adjacency: Tensor) -> Tensor:
    """Return ``Lt = -D^-1/2 A D^-1/2`` of a dense weighted graph, differentiable everywhere.

    Degrees below 1 count as 1. That changes nothing where weights are 0 or 1, and the eigenvalues
    stay in [-1, 1]; but in between an edge of weight ``w`` at an isolated node grows with ``w``
    from 0, where the plain formula jumps or has an infinite slope, so an attack can find it.

    Shapes:
        adjacency: ``[n, n]``, symmetric, no negative entry. Returns ``[n, n]``.

    Source:
        ours.

    Example:
        >>> relaxed_laplacian(torch.tensor([[0.0, 0.5], [0.5, 0.0]]))
        tensor([[-0.0000, -0.5000],
                [-0.5000, -0.0000]])
    """
    scale = adjacency.sum(1).clamp(min=1).rsqrt()
    return -scale[:, None] * adjacency * scale


def flip_edges(adjacency: Tensor, strength: Tensor) -> Tensor:
    """Return ``A + (S + S^T) * (1 - 2 A)``: 1 adds an absent and deletes a present edge.

    Shapes:
        adjacency: ``[n, n]``, symmetric, 0 or 1, no loops. strength: ``[n, n]`` in [0, 1]; only
        what lies above the diagonal is read. Returns ``[n, n]``, symmetric, no loops.

    Source:
        Xu et al., Topology Attack and Defense for Graph Neural Networks, IJCAI 2019.

    Example:
        >>> flip_edges(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.ones(2, 2))
        tensor([[0., 0.],
                [0., 0.]])
    """
    upper = strength.triu(1)
    return adjacency + (upper + upper.t()) * (1 - 2 * adjacency)


def project_budget(strength: Tensor, budget: float) -> Tensor:
    """Return the nearest point with entries in [0, 1] whose sum is at most ``budget``.

    It is ``clip(S - m, 0, 1)`` with the smallest ``m >= 0`` that keeps the budget, by bisection.

    Args:
        strength: Of any shape.
        budget: Not negative.

    Source:
        Xu et al., Topology Attack and Defense for Graph Neural Networks, IJCAI 2019.

    Example:
        >>> project_budget(torch.tensor([0.9, 0.5, -1.0]), 1.0)
        tensor([0.7000, 0.3000, 0.0000])
    """
    clipped = strength.clamp(0, 1)
    if clipped.sum() <= budget:
        return clipped
    low, high = 0.0, float(strength.max())
    for _ in range(40):
        middle = (low + high) / 2
        if (strength - middle).clamp(0, 1).sum() > budget:
            low = middle
        else:
            high = middle
    return (strength - high).clamp(0, 1)


def find_attack(
    objective: Objective,
    adjacency: Tensor,
    x: Tensor,
    *,
    edge_budget: float = 0.1,
    feature_bound: float | Tensor = 0.0,
    steps: int = 3,
    rayleigh_weight: float = 1.0,
    step_size: float = 1.0,
    generator: torch.Generator | None = None,
) -> Attack:
    """Ascend ``objective(Lt, X') + rayleigh_weight * R(X', L')`` over edge flips and features.

    ``R``, the Rayleigh quotient, draws the search to changes whose energy sits at high
    frequencies; it shapes what is found and nothing else. Edges are flipped by strengths in
    [0, 1] while searching, and drawn with these probabilities at the end. Only the perturbation
    receives gradients: whatever the objective computes with is left alone.

    Shapes:
        adjacency: ``[n, n]``; x: ``[n, F]``, floating point of the same type.

    Args:
        objective: Maps ``Lt [n, n]`` and ``X' [n, F]`` to a scalar, differentiable in both.
        adjacency: Symmetric, 0 or 1, no loops.
        x: Node features.
        edge_budget: The expected number of flips, at most, as a share of the edges.
        feature_bound: The largest change of a feature; one for all, or ``[F]`` or ``[n, F]``.
        steps: Number of gradient steps.
        rayleigh_weight: 0 ascends the objective alone.
        step_size: 1 is the step of the source; smaller ones climb more slowly and surely.
        generator: Source of randomness of the final draw.

    Raises:
        GraphCLError: The shapes do not fit or a setting is impossible.

    Source:
        Feng et al., Adversarial Graph Contrastive Learning with Information Regularization
        (ARIEL), WWW 2022, for variables, steps and budgets; the Rayleigh term is that of Li et
        al., ASPECT, 2026, in a form completed by us.

    Example:
        >>> path = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
        >>> still = torch.zeros(())
        >>> attack = find_attack(lambda Lt, x: still, path, torch.ones(3, 1), feature_bound=0.2)
        >>> attack.strength.sum() <= 0.1 * 2
        tensor(True)
    """
    _check(adjacency, x, edge_budget, feature_bound, steps, step_size)
    budget = edge_budget * float(adjacency.sum()) / 2
    bound = torch.as_tensor(feature_bound, dtype=x.dtype, device=x.device)
    adjacency, x = adjacency.detach(), x.detach()
    strength, delta = torch.zeros_like(adjacency), torch.zeros_like(x)
    history = []
    for step in range(steps):
        strength.requires_grad_()
        delta.requires_grad_()
        with torch.enable_grad():
            operator, moved = relaxed_laplacian(flip_edges(adjacency, strength)), x + delta
            value = objective(operator, moved)
            if rayleigh_weight:
                # Of Lt in place of L the quotient is less by 1, which moves no maximum.
                value = value + rayleigh_weight * (rayleigh_quotient(moved, operator) + 1)
            slopes = torch.autograd.grad(value, (strength, delta), materialize_grads=True)
        history.append(value.item())
        slope = slopes[0] / slopes[0].abs().max().clamp(min=torch.finfo(x.dtype).tiny)
        raised = strength.detach() + step_size / math.sqrt(step + 1) * slope
        strength = project_budget(raised, budget)
        raised = delta.detach() + step_size / 2 * bound * slopes[1].sign()
        delta = raised.clamp(-bound, bound)
    chance = torch.rand(strength.shape, generator=generator, dtype=x.dtype).to(x.device)
    flips = (chance < strength).to(x.dtype)
    return Attack(flip_edges(adjacency, flips), x + delta, strength, history)


def _check(
    adjacency: Tensor,
    x: Tensor,
    edge_budget: float,
    feature_bound: float | Tensor,
    steps: int,
    step_size: float,
) -> None:
    if x.dim() != 2 or adjacency.shape != (len(x), len(x)) or adjacency.dtype != x.dtype:
        raise GraphCLError(
            f"find_attack: adjacency is {adjacency.dtype} of shape {tuple(adjacency.shape)} and x "
            f"{x.dtype} of shape {tuple(x.shape)}; pass [n, n] and [n, F] of one type"
        )
    bounds = torch.as_tensor(feature_bound)
    if edge_budget < 0 or bool((bounds < 0).any()) or steps < 1 or not step_size > 0:
        raise GraphCLError(
            f"find_attack: edge_budget is {edge_budget}, the least feature_bound "
            f"{float(bounds.min())}, steps {steps} and step_size {step_size}; pass budgets of at "
            "least 0, at least one step, and a positive size"
        )
