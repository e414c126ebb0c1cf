"""The command line inside a folder with a small probe file and its graph."""

import sys

import pytest

from graphcl.datasets import contextual_sbm, save_npz
from simulations import cli, terminal

SMALL_PROBE = """
[probe]
name = "small"
source = "graph.npz"
epochs = 200

[aspect]
hidden_channels = 16
epochs = 20
learning_rate = 0.01
"""


@pytest.fixture
def graphcl(tmp_path, monkeypatch, capsys):
    """Return a caller of the command line inside a folder with ``small.toml`` and its graph."""
    save_npz(contextual_sbm(300, 2, 16, homophily=0.9, signal=0.6), tmp_path / "graph.npz")
    (tmp_path / "small.toml").write_text(SMALL_PROBE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(terminal, "console", terminal.Console(width=200))

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["graphcl", *arguments])
        with pytest.raises(SystemExit) as leave:
            cli.main()
        captured = capsys.readouterr()
        return int(leave.value.code or 0), captured.out + captured.err

    return call
