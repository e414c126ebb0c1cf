"""Forecasts in a federation: what crosses the wire, what fit may see, and what a score is."""

import math
from dataclasses import replace

import pytest
import torch
from flwr.app import RecordDict

from federation.experiment import Experiment
from federation.learners import ForecastLearner
from federation.learners.base import is_named
from federation.learners.sites import sites
from federation.records import to_tensors, unpack
from federation.scores import SCORES
from federation.strategies.weights import shared_weights
from graphcl.datasets import SpatioTemporalSeries, confounded_series, save_series
from graphcl.errors import ConfigError, DataError, FederationError
from graphcl.metrics import masked_mae, masked_mape, masked_rmse
from graphcl.spatiotemporal import Sample
from simulations.carriers.local import LocalGrid

FEDERATED = (
    "local",
    "fedavg",
    "fedprox",
    "fedper",
    "lgfedavg",
    "fedproto",
    "fedtgp",
    "feddbp",
    "scfsgl",
)
CUT = {"partition.scheme": "louvain", "partition.clients": 2, "partition.min_nodes": 2}
SIZES = {5, 7, 11}  # of the unlike series, of no layer


@pytest.fixture
def stored(tmp_path):
    """Write series to files of their own, one per client; return the keys that lead there."""

    def write(*series: SpatioTemporalSeries, folder: str = "series") -> dict[str, str | int]:
        paths = [tmp_path / folder / f"{number}.npz" for number in range(len(series))]
        (tmp_path / folder).mkdir()
        for one, path in zip(series, paths, strict=True):
            save_series(one, path)
        return {"data.source": ", ".join(map(str, paths)), "partition.clients": len(paths)}

    return write


def simulated(num_nodes: int = 5, seed: int = 0, interval: int = 300) -> SpatioTemporalSeries:
    return confounded_series(1, num_nodes, 300, interval=interval, seed=seed)[0].series


def unlike() -> list[SpatioTemporalSeries]:
    """Return series of unlike numbers of sensors and channels, intervals and graphs."""
    town, region = simulated(5), simulated(7, seed=1, interval=3600)
    gap = torch.rand(300, 7, 2, generator=torch.Generator().manual_seed(0)) < 0.1
    two = torch.cat([region.values, 40 + 9 * region.values.square()], 2)
    names = ("speed [km/h]", "flow [1/h]")
    region = replace(region, values=two.masked_fill(gap, math.nan), channel_names=names)
    coast = simulated(11, seed=2, interval=900)
    nothing = {"edge_index": torch.empty(2, 0, dtype=torch.long), "edge_weight": torch.empty(0)}
    return [town, region, replace(coast, **nothing)]


def same(one, other) -> bool:
    assert set(one) == set(other)
    return all(torch.equal(one[name], other[name]) for name in one)


def kept(grid, partition: int) -> dict[str, torch.Tensor]:
    return unpack(grid.contexts[partition].state.array_records["learner"])


def evaluated(grid, partition: int, server_round: int = 2) -> dict[str, float]:
    return dict(grid.replies["evaluate", server_round, partition].content["metrics"])


def of_sensors(weight: str) -> bool:
    return is_named(weight.removeprefix("model/"), ForecastLearner.own_names(Experiment()))


# Every algorithm, on alike and on unlike series.


@pytest.mark.parametrize("strategy", FEDERATED)
def test_unlike_series_learn_and_nothing_of_their_sensors_crosses(
    forecasts, staged, stored, tmp_path, lines_of, strategy
):
    grid = staged(forecasts(strategy, tmp_path / "run", **stored(*unlike())))
    grid.serve()
    lines = lines_of(tmp_path / "run", kind="client", round=2)
    assert [line["status"] for line in lines] == ["ok"] * 3
    for line in lines:
        scores = [line[score.key] for score in SCORES["forecast"]]
        assert torch.tensor([*scores, line["val_relative_mae"], line["test_loss"]]).isfinite().all()
    contents = [message.content for message in (*grid.sent.values(), *grid.replies.values())]
    assert len(contents) == 2 * 3 * 5  # hello, and two rounds of training and evaluation
    for content in contents:
        assert isinstance(content, RecordDict)
        assert set(content.config_records) <= {"config"}
        assert set(content.metric_records) <= {"metrics", "facts"}
        for record in content.array_records.values():
            for name, tensor in to_tensors(record).items():
                assert not of_sensors(name), name
                assert not SIZES & set(tensor.shape), name
        for record in (*content.config_records.values(), *content.metric_records.values()):
            assert all(isinstance(value, int | float) for value in record.values())


