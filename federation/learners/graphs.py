"""From an experiment to one graph per client, with its splits."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, overload

import numpy as np
import torch
from torch_geometric.data import Batch, Data

from federation.data_tables import DataTable, OwnData
from federation.experiment import Experiment
from federation.learners.kept import Kept
from federation.partition import (
    PartitionReport,
    Silos,
    dirichlet,
    louvain,
    natural,
    natural_report,
    partition_report,
    pathological,
    practical,
)
from federation.tables import Partition
from graphcl.datasets import (
    contextual_sbm,
    count_classes,
    digits_graph,
    load,
    load_silo,
    load_silos,
    split_nodes,
)
from graphcl.datasets.protocols import stored_splits
from graphcl.errors import ConfigError, DataError, PartitionError
from graphcl.training import derive_seed


@dataclass(frozen=True)
class ClientGraphs:
    """The graphs of all clients.

    Attributes:
        graphs: One graph per client, with ``train_mask``, ``val_mask`` and ``test_mask``; each is
            made anew at every look.
        num_classes: Number of classes over all clients.
        report: Sizes, label skew, cut edges and homophily.
        nodes: The nodes of the union of all graphs that each client holds.
        whole: The graph that was divided, which has the cut edges; None where they came divided.
    """

    graphs: Sequence[Data]
    num_classes: int
    report: PartitionReport
    nodes: list[np.ndarray]
    whole: Data | None
    unit: ClassVar[str] = "nodes"
    links: ClassVar[str] = "edges"


def client_graphs(experiment: Experiment) -> ClientGraphs:
    """Load, divide and split the data of an experiment; the last few results are kept.

    Raises:
        ConfigError: If the keys do not fit the data.
        DataError: If the data break the rules of their format.
        PartitionError: If the nodes cannot be divided as asked.
    """
    return kept_graphs(experiment.data, experiment.partition, experiment.run.seed)


def num_classes_of(experiment: Experiment) -> int:
    """Return the number of classes over all clients.

    Raises:
        ConfigError: If it is not to be had: a node that has its own data alone must be told.
    """
    data = experiment.data
    if not isinstance(data, OwnData):
        return client_graphs(experiment).num_classes
    if not data.num_classes:
        raise ConfigError(
            "data.num_classes: this node has its own data alone and cannot know the classes of the "
            "others; set it to the number of classes over all clients"
        )
    return data.num_classes


def graph_of(experiment: Experiment, client: int) -> Data:
    """Return the graph that one client learns on: its own, or under ``pooled`` that of all.

    The pooled graph is the whole one, cut edges included, or the disjoint union of graphs that
    came divided. All clients' training nodes train; the client's own validate and test.
    """
    if isinstance(experiment.data, OwnData):
        return _own_graph(experiment.data, num_classes_of(experiment), experiment.run.seed, client)
    clients = client_graphs(experiment)
    if experiment.strategy.name != "pooled":
        return clients.graphs[client]
    union = _union(experiment.data, experiment.partition, experiment.run.seed)
    graph = Data(x=union.x, edge_index=union.edge_index, y=union.y, train_mask=union.train_mask)
    nodes = torch.from_numpy(clients.nodes[client])
    for split in ("val_mask", "test_mask"):
        graph[split] = torch.zeros_like(union.train_mask)
        graph[split][nodes] = clients.graphs[client][split]
    return graph


@lru_cache(maxsize=2)
def _own_graph(data: OwnData, num_classes: int, seed: int, client: int) -> Data:
    """Return the graph of a node that has nobody else's."""
    graph = load_silo(data.own, root=data.root or None)
    if int(graph.y.max()) >= num_classes:
        node = int((graph.y >= num_classes).nonzero()[0])
        raise DataError(
            f"{data.own}: y[{node}] is {int(graph.y[node])}, but with data.num_classes = "
            f"{num_classes} the classes are 0 to {num_classes - 1}"
        )
    return _split(graph, data, seed, client)


def _split(graph: Data, data: DataTable, seed: int, client: int) -> Data:
    if data.split == "stored":
        masks = _stored(graph, data, seed, client)
    else:
        masks = split_nodes(
            graph.y, data.train_ratio, data.val_ratio, seed=derive_seed(seed, "split", client)
        )
    graph.train_mask, graph.val_mask, graph.test_mask = masks
    return graph


def _stored(graph: Data, data: DataTable, seed: int, client: int) -> tuple[torch.Tensor, ...]:
    """Return a client's part of the masks that the graph came with."""
    try:
        splits = stored_splits(graph)
    except DataError as error:
        raise ConfigError(f"data.split: 'stored', but in {data.source} {error}") from None
    masks = tuple(mask[:, seed % mask.size(1)] for mask in splits)
    for name, mask in zip(("train", "validate", "test"), masks, strict=True):
        if not mask.any():
            raise PartitionError(
                f"data.split: of the {len(mask)} nodes of client {client} the stored masks have "
                f"none to {name} on; divide the graph over fewer clients, or set it to 'random'"
            )
    return masks


@lru_cache(maxsize=1)
def _union(data: DataTable, partition: Partition, seed: int) -> Data:
    """Return the graph of all clients' nodes, with their training nodes."""
    clients = kept_graphs(data, partition, seed)
    union = clients.whole
    if union is None:
        union = Batch.from_data_list(list(clients.graphs))
    train = torch.zeros(len(union.y), dtype=torch.bool)
    for nodes, graph in zip(clients.nodes, clients.graphs, strict=True):
        train[torch.from_numpy(nodes)] = graph.train_mask
    return Data(x=union.x, edge_index=union.edge_index, y=union.y, train_mask=train)


