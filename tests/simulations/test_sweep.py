"""`graphcl sweep`: what is planned, what is run again and what is not, and what is called best."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from federation.experiment import describe_keys
from federation.run_directory import RunDirectory
from graphcl.errors import ConfigError, GraphCLError
from simulations.compare import compare, read_runs
from simulations.run import execute
from simulations.sweep import Trial, lay_out_trials, parse_ranges, plan_sweep, settings_of
from simulations.sweep_results import best_settings, sweep_result, write_result

FILE = """
[run]
name = "tiny"
rounds = 2
seed = 3
compare = "local, fedavg"

[data]
source = "csbm"
csbm.nodes = 120

[partition]
clients = 3
alpha = 1.0

[model]
hidden_channels = 8
embedding_channels = 8

[train]
epochs = 1

[simulation]
engine = "ray"
"""
RATES = "train.learning_rate=0.01,0.1"


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(FILE)
    return path


def ranges(*texts: str):
    return parse_ranges(texts, describe_keys())


def planned(file: Path, *texts: str, seeds: int = 2, samples: int | None = None) -> list[Trial]:
    return plan_sweep(file, {}, ranges(*texts), seeds, samples, file.parent / "sweep")


def digest(directory: Path) -> str:
    return json.loads((directory / "summary.json").read_text())["digest"]


def test_a_range_holds_toml_scalars_or_bare_words() -> None:
    found = ranges(
        "train.learning_rate=1e-3, 0.1",
        "strategy.name=fedproto,feddbp",
        'model.encoders="gcn","gcn, sage"',
        "data.outages.val_events=5,6",
        "privacy.masking=true,false",
    )
    assert found == {
        "train.learning_rate": [0.001, 0.1],
        "strategy.name": ["fedproto", "feddbp"],
        "model.encoders": ["gcn", "gcn, sage"],
        "data.outages.val_events": ["5", "6"],
        "privacy.masking": [True, False],
    }


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["train.epochs"], "write KEY=A,B"),
        (["train.epochs=1,,2"], "missing between commas"),
        (["train.epochs=1,2,1"], "named twice"),
        (["train.epochs=1", "train.epochs=2"], "has a range already"),
        (["run.seed=1,2"], "use --seeds"),
        (["run.compare=local"], r"give strategy\.name a range"),
        (["simulation.actors=1,2"], "not a range"),
        (["simulation.batch_clients=0,8"], "set it for all by --set"),
    ],
)
def test_a_range_that_cannot_be_read_is_refused(texts, message) -> None:
    with pytest.raises(ConfigError, match=message):
        ranges(*texts)


def test_every_setting_meets_every_seed_and_trials_are_named_by_what_decides_them(file) -> None:
    trials = planned(file, RATES, "train.epochs=1,2,3")
    assert len(trials) == len({t.directory for t in trials}) == 12
    assert {t.experiment.run.seed for t in trials} == {3, 4}
    assert {t.experiment.simulation.engine for t in trials} == {"local"}
    assert {t.experiment.run.compare for t in trials} == {""}
    again = planned(file, "train.epochs=3", "train.learning_rate=0.1", seeds=1)
    assert [t.directory for t in again] == [
        t.directory
        for t in trials
        if t.values == {"train.learning_rate": 0.1, "train.epochs": 3}
        and t.experiment.run.seed == 3
    ]


def test_samples_are_drawn_without_repetition_and_more_begin_with_fewer() -> None:
    grid = {"a": list(range(30)), "b": list(range(40))}
    few, many = (list(settings_of(grid, n, seed=5)) for n in (7, 60))
    assert many[:7] == few
    assert len({tuple(s.values()) for s in many}) == 60
    assert list(settings_of(grid, 7, seed=6)) != few
    assert len(list(settings_of(grid, 5000, seed=5))) == 1200


def test_all_trials_are_checked_before_anything_is_written(file) -> None:
    with pytest.raises(ConfigError, match=r"train\.epochs=0.*\n.*train\.epochs"):
        planned(file, "train.epochs=1,0")
    with pytest.raises(ConfigError, match=r"did you mean 'train\.epochs'"):
        planned(file, "train.epoch=1,2")
    with pytest.raises(ConfigError, match=r"model\.encoders=gcn,sage and .* are one"):
        planned(file, 'model.encoders="gcn,sage","gcn, sage"')
    with pytest.raises(GraphCLError, match=r"partition\.clients"):
        lay_out_trials(planned(file, "partition.clients=3,100"))
    assert not (file.parent / "sweep").exists()


def test_settings_are_ordered_by_validation_and_unfinished_ones_are_not_the_best(file) -> None:
    trials = planned(file, "train.learning_rate=0.01,0.1,1e-9")
    lay_out_trials(trials)
    for trial, (val, test) in zip(
        trials,
        [(0.6, 0.9), (0.6, 0.9), (0.7, 0.5), (0.8, 0.5), (0.9, 0.9), (0.0, 0.0)],
        strict=True,
    ):
        if val:
            line = {"kind": "round", "round": 1, "ok": 3, "failed": 0, "seconds": 1.0}
            line |= {"bytes_up": 5, "bytes_down": 5, "accuracy": test, "val_accuracy": val}
            RunDirectory(trial.directory).record([line])
            (trial.directory / "summary.json").write_text('{"digest": "x"}')
    found = sweep_result(trials, {trials[5].directory: "out of luck"})
    assert [row.values["train.learning_rate"] for row in found.rows] == [0.1, 0.01, 1e-9]
    assert found.best is found.rows[0]
    assert best_settings(found.best) == "--set train.learning_rate=0.1"
    assert found.failures == ["train.learning_rate=1e-09, seed 4: out of luck"]
    unlike = replace(found, comparable=False)
    assert unlike.best is None


def test_settings_on_unlike_data_have_no_best(file) -> None:
    trials = planned(file, "partition.alpha=0.5,1.0", seeds=1)
    assert not sweep_result(trials, {}).comparable


@pytest.mark.processes
def test_a_sweep_on_ray_tune_keeps_resumes_and_survives(
    file, graphcl, monkeypatch, tmp_path
) -> None:
    """One start of Ray: a finished trial, an interrupted one, a damaged one, and a fresh one."""
    fresh, finished, interrupted, damaged = trials = planned(file, RATES)
    lay_out_trials(trials)
    execute(finished.directory)
    stamp = (finished.directory / "summary.json").stat().st_mtime_ns
    unbroken = tmp_path / "unbroken"
    shutil.copytree(interrupted.directory, unbroken)
    execute(unbroken)

    record = RunDirectory.record

    def stop(run: RunDirectory, lines) -> None:
        if any(line["round"] == 2 for line in lines):
            raise KeyboardInterrupt
        record(run, lines)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "record", stop)
        with pytest.raises(KeyboardInterrupt):
            execute(interrupted.directory)
    assert not interrupted.finished
    (damaged.directory / "checkpoint" / "manifest.json").write_text("{")

    command = ("sweep", str(file), "--range", RATES, "--seeds", "2", "--out", "sweep")
    code, out = graphcl(*command, "--jobs", "1")
    assert code == 1, out
    assert "1 of 4 trials failed" in out
    assert "manifest.json: damaged" in out
    assert "Traceback" not in out
    assert fresh.finished
    assert not damaged.finished
    assert (finished.directory / "summary.json").stat().st_mtime_ns == stamp
    assert digest(interrupted.directory) == digest(unbroken)
    repeated = (interrupted.directory / "releases").read_text().split()
    assert repeated == ["1", "2", "2"]  # the first round was not trained again
    folder = file.parent / "sweep"
    assert not (folder / ".tune").exists()
    # The setting with the failed trial is shown and not chosen.
    written = json.loads((folder / "sweep.json").read_text())
    assert written["best"] == {"train.learning_rate": 0.01}

    # What is left can be repaired; with every trial finished, the command starts no Ray.
    shutil.rmtree(damaged.directory)
    lay_out_trials([damaged])
    execute(damaged.directory)
    monkeypatch.setattr("ray.init", None)
    code, out = graphcl(*command)
    assert code == 0, out
    assert "4 of 4 trials finished" in out
    assert "graphcl run" in out
    assert "--set train.learning_rate=0.0" in out or "--set train.learning_rate=0.1" in out
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "| train.learning_rate | seeds |" in (folder / "sweep.md").read_text()

    found = compare(read_runs([folder]))
    assert found.keys == ["train.learning_rate"]
    assert found.contrasts[0].difference.mean.count == 2


def test_a_sweep_without_seeds_or_with_an_unknown_key_starts_nothing(graphcl, file) -> None:
    assert graphcl("sweep", str(file), "--range", RATES, "--seeds", "0")[0] == 2
    code, out = graphcl("sweep", str(file), "--range", "train.epoch=1,2")
    assert code == 2
    assert "did you mean 'train.epochs'" in out
    assert not (file.parent / "runs").exists()


def test_rows_of_unlike_strategies_are_drawn_too(file) -> None:
    trials = planned(file, "strategy.name=local,fedproto", seeds=1)
    lay_out_trials(trials)
    for trial in trials:
        execute(trial.directory)
    folder = file.parent / "sweep"
    write_result(sweep_result(trials, {}), folder)
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "local" in (folder / "sweep.md").read_text()
