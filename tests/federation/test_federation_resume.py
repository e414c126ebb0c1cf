"""A run that was killed at any point ends as if it had never been."""

import json
import shutil

import pytest

from federation import run_directory
from federation.run_directory import RunDirectory
from federation.strategies import ALGORITHMS
from federation.tables import WEIGHT_STRATEGIES
from graphcl.errors import FederationError
from simulations.carriers.local import LocalGrid

ROUNDS = 4


def kill_before_metrics(patch):
    original = RunDirectory.record

    def record(self, lines):
        lines = list(lines)
        if lines[-1]["round"] == 3:
            raise KeyboardInterrupt
        original(self, lines)

    patch.setattr(RunDirectory, "record", record)


def kill_between_metrics_and_checkpoint(patch):
    original = RunDirectory.checkpoint

    def checkpoint(self, server_round, *state):
        if server_round == 3:
            raise KeyboardInterrupt
        original(self, server_round, *state)

    patch.setattr(RunDirectory, "checkpoint", checkpoint)


def kill_before_the_manifest(patch):
    original = run_directory._write_atomically

    def write(path, data):
        if path.name == "manifest.json" and json.loads(data)["round"] == 3:
            path.with_name("manifest.json.new").write_bytes(data)
            raise KeyboardInterrupt
        original(path, data)

    patch.setattr(run_directory, "_write_atomically", write)


def kill_in_the_middle_of_the_first_round(patch):
    original = LocalGrid.deliver

    def deliver(self, messages, timeout):
        if messages[0].metadata.message_type == "train":
            original(self, messages[:2], timeout)
            raise KeyboardInterrupt
        return original(self, messages, timeout)

    patch.setattr(LocalGrid, "deliver", deliver)


def kill_before_the_summary(patch):
    def finish(self, summary, server):
        raise KeyboardInterrupt

    patch.setattr(RunDirectory, "finish", finish)


KILLS = [
    kill_before_metrics,
    kill_between_metrics_and_checkpoint,
    kill_before_the_manifest,
    kill_in_the_middle_of_the_first_round,
    kill_before_the_summary,
]


@pytest.mark.parametrize("kill", KILLS, ids=lambda kill: kill.__name__)
@pytest.mark.parametrize("name", sorted(set(ALGORITHMS) - {"scfsgl"}))  # of forecasts alone
def test_killed_run_goes_on_to_the_same_end(
    tiny, tmp_path, monkeypatch, summary_of, new_process, name, kill
):
    keys = {"run.rounds": ROUNDS, "strategy.fraction": 0.7, "model.dropout": 0.5}
    LocalGrid(tiny(name, tmp_path / "whole", **keys)).serve()
    new_process()
    experiment = tiny(name, tmp_path / "killed", **keys)
    with monkeypatch.context() as patch:
        kill(patch)
        with pytest.raises(KeyboardInterrupt):
            LocalGrid(experiment).serve()
    assert not (tmp_path / "killed" / "summary.json").exists()
    new_process()
    LocalGrid(experiment).serve()
    whole, resumed = summary_of(tmp_path / "whole"), summary_of(tmp_path / "killed")
    assert resumed.pop("seconds") > 0
    assert whole.pop("seconds") > 0
    assert resumed == whole  # the digest and every figure
    assert len(RunDirectory(tmp_path / "killed").lines()) == ROUNDS * 4


@pytest.mark.parametrize("name", sorted(set(ALGORITHMS) - {"scfsgl"}))  # of forecasts alone
def test_unlike_encoders_and_sgd_without_moments_resume_too(
    tiny, tmp_path, monkeypatch, summary_of, new_process, name
):
    encoders = "gcn" if name in WEIGHT_STRATEGIES else "sage, gat, mlp"
    keys = {"run.rounds": ROUNDS, "train.optimizer": "sgd", "model.encoders": encoders}
    LocalGrid(tiny(name, tmp_path / "whole", **keys)).serve()
    new_process()
    experiment = tiny(name, tmp_path / "killed", **keys)
    with monkeypatch.context() as patch:
        kill_between_metrics_and_checkpoint(patch)
        with pytest.raises(KeyboardInterrupt):
            LocalGrid(experiment).serve()
    new_process()
    LocalGrid(experiment).serve()
    assert summary_of(tmp_path / "killed")["digest"] == summary_of(tmp_path / "whole")["digest"]


def test_same_process_and_new_process_agree(tiny, tmp_path, summary_of, new_process):
    """Learners are kept from message to message; a run must not see that it had forerunners."""
    for folder in ("one", "two"):
        LocalGrid(tiny("feddbp", tmp_path / folder)).serve()
    experiment = tiny("feddbp", tmp_path / "two")
    shutil.rmtree(tmp_path / "two")
    LocalGrid(experiment).serve()  # the learners of the run before are still there
    assert summary_of(tmp_path / "two")["digest"] == summary_of(tmp_path / "one")["digest"]


def test_seed_decides(tiny, tmp_path, summary_of):
    digests = set()
    for seed in (0, 1):
        LocalGrid(tiny("feddbp", tmp_path / str(seed), **{"run.seed": seed})).serve()
        digests.add(summary_of(tmp_path / str(seed))["digest"])
    assert len(digests) == 2


def test_finished_run_is_left_as_it_is(tiny, staged, tmp_path, summary_of):
    experiment = tiny("feddbp", tmp_path)
    staged(experiment).serve()
    before = summary_of(tmp_path)
    grid = staged(experiment)
    grid.serve()
    assert summary_of(tmp_path) == before
    assert {kind for kind, _, _ in grid.sent} == {"query.hello"}


def test_models_that_the_carrier_kept_to_itself_cannot_be_resumed(tiny, tmp_path, monkeypatch):
    experiment = tiny("feddbp", tmp_path)
    with monkeypatch.context() as patch:
        patch.delattr(LocalGrid, "take_client_states")
        patch.setattr(LocalGrid, "__abstractmethods__", frozenset())
        LocalGrid(experiment).serve()
    with pytest.raises(FederationError, match="keeps weights on the clients"):
        LocalGrid(experiment).serve()
