"""From an experiment to the interactions of one platform, or of some users, per client."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from federation.data_tables import DataTable, OwnData
from federation.experiment import Experiment
from federation.learners.kept import Kept
from federation.learners.union import ranges, side_by_side
from federation.partition import PartitionReport, catalogues, deal, events_report
from federation.tables import PROTOTYPE_STRATEGIES, Partition
from graphcl.datasets import (
    Interactions,
    InteractionSplit,
    ItemGroups,
    load_interactions,
    locate,
    only_file,
    simulate_interactions,
)
from graphcl.errors import ConfigError, DataError
from graphcl.training import derive_seed


@dataclass(frozen=True, eq=False)
class Platform:
    """What one client learns from and is asked about; users and items have the same numbers in all.

    Attributes:
        name: What it is called in a message.
        train: What it learns from: its own training events, under pooled training those of all.
        own: Its users' events to train on, to validate on and to test on.
        label: Class of each item from 0, -1 of one without, int64 ``[num_items + 1]``.
        groups: Its items by how often they are taken in training.
        offered: The items of its catalogue where there are others, bool ``[num_items + 1]``.
    """

    name: str
    train: Interactions
    own: InteractionSplit
    label: Tensor
    groups: ItemGroups
    offered: Tensor | None


@dataclass(frozen=True, eq=False)
class Platforms:
    """The platforms of all clients.

    Attributes:
        platforms: Each client's, with users of its own; items of its own too where each client has
            a catalogue of its own.
        one_catalogue: Whether an item has the same number everywhere.
        class_names: The categories of all items, in the order of their names.
        report: Users, events and their categories; what is cut are events that no client holds.
    """

    platforms: list[Platform]
    one_catalogue: bool
    class_names: tuple[str, ...]
    report: PartitionReport
    unit: ClassVar[str] = "users"
    links: ClassVar[str] = "events"

    @property
    def num_classes(self) -> int:
        """Number of categories; 0 where items have none."""
        return len(self.class_names)


def platforms(experiment: Experiment) -> Platforms:
    """Load the interactions of an experiment and divide them; the last few results are kept.

    Raises:
        ConfigError: If the keys do not fit the data, or a client has nothing to learn from.
        DataError: If the data break the rules of their format, or have no categories where
            prototypes of categories are compared.
    """
    found = kept_platforms(experiment.data, experiment.partition, experiment.run.seed)
    if experiment.planned & set(PROTOTYPE_STRATEGIES):
        _check_classes(found, experiment.data)
    return found


def platform_of(experiment: Experiment, client: int) -> Platform:
    """Return what one client learns from: its own events, or under ``pooled`` those of all.

    Pooled platforms put their users side by side, and where each has a catalogue of its own their
    items too.  Each is asked about its own users, and ranks what it offers itself.
    """
    if isinstance(experiment.data, OwnData):
        return platforms(experiment).platforms[0]
    if experiment.strategy.name == "pooled":
        return _pooled(experiment.data, experiment.partition, experiment.run.seed)[client]
    return platforms(experiment).platforms[client]


@Kept
def kept_platforms(data: DataTable, partition: Partition, seed: int) -> Platforms:
    """Load and divide; :func:`platforms` checks the rest of the experiment, too."""
    loaded = _load(data, seed)
    names = _categories(loaded, data)
    labels = [_labels(one, names) for one in loaded]
    if partition.scheme == "natural":
        found, lost = [_whole(*pair) for pair in zip(loaded, labels, strict=True)], 0
    else:
        found, lost = _dealt(loaded[0], labels[0], data, partition, seed)
    _check_learnable(found, partition)
    report = events_report(
        [one.train.num_users for one in found],
        np.stack([_class_counts(one, len(names)) for one in found]),
        [sum(len(part) for part in one.own) for one in found],
        lost,
    )
    return Platforms(found, partition.scheme == "users", tuple(names), report)


def _categories(loaded: Sequence[Interactions], data: DataTable) -> list[str]:
    """Return the names of the classes, which are the same on all clients."""
    found = sorted({name for one in loaded for name in one.category_name or ()} - {""})
    known = data.interactions.category_names
    if not known:
        # What the others have cannot be known on a node that has its own data alone.
        return [] if isinstance(data, OwnData) else found
    unknown = [name for name in found if name not in known]
    if unknown:
        raise DataError(
            f"{', '.join(data.paths)}: an item has the category '{unknown[0]}', which "
            "data.interactions.categories does not list"
        )
    return known


@lru_cache(maxsize=1)
def _pooled(data: DataTable, partition: Partition, seed: int) -> list[Platform]:
    clients = kept_platforms(data, partition, seed)
    found, one = clients.platforms, clients.one_catalogue
    splits = [platform.own for platform in found]
    union = side_by_side(splits, [platform.label for platform in found], clients.class_names, one)
    pooled = []
    for platform, users, items in zip(found, union.users, union.items, strict=True):
        label, offered = union.label, platform.offered
        groups = platform.groups
        if not one:
            offered = torch.zeros_like(label, dtype=torch.bool)
            offered[items] = True
            groups = ItemGroups(*(_placed(group, items, len(label)) for group in groups))
        own = InteractionSplit(*(_of_users(part, users) for part in union.split))
        pooled.append(Platform(platform.name, union.split.train, own, label, groups, offered))
    return pooled


def _placed(mask: Tensor, items: slice, length: int) -> Tensor:
    placed = torch.zeros(length, dtype=torch.bool)
    placed[items] = mask[1:]
    return placed


def _load(data: DataTable, seed: int) -> list[Interactions]:
    table = data.interactions
    if isinstance(data, OwnData):
        found = [_load_own(data)]
    elif data.source == "shoppers":
        seed = derive_seed(seed, "shoppers")
        found = [simulate_interactions(table.users, table.items, seed=seed).interactions]
    else:
        found = [
            _load_files(path, items, data)
            for path, items in zip_longest(data.paths, table.item_paths)
        ]
    return [one.k_core(table.min_events) for one in found] if table.min_events > 1 else found


def _load_own(data: OwnData) -> Interactions:
    """Load the interactions of a node that has nobody else's."""
    place = locate(data.own, data.root or None)
    tables = sorted(place.glob("interactions.csv*"))
    if not tables:
        return _load_files(only_file(place, ".npz"), None, data)
    items = sorted(place.glob("items.csv*"))
    return _load_files(tables[0], items[0] if items else None, data)


