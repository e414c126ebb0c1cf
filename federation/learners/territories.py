"""From an experiment to the outage events of one territory per client."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from torch_geometric.data import Data

from federation.data_tables import DataTable, OutageData, OwnData
from federation.experiment import Experiment
from federation.learners.kept import Kept
from federation.partition import PartitionReport, natural_report, partition_report
from federation.tables import WEIGHT_STRATEGIES, Partition
from graphcl.datasets import (
    OutageEvents,
    load_outage_events,
    locate,
    only_file,
    simulate_storms,
)
from graphcl.errors import ConfigError, DataError, PartitionError
from graphcl.outages import NUM_SEVERITIES, severity
from graphcl.training import derive_seed


@dataclass(frozen=True)
class Territory:
    """What one client learns from.

    Attributes:
        name: The district, or what the file of several is called.
        events: At the locations that it learns from.
        splits: Events to train on, to validate on and to test on.
        asked: Which of the locations it is asked about.
    """

    name: str
    events: OutageEvents
    splits: dict[str, list[int]]
    asked: torch.Tensor | slice


@dataclass(frozen=True)
class Territories:
    """The territories of all clients.

    Attributes:
        territories: Each client's.
        whole: Events at the locations of all territories of one source that was divided; None where
            each came by itself.
        locations: Which locations of it each client holds; none where each came by itself.
        num_classes: Classes of severity.
        report: Sizes, skew of the worst severity ever seen, and borders cut.
    """

    territories: list[Territory]
    whole: OutageEvents | None
    locations: list[torch.Tensor]
    num_classes: int
    report: PartitionReport
    unit: ClassVar[str] = "locations"
    links: ClassVar[str] = "edges"


def territories(experiment: Experiment) -> Territories:
    """Load the events of an experiment and divide them by district; the last result is kept.

    Raises:
        ConfigError: If the keys do not fit the data.
        DataError: If the data break the rules of their format.
        PartitionError: If there are not as many districts as clients.
    """
    found = kept_territories(experiment.data, experiment.partition, experiment.run.seed)
    if experiment.planned & set(WEIGHT_STRATEGIES):
        _check_features(found)
    return found


def territory_of(experiment: Experiment, client: int) -> Territory:
    """Return what one client learns from: its own territory, or under ``pooled`` that of all.

    Each is asked about its own locations.

    Raises:
        ConfigError, DataError, PartitionError: See :func:`territories`.
    """
    if isinstance(experiment.data, OwnData):
        return _own_territory(experiment.data)
    clients = territories(experiment)
    own = clients.territories[client]
    if experiment.strategy.name != "pooled" or clients.whole is None:
        return own
    return replace(own, events=clients.whole, asked=clients.locations[client])


@Kept
def kept_territories(data: DataTable, partition: Partition, seed: int) -> Territories:
    """Load and divide; :func:`territories` checks the rest of the experiment, too."""
    if len(data.paths) > 1:
        return _several(data)
    events = _counted(_load(data, seed), data.source)
    districts = events.districts()
    if len(districts) != partition.clients:
        raise PartitionError(
            f"partition.clients is {partition.clients}, but {data.source} has {len(districts)} "
            f"districts, one per client: set it to {len(districts)}"
        )
    table = data.outages
    if table.newcomer and table.newcomer not in districts:
        raise ConfigError(
            f"data.outages.newcomer: no district is called '{table.newcomer}'; there are "
            f"{', '.join(districts)}"
        )
    splits = _split(table, events.event)
    found = [
        Territory(name, events.at(own), _splits_of(name, splits, table, events.event), slice(None))
        for name, own in districts.items()
    ]
    locations = list(districts.values())
    report = partition_report(_borders(events, splits), [own.numpy() for own in locations])
    return Territories(found, events, locations, NUM_SEVERITIES, report)


def _several(data: DataTable) -> Territories:
    """Return the territories of clients each of which has a source of its own."""
    found = [_loaded(data, path) for path in data.paths]
    names = [one.name for one in found]
    newcomer = data.outages.newcomer
    if newcomer and newcomer not in names:
        raise ConfigError(
            f"data.outages.newcomer: no client is called '{newcomer}'; there are {', '.join(names)}"
        )
    report = natural_report([_borders(one.events, one.splits) for one in found])
    return Territories(found, None, [], NUM_SEVERITIES, report)


def _check_features(clients: Territories) -> None:
    """Refuse clients whose weights cannot be averaged."""
    first, *others = clients.territories
    for one in others:
        for names in ("static_names", "weather_names"):
            ours, theirs = getattr(first.events, names), getattr(one.events, names)
            if ours != theirs:
                raise DataError(
                    f"{one.name}: {names} are {', '.join(theirs)}, but those of {first.name} are "
                    f"{', '.join(ours)}: where weights are averaged, a feature must have the same "
                    "place everywhere"
                )


@lru_cache(maxsize=2)
def _own_territory(data: OwnData) -> Territory:
    place = locate(data.own, data.root or None)
    tables = place.is_dir() and any(place.glob("locations.csv*"))
    return _loaded(data, str(place if tables else only_file(place, ".npz")))


def _loaded(data: DataTable, path: str) -> Territory:
    """Return the territory in a file or folder of its own, whatever districts it has."""
    table = data.outages
    events = _counted(
        load_outage_events(
            path, columns=table.column_names, units=table.feature_units, root=data.root or None
        ),
        path,
    )
    districts = list(events.districts())
    name = districts[0] if len(districts) == 1 else Path(path).stem
    for key in ("val_events", "test_events"):
        named = [event for event in getattr(table, key).split(", ") if event]
        here = [event for event in named if event in events.event]
        if named and not here:
            raise ConfigError(
                f"data.outages.{key}: {path} has none of {', '.join(named)}, only "
                f"{', '.join(events.event)}; name at least one that it has"
            )
        # A storm need not have come by everywhere.
        table = table.model_copy(update={key: ", ".join(here)})
    splits = _split(table, events.event)
    return Territory(name, events, _splits_of(name, splits, table, events.event), slice(None))


def _counted(events: OutageEvents, source: str) -> OutageEvents:
    if events.outages is None:
        raise ConfigError(f"data.source: the events of {source} have no counts to learn from")
    return events


def _borders(events: OutageEvents, splits: Mapping[str, list[int]]) -> Data:
    """Return the graph of neighbours, of the worst severity that each saw in training."""
    assert events.outages is not None  # noqa: S101 - _counted
    worst = severity(events.outages[splits["train"]], events.customers).amax(0)
    return Data(edge_index=events.borders, y=worst)


def _load(data: DataTable, seed: int) -> OutageEvents:
    table = data.outages
    if data.source == "storms":
        return simulate_storms(
            table.locations,
            table.events,
            num_districts=table.districts,
            seed=derive_seed(seed, "storms"),
        ).events
    return load_outage_events(
        data.source, columns=table.column_names, units=table.feature_units, root=data.root or None
    )


def _splits_of(
    name: str, splits: dict[str, list[int]], table: OutageData, events: Sequence[str]
) -> dict[str, list[int]]:
    """Return the events of one client by use: the newcomer has few to train on."""
    if name != table.newcomer:
        return splits
    few = _events_of(table.newcomer_events, events, "data.outages.newcomer_events")
    if not set(few) <= set(splits["train"]):
        raise ConfigError(
            "data.outages.newcomer_events: the newcomer trains on events that validate or test"
        )
    return {**splits, "train": few}


def _split(table: OutageData, events: Sequence[str]) -> dict[str, list[int]]:
    """Return the events by use: the last ones validate and test where none are named."""
    test = _events_of(table.test_events, events, "data.outages.test_events")
    val = _events_of(table.val_events, events, "data.outages.val_events")
    if set(test) & set(val):
        raise ConfigError("data.outages.val_events: an event validates and tests; name it once")
    left = [e for e in range(len(events)) if e not in (*test, *val)]
    for used, share in ((test, 0.25), (val, 0.2)):
        if not used:
            count = max(1, round(share * len(left)))
            used += left[-count:]
            left = left[:-count]
    if len(left) < 2:
        raise ConfigError(
            f"data.outages: {len(left)} of {len(events)} events are left to train on, 2 are "
            "needed; name fewer to validate and test on"
        )
    return {"train": left, "val": val, "test": test}


def _events_of(names: str, events: Sequence[str], key: str) -> list[int]:
    wanted = [name for name in names.split(", ") if name]
    unknown = [name for name in wanted if name not in events]
    if unknown:
        raise ConfigError(
            f"{key}: no event is called '{unknown[0]}'; there are {', '.join(events)}"
        )
    repeated = [name for name in wanted if wanted.count(name) > 1]
    if repeated:
        raise ConfigError(f"{key}: '{repeated[0]}' stands there twice; name each event once")
    return [events.index(name) for name in wanted]
