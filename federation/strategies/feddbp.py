"""FedDBP: dual-branch features and personalised prototype fusion (Gao et al., arXiv 2603.29455).

From the paper's abstract: clients hold unlike models and exchange class prototypes; a dual-branch
projector learns by L2 alignment and contrastive learning at once; the server fuses prototypes for
every client on its own, and Fisher information says which channels of a client's prototypes
matter. Completed by us from named prior work, since no equation was readable: the layers and
widths of the branches and their concatenation (ours); mean squared error against the own class's
prototype (FedProto); InfoNCE of samples against prototypes by cosine (FedPCL, FPL); diagonal
empirical Fisher information of feature channels, scaled to [0, 1] (FedDPA); the Fisher-weighted
global mean (Fisher-weighted model merging); keeping a client's own value on the channels that
matter to it (FedDPA). This is not a reproduction.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812
from flwr.app import ArrayRecord, RecordDict
from torch import Tensor, nn

from federation.experiment import Experiment
from federation.learners import Forward, Projector
from federation.strategies.base import Algorithm, Facts
from federation.strategies.fedproto import FedProtoExchange, alignment, first, nearest
from federation.strategies.prototypes import (
    PrototypeStrategy,
    PrototypeTable,
    Upload,
    check_upload,
    local_upload,
    weighted_prototypes,
)
from graphcl.contrast import prototype_contrast


class DualBranchProjector(nn.Module):
    """Two branches over an embedding: one for fidelity, one for discrimination.

    Args:
        channels: Width of the embedding, in and out.
        fuse: ``concat`` gives each branch half the channels; ``sum`` gives both the full width
            and averages them.

    Shapes:
        - **input**, **output**: ``[num_samples, channels]``
    """

    def __init__(self, channels: int, fuse: str = "concat"):
        super().__init__()
        self.fuse = fuse
        width = channels // 2 if fuse == "concat" else channels
        self.align = nn.Linear(channels, width)
        self.discriminate = nn.Sequential(
            nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, width)
        )

    def forward(self, h: Tensor) -> Tensor:
        """Project an embedding."""
        aligned, discriminated = self.align(h), self.discriminate(h)
        if self.fuse == "concat":
            return torch.cat((aligned, discriminated), -1)
        return (aligned + discriminated) / 2


def split_branches(z: Tensor, fuse: str) -> tuple[Tensor, Tensor]:
    """Return the channels of the fidelity and of the discrimination branch."""
    if fuse == "sum":
        return z, z
    half = z.size(-1) // 2
    return z[..., :half], z[..., half:]


def channel_fisher(embedding: Tensor, y: Tensor, head: nn.Linear) -> Tensor:
    """Return the squared derivative of every sample's log-likelihood by its channels.

    Closed form for a linear head: ``((onehot(y) - softmax(W z + b)) W)²``.

    Shapes:
        - **embedding**: ``[num_samples, channels]``, **y**: ``[num_samples]``
        - **output**: ``[num_samples, channels]``, not negative
    """
    logits = head(embedding)
    residual = F.one_hot(y, logits.size(1)).to(logits) - logits.softmax(-1)
    return (residual @ head.weight).square()


def scale_rows(fisher: Tensor) -> Tensor:
    """Scale every row to [0, 1]; a constant row becomes 0.5 everywhere."""
    low, high = fisher.amin(1, keepdim=True), fisher.amax(1, keepdim=True)
    scaled = (fisher - low) / (high - low).clamp(min=torch.finfo(fisher.dtype).tiny)
    return torch.where(high > low, scaled, 0.5).clamp(0, 1)


class FedDBPExchange(FedProtoExchange):
    """Client half.

    Wire down: ``prototypes``, this client's own table: ``values [known, K]``, ``classes [known]``.
    Wire up: ``prototypes`` with ``values [held, K]``, ``fisher [held, K]``, ``classes [held]``,
    ``support [held]``; no ``fisher`` where there is noise.
    """

    @classmethod
    def projector(cls, experiment: Experiment) -> Projector:
        fuse = experiment.strategy.feddbp.fuse
        return lambda channels: DualBranchProjector(channels, fuse)

    def penalty(self, out: Forward) -> Mapping[str, Tensor]:
        config = self.experiment.strategy.feddbp
        z_align, z_discriminate = split_branches(out.embedding, config.fuse)
        p_align, p_discriminate = split_branches(self.table.values, config.fuse)
        known = self.table.known
        terms = {}
        if config.lambda_align:
            align = alignment(z_align, out.y, PrototypeTable(p_align, known))
            terms["align"] = config.lambda_align * align
        if config.lambda_contrast:
            contrast = prototype_contrast(
                z_discriminate, out.y, p_discriminate, known=known, temperature=config.temperature
            )
            terms["contrast"] = config.lambda_contrast * contrast
        return terms

    @torch.no_grad()
    def reply(self) -> RecordDict:
        learner = self.learner
        out = learner.features()
        privacy = self.experiment.privacy
        noised = bool(privacy.noise_multiplier)  # Fisher information would leave without noise
        fisher = None if noised else channel_fisher(out.embedding, out.y, learner.head)
        upload = local_upload(out, learner.num_classes, privacy, fisher)
        if noised:
            return RecordDict({"prototypes": upload.to_arrays()})
        scaled = Upload(upload.classes, upload.values, upload.support, scale_rows(upload.fisher))
        return RecordDict({"prototypes": scaled.to_arrays()})

    def predict(self, out: Forward) -> Mapping[str, Tensor]:
        config = self.experiment.strategy.feddbp
        z_align, z_discriminate = split_branches(out.embedding, config.fuse)
        p_align, p_discriminate = split_branches(self.table.values, config.fuse)
        square = torch.cdist(z_align, p_align).square() / z_align.size(-1)
        cosine = F.normalize(z_discriminate, dim=-1) @ F.normalize(p_discriminate, dim=-1).T
        distance = config.lambda_align * square - cosine / config.temperature
        predictions = {
            "head": out.logits.argmax(-1),
            "prototype": nearest(distance, self.table.known),
        }
        return first(config.inference, predictions)


class FedDBP(PrototypeStrategy):
    """Server half: a channel-weighted global table, then a fusion of its own for every client."""

    def fuse(self) -> PrototypeTable:
        config = self.experiment.strategy.feddbp
        weights = {}
        for partition, upload in self.uploads.items():
            weight = upload.support[:, None].float()
            if config.global_weight == "uniform":
                weight = torch.ones_like(weight)
            elif config.global_weight == "fisher":
                weight = weight * (upload.fisher + config.fisher_floor)
            weights[partition] = weight
        return weighted_prototypes(
            self.uploads,
            weights,
            self.facts.num_classes,
            self.experiment.model.embedding_channels,
        )

    def table_for(self, partition: int) -> PrototypeTable:
        """Keep the client's own value on the channels that matter to it, else the others'."""
        config = self.experiment.strategy.feddbp
        upload = self.uploads.get(partition)
        if config.personal == "off" or upload is None:
            return self.table
        if config.personal == "soft":
            own = config.keep * upload.fisher
        else:
            own = (upload.fisher >= config.threshold).float()
        values = self.table.values.clone()
        shared = values[upload.classes]
        values[upload.classes] = own * upload.values + (1 - own) * shared
        return PrototypeTable(values, self.table.known)


def _check(content: RecordDict, arrays: ArrayRecord, experiment: Experiment, facts: Facts) -> None:
    noised = bool(experiment.privacy.noise_multiplier)
    check_upload(content, experiment, facts, fisher=not noised)


FEDDBP = Algorithm(FedDBPExchange, FedDBP, ("prototypes",), _check)
