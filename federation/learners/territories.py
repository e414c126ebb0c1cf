"""From an experiment to the outage events of one territory per client."""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch_geometric.data import Data

from federation.data_tables import DataTable
from federation.experiment import Experiment
from federation.partition import PartitionReport, partition_report
from graphcl.datasets import OutageEvents, load_outage_events, simulate_storms
from graphcl.errors import ConfigError, PartitionError
from graphcl.outages import NUM_SEVERITIES, severity
from graphcl.training import derive_seed


@dataclass(frozen=True)
class Territories:
    """The territories of all clients.

    Attributes:
        whole: Events at the locations of all territories.
        locations: Which locations each client holds.
        names: The district that is each client's territory.
        splits: Events to train on, to validate on and to test on.
        newcomer_events: Events that the newcomer trains on; those of the others without one.
        num_classes: Classes of severity.
        report: Sizes, skew of the worst severity ever seen, and borders cut.
    """

    whole: OutageEvents
    locations: list[torch.Tensor]
    names: list[str]
    splits: dict[str, list[int]]
    newcomer_events: list[int]
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
    return _territories(experiment.data, experiment.partition.clients, experiment.run.seed)


@lru_cache(maxsize=2)
def _territories(data: DataTable, clients: int, seed: int) -> Territories:
    events = _load(data, seed)
    if events.outages is None:
        raise ConfigError(f"data.source: the events of {data.source} have no counts to learn from")
    districts = events.districts()
    if len(districts) != clients:
        raise PartitionError(
            f"partition.clients is {clients}, but {data.source} has {len(districts)} districts, "
            f"one per client: set it to {len(districts)}"
        )
    splits = _split(data, events)
    table = data.outages
    if table.newcomer and table.newcomer not in districts:
        raise ConfigError(
            f"data.outages.newcomer: no district is called '{table.newcomer}'; there are "
            f"{', '.join(districts)}"
        )
    few = _events_of(table.newcomer_events, events, "data.outages.newcomer_events")
    if not set(few) <= set(splits["train"]):
        raise ConfigError(
            "data.outages.newcomer_events: the newcomer trains on events that validate or test"
        )
    worst = severity(events.outages[splits["train"]], events.customers).amax(0)
    borders = Data(edge_index=events.borders, y=worst)
    locations = list(districts.values())
    report = partition_report(borders, [index.numpy() for index in locations])
    return Territories(
        events, locations, list(districts), splits, few or splits["train"], NUM_SEVERITIES, report
    )


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


def _split(data: DataTable, events: OutageEvents) -> dict[str, list[int]]:
    """Return the events by use: the last ones validate and test where none are named."""
    table = data.outages
    test = _events_of(table.test_events, events, "data.outages.test_events")
    val = _events_of(table.val_events, events, "data.outages.val_events")
    if set(test) & set(val):
        raise ConfigError("data.outages.val_events: an event validates and tests; name it once")
    left = [e for e in range(events.num_events) if e not in (*test, *val)]
    for used, share in ((test, 0.25), (val, 0.2)):
        if not used:
            count = max(1, round(share * len(left)))
            used += left[-count:]
            left = left[:-count]
    if len(left) < 2:
        raise ConfigError(
            f"data.outages: {len(left)} of {events.num_events} events are left to train on, 2 are "
            "needed; name fewer to validate and test on"
        )
    return {"train": left, "val": val, "test": test}


def _events_of(names: str, events: OutageEvents, key: str) -> list[int]:
    wanted = [name for name in names.split(", ") if name]
    unknown = [name for name in wanted if name not in events.event]
    if unknown:
        raise ConfigError(
            f"{key}: no event is called '{unknown[0]}'; there are {', '.join(events.event)}"
        )
    repeated = [name for name in wanted if wanted.count(name) > 1]
    if repeated:
        raise ConfigError(f"{key}: '{repeated[0]}' stands there twice; name each event once")
    return [events.event.index(name) for name in wanted]
