"""FedDBP: dual-branch features and personalised prototype fusion (Gao et al., arXiv 2603.29455).

From the paper's abstract: clients hold unlike models and exchange class prototypes; a dual-branch
projector learns by L2 alignment and contrastive learning at once; the server fuses prototypes for
every client on its own, and Fisher information says which channels of a client's prototypes
matter. Completed by us from named prior work, since no equation was readable: the layers and
widths of the branches and their concatenation (ours); mean squared error against the own class's
prototype (FedProto); InfoNCE of samples against prototypes by cosine (FedPCL, FPL); diagonal
empirical Fisher information of feature channels, scaled to [0, 1] (FedDPA), of the client's head or
of one that the server trains (FedGH); the Fisher-weighted global mean (Fisher-weighted model
merging); keeping a client's own value on the channels that matter to it (FedDPA), or in its place a
mean of all clients' prototypes by their likeness to its own (FedAPA). This is not a reproduction.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812
from flwr.app import ArrayRecord, RecordDict
from torch import Tensor

from federation.experiment import Experiment
from federation.learners import Forward, Projector
from federation.records import to_arrays, to_tensors
from federation.strategies.base import Algorithm, Facts
from federation.strategies.dual_branch import DualBranchProjector, split_branches
from federation.strategies.fedproto import FedProtoExchange, alignment, first, nearest
from federation.strategies.fisher import (
    channel_fisher,
    fit_server_head,
    judged,
    scale_rows,
    server_head,
)
from federation.strategies.prototypes import (
    PrototypeStrategy,
    PrototypeTable,
    Upload,
    check_upload,
    local_upload,
    weighted_prototypes,
)
from graphcl.contrast import prototype_contrast
from graphcl.training import torch_rng


class FedDBPExchange(FedProtoExchange):
    """Client half.

    Wire down: ``prototypes``, this client's own table: ``values [known, K]``, ``classes [known]``.
    Wire up: ``prototypes`` with ``values [held, K]``, ``classes [held]``, ``support [held]``, and,
    where the server reads the client's own importance, ``fisher [held, K]``, or a bit for each
    channel.
    """

    @classmethod
    def projector(cls, experiment: Experiment) -> Projector | None:
        fuse = experiment.strategy.feddbp.fuse
        return None if fuse == "none" else lambda channels: DualBranchProjector(channels, fuse)

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
        learner, config = self.learner, self.experiment.strategy.feddbp
        if not config.sends_fisher:
            return super().reply()
        out = learner.features()
        fisher = channel_fisher(out.embedding, out.y, learner.head)
        upload = local_upload(out, learner.num_classes, self.experiment.privacy, fisher)
        fisher = scale_rows(upload.fisher)
        if config.fisher_bits == 1:
            fisher = fisher >= config.threshold
        scaled = Upload(upload.classes, upload.values, upload.support, fisher)
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

    def __init__(self, experiment: Experiment, facts: Facts):
        judges = experiment.strategy.feddbp.fisher == "server"
        self.head = server_head(experiment, facts) if judges else None
        super().__init__(experiment, facts)

    def learn(self, server_round: int, received: Mapping[int, Upload]) -> None:
        """Judge the channels of all clients anew, where that is the server's to do."""
        if self.head is None or not any(len(upload.classes) for upload in self.uploads.values()):
            return
        rng = torch_rng(self.experiment.run.seed, "feddbp", server_round)
        fit_server_head(self.head, self.uploads.values(), rng)
        self.uploads = {p: judged(upload, self.head) for p, upload in self.uploads.items()}

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
            self.experiment.strategy.robust,
        )

    def table_for(self, partition: int) -> PrototypeTable:
        """Keep the client's own value on the channels that matter to it, else the others'.

        Under ``personal = "similar"`` its classes' rows are means by likeness to its own instead.
        """
        config = self.experiment.strategy.feddbp
        upload = self.uploads.get(partition)
        if config.personal == "off" or upload is None:
            return self.table
        values = self.table.values.clone()
        if config.personal == "similar":
            values[upload.classes] = similar_rows(
                upload, self.uploads, self.facts.num_classes, config.similarity_temperature
            )
            return PrototypeTable(values, self.table.known)
        if config.personal == "soft":
            own = config.keep * upload.fisher
        else:
            own = (upload.fisher >= config.threshold).float()
        shared = values[upload.classes]
        values[upload.classes] = own * upload.values + (1 - own) * shared
        return PrototypeTable(values, self.table.known)

    def state(self) -> RecordDict:
        """Return the last upload of every client, and the head if there is one."""
        state = super().state()
        if self.head is not None:
            state["head"] = to_arrays(self.head.state_dict())
        return state

    def load_state(self, state: RecordDict) -> None:
        if self.head is not None:
            self.head.load_state_dict(to_tensors(state.array_records["head"]))
        super().load_state(RecordDict({k: v for k, v in state.items() if k != "head"}))


def similar_rows(
    own: Upload, uploads: Mapping[int, Upload], num_classes: int, temperature: float
) -> Tensor:
    """Return, of each class of a client, the mean over its holders by likeness to the client's own.

    Weights are the softmax of cosines over ``temperature``; the client is among the holders.

    Shapes:
        - **output**: ``[held, channels]``
    """
    values = torch.zeros(len(uploads), num_classes, own.values.size(1), dtype=torch.float64)
    held = torch.zeros(len(uploads), num_classes, dtype=torch.bool)
    for row, partition in enumerate(sorted(uploads)):
        upload = uploads[partition]
        values[row, upload.classes] = upload.values.double()
        held[row, upload.classes] = True
    values, held = values[:, own.classes], held[:, own.classes]
    cosine = F.cosine_similarity(values, own.values.double(), dim=-1)
    share = (cosine / temperature).masked_fill(~held, -torch.inf).softmax(0)
    return (share[..., None] * values).sum(0).float()


def _check(content: RecordDict, arrays: ArrayRecord, experiment: Experiment, facts: Facts) -> None:
    config = experiment.strategy.feddbp
    packed = config.fisher_bits == 1
    check_upload(content, experiment, facts, fisher=config.sends_fisher, packed=packed)


FEDDBP = Algorithm(FedDBPExchange, FedDBP, ("prototypes",), _check)
