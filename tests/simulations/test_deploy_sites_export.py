"""Models that leave a federation for use: they predict what their clients were scored by."""

import json

import numpy as np
import pytest
import torch

from federation.client_app import exchange_of
from federation.deploy.split import split
from federation.experiment import load_experiment
from federation.learners import clients_of
from federation.learners.territories import territory_of
from federation.records import from_bytes
from federation.run_directory import RunDirectory
from graphcl.errors import ConfigError, GraphCLError
from graphcl.metrics import accuracy, mean_absolute_error
from graphcl.models import load_model, save_model
from simulations.carriers.local import LocalGrid
from simulations.export import export_run

SERIES = {
    "task.name": "forecast",
    "data.source": "confounded",
    "data.series.nodes": 4,
    "data.series.steps": 260,
    "partition.scheme": "natural",
    "partition.clients": 2,
    "forecast.num_prototypes": 4,
    "forecast.epoch_windows": 32,
}
STORMS = {
    "task.name": "outages",
    "data.source": "storms",
    "data.outages.locations": 16,
    "data.outages.events": 9,
    "data.outages.districts": 2,
    "partition.scheme": "natural",
    "partition.clients": 2,
}
SHOPS = {
    "task.name": "recommend",
    "data.source": "shoppers",
    "data.interactions.users": 24,
    "data.interactions.items": 40,
    "partition.scheme": "users",
    "partition.clients": 2,
    "recommend.batch_size": 8,
    "recommend.length": 6,
}


@pytest.fixture
def ran(tiny):
    """Run an experiment in this process; return it and its directory."""

    def run(**keys):
        experiment = tiny({"run.rounds": 2, "train.epochs": 1, **keys})
        RunDirectory.of(experiment)
        LocalGrid(experiment).serve()
        return experiment, RunDirectory(experiment.run.directory).path

    return run


