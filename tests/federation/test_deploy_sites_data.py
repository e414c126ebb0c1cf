"""A node that has its own data alone computes what it computes where all data are in one place."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from edge_nodes import EdgeGrid, answered, as_sites, compared, served

from federation.deploy.split import split
from federation.learners import clients_of
from federation.learners.graphs import graph_of
from federation.learners.platforms import platform_of
from federation.learners.sites import splits_of
from graphcl.datasets import (
    load_npz,
    load_outage_events,
    save_outage_events,
    simulate_storms,
)
from graphcl.errors import ConfigError, DataError, FederationError

# The same figures, to the last bit.


@pytest.mark.parametrize("strategy", ["feddbp", "fedavg", "local"])
def test_graphs(tiny, tmp_path, new_process, strategy):
    compared(tiny(strategy), tmp_path, new_process)


def test_graphs_of_unlike_models(tiny, tmp_path, new_process):
    compared(tiny(**{"model.encoders": "gcn, sage, gat"}), tmp_path, new_process)


def test_graphs_without_labels(tiny, tmp_path, new_process):
    compared(tiny("fedavg", **{"task.name": "pretrain"}), tmp_path, new_process)


@pytest.mark.parametrize("strategy", ["fedavg", "feddbp"])
def test_outages(outages, tmp_path, new_process, strategy):
    compared(outages(strategy), tmp_path, new_process)


def test_outages_with_a_newcomer(outages, tmp_path, new_process):
    keys = {"data.outages.newcomer": "strip-1", "data.outages.newcomer_events": "event-4, event-0"}
    lines = compared(outages(**keys), tmp_path, new_process)
    trained = {line["partition"]: line["support"] for line in lines if "partition" in line}
    assert trained[1] < trained[0]


def test_series(forecasts, tmp_path, new_process):
    compared(forecasts("scfsgl", **{"forecast.epoch_windows": 32}), tmp_path, new_process)


def test_interactions(shops, tmp_path, new_process):
    compared(shops("feddbp", **{"data.interactions.catalogue": 0.9}), tmp_path, new_process)


def test_masked_prototypes(tiny, tmp_path, new_process):
    compared(tiny("fedproto", **{"privacy.masking": True}), tmp_path, new_process)


# A split is what the clients of the simulation hold.


def test_a_split_of_a_graph_is_what_the_clients_hold(tiny, tmp_path):
    experiment = tiny()
    natural, data = as_sites(experiment, tmp_path / "sites")
    assert natural.data.num_classes == 3
    for graph, place in zip(clients_of(experiment).graphs, data, strict=True):
        [file] = Path(place).iterdir()
        stored = load_npz(file, every_class=False)
        assert torch.equal(stored.x, graph.x)
        assert torch.equal(stored.y, graph.y)
        assert torch.equal(stored.edge_index, graph.edge_index)
        assert "train_mask" not in stored


def test_a_split_of_storms_keeps_each_districts_figures(outages, tmp_path):
    """Districts that came in one file, or in a file each: clients learn from the same."""
    experiment = outages()
    natural, _ = as_sites(experiment, tmp_path / "sites")
    pairs = zip(clients_of(experiment).territories, clients_of(natural).territories, strict=True)
    for one, other in pairs:
        assert (one.name, one.splits) == (other.name, other.splits)
        assert torch.equal(one.events.weather, other.events.weather)
        assert torch.equal(one.events.outages, other.events.outages)
        assert torch.equal(one.events.borders, other.events.borders)
        assert one.events.location == other.events.location


def test_a_split_needs_a_folder_of_its_own(tiny, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there/mine.txt").touch()
    with pytest.raises(ConfigError, match="there is something already"):
        split(tiny(), tmp_path / "there")


# What a node refuses.


@pytest.fixture
def held(tiny, tmp_path):
    """A natural experiment, and where the first of its nodes has its data."""
    return as_sites(tiny(), tmp_path / "sites")


def test_a_node_is_told_how_many_classes_there_are(held):
    experiment, [place, *_] = held
    why = answered(experiment.override({"data.num_classes": 0}), place)
    assert "data.num_classes: this node has its own data alone" in why


def test_a_class_beyond_the_number_is_named(held):
    experiment, [place, *_] = held
    why = answered(experiment.override({"data.num_classes": 2}), place)
    assert "is 2, but with data.num_classes = 2 the classes are 0 to 1" in why


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"partition.scheme": "louvain"}, "partition.scheme: 'louvain' divides the data of all"),
        ({"strategy.name": "pooled"}, "strategy.name: 'pooled' trains on the data of all clients"),
    ],
)
def test_an_experiment_that_needs_all_data_is_refused(held, keys, message):
    experiment, [place, *_] = held
    assert message in answered(experiment.override(keys), place)


def test_data_that_are_not_there_or_not_one_are_named(held, tmp_path):
    experiment, [place, other, *_] = held
    assert "not found" in answered(experiment, str(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    assert "holds no file that ends in .npz" in answered(experiment, str(tmp_path / "empty"))
    (Path(place) / "second.npz").write_bytes((Path(other) / "graph.npz").read_bytes())
    assert "holds graph.npz, second.npz, of which one alone" in answered(experiment, place)


def test_a_node_takes_part_in_nothing_that_it_did_not_agree_to(held, tmp_path):
    experiment, [place, *_] = held
    agreed = str(tmp_path / "sites/config.toml")
    other = experiment.override({"strategy.name": "fedavg", "train.epochs": 7})
    why = answered(other, place, config=agreed)
    assert "agreed to another experiment: the run differs in train.epochs, strategy.name" in why
    free = {"run.directory": str(tmp_path / "run"), "run.name": "x", "simulation.engine": "local"}
    grid = EdgeGrid(experiment.override(free), held[1], Path(agreed))
    grid.serve()
    assert (tmp_path / "run/summary.json").exists()


def test_shops_are_told_the_categories_of_the_others(shops, tmp_path):
    experiment, [place, *_] = as_sites(shops("feddbp"), tmp_path / "sites")
    key = "data.interactions.categories"
    names = experiment.flat()[key].split(", ")
    assert len(names) > 1
    why = answered(experiment.override({key: ""}), place)
    assert f"{key}: this node has its own data alone" in why
    why = answered(experiment.override({key: ", ".join(names[1:])}), place)
    assert f"has the category '{names[0]}', which {key} does not list" in why


# Several sources, one of each client, in a simulation.


@pytest.fixture
def utilities(tmp_path):
    """Two utilities' events in files of their own; the second has seen one storm less."""
    folders = []
    for number, name in enumerate(("north", "south")):
        events = simulate_storms(12, 9 - number, num_districts=2, seed=number).events
        folders.append(tmp_path / f"{name}.npz" if number else tmp_path / name)
        save_outage_events(events, folders[-1])
    return folders


