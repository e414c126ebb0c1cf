"""The ServerApp of a deployment: the round loop of every other door, on a grid of known sites.

It runs in a process that Flower starts; what it must know of the deployment lies in the server's
folder, which an environment variable names.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import cast

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.superlink.grid import http_grid

from federation.client_app import experiment_of
from federation.deploy.bundles import ServerBundle
from federation.deploy.grid import Contact, DeploymentGrid, NodesGrid
from federation.deploy.pace import hasten_pulls
from federation.deploy.registry import Site
from federation.deploy.word import FAILED, FINISHED, FOLDER, RUNNING, Word
from federation.rounds import federate
from federation.run_directory import RunDirectory
from graphcl.errors import GraphCLError

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment of the run's configuration, from its last checkpoint if it has one."""
    hasten_pulls(http_grid)
    folder = Path(os.environ[FOLDER])
    word = Word(folder)
    run = RunDirectory(word.run)
    run.path.mkdir(exist_ok=True)
    with run.held():  # one that a killed SuperLink left behind has no say any more
        word.leave(RUNNING)
        try:
            experiment = experiment_of(context.run_config)
            run.open(experiment)
            federate(_grid(grid, folder, word), experiment, run)
        except Exception as error:
            ours = isinstance(error, GraphCLError)
            word.leave(FAILED, str(error) if ours else f"{type(error).__name__}: {error}")
            raise
        word.leave(FINISHED)


def _grid(grid: Grid, folder: Path, word: Word) -> DeploymentGrid:
    """Return the grid of the sites in the server's folder."""
    nodes = word.nodes()
    sites = {nodes[known.name]: Site.of(known) for known in ServerBundle.load(folder).site}

    def told(contacts: Mapping[str, Contact]) -> None:
        word.leave_sites({name: asdict(contact) for name, contact in contacts.items()})

    name = hashlib.sha256((word.run / "config.toml").read_bytes()).hexdigest()[:16]
    # Flower's grid of a SuperLink tells more of its nodes than the public interface does.
    return DeploymentGrid(cast(NodesGrid, grid), sites, name, told)
