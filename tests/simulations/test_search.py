"""Tuning on validation nodes: `graphcl probe --search`."""

import json

import pytest

from federation.experiment import read_toml
from simulations.probe import load_probe, run_probe
from simulations.search import search

SEARCH = """
[search]
"aspect.epochs" = [1, 30]
"aspect.sharpness" = [1.0]
"""


def test_search_prints_the_best_setting_and_records_every_trial(graphcl, tmp_path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(path.read_text() + SEARCH)
    code, out = graphcl("probe", "small.toml", "--search")
    assert code == 0, out
    written = json.loads((tmp_path / "runs" / "probes" / "small-search.json").read_text())
    trials = written["trials"]
    assert len(trials) == 4
    assert trials[-1]["val_accuracy"] == max(trial["val_accuracy"] for trial in trials)
    assert written["best"] == trials[-1]["settings"]
    assert f"{100 * trials[-1]['val_accuracy']:.2f}" in out


def test_a_search_keeps_the_best_value_before_it_tries_the_next_key(graphcl, tmp_path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(path.read_text() + SEARCH)
    seen = []
    trials = search(read_toml(path), str(path), seen.append)
    best_epochs = max(seen[:3], key=lambda trial: trial.val_accuracy).settings
    assert seen[3].settings == {**best_epochs, "aspect.sharpness": 1.0}
    assert {id(trial) for trial in trials} == {id(trial) for trial in seen}


def test_a_trial_is_what_the_probe_finds_on_validation_nodes(graphcl, tmp_path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(path.read_text() + '[search]\n"aspect.epochs" = [5]\n')
    seen = []
    search(read_toml(path), str(path), seen.append)
    probed = run_probe(load_probe(path, {"aspect.epochs": 5}))
    assert seen[1].val_accuracy == probed.result.val_accuracy.mean()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "needs a .search. table"),
        ('[search]\n"aspect.ordr" = [3]\n', "did you mean 'aspect.order'"),
        ('[search]\n"aspect.fusion" = ["sum", "product"]\n', "aspect.fusion"),
    ],
)
def test_a_mistake_is_told_before_the_first_trial(graphcl, tmp_path, table, message) -> None:
    path = tmp_path / "small.toml"
    path.write_text(path.read_text() + table)
    code, out = graphcl("probe", "small.toml", "--search")
    assert code == 2
    assert message.replace(".search.", "[search]") in out
    assert not (tmp_path / "runs").exists()
