"""Outages in a federation: who holds which locations, what fit may see, what crosses the wire."""

from dataclasses import replace

import pytest
import torch

from federation.learners import OutageLearner, clients_of
from federation.records import to_tensors, unpack
from federation.scores import SCORES
from federation.strategies.feddbp import FedDBPExchange
from graphcl.datasets import OutageEvents, save_outage_events, simulate_storms
from graphcl.errors import ConfigError, PartitionError
from graphcl.metrics import morisita_horn
from graphcl.outages import severity
from graphcl.outages.model import EventBatches
from graphcl.outages.scaling import Standardization
from graphcl.training import seed_everything
from simulations.carriers.local import LocalGrid

TRAIN, VAL, TEST = [0, 1, 2, 3, 4, 5], [6], [7, 8]
NEWCOMER = {
    "data.outages.newcomer": "strip-1",
    "data.outages.newcomer_events": "event-4, event-0",
}
SCALES = ("static_scale", "weather_scale")


@pytest.fixture
def stored(tmp_path):
    """Write events to a file of their own; return the keys that lead there."""

    def write(events: OutageEvents, name: str = "storms") -> dict[str, str]:
        path = tmp_path / f"{name}.npz"
        save_outage_events(events, path)
        return {"data.source": str(path)}

    return write


@pytest.fixture(scope="module")
def storms() -> OutageEvents:
    return simulate_storms(24, 9, num_districts=3, seed=4).events


def same(one, other) -> bool:
    assert set(one) == set(other)
    return all(torch.equal(one[name], other[name]) for name in one)


def scales(tensors, prefix: str = "") -> dict[str, torch.Tensor]:
    """Return the scales of features among the weights of a network."""
    found = {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if any(f"{scale}." in name for scale in SCALES)
    }
    assert found
    return found


def own_scales(experiment, partition: int) -> dict[str, torch.Tensor]:
    """Return the scales of a client's own locations and training events, computed apart."""
    clients = clients_of(experiment)
    own = clients.whole.at(clients.locations[partition])
    own = own.of(clients.territories[partition].splits["train"])
    place = torch.cat([own.static, own.customers[:, None]], 1)
    found = {}
    for name, x in zip(SCALES, (place, own.weather.flatten(0, 1)), strict=True):
        scale = Standardization(x.size(1))
        scale.fit(x)
        found |= {f"network.{name}.{part}": value for part, value in scale.state_dict().items()}
    return found


def kept(grid, partition: int) -> dict[str, torch.Tensor]:
    return unpack(grid.contexts[partition].state.array_records["learner"])


def sent_up(grid, server_round: int, partition: int) -> dict[str, torch.Tensor]:
    return to_tensors(grid.replies["train", server_round, partition].content["arrays"])


def sent_down(grid, server_round: int, partition: int) -> dict[str, torch.Tensor]:
    return to_tensors(grid.sent["train", server_round, partition].content["arrays"])


# Who holds what.


def test_clients_are_the_districts_in_order_and_hold_their_own_locations(outages, stored, storms):
    mixed = storms.at(torch.randperm(24, generator=torch.Generator().manual_seed(0)))
    experiment = outages(**stored(mixed))
    clients = clients_of(experiment)
    names = [one.name for one in clients.territories]
    assert names == list(dict.fromkeys(mixed.district))
    for partition, name in enumerate(names):
        own = [i for i in range(24) if mixed.district[i] == name]
        learner = OutageLearner(experiment, partition)
        for split, events in (("train", TRAIN), ("val", VAL), ("test", TEST)):
            held = learner.storms[split]
            assert torch.equal(held.outages, mixed.outages[events][:, own].float())
            assert torch.equal(held.weather, mixed.weather[events][:, own])
            assert torch.equal(held.territory.customers, mixed.customers[own])
        assert learner.facts() == {
            "num-examples": len(TRAIN) * len(own),
            "num-classes": 4,
            "feature-names": learner.names,
            "static-channels": len(mixed.static_names),
            "weather-channels": len(mixed.weather_names),
        }


