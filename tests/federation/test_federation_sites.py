"""Series as clients: who holds which sensors and steps, and what cannot be divided."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from federation.learners import clients_of
from federation.learners.sites import kept_sites, sites
from graphcl.datasets import (
    SpatioTemporalSeries,
    confounded_series,
    load_series,
    save_series,
)
from graphcl.errors import ConfigError, DataError, PartitionError

CONFIGS = Path(__file__).parents[2] / "configs" / "series"
FORECAST = {
    "task.name": "forecast",
    "data.source": "confounded",
    "data.series.nodes": 7,
    "data.series.steps": 300,
    "partition.scheme": "natural",
    "strategy.name": "fedavg",
}
CUT = {"partition.scheme": "louvain", "partition.clients": 2, "partition.min_nodes": 4}
SPLITS = ("train", "val", "test")


@pytest.fixture
def forecasts(tiny):
    """Build a tiny experiment on series, as ``tiny`` does."""
    return lambda **keys: tiny(**{**FORECAST, **keys})


@pytest.fixture
def stored(tmp_path):
    """Write series to files of their own; return their paths."""

    def write(*series: SpatioTemporalSeries) -> list[str]:
        paths = [tmp_path / f"{number}.npz" for number in range(len(series))]
        for one, path in zip(series, paths, strict=True):
            save_series(one, path)
        return list(map(str, paths))

    return write


def two_towns() -> SpatioTemporalSeries:
    """Return a series of ten sensors: two towns of five, in turn, with one road between them."""
    town = [(u, v) for u in range(5) for v in range(u)]
    edges = [(2 * u + t, 2 * v + t) for t in (0, 1) for u, v in town] + [(0, 1), (0, 0)]
    return SpatioTemporalSeries(
        name="county",
        values=torch.arange(2400.0).reshape(240, 10, 1),
        channel_names=("flow [1/h]",),
        node=tuple("abcdefghij"),
        edge_index=torch.tensor(edges).t().contiguous(),
        edge_weight=torch.arange(1.0, len(edges) + 1),
        start=np.datetime64("2024-01-01T00:00:00", "s"),
        interval=300,
    ).validate()


def in_turn(series: SpatioTemporalSeries) -> SpatioTemporalSeries:
    """Return the series with one edge of its graph per step, over and over."""
    E, T = series.edge_index.size(1), series.num_steps
    turn = torch.arange(T) % E
    return replace(
        series,
        edge_index=series.edge_index[:, turn],
        edge_weight=series.edge_weight[turn],
        edge_ptr=torch.arange(T + 1),
    ).validate()


# Who holds what.


def test_simulated_clients_hold_a_series_each(forecasts):
    found = clients_of(forecasts())
    assert found.names == ["client-0", "client-1", "client-2"]
    assert [one.values.shape for one in found.series] == [(300, 7, 1)] * 3
    assert not torch.equal(found.series[0].values, found.series[1].values)
    again = clients_of(forecasts(**{"run.seed": 1}))
    assert not torch.equal(found.series[0].values, again.series[0].values)


def test_files_are_clients_in_the_order_of_the_list(forecasts, stored, tmp_path):
    clients = [client.series for client in confounded_series(2, 5, 300)]
    one, other = stored(*clients)
    described = tmp_path / "described.toml"
    described.write_text(f"file = '{one}'")
    found = sites(forecasts(**{"data.source": f" {other},{described} ", "partition.clients": 2}))
    assert found.names == ["client-1", "client-0"]
    for held, series in zip(found.series, reversed(clients), strict=True):
        assert torch.equal(held.values, series.values)


def test_steps_are_split_in_the_order_of_time(forecasts):
    found = sites(forecasts(**{"data.series.train_ratio": 0.5, "data.series.val_ratio": 0.2}))
    for series, splits in zip(found.series, found.splits, strict=True):
        assert tuple(splits) == SPLITS
        assert [part.num_steps for part in splits.values()] == [150, 60, 90]
        assert torch.equal(torch.cat([part.values for part in splits.values()]), series.values)
        assert splits["val"].start == series.time[150]


def test_the_series_are_loaded_once(forecasts):
    assert sites(forecasts()) is sites(forecasts(**{"forecast.horizon": 3, "train.epochs": 9}))


# Regions of one series.


@pytest.mark.parametrize("per_step", [False, True], ids=["one graph", "a graph per step"])
def test_regions_are_the_communities_of_the_graph(forecasts, stored, per_step):
    county = in_turn(two_towns()) if per_step else two_towns()
    [path] = stored(county)
    found = sites(forecasts(**CUT, **{"data.source": path}))
    assert found.names == ["county-0", "county-1"]
    assert {one.node for one in found.series} == {tuple("acegi"), tuple("bdfhj")}
    for name, region, splits in zip(found.names, found.series, found.splits, strict=True):
        expected = county.at([county.node.index(node) for node in region.node])
        for field in ("values", "edge_index", "edge_weight"):
            assert torch.equal(getattr(region, field), getattr(expected, field))
        assert (region.edge_ptr is not None) == per_step
        assert {part.name for part in (region, *splits.values())} == {name}


@pytest.mark.parametrize("per_step", [False, True], ids=["one graph", "a graph per step"])
def test_the_report_counts_each_road_once_and_no_class(forecasts, stored, per_step):
    county = in_turn(two_towns()) if per_step else two_towns()
    [path] = stored(county)
    report = sites(forecasts(**CUT, **{"data.source": path})).report
    assert (report.edges, report.cut_edges) == (22, 1)
    assert sorted(client.edges for client in report.clients) == [10, 11]
    for client in report.clients:
        assert (client.nodes, client.class_counts, client.edge_homophily) == (5, (), None)
        assert client.label_entropy == 0


def test_the_report_of_whole_series_has_no_cut(forecasts):
    found = sites(forecasts())
    assert found.report.cut_edges == 0
    for series, client in zip(found.series, found.report.clients, strict=True):
        assert (client.nodes, client.edges) == (7, series.edge_index.size(1) // 2)
        assert client.class_counts == ()


def test_a_real_city_is_cut_into_regions(forecasts, data_root):
    cut = {
        "partition.scheme": "louvain",
        "partition.clients": 4,
        "data.source": str(CONFIGS / "metr_la.toml"),
        "data.root": str(data_root),
    }
    found = sites(forecasts(**cut))
    whole = load_series(CONFIGS / "metr_la.toml", root=data_root)
    held = [node for region in found.series for node in region.node]
    assert len(found.series) == 4
    assert sorted(held) == sorted(whole.node)
    pairs = {frozenset(pair) for pair in whole.edge_index.t().tolist()}
    report = found.report
    assert report.edges == len(pairs)
    assert sum(client.edges for client in report.clients) + report.cut_edges == report.edges
    assert 0 < report.cut_share < 0.2  # by communities; at random three of four would be cut
    kept_sites.clear()
    assert [one.node for one in sites(forecasts(**cut)).series] == [
        one.node for one in found.series
    ]


# What cannot be.


@pytest.mark.parametrize(
    ("keys", "start"),
    [
        ({"partition.scheme": "dirichlet"}, "partition.scheme: task.name = 'forecast' has no cl"),
        ({"data.source": "digits"}, "data.source: 'digits' holds no series; use 'confounded'"),
        ({"data.source": "a.npz, storms"}, "data.source: 'storms' holds no series"),
        ({"data.source": " , "}, "data.source: '' holds no series"),
        (CUT, "partition.scheme: 'louvain' divides one series, but data.source = 'confounded'"),
        (CUT | {"data.source": "a.npz, b.npz"}, "partition.scheme: 'louvain' divides one series"),
        ({"data.source": "a.npz, b.toml"}, "partition.clients is 3, but data.source lists 2 "),
        ({"simulation.gpus_per_client": 0.5}, "simulation.gpus_per_client: task.name = 'forec"),
        ({"data.series.val_ratio": 0.3}, "data.series: train_ratio + val_ratio = 1 leaves no t"),
        ({"forecast.history": 0}, "forecast.history: "),
        ({"forecast.horizon": 0}, "forecast.horizon: "),
    ],
)
def test_a_federation_of_series_that_cannot_be_names_the_key(forecasts, keys, start):
    with pytest.raises(ConfigError) as caught:
        forecasts(**keys)
    _, line = str(caught.value).splitlines()
    assert line.strip().startswith(start)


@pytest.mark.parametrize(
    ("keys", "steps", "name", "split"),
    [
        ({"data.series.train_ratio": 0.1}, 30, "client-0", "train"),
        ({}, 30, "client-0", "val"),
        ({"data.series.val_ratio": 0.2}, 30, "client-0", "test"),
    ],
)
def test_a_part_shorter_than_one_window_is_named(forecasts, keys, steps, name, split):
    window = {"forecast.history": 20, "forecast.horizon": 11, **keys}
    with pytest.raises(
        ConfigError,
        match=r"forecast\.history, forecast\.horizon: .* 20 \+ 11 steps is longer than "
        rf"the {steps} {split} steps of {name}; .*data\.series\.train_ratio",
    ):
        sites(forecasts(**window))
    assert sites(forecasts(**window | {"forecast.history": 19})).splits


def test_a_part_without_a_step_names_the_ratios(forecasts, stored):
    [path] = stored(confounded_series(1, 5, 3)[0].series)
    with pytest.raises(ConfigError, match=r"data\.series\.train_ratio, .* its 3 steps into 2, 0"):
        sites(forecasts(**{"data.source": path, "partition.clients": 1}))


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        (
            {"partition.clients": 3},
            ConfigError,
            r"partition\.clients: 3 clients of at least 4 nodes need more than the 10 nodes of ",
        ),
        (
            {"partition.clients": 3, "partition.min_nodes": 3},
            PartitionError,
            r"partition\.min_nodes: client \d would hold 2 nodes, fewer than 3",
        ),
    ],
)
def test_regions_that_are_too_small_name_the_key(forecasts, stored, keys, error, message):
    [path] = stored(two_towns())
    with pytest.raises(error, match=message):
        sites(forecasts(**{**CUT, "data.source": path, **keys}))


def test_a_file_that_is_not_there_is_named(forecasts):
    with pytest.raises(DataError, match=r"absent\.npz: not found"):
        sites(forecasts(**{"data.source": "absent.npz", "partition.clients": 1}))