def two(outages, utilities, strategy="fedavg", **keys):
    source = ", ".join(map(str, utilities))
    return outages(strategy, **{"data.source": source, "partition.clients": 2, **keys})


def test_a_utility_is_a_client_whatever_districts_it_has(outages, utilities):
    found = clients_of(two(outages, utilities))
    assert [one.name for one in found.territories] == ["north", "south"]
    assert [one.events.num_locations for one in found.territories] == [12, 12]
    assert [one.splits["test"] for one in found.territories] == [[7, 8], [6, 7]]
    assert [share.nodes for share in found.report.clients] == [12, 12]
    assert found.report.cut_edges == 0


def test_a_storm_need_not_have_come_by_everywhere(outages, utilities):
    keys = {"data.outages.test_events": "event-8, event-2"}
    found = clients_of(two(outages, utilities, **keys))
    assert [one.splits["test"] for one in found.territories] == [[8, 2], [2]]
    with pytest.raises(ConfigError, match=r"test_events: .*south\.npz has none of event-8, only"):
        clients_of(two(outages, utilities, **{"data.outages.test_events": "event-8"}))


def test_features_have_their_place_where_weights_are_averaged(outages, utilities, tmp_path):
    events = load_outage_events(utilities[1])
    turned = list(range(len(events.weather_names)))[::-1]
    names = tuple(events.weather_names[i] for i in turned)
    swapped = type(events)(
        **{**vars(events), "weather": events.weather[..., turned], "weather_names": names}
    )
    save_outage_events(swapped, tmp_path / "swapped.npz")
    sources = [utilities[0], tmp_path / "swapped.npz"]
    with pytest.raises(DataError, match=r"weather_names are .* a feature must have the same place"):
        clients_of(two(outages, sources))
    experiment = two(outages, sources, **{"run.directory": str(tmp_path / "run")})
    with pytest.raises(FederationError, match="the clients differ in feature-names"):
        EdgeGrid(experiment, list(map(str, sources))).serve()
    assert clients_of(two(outages, sources, "feddbp")).territories


