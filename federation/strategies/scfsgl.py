"""SC-FSGL: one codebook of prototypes for all, and weights that only those take whom they help.

Liu et al., AAAI 2026.  From the paper: the codebook is what crosses the wire and is averaged, and
all else stays.  Completed by us: the server clusters the rows of all codebooks, weighted by how
often clients match them (``fuse = "mean"`` is the paper's average of rows); and the clients' other
weights, but for those that belong to their sensors, cross as well, of whose mean each client takes
the share with the least error on its validation windows, so that alike clients learn as one and
unlike ones are not mixed up (``share = "codebook"`` is the paper's wire).  Where parts are
separated by transfer, those behind the shared part are that mean at every client instead, so that
it holds what one rule tells everywhere.  This is not a reproduction.
"""

from collections.abc import Iterable
from functools import lru_cache

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from torch import Tensor, nn

from federation.experiment import Experiment
from federation.learners import ForecastLearner
from federation.learners.base import is_named
from federation.records import check_dtype, check_finite, check_shape, to_arrays, to_tensors
from federation.strategies.base import Algorithm, Exchange, Facts, MessageStrategy
from federation.strategies.weights import shared_weights
from graphcl.errors import ReplyError

_CODEBOOK = "network.codebook.prototypes"
_OWN = ["network.own"]  # what is behind the own part, where that is apart from the shared one
SHARES = (0.0, 0.1, 0.25, 0.5, 1.0)  # of the mean that a client may take
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


@lru_cache(maxsize=4)
def _first(experiment: Experiment) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the codebook and the other weights that the server begins with."""
    model = ForecastLearner.build(experiment, "server", {}, experiment.forecast.num_prototypes)
    return model.state_dict()[_CODEBOOK], _weights_of(model, experiment)


def _weights_of(model: nn.Module, experiment: Experiment) -> dict[str, Tensor]:
    """Return what crosses the wire beside the codebook."""
    if experiment.strategy.scfsgl.share == "codebook":
        return {}
    weights = shared_weights(model, experiment)
    return {name: value for name, value in weights.items() if name != _CODEBOOK}


class SCFSGLExchange(Exchange):
    """Client half.

    Wire down: ``codebook`` with ``prototypes [phi, D]``; ``weights``, their mean over clients by
    name, none where the codebook alone is shared.
    Wire up: ``codebook`` with ``prototypes [phi, D]`` and ``support [phi]``, how often each was the
    best match; ``weights`` likewise.
    """

    mixes = True
    learner: ForecastLearner

    def receive(self, content: RecordDict) -> None:
        model, mean = self.learner.model, to_tensors(content.array_records["weights"])
        weights = {**model.state_dict(), **to_tensors(content.array_records["codebook"])}
        weights[_CODEBOOK] = weights.pop("prototypes")
        self.learner.load_weights(weights)
        apart = model.network.own is not None
        chosen = {n: value for n, value in mean.items() if not apart or is_named(n, _OWN)}
        own = {name: weights[name].clone() for name in chosen}

        def take(share: float) -> None:
            mixed = {name: torch.lerp(own[name], value, share) for name, value in chosen.items()}
            self.learner.load_weights({**weights, **mean, **mixed})

        def error(share: float) -> float:
            take(share)
            return self.learner.val_error()

        if mean:
            take(min(SHARES, key=error))
            model.network.hold_shared()

    def reply(self) -> RecordDict:
        model = self.learner.model
        prototypes = model.state_dict()[_CODEBOOK]
        codebook = {"prototypes": prototypes, "support": self.learner.support()}
        weights = _weights_of(model, self.experiment)
        return RecordDict({"codebook": to_arrays(codebook), "weights": to_arrays(weights)})


class SCFSGLStrategy(MessageStrategy):
    """Server half: clusters the codebooks and averages the other weights."""

    def __init__(self, experiment: Experiment, facts: Facts):
        super().__init__(facts)
        self.experiment = experiment
        self._hold(*_first(experiment))

    def _hold(self, prototypes: Tensor, weights: dict[str, Tensor]) -> None:
        """Take over what goes down to every client, packed once."""
        self.prototypes, self.weights = prototypes, weights
        codebook = {"prototypes": prototypes}
        self._content = {"codebook": to_arrays(codebook), "weights": to_arrays(weights)}

    def content_for(self, partition: int) -> dict[str, ArrayRecord]:
        return self._content

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        contents = [reply.content for reply in replies]
        if not contents:
            return ArrayRecord(), None
        codebooks = [to_tensors(content.array_records["codebook"]) for content in contents]
        rows = torch.stack([codebook["prototypes"] for codebook in codebooks])
        support = torch.stack([codebook["support"] for codebook in codebooks])
        if self.experiment.strategy.scfsgl.fuse == "mean":
            prototypes = rows.double().mean(0).to(rows.dtype)
        else:
            prototypes = cluster_prototypes(self.prototypes, rows.flatten(0, 1), support.flatten())
        weights = [to_tensors(content.array_records["weights"]) for content in contents]
        mean = {
            name: torch.stack([client[name] for client in weights]).double().mean(0).float()
            for name in self.weights
        }
        self._hold(prototypes, mean)
        return ArrayRecord(), None

    def state(self) -> RecordDict:
        return RecordDict(dict(self._content))

    def load_state(self, state: RecordDict) -> None:
        codebook, weights = (to_tensors(state.array_records[n]) for n in ("codebook", "weights"))
        self._hold(codebook["prototypes"], weights)


def _check(content: RecordDict, arrays: ArrayRecord, experiment: Experiment, facts: Facts) -> None:
    codebook = to_tensors(content.array_records["codebook"])
    if set(codebook) != {"prototypes", "support"}:
        raise ReplyError(f"expected prototypes and support, got {sorted(codebook)}")
    rows = experiment.forecast.num_prototypes
    check_shape("prototypes", codebook["prototypes"], (rows, experiment.model.embedding_channels))
    check_dtype("prototypes", codebook["prototypes"], torch.float32)
    check_finite(codebook)
    check_shape("support", codebook["support"], (rows,))
    check_dtype("support", codebook["support"], torch.int64)
    if bool((codebook["support"] < 0).any()):
        raise ReplyError("array 'support' has a negative count")
    ours = _first(experiment)[1]
    weights = to_tensors(content.array_records["weights"])
    if set(weights) != set(ours):
        raise ReplyError(
            f"expected the weights {sorted(ours)}, got {sorted(weights)}: the client holds "
            "another model"
        )
    for name, tensor in weights.items():
        check_dtype(name, tensor, ours[name].dtype)
        check_shape(name, tensor, tuple(ours[name].shape))
    check_finite(weights)


SCFSGL = Algorithm(SCFSGLExchange, SCFSGLStrategy, ("codebook", "weights"), _check)