@pytest.mark.parametrize("strategy", ["fedper", "scfsgl"])
def test_what_belongs_to_the_sensors_stays_on_their_node(forecasts, staged, tmp_path, strategy):
    grid = staged(forecasts(strategy, tmp_path))
    grid.serve()
    first, other = kept(grid, 0), kept(grid, 1)
    prefix = "" if strategy == "fedper" else "model/"
    sensors = f"{prefix}network.encoder.node"
    assert {name for name in first if of_sensors(name)} > {sensors}
    assert not torch.equal(first[sensors], other[sensors])


def test_pooled_learns_one_network_of_all_regions(forecasts, staged, stored, tmp_path, lines_of):
    keys = {**stored(simulated(12)), **CUT, "run.rounds": 1}
    experiment = forecasts("pooled", tmp_path / "run", **keys)
    grid = staged(experiment)
    grid.serve()
    assert {key[2] for key in grid.sent if key[0] == "train"} == {0}
    served = to_tensors(grid.sent["evaluate", 1, 1].content["arrays"])
    assert served["network.encoder.node"].shape == (12, 1, 8)
    for partition, line in enumerate(lines_of(tmp_path / "run", kind="client", round=1)):
        expected = by_hand(experiment, partition, served)
        assert {n: line[n.replace("-", "_")] for n in expected} == pytest.approx(expected, rel=1e-4)


def test_pooled_goes_on_after_its_first_round(forecasts, stored, tmp_path, summary_of):
    keys = {**stored(simulated(12)), **CUT}
    LocalGrid(forecasts("pooled", tmp_path / "run", **keys)).serve()
    assert math.isfinite(summary_of(tmp_path / "run")["test_relative_mae"])


def test_every_name_that_stays_is_one_of_the_network(forecasts):
    experiment = forecasts()
    weights = {
        name
        for separation in ("conditional", "transfer")
        for name in ForecastLearner(
            forecasts(**{"forecast.separation": separation}), 0
        ).model.state_dict()
    }
    for name in (*ForecastLearner.own_names(experiment), *ForecastLearner.heads):
        assert any(is_named(weight, [name]) for weight in weights), name


@pytest.mark.parametrize("separation", ["conditional", "transfer"])
def test_fedper_averages_the_encoder_and_leaves_the_last_layers(
    forecasts, staged, tmp_path, separation
):
    grid = staged(forecasts("fedper", tmp_path, **{"forecast.separation": separation}))
    grid.serve()
    [up, *_] = [to_tensors(grid.replies["train", 2, p].content["arrays"]) for p in range(3)]
    whole = set(ForecastLearner(grid.experiment, 0).model.state_dict())
    last = ("gate", "recall", "hidden", "usual", "out")
    home = {n for n in whole if n.replace(".own.", ".").split(".")[1] in last}
    assert set(up) == {name for name in whole - home if not of_sensors(name)}
    assert {"network.encoder.spatial.weight", "network.codebook.prototypes"} < set(up)
    for partition in range(3):
        assert {name for name in kept(grid, partition) if not of_sensors(name)} == home
    assert not torch.equal(kept(grid, 0)["network.out.weight"], kept(grid, 1)["network.out.weight"])