def _load_files(path: str | Path, items: str | Path | None, data: DataTable) -> Interactions:
    table = data.interactions
    return load_interactions(
        path,
        items=items,
        names=table.column_names,
        category_separator=table.category_separator or None,
        duplicates=table.duplicates,
        root=data.root or None,
    )


def _labels(interactions: Interactions, class_names: Sequence[str]) -> Tensor:
    if interactions.category is None or interactions.category_name is None:
        return torch.full((interactions.num_items + 1,), -1)
    classes = {name: number for number, name in enumerate(class_names)}
    number = torch.tensor([classes.get(name, -1) for name in interactions.category_name])
    return number[interactions.category]


def _whole(interactions: Interactions, label: Tensor) -> Platform:
    """Return a platform with its own numbers."""
    split = interactions.leave_one_out()
    groups = split.train.item_groups()
    return Platform(interactions.name, split.train, split, label, groups, None)


def _dealt(
    interactions: Interactions, label: Tensor, data: DataTable, partition: Partition, seed: int
) -> tuple[list[Platform], int]:
    """Return the users of one platform over the clients, and the number of events left out."""
    clients = partition.clients
    if clients > interactions.num_users:
        raise ConfigError(
            f"partition.clients: {clients} clients need a user each, but {interactions.name} has "
            f"{interactions.num_users}; lower it, to {interactions.num_users} for one user each"
        )
    parts = deal(interactions.num_users, clients, seed=derive_seed(seed, "partition"))
    interactions = _in_order(interactions, torch.from_numpy(np.concatenate(parts)))
    sizes, count, share = list(map(len, parts)), len(interactions), data.interactions.catalogue
    offered: Sequence[Tensor | None] = [None] * clients
    if share < 1:
        seed = derive_seed(seed, "catalogue")
        drawn = torch.from_numpy(catalogues(interactions.num_items, clients, share, seed=seed))
        owner = torch.arange(clients).repeat_interleave(torch.tensor(sizes))
        interactions = interactions.select(drawn[owner[interactions.user], interactions.item])
        offered = list(drawn)
    split = interactions.leave_one_out()
    groups = split.train.item_groups()
    found = []
    for client, users in enumerate(ranges(sizes)):
        name = f"{interactions.name}-{client}"
        own = InteractionSplit(*(_own(_of_users(part, users), users, name) for part in split))
        found.append(Platform(name, own.train, own, label, groups, offered[client]))
    return found, count - len(interactions)


