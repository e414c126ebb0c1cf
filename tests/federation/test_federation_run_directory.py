"""A checkpoint is whole or it does not count, and a digest covers what a run computed."""

import errno
import json
import logging
import os
import tomllib

import pytest
import torch
from flwr.app import ArrayRecord, RecordDict

from federation import run_directory
from federation.experiment import Experiment
from federation.records import to_arrays, to_tensors
from federation.run_directory import RunDirectory
from graphcl.errors import FederationError


def line(server_round: int, **fields) -> dict:
    return {"kind": "round", "round": server_round, "accuracy": 0.5, "seconds": 0.1} | fields


def arrays(value: float) -> ArrayRecord:
    return to_arrays({"w": torch.full((2, 3), value), "n": torch.tensor([7])})


def state(value: float) -> RecordDict:
    return RecordDict({"0": arrays(value), "table": arrays(-value)})


@pytest.fixture
def run(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.open(Experiment())
    return directory


@pytest.fixture
def stored(run):
    """A run after two rounds; client 1 did not change in the second."""
    run.record([line(1)])
    run.checkpoint(1, arrays(1.0), state(1.0), {0: b"zero", 1: b"one"})
    run.record([line(2)])
    run.checkpoint(2, arrays(2.0), state(2.0), {0: b"zero again", 2: b"two"})
    return run


def files(run) -> set[str]:
    return {path.name for path in (run.path / "checkpoint").iterdir()}


def again(run) -> RunDirectory:
    fresh = RunDirectory(run.path)
    fresh.open(Experiment())
    return fresh


def test_new_run_has_no_checkpoint(run):
    run.record([line(1)])  # of a round that was never checkpointed
    assert again(run).resume() is None
    assert run.lines() == []


def test_checkpoint_returns_all_it_was_given(stored):
    checkpoint = again(stored).resume()
    assert checkpoint.server_round == 2
    assert checkpoint.clients == {0: b"zero again", 1: b"one", 2: b"two"}
    tensors = to_tensors(checkpoint.arrays)
    assert torch.equal(tensors["w"], torch.full((2, 3), 2.0))
    assert torch.equal(tensors["n"], torch.tensor([7]))
    assert set(checkpoint.strategy) == {"0", "table"}
    table = to_tensors(checkpoint.strategy.array_records["table"])
    assert torch.equal(table["w"], torch.full((2, 3), -2.0))
    assert stored.lines() == [line(1), line(2)]


def test_clients_that_the_carrier_keeps_are_not_pretended(run):
    run.checkpoint(1, ArrayRecord(), RecordDict(), None)
    checkpoint = again(run).resume()
    assert checkpoint.clients is None
    assert len(checkpoint.arrays) == 0
    assert len(checkpoint.strategy) == 0


def test_only_changed_clients_are_rewritten_and_old_files_go(stored):
    last = {"server-2.bin", "clients-2.bin"}
    before = {"server-1.bin", "clients-1.bin"}  # client 1 still has its state there
    assert files(stored) == {"manifest.json", "previous.json"} | last | before
    stored.record([line(3)])
    stored.checkpoint(3, arrays(3.0), state(3.0), {1: b"one again"})
    new = {"server-3.bin", "clients-3.bin"}
    both = {"manifest.json", "previous.json", "clients-1.bin"}  # the one before names it
    assert files(stored) == both | last | new
    stored.checkpoint(4, arrays(4.0), state(4.0), {})
    assert "clients-1.bin" not in files(stored)


def test_a_file_of_few_states_that_count_is_not_kept_for_them(run):
    """Without this, a client that is never drawn again would keep a file of all others."""
    run.checkpoint(1, arrays(1.0), state(1.0), {p: bytes([p]) * 100 for p in range(9)})
    changed = {p: bytes([p + 10]) * 100 for p in range(8)}
    run.checkpoint(2, arrays(2.0), state(2.0), changed)
    run.checkpoint(3, arrays(3.0), state(3.0), {})
    assert "clients-1.bin" not in files(run)
    assert again(run).resume().clients == changed | {8: bytes([8]) * 100}


def test_states_are_read_from_where_the_checkpoint_put_them(run):
    first = run.checkpoint(1, arrays(1.0), state(1.0), {0: b"zero", 1: b"one"})
    assert first == {0: b"zero", 1: b"one"}
    second = run.checkpoint(2, arrays(2.0), state(2.0), {1: b"one again"})
    assert second == {0: b"zero", 1: b"one again"}
    spoil(run.path / "checkpoint" / "clients-2.bin", "damaged")
    assert second[0] == b"zero"
    with pytest.raises(FederationError, match=r"clients-2\.bin: damaged"):
        second[1]


def test_metrics_of_a_later_round_are_cut_off(stored):
    stored.record([line(3), line(3)])
    with stored.metrics.open("a") as file:
        file.write('{"kind": "rou')  # killed in the middle of a line
    assert again(stored).resume().server_round == 2
    assert stored.lines() == [line(1), line(2)]


def test_crash_before_the_manifest_leaves_the_round_before(stored, monkeypatch):
    class PowerCutError(Exception):
        pass

    write = run_directory._write_atomically

    def cut(path, data):
        if path.name != "manifest.json":
            write(path, data)
            return
        path.with_name(path.name + ".new").write_bytes(data[: len(data) // 2])
        raise PowerCutError

    stored.record([line(3)])
    with monkeypatch.context() as patch:
        patch.setattr(run_directory, "_write_atomically", cut)
        with pytest.raises(PowerCutError):
            stored.checkpoint(3, arrays(3.0), state(3.0), {0: b"unfinished", 1: b"unfinished"})
    assert {"server-3.bin", "clients-3.bin", "manifest.json.new"} <= files(stored)
    run = again(stored)
    checkpoint = run.resume()
    assert checkpoint.server_round == 2
    assert checkpoint.clients == {0: b"zero again", 1: b"one", 2: b"two"}
    run.record([line(3, accuracy=0.75)])
    run.checkpoint(3, arrays(3.5), state(3.5), {1: b"finished"})
    checkpoint = again(run).resume()
    assert checkpoint.clients == {0: b"zero again", 1: b"finished", 2: b"two"}
    assert to_tensors(checkpoint.arrays)["w"][0, 0] == 3.5
    assert run.lines()[-1]["accuracy"] == 0.75
    assert {"manifest.json", "server-3.bin", "clients-3.bin", "clients-2.bin"} <= files(run)
    assert "server-1.bin" not in files(run)


def test_files_that_no_manifest_names_are_not_read(stored):
    folder = stored.path / "checkpoint"
    (folder / "server-9.bin").write_bytes(b"rubbish")
    (folder / "manifest.json.new").write_text('{"round": 9}')
    assert again(stored).resume().server_round == 2


@pytest.mark.parametrize("name", ["server-2.bin", "clients-2.bin", "clients-1.bin"])
@pytest.mark.parametrize("damage", ["missing", "damaged", "cut short"])
def test_unusable_data_file_is_named_and_the_checkpoint_before_taken(stored, name, damage, caplog):
    path = stored.path / "checkpoint" / name
    spoil(path, damage)
    if name == "clients-1.bin":  # of both checkpoints
        with pytest.raises(FederationError, match=name.replace(".", r"\.")):
            again(stored).resume()
        return
    takes_the_checkpoint_before(stored, name, caplog)


@pytest.mark.parametrize("text", ["", '{"round": 2', "[]", '{"round": 2}', None])
def test_unusable_manifest_is_named_and_the_checkpoint_before_taken(stored, text, caplog):
    manifest = stored.path / "checkpoint" / "manifest.json"
    manifest.unlink() if text is None else manifest.write_text(text)
    takes_the_checkpoint_before(stored, "manifest.json", caplog)


@pytest.mark.parametrize("name", ["previous.json", "server-1.bin"])
def test_both_checkpoints_unusable_names_the_last(stored, name):
    for one in (name, "server-2.bin"):
        spoil(stored.path / "checkpoint" / one, "damaged")
    with pytest.raises(FederationError, match=r"server-2\.bin"):
        again(stored).resume()
    assert stored.lines() == [line(1), line(2)]  # nothing was cut off


@pytest.mark.parametrize("number", [0, 99])
def test_a_checkpoint_of_another_version_is_refused_as_such(stored, number):
    for name in ("manifest.json", "previous.json"):
        path = stored.path / "checkpoint" / name
        manifest = json.loads(path.read_text()) | {"format": number}
        if not number:
            del manifest["format"]  # as the first versions wrote it
        path.write_text(json.dumps(manifest))
    with pytest.raises(FederationError, match=rf"another version of graphcl \(format {number},"):
        again(stored).resume()
    assert stored.lines() == [line(1), line(2)]  # nothing was cut off


def spoil(path, damage):
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:-1] + (b"" if damage == "cut short" else bytes([data[-1] ^ 1])))


def takes_the_checkpoint_before(stored, name, caplog):
    logger = logging.getLogger("flwr")
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.WARNING, logger="flwr"):
            checkpoint = again(stored).resume()
    finally:
        logger.removeHandler(caplog.handler)
    assert name in caplog.text
    assert "Going on from round 1" in caplog.text
    assert checkpoint.server_round == 1
    assert checkpoint.clients == {0: b"zero", 1: b"one"}
    assert to_tensors(checkpoint.arrays)["w"][0, 0] == 1.0
    assert stored.lines() == [line(1)]
    run = again(stored)
    run.record([line(2)])
    run.checkpoint(2, arrays(2.0), state(2.0), {})
    assert again(run).resume().server_round == 2