def test_the_report_counts_locations_by_their_worst_severity_in_training(outages, stored, storms):
    counts = storms.outages.clone()
    counts[VAL + TEST] = storms.customers.long()  # what is to be predicted is not described
    report = clients_of(outages(**stored(replace(storms, outages=counts)))).report
    worst = severity(storms.outages[TRAIN], storms.customers).amax(0)
    for client, own in zip(report.clients, storms.districts().values(), strict=True):
        counts = torch.tensor(client.class_counts)
        assert torch.equal(counts, torch.bincount(worst[own], minlength=len(counts)))
    across = [u for u, v in storms.borders.t() if storms.district[u] != storms.district[v]]
    assert (report.edges, report.cut_edges) == (storms.borders.size(1), len(across))


@pytest.mark.parametrize(
    ("keys", "splits"),
    [
        ({}, (TRAIN, VAL, TEST)),
        ({"test_events": "event-1"}, ([0, 2, 3, 4, 5, 6], [7, 8], [1])),
        ({"val_events": "event-8,  event-0"}, ([1, 2, 3, 4, 5], [8, 0], [6, 7])),
        ({"val_events": "event-0", "test_events": "event-3"}, ([1, 2, 4, 5, 6, 7, 8], [0], [3])),
    ],
)
def test_events_are_split_in_time_or_by_name(outages, keys, splits):
    experiment = outages(**{f"data.outages.{key}": value for key, value in keys.items()})
    for one in clients_of(experiment).territories:
        assert tuple(one.splits[split] for split in ("train", "val", "test")) == splits


def test_the_newcomer_trains_on_its_own_events_alone(outages):
    experiment = outages(**NEWCOMER)
    outages_of = clients_of(experiment).whole.outages.float()
    locations = clients_of(experiment).locations
    for partition, train in ((0, TRAIN), (1, [4, 0]), (2, TRAIN)):
        learner = OutageLearner(experiment, partition)
        own = locations[partition]
        assert torch.equal(learner.storms["train"].outages, outages_of[train][:, own])
        assert torch.equal(learner.storms["test"].outages, outages_of[TEST][:, own])
        assert learner.facts()["num-examples"] == len(train) * len(own)


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        (
            {"data.outages.val_events": "event-99"},
            ConfigError,
            r"data\.outages\.val_events: no event is called 'event-99'; there are event-0",
        ),
        (
            {"data.outages.test_events": "event-9"},
            ConfigError,
            r"data\.outages\.test_events: no event is called 'event-9'",
        ),
        (
            {"data.outages.test_events": "event-3, event-3"},
            ConfigError,
            r"data\.outages\.test_events: 'event-3' stands there twice",
        ),
        (
            {"data.outages.test_events": "event-3", "data.outages.val_events": "event-3"},
            ConfigError,
            r"data\.outages\.val_events: an event validates and tests",
        ),
        (
            {"data.outages.test_events": ", ".join(f"event-{e}" for e in range(7))},
            ConfigError,
            r"data\.outages: 1 of 9 events are left to train on, 2 are needed",
        ),
        (
            {**NEWCOMER, "data.outages.newcomer": "strip-7"},
            ConfigError,
            r"data\.outages\.newcomer: no district is called 'strip-7'; there are strip-0",
        ),
        (
            {**NEWCOMER, "data.outages.newcomer_events": "storm"},
            ConfigError,
            r"data\.outages\.newcomer_events: no event is called 'storm'",
        ),
        (
            {**NEWCOMER, "data.outages.newcomer_events": "event-8"},
            ConfigError,
            r"data\.outages\.newcomer_events: the newcomer trains on events that validate or test",
        ),
        (
            {"partition.clients": 4},
            PartitionError,
            r"partition\.clients is 4, but storms has 3 districts, .*: set it to 3",
        ),
    ],
)
def test_keys_that_do_not_fit_the_events_are_named(outages, keys, error, message):
    with pytest.raises(error, match=message):
        clients_of(outages(**keys))


def test_events_without_counts_cannot_be_learned_from(outages, stored, storms):
    keys = stored(replace(storms, outages=None))
    with pytest.raises(ConfigError, match=r"data\.source: .* have no counts to learn from"):
        clients_of(outages(**keys))


