"""Which channels of a prototype matter: Fisher information, of a client's head or the server's.

The diagonal empirical Fisher information of feature channels, scaled to [0, 1], follows FedDPA,
which has it of parameters. The server's head follows FedGH (Yi et al., 2023): a linear layer
trained on the prototypes of all clients, from where it stood in the round before.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from federation.experiment import Experiment
from federation.learners.base import drawn_for
from federation.strategies.base import Facts
from federation.strategies.pairs import fit_pairs, labelled_pairs
from federation.strategies.prototypes import Upload

_EPOCHS, _BATCH_SIZE, _LEARNING_RATE = 100, 10, 0.01  # of the server's head, as FedGH's


def channel_fisher(embedding: Tensor, y: Tensor, head: nn.Module) -> Tensor:
    """Return the squared derivative of every sample's log-likelihood by its channels.

    Closed form for a linear head: ``((onehot(y) - softmax(W z + b)) W)²``; by backpropagation for
    any other, whose rows must not interact.

    Shapes:
        - **embedding**: ``[num_samples, channels]``, **y**: ``[num_samples]``
        - **output**: ``[num_samples, channels]``, not negative
    """
    if not isinstance(head, nn.Linear):
        with torch.enable_grad():
            leaf = embedding.detach().requires_grad_()
            likelihood = -F.cross_entropy(head(leaf), y, reduction="sum")
        return torch.autograd.grad(likelihood, leaf)[0].square()
    logits = head(embedding)
    residual = F.one_hot(y, logits.size(1)).to(logits) - logits.softmax(-1)
    return (residual @ head.weight).square()


def scale_rows(fisher: Tensor) -> Tensor:
    """Scale every row to [0, 1]; a constant row becomes 0.5 everywhere."""
    low, high = fisher.amin(1, keepdim=True), fisher.amax(1, keepdim=True)
    scaled = (fisher - low) / (high - low).clamp(min=torch.finfo(fisher.dtype).tiny)
    return torch.where(high > low, scaled, 0.5).clamp(0, 1)


def server_head(experiment: Experiment, facts: Facts) -> nn.Linear:
    """Return the head that a server begins with."""
    with drawn_for(experiment, "head"):
        # In float64 no finite prototype that a client may send has a square without bound.
        return nn.Linear(experiment.model.embedding_channels, facts.num_classes).double()


def fit_server_head(head: nn.Linear, uploads: Iterable[Upload], rng: torch.Generator) -> None:
    """Train the server's head on the prototypes of all clients, in place."""
    fit_pairs(
        head,
        lambda pairs: F.cross_entropy(head(pairs.values.double()), pairs.classes),
        labelled_pairs(uploads),
        epochs=_EPOCHS,
        batch_size=_BATCH_SIZE,
        learning_rate=_LEARNING_RATE,
        rng=rng,
    )


@torch.no_grad()
def judged(upload: Upload, head: nn.Linear) -> Upload:
    """Return an upload with the importance of its channels as the server's head has it."""
    fisher = scale_rows(channel_fisher(upload.values.double(), upload.classes, head)).float()
    return Upload(upload.classes, upload.values, upload.support, fisher)
