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

from collections.abc import Mapping, Sequence
from typing import Self

import torch
import torch.nn.functional as F  # noqa: N812
from flwr.app import ArrayRecord, RecordDict
from torch import Tensor

from federation.experiment import Experiment
from federation.learners import Forward, Owners, Projector
from federation.records import to_arrays, to_tensors
from federation.strategies.base import Algorithm, Facts, MessageStrategy
from federation.strategies.fedproto import FedProtoExchange, alignment
from federation.strategies.fisher import (
    channel_fisher,
    fit_server_head,
    judged,
    scale_rows,
    server_head,
)
from federation.strategies.masked import MaskedPrototypes, check_masked
from federation.strategies.prototypes import (
    PrototypeStrategy,
    PrototypeTable,
    Upload,
    check_upload,
    local_upload,
    side_by_side,
    weighted_prototypes,
)
from federation.tables import FedDBPTable
from graphcl.contrast import prototype_contrast
from graphcl.prototypes import DualBranchProjector, NearestPrototype, split_branches
from graphcl.training import torch_rng


class FedDBPExchange(FedProtoExchange):
    """Client half.

    Wire down: ``prototypes``, this client's own table: ``values [known, K]``, ``classes [known]``.
    Wire up: ``prototypes`` with ``values [held, K]``, ``classes [held]``, ``support [held]``, and,
    where the server reads the client's own importance, ``fisher [held, K]``, or a bit for each
    channel.

    Under ``privacy.masking`` the global table comes down, and the client fuses it with what it
    kept of its own; up go ``words``, see :mod:`federation.strategies.masked`.
    """

    own: Upload | None = None

    @classmethod
    def projector(cls, experiment: Experiment) -> Projector | None:
        fuse = experiment.strategy.feddbp.fuse
        return None if fuse == "none" else lambda channels: DualBranchProjector(channels, fuse)

    @classmethod
    def penalties(
        cls, exchanges: Sequence[Self], out: Forward, owners: Owners
    ) -> Mapping[str, Tensor]:
        config = exchanges[0].config
        table, y = side_by_side([exchange.table for exchange in exchanges], out.y, owners)
        z_align, z_discriminate = split_branches(out.embedding, config.fuse)
        p_align, p_discriminate = split_branches(table.values, config.fuse)
        terms = {}
        if config.lambda_align:
            align = alignment(z_align, y, PrototypeTable(p_align, table.known), owners)
            terms["align"] = config.lambda_align * align
        if config.lambda_contrast:
            contrast = prototype_contrast(
                z_discriminate,
                y,
                p_discriminate,
                known=table.known,
                temperature=config.temperature,
                candidates=_own_rows(owners, len(table.known)),
                reduction="none",
            )
            terms["contrast"] = config.lambda_contrast * owners.mean(contrast, table.known[y])
        return terms

    def start(self) -> None:
        super().start()
        self.own = None

    def state(self) -> dict[str, Tensor]:
        own = {} if self.own is None else {f"own/{k}": v for k, v in vars(self.own).items()}
        return super().state() | own

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        own = {k.removeprefix("own/"): v for k, v in state.items() if k.startswith("own/")}
        self.own = Upload(**own) if own else None
        super().load_state(state)

    def receive(self, content: RecordDict) -> None:
        super().receive(content)
        if self.own is not None:
            device = self.table.values.device
            table = self.table.to(torch.device("cpu"))
            self.table = personal_table(table, self.own, self.experiment).to(device)

    @torch.no_grad()
    def upload(self) -> Upload:
        learner, config = self.learner, self.experiment.strategy.feddbp
        if not config.sends_fisher:
            return super().upload()
        out = learner.features()
        fisher = channel_fisher(out.embedding, out.y, learner.head)
        upload = local_upload(out, learner.num_classes, self.experiment.privacy, fisher)
        fisher = scale_rows(upload.fisher)
        if config.fisher_bits == 1:
            fisher = fisher >= config.threshold
        return Upload(upload.classes, upload.values, upload.support, fisher)

    def weight(self, upload: Upload) -> Tensor:
        return channel_weight(upload, self.experiment)

    def keep(self, upload: Upload) -> None:
        if self.experiment.strategy.feddbp.personal != "off":
            self.own = upload

    @property
    def config(self) -> FedDBPTable:
        return self.experiment.strategy.feddbp

    def rule(self) -> NearestPrototype:
        return NearestPrototype(
            self.table.values,
            self.table.known,
            fidelity=self.config.lambda_align,
            temperature=self.config.temperature,
            fuse=self.config.fuse,
        )


def _own_rows(owners: Owners, rows: int) -> Tensor | None:
    """Return which rows of clients' tables side by side are each sample's client's own."""
    if owners.clients == 1:
        return None
    holders = torch.arange(rows, device=owners.client.device) // (rows // owners.clients)
    return owners.client[:, None] == holders


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
        weights = {p: channel_weight(upload, self.experiment) for p, upload in self.uploads.items()}
        return weighted_prototypes(
            self.uploads,
            weights,
            self.facts.num_classes,
            self.experiment.model.embedding_channels,
            self.experiment.strategy.robust,
        )

    def table_for(self, partition: int) -> PrototypeTable:
        """Return the client's own fusion of the global table with its last upload.

        Under ``personal = "similar"`` its classes' rows are means by likeness to its own instead.
        """
        config = self.experiment.strategy.feddbp
        upload = self.uploads.get(partition)
        if config.personal == "off" or upload is None:
            return self.table
        if config.personal != "similar":
            return personal_table(self.table, upload, self.experiment)
        values = self.table.values.clone()
        values[upload.classes] = similar_rows(
            upload, self.uploads, self.facts.num_classes, config.similarity_temperature
        )
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


def channel_weight(upload: Upload, experiment: Experiment) -> Tensor:
    """Return a holder's weight in FedDBP's global mean, ``[held, 1]`` or ``[held, channels]``."""
    config = experiment.strategy.feddbp
    weight = upload.support[:, None].float()
    if config.global_weight == "uniform":
        return torch.ones_like(weight)
    if config.global_weight == "fisher":
        return weight * (upload.fisher + config.fisher_floor)
    return weight


def personal_table(table: PrototypeTable, own: Upload, experiment: Experiment) -> PrototypeTable:
    """Keep a client's own value on the channels that matter to it, else the others'.

    Args:
        table: The global one.
        own: The client's upload, with the importance of its channels.
        experiment: Its ``personal`` is ``soft`` or ``hard``.
    """
    config = experiment.strategy.feddbp
    values = table.values.clone()
    if config.personal == "soft":
        kept = config.keep * own.fisher
    else:
        kept = (own.fisher >= config.threshold).float()
    values[own.classes] = kept * own.values + (1 - kept) * values[own.classes]
    return PrototypeTable(values, table.known)


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
    if experiment.masked:
        check_masked(content, experiment, facts)
        return
    config = experiment.strategy.feddbp
    packed = config.fisher_bits == 1
    check_upload(content, experiment, facts, fisher=config.sends_fisher, packed=packed)


def _server(experiment: Experiment, facts: Facts) -> MessageStrategy:
    return (MaskedPrototypes if experiment.masked else FedDBP)(experiment, facts)


FEDDBP = Algorithm(FedDBPExchange, _server, ("prototypes",), _check)