# What fit may see.


@pytest.mark.parametrize("strategy", ["local", "fedavg", "fedproto", "feddbp", "pooled"])
def test_events_that_validate_or_test_never_reach_the_weights(
    outages, staged, stored, storms, tmp_path, new_process, strategy
):
    def changed(events: list[int]) -> OutageEvents:
        counts, weather = storms.outages.clone(), storms.weather.clone()
        counts[events] = (counts[events] + 1).minimum(storms.customers.long())
        weather[events] *= 1.5
        return replace(storms, outages=counts, weather=weather)

    weights, scores = [], []
    variants = {"true": storms, "unseen": changed(VAL + TEST), "seen": changed(TRAIN[-1:])}
    for name, events in variants.items():
        new_process()
        grid = staged(outages(strategy, tmp_path / name, **stored(events, name)))
        grid.serve()
        keeps = strategy not in ("fedavg", "pooled")
        weights.append(kept(grid, 0) if keeps else sent_up(grid, 2, 0))
        scores.append(grid.replies["evaluate", 2, 0].content["metrics"]["mae"])
    assert same(weights[0], weights[1])
    assert scores[0] != scores[1]
    assert not same(weights[0], weights[2])


def test_a_client_weighs_and_trains_by_no_other_districts_storms(
    outages, staged, stored, storms, tmp_path, new_process
):
    elsewhere = storms.outages.clone()
    elsewhere[:, storms.districts()["strip-2"]] = 0
    weights = []
    for name, counts in (("true", storms.outages), ("quiet", elsewhere)):
        new_process()
        keys = stored(replace(storms, outages=counts), name)
        grid = staged(outages("local", tmp_path / name, **keys))
        grid.serve()
        weights.append([kept(grid, partition) for partition in range(3)])
    assert [same(*both) for both in zip(*weights, strict=True)] == [True, True, False]


def test_the_algorithms_terms_stand_beside_the_networks_own(outages):
    """FedDBP's contrast has the name of SA-HGNN's and must not take its place."""
    learner = OutageLearner(outages("feddbp", **{"outages.contrast_weight": 1.0}), 0)
    terms = learner.fit(lambda _: {"align": torch.tensor(2.0), "contrast": torch.tensor(3.0)})
    assert (terms["align"], terms["contrast"]) == (2.0, 3.0)
    own = {"count", "total", "situation-contrast"}
    assert set(terms) == own | {"align", "contrast", "loss"}
    assert all(terms[name] > 0 for name in own)
    assert terms["loss"] == pytest.approx(5.0 + sum(terms[name] for name in own))


@pytest.mark.parametrize(("strategy", "seen"), [("fedavg", False), ("feddbp", True)])
def test_severities_reach_prototype_algorithms_alone(outages, strategy, seen):
    experiment, given = outages(strategy), []
    learner = OutageLearner(experiment, 0)
    learner.fit(lambda out: given.append(out) or {})
    held = learner.storms["train"]
    assert [len(out.y) for out in given] == [held.outages.numel() if seen else 0]
    if seen:
        counted = severity(held.outages, held.territory.customers).flatten()
        assert torch.equal(given[0].y.bincount(), counted.bincount())


# Scales of features.


def test_scales_are_taken_once_and_averaged(outages, staged, tmp_path):
    experiment = outages("fedavg", tmp_path, **{"run.rounds": 3}, **NEWCOMER)
    grid = staged(experiment)
    grid.serve()
    for name, value in scales(sent_down(grid, 1, 0)).items():
        assert float(value.unique()) == (0.0 if name.endswith("mean") else 1.0)
    replies = [scales(sent_up(grid, 1, partition)) for partition in range(3)]
    for partition in range(3):
        assert same(replies[partition], own_scales(experiment, partition))
    samples = torch.tensor([OutageLearner(experiment, p).facts()["num-examples"] for p in range(3)])
    mean = scales(sent_down(grid, 2, 0))
    for name, value in mean.items():
        stacked = torch.stack([reply[name].double() for reply in replies])
        wanted = (samples[:, None] * stacked).sum(0) / samples.sum()
        torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=1e-6)
        assert not torch.equal(value, replies[0][name])
    for partition in range(3):
        assert same(scales(sent_up(grid, 2, partition)), mean)
    torch.testing.assert_close(scales(sent_down(grid, 3, 0)), mean)


