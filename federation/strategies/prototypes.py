"""Class prototypes: what they are, how they cross the wire, and the server half they share.

A table of prototypes has a row per class and says of every class whether anybody holds it. A
class that nobody holds yet has no entry on the wire, is never a target and never a negative.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from federation.experiment import Experiment
from federation.learners import Forward
from federation.privacy.release import clip_rows, noised_means
from federation.privacy.table import Privacy
from federation.records import check_dtype, check_finite, check_shape, to_arrays, to_tensors
from federation.strategies.base import Facts, MessageStrategy
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
        return cls(table.values.to(device), table.known.to(device))


@dataclass(frozen=True)
class Upload:
    """What one client says of the classes it holds.

    Attributes:
        classes: ``[held]``, class ids, ascending.
        values: ``[held, embedding_channels]``, mean embedding of each class.
        support: ``[held]``, number of samples behind each mean.
        fisher: ``[held, embedding_channels]`` in [0, 1], importance of each channel; ``[0]`` where
            the algorithm sends none.
    """

    classes: Tensor
    values: Tensor
    support: Tensor
    fisher: Tensor

    def to_arrays(self) -> ArrayRecord:
        """Pack for the wire; a ``fisher`` of shape ``[0]`` is left out."""
        tensors = {"classes": self.classes, "values": self.values, "support": self.support}
        return to_arrays(tensors | ({"fisher": self.fisher} if self.fisher.dim() == 2 else {}))

    @classmethod
    def from_arrays(cls, arrays: ArrayRecord) -> "Upload":
        """Inverse of :meth:`to_arrays`."""
        tensors = to_tensors(arrays)
        fisher = tensors.get("fisher", torch.empty(0))
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
    content: RecordDict, experiment: Experiment, facts: Facts, *, fisher: bool
) -> None:
    """Check a client's prototypes.

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
        whole = name in ("classes", "support")
        check_dtype(name, tensors[name], torch.int64 if whole else torch.float32)
        check_shape(name, tensors[name], (held,) if whole else (held, width))
        check_finite(name, tensors[name])
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
    if fisher and held and not (tensors["fisher"].min() >= 0 and tensors["fisher"].max() <= 1):
        raise ReplyError("array 'fisher' leaves [0, 1]")


def weighted_prototypes(
    uploads: Mapping[int, Upload], weights: Mapping[int, Tensor], num_classes: int, channels: int
) -> PrototypeTable:
    """Average prototypes over the clients that hold each class.

    Sums run over partitions in ascending order and in float64, so that the result does not depend
    on the order in which replies came.

    Args:
        uploads: By partition.
        weights: By partition, positive, ``[held, 1]`` or per channel ``[held, channels]``.
        num_classes: Number of classes over all clients.
        channels: Width of the embedding.
    """
    total = torch.zeros(num_classes, channels, dtype=torch.float64)
    mass = torch.zeros_like(total)
    for partition in sorted(uploads):
        upload, weight = uploads[partition], weights[partition].double()
        total[upload.classes] += weight * upload.values.double()
        mass[upload.classes] += weight
    known = (mass > 0).all(1)
    values = torch.where(known[:, None], total / mass.clamp(min=1e-300), 0.0)
    return PrototypeTable(values.float(), known)


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
        for reply in replies:
            if not reply.has_error():
                partition = self.facts.nodes[reply.metadata.src_node_id]
                record = reply.content.array_records["prototypes"]
                self.uploads[partition] = Upload.from_arrays(record)
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
