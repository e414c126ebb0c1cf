"""Floors on real data: ten communities of Cora."""

import json
from pathlib import Path

import pytest

from federation.experiment import load_experiment
from simulations.carriers.local import LocalGrid

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("config", "floor"),
    [("cora_fedavg.toml", 0.79), ("cora_fedproto.toml", 0.74), ("cora_aspect.toml", 0.78)],
    ids=["fedavg-gcn", "fedproto-five-encoders", "fedavg-aspect"],
)
def test_test_accuracy_reaches_the_floor(data_root, tmp_path, config, floor) -> None:
    source = data_root / "graphs" / "cora.npz"
    if not source.exists():
        pytest.skip(f"{source.name} is not under GRAPHCL_DATA")
    rounds = 12 if "aspect" in config else 60
    keys = {"data.source": str(source), "run.directory": str(tmp_path), "run.rounds": rounds}
    LocalGrid(load_experiment(CONFIGS / config, keys)).serve()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["test_accuracy"] >= floor
