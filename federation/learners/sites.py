"""From an experiment to the series of one site per client."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch_geometric.data import Data

from federation.data_tables import DataTable, OwnData, SeriesData
from federation.experiment import Experiment
from federation.learners.graphs import communities
from federation.learners.kept import Kept
from federation.partition import PartitionReport, natural_report, partition_report
from federation.tables import Forecast, Partition
from graphcl.datasets import (
    SpatioTemporalSeries,
    chronological_split,
    confounded_series,
    load_series,
    locate,
    only_file,
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
        whole: The same of one series that was divided; None of several.
        nodes: Which sensors of it each client holds; none of several.
        report: Sizes and edges cut; sensors have no classes.
    """

    series: list[SpatioTemporalSeries]
    names: list[str]
    splits: list[dict[str, SpatioTemporalSeries]]
    whole: dict[str, SpatioTemporalSeries] | None
    nodes: list[torch.Tensor]
    report: PartitionReport
    unit: ClassVar[str] = "sensors"
    links: ClassVar[str] = "edges"


def sites(experiment: Experiment) -> Sites:
    """Load the series of an experiment, divide and split them; the last few results are kept.

    Raises:
        ConfigError: If the keys do not fit the data, or a client has fewer steps than a forecast
            needs.
        DataError: If the data break the rules of their format.
        PartitionError: If the sensors cannot be divided as asked.
    """
    found = kept_sites(experiment.data, experiment.partition, experiment.run.seed)
    _check_windows(found, experiment.forecast)
    return found


def splits_of(experiment: Experiment, client: int) -> dict[str, SpatioTemporalSeries]:
    """Return the steps that one client trains, validates and tests on.

    Under ``pooled`` they are those of the one series that was divided.

    Raises:
        ConfigError, DataError, PartitionError: See :func:`sites`.
    """
    data, clients = experiment.data, sites(experiment)
    if experiment.strategy.name == "pooled" and clients.whole:
        return clients.whole
    return clients.splits[0 if isinstance(data, OwnData) else client]


@Kept
def kept_sites(data: DataTable, partition: Partition, seed: int) -> Sites:
    """Load and divide; :func:`sites` checks the rest of the experiment, too."""
    series = _load(data, partition.clients, seed)
    whole, nodes = None, []
    if partition.scheme == "louvain":
        whole, graph = _split(series[0], data.series), _graph(series[0])
        parts = communities(graph.edge_index, series[0].num_nodes, data, partition, seed)
        nodes = [torch.from_numpy(part) for part in parts]
        series = [
            replace(series[0].at(part), name=f"{series[0].name}-{client}")
            for client, part in enumerate(nodes)
        ]
        report = partition_report(graph, parts)
    else:
        report = natural_report([_graph(one) for one in series])
    splits = [_split(one, data.series) for one in series]
    return Sites(series, [one.name for one in series], splits, whole, nodes, report)


def _load(data: DataTable, num_clients: int, seed: int) -> list[SpatioTemporalSeries]:
    if isinstance(data, OwnData):
        file = only_file(locate(data.own, data.root or None), ".toml", ".npz")
        return [load_series(file, root=file.parent)]  # where the file lies that it describes
    if data.source == "confounded":
        clients = confounded_series(
            num_clients,
            data.series.nodes,
            data.series.steps,
            seed=derive_seed(seed, "confounded"),
        )
        return [client.series for client in clients]
    return [load_series(path, root=data.root or None) for path in data.paths]


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
