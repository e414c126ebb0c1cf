"""Spectral, convolutional and edge-free encoders in one federation, on ten communities of Cora."""

import json
from pathlib import Path

import pytest

from federation.experiment import load_experiment
from simulations.carriers.local import LocalGrid

CONFIG = Path(__file__).parents[2] / "configs" / "cora_mixed.toml"


@pytest.mark.parametrize("strategy", ["feddbp", "fedtgp", "lgfedavg"])
def test_every_encoder_takes_part(data_root, tmp_path, strategy) -> None:
    source = data_root / "graphs" / "cora.npz"
    if not source.exists():
        pytest.skip(f"{source.name} is not under GRAPHCL_DATA")
    keys = {"data.source": str(source), "run.directory": str(tmp_path), "run.rounds": 4}
    LocalGrid(load_experiment(CONFIG, {**keys, "strategy.name": strategy})).serve()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "client" and line["round"] == 4]
    assert [line["status"] for line in last] == ["ok"] * 10
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["test_accuracy"] >= 0.6
