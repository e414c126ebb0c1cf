"""Class prototypes: what they are, how they cross the wire, and the server half they share.

A table of prototypes has a row per class and says of every class whether anybody holds it. A
class that nobody holds yet has no entry on the wire, is never a target and never a negative.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from federation.experiment import Experiment
from federation.fault_tables import RobustTable
from federation.learners import Forward, Owners
from federation.privacy.release import clip_rows, noised_means
from federation.privacy.table import Privacy
from federation.records import check_dtype, check_finite, check_shape, to_arrays, to_tensors
from federation.strategies.base import Facts, MessageStrategy
from federation.strategies.robust import fuse_class
from graphcl.errors import ReplyError


@dataclass(frozen=True)
class PrototypeTable:
    """One prototype per class.

    Attributes:
        values: ``[num_classes, embedding_channels]``; rows of unknown classes are zero.
        known: ``[num_classes]``, bool; False for a class that nobody holds yet.
    """

    values: Tensor
    known: Tensor

    @classmethod
    def empty(cls, num_classes: int, channels: int) -> "PrototypeTable":
        """Return a table that knows no class."""
        known = torch.zeros(num_classes, dtype=torch.bool)
        return cls(torch.zeros(num_classes, channels), known)

    def to_arrays(self) -> ArrayRecord:
        """Pack the known rows: ``values [known, channels]`` and their ``classes [known]``."""
        classes = self.known.nonzero().flatten()
        return to_arrays({"values": self.values[classes], "classes": classes})

    @classmethod
    def from_arrays(
        cls, arrays: ArrayRecord, num_classes: int, channels: int, device: torch.device
    ) -> "PrototypeTable":
        """Inverse of :meth:`to_arrays`, on a device."""
        tensors = to_tensors(arrays)
        table = cls.empty(num_classes, channels)
        table.values[tensors["classes"]] = tensors["values"]
        table.known[tensors["classes"]] = True
        return table.to(device)

    def to(self, device: torch.device) -> "PrototypeTable":
        """Return the table on a device."""
        return PrototypeTable(self.values.to(device), self.known.to(device))


def side_by_side(
    tables: Sequence[PrototypeTable], y: Tensor, owners: Owners
) -> tuple[PrototypeTable, Tensor]:
    """Return the tables of several clients as one, and of each sample the row of its class."""
    if len(tables) == 1:
        return tables[0], y
    values, known = (torch.cat([getattr(t, n) for t in tables]) for n in ("values", "known"))
    return PrototypeTable(values, known), y + owners.client * len(tables[0].known)


@dataclass(frozen=True)
class Upload:
    """What one client says of the classes it holds.

    Attributes:
        classes: ``[held]``, class ids, ascending.
        values: ``[held, embedding_channels]``, mean embedding of each class.
        support: ``[held]``, number of samples behind each mean.
        fisher: ``[held, embedding_channels]`` in [0, 1], importance of each channel, or bool:
            whether it matters, which is a bit on the wire; ``[0]`` where none is sent.
    """

    classes: Tensor
    values: Tensor
    support: Tensor
    fisher: Tensor

    def to_arrays(self) -> ArrayRecord:
        """Pack for the wire; a ``fisher`` of shape ``[0]`` is left out."""
        tensors = {"classes": self.classes, "values": self.values, "support": self.support}
        fisher = self.fisher
        if fisher.dtype == torch.bool:
            fisher = torch.from_numpy(np.packbits(fisher.numpy(), axis=1))
        return to_arrays(tensors | ({"fisher": fisher} if fisher.dim() == 2 else {}))

    @classmethod
    def from_arrays(cls, arrays: ArrayRecord) -> "Upload":
        """Inverse of :meth:`to_arrays`."""
        tensors = to_tensors(arrays)
        fisher = tensors.get("fisher", torch.empty(0))
        if fisher.dtype == torch.uint8:
            channels = tensors["values"].size(1)
            bits = np.unpackbits(fisher.numpy(), axis=1, count=channels)
            fisher = torch.from_numpy(bits).bool()
        return cls(tensors["classes"], tensors["values"], tensors["support"], fisher)


def class_means(values: Tensor, y: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Average rows by class.

    Returns:
        The classes present ``[held]``, their means ``[held, channels]`` and counts ``[held]``.
    """
    support = torch.bincount(y, minlength=num_classes)
    classes = support.nonzero().flatten()
    sums = values.new_zeros(num_classes, values.size(1)).index_add(0, y, values)
    return classes, sums[classes] / support[classes, None], support[classes]


