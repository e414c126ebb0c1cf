"""The ServerApp of a deployment: the round loop of every other door, on a grid of known sites.

It runs in a process that Flower starts; what it must know of the deployment lies in the server's
folder, which an environment variable names.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import cast

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from federation.client_app import experiment_of
from federation.deploy.bundles import STATE, ServerBundle
from federation.deploy.files import PRIVATE, write
from federation.deploy.grid import Contact, DeploymentGrid, NodesGrid, Site
from federation.rounds import federate
from federation.run_directory import RunDirectory
from graphcl.errors import GraphCLError

app = ServerApp()

FOLDER = "GRAPHCL_SERVER_FOLDER"  # names the server's folder
RUN, OUTCOME, SITES = "run", "outcome.json", "sites.json"  # in its state folder


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment of the run's configuration, from its last checkpoint if it has one."""
    folder = Path(os.environ[FOLDER])
    state = folder / STATE
    _tell(state, "running")
    try:
        experiment = experiment_of(context.run_config)
        run = RunDirectory(state / RUN)
        run.open(experiment)
        with run.held():
            name = hashlib.sha256((run.path / "config.toml").read_bytes()).hexdigest()[:16]
            # Flower's grid of a SuperLink tells more of its nodes than the public interface does.
            known = DeploymentGrid(cast(NodesGrid, grid), _sites(folder), name, _teller(state))
            federate(known, experiment, run)
    except GraphCLError as error:
        _tell(state, "failed", str(error))
        raise
    except Exception as error:
        _tell(state, "failed", f"{type(error).__name__}: {error}")
        raise
    _tell(state, "finished")


def _sites(folder: Path) -> list[Site]:
    bundle = ServerBundle.load(folder)
    return [Site.of(known) for known in bundle.site]


def _teller(state: Path) -> Callable[[Mapping[str, Contact]], None]:
    def told(contacts: Mapping[str, Contact]) -> None:
        sites = {name: asdict(contact) for name, contact in contacts.items()}
        write(state / SITES, json.dumps({"time": time.time(), "sites": sites}), PRIVATE)

    return told


def _tell(state: Path, status: str, error: str = "") -> None:
    """Leave word for the process that submitted the run."""
    outcome = {"status": status, "error": error, "pid": os.getpid()}
    write(state / OUTCOME, json.dumps(outcome), PRIVATE)
