"""``graphcl deploy``: from a folder of data on each site to a running federation."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from graphcl.errors import ConfigError
from simulations import terminal
from simulations.deploy_check_command import check
from simulations.deploy_run_command import add_commands

if TYPE_CHECKING:
    from federation.deploy.provision import Provisioned

app = typer.Typer(
    no_args_is_help=True,
    help="Federations of sites whose data may not leave: provision, check, run, export.",
)

Folder = Annotated[Path, typer.Option("--out", help="Folder of all folders.")]

add_commands(app)


@app.command("init")
def init(
    sites: Annotated[Path, typer.Option(help="Description of server and sites.")] = Path(
        "sites.toml"
    ),
    out: Folder = Path("deployment"),
) -> None:
    """Make keys, certificates and a folder per machine, or bring those there up to date.

    Keys that exist stay; a site that the description does not name any more is revoked.
    """
    from federation.deploy.provision import provision

    done = provision(sites, out)
    _print_done(done)
    terminal.say(
        f"{escape(str(done.folder))}/server goes to the server, each of sites/ to its site, and "
        "authority/ stays here: whoever has it can pretend to be the server."
    )


@app.command("rotate")
def rotate_key(
    name: Annotated[str, typer.Argument(help="server, or the name of a site.")],
    out: Folder = Path("deployment"),
) -> None:
    """Give the server or a site a new key; the old one counts no more."""
    from federation.deploy.provision import rotate

    _print_done(rotate(out, name))
    if name == "server":
        terminal.say("Take server/server.key and server/server.crt to the server and restart it.")


@app.command("revoke")
def revoke_site(
    name: Annotated[str, typer.Argument(help="The name of a site.")],
    out: Folder = Path("deployment"),
) -> None:
    """Take a site out of the federation for good."""
    from federation.deploy.provision import revoke

    _print_done(revoke(out, name))


def _print_done(done: "Provisioned") -> None:
    out = escape(str(done.folder))
    for name in done.revoked:
        terminal.say(
            f"revoked the key of [bold]{name}[/bold]: take server/server.toml to the server"
        )
    for name in done.made:
        terminal.say(f"new key for [bold]{name}[/bold]: take {out}/sites/{name} to the site")
    if done.made:
        terminal.say("and server/server.toml and server/keys to the server.")


@app.command("split")
def split_data(
    config: Annotated[Path, typer.Argument(help="Experiment file of a simulation.")],
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key; may be repeated."),
    ] = None,
) -> None:
    """Write the data of a simulation's clients as sites, to try a deployment with them.

    The experiment file that is written has these as its natural partition, so that a simulation
    and a deployment of it can be compared.
    """
    from federation.deploy.split import split

    terminal.check_folder(out, "OUT")
    from federation.experiment import describe_keys, load_experiment

    experiment = load_experiment(config, terminal.parse_settings(set_ or [], describe_keys()))
    deployment = split(experiment, out)
    place = escape(str(out))
    terminal.say(f"{len(deployment.site)} sites under {place}/data. To go on:")
    terminal.say(f"  graphcl run {place}/config.toml            # as a simulation")
    terminal.say(f"  graphcl deploy init --sites {place}/sites.toml --out {place}/deployment")


@app.command("export")
def export_models(
    run: Annotated[Path, typer.Argument(help="A run directory, or the bundle of a site.")],
    out: Annotated[Path, typer.Argument(help="Where a folder per site is made.")],
    partition: Annotated[
        int | None, typer.Option(help="Of the site with this partition alone.", min=0)
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Where this one site's data are, if not where the run was.")
    ] = None,
) -> None:
    """Write the trained model of every site, which graphcl.models.load_model loads in one line.

    On a site, from its bundle: the model with which it was last evaluated.
    """
    from simulations.export import export_run, export_site

    terminal.check_folder(out, "OUT")
    logging.getLogger("flwr").setLevel(logging.ERROR)
    if (run / "site.toml").is_file():
        if data is not None or partition is not None:
            raise ConfigError(f"{run}: a bundle says all that is needed; drop the other options")
        terminal.say(escape(str(export_site(run, out))))
        return
    if data is not None and partition is None:
        raise ConfigError("--data is that of one site: say which by --partition")
    place = None if data is None else str(data.expanduser().resolve())
    for folder in export_run(run, out, partition=partition, data=place):
        terminal.say(escape(str(folder)))


app.command("check")(check)
