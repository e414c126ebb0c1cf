"""Models that leave a federation for use: they predict what their clients were scored by."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from flwr.app import Message

from federation.client_app import exchange_of
from federation.deploy.bundles import STATE, SiteBundle
from federation.deploy.desk import Desk
from federation.deploy.envelope import MESSAGE_TYPE, Answer, Order
from federation.deploy.provision import provision
from federation.deploy.site import STATES
from federation.deploy.split import split
from federation.deploy.states import last_evaluated
from federation.experiment import load_experiment
from federation.learners import clients_of
from federation.learners.territories import territory_of
from federation.records import from_bytes, unpack
from federation.run_directory import RunDirectory
from graphcl.errors import ConfigError, FederationError, GraphCLError
from graphcl.metrics import accuracy, mean_absolute_error
from graphcl.models import load_model, save_model
from simulations.carriers.local import LocalGrid
from simulations.export import export_run, export_site

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

IMAGES = {
    "task.name": "images",
    "data.source": "digits",
    "model.encoders": "cnn, resnet4",
    "model.hidden_channels": 1,
    "images.batch_size": 64,
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


@pytest.mark.parametrize("strategy", ["feddbp", "fedproto", "local"])
def test_images_are_classified_as_the_client_was_scored(ran, tmp_path, strategy):
    experiment, directory = ran(**IMAGES, **{"strategy.name": strategy})
    for partition, folder in enumerate(export_run(directory, tmp_path / "models")):
        album = clients_of(experiment).albums[partition]
        test = album.images.of(album.rows[album.masks["test"]])
        told = scores(directory, partition)["accuracy"]
        assert accuracy(load_model(folder).predict(test), test.y) == told


def test_a_label_free_method_embeds_as_its_client_did(ran, tmp_path):
    keys = {"task.name": "pretrain", "strategy.name": "fedavg"}
    experiment, directory = ran(**keys)
    [folder, *_] = export_run(directory, tmp_path / "models", partition=0)
    graph = clients_of(experiment).graphs[0]
    grid = LocalGrid(experiment)
    with exchange_of(grid.contexts[0], keep=False) as exchange:
        embedding = exchange.learner.forward().embedding
    assert torch.equal(load_model(folder).embed(graph), embedding)


@pytest.mark.parametrize("strategy", ["fedavg", "local", "feddbp"])
def test_outages_are_forecast_as_the_client_was_scored(ran, tmp_path, strategy):
    experiment, directory = ran(**STORMS, **{"strategy.name": strategy})
    for partition, folder in enumerate(export_run(directory, tmp_path / "models")):
        territory = territory_of(experiment, partition)
        test = territory.events.of(territory.splits["test"])
        found = load_model(folder).predict(test)
        told = scores(directory, partition)["mae"]
        assert mean_absolute_error(found, test.outages.float()) == pytest.approx(told, rel=1e-5)


@pytest.mark.parametrize("strategy", ["scfsgl", "feddbp"])
def test_steps_are_forecast_as_the_client_was_scored(ran, tmp_path, strategy):
    experiment, directory = ran(**SERIES, **{"strategy.name": strategy})
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
    _, directory = ran(**{"task.name": "pretrain", "strategy.name": "feddbp"})
    with pytest.raises(ConfigError, match=r"strategy\.feddbp\.fuse: the projector behind"):
        export_run(directory, tmp_path / "models")


@pytest.mark.parametrize("states", [None, {0: b"2", 1: b"1"}])
def test_a_server_that_has_no_models_says_where_they_are(ran, tmp_path, monkeypatch, states):
    """As a run of edge nodes leaves it, which keep their states themselves."""
    _, directory = ran(**{"strategy.name": "feddbp"})
    kept = dataclasses.replace(RunDirectory(directory).latest(), clients=states)
    monkeypatch.setattr(RunDirectory, "latest", lambda _: kept)
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
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(GraphCLError, match=r"model\.safetensors: no saved model"):
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
        state = unpack(from_bytes(clients[partition]).array_records["learner"])
        assert torch.equal(load_model(folder).head.weight, state["model/head.weight"])


# On the site itself.


class DeskGrid(LocalGrid):
    """Nodes that answer as the worker of an edge node does, states on their own disks."""

    def __init__(self, experiment, bundles):
        super().__init__(experiment)
        self.bundles = bundles
        self.desks = [Desk(bundle / STATE / STATES) for bundle in bundles]
        self.kept = [0] * len(bundles)
        self.numbers = itertools.count()
        for partition, bundle in enumerate(bundles):
            self.contexts[partition].node_config.update(SiteBundle.load(bundle).node_config)

    def deliver(self, messages, timeout):
        return [self._answer(message) for message in messages]

    def _answer(self, message):
        partition = message.metadata.dst_node_id - 1
        server_round = int(message.content.config_records.get("config", {}).get("server-round", 0))
        kinds = (message.metadata.message_type,)
        number, base = str(next(self.numbers)), self.kept[partition]
        order = Order("0123456789abcdef", number, base, server_round, kinds)
        envelope = Message(
            order.pack([message.content]), message.metadata.dst_node_id, MESSAGE_TYPE
        )
        envelope.metadata.__dict__["_message_id"] = f"envelope-{number}"
        reply = self.desks[partition].answer(envelope, self.contexts[partition])
        answer, [content] = Answer.unpack(reply.content, 1)
        assert not answer.errors, answer.errors
        self.kept[partition] = base if answer.kept is None else answer.kept
        return Message(content, reply_to=message)


@pytest.fixture
def deployed(tiny, tmp_path):
    """Provision the clients of an experiment, and let them run in this process."""

    def run(**keys):
        sites = tmp_path / "sites"
        deployment = split(tiny({"run.rounds": 2, "train.epochs": 1, **keys}), sites)
        provision(sites / "sites.toml", tmp_path / "out")
        bundles = [tmp_path / "out/sites" / site.name for site in deployment.site]
        # As the server has it: where the sites' data are is nothing that it knows.
        keys = {"run.directory": str(tmp_path / "run"), "data.root": str(tmp_path / "nowhere")}
        experiment = load_experiment(sites / "config.toml", keys)
        RunDirectory.of(experiment)
        DeskGrid(experiment, bundles).serve()
        return experiment.override({"data.root": str(sites / "data")}), bundles

    return run


@pytest.mark.parametrize("strategy", ["feddbp", "fedavg", "fedtgp", "fedper"])
def test_a_site_exports_the_model_that_it_was_last_evaluated_with(deployed, tmp_path, strategy):
    experiment, bundles = deployed(**{"strategy.name": strategy, "strategy.fedtgp.epochs": 2})
    for partition, bundle in enumerate(bundles):
        folder = export_site(bundle, tmp_path / "models")
        assert folder.name == bundle.name
        graph = clients_of(experiment).graphs[partition]
        found = load_model(folder).predict(graph)[graph.test_mask]
        told = scores(tmp_path / "run", partition)["accuracy"]
        assert accuracy(found, graph.y[graph.test_mask]) == told
        assert json.loads((folder / "model.json").read_text())["round"] == 2


def test_a_site_exports_its_classifier_of_images(deployed, tmp_path):
    experiment, bundles = deployed(**IMAGES, **{"strategy.name": "feddbp"})
    for partition, bundle in enumerate(bundles):
        album = clients_of(experiment).albums[partition]
        test = album.images.of(album.rows[album.masks["test"]])
        model = load_model(export_site(bundle, tmp_path / "models"))
        told = scores(tmp_path / "run", partition)["accuracy"]
        assert accuracy(model.predict(test), test.y) == told


def test_a_site_exports_its_forecaster(deployed, tmp_path):
    experiment, bundles = deployed(**SERIES, **{"strategy.name": "scfsgl"})
    test = clients_of(experiment).splits[1]["test"]
    forecast = load_model(export_site(bundles[1], tmp_path / "models"), test).predict(test)
    y = torch.stack([test.values[w + 12 : w + 24] for w in range(len(forecast))])
    told = scores(tmp_path / "run", 1)["mae"]
    assert float((forecast - y).abs().mean()) == pytest.approx(told, rel=1e-5)


def test_what_a_site_keeps_for_export_is_whole_and_without_the_key_of_its_masks(deployed, tmp_path):
    _, [bundle, *_] = deployed(**{"strategy.name": "fedproto", "privacy.masking": True})
    [kept] = (bundle / STATE / STATES).glob("*/evaluated")
    assert kept.stat().st_mode & 0o077 == 0
    content, state = last_evaluated(bundle / STATE / STATES)
    assert set(state) == {"learner"}
    assert "prototypes" in content
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(FederationError, match="evaluated: damaged"):
        export_site(bundle, tmp_path / "models")
    kept.unlink()
    with pytest.raises(FederationError, match="this site was never evaluated"):
        export_site(bundle, tmp_path / "models")