@pytest.mark.parametrize("separation", ["conditional", "transfer"])
@pytest.mark.parametrize("strategy", ["fedavg", "fedper", "scfsgl"])
def test_clients_start_from_the_servers_weights_and_sensors_of_their_own(
    forecasts, strategy, separation
):
    experiment = forecasts(strategy, **{"forecast.separation": separation})
    models = [ForecastLearner.build(experiment, client, {}, 4) for client in ("server", 0, 1)]
    server, *clients = [shared_weights(model, experiment) for model in models]
    assert all(same(server, client) for client in clients)
    networks = [model.network for model in models[1:]]
    first, other = (
        (network.encoder if network.own is None else network.own.encoder).node
        for network in networks
    )
    assert not torch.equal(first, other)


@pytest.mark.parametrize("strategy", ["fedproto", "feddbp"])
def test_a_class_is_a_row_of_a_codebook_that_rests(forecasts, staged, tmp_path, strategy):
    """It would not mean the same on every client if the rows moved apart."""
    experiment = forecasts(strategy, tmp_path)
    grid = staged(experiment)
    grid.serve()
    name = "network.codebook.prototypes"
    first = ForecastLearner.build(experiment, "server", {}, 4).state_dict()[name]
    for partition in range(3):
        state = kept(grid, partition)
        assert torch.equal(state[f"model/{name}"], first)
        content = grid.replies["train", 2, partition].content
        upload = to_tensors(content["prototypes"])
        assert upload["classes"].max() < 4
        assert int(upload["support"].sum()) == content["metrics"]["num-examples"] == 64 * 5


# What fit may see.


@pytest.mark.parametrize(
    ("strategy", "unseen"),
    [
        ("local", 210),
        ("fedavg", 210),
        ("feddbp", 210),
        ("scfsgl", 240),  # which chooses on validation steps how much of the mean to take
    ],
)
def test_later_steps_never_reach_the_weights(
    forecasts, staged, stored, tmp_path, new_process, strategy, unseen
):
    series = [simulated(), simulated(seed=1)]

    def changed(start: int, end: int) -> list[SpatioTemporalSeries]:
        values = [one.values.clone() for one in series]
        for one in values:
            one[start:end] = 3 - one[start:end]
        return [replace(one, values=new) for one, new in zip(series, values, strict=True)]

    weights, scores = [], []
    variants = {"true": series, "later": changed(unseen, 300), "seen": changed(200, 210)}
    for name, variant in variants.items():
        new_process()
        keys = stored(*variant, folder=f"{name}-series")
        grid = staged(forecasts(strategy, tmp_path / name, **keys))
        grid.serve()
        weights.append(kept(grid, 0))
        scores.append(evaluated(grid, 0)["mae"])
    assert same(weights[0], weights[1])
    assert scores[0] != scores[1]
    assert not same(weights[0], weights[2])


def test_samples_that_describe_are_told_of_under_prototype_algorithms_alone(forecasts):
    learners = [ForecastLearner(forecasts(strategy), 0) for strategy in ("feddbp", "scfsgl")]
    given = [[] for _ in learners]
    for learner, seen in zip(learners, given, strict=True):
        learner.fit(lambda out, seen=seen: seen.append(len(out.y)) or {})
    assert given == [[32 * 5, 32 * 5], [0, 0]]
    windows = 210 - 24 + 1
    assert [learner.facts()["num-examples"] for learner in learners] == [64 * 5, windows]


def test_the_algorithms_terms_stand_beside_the_networks_own(forecasts):
    terms = ForecastLearner(forecasts(), 0).fit(lambda _: {"align": torch.tensor(2.0)})
    assert set(terms) == {"mae", "codebook", "invariance", "align", "loss"}
    parts = sum(value for name, value in terms.items() if name != "loss")
    assert terms["loss"] == pytest.approx(parts)


# Scores.


