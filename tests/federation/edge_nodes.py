"""Nodes that have their own data alone, beside the simulation of the same clients."""

import json
from pathlib import Path

import pytest

from federation.deploy.split import split
from federation.experiment import Experiment, load_experiment
from graphcl.errors import FederationError
from simulations.carriers.local import LocalGrid


class EdgeGrid(LocalGrid):
    """The in-process grid of nodes that have their own data and cannot reach the others'."""

    def __init__(self, experiment: Experiment, data: list[str], agreed: Path | None = None):
        super().__init__(experiment)
        for partition, place in enumerate(data):
            self.contexts[partition].node_config["data"] = place
            if agreed is not None:
                self.contexts[partition].node_config["config"] = str(agreed)


def served(grid: LocalGrid, folder: Path) -> list[dict]:
    grid.serve()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "evaluation")} for line in lines]


def as_sites(experiment: Experiment, folder: Path) -> tuple[Experiment, list[str]]:
    """Return the experiment in which the clients' data are the natural partition, and these."""
    deployment = split(experiment, folder)
    return load_experiment(folder / "config.toml"), [site.data for site in deployment.site]


def compared(experiment: Experiment, folder: Path, new_process) -> list[dict]:
    """Run a simulation and a federation of nodes with their own data; they must not differ."""
    natural, data = as_sites(experiment, folder / "sites")
    simulated = natural.override({"run.directory": str(folder / "simulated")})
    first = served(LocalGrid(simulated), folder / "simulated")
    new_process()
    # Nobody but a node can find its data any more.
    blind = natural.override(
        {"run.directory": str(folder / "deployed"), "data.root": str(folder / "nowhere")}
    )
    second = served(EdgeGrid(blind, data, folder / "sites/config.toml"), folder / "deployed")
    assert first == second
    digests = [
        json.loads((folder / name / "summary.json").read_text())["digest"]
        for name in ("simulated", "deployed")
    ]
    assert digests[0] == digests[1]
    return first


def answered(experiment: Experiment, place: str, **node_config) -> str:
    """Let a node say hello; return why it could not."""
    grid = EdgeGrid(experiment, [place])
    grid.contexts[0].node_config.update(node_config)
    with pytest.raises(FederationError) as error:
        grid.serve()
    return str(error.value)
