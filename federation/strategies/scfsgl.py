"""SC-FSGL: one codebook of prototypes for all, and encoders that start alike and part.

Liu et al., AAAI 2026.  From the paper: the codebook is what crosses the wire and is averaged, and
encoders stay.  Completed by us: the server clusters the rows of all codebooks, weighted by how
often clients match them (``fuse = "mean"`` is the paper's average of rows); and in the first
rounds the clients' encoders, but for what belongs to their sensors, are drawn to their mean, less
from round to round, so that all start from dynamics that hold everywhere and none is held to them
(``release = 0`` is the paper's wire).  This is not a reproduction.
"""

from collections.abc import Iterable
from functools import lru_cache

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from torch import Tensor, nn

from federation.experiment import Experiment
from federation.learners import ForecastLearner
from federation.records import check_dtype, check_finite, check_shape, to_arrays, to_tensors
from federation.strategies.base import Algorithm, Exchange, Facts, MessageStrategy
from federation.strategies.weights import shared_weights
from graphcl.errors import ReplyError

_CODEBOOK = "network.codebook.prototypes"
_ITERATIONS = 10  # of Lloyd's; the rows hardly move after five


def cluster_prototypes(start: Tensor, rows: Tensor, support: Tensor) -> Tensor:
    """Return the means of clusters of weighted rows, each the successor of a row to start from.

    Lloyd's algorithm from ``start``, in float64, so that equal input gives equal output; a tie
    goes to the first cluster, and a cluster without support keeps its row.

    Shapes:
        start: ``[phi, D]``; rows: ``[R, D]``; support: ``[R]``, not negative. Returns
        ``[phi, D]``.

    Source:
        Ours; the paper averages the rows by their place.
    """
    centres, rows, weight = start.double(), rows.double(), support.double()
    for _ in range(_ITERATIONS):
        nearest = torch.cdist(rows, centres, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
        total = torch.zeros_like(centres).index_add_(0, nearest, weight[:, None] * rows)
        mass = weight.new_zeros(len(centres)).index_add_(0, nearest, weight)
        centres = torch.where(mass[:, None] > 0, total / mass.clamp(min=1e-300)[:, None], centres)
    return centres.to(start.dtype)


def pull(experiment: Experiment, rounds: int) -> float:
    """Return the share of the mean encoder that a client takes after so many rounds.

    From 1 before the first round to 0 once ``strategy.scfsgl.release`` of them are over.
    """
    release = experiment.strategy.scfsgl.release * experiment.run.rounds
    return max(0.0, 1 - rounds / release) if release else 0.0


def encoder_of(model: nn.Module, experiment: Experiment) -> dict[str, Tensor]:
    """Return the weights of the encoder that do not belong to the sensors of one site."""
    shared = shared_weights(model, experiment)
    return {name: v for name, v in shared.items() if name.startswith("network.encoder.")}


@lru_cache(maxsize=4)
def _first(experiment: Experiment) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the codebook and the encoder that the server begins with."""
    model = ForecastLearner.build(experiment, "server", {}, experiment.forecast.num_prototypes)
    return model.state_dict()[_CODEBOOK], encoder_of(model, experiment)


class SCFSGLExchange(Exchange):
    """Client half.

    Wire down: ``codebook`` with ``prototypes [phi, D]`` and ``rounds []``, how many they went
    through; ``encoder``, the mean of the clients' weights by name, while it pulls.
    Wire up: ``codebook`` with ``prototypes [phi, D]`` and ``support [phi]``, how often each was the
    best match; ``encoder`` likewise.
    """

    learner: ForecastLearner

    def receive(self, content: RecordDict) -> None:
        model = self.learner.model
        codebook = to_tensors(content.array_records["codebook"])
        share = pull(self.experiment, int(codebook["rounds"]))
        weights = model.state_dict()
        weights[_CODEBOOK] = codebook["prototypes"]
        for name, mean in to_tensors(content.array_records["encoder"]).items():
            weights[name] = torch.lerp(weights[name], mean, share)
        self.learner.load_weights(weights)
        self.rounds = int(codebook["rounds"])

    def reply(self) -> RecordDict:
        model = self.learner.model
        prototypes = model.state_dict()[_CODEBOOK]
        codebook = {"prototypes": prototypes, "support": self.learner.support()}
        encoder = encoder_of(model, self.experiment)
        pulls = pull(self.experiment, self.rounds + 1) > 0
        return RecordDict(
            {"codebook": to_arrays(codebook), "encoder": to_arrays(encoder if pulls else {})}
        )


class SCFSGLStrategy(MessageStrategy):
    """Server half: clusters the codebooks and averages the encoders."""

    def __init__(self, experiment: Experiment, facts: Facts):
        super().__init__(facts)
        self.experiment = experiment
        self.prototypes, self.encoder = _first(experiment)
        self.rounds = 0

    def content_for(self, partition: int) -> dict[str, ArrayRecord]:
        codebook = {"prototypes": self.prototypes, "rounds": torch.tensor(self.rounds)}
        return {"codebook": to_arrays(codebook), "encoder": to_arrays(self.encoder)}

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        contents = [reply.content for reply in replies]
        codebooks = [to_tensors(content.array_records["codebook"]) for content in contents]
        rows = torch.stack([codebook["prototypes"] for codebook in codebooks])
        support = torch.stack([codebook["support"] for codebook in codebooks])
        if self.experiment.strategy.scfsgl.fuse == "mean":
            self.prototypes = rows.double().mean(0).to(rows.dtype)
        else:
            self.prototypes = cluster_prototypes(
                self.prototypes, rows.flatten(0, 1), support.flatten()
            )
        encoders = [to_tensors(content.array_records["encoder"]) for content in contents]
        encoders = [encoder for encoder in encoders if encoder]
        self.encoder = {
            name: torch.stack([encoder[name] for encoder in encoders]).double().mean(0).float()
            for name in (encoders[0] if encoders else {})
        }
        self.rounds = server_round
        return ArrayRecord(), None

    def state(self) -> RecordDict:
        return RecordDict(dict(self.content_for(0)))

    def load_state(self, state: RecordDict) -> None:
        codebook = to_tensors(state.array_records["codebook"])
        self.prototypes, self.rounds = codebook["prototypes"], int(codebook["rounds"])
        self.encoder = to_tensors(state.array_records["encoder"])


def _check(content: RecordDict, arrays: ArrayRecord, experiment: Experiment, facts: Facts) -> None:
    codebook = to_tensors(content.array_records["codebook"])
    if set(codebook) != {"prototypes", "support"}:
        raise ReplyError(f"expected prototypes and support, got {sorted(codebook)}")
    rows = experiment.forecast.num_prototypes
    check_shape("prototypes", codebook["prototypes"], (rows, experiment.model.embedding_channels))
    check_dtype("prototypes", codebook["prototypes"], torch.float32)
    check_finite("prototypes", codebook["prototypes"])
    check_shape("support", codebook["support"], (rows,))
    check_dtype("support", codebook["support"], torch.int64)
    if bool((codebook["support"] < 0).any()):
        raise ReplyError("array 'support' has a negative count")
    ours = _first(experiment)[1]
    encoder = to_tensors(content.array_records["encoder"])
    if encoder and set(encoder) != set(ours):
        raise ReplyError(
            f"expected the encoder's weights {sorted(ours)}, got {sorted(encoder)}: the client "
            "holds another model"
        )
    for name, tensor in encoder.items():
        check_dtype(name, tensor, ours[name].dtype)
        check_shape(name, tensor, tuple(ours[name].shape))
        check_finite(name, tensor)


SCFSGL = Algorithm(SCFSGLExchange, SCFSGLStrategy, ("codebook", "encoder"), _check)
