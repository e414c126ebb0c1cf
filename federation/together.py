"""Small clients whose perceptrons train as one batch, which spares most of what a step costs.

All that a client computes is what it would compute alone, up to the order of sums in a product of
matrices; the optimiser's steps are the same operations on stacked weights. Clients that hold fewer
samples than others are filled up with samples that weigh nothing. A client whose loss or gradient
is not finite fails alone.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from federation.learners import NodeLearner
from federation.learners.base import optimizer_for
from graphcl.errors import GraphCLError

Weights = Mapping[str, Tensor]
Trained = tuple[dict[str, Tensor], float] | GraphCLError


def fit_together(learners: Sequence[NodeLearner], starts: Sequence[Weights]) -> list[Trained]:
    """Train for a round, every client on its own data from its own weights; none is no error.

    Args:
        learners: Of one shape, with a perceptron without dropout as encoder.
        starts: The weights that each begins with.

    Returns:
        Of every client its weights and the loss of its last epoch, or why it has none.
    """
    if not learners:
        return []
    model, train = learners[0].model.train(), learners[0].config.train
    names = [name for name, _ in model.named_parameters()]
    stacked = {n: torch.stack([start[n] for start in starts]).requires_grad_() for n in names}
    optimizer = optimizer_for(list(stacked.values()), train)
    x, y, share = _filled_up(learners)

    def loss(weights: Weights, x: Tensor, y: Tensor, share: Tensor) -> Tensor:
        out = torch.func.functional_call(model, dict(weights), (x, learners[0].operator))
        return (F.cross_entropy(out.logits, y, reduction="none") * share).sum()

    failed: dict[int, GraphCLError] = {}
    losses_of: Callable[..., Tensor] = torch.func.vmap(loss)
    for epoch in range(1, train.epochs + 1):
        optimizer.zero_grad(set_to_none=True)
        losses = losses_of(stacked, x, y, share)
        losses.sum().backward()
        slopes = [w.grad.flatten(1).norm(dim=1) for w in stacked.values() if w.grad is not None]
        for what, values in (("loss", losses.detach()), ("gradient", torch.stack(slopes).sum(0))):
            for client in (~values.isfinite()).nonzero().flatten().tolist():
                failed.setdefault(client, _not_finite(what, epoch))
        optimizer.step()
    ends = losses.tolist()
    return [
        failed.get(client, ({n: w.detach()[client] for n, w in stacked.items()}, ends[client]))
        for client in range(len(learners))
    ]


def _filled_up(learners: Sequence[NodeLearner]) -> tuple[Tensor, Tensor, Tensor]:
    """Return training samples and classes, and what each sample counts in its client's mean.

    Shapes:
        - **output**: ``[clients, most, in_channels]``, ``[clients, most]``, ``[clients, most]``
    """
    masks = [learner.masks["train"] for learner in learners]
    x = [learner.x[mask] for learner, mask in zip(learners, masks, strict=True)]
    y = [learner.y[mask] for learner, mask in zip(learners, masks, strict=True)]
    share = [torch.full((len(own),), 1 / len(own), device=own.device) for own in x]
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(x, batch_first=True), pad(y, batch_first=True), pad(share, batch_first=True)


def _not_finite(what: str, epoch: int) -> GraphCLError:
    return GraphCLError(
        f"the {what} is not finite in epoch {epoch}; lower the learning rate or check the data"
    )
