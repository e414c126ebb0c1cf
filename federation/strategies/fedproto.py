"""FedProto: one global prototype per class (Tan et al., AAAI 2022).

From the paper and the authors' code: cross-entropy plus a squared distance between an embedding
and its class's global prototype; the server averages the prototypes of the clients that hold a
class. Completed: prototypes come from one pass in evaluation mode after training, as in FedTGP's
code, where FedProto's own code mixes the stages of a round.
"""

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from flwr.app import ArrayRecord, RecordDict
from torch import Tensor

from federation.experiment import Experiment
from federation.learners import Forward, LabelledLearner, Owners
from federation.strategies.base import Algorithm, Exchange, Facts, MessageStrategy
from federation.strategies.masked import MaskedPrototypes, check_masked, share
from federation.strategies.prototypes import (
    PrototypeStrategy,
    PrototypeTable,
    Upload,
    check_upload,
    local_upload,
    side_by_side,
    weighted_prototypes,
)
from federation.tables import FedDBPTable, FedProtoTable, FedTGPTable
from graphcl.prototypes import NearestPrototype


def alignment(embedding: Tensor, y: Tensor, table: PrototypeTable, owners: Owners) -> Tensor:
    """Return the mean squared distance between embeddings and their class's prototype, by client.

    Samples whose class is unknown contribute zero to the sum and count in the mean, as in
    FedProto's code, where their target is their own embedding.
    """
    square = (embedding - table.values.detach()[y]).square().mean(1)
    return owners.mean(square * table.known[y])


def first(choice: str, predictions: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put the chosen inference first: the one that counts."""
    return {choice: predictions[choice], **predictions}


class FedProtoExchange(Exchange):
    """Client half.

    Wire down: ``prototypes`` with ``values [known, K]`` and ``classes [known]``.
    Wire up: ``prototypes`` with ``values [held, K]``, ``classes [held]``, ``support [held]``;
    under ``privacy.masking`` with ``words``, see :mod:`federation.strategies.masked`.
    """

    learner: LabelledLearner

    @property
    def config(self) -> FedProtoTable | FedTGPTable | FedDBPTable:
        """The algorithm's own table."""
        return self.experiment.strategy.fedproto

    def receive(self, content: RecordDict) -> None:
        learner = self.learner
        self.table = PrototypeTable.from_arrays(
            content.array_records["prototypes"],
            learner.num_classes,
            learner.embedding_channels,
            next(learner.head.parameters()).device,
        )

    def penalty(self, out: Forward) -> Mapping[str, Tensor]:
        terms = self.penalties([self], out, Owners.one(out.y))
        return {name: term[0] for name, term in terms.items()}

    @classmethod
    def penalties(
        cls, exchanges: Sequence[Self], out: Forward, owners: Owners
    ) -> Mapping[str, Tensor]:
        table, y = side_by_side([exchange.table for exchange in exchanges], out.y, owners)
        align = alignment(out.embedding, y, table, owners)
        return {"align": exchanges[0].config.lambda_align * align}

    def reply(self) -> RecordDict:
        upload = self.upload()
        if not self.experiment.masked:
            return RecordDict({"prototypes": upload.to_arrays()})
        self.keep(upload)
        record = share(upload, self.weight(upload), self.experiment, self.learner.num_classes)
        return RecordDict({"prototypes": record})

    def upload(self) -> Upload:
        """Return what the client says of its classes, after training."""
        privacy = self.experiment.privacy
        return local_upload(self.learner.features(), self.learner.num_classes, privacy)

    def weight(self, upload: Upload) -> Tensor:
        """Return the client's weight in the global mean, ``[held, 1]`` or ``[held, channels]``."""
        return holder_weight(upload, self.experiment)

    def keep(self, upload: Upload) -> None:
        """Keep what the server will not have of an upload; by default nobody asks for it."""

    def predict(self, out: Forward) -> Mapping[str, Tensor]:
        predictions = {
            "head": out.logits.argmax(-1),
            "prototype": self.rule()(out.embedding),
        }
        return first(self.config.inference, predictions)

    def rule(self) -> NearestPrototype:
        """Return what tells a class by the prototypes at hand."""
        return NearestPrototype(self.table.values, self.table.known)


def holder_weight(upload: Upload, experiment: Experiment) -> Tensor:
    """Return a holder's weight in FedProto's mean, ``[held, 1]``."""
    by_count = experiment.strategy.fedproto.global_weight == "count"
    return (upload.support if by_count else torch.ones_like(upload.support))[:, None]


class FedProto(PrototypeStrategy):
    """Server half: the mean over the clients that hold a class, by support or plain."""

    def fuse(self) -> PrototypeTable:
        weights = {p: holder_weight(upload, self.experiment) for p, upload in self.uploads.items()}
        return weighted_prototypes(
            self.uploads,
            weights,
            self.facts.num_classes,
            self.experiment.model.embedding_channels,
            self.experiment.strategy.robust,
        )


def _check(content: RecordDict, arrays: ArrayRecord, experiment: Experiment, facts: Facts) -> None:
    if experiment.masked:
        check_masked(content, experiment, facts)
    else:
        check_upload(content, experiment, facts, fisher=False)


def _server(experiment: Experiment, facts: Facts) -> MessageStrategy:
    return (MaskedPrototypes if experiment.masked else FedProto)(experiment, facts)


FEDPROTO = Algorithm(FedProtoExchange, _server, ("prototypes",), _check)
