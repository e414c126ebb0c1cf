"""From an experiment to one graph per client, with its splits."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch_geometric.data import Data

from federation.experiment import DataTable, Experiment, Partition
from federation.partition import (
    PartitionReport,
    dirichlet,
    louvain,
    natural,
    natural_report,
    partition_report,
    subgraph,
)
from graphcl.datasets import (
    contextual_sbm,
    count_classes,
    digits_graph,
    load,
    load_folder,
    split_nodes,
)
from graphcl.errors import ConfigError, PartitionError
from graphcl.training import derive_seed


@dataclass(frozen=True)
class ClientGraphs:
    """The graphs of all clients.

    Attributes:
        graphs: One graph per client, with ``train_mask``, ``val_mask`` and ``test_mask``.
        num_classes: Number of classes over all clients.
        report: Sizes, label skew, cut edges and homophily.
    """

    graphs: list[Data]
    num_classes: int
    report: PartitionReport


def client_graphs(experiment: Experiment) -> ClientGraphs:
    """Load, divide and split the data of an experiment; the last few results are kept.

    Raises:
        ConfigError: If the keys do not fit the data.
        DataError: If the data break the rules of their format.
        PartitionError: If the nodes cannot be divided as asked.
    """
    return _client_graphs(experiment.data, experiment.partition, experiment.run.seed)


@lru_cache(maxsize=2)
def _client_graphs(data: DataTable, partition: Partition, seed: int) -> ClientGraphs:
    graphs, report = (
        _natural(data, partition)
        if partition.scheme == "natural"
        else _divide(data, partition, seed)
    )
    num_classes = count_classes(graphs)
    if data.num_classes not in (0, num_classes):
        raise ConfigError(
            f"data.num_classes: {data.num_classes} was promised, but {data.source} holds "
            f"{num_classes} classes; correct the key or leave it at 0"
        )
    for index, graph in enumerate(graphs):
        masks = split_nodes(
            graph.y, data.train_ratio, data.val_ratio, seed=derive_seed(seed, "split", index)
        )
        graph.train_mask, graph.val_mask, graph.test_mask = masks
    return ClientGraphs(graphs, num_classes, report)


def _natural(data: DataTable, partition: Partition) -> tuple[list[Data], PartitionReport]:
    if data.source in ("digits", "csbm") or data.source.endswith(".npz") or ":" in data.source:
        raise ConfigError(
            f"partition.scheme: 'natural' takes one graph per client from a folder of .npz files, "
            f"but data.source = '{data.source}' is one graph; name a folder, or choose dirichlet "
            "or louvain"
        )
    graphs = natural(load_folder(data.source, root=data.root or None), partition.clients)
    return graphs, natural_report(graphs)


def _divide(data: DataTable, partition: Partition, seed: int) -> tuple[list[Data], PartitionReport]:
    graph = _whole_graph(data, seed)
    num_nodes = int(graph.num_nodes)
    if partition.clients * partition.min_nodes > num_nodes:
        raise ConfigError(
            f"partition.clients: {partition.clients} clients of at least {partition.min_nodes} "
            f"nodes need more than the {num_nodes} nodes of {data.source}; lower partition.clients "
            "or partition.min_nodes"
        )
    seed = derive_seed(seed, "partition")
    if partition.scheme == "dirichlet":
        parts = dirichlet(
            graph.y,
            partition.clients,
            alpha=partition.alpha,
            min_nodes=partition.min_nodes,
            seed=seed,
        )
    else:
        parts = louvain(graph.edge_index, num_nodes, partition.clients, seed=seed)
        _check_sizes(parts, partition.min_nodes)
    return [subgraph(graph, part) for part in parts], partition_report(graph, parts)


def _whole_graph(data: DataTable, seed: int) -> Data:
    if data.source == "digits":
        return digits_graph(data.digits.neighbors)
    if data.source == "csbm":
        return contextual_sbm(
            data.csbm.nodes,
            data.csbm.classes,
            data.csbm.features,
            avg_degree=data.csbm.degree,
            homophily=data.csbm.homophily,
            signal=data.csbm.signal,
            seed=derive_seed(seed, "csbm"),
        )
    return load(data.source, root=data.root or None)


def _check_sizes(parts: list[np.ndarray], min_nodes: int) -> None:
    smallest = min(range(len(parts)), key=lambda index: len(parts[index]))
    if len(parts[smallest]) < min_nodes:
        raise PartitionError(
            f"partition.min_nodes: client {smallest} would hold {len(parts[smallest])} nodes, "
            f"fewer than {min_nodes}; lower partition.clients or partition.min_nodes"
        )
