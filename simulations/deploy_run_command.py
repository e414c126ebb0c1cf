"""``graphcl deploy server`` and ``graphcl deploy site``: run what ``init`` provisioned."""

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from federation.deploy import site as keeper
from federation.deploy.bundles import SiteBundle, load_bundle_experiment
from federation.deploy.processes import stopped_by_signals
from federation.deploy.server import Server
from simulations import terminal
from simulations.progress import watch

_Bundle = Annotated[Path, typer.Argument(help="The folder that `graphcl deploy init` made for it.")]


def add_commands(app: typer.Typer) -> None:
    """Add the commands to the sub-application ``graphcl deploy``."""
    app.command("server")(server)
    app.command("site")(site)


def server(
    bundle: _Bundle,
    max_megabytes: Annotated[
        int, typer.Option(min=1, help="Largest request that a site may send, in MB.")
    ] = 256,
    quiet: Annotated[bool, typer.Option(help="Show no progress, as under systemd.")] = False,
) -> None:
    """Start the server, let in its sites, and run the experiment to its end.

    Ctrl-C ends it cleanly; started again it goes on from the last checkpoint.
    """
    running = Server(bundle, _say, max_megabytes * 2**20)
    directory = escape(str(running.word.run))
    if running.finished:
        terminal.say(f"The run is finished: {directory}. Move it away to begin another.")
        return
    experiment = load_bundle_experiment(bundle)
    shown = experiment.override({"run.directory": str(running.word.run)})
    progress = nullcontext() if quiet else watch(shown, terminal.console)
    with stopped_by_signals() as stop, progress:
        finished = running.serve(stop)
    if finished:
        terminal.say(f"Finished: [bold]{directory}[/bold]")
    else:
        terminal.say("Stopped. The same command goes on from the last checkpoint.")


def site(bundle: _Bundle) -> None:
    """Start a site's node and keep it running until Ctrl-C.

    It answers the server with what its experiment asks for, and nothing else: code that comes with
    a run is not executed here.
    """
    SiteBundle.load(bundle)
    # In place of this process, which holds torch for nothing.
    os.execv(sys.executable, [sys.executable, "-m", keeper.__name__, str(bundle)])  # noqa: S606


def _say(text: str) -> None:
    terminal.say(escape(text))
