"""FedTGP: prototypes that the server trains, with a margin that adapts (Zhang et al., AAAI 2024).

From the paper and the authors' code: the server holds an embedding per class and two layers behind
it, and trains both on the prototypes that it received, so that every one of them lies closer to the
learned prototype of its class than to the others by a margin; clients learn as under FedProto, with
the learned prototypes, also those of classes that nobody uploaded; the nearest one is the
prediction. Where paper and code differ, the code is followed: the weight of the alignment (10, not
0.1), and the margin, the largest distance of a class from its nearest one (``margin = "paper"``:
the largest distance of any two). Completed: a distance is the root of a sum of squared differences,
in float64 and kept above zero, where the code's expanded square can turn negative.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812
from flwr.app import RecordDict
from torch import Tensor, nn

from federation.experiment import Experiment
from federation.learners.base import drawn_for
from federation.records import to_arrays, to_tensors
from federation.strategies.base import Algorithm, Facts
from federation.strategies.fedproto import FEDPROTO, FedProtoExchange
from federation.strategies.pairs import Pairs, fit_pairs, labelled_pairs
from federation.strategies.prototypes import (
    PrototypeStrategy,
    PrototypeTable,
    Upload,
    class_means,
)
from federation.tables import FedTGPTable
from graphcl.training import torch_rng


class FedTGPExchange(FedProtoExchange):
    """Client half, and wire, as FedProto's."""

    @property
    def config(self) -> FedTGPTable:
        return self.experiment.strategy.fedtgp


class TrainablePrototypes(nn.Module):
    """An embedding per class and two layers behind it.

    Args:
        num_classes: Number of classes over all clients.
        channels: Width of a prototype, and of the layers.

    Shapes:
        - **output**: ``[num_classes, channels]``
    """

    def __init__(self, num_classes: int, channels: int):
        super().__init__()
        self.embedding = nn.Embedding(num_classes, channels)
        self.layers = nn.Sequential(
            nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels)
        )

    def forward(self) -> Tensor:
        """Return the prototypes of all classes."""
        out: Tensor = self.layers(self.embedding.weight)
        return out


def adaptive_margin(pairs: Pairs, form: str, limit: float) -> float:
    """Return how much closer a prototype shall be to its own class than to the others.

    Args:
        pairs: What the server received; their means by class are the centres.
        form: ``"code"``: the largest distance of a centre from the nearest other one; ``"paper"``:
            the largest distance of any two.
        limit: What it is at most, and where there is one class alone.
    """
    num_classes = int(pairs.classes.max()) + 1
    _, centres, _ = class_means(pairs.values.double(), pairs.classes, num_classes)
    if len(centres) < 2:
        return limit
    gaps = torch.cdist(centres, centres, compute_mode="donot_use_mm_for_euclid_dist")
    if form == "code":
        gaps = gaps.fill_diagonal_(torch.inf).amin(1)
    return min(float(gaps.max()), limit)


def margin_loss(pairs: Pairs, prototypes: Tensor, margin: float) -> Tensor:
    """Return the cross-entropy of negative distances, the own class's longer by the margin.

    Shapes:
        - **prototypes**: ``[num_classes, channels]``, learned
        - **output**: a scalar, float64
    """
    # In float64 no finite prototype that a client may send has a square without bound.
    difference = pairs.values.double()[:, None] - prototypes.double()
    distance = difference.square().sum(-1).clamp(min=1e-12).sqrt()
    own = F.one_hot(pairs.classes, len(prototypes))
    return F.cross_entropy(-(distance + margin * own), pairs.classes)


class FedTGP(PrototypeStrategy):
    """Server half: trains its prototypes on those of the round, and sends those of all classes."""

    def __init__(self, experiment: Experiment, facts: Facts):
        with drawn_for(experiment, "fedtgp"):
            self.network = TrainablePrototypes(
                facts.num_classes, experiment.model.embedding_channels
            )
        super().__init__(experiment, facts)

    def learn(self, server_round: int, received: Mapping[int, Upload]) -> None:
        if not any(upload.classes.numel() for upload in received.values()):
            return
        config = self.experiment.strategy.fedtgp
        pairs = labelled_pairs(received.values())
        margin = adaptive_margin(pairs, config.margin, config.margin_limit)
        fit_pairs(
            self.network,
            lambda batch: margin_loss(batch, self.network(), margin),
            pairs,
            epochs=config.epochs,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            rng=torch_rng(self.experiment.run.seed, "fedtgp", server_round),
        )

    @torch.no_grad()
    def fuse(self) -> PrototypeTable:
        """Return the learned prototypes; none before the first upload with a class in it."""
        learned = any(upload.classes.numel() for upload in self.uploads.values())
        known = torch.full((self.facts.num_classes,), learned)
        return PrototypeTable(torch.where(known[:, None], self.network(), 0.0), known)

    def state(self) -> RecordDict:
        """Return the last upload of every client, and the network."""
        return RecordDict({**super().state(), "network": to_arrays(self.network.state_dict())})

    def load_state(self, state: RecordDict) -> None:
        self.network.load_state_dict(to_tensors(state.array_records["network"]))
        super().load_state(RecordDict({k: v for k, v in state.items() if k != "network"}))


FEDTGP = Algorithm(FedTGPExchange, FedTGP, FEDPROTO.sends, FEDPROTO.check_reply)
