"""From an experiment to the series of one site per client."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import torch
from torch_geometric.data import Data

from federation.experiment import Experiment
from federation.learners.graphs import communities
from federation.partition import PartitionReport, natural_report, partition_report
from federation.tables import DataTable, Forecast, Partition, SeriesData
from graphcl.datasets import (
    SpatioTemporalSeries,
    chronological_split,
    confounded_series,
    load_series,
)
from graphcl.errors import ConfigError, DataError
from graphcl.training import derive_seed


@dataclass(frozen=True)
class Sites:
    """The series of all clients.

    Attributes:
        series: All steps of each client.
        names: What each client is called: its series or, of one that was divided, its region.
        splits: Each client's steps to train on, to validate on and to test on.
        report: Sizes and edges cut; sensors have no classes.
    """

    series: list[SpatioTemporalSeries]
    names: list[str]
    splits: list[dict[str, SpatioTemporalSeries]]
    report: PartitionReport
    unit: ClassVar[str] = "sensors"


def sites(experiment: Experiment) -> Sites:
    """Load the series of an experiment, divide and split them; the last few results are kept.

    Raises:
        ConfigError: If the keys do not fit the data, or a client has fewer steps than a forecast
            needs.
        DataError: If the data break the rules of their format.
        PartitionError: If the sensors cannot be divided as asked.
    """
    found = _sites(experiment.data, experiment.partition, experiment.run.seed)
    _check_windows(found, experiment.forecast)
    return found


@lru_cache(maxsize=2)
def _sites(data: DataTable, partition: Partition, seed: int) -> Sites:
    series = _load(data, partition.clients, seed)
    if partition.scheme == "louvain":
        series, report = _regions(series[0], data, partition, seed)
    else:
        report = natural_report([_graph(one) for one in series])
    splits = [_split(one, data.series) for one in series]
    return Sites(series, [one.name for one in series], splits, report)


def _load(data: DataTable, num_clients: int, seed: int) -> list[SpatioTemporalSeries]:
    if data.source == "confounded":
        clients = confounded_series(
            num_clients,
            data.series.nodes,
            data.series.steps,
            seed=derive_seed(seed, "confounded"),
        )
        return [client.series for client in clients]
    return [load_series(path, root=data.root or None) for path in data.series_paths]


def _regions(
    whole: SpatioTemporalSeries, data: DataTable, partition: Partition, seed: int
) -> tuple[list[SpatioTemporalSeries], PartitionReport]:
    """Cut the graph of a series into communities; where it has one per step, their union."""
    graph = _graph(whole)
    parts = communities(graph.edge_index, whole.num_nodes, data, partition, seed)
    regions = [
        replace(whole.at(torch.from_numpy(nodes)), name=f"{whole.name}-{client}")
        for client, nodes in enumerate(parts)
    ]
    return regions, partition_report(graph, parts)


def _graph(series: SpatioTemporalSeries) -> Data:
    return Data(edge_index=series.edge_index, num_nodes=series.num_nodes)


def _split(series: SpatioTemporalSeries, table: SeriesData) -> dict[str, SpatioTemporalSeries]:
    try:
        train, val, test = chronological_split(series, table.train_ratio, table.val_ratio)
    except DataError as error:
        raise ConfigError(f"data.series.train_ratio, data.series.val_ratio: {error}") from error
    return {"train": train, "val": val, "test": test}


def _check_windows(found: Sites, forecast: Forecast) -> None:
    needed = forecast.history + forecast.horizon
    for splits in found.splits:
        for split, part in splits.items():
            if part.num_steps < needed:
                raise ConfigError(
                    f"forecast.history, forecast.horizon: a window of {forecast.history} + "
                    f"{forecast.horizon} steps is longer than the {part.num_steps} {split} steps "
                    f"of {part.name}; shorten it, or change data.series.train_ratio or "
                    "data.series.val_ratio"
                )
