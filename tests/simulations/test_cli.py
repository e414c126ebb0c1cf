"""The command line: what a user types and reads."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from federation.learners import NodeLearner
from federation.scores import SCORES
from graphcl.datasets import contextual_sbm, save_npz
from simulations import cli, terminal

TINY = """
[run]
name = "tiny"
rounds = 2
compare = "local, fedavg"

[data]
source = "csbm"
csbm.nodes = 120

[partition]
clients = 3

[model]
encoders = "gcn, sage"

[simulation]
engine = "local"
"""


@pytest.fixture
def graphcl(tmp_path, monkeypatch, capsys):
    """Return a caller of the command line inside a folder with ``tiny.toml``."""
    (tmp_path / "tiny.toml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(terminal, "console", terminal.Console(width=200))

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["graphcl", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as leave:
            code = int(leave.code or 0)
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return call


def test_run_compares_strategies_and_leaves_a_report(graphcl, tmp_path) -> None:
    code, out = graphcl("run", "tiny.toml")
    assert code == 0, out
    directory = next((tmp_path / "runs").iterdir())
    digest = json.loads((directory / "summary.json").read_text())["digest"]
    assert digest in out
    assert "unlike models" in out  # why fedavg has no figures
    assert (directory / "compare" / "local" / "summary.json").exists()
    assert (directory / "report.html").exists()
    for name in ("config.toml", "environment.json", "metrics.jsonl", "partition.json"):
        assert (directory / name).exists()


def test_settings_on_the_command_line_override_the_file(graphcl, tmp_path) -> None:
    code, out = graphcl("run", "tiny.toml", "--set", "run.rounds=1", "--set", "run.compare=")
    assert code == 0, out
    directory = next((tmp_path / "runs").iterdir())
    assert json.loads((directory / "summary.json").read_text())["rounds"] == 1
    assert not (directory / "compare").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "name an experiment file"),
        (["run", "none.toml"], "none.toml: no such experiment file"),
        (["run", "tiny.toml", "--set", "run.rouns=1"], "did you mean 'run.rounds'"),
        (["run", "tiny.toml", "--set", "run.rounds"], "write KEY=VALUE"),
        (["run", "tiny.toml", "--engine", "spark"], "simulation.engine"),
        (["run", "tiny.toml", "--set", "partition.clients=100"], "partition.clients"),
        (["run", "tiny.toml", "--set", "data.source=absent.npz"], "absent.npz"),
        (["run", "--resume", "nowhere"], "holds no config.toml"),
        (["run", "tiny.toml", "--resume", "x"], "not both"),
        (["run", "tiny.toml", "--unknown"], "--unknown"),
        (["keys", "bogus"], "no key starts with 'bogus'"),
        (["audit", "tiny.toml", "--out", "tiny.toml"], "tiny.toml is a file; name a folder"),
        (["deploy", "split", "tiny.toml", "tiny.toml"], "OUT tiny.toml: "),
        (["deploy", "export", "nowhere", "tiny.toml"], "tiny.toml is a file; name a folder"),
        (["deploy", "check", "sites/site-9"], "sites/site-9: not found; name a site's folder"),
        (["deploy", "check", "."], ". is no site's folder (it has no site.toml)"),
        (["outage", "simulate", "tiny.toml/x"], "tiny.toml is a file; name a folder"),
        (
            ["outage", "predict", "--model", "m", "--event", "e.csv", "--out", "nodir/map.html"],
            "there is no folder nodir",
        ),
        (
            ["outage", "predict", "--model", "m", "--event", "e.csv", "--table", "."],
            "--table .: this is a folder; name a file",
        ),
        (["outage", "evaluate", "tiny.toml", "--out", "tiny.toml"], "is a file; name a folder"),
        (["recommend", "evaluate", "x.toml", "--out", "tiny.toml/y"], "is a file; name a folder"),
        (["probe", "tiny.toml", "--out", "tiny.toml"], "tiny.toml is a file; name a folder"),
        (["probe", "tiny.toml", "--all"], "leave out tiny.toml"),
        (["probe", "tiny.toml"], "a file for `graphcl run`, which `graphcl probe` does not read"),
        (["probe", "tiny.toml", "--perturb-seeds", "2"], "give both"),
        (["recommend", "evaluate", "tiny.toml"], "tiny.toml: a file for `graphcl run`"),
        (["run", "tiny.toml", "--engine", "local", "--address", "auto"], "the engine is 'local'"),
        (["run", "tiny.toml", "--set", "run.compare=scfsgl"], "run.compare: 'scfsgl' is about"),
    ],
)
def test_a_mistake_is_one_message_and_nothing_starts(graphcl, tmp_path, arguments, message) -> None:
    code, out = graphcl(*arguments)
    assert code != 0
    assert message in out
    assert "Traceback" not in out
    assert not (tmp_path / "runs").exists()


def test_masks_of_a_graph_are_read_where_asked_and_else_it_is_said(graphcl, tmp_path) -> None:
    graph = contextual_sbm(120, 3, 5)
    for place, name in enumerate(("train", "val", "test")):
        graph[f"{name}_mask"] = torch.arange(120) % 3 == place
    save_npz(graph, tmp_path / "graph.npz")
    own = ("run", "tiny.toml", "--set", "data.source=graph.npz", "--set", "run.compare=")
    code, out = graphcl(*own)
    assert code == 0, out
    assert "The masks of the graph are not read" in out
    code, out = graphcl(*own, "--set", "data.split=stored")
    assert code == 0, out
    assert "masks" not in out
    digests = {json.loads(path.read_text())["digest"] for path in tmp_path.rglob("summary.json")}
    assert len(digests) == 2


def test_what_a_run_left_damaged_is_named_with_what_to_do(graphcl, tmp_path) -> None:
    assert graphcl("run", "tiny.toml", "--set", "run.compare=")[0] == 0
    (directory,) = (tmp_path / "runs").iterdir()
    whole = json.loads((directory / "summary.json").read_text())
    (directory / "summary.json").write_text('{"digest": ')
    code, out = graphcl("run", "--resume", str(directory))
    assert code == 1
    assert "summary.json: damaged; delete it" in out
    (directory / "summary.json").unlink()
    assert graphcl("run", "--resume", str(directory))[0] == 0
    again = json.loads((directory / "summary.json").read_text())
    assert again["digest"] == whole["digest"]
    code, out = graphcl("deploy", "export", str(directory), "models", "--partition", "9")
    assert code == 2
    assert "--partition 9: " in out


def test_a_federation_that_cannot_go_on_exits_non_zero_and_says_how_to_resume(
    graphcl, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(NodeLearner, "fit", lambda self, penalty: {"loss": float("nan")})
    code, out = graphcl("run", "tiny.toml")
    assert code == 1
    assert "0 of 3 clients succeeded" in out
    assert "graphcl run --resume" in out


def test_the_terminal_tells_a_run_in_the_scores_of_its_task(graphcl, monkeypatch) -> None:
    def evaluate(learner, predict) -> dict[str, float]:
        mae = float(len(learner.y))
        counts = {"num-examples": 1, "val-examples": 1, "test-loss": 0.0}
        return {**counts, "mae": mae, "val-mae": 1234.5, "rmse": 2 * mae, "total-error": 7.5}

    monkeypatch.setitem(SCORES, "classify", SCORES["outages"])
    monkeypatch.setattr(NodeLearner, "evaluate", evaluate)
    code, out = graphcl("run", "tiny.toml", "--set", "run.compare=")
    assert code == 0, out
    assert "Test MAE at the round with the best validation MAE" in out
    assert "val 1234.500  test 40.000" in out
    table = [re.split(r"  +", line.strip()) for line in out.splitlines()]
    headers = [row for row in table if row[0] == "strategy"]
    assert [header[1:3] for header in headers] == [["MAE", "worst client"], ["total error"]]
    largest = max(int(size) for size in re.findall(r"to (\d+) nodes", out))
    rows = [row for row in table if row[0] == "feddbp" and row[1] in ("40.0", "7.5000")]
    assert [row[1:3] for row in rows] == [["40.0", f"{largest:.1f}"], ["7.5000"]]
    assert "accuracy" not in out


def test_every_key_is_listed_with_its_meaning(graphcl) -> None:
    code, out = graphcl("keys", "strategy.feddbp")
    assert code == 0
    assert "strategy.feddbp.temperature" in out
    assert "run.rounds" not in out


def test_every_key_of_an_outage_file_is_listed_with_its_meaning(graphcl) -> None:
    code, out = graphcl("keys", "sa_hgnn.", "--outage")
    assert code == 0
    assert "sa_hgnn.contrast_weight" in out
    assert "outage.source" not in out
    assert "Weight of the contrast between situations" in " ".join(out.split())
    assert graphcl("keys", "--outage", "--probe")[0] == 2


def test_help_teaches(graphcl) -> None:
    code, out = graphcl("run", "--help")
    assert code == 0
    assert "configs/quickstart.toml" in out
    assert "--resume" in out


def test_the_local_engine_starts_without_ray() -> None:
    program = (
        "import sys; from simulations.cli import main; import simulations.carriers.local; "
        "sys.exit('ray' in sys.modules)"
    )
    root = Path(cli.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