def scores(directory, partition: int) -> dict:
    """Return what the run says of a client in its last round."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line.get("partition") == partition][-1]


@pytest.mark.parametrize(
    "keys",
    [
        {"strategy.name": "fedavg"},
        {"strategy.name": "local", "model.encoders": "gcn, sage, gat, gin"},
        {"strategy.name": "fedproto"},
        {"strategy.name": "fedtgp", "strategy.fedtgp.epochs": 2},
        {"strategy.name": "feddbp", "model.encoders": "gcn, sage, mlp, aspect"},
        {"strategy.name": "feddbp", "strategy.feddbp.fuse": "concat"},
        {"strategy.name": "feddbp", "strategy.feddbp.inference": "head"},
        {"strategy.name": "fedper"},
        {"strategy.name": "feddbp", "privacy.masking": True, "strategy.feddbp.fuse": "none"},
    ],
    ids=lambda keys: "-".join(map(str, keys.values())),
)
def test_a_classifier_scores_what_its_client_scored(ran, tmp_path, keys):
    experiment, directory = ran(**keys)
    folders = export_run(directory, tmp_path / "models")
    assert len(folders) == 4
    for partition, folder in enumerate(folders):
        graph = clients_of(experiment).graphs[partition]
        found = load_model(folder).predict(graph)
        test = graph.test_mask
        told = scores(directory, partition)
        assert accuracy(found[test], graph.y[test]) == told["accuracy"]
        about = json.loads((folder / "model.json").read_text())
        assert (about["class"], about["round"], about["partition"]) == (
            "NodeClassifier",
            2,
            partition,
        )


def test_a_run_of_sites_exports_one_site_from_its_own_data(ran, tiny, tmp_path):
    split(tiny(), tmp_path / "sites")
    natural = load_experiment(tmp_path / "sites/config.toml").flat()
    del natural["run.directory"]
    experiment, directory = ran(**natural)
    [all_of, *_] = export_run(directory, tmp_path / "all")
    assert all_of.name == "site-0"
    place = str(tmp_path / "sites/data/site-0")
    [own] = export_run(directory, tmp_path / "own", partition=0, data=place)
    graph = clients_of(experiment).graphs[0]
    assert torch.equal(load_model(own).predict(graph), load_model(all_of).predict(graph))


def test_a_label_free_method_embeds_as_its_client_did(ran, tmp_path):
    keys = {"task.name": "pretrain", "strategy.name": "fedavg"}
    experiment, directory = ran(**keys)
    [folder, *_] = export_run(directory, tmp_path / "models", partition=0)
    graph = clients_of(experiment).graphs[0]
    grid = LocalGrid(experiment)
    with exchange_of(grid.contexts[0], keep=False) as exchange:
        embedding = exchange.learner.forward().embedding
    assert torch.equal(load_model(folder).embed(graph), embedding)


@pytest.mark.parametrize("strategy", ["fedavg", "local", "fedper"])
def test_outages_are_forecast_as_the_client_was_scored(ran, tmp_path, strategy):
    experiment, directory = ran(**STORMS, **{"strategy.name": strategy})
    for partition, folder in enumerate(export_run(directory, tmp_path / "models")):
        territory = territory_of(experiment, partition)
        test = territory.events.of(territory.splits["test"])
        found = load_model(folder).predict(test)
        told = scores(directory, partition)["mae"]
        assert mean_absolute_error(found, test.outages.float()) == pytest.approx(told, rel=1e-5)


def test_steps_are_forecast_as_the_client_was_scored(ran, tmp_path):
    experiment, directory = ran(**SERIES, **{"strategy.name": "scfsgl"})
    for partition, folder in enumerate(export_run(directory, tmp_path / "models")):
        test = clients_of(experiment).splits[partition]["test"]
        model = load_model(folder, test)
        forecast = model.predict(test)
        y = torch.stack([test.values[w + 12 : w + 24] for w in range(len(forecast))])
        told = scores(directory, partition)["mae"]
        assert float((forecast - y).abs().mean()) == pytest.approx(told, rel=1e-5)
        with pytest.raises(GraphCLError, match="a forecaster needs the series whose graph"):
            load_model(folder)


@pytest.mark.parametrize("strategy", ["fedavg", "feddbp"])
def test_items_are_ranked_as_the_client_ranked_them(ran, tmp_path, strategy):
    experiment, directory = ran(**SHOPS, **{"strategy.name": strategy})
    for partition, folder in enumerate(export_run(directory, tmp_path / "models")):
        train, val, test = clients_of(experiment).platforms[partition].own
        model = load_model(folder)
        hits = []
        for user, item in zip(test.user.tolist(), test.item.tolist(), strict=True):
            history = torch.cat([train.sequence(user), val.sequence(user)])
            hits.append(item in model.rank(history, 10, exclude_seen=True)[0])
        assert np.mean(hits) == pytest.approx(scores(directory, partition)["hit_ratio_10"])


def test_an_export_changes_nothing_of_the_run(ran, tmp_path):
    _, directory = ran(**{"strategy.name": "feddbp"})
    before = {p: p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}
    export_run(directory, tmp_path / "models")
    assert {p: p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()} == before


def test_what_cannot_be_exported_is_said(ran, tiny, tmp_path):
    with pytest.raises(ConfigError, match="no run directory: it holds no"):
        export_run(tmp_path, tmp_path / "models")
    RunDirectory.of(tiny(folder="begun"))
    with pytest.raises(ConfigError, match="no round is complete yet"):
        export_run(tmp_path / "begun", tmp_path / "models")
    _, directory = ran(**STORMS, **{"strategy.name": "feddbp"})
    with pytest.raises(ConfigError, match=r"strategy\.feddbp\.fuse: the projector behind"):
        export_run(directory, tmp_path / "models")


def test_a_server_that_has_no_models_says_where_they_are(ran, tmp_path):
    """As a run of edge nodes leaves it, which keep their states themselves."""
    _, directory = ran(**{"strategy.name": "feddbp"})
    manifest = directory / "checkpoint/manifest.json"
    stored = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**stored, "clients": None}))
    with pytest.raises(ConfigError, match="keeps models on the sites, and the run directory"):
        export_run(directory, tmp_path / "models")


def test_models_of_other_kinds_and_damaged_ones_are_refused(tmp_path):
    with pytest.raises(GraphCLError, match="a Linear cannot be stored; there are NodeClassifier"):
        save_model(torch.nn.Linear(1, 1), tmp_path / "linear", {})
    assert not (tmp_path / "linear").exists()
    for text in ("", "[]", "{}", '{"class": "Popen"}'):
        (tmp_path / "model.json").write_text(text)
        with pytest.raises(GraphCLError, match=r"model\.json: describes no model"):
            load_model(tmp_path)
    (tmp_path / "model.json").write_text('{"class": "NodeClassifier"}')
    (tmp_path / "model.npz").write_bytes(b"nonsense")
    with pytest.raises(GraphCLError, match=r"model\.npz: no saved model"):
        load_model(tmp_path)


def test_a_classifier_refuses_a_graph_of_other_features(ran, tmp_path):
    experiment, directory = ran(**{"strategy.name": "fedavg"})
    [folder] = export_run(directory, tmp_path / "models", partition=2)
    graph = clients_of(experiment).graphs[2].clone()
    graph.x = graph.x[:, :-1]
    with pytest.raises(GraphCLError, match="trained on 8 features, the graph has 7"):
        load_model(folder).predict(graph)


def test_states_of_clients_are_theirs(ran, tmp_path):
    """Models of clients that share none are those of their own states, not of one of them."""
    _, directory = ran(**{"strategy.name": "local"})
    clients = RunDirectory(directory).latest().clients
    for partition, folder in enumerate(export_run(directory, tmp_path / "models")):
        state = from_bytes(clients[partition]).array_records["learner"]
        own = torch.from_numpy(state["model/head.weight"].numpy().copy())
        assert torch.equal(load_model(folder).head.weight, own)
