"""Clients that train, validate and test by the masks that their graph came with."""

import pytest
import torch

from federation.deploy.split import split
from federation.experiment import Experiment, load_experiment
from federation.learners.graphs import client_graphs, graph_of
from graphcl.datasets import contextual_sbm, save_npz
from graphcl.errors import ConfigError, PartitionError

NODES = 120


def stored(path, *splits, seed=0):
    """Write a graph in whose splits train, validation and test nodes are every third one."""
    graph = contextual_sbm(NODES, 3, 5, seed=seed)
    if splits:
        masks = {"train": 0, "val": 1, "test": 2}
        for name, rest in masks.items():
            columns = [torch.arange(NODES) % 3 == (rest + shift) % 3 for shift in splits]
            graph[f"{name}_mask"] = torch.stack(columns, 1) if len(splits) > 1 else columns[0]
    save_npz(graph, path)
    return path


def experiment(path, **keys) -> Experiment:
    fixed = {"data.source": str(path), "partition.clients": 3, "data.split": "stored"}
    return Experiment.from_flat(fixed | {"partition.min_nodes": 5, **keys})


@pytest.mark.parametrize("scheme", ["dirichlet", "louvain"])
def test_each_client_has_its_part_of_the_masks(tmp_path, scheme):
    made = experiment(stored(tmp_path / "graph.npz", 0), **{"partition.scheme": scheme})
    clients = client_graphs(made)
    for nodes, graph in zip(clients.nodes, clients.graphs, strict=True):
        for rest, name in enumerate(("train", "val", "test")):
            assert graph[f"{name}_mask"].tolist() == (nodes % 3 == rest).tolist()
    pooled = graph_of(made.override({"strategy.name": "pooled"}), 1)
    assert pooled.train_mask.tolist() == [n % 3 == 0 for n in range(NODES)]
    assert pooled.test_mask.nonzero().flatten().tolist() == [
        n for n in clients.nodes[1].tolist() if n % 3 == 2
    ]


def test_the_seed_chooses_among_several_splits(tmp_path):
    path = stored(tmp_path / "graph.npz", 0, 1)
    for seed, shift in ((0, 0), (1, 1), (2, 0)):
        clients = client_graphs(experiment(path, **{"run.seed": seed}))
        for nodes, graph in zip(clients.nodes, clients.graphs, strict=True):
            assert graph.test_mask.tolist() == (nodes % 3 == (2 + shift) % 3).tolist()


def test_graphs_that_came_divided_have_masks_of_their_own(tmp_path):
    folder = tmp_path / "silos"
    folder.mkdir()
    for shift in range(2):
        stored(folder / f"{shift}.npz", shift, seed=shift)
    natural = {"partition.scheme": "natural", "partition.clients": 2}
    for shift, graph in enumerate(client_graphs(experiment(folder, **natural)).graphs):
        assert graph.val_mask.tolist() == [n % 3 == (1 + shift) % 3 for n in range(NODES)]


def test_sites_are_given_the_masks_that_their_client_had(tmp_path):
    made = experiment(stored(tmp_path / "graph.npz", 0, 1), **{"run.seed": 1})
    split(made, tmp_path / "trial")
    sites = load_experiment(tmp_path / "trial" / "config.toml")
    sites = sites.override({"data.root": str(tmp_path / "trial" / "data")})
    pairs = zip(client_graphs(made).graphs, client_graphs(sites).graphs, strict=True)
    for before, after in pairs:
        for name in ("train_mask", "val_mask", "test_mask"):
            assert torch.equal(before[name], after[name])


def test_what_cannot_be_split_so_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.split: 'stored', but in .* has no train_mask"):
        list(client_graphs(experiment(stored(tmp_path / "bare.npz"))).graphs)
    graph = contextual_sbm(NODES, 3, 5)
    for name, node in (("train", 0), ("val", 1), ("test", 2)):
        graph[f"{name}_mask"] = torch.arange(NODES) == node
    save_npz(graph, tmp_path / "few.npz")
    with pytest.raises(PartitionError, match="the stored masks have none to"):
        list(client_graphs(experiment(tmp_path / "few.npz")).graphs)
    with pytest.raises(ConfigError, match=r"data\.split: 'stored' reads the masks of a graph"):
        experiment("storms", **{"task.name": "outages"})
