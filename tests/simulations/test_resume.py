"""A run that was killed goes on to the figures of an unbroken one."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import simulations

pytestmark = pytest.mark.processes

FILE = """
[run]
name = "killed"
rounds = 12
seed = 5
compare = "local"

[data]
source = "csbm"
csbm.nodes = 300

[partition]
clients = 4
alpha = 1.0

[model]
encoders = "gcn, sage"

[simulation]
engine = "local"
"""

# Slows every client update down, so that a kill strikes in the middle of a round.
SLOW = """
import sys, time
import federation.learners.nodes as nodes
fit = nodes.NodeLearner.fit
def slow(self, penalty):
    time.sleep(0.05)
    return fit(self, penalty)
nodes.NodeLearner.fit = slow
from simulations.cli import main
main()
"""


def graphcl(*arguments: str, cwd: Path) -> str:
    command = [sys.executable, "-m", "simulations.cli", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def digests(directory: Path) -> list[str]:
    summaries = [directory / "summary.json", directory / "compare" / "local" / "summary.json"]
    return [json.loads(path.read_text())["digest"] for path in summaries]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("unbroken")
    (folder / "killed.toml").write_text(FILE)
    graphcl("run", "killed.toml", cwd=folder)
    return digests(next((folder / "runs").iterdir()))


@pytest.mark.parametrize("after", [1, 7])
def test_kill_9_in_the_middle_of_a_round_then_resume(tmp_path, unbroken, after) -> None:
    (tmp_path / "killed.toml").write_text(FILE)
    environment = {**os.environ, "PYTHONPATH": str(Path(simulations.__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "run", "killed.toml"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while not _rounds(tmp_path) > after:
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.12)  # past the checkpoint, into the next round's training
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    directory = next((tmp_path / "runs").iterdir())
    assert not (directory / "summary.json").exists()
    out = graphcl("run", "--resume", str(directory), cwd=tmp_path)
    assert digests(directory) == unbroken
    assert re.search(unbroken[0], out)


def _rounds(folder: Path) -> int:
    return sum(
        path.read_text().count('"kind": "round"') for path in folder.glob("runs/*/metrics.jsonl")
    )


def test_ctrl_c_leaves_a_run_that_resumes(tmp_path, unbroken) -> None:
    (tmp_path / "killed.toml").write_text(FILE)
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "run", "killed.toml"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while _rounds(tmp_path) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in out
    found = re.search(r"graphcl run --resume\s+(\S+)", out)
    assert found, out
    graphcl("run", "--resume", found[1], cwd=tmp_path)
    assert digests(tmp_path / found[1]) == unbroken