@pytest.mark.parametrize("personal", [SCALES, SCALES[1:], SCALES[:1]], ids=len)
def test_scales_may_stay_at_home(outages, staged, tmp_path, personal):
    names = ", ".join(f"network.{scale}" for scale in personal)
    experiment = outages("fedavg", tmp_path, **{"strategy.personal_weights": names})
    grid = staged(experiment)
    grid.serve()
    for partition in range(3):
        mine = own_scales(experiment, partition)
        home = {n: v for n, v in mine.items() if any(f".{scale}." in n for scale in personal)}
        assert same(kept(grid, partition), home)
        assert not set(home) & set(sent_up(grid, 2, partition))
        for name in set(mine) - set(home):  # what is shared is fitted all the same
            assert torch.equal(sent_up(grid, 1, partition)[name], mine[name])


@pytest.mark.parametrize("strategy", ["local", "feddbp"])
def test_a_model_of_its_own_has_scales_of_its_own(outages, staged, tmp_path, strategy):
    experiment = outages(strategy, tmp_path, **NEWCOMER)
    grid = staged(experiment)
    grid.serve()
    for partition in range(3):
        assert same(scales(kept(grid, partition), "model/"), own_scales(experiment, partition))


# Prototypes of severity.


def test_uploads_are_the_classes_of_severity_with_all_samples_behind_them(
    outages, staged, tmp_path
):
    experiment = outages("feddbp", tmp_path, **NEWCOMER)
    grid = staged(experiment)
    grid.serve()
    for partition in range(3):
        learner = OutageLearner(experiment, partition)
        held = learner.storms["train"]
        counted = severity(held.outages, held.territory.customers).flatten().bincount(minlength=4)
        content = grid.replies["train", 2, partition].content
        upload = to_tensors(content["prototypes"])
        assert torch.equal(upload["classes"], counted.nonzero().flatten())
        assert torch.equal(upload["support"], counted[upload["classes"]])
        assert int(upload["support"].sum()) == content["metrics"]["num-examples"]
        assert upload["values"].shape == (len(upload["classes"]), 6)


def test_the_gradient_reaches_the_projector(outages):
    experiment = outages("feddbp")
    learner = OutageLearner(experiment, 0, FedDBPExchange.projector(experiment))
    for _ in range(2):  # the first step moves a last layer of zeros, which lets the second through
        learner.fit(lambda _: {})
    parameters = dict(learner.model.projector.named_parameters())
    assert parameters
    for name, parameter in parameters.items():
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("strategy", ["local", "fedavg", "fedproto", "feddbp", "pooled"])
def test_a_spared_district_and_a_lone_location_take_part(
    outages, staged, stored, storms, tmp_path, lines_of, strategy
):
    """One client has one class of severity and no outage, another one has no neighbour."""
    west, middle, east = storms.districts().values()
    counts = storms.outages.clone()
    counts[:, middle] = 0
    events = replace(storms, outages=counts).at(torch.cat([west, middle, east[:1]]))
    grid = staged(outages(strategy, tmp_path / "run", **stored(events)))
    grid.serve()
    lines = lines_of(tmp_path / "run", kind="client", round=2)
    assert {line["status"] for line in lines} <= {"ok", "idle"}
    assert [line["test_examples"] for line in lines] == [2 * len(west), 2 * len(middle), 2]
    for line in lines:
        scores = [line[score.key] for score in SCORES["outages"]]
        assert torch.tensor([*scores, line["val_mae"], line["test_loss"]]).isfinite().all()
    if strategy == "feddbp":
        upload = to_tensors(grid.replies["train", 2, 1].content["prototypes"])
        assert upload["classes"].tolist() == [0]


# Pooled training, and scores.