@pytest.mark.parametrize("part", ["metrics", "checkpoint", "releases", "summary"])
def test_a_full_disk_ends_the_run_with_the_checkpoint_intact(stored, monkeypatch, part):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write():
        if part == "metrics":
            stored.record([line(3)])
        elif part == "checkpoint":
            stored.checkpoint(3, arrays(3.0), state(3.0), {0: b"lost"})
        elif part == "releases":
            stored.releasing(3)
        else:
            stored.finish({}, state(3.0))

    with monkeypatch.context() as patch:
        patch.setattr(run_directory.os, "fsync", full)
        with pytest.raises(FederationError, match=r"No space left on device.*make room"):
            write()
    assert again(stored).resume().clients == {0: b"zero again", 1: b"one", 2: b"two"}


@pytest.mark.parametrize("damage", ["missing", "cut short"])
def test_metrics_shorter_than_the_checkpoint_says_are_named(stored, damage):
    """Cutting to a length must never make a file longer."""
    if damage == "missing":
        stored.metrics.unlink()
    else:
        stored.metrics.write_bytes(stored.metrics.read_bytes()[:10])
    with pytest.raises(FederationError, match=r"metrics\.jsonl"):
        again(stored).resume()


def test_nothing_on_disk_is_a_pickle(stored):
    for path in stored.path.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not any(bytes([0x80, version, 0x95]) in data for version in (2, 3, 4, 5)), path
            assert not data.startswith(b"\x80"), path


