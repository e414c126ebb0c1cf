"""Floors on real data: ten communities of Cora."""

import json
from pathlib import Path

import pytest

from federation.experiment import load_experiment
from simulations.carriers.local import LocalGrid

CONFIGS = Path(__file__).parents[2] / "configs"


# When written, after so many rounds: .821, .804 and .748.
@pytest.mark.parametrize(
    ("config", "rounds", "floor"),
    [
        pytest.param("cora_fedavg.toml", 20, 0.79, id="fedavg-gcn"),
        pytest.param("cora_fedproto.toml", 25, 0.76, id="fedproto-five-encoders"),
        pytest.param("cora_aspect.toml", 6, 0.72, id="fedavg-aspect"),
    ],
)
def test_test_accuracy_reaches_the_floor(data_root, tmp_path, config, rounds, floor) -> None:
    source = data_root / "graphs" / "cora.npz"
    if not source.exists():
        pytest.skip(f"{source.name} is not under GRAPHCL_DATA")
    keys = {"data.source": str(source), "run.directory": str(tmp_path), "run.rounds": rounds}
    LocalGrid(load_experiment(CONFIGS / config, keys)).serve()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["test_accuracy"] >= floor