def by_hand(experiment: Experiment, partition: int, weights) -> dict[str, float]:
    """Return a client's scores on its test steps, window by window."""
    clients, pooled = sites(experiment), experiment.strategy.name == "pooled"
    splits = clients.whole if pooled else clients.splits[partition]
    asked = clients.nodes[partition] if pooled else torch.arange(splits["test"].num_nodes)
    model = ForecastLearner.build(experiment, partition, {}, 4).eval()
    model.load_state_dict(weights)
    values, overall = splits["test"].values, splits["train"].values.flatten(0, 1).nanmean(0)
    scaler, forecasts, naive, y = model.network.scaler, [], [], []
    for start in range(len(values) - 24 + 1):
        past, future = values[start : start + 12], values[start + 12 : start + 24]
        steps = torch.arange(start, start + 24)
        sample = Sample(
            scaler(past)[None],
            ~past.isnan()[None],
            scaler(future)[None],
            ~future.isnan()[None],
            splits["test"].seconds(steps)[None],
        )
        with torch.no_grad():
            forecasts.append(scaler.inverse(model(sample)[1])[0, :, asked])
        last = overall.expand(past.shape[1:]).clone()
        for step in past:
            last = torch.where(step.isnan(), last, step)
        naive.append(last.expand(12, *last.shape)[:, asked])
        y.append(future[:, asked])
    forecast, last, future = map(torch.stack, (forecasts, naive, y))
    mask = ~future.isnan()
    train = splits["train"].values
    floor = float(train[~train.isnan()].double().abs().mean()) / 100
    found = {"relative-mae": masked_mae(forecast, future, mask) / masked_mae(last, future, mask)}
    for suffix, step in {"": slice(None), **{f"-{h}": h - 1 for h in (3, 6, 12)}}.items():
        part = forecast[:, step], future[:, step], mask[:, step]
        found |= {
            f"mae{suffix}": masked_mae(*part),
            f"rmse{suffix}": masked_rmse(*part),
            f"mape{suffix}": masked_mape(*part, floor=floor),
        }
    return found


def test_scores_are_those_of_the_forecasts_where_values_are_observed(
    forecasts, staged, stored, tmp_path
):
    experiment = forecasts("local", tmp_path / "run", **stored(*unlike()))
    grid = staged(experiment)
    grid.serve()
    for partition in range(3):
        state = kept(grid, partition).items()
        weights = {n.removeprefix("model/"): v for n, v in state if n.startswith("model/")}
        expected = by_hand(experiment, partition, weights)
        found = evaluated(grid, partition)
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)
        assert found["test-loss"] == found["relative-mae"]
        assert (found["num-examples"], found["val-examples"]) == (60 - 24 + 1, 30 - 24 + 1)


def test_a_short_horizon_has_no_score_of_later_steps(forecasts):
    learner = ForecastLearner(forecasts(**{"forecast.horizon": 4}), 0)
    found = learner.evaluate(lambda out: {})
    assert "mae-3" in found
    assert not {"mae-6", "rmse-6", "mape-12"} & set(found)


def test_values_of_nothing_have_no_error_in_percent(forecasts, stored):
    flat = simulated()
    values = flat.values.clone()
    values[240:] = 0
    values[270:, 0] = torch.nan
    values[260, 1:] = 0.5  # or the last value would be right throughout
    values[260 + 1 :, 1:] = 0
    learner = ForecastLearner(
        forecasts(**stored(replace(flat, values=values)), **{"forecast.horizon": 3}), 0
    )
    found = learner.evaluate(lambda out: {})
    assert {"mae", "mape", "mae-3", "mape-3"} <= set(found)
    values[260] = 0
    values[299, 1] = 0.5  # seen by the last step alone
    keys = stored(replace(flat, values=values), folder="late")
    found = ForecastLearner(forecasts(**keys), 0).evaluate(lambda out: {})
    assert {"mae-3", "mape", "mape-12"} <= set(found)
    assert not {"mape-3", "mape-6"} & set(found)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            math.nan,
            "simulated: nothing is observed to forecast in its test steps, .*leave the site",
        ),
        (1.0, "simulated: nothing ever changes in its test steps, .*data.series.train_ratio"),
    ],
)
def test_steps_without_an_error_to_be_relative_to_are_refused_at_the_start(
    forecasts, stored, tmp_path, value, message
):
    values = simulated().values.clone()
    values[240:] = value
    keys = stored(replace(simulated(), values=values, name="simulated"))
    with pytest.raises(DataError, match=message):
        ForecastLearner(forecasts(**keys), 0)
    with pytest.raises(FederationError, match=f"node 1 could not start: DataError: {message}"):
        LocalGrid(forecasts("local", tmp_path / "run", **keys)).serve()