@Kept
def kept_graphs(data: DataTable, partition: Partition, seed: int) -> ClientGraphs:
    """Load and divide, see :func:`client_graphs`."""
    graphs: Sequence[Data]
    if partition.scheme == "natural":
        graphs, whole = _natural(data, partition), None
        report = natural_report(graphs)
        ends = np.cumsum([len(graph.y) for graph in graphs])
        nodes = np.split(np.arange(ends[-1]), ends[:-1])
    else:
        whole, nodes = _divide(data, partition, seed)
        graphs = Silos(whole, nodes)
        report = partition_report(whole, nodes)
    num_classes = count_classes(graphs if whole is None else [whole])
    if data.num_classes not in (0, num_classes):
        raise ConfigError(
            f"data.num_classes: {data.num_classes} was promised, but {data.source} holds "
            f"{num_classes} classes; correct the key or leave it at 0"
        )
    return ClientGraphs(_Split(graphs, data, seed), num_classes, report, nodes, whole)


class _Split(Sequence[Data]):
    """Graphs with the masks that their client's own stream draws, at every look the same."""

    def __init__(self, graphs: Sequence[Data], data: DataTable, seed: int):
        self._graphs, self._data, self._seed = graphs, data, seed

    def __len__(self) -> int:
        return len(self._graphs)

    @overload
    def __getitem__(self, client: int) -> Data: ...
    @overload
    def __getitem__(self, client: slice) -> list[Data]: ...
    def __getitem__(self, client: int | slice) -> Data | list[Data]:
        if isinstance(client, slice):
            return [self[one] for one in range(*client.indices(len(self)))]
        return _split(self._graphs[client].clone(), self._data, self._seed, client % len(self))


def _natural(data: DataTable, partition: Partition) -> list[Data]:
    if data.source in ("digits", "csbm") or ":" in data.source:
        raise ConfigError(
            "partition.scheme: 'natural' takes one graph per client from a folder of .npz files, "
            "one file of several graphs or several files, but data.source = "
            f"'{data.source}' is one graph; name a folder or such files, or choose dirichlet or "
            "louvain"
        )
    source = data.source if len(data.paths) == 1 else data.paths
    return natural(load_silos(source, root=data.root or None), partition.clients)


def _divide(data: DataTable, partition: Partition, seed: int) -> tuple[Data, list[np.ndarray]]:
    """Return the whole graph, and the nodes of every client."""
    graph = _whole_graph(data, seed)
    num_nodes = int(graph.num_nodes)
    if partition.scheme == "louvain":
        return graph, communities(graph.edge_index, num_nodes, data, partition, seed)
    _check_number(num_nodes, data, partition)
    return graph, by_classes(graph.y, partition.clients, partition, derive_seed(seed, "partition"))


def by_classes(y: torch.Tensor, clients: int, partition: Partition, seed: int) -> list[np.ndarray]:
    """Return the nodes, or other samples, of every client by one of the label skews.

    Args:
        y: Class ids, int64 [N].
        clients: How many clients there are to divide them over.
        partition: The scheme and its parameters.
        seed: Same seed, same parts.

    Raises:
        PartitionError: If they cannot be divided as asked.
    """
    shared: dict[str, Any] = {"min_nodes": partition.min_nodes, "seed": seed}
    if partition.scheme == "pathological":
        return pathological(y, clients, classes=partition.classes, **shared)
    divide = practical if partition.scheme == "practical" else dirichlet
    return divide(y, clients, alpha=partition.alpha, **shared)


def communities(
    edge_index: torch.Tensor, num_nodes: int, data: DataTable, partition: Partition, seed: int
) -> list[np.ndarray]:
    """Return the nodes of every client by the communities of one graph.

    Args:
        edge_index: Edges [2, E], in one or both directions, each any number of times.
        num_nodes: N.
        data: Where the graph comes from.
        partition: How many clients there are, and what they must hold at least.
        seed: The experiment's seed.

    Raises:
        ConfigError: If there are too few nodes for the clients.
        PartitionError: If a client holds too few.
    """
    _check_number(num_nodes, data, partition)
    seed = derive_seed(seed, "partition")
    parts = louvain(edge_index, num_nodes, partition.clients, seed=seed)
    _check_sizes(parts, partition.min_nodes)
    return parts


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


def _check_number(num_nodes: int, data: DataTable, partition: Partition) -> None:
    if partition.clients * partition.min_nodes > num_nodes:
        raise ConfigError(
            f"partition.clients: {partition.clients} clients of at least {partition.min_nodes} "
            f"nodes need more than the {num_nodes} nodes of {data.source}; lower partition.clients "
            "or partition.min_nodes"
        )


def _check_sizes(parts: list[np.ndarray], min_nodes: int) -> None:
    smallest = min(range(len(parts)), key=lambda index: len(parts[index]))
    if len(parts[smallest]) < min_nodes:
        raise PartitionError(
            f"partition.min_nodes: client {smallest} would hold {len(parts[smallest])} nodes, "
            f"fewer than {min_nodes}; lower partition.clients or partition.min_nodes"
        )
