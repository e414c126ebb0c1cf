"""Prototypes under masks: what a client puts into the sum, and the server half that reads it.

The global mean of FedProto, and of FedDBP where a client's importance is its own, needs two sums
over clients per class and channel: of weight times prototype, and of weights. All clients send both
for all classes, zeros where they hold none, so that a record does not tell which. The masks are
those of :mod:`federation.privacy.masking`.
"""

import math
from collections.abc import Iterable

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from federation.experiment import Experiment
from federation.privacy.masking import decode, encode
from federation.records import check_dtype, check_shape, to_arrays, to_tensors
from federation.strategies.base import Facts, MessageStrategy
from federation.strategies.prototypes import PrototypeTable, Upload, table_of, weighted_sums
from graphcl.errors import FederationError, ReplyError


def share(upload: Upload, weight: Tensor, experiment: Experiment, num_classes: int) -> ArrayRecord:
    """Return what a client adds to the sums, not yet masked.

    Args:
        upload: What it would send without masks.
        weight: ``[held, 1]``, or ``[held, channels]``.
        experiment: The whole experiment.
        num_classes: Number of classes over all clients.

    Returns:
        ``words [num_classes, channels + weight.size(1)]``: weighted prototypes, then weights.

    Raises:
        ReplyError: If a number does not fit the fixed point.
    """
    channels = experiment.model.embedding_channels
    total, mass = weighted_sums({0: upload}, {0: weight}, num_classes, channels)
    sums = torch.cat((total, mass[:, : weight.size(1)]), 1)
    words = encode(sums.numpy(), experiment.partition.clients)
    return to_arrays({"words": torch.from_numpy(words.view(np.int64))})


def check_masked(content: RecordDict, experiment: Experiment, facts: Facts) -> None:
    """Check the form of a masked record, which is all of it that can be seen.

    Raises:
        ReplyError: If it is missing or has another shape or type of number.
    """
    record = content.array_records.get("prototypes")
    if record is None or set(record) != {"words"}:
        raise ReplyError(f"expected the array 'words', got {sorted(record or {})}")
    words = to_tensors(record)["words"]
    check_dtype("words", words, torch.int64)
    check_shape("words", words, (facts.num_classes, sum(_widths(experiment))))


def _widths(experiment: Experiment) -> tuple[int, int]:
    """Return how many columns prototypes and weights have."""
    strategy, channels = experiment.strategy, experiment.model.embedding_channels
    by_channel = strategy.name == "feddbp" and strategy.feddbp.global_weight == "fisher"
    return channels, channels if by_channel else 1


class MaskedPrototypes(MessageStrategy):
    """Server half of FedProto and FedDBP under ``privacy.masking``; holds the global table alone.

    Wire down: ``prototypes``, the global table, and for training ``masking``, all public keys.
    """

    def __init__(self, experiment: Experiment, facts: Facts):
        super().__init__(facts)
        self.experiment = experiment
        self.table = PrototypeTable.empty(facts.num_classes, experiment.model.embedding_channels)

    def content_for(self, partition: int) -> dict[str, ArrayRecord]:
        return {"prototypes": self.table.to_arrays()}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Address every node of the grid, and tell each the public keys of all."""
        keys = ConfigRecord({str(p): key for p, key in sorted(self.facts.public_keys.items())})
        messages = list(super().configure_train(server_round, arrays, config, grid))
        for message in messages:
            message.content["masking"] = keys
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Sum the records of all clients, whose masks cancel.

        Raises:
            FederationError: If the sums of weights cannot be those of all clients' samples.
        """
        channels, weights = _widths(self.experiment)
        total = np.zeros((self.facts.num_classes, channels + weights), dtype=np.uint64)
        samples = 0
        for reply in replies:
            words = reply.content.array_records["prototypes"]["words"].numpy()
            total += words.view(np.uint64)
            samples += int(reply.content.metric_records["metrics"]["num-examples"])  # type: ignore[arg-type]
        sums = torch.from_numpy(decode(total))
        mass = sums[:, channels:]
        self._check(server_round, mass, samples)
        self.table = table_of(sums[:, :channels], mass)
        return self.table.to_arrays(), None

    def _check(self, server_round: int, mass: Tensor, samples: int) -> None:
        """Refuse what unlike masks would leave: words from anywhere in 64 bits."""
        strategy, noise = self.experiment.strategy, self.experiment.privacy.noise_multiplier
        floor = strategy.feddbp.fisher_floor if strategy.name == "feddbp" else 0.0
        most = (
            math.inf if noise else samples * (1 + floor) + 1e-6 * self.experiment.partition.clients
        )
        if float(mass.min()) < 0 or float(mass.max()) > most:
            raise FederationError(
                f"round {server_round}: the sums of the weights of classes reach from "
                f"{float(mass.min()):g} to {float(mass.max()):g}, but {samples} samples were told; "
                "the masks did not cancel, or a client sent something else than its prototypes, "
                "and under privacy.masking nobody can tell which client: look at their logs and "
                "resume"
            )

    def state(self) -> RecordDict:
        """Return the global table."""
        return RecordDict({"table": self.table.to_arrays()})

    def load_state(self, state: RecordDict) -> None:
        """Inverse of :meth:`state`."""
        num_classes, channels = self.table.values.shape
        self.table = PrototypeTable.from_arrays(
            state.array_records["table"], num_classes, channels, torch.device("cpu")
        )