class LateGrid(EdgeGrid):
    """Knows its nodes by their keys, and the second is not there when they say hello."""

    def partitions(self):
        return {1: 0, 2: 1}

    def deliver(self, messages, timeout):
        here = [m for m in messages if (m.metadata.message_type, m.metadata.dst_node_id) != LATE]
        return super().deliver(here, timeout)


LATE = ("query.hello", 2)


@pytest.mark.parametrize("turned", [False, True])
def test_a_node_that_comes_late_has_its_features_in_the_place_of_the_others(
    outages, utilities, tmp_path, turned
):
    events = load_outage_events(utilities[1])
    if turned:
        names = tuple(reversed(events.weather_names))
        events = replace(events, weather=events.weather.flip(-1), weather_names=names)
    save_outage_events(events, tmp_path / "late.npz")
    sources = [str(utilities[0]), str(tmp_path / "late.npz")]
    keys = {"run.directory": str(tmp_path / "run"), "run.min_success": 0.5}
    lines = served(LateGrid(two(outages, sources, **keys), sources), tmp_path / "run")
    rounds = [line for line in lines if line.get("partition") == 1]
    assert len(rounds) == 2
    for line in rounds:
        assert line["status"] == ("failed" if turned else "ok")
        assert ("the feature-names of this node are not" in line.get("reason", "")) == turned


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"partition.clients": 3},
            r"partition\.clients is 3, but data\.source lists 2 terri",
        ),
        ({"run.compare": "pooled"}, r"'pooled' has one network for all locations, but data\.sour"),
    ],
)
def test_several_utilities_that_cannot_run_are_refused(outages, utilities, keys, message):
    with pytest.raises(ConfigError, match=message):
        two(outages, utilities, **keys)


def test_graphs_of_a_list_are_clients_in_its_order(tiny, held, tmp_path):
    experiment, data = held
    turned = [str(Path(place) / "graph.npz") for place in data][::-1]
    found = clients_of(experiment.override({"data.source": ", ".join(turned)}))
    for graph, place in zip(found.graphs, turned, strict=True):
        assert torch.equal(graph.x, load_npz(place, every_class=False).x)
    twice = experiment.override({"data.source": ", ".join([turned[0]] * 3)})
    with pytest.raises(DataError, match="one file is that of two clients"):
        clients_of(twice)


def test_a_node_draws_the_split_of_its_partition(held):
    experiment, [place, *_] = held
    own = experiment.at_site(place)
    masks = [graph_of(own, client).train_mask.clone() for client in (0, 1, 0)]
    assert torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], clients_of(experiment).graphs[0].train_mask)


# The formats that a site may bring.


def test_a_shop_may_bring_its_tables(shops, tmp_path):
    rng, folder = np.random.default_rng(0), tmp_path / "shop"
    folder.mkdir()
    rows = [(u, int(rng.integers(8)), t) for u in range(6) for t in range(5)]
    events = "\n".join(f"{user},item-{item},{1000 * time + user}" for user, item, time in rows)
    (folder / "interactions.csv").write_text(f"user,item,time\n{events}\n")
    items = "\n".join(f"item-{item},{'ab'[item % 2]}" for item in range(8))
    (folder / "items.csv").write_text(f"item,category\n{items}\n")
    keys = {
        "data.source": str(folder / "interactions.csv"),
        "data.interactions.item_tables": str(folder / "items.csv"),
        "data.interactions.categories": "a, b",
        "partition.scheme": "natural",
        "partition.clients": 1,
    }
    experiment = shops("feddbp", **keys)
    whole = clients_of(experiment).platforms[0]
    own = platform_of(experiment.at_site(str(folder)), 0)
    assert torch.equal(own.train.item, whole.train.item)
    assert torch.equal(own.label, whole.label)
    assert set(own.label.tolist()) == {-1, 0, 1}


def test_a_description_of_series_lies_beside_what_it_describes(forecasts, tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()
    values = np.random.default_rng(0).random((300, 4)).astype(np.float32)
    np.savez(folder / "speeds.npz", speed=values, edges=np.array([[0, 1], [1, 2]]))
    (folder / "series.toml").write_text(
        'file = "speeds.npz"\nchannel_names = ["speed [mph]"]\nstart = "2024-01-01T00:00Z"\n'
        'interval = 300\n[names]\nvalues = "speed"\n'
    )
    experiment = forecasts("fedavg").at_site(str(folder))
    train = splits_of(experiment, 2)["train"]
    assert torch.equal(train.values[:, :, 0], torch.from_numpy(values[:210]))
