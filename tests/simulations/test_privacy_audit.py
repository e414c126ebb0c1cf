"""``graphcl audit`` finds leaks where they are, and that defences close them."""

import json

import pytest
from typer.testing import CliRunner

from federation.experiment import Experiment
from graphcl.errors import ConfigError
from simulations.audit import audit, by_size, defences, write_audit
from simulations.cli import app

KEYS = {
    "run.name": "little",
    "run.rounds": 2,
    "data.source": "csbm",
    "data.csbm.nodes": 200,
    "data.csbm.classes": 5,
    "data.csbm.features": 8,
    "data.train_ratio": 0.2,
    "partition.clients": 4,
    "partition.alpha": 0.5,
    "model.hidden_channels": 8,
    "model.embedding_channels": 8,
    "strategy.name": "fedproto",
    "privacy.clip": 1.0,
}


@pytest.fixture(scope="module")
def found():
    experiment = Experiment.from_flat(KEYS)
    tried = defences(experiment, [1.0], [2])
    results = audit(experiment, tried, 2)
    return experiment, {one.defence.name: one for one in results}


def sizes(one) -> dict:
    return {leak.size: leak for leak in by_size(one)}


def test_every_class_of_one_sample_is_reconstructed_without_a_defence(found):
    one = sizes(found[1]["none"])["1"]
    assert one.withheld == 0
    assert one.exact == 1
    assert one.owner == 1
    assert one.auc > 0.95
    assert one.chance < 0.6


def test_larger_classes_leak_less(found):
    none = sizes(found[1]["none"])
    assert none["6-20"].exact == 0
    assert none["6-20"].auc < none["2-5"].auc < none["1"].auc


def test_a_support_withholds_small_classes_and_those_alone(found):
    leaks = sizes(found[1]["support ≥ 2"])
    assert leaks["1"].withheld == 1
    assert leaks["1"].auc is None
    assert leaks["2-5"].withheld == 0


def test_noise_hides_single_samples(found):
    leaks = sizes(found[1]["ε = 1"])
    assert all(not leak.exact for leak in leaks.values())
    assert (leaks["1"].auc or 0) < 0.9
    assert found[1]["ε = 1"].defence.epsilon == 1


def test_local_training_releases_nothing(found):
    assert by_size(found[1]["local only"]) == []
    assert len(found[1]["local only"].accuracy) == 2


def test_an_audit_repeats_and_is_written(found, tmp_path):
    experiment, first = found
    again = audit(experiment, [first["ε = 1"].defence], 2)
    assert again[0].accuracy == first["ε = 1"].accuracy
    assert by_size(again[0]) == by_size(first["ε = 1"])
    write_audit(experiment, list(first.values()), tmp_path)
    content = json.loads((tmp_path / "audit.json").read_text())
    assert [one["name"] for one in content["defences"]] == list(first)
    assert (tmp_path / "audit.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"strategy.name": "fedavg", "privacy.clip": 0.0}, "attacks class prototypes"),
        ({"task.name": "pretrain"}, "attacks class prototypes"),
        ({"privacy.clip": 0.0}, "noise needs a bound"),
        ({"privacy.masking": True}, "masks keep from the server"),
    ],
)
def test_what_cannot_be_audited_is_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        defences(Experiment.from_flat({**KEYS, **keys}), [1.0], [])


def test_the_command_prints_one_table(tmp_path):
    file = tmp_path / "little.toml"
    file.write_text(Experiment.from_flat(KEYS).to_toml())
    arguments = ["audit", str(file), "--seeds", "1", "--epsilon", "", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    for words in ("local only", "none", "support ≥ 6", "AUC", "exact"):
        assert words in result.output
    assert len(list(tmp_path.glob("*-little-audit/audit.json"))) == 1


@pytest.mark.parametrize("option", [["--epsilon", "0"], ["--epsilon", "a"], ["--min-support", "1"]])
def test_numbers_that_mean_nothing_are_refused(option, tmp_path):
    file = tmp_path / "little.toml"
    file.write_text(Experiment.from_flat(KEYS).to_toml())
    result = CliRunner().invoke(app, ["audit", str(file), *option])
    assert isinstance(result.exception, ConfigError)
    assert option[0] in str(result.exception)
