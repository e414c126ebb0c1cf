"""``graphcl deploy server`` and ``graphcl deploy site``: run what ``init`` provisioned."""

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from federation.deploy.processes import stopped_by_signals
from federation.deploy.server import Server
from federation.deploy.site import SiteNode
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
    logging.getLogger("flwr").setLevel(logging.ERROR)
    running = Server(bundle, _say, max_megabytes * 2**20)
    directory = escape(str(running.run.path))
    if running.run.summary.exists():
        terminal.say(f"The run is finished: {directory}. Move it away to begin another.")
        return
    shown = running.experiment.override({"run.directory": str(running.run.path)})
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
    logging.getLogger("flwr").setLevel(logging.ERROR)
    node = SiteNode(bundle, _say)
    with stopped_by_signals() as stop:
        node.serve(stop)


def _say(text: str) -> None:
    terminal.say(escape(text))