def _in_order(interactions: Interactions, users: Tensor) -> Interactions:
    """Return the same with its users in another order, so that each client's are neighbours."""
    number = torch.empty_like(users)
    number[users] = torch.arange(len(users))
    names = interactions.user_name
    moved = replace(
        interactions,
        user=number[interactions.user],
        user_name=None if names is None else tuple(names[user] for user in users.tolist()),
    )
    return moved.select(moved.user.argsort(stable=True))


def _of_users(part: Interactions, users: slice) -> Interactions:
    """Return the events of some users without a copy; all keep their numbers."""
    rows = slice(int(part.indptr[users.start]), int(part.indptr[users.stop]))
    return replace(
        part,
        user=part.user[rows],
        item=part.item[rows],
        time=None if part.time is None else part.time[rows],
        session=None if part.session is None else part.session[rows],
    )


def _own(part: Interactions, users: slice, name: str) -> Interactions:
    """Return events of some users with these as the only ones, numbered from 0."""
    names = part.user_name
    return replace(
        part,
        name=name,
        user=part.user - users.start,
        num_users=users.stop - users.start,
        user_name=None if names is None else names[users],
    )


def _class_counts(platform: Platform, num_classes: int) -> np.ndarray:
    label = torch.cat([platform.label[part.item] for part in platform.own])
    return label[label >= 0].bincount(minlength=num_classes).numpy()


def _check_learnable(found: Sequence[Platform], partition: Partition) -> None:
    for one in found:
        user = one.own.train.user
        if not bool((user.diff() == 0).any()):
            remedy = "leave the platform out of data.source"
            if partition.scheme == "users":
                remedy = (
                    "lower partition.clients, so that it has more users, or raise "
                    "data.interactions.min_events or data.interactions.catalogue"
                )
            raise ConfigError(
                f"partition.clients: client {one.name} has no user with two events to learn from; "
                f"{remedy}"
            )


def _check_classes(clients: Platforms, data: DataTable) -> None:
    """Refuse clients without a sample of any class."""
    if isinstance(data, OwnData) and not clients.class_names:
        raise ConfigError(
            "data.interactions.categories: this node has its own data alone and cannot know the "
            "categories of the others; list those of all clients"
        )
    remedy = (
        "fedproto and feddbp compare prototypes of categories: give every item one "
        "(data.interactions.names, data.interactions.item_tables), or choose another strategy"
    )
    if not clients.class_names:
        raise DataError(f"{data.source}: the items have no categories, but {remedy}")
    for one in clients.platforms:
        train = one.own.train
        followed = train.item[1:][train.user.diff() == 0]
        if not bool((one.label[followed] >= 0).any()):
            raise DataError(f"{one.name}: nothing to learn from has a category, but {remedy}")
