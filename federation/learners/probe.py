"""A linear layer fitted to frozen embeddings, wherever classes must be read from them."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

_STEPS = 40  # of L-BFGS; more changed the cross-entropy in its third digit


@torch.enable_grad()
def fit_probe(head: nn.Linear, embedding: Tensor, y: Tensor, decay: float) -> None:
    """Fit a linear layer to frozen embeddings: multinomial logistic regression.

    The problem is convex and starts from zero, so that the result is a function of the samples.

    Shapes:
        embedding: ``[num_samples, channels]``; y: ``[num_samples]``.

    Args:
        head: Changed in place.
        embedding: No gradient reaches it.
        y: Class ids.
        decay: Weight of half the squared weights beside the mean cross-entropy.
    """
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        penalty = decay / 2 * head.weight.square().sum()
        loss = F.cross_entropy(head(embedding.detach()), y) + penalty
        loss.backward()
        return loss

    optimizer.step(closure)