# From one process to the next.


@pytest.mark.parametrize("strategy", ["fedper", "scfsgl"])
def test_a_killed_run_resumes_to_the_same_digest(
    forecasts, tmp_path, summary_of, new_process, killed_and_resumed, strategy
):
    keys = {"run.rounds": 4, "partition.clients": 2}
    for folder in ("whole", "again"):
        new_process()
        LocalGrid(forecasts(strategy, tmp_path / folder, **keys)).serve()
    killed_and_resumed(forecasts(strategy, tmp_path / "killed", **keys), 3)
    digest = summary_of(tmp_path / "whole")["digest"]
    assert summary_of(tmp_path / "again")["digest"] == digest
    assert summary_of(tmp_path / "killed")["digest"] == digest


# Experiments that cannot be.


FILES = {"data.source": "a.npz, b.toml", "partition.clients": 2}


@pytest.mark.parametrize(
    ("strategy", "keys", "message"),
    [
        (
            "fedavg",
            {"partition.scheme": "dirichlet"},
            r"partition\.scheme: task\.name = 'forecast' has no classes to divide by; set it to "
            "'natural'",
        ),
        (
            "scfsgl",
            {"task.name": "classify", "data.source": "csbm"},
            r"strategy\.name: 'scfsgl' is about forecasts, but task\.name = 'classify'",
        ),
        (
            "local",
            {"task.name": "classify", "data.source": "csbm", "run.compare": "scfsgl"},
            r"'scfsgl' is about forecasts",
        ),
        ("pooled", {}, r"'pooled' has one network for all sensors, but unlike series have none"),
        ("pooled", FILES, r"leave 'pooled' out, or divide one series"),
        ("local", {"run.compare": "fedavg, pooled"}, r"'pooled' has one network for all sensors"),
        (
            "scfsgl",
            {"forecast.num_prototypes": 0},
            r"forecast\.num_prototypes: 0 rows are no codebook to match, as scfsgl does; take at",
        ),
        (
            "feddbp",
            {"forecast.num_prototypes": 0},
            "0 rows are no codebook to match, as feddbp does",
        ),
        (
            "local",
            {"forecast.num_prototypes": 0, "run.compare": "fedproto"},
            "0 rows are no codebook to match, as fedproto does",
        ),
        (
            "scfsgl",
            {"forecast.num_prototypes": 1},
            "1 rows are no codebook to match, as scfsgl does",
        ),
        (
            "fedavg",
            {"forecast.num_prototypes": 1},
            "1 rows are no codebook to match; take at least 2",
        ),
        (
            "fedavg",
            {**FILES, "partition.clients": 3},
            r"partition\.clients is 3, but data\.source lists 2 series, .*: set it to 2",
        ),
        ("fedavg", {"data.source": "digits"}, r"data\.source: 'digits' holds no series"),
        (
            "fedavg",
            {**FILES, "partition.scheme": "louvain"},
            r"partition\.scheme: 'louvain' divides one series, but .* = 'a\.npz, b\.toml'",
        ),
        (
            "fedavg",
            {"partition.scheme": "louvain"},
            r"partition\.scheme: 'louvain' divides one series, but data\.source = 'confounded'",
        ),
    ],
)
def test_impossible_experiments_are_refused_with_the_key(forecasts, strategy, keys, message):
    with pytest.raises(ConfigError, match=message):
        forecasts(strategy, **keys)


def test_a_codebook_may_be_left_out_where_nobody_matches_it(forecasts, tmp_path, summary_of):
    LocalGrid(forecasts("fedper", tmp_path, **{"forecast.num_prototypes": 0})).serve()
    assert math.isfinite(summary_of(tmp_path)["test_relative_mae"])


def test_a_series_shorter_than_a_window_is_refused(forecasts):
    with pytest.raises(ConfigError, match=r"12 \+ 12 steps is longer than the 23 val steps"):
        sites(forecasts(**{"data.series.steps": 230}))