def local_upload(
    out: Forward, num_classes: int, privacy: Privacy, fisher: Tensor | None = None
) -> Upload:
    """Return what may leave of a client's prototypes, and of the per-class mean of ``fisher``.

    Args:
        out: The training samples.
        num_classes: Number of classes over all clients.
        privacy: What is withheld, cut and noised; see :mod:`federation.privacy.release`.
        fisher: ``[num_samples, channels]``; never where there is noise, since it would have none.
    """
    if privacy.noise_multiplier:
        released = noised_means(out.embedding, out.y, num_classes, privacy)
        return Upload(*released, torch.empty(0))
    embedding = clip_rows(out.embedding, privacy.clip)
    classes, means, support = class_means(embedding, out.y, num_classes)
    enough = support >= privacy.min_support
    importance = torch.empty(0)
    if fisher is not None:
        importance = class_means(fisher, out.y, num_classes)[1][enough]
    return Upload(
        classes[enough].cpu(), means[enough].cpu(), support[enough].cpu(), importance.cpu()
    )


def check_upload(
    content: RecordDict,
    experiment: Experiment,
    facts: Facts,
    *,
    fisher: bool,
    packed: bool = False,
) -> None:
    """Check a client's prototypes.

    Args:
        content: The reply.
        experiment: The whole experiment.
        facts: What the nodes told before the first round.
        fisher: Whether the importance of the channels must be there.
        packed: Whether it is a bit for each channel, eight in a byte.

    Raises:
        ReplyError: If an array is missing, has a wrong shape, is not finite, names a class out of
            range or twice, or claims a class without support.
    """
    record = content.array_records.get("prototypes")
    names = ("classes", "support", "values", "fisher")[: 4 if fisher else 3]
    if record is None or set(record) != set(names):
        raise ReplyError(f"expected the arrays {sorted(names)}, got {sorted(record or {})}")
    tensors = to_tensors(record)
    classes, held = tensors["classes"], tensors["classes"].numel()
    width = experiment.model.embedding_channels
    for name in names:
        shape: tuple[int, ...] = (held, width)
        dtype = torch.float32
        if name in ("classes", "support"):
            dtype, shape = torch.int64, (held,)
        elif name == "fisher" and packed:
            dtype, shape = torch.uint8, (held, -(-width // 8))
        check_dtype(name, tensors[name], dtype)
        check_shape(name, tensors[name], shape)
    check_finite(tensors)
    if held and not (int(classes.min()) >= 0 and int(classes.max()) < facts.num_classes):
        raise ReplyError(f"a class id lies outside 0..{facts.num_classes - 1}")
    if len(classes.unique()) != held:
        raise ReplyError("a class is named twice")
    if held and int(tensors["support"].min()) < 1:
        raise ReplyError("a class is claimed without a sample behind it")
    claimed = int(tensors["support"].sum())
    told = int(content.metric_records["metrics"]["num-examples"])  # type: ignore[arg-type]
    privacy = experiment.privacy
    withheld = privacy.min_support > 1 and claimed < told
    if claimed != told and not withheld and not privacy.noise_multiplier:
        raise ReplyError(f"the classes claim {claimed} samples, the metrics {told}")
    scaled = fisher and held and not packed
    if scaled and not (tensors["fisher"].min() >= 0 and tensors["fisher"].max() <= 1):
        raise ReplyError("array 'fisher' leaves [0, 1]")


def weighted_prototypes(
    uploads: Mapping[int, Upload],
    weights: Mapping[int, Tensor],
    num_classes: int,
    channels: int,
    robust: RobustTable | None = None,
) -> PrototypeTable:
    """Average prototypes over the clients that hold each class, or join them by another rule.

    Sums run over partitions in ascending order and in float64, so that the result does not depend
    on the order in which replies came.

    Args:
        uploads: By partition.
        weights: By partition, positive, ``[held, 1]`` or per channel ``[held, channels]``.
        num_classes: Number of classes over all clients.
        channels: Width of the embedding.
        robust: The rule; without one it is the weighted mean.
    """
    if robust is not None and robust.rule != "mean":
        return _robust_prototypes(uploads, weights, num_classes, channels, robust)
    return table_of(*weighted_sums(uploads, weights, num_classes, channels))


def weighted_sums(
    uploads: Mapping[int, Upload],
    weights: Mapping[int, Tensor],
    num_classes: int,
    channels: int,
) -> tuple[Tensor, Tensor]:
    """Return the sums of weight times prototype and of weights; arguments as those of the mean.

    Shapes:
        - **output**: ``[num_classes, channels]`` each, float64
    """
    total = torch.zeros(num_classes, channels, dtype=torch.float64)
    mass = torch.zeros_like(total)
    for partition in sorted(uploads):
        upload, weight = uploads[partition], weights[partition].double()
        total[upload.classes] += weight * upload.values.double()
        mass[upload.classes] += weight
    return total, mass


def table_of(total: Tensor, mass: Tensor) -> PrototypeTable:
    """Return the means that sums stand for; a class is known where all its weights are positive.

    Shapes:
        - **total**: ``[num_classes, channels]``, **mass**: the same, or ``[num_classes, 1]``
    """
    known = (mass > 0).all(1)
    values = torch.where(known[:, None], total / mass.clamp(min=1e-300), 0.0)
    return PrototypeTable(values.float(), known)


def _robust_prototypes(
    uploads: Mapping[int, Upload],
    weights: Mapping[int, Tensor],
    num_classes: int,
    channels: int,
    robust: RobustTable,
) -> PrototypeTable:
    table = PrototypeTable.empty(num_classes, channels)
    holders: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for partition in sorted(uploads):
        upload, weight = uploads[partition], weights[partition].double()
        rows = zip(upload.values, weight.expand(-1, channels), strict=True)
        for label, row in zip(upload.classes.tolist(), rows, strict=True):
            holders.setdefault(label, []).append(row)
    for label, held in holders.items():
        values, weight = (torch.stack(column) for column in zip(*held, strict=True))
        table.values[label] = fuse_class(values, weight, robust).float()
        table.known[label] = True
    return table


class PrototypeStrategy(MessageStrategy):
    """Server half of the prototype algorithms: keeps every client's last upload.

    An absent client's last upload stays in the aggregate.
    """

    def __init__(self, experiment: Experiment, facts: Facts):
        super().__init__(facts)
        self.experiment = experiment
        self.uploads: dict[int, Upload] = {}
        self._aggregate()

    @abstractmethod
    def fuse(self) -> PrototypeTable:
        """Return the global table of all uploads."""

    def learn(self, server_round: int, received: Mapping[int, Upload]) -> None:
        """Train what the server itself holds on a round's uploads; by default it holds nothing."""

    def _aggregate(self) -> None:
        self.table = self.fuse()

    def table_for(self, partition: int) -> PrototypeTable:
        """Return the table that one client gets: the global one, unless overridden."""
        return self.table

    def content_for(self, partition: int) -> dict[str, ArrayRecord]:
        """Return the client's table."""
        return {"prototypes": self.table_for(partition).to_arrays()}

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take in the uploads of a round and fuse them with those of absent clients."""
        received = {}
        for reply in replies:
            if not reply.has_error():
                partition = self.facts.nodes[reply.metadata.src_node_id]
                record = reply.content.array_records["prototypes"]
                received[partition] = Upload.from_arrays(record)
        self.uploads |= received
        self.learn(server_round, received)
        self._aggregate()
        return self.table.to_arrays(), None

    def state(self) -> RecordDict:
        """Return the last upload of every client."""
        return RecordDict(
            {
                str(partition): self.uploads[partition].to_arrays()
                for partition in sorted(self.uploads)
            }
        )

    def load_state(self, state: RecordDict) -> None:
        """Inverse of :meth:`state`."""
        self.uploads = {
            int(partition): Upload.from_arrays(record)
            for partition, record in state.array_records.items()
        }
        self._aggregate()
