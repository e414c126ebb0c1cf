"""Small clients whose perceptrons train as one batch, which spares most of what a step costs.

All that a client computes is what it would compute alone, up to the order of sums in a product of
matrices: the networks are stacked, the optimiser has each client's own moments and steps, and the
terms of an algorithm are means over a client's own samples. A client whose loss or gradient is not
finite fails alone.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from federation.learners import Forward, NodeLearner, Owners
from federation.learners.base import optimizer_for
from graphcl.errors import GraphCLError

State = Mapping[str, Tensor]
Trained = tuple[dict[str, Tensor], float] | GraphCLError


def fit_together(
    learners: Sequence[NodeLearner],
    starts: Sequence[State],
    penalties: Callable[[Forward, Owners], Mapping[str, Tensor]],
) -> list[Trained]:
    """Train for a round, every client on its own data from its own state; none is no error.

    Args:
        learners: Of one shape, with a perceptron without dropout as encoder.
        starts: The states that each begins with, see :meth:`federation.learners.Learner.state`.
        penalties: Named terms of the federated algorithm, ``[clients]``, added to the loss.

    Returns:
        Of every client its state and the loss of its last epoch, or why it has none.
    """
    if not learners:
        return []
    model, train = learners[0].model.train(), learners[0].config.train
    names = [name for name, _ in model.named_parameters()]
    stacked = {
        name: torch.stack([start[f"model/{name}"] for start in starts]).requires_grad_()
        for name in names
    }
    # Views of the stacked weights, since clients have made unlike numbers of steps.
    parts = list(zip(*(weight.detach().unbind() for weight in stacked.values()), strict=True))
    optimizer = optimizer_for([weight for part in parts for weight in part], train)
    for part, start in zip(parts, starts, strict=True):
        _load_moments(optimizer, part, start)
    x, y, held, owners = _samples(learners)

    def forward(weights: State, x: Tensor) -> tuple[Tensor, Tensor]:
        out = torch.func.functional_call(model, dict(weights), (x, learners[0].operator))
        return out.embedding, out.logits

    failed: dict[int, GraphCLError] = {}
    for epoch in range(1, train.epochs + 1):
        embedding, logits = torch.func.vmap(forward)(stacked, x)
        out = Forward(embedding[held], logits[held], y)
        losses = owners.mean(F.cross_entropy(out.logits, out.y, reduction="none"))
        losses = torch.stack((losses, *penalties(out, owners).values())).sum(0)
        slopes = torch.autograd.grad(losses.sum(), list(stacked.values()), materialize_grads=True)
        lengths = torch.stack([slope.flatten(1).norm(dim=1) for slope in slopes]).sum(0)
        for what, values in (("loss", losses.detach()), ("gradient", lengths)):
            for client in (~values.isfinite()).nonzero().flatten().tolist():
                failed.setdefault(client, _not_finite(what, epoch))
        for weights, slope in zip(zip(*parts, strict=True), slopes, strict=True):
            # Fused optimisers read memory in order, and what comes out of a product may be turned.
            for weight, own in zip(weights, slope.contiguous().unbind(), strict=True):
                weight.grad = own
        optimizer.step()
    ends = losses.tolist()
    return [
        failed.get(client, (_state(optimizer, names, part), ends[client]))
        for client, part in enumerate(parts)
    ]


def _load_moments(
    optimizer: torch.optim.Optimizer, weights: Sequence[Tensor], start: State
) -> None:
    for name, value in start.items():
        if name.startswith("optimizer/"):
            _, index, slot = name.split("/")
            optimizer.state[weights[int(index)]][slot] = value.clone()


def _state(
    optimizer: torch.optim.Optimizer, names: Sequence[str], weights: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Return a client's state as its learner would."""
    state = {f"model/{name}": weight for name, weight in zip(names, weights, strict=True)}
    for index, weight in enumerate(weights):
        for slot, value in optimizer.state.get(weight, {}).items():
            state[f"optimizer/{index}/{slot}"] = value
    return state


def _samples(learners: Sequence[NodeLearner]) -> tuple[Tensor, Tensor, Tensor, Owners]:
    """Return training samples by client, filled up to the most that one holds.

    Returns:
        Features ``[clients, most, in_channels]``, classes ``[num_samples]``, which places of a
        client hold a sample ``[clients, most]``, and whose each sample is.
    """
    masks = [learner.masks["train"] for learner in learners]
    x = [learner.x[mask] for learner, mask in zip(learners, masks, strict=True)]
    y = torch.cat([learner.y[mask] for learner, mask in zip(learners, masks, strict=True)])
    number = torch.tensor([len(own) for own in x], device=y.device)
    held = torch.arange(int(number.max()), device=y.device) < number[:, None]
    owners = Owners(torch.arange(len(x), device=y.device).repeat_interleave(number), len(x))
    return torch.nn.utils.rnn.pad_sequence(x, batch_first=True), y, held, owners


def _not_finite(what: str, epoch: int) -> GraphCLError:
    return GraphCLError(
        f"the {what} is not finite in epoch {epoch}; lower the learning rate or check the data"
    )
