"""From an experiment to the images of every client."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from federation.data_tables import DataTable, OwnData
from federation.experiment import Experiment
from federation.learners.graphs import by_classes
from federation.learners.kept import Kept
from federation.partition import PartitionReport, partition_report
from federation.tables import Partition
from graphcl.datasets import (
    ImageSet,
    join_images,
    load_images,
    locate,
    only_file,
    split_nodes,
)
from graphcl.errors import ConfigError
from graphcl.training import derive_seed


@dataclass(frozen=True)
class Album:
    """What one client learns from.

    Attributes:
        images: All images of this process, in one place for all its clients.
        rows: The client's own among them, int64 ``[n]``.
        masks: Those to train on, to validate on and to test on, bool ``[n]`` each.
    """

    images: ImageSet
    rows: Tensor
    masks: dict[str, Tensor]


@dataclass(frozen=True)
class Albums:
    """The images of all clients.

    Attributes:
        whole: All images, in one place for all clients.
        albums: What each client holds of them.
        report: Sizes and label skew; images have no edges.
    """

    whole: ImageSet
    albums: list[Album]
    report: PartitionReport
    unit: ClassVar[str] = "images"
    links: ClassVar[str] = "edges"

    @property
    def num_classes(self) -> int:
        """Number of classes over all clients."""
        return self.whole.num_classes


def albums(experiment: Experiment) -> Albums:
    """Load, divide and split the images of an experiment; the last few results are kept.

    Raises:
        ConfigError: If the keys do not fit the data.
        DataError: If the data break the rules of their format, or several sources do not agree.
        PartitionError: If the images cannot be divided as asked.
    """
    return kept_albums(experiment.data, experiment.partition, experiment.run.seed)


def album_of(experiment: Experiment, client: int) -> Album:
    """Return what one client learns from: its own images, or under ``pooled`` those of all.

    All clients' training images train then; the client's own validate and test.

    Raises:
        ConfigError, DataError, PartitionError: See :func:`albums`.
    """
    if isinstance(experiment.data, OwnData):
        return _own_album(experiment.data, experiment.run.seed, client)
    found = albums(experiment)
    own = found.albums[client]
    if experiment.strategy.name != "pooled":
        return own
    train = torch.cat([album.rows[album.masks["train"]] for album in found.albums])
    held = own.rows[~own.masks["train"]]
    masks = {
        split: torch.cat([torch.full((len(train),), split == "train"), mask[~own.masks["train"]]])
        for split, mask in own.masks.items()
    }
    return Album(found.whole, torch.cat([train, held]), masks)


@lru_cache(maxsize=2)
def _own_album(data: OwnData, seed: int, client: int) -> Album:
    """Return the images of a node that has nobody else's."""
    table = data.images
    unknown = [name for name in ("classes", "size") if not getattr(table, name)]
    if unknown:
        raise ConfigError(
            f"data.images.{unknown[0]}: this node has its own data alone and cannot know the "
            f"{unknown[0]} of the others' images; set it"
        )
    images = _load(data, str(own_source(data.own, data.root)))
    return _split(images, torch.arange(len(images)), data, seed, client)


def own_source(place: str, root: str = "") -> Path:
    """Return the .npz file in a node's folder, or the folder of a data set as it unpacks.

    Raises:
        DataError: It is not found, or holds several such files.
    """
    found = locate(place, root or None)
    return only_file(found, ".npz") if any(found.glob("*.npz")) else found


@Kept
def kept_albums(data: DataTable, partition: Partition, seed: int) -> Albums:
    """Load and divide, see :func:`albums`."""
    sources = [_load(data, path) for path in data.paths]
    whole = join_images(sources, data.source)
    if data.num_classes not in (0, whole.num_classes):
        raise ConfigError(
            f"data.num_classes: {data.num_classes} was promised, but {data.source} holds "
            f"{whole.num_classes} classes; correct the key or leave it at 0"
        )
    parts = _divide(sources, partition, seed)
    report = partition_report(
        Data(y=whole.y, edge_index=torch.empty(2, 0, dtype=torch.long)), parts
    )
    found = [
        _split(whole, torch.from_numpy(part), data, seed, client)
        for client, part in enumerate(parts)
    ]
    return Albums(whole, found, report)


def _load(data: DataTable, path: str) -> ImageSet:
    table = data.images
    return load_images(
        path, size=table.size or None, classes=table.class_names, root=data.root or None
    )


def _split(images: ImageSet, rows: Tensor, data: DataTable, seed: int, client: int) -> Album:
    masks = split_nodes(
        images.y[rows],
        data.train_ratio,
        data.val_ratio,
        seed=derive_seed(seed, "split", client),
    )
    return Album(images, rows, dict(zip(("train", "val", "test"), masks, strict=True)))


def _divide(sources: list[ImageSet], partition: Partition, seed: int) -> list[np.ndarray]:
    """Return the images of every client: clients in a row share a source, as evenly as can be.

    As the data come, each client has a source of its own.
    """
    if partition.scheme == "natural":
        ends = np.cumsum([len(source) for source in sources])
        return np.split(np.arange(ends[-1]), ends[:-1])
    parts, first = [], 0
    turns = np.array_split(np.arange(partition.clients), len(sources))
    for number, (source, clients) in enumerate(zip(sources, turns, strict=True)):
        if len(clients) * partition.min_nodes > len(source):
            raise ConfigError(
                f"partition.clients: {len(clients)} clients of at least {partition.min_nodes} "
                f"images need more than the {len(source)} images of {source.name}; lower "
                "partition.clients or partition.min_nodes"
            )
        own = derive_seed(seed, "partition", number)
        parts += [first + part for part in by_classes(source.y, len(clients), partition, own)]
        first += len(source)
    return parts
