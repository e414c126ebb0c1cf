"""The Flower ServerApp: thin; the round loop is in :mod:`federation.rounds`."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from federation.client_app import experiment_of
from federation.rounds import federate
from federation.run_directory import RunDirectory
from graphcl.training import num_threads

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment of the run's configuration, from its last checkpoint if it has one."""
    experiment = experiment_of(context.run_config)
    run = RunDirectory.of(experiment)
    # Of the server's sums, too, the order must not depend on how many cores it has.
    with run.held(), num_threads(1):
        federate(grid, experiment, run)