def test_configuration_and_environment_are_written_once(run):
    text = (run.path / "config.toml").read_text()
    assert Experiment.from_nested(tomllib.loads(text)) == Experiment()
    environment = json.loads((run.path / "environment.json").read_text())
    assert {"python", "platform", "packages"} == set(environment)
    assert all(environment["packages"].values())
    (run.path / "config.toml").write_text(text + "\n# a note\n")
    again(run)
    assert (run.path / "config.toml").read_text().endswith("# a note\n")


def test_directory_of_another_experiment_is_refused(stored):
    """Rounds of two experiments in one directory would pass for one run."""
    other = Experiment.from_flat({"strategy.name": "fedavg", "run.directory": str(stored.path)})
    with pytest.raises(FederationError, match=r"strategy\.name"):
        RunDirectory.of(other)


def test_moved_directory_another_engine_or_more_rounds_go_on(stored, tmp_path):
    """They decide where, how and how long a run works, not what it computes."""
    moved = stored.path.rename(tmp_path / "moved")
    keys = {"run.directory": str(moved), "simulation.engine": "local", "run.rounds": 99}
    assert RunDirectory.of(Experiment.from_flat(keys)).resume().server_round == 2


def test_two_runs_without_a_directory_never_share_one(tmp_path, monkeypatch):
    """Two that start in the same second are two runs, not one resumed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_directory.time, "strftime", lambda _: "20250101-000000")
    assert RunDirectory.of(Experiment()).path != RunDirectory.of(Experiment()).path


def test_summary_holds_the_digest(stored):
    server = RecordDict({"arrays": arrays(2.0)})
    digest = stored.finish({"best_round": 1}, server)
    assert json.loads(stored.summary.read_text()) == {"best_round": 1, "digest": digest}
    assert digest == stored.digest(server)


def digest_of(tmp_path, lines, server) -> str:
    run = RunDirectory(tmp_path)
    run.open(Experiment())
    run.resume()
    run.record(lines)
    return run.digest(server)


def test_digest_ignores_the_clock_alone(tmp_path):
    server = RecordDict({"arrays": arrays(1.0)})
    base = digest_of(tmp_path, [line(1, bytes_up=10)], server)
    assert digest_of(tmp_path, [line(1, bytes_up=10, seconds=99.0)], server) == base
    changed = [
        digest_of(tmp_path, [line(1, bytes_up=10, accuracy=0.5000001)], server),
        digest_of(tmp_path, [line(1, bytes_up=11)], server),
        digest_of(tmp_path, [line(2, bytes_up=10)], server),
        digest_of(tmp_path, [line(1, bytes_up=10)] * 2, server),
        digest_of(tmp_path, [line(1, bytes_up=10)], RecordDict({"arrays": arrays(1.0000001)})),
        digest_of(tmp_path, [line(1, bytes_up=10)], RecordDict({"other": arrays(1.0)})),
        digest_of(tmp_path, [line(1, bytes_up=10)], RecordDict()),
    ]
    assert base not in changed
    assert len(set(changed)) == len(changed)


def test_metrics_hold_no_nan(run):
    """A line that other programs cannot parse must fail where it is written."""
    with pytest.raises(ValueError):
        run.record([line(1, accuracy=float("nan"))])


def test_two_processes_cannot_write_one_directory(tiny, tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.open(tiny())
    with (
        run.held(),
        pytest.raises(FederationError, match="another process is writing here"),
        RunDirectory(tmp_path / "run").held(),
    ):
        pass
    with run.held():
        pass  # the lock is free again
