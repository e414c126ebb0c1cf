"""The scores of the kernel: how alike two vectors are, and the gradient of that."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

# Below it a vector has no direction: its cosine with anything is 0, and so is its gradient.
_SHORTEST = 1e-12
# Keeps the square root's derivative finite where two points coincide.
_SMALLEST_SQUARE = 1e-12


class Score(ABC):
    """One way to score queries against keys."""

    def prepare(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return both sides after what is done once per vector, not once per pair."""
        return queries, keys

    @abstractmethod
    def logits(self, queries: Tensor, keys: Tensor, temperature: Tensor) -> Tensor:
        """Return ``s_ij / tau``, ``[B, M]``; differentiable, and safe to change in place."""

    @abstractmethod
    def backward(
        self,
        queries: Tensor,
        keys: Tensor,
        temperature: Tensor,
        logits: Tensor,
        grad_logits: Tensor,
        grad_keys: Tensor | None,
    ) -> Tensor:
        """Return the gradient of the queries and add the keys' to ``grad_keys``, if it is there.

        ``grad_logits`` may be overwritten.
        """


class Dot(Score):
    """The inner product."""

    def logits(self, queries: Tensor, keys: Tensor, temperature: Tensor) -> Tensor:
        """Return ``<a_i, b_j> / tau``."""
        # Scaling the B x D block instead of the B x M one saves a pass over the large one.
        return (queries / temperature) @ keys.T

    def backward(
        self,
        queries: Tensor,
        keys: Tensor,
        temperature: Tensor,
        logits: Tensor,
        grad_logits: Tensor,
        grad_keys: Tensor | None,
    ) -> Tensor:
        """Return the gradient of the queries and add the keys'."""
        if grad_keys is not None:
            grad_keys.addmm_(grad_logits.T, queries / temperature)
        return grad_logits @ keys / temperature


class Cosine(Dot):
    """The inner product of the directions; 0 where a vector has none."""

    def prepare(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return both sides at length one."""
        return directions(queries), directions(keys)


class Euclidean(Score):
    """The negative distance ``-sqrt(max(||a_i - b_j||^2, 1e-12))``."""

    def prepare(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return both sides with the keys' mean as origin."""
        # Distances do not move with the origin, but ||a||^2 + ||b||^2 - 2<a, b> cancels less near
        # it. No gradient is lost with detach for the same reason.
        origin = keys.detach().mean(0)
        return queries - origin, keys - origin

    def logits(self, queries: Tensor, keys: Tensor, temperature: Tensor) -> Tensor:
        """Return ``-||a_i - b_j|| / tau``."""
        squares = torch.addmm(keys.square().sum(1), queries, keys.T, alpha=-2)
        squares = squares.add_(queries.square().sum(1, keepdim=True))
        return squares.clamp_min(_SMALLEST_SQUARE).sqrt() / -temperature

    def backward(
        self,
        queries: Tensor,
        keys: Tensor,
        temperature: Tensor,
        logits: Tensor,
        grad_logits: Tensor,
        grad_keys: Tensor | None,
    ) -> Tensor:
        """Return the gradient of the queries and add the keys'."""
        distances = logits * -temperature
        # The root of the clamped square is met again only up to rounding, hence the margin.
        clamped = distances <= _SMALLEST_SQUARE**0.5 * (1 + 1e-6)
        pull = grad_logits.div_(distances.mul_(-temperature)).masked_fill_(clamped, 0)
        if grad_keys is not None:
            grad_keys.addcmul_(pull.sum(0)[:, None], keys).addmm_(pull.T, queries, alpha=-1)
        return pull.sum(1, keepdim=True) * queries - pull @ keys


def directions(vectors: Tensor) -> Tensor:
    """Return the rows ``[N, D]`` at length one, and zero where they have no direction."""
    squares = vectors.square().sum(1, keepdim=True)
    alive = squares > _SHORTEST**2
    # The inner `where` keeps 1/0 out of the backward pass, which the outer one alone would not.
    scale = torch.where(alive, torch.where(alive, squares, 1).rsqrt(), 0)
    return vectors * scale


SCORES: dict[str, Score] = {"cosine": Cosine(), "dot": Dot(), "euclidean": Euclidean()}