def test_pooled_is_training_on_the_union(outages, staged, tmp_path):
    """Against a plain loop over all locations."""
    experiment = outages("pooled", tmp_path)
    grid = staged(experiment)
    grid.serve()
    learner = OutageLearner(experiment, 0)
    whole = clients_of(experiment).whole
    held = learner.model.network.prepare(whole.of(TRAIN))
    learner.load_weights(sent_down(grid, 1, 0))
    network = learner.model.network.train()
    for server_round in (1, 2):
        seed_everything(experiment.run.seed, "fit", server_round, 0)
        if server_round == 1:
            network.fit_scales(held)
        order = int(torch.randint(2**31, ()))
        for batch in EventBatches(held, network.config.batch_events, order):
            learner.optimizer.zero_grad()
            sum(network.loss(batch).values()).backward()
            learner.optimizer.step()
    served = to_tensors(grid.sent["evaluate", 2, 1].content["arrays"])
    torch.testing.assert_close(served, dict(learner.model.state_dict()), rtol=1e-4, atol=1e-6)
    assert {key[2] for key in grid.sent if key[0] == "train"} == {0}
    assert {key[2] for key in grid.sent if key[0] == "evaluate"} == {0, 1, 2}


@pytest.mark.parametrize("strategy", ["local", "fedavg", "pooled"])
def test_scores_are_those_of_a_clients_own_locations(outages, staged, tmp_path, strategy):
    experiment = outages(strategy, tmp_path)
    grid = staged(experiment)
    grid.serve()
    clients = clients_of(experiment)
    for partition, own in enumerate(clients.locations):
        network = OutageLearner(experiment, partition).model.eval()
        if strategy == "local":
            stored = kept(grid, partition).items()
            weights = {n.removeprefix("model/"): v for n, v in stored if n.startswith("model/")}
        else:
            weights = to_tensors(grid.sent["evaluate", 2, partition].content["arrays"])
        network.load_state_dict(weights)
        seen = clients.whole if strategy == "pooled" else clients.whole.at(own)
        asked = own if strategy == "pooled" else torch.arange(len(own))
        rows = {}
        for event in VAL + TEST:
            with torch.no_grad():
                expected = network(network.network.prepare(seen.of([event])))[1][0, asked]
            rows[event] = list(
                zip(expected.tolist(), seen.outages[event][asked].tolist(), strict=True)
            )
        tested = [pair for event in TEST for pair in rows[event]]
        off = [sum(p for p, _ in rows[e]) - sum(y for _, y in rows[e]) for e in TEST]
        alike = [morisita_horn(*torch.tensor(rows[e], dtype=torch.double).t()) for e in TEST]
        wanted = {
            "num-examples": len(tested),
            "val-examples": len(rows[VAL[0]]),
            "mae": sum(abs(p - y) for p, y in tested) / len(tested),
            "rmse": (sum((p - y) ** 2 for p, y in tested) / len(tested)) ** 0.5,
            "val-mae": sum(abs(p - y) for p, y in rows[VAL[0]]) / len(rows[VAL[0]]),
            "total-error": sum(map(abs, off)) / len(tested),
            "morisita-horn": sum(alike) / len(TEST),
        }
        found = grid.replies["evaluate", 2, partition].content["metrics"]
        for name, value in wanted.items():
            assert found[name] == pytest.approx(value, rel=1e-4), name


# From one process to the next.


PERSONAL = {"strategy.personal_weights": "network.weather_scale"}


@pytest.mark.parametrize(
    ("strategy", "keys"),
    [
        ("local", NEWCOMER),
        ("fedavg", {}),
        ("fedavg", NEWCOMER),
        ("fedavg", NEWCOMER | PERSONAL),
        ("feddbp", NEWCOMER),
        ("pooled", {}),
    ],
)
def test_a_killed_run_resumes_to_the_same_digest(
    outages, tmp_path, summary_of, killed_and_resumed, strategy, keys
):
    keys = {**keys, "run.rounds": 3, "strategy.fraction": 0.7}
    LocalGrid(outages(strategy, tmp_path / "whole", **keys)).serve()
    killed_and_resumed(outages(strategy, tmp_path / "killed", **keys), 2)
    assert summary_of(tmp_path / "killed")["digest"] == summary_of(tmp_path / "whole")["digest"]
