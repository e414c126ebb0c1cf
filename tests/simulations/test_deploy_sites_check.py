"""What would leave a site: all of it is listed and explained, and bad data leave nothing."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from flwr.app import RecordDict

from federation.deploy.provision import provision
from federation.deploy.split import split
from federation.experiment import load_experiment
from federation.records import num_bytes
from graphcl.errors import ConfigError, DataError
from simulations.carriers.local import LocalGrid
from simulations.rehearsal import rehearse

TASKS = {
    "classify": {},
    "pretrain": {"task.name": "pretrain"},
    "images": {
        "task.name": "images",
        "data.source": "digits",
        "model.encoders": "cnn",
        "model.hidden_channels": 1,
        "images.batch_size": 64,
    },
    "outages": {
        "task.name": "outages",
        "data.source": "storms",
        "data.outages.locations": 16,
        "data.outages.events": 9,
        "data.outages.districts": 2,
        "partition.scheme": "natural",
        "partition.clients": 2,
    },
    "forecast": {
        "task.name": "forecast",
        "data.source": "confounded",
        "data.series.nodes": 4,
        "data.series.steps": 260,
        "partition.scheme": "natural",
        "partition.clients": 2,
        "forecast.num_prototypes": 4,
        "forecast.epoch_windows": 32,
    },
    "recommend": {
        "task.name": "recommend",
        "data.source": "shoppers",
        "data.interactions.users": 24,
        "data.interactions.items": 40,
        "partition.scheme": "users",
        "partition.clients": 2,
        "recommend.batch_size": 8,
        "recommend.length": 6,
    },
}


@pytest.fixture
def sites(tiny, tmp_path):
    """Split an experiment: its natural form, and the folders of its clients."""

    def build(task="classify", **keys):
        experiment = tiny({**TASKS[task], "train.epochs": 1, **keys})
        deployment = split(experiment, tmp_path / "sites")
        natural = load_experiment(tmp_path / "sites/config.toml", {"run.rounds": 1})
        return natural, [site.data for site in deployment.site]

    return build


def rows(found) -> dict[str, tuple]:
    return {
        f"{reply.message}/{entry.record}/{entry.name}": entry
        for reply in found.replies
        for entry in reply.entries
    }


@pytest.mark.parametrize(
    ("task", "strategy"),
    [
        *(("classify", name) for name in ("fedavg", "fedproto", "feddbp", "fedtgp", "lgfedavg")),
        ("classify", "fedadam"),
        ("classify", "krum"),
        ("classify", "local"),
        ("pretrain", "feddbp"),
        ("images", "feddbp"),
        ("images", "fedavg"),
        ("outages", "fedavg"),
        ("outages", "fedper"),
        ("forecast", "scfsgl"),
        ("recommend", "fedprox"),
        ("recommend", "feddbp"),
    ],
)
def test_all_that_leaves_is_what_a_federation_would_have_sent(sites, task, strategy, tmp_path):
    """Against the messages of a real first round: same records, names, shapes and bytes."""
    experiment, data = sites(task, **{"strategy.name": strategy})
    found = rehearse(experiment, data[1], 1)
    sent: dict[str, RecordDict] = {}

    class Grid(LocalGrid):
        def deliver(self, messages, timeout):
            replies = super().deliver(messages, timeout)
            for message, reply in zip(messages, replies, strict=True):
                if message.metadata.dst_node_id == 2:
                    kind = message.metadata.message_type.removeprefix("query.")
                    sent.setdefault(kind, reply.content)
            return replies

    Grid(experiment.override({"run.directory": str(tmp_path / "real")})).serve()
    assert [reply.message for reply in found.replies] == ["hello", "train", "evaluate"]
    for reply in found.replies:
        content = sent[reply.message]
        names = {(record, name) for record, held in content.items() for name in held}
        assert {(entry.record, entry.name) for entry in reply.entries} == names
        for entry in reply.entries:
            value = content[entry.record][entry.name]
            if hasattr(value, "numpy"):
                assert (entry.shape, entry.dtype) == (value.numpy().shape, str(value.numpy().dtype))
        # A count or a clock takes a byte more or less.
        assert reply.bytes == pytest.approx(num_bytes(content), abs=16)
        assert sum(entry.bytes for entry in reply.entries) <= reply.bytes


def test_masked_prototypes_are_said_to_be_masked(sites):
    keys = {"strategy.name": "fedproto", "privacy.masking": True}
    experiment, data = sites(**keys)
    found = rehearse(experiment, data[0])
    told = rows(found)
    assert {name for name in told if name.startswith("train/prototypes")} == {
        "train/prototypes/words"
    }
    assert told["hello/masking/public"].shape == (32,)
    assert found.least_support is None
    assert any("pairwise masks hide" in sentence for sentence in found.statement.protected)


def test_small_classes_stay_and_the_least_support_is_told(sites):
    experiment, data = sites(**{"strategy.name": "fedproto"})
    exact = rehearse(experiment, data[0])
    least = exact.least_support
    assert least is not None
    kept = rehearse(experiment.override({"privacy.min_support": least + 1}), data[0])
    assert kept.least_support > least
    before, after = (rows(found)["train/prototypes/classes"].shape[0] for found in (exact, kept))
    assert after < before
    assert f"fewer than {least + 1} samples do not leave" in " ".join(kept.statement.protected)


def test_noise_is_told_with_its_epsilon_over_all_rounds(sites):
    keys = {
        "strategy.name": "fedproto",
        "privacy.clip": 1.0,
        "privacy.noise_multiplier": 2.0,
    }
    experiment, data = sites(**keys)
    told = {}
    for rounds in (1, 20):
        found = rehearse(experiment.override({"run.rounds": rounds}), data[0])
        [sentence] = [s for s in found.statement.protected if "ε = " in s]
        told[rounds] = float(re.search(r"ε = ([\d.]+)", sentence)[1])
    assert 0 < told[1] < told[20]


def test_labels_and_data_are_told_apart(sites):
    experiment, data = sites()
    told = rows(rehearse(experiment, data[0]))
    assert told["train/prototypes/support"].source == "labels"
    assert told["train/prototypes/values"].source == "data and labels"
    assert told["train/metrics/partition-id"].source == "nothing"
    assert told["hello/facts/in-channels"].source == "data"


def test_a_rehearsal_leaves_no_file(sites, tmp_path, monkeypatch):
    experiment, data = sites()
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    rehearse(experiment, data[0])
    assert sorted(tmp_path.rglob("*")) == before


# On the command line.


def test_the_command_lists_every_entry(sites, graphcl, tmp_path):
    experiment, data = sites()
    config = tmp_path / "sites/config.toml"
    code, text = graphcl("deploy", "check", data[0], "--config", str(config))
    assert code == 0
    found = rehearse(experiment, data[0])
    for path, entry in rows(found).items():
        assert entry.name in text, path
        assert entry.meaning in text, path
    assert "What is not" in text
    code, text = graphcl("deploy", "check", data[0], "--config", str(config), "--json")
    assert code == 0
    told = json.loads(text)
    assert [reply["message"] for reply in told["replies"]] == ["hello", "train", "evaluate"]
    assert told["least_support"] == found.least_support
    assert told["task"] == "classify"
    shapes = {e["name"]: tuple(e["shape"]) for e in told["replies"][1]["entries"]}
    assert shapes["values"] == rows(found)["train/prototypes/values"].shape


def test_a_bundle_says_all_that_is_needed(sites, graphcl, tmp_path):
    sites()
    provision(tmp_path / "sites/sites.toml", tmp_path / "out")
    bundle = str(tmp_path / "out/sites/site-2")
    code, text = graphcl("deploy", "check", bundle, "--json")
    assert (code, json.loads(text)["partition"]) == (0, 2)
    code, text = graphcl("deploy", "check", bundle, "--partition", "1")
    assert (code, "a bundle says all that is needed" in text) == (2, True)


@pytest.mark.parametrize(
    ("task", "called"),
    [
        ("classify", "nodes"),
        ("images", "images"),
        ("outages", "outage"),
        ("forecast", "traffic"),
    ],
)
def test_the_short_form_knows_the_tasks(sites, graphcl, task, called):
    _, data = sites(task)
    for name in (task, called):
        code, text = graphcl("deploy", "check", data[0], "--task", name, "--json")
        assert (code, json.loads(text)["task"]) == (0, task), text


def test_the_short_form_of_recommend(sites, graphcl):
    _, data = sites("recommend")
    code, text = graphcl("deploy", "check", data[0], "--task", "recommend", "--json")
    assert (code, json.loads(text)["strategy"]) == (0, "fedavg")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the experiment file by --config, or a task by --task, not both"),
        (["--task", "wether"], "--task wether: no task is called so; there are classify"),
        (["--config", "absent.toml"], "absent.toml: no such experiment file"),
        (["--task", "nodes", "--partition", "1"], "--partition 1: partition.clients is 1"),
    ],
)
def test_wrong_arguments_are_one_message(sites, graphcl, arguments, message):
    _, data = sites()
    code, text = graphcl("deploy", "check", data[0], *arguments)
    assert (code, message in text) == (2, True), text


def broken(folder: Path, **changes) -> None:
    """Change arrays of the one file in a folder."""
    [file] = folder.iterdir()
    with np.load(file) as stored:
        arrays = dict(stored)
    arrays |= {key: change(arrays.get(key)) for key, change in changes.items()}
    np.savez(file, **{key: value for key, value in arrays.items() if value is not None})


def test_a_class_that_a_list_would_take_for_two_is_named(sites, graphcl):
    _, data = sites("images")
    broken(Path(data[0]), classes=lambda names: np.array(["cat, tabby", *names[1:]]))
    code, text = graphcl("deploy", "check", data[0], "--task", "images")
    assert (code, "class 'cat, tabby': a federation lists" in text) == (2, True), text


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("classify", {"x": lambda x: np.full_like(x, np.nan)}, "graph.npz: x"),
        ("classify", {"edges": lambda e: e + 10_000}, "graph.npz: edges"),
        ("classify", {"y": lambda _: None}, "missing keys: y"),
        ("outages", {"outages": lambda o: o - 10_000}, "counts are not negative"),
        ("outages", {"weather": lambda w: w[:-1]}, "events.npz: weather has shape"),
        ("forecast", {"values": lambda v: v[:20]}, "longer than the"),
        ("recommend", {"item": lambda i: i + 10_000}, "interactions.npz: item"),
    ],
)
def test_bad_data_are_named_and_nothing_would_leave(
    sites, graphcl, tmp_path, task, changes, message
):
    _, data = sites(task)
    broken(Path(data[0]), **changes)
    config = str(tmp_path / "sites/config.toml")
    code, text = graphcl("deploy", "check", data[0], "--config", config, "--json")
    assert code in (1, 2)
    assert message in text
    assert "replies" not in text
    assert text.startswith("error:")


def test_errors_keep_their_kind(sites, tmp_path):
    experiment, data = sites()
    with pytest.raises(DataError, match="not found"):
        rehearse(experiment, str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match=r"data\.num_classes: this node has its own data alone"):
        rehearse(experiment.override({"data.num_classes": 0}), data[0])
