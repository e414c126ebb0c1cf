"""Tuning on validation nodes: `graphcl probe --search`."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from federation.experiment import read_toml
from graphcl.errors import GraphCLError
from simulations import search as module
from simulations.probe import METHODS, ProbeExperiment, load_probe, run_probe
from simulations.search import Trial, count_trials, search

CONFIGS = Path(__file__).parents[2] / "configs" / "nodes"

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
    winner = max(trials, key=lambda trial: trial["val_accuracy"])
    assert written["best"] == winner["settings"]
    assert f"{100 * winner['val_accuracy']:.2f}" in out


def test_a_search_that_is_stopped_leaves_the_trials_it_made(graphcl, tmp_path, monkeypatch) -> None:
    path = tmp_path / "small.toml"
    path.write_text(path.read_text() + SEARCH)
    attempt, calls = module._try, []

    def third_fails(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise GraphCLError("the third trial fails")
        return attempt(*arguments)

    monkeypatch.setattr(module, "_try", third_fails)
    code, out = graphcl("probe", "small.toml", "--search")
    assert code == 1
    assert "the third trial fails" in out
    written = json.loads((tmp_path / "runs" / "probes" / "small-search.json").read_text())
    assert [trial["settings"] for trial in written["trials"]] == [{}, {"aspect.epochs": 1}]

    monkeypatch.setattr(module, "_try", lambda *given: calls.append(given) or attempt(*given))
    code, out = graphcl("probe", "small.toml", "--search")
    assert code == 0, out
    assert "2 trials are in" in out
    assert len(calls) == 3 + 2  # those that were missing
    finished = json.loads((tmp_path / "runs" / "probes" / "small-search.json").read_text())
    assert finished["trials"][:2] == written["trials"]
    assert len(finished["trials"]) == 4
    other = ("probe", "small.toml", "--search", "--set", "aspect.temperature=0.3")
    code, out = graphcl(*other)
    assert code == 2
    assert "small-search.json holds 4 trials of other settings: name another folder by --out" in out
    code, out = graphcl(*other, "--out", "others")
    assert code == 0, out
    assert len(calls) == 3 + 2 + 4


def test_a_search_leaves_out_what_its_method_does_not_read(graphcl, tmp_path) -> None:
    path = tmp_path / "small.toml"
    own = '"probe.weight_decay" = [0.1]\n"grace.epochs" = [1]\n'
    path.write_text(path.read_text() + SEARCH + own)
    code, out = graphcl("probe", "small.toml", "--search", "--method", "grace")
    assert code == 0, out
    written = json.loads((tmp_path / "runs" / "probes" / "small-grace-search.json").read_text())
    tried = {key for trial in written["trials"] for key in trial["settings"]}
    assert tried == {"probe.weight_decay", "grace.epochs"}
    path.write_text(path.read_text().replace(own, ""))
    code, out = graphcl("probe", "small.toml", "--search", "--method", "bgrl")
    assert code == 2
    assert "no key of the file's [search] table concerns bgrl" in out


def test_ctrl_c_says_where_the_trials_are(graphcl, tmp_path, monkeypatch) -> None:
    path = tmp_path / "small.toml"
    path.write_text(path.read_text() + SEARCH)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_try", stop)
    code, out = graphcl("probe", "small.toml", "--search")
    assert code == 130
    assert "Stopped. The same command goes on from the trials in runs/probes" in out


def test_values_that_are_added_cost_no_trial_that_is_on_record(
    graphcl, tmp_path, monkeypatch
) -> None:
    path, table = tmp_path / "small.toml", '[search]\n"aspect.epochs" = [{}]\n'
    bare = path.read_text()
    path.write_text(bare + table.format("1, 5"))
    assert graphcl("probe", "small.toml", "--search")[0] == 0
    record = tmp_path / "runs" / "probes" / "small-search.json"
    before = json.loads(record.read_text())["trials"]

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_try", stop)
    path.write_text(bare + table.format("1, 3, 5"))
    assert graphcl("probe", "small.toml", "--search")[0] == 130
    assert json.loads(record.read_text())["trials"] == before


def test_a_value_with_which_training_fails_loses(graphcl, tmp_path, monkeypatch) -> None:
    path = tmp_path / "small.toml"
    path.write_text(path.read_text() + '[search]\n"aspect.learning_rate" = [1e30, 0.02]\n')
    code, out = graphcl("probe", "small.toml", "--search")
    assert code == 0, out
    written = json.loads((tmp_path / "runs" / "probes" / "small-search.json").read_text())
    _, failed, other = written["trials"]
    assert "not finite" in failed["error"]
    assert failed["val_accuracy"] < 0 < other["val_accuracy"]
    assert written["best"] != failed["settings"]
    worse = ("--set", "aspect.learning_rate=1e30", "--out", "worse")
    code, out = graphcl("probe", "small.toml", "--search", *worse)
    assert code == 1  # nothing can be compared with a file that cannot be trained
    assert "not finite" in out


def test_a_damaged_record_is_told(graphcl, tmp_path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(path.read_text() + SEARCH)
    folder = tmp_path / "runs" / "probes"
    folder.mkdir(parents=True)
    (folder / "small-search.json").write_text('{"experiment": ')
    code, out = graphcl("probe", "small.toml", "--search")
    assert code == 2
    assert "delete it, and the search begins anew" in " ".join(out.split())


def test_a_search_keeps_the_best_value_before_it_tries_the_next_key(graphcl, tmp_path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(path.read_text() + SEARCH)
    seen = []
    trials = search(read_toml(path, command="graphcl probe"), str(path), seen.append)
    best_epochs = max(seen[:3], key=lambda trial: trial.val_accuracy).settings
    assert seen[3].settings == {**best_epochs, "aspect.sharpness": 1.0}
    assert {id(trial) for trial in trials} == {id(trial) for trial in seen}


def test_a_trial_is_what_the_probe_finds_on_validation_nodes(graphcl, tmp_path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(path.read_text() + '[search]\n"aspect.epochs" = [5]\n')
    seen = []
    search(read_toml(path, command="graphcl probe"), str(path), seen.append)
    (result,) = run_probe(load_probe(path, {"aspect.epochs": 5})).results
    assert seen[1].val_accuracy == result.val_accuracy.mean()


def test_a_trial_is_judged_by_the_mean_of_its_trainings(graphcl, tmp_path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(path.read_text() + '[search]\n"aspect.epochs" = [5]\n')
    overrides = {"probe.seeds": 2, "aspect.epochs": 2}
    first, second = (
        search(
            read_toml(path, {"aspect.epochs": 2, "aspect.seed": seed}, "graphcl probe"), str(path)
        )
        for seed in (0, 1)
    )
    seen = []
    search(read_toml(path, overrides, "graphcl probe"), str(path), seen.append)
    for trial in seen:
        alone = [
            next(one for one in trials if one.settings == trial.settings).val_accuracy
            for trials in (first, second)
        ]
        assert trial.val_accuracy == pytest.approx(sum(alone) / 2)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "needs a .search. table"),
        ('[search]\n"aspect.ordr" = [3]\n', "did you mean 'aspect.order'"),
        ('[search]\n"aspect.fusion" = ["sum", "product"]\n', "aspect.fusion"),
        ('[search]\n"aspect.num_anchors" = [512, 0]\n', "aspect.num_anchors is 0"),
    ],
)
def test_a_mistake_is_told_before_the_first_trial(graphcl, tmp_path, table, message) -> None:
    path = tmp_path / "small.toml"
    path.write_text(path.read_text() + table)
    code, out = graphcl("probe", "small.toml", "--search")
    assert code == 2
    assert message.replace(".search.", "[search]") in out
    assert not (tmp_path / "runs").exists()


def searched() -> Iterator[tuple[Path, str]]:
    """Our files, with each method that they have values of."""
    for path in sorted(CONFIGS.glob("*.toml")):
        keys = load_probe(path).search
        for method in ("aspect", "grace", "bgrl"):
            if any(key.startswith(f"{method}.") for key in keys):
                yield path, method


@pytest.mark.parametrize(("path", "method"), searched(), ids=lambda value: Path(value).stem)
def test_every_value_that_our_files_search_can_be_tried(path, method, monkeypatch) -> None:
    tried: list[ProbeExperiment] = []

    def attempt(experiment: ProbeExperiment, settings: dict) -> Trial:
        tried.append(experiment)
        return Trial(settings, 0.5, 0.0)

    monkeypatch.setattr(module, "_try", attempt)
    nested = read_toml(path, {"probe.method": method}, "graphcl probe")
    search(nested, str(path))
    assert 1 < len(tried) <= count_trials(load_probe(path, {"probe.method": method}))
    for experiment in tried:
        METHODS[method](getattr(experiment, method))
