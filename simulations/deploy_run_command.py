"""``graphcl deploy server`` and ``graphcl deploy site``: run what ``init`` provisioned."""

import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from simulations import terminal

_Bundle = Annotated[Path, typer.Argument(help="The folder that `graphcl deploy init` made for it.")]


def add_commands(app: typer.Typer) -> None:
    """Add the commands to the sub-application ``graphcl deploy``."""
    app.command("server")(server)
    app.command("site")(site)
    app.command("status")(status)


def server(
    bundle: _Bundle,
    max_megabytes: Annotated[
        int, typer.Option(min=1, help="Largest request that a site may send, in MB.")
    ] = 256,
    metrics: Annotated[
        str, typer.Option(help="HOST:PORT at which Prometheus may ask; empty = nowhere.")
    ] = "127.0.0.1:9464",
    quiet: Annotated[bool, typer.Option(help="Show no progress, as under systemd.")] = False,
) -> None:
    """Start the server, let in its sites, and run the experiment to its end.

    Ctrl-C ends it cleanly; started again it goes on from the last checkpoint.
    """
    from federation.deploy.bundles import load_bundle_experiment
    from federation.deploy.metrics import exposed
    from federation.deploy.processes import stopped_by_signals
    from federation.deploy.server import Server
    from simulations.progress import watch

    running = Server(bundle, _say, max_megabytes * 2**20)
    directory = escape(str(running.word.run))
    if running.finished:
        terminal.say(f"The run is finished: {directory}. Move it away to begin another.")
        return
    experiment = load_bundle_experiment(bundle)
    shown = experiment.override({"run.directory": str(running.word.run)})
    with ExitStack() as around:
        if metrics:
            port = around.enter_context(exposed(bundle, metrics))
            terminal.say(f"Metrics: http://{metrics.rpartition(':')[0]}:{port}/metrics")
        if not quiet:
            around.enter_context(watch(shown, terminal.console))
        stop = around.enter_context(stopped_by_signals())
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
    from federation.deploy import site as keeper
    from federation.deploy.bundles import SiteBundle

    SiteBundle.load(bundle)
    # In place of this process, which holds torch for nothing.
    os.execv(sys.executable, [sys.executable, "-m", keeper.__name__, str(bundle)])  # noqa: S606


def status(
    bundle: _Bundle,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show how the deployment of a server's folder is: its sites, the round, failures."""
    from federation.deploy.status import read_status

    now = read_status(bundle)
    if json_:
        typer.echo(json.dumps(now.table))
        return
    terminal.say(f"[bold]{now.name}[/bold]: {now.state}, round {now.round} of {now.rounds}")
    if now.error:
        terminal.say(f"[red]{escape(now.error)}[/red]")
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("site", "node", "last contact", "rounds", "failed", "last failure"):
        table.add_column(name)
    for one in now.sites:
        table.add_row(
            one.name,
            "[green]online[/green]" if one.online else "offline",
            "never" if one.seconds_since_contact is None else f"{one.seconds_since_contact:.0f} s",
            str(one.rounds_ok),
            str(one.rounds_failed),
            escape(one.reason),
        )
    terminal.console.print(table)


def _say(text: str) -> None:
    terminal.say(escape(text))
