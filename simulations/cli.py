"""The command line: ``graphcl run``, ``sweep``, ``compare``, ``report`` and the other commands."""

import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from graphcl.errors import ConfigError, GraphCLError
from simulations import deploy_command, outage_command, recommend_command, terminal
from simulations.audit_command import audit
from simulations.compare_command import compare
from simulations.probe_command import probe
from simulations.sweep_command import sweep

if TYPE_CHECKING:
    from federation.experiment import Experiment, Scalar
    from federation.learners import Clients
    from federation.scores import Score
    from simulations.run import Outcome

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Contrastive learning on graphs that trains across data silos.",
)


@app.command()
def run(
    config: Annotated[
        Path | None, typer.Argument(help="Experiment file, e.g. configs/quickstart.toml.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the run in this directory instead.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="local, ray or flower; overrides simulation.engine.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Join the Ray cluster at this address, e.g. auto.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key; may be repeated."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where run directories are made.")] = Path("runs"),
) -> None:
    """Run a federation, compare strategies on the same partitions, and write a report.

    The run directory keeps the configuration, the metrics of every client and round, checkpoints
    and report.html. A run that was stopped goes on with --resume DIRECTORY.

    For example:

      graphcl run configs/quickstart.toml

      graphcl run configs/quickstart.toml --engine local --set run.rounds=5

      graphcl run --resume runs/20260101-120000-quickstart
    """
    if (config is None) == (resume is None):
        raise ConfigError("name an experiment file, or a run directory with --resume, not both")
    with terminal.console.status("Loading PyTorch and Flower"):  # for seconds
        from federation.experiment import describe_keys, load_experiment
        from federation.scores import SCORES
        from simulations.progress import watch
        from simulations.run import execute, prepare

    if resume is not None:
        if engine or address or set_:
            raise ConfigError("--resume goes on with the run's own configuration; drop the others")
        directory = resume
        terminal.say(f"Going on with [bold]{escape(str(directory))}[/bold]")
    else:
        assert config is not None  # noqa: S101 - one of the two is given
        overrides = terminal.parse_settings(set_ or [], describe_keys())
        if engine:
            overrides["simulation.engine"] = engine
        if address:
            overrides["simulation.address"] = address
        with terminal.console.status("Loading and dividing the data"):
            experiment = load_experiment(config, overrides)
            if address and experiment.simulation.engine != "ray":
                raise ConfigError(
                    f"--address leads to a Ray cluster, but the engine is "
                    f"'{experiment.simulation.engine}': leave it out, or say --engine ray"
                )
            directory, clients = prepare(experiment, out)
        _print_plan(experiment, clients, directory)
    try:
        outcomes = execute(directory, lambda experiment: watch(experiment, terminal.console))
    except ConfigError:
        raise
    except (KeyboardInterrupt, GraphCLError):
        terminal.say(
            f"\nStopped. To go on: [bold]graphcl run --resume {escape(str(directory))}[/bold]"
        )
        raise
    ran = load_experiment(directory / "config.toml")
    _print_outcomes(outcomes, SCORES[ran.task.name])
    if ran.faults.summary:
        terminal.say(f"faults: {ran.faults.summary}")
    terminal.say(f"Report: [bold]{escape(str(_write_report(directory)))}[/bold]")


@app.command()
def report(directory: Annotated[Path, typer.Argument(help="A run directory.")]) -> None:
    """Write report.html anew from what a run directory holds."""
    terminal.say(escape(str(_write_report(directory))))


app.command()(probe)
app.command()(audit)
app.command()(compare)
app.command()(sweep)
app.add_typer(deploy_command.app, name="deploy")
app.add_typer(outage_command.app, name="outage")
app.add_typer(recommend_command.app, name="recommend")


@app.command()
def keys(
    table: Annotated[str, typer.Argument(help="Only keys that start so, e.g. strategy.")] = "",
    probe_file: Annotated[
        bool, typer.Option("--probe", help="Of a probe file, as graphcl probe reads it.")
    ] = False,
    outage_file: Annotated[
        bool, typer.Option("--outage", help="Of an outage file, as graphcl outage reads it.")
    ] = False,
    recommend_file: Annotated[
        bool,
        typer.Option("--recommend", help="Of a recommend file, as graphcl recommend reads it."),
    ] = False,
    sites_file: Annotated[
        bool, typer.Option("--sites", help="Of a sites.toml, as graphcl deploy init reads it.")
    ] = False,
) -> None:
    """List every key of an experiment, probe, outage, recommend or sites file, with its meaning."""
    from federation.deploy.sites import describe_site_keys
    from federation.experiment import describe_keys
    from simulations.outages import describe_outage_keys
    from simulations.probe import describe_probe_keys
    from simulations.recommendations import describe_recommend_keys

    kinds: list[tuple[bool, Callable[[], Iterable[tuple[str, Scalar, str]]]]] = [
        (probe_file, describe_probe_keys),
        (outage_file, describe_outage_keys),
        (recommend_file, describe_recommend_keys),
        (sites_file, describe_site_keys),
    ]
    chosen = [describe for asked, describe in kinds if asked]
    if len(chosen) > 1:
        raise ConfigError(
            "--probe, --outage, --recommend and --sites each list the keys of one kind of file: "
            "choose one"
        )
    described = chosen[0]() if chosen else describe_keys()
    listing = Table("key", "default", "meaning", box=None)
    described = [entry for entry in described if entry[0].startswith(table)]
    if not described:
        raise ConfigError(f"no key starts with '{table}'; graphcl keys, without it, lists all")
    for key, default, meaning in described:
        listing.add_row(key, escape(repr(default)), escape(meaning))
    terminal.console.print(listing)


def main() -> None:
    """Run the command line; a known error is one message and a non-zero exit."""
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except GraphCLError as error:
        Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        if error.filename is None:
            raise
        said = f"{error.filename}: {error.strerror}"
        Console(stderr=True).print(f"[red]error:[/red] {escape(said)}", soft_wrap=True)
        sys.exit(1)
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")):
            # A usage error's own text leaves out which option it is about.
            said = error.format_message() if hasattr(error, "format_message") else str(error)
            Console(stderr=True).print(f"[red]error:[/red] {escape(said)}", soft_wrap=True)
            sys.exit(2)
        raise


def _write_report(directory: Path) -> Path:
    from simulations.report import write_report

    return write_report(directory)


def _print_plan(experiment: "Experiment", clients: "Clients", directory: Path) -> None:
    from federation.learners import Sites
    from federation.learners.graphs import ClientGraphs

    shares, report = clients.report.clients, clients.report
    sizes = sorted(share.nodes for share in shares)
    encoders = ", ".join(experiment.encoder_names)
    num_classes = 0 if isinstance(clients, Sites) else clients.num_classes
    classes = f"{num_classes} classes, " if num_classes else ""
    cut = f"{report.cut_share:.0%} of {report.edges} {clients.links} cut; " if report.edges else ""
    terminal.say(
        f"[bold]{experiment.run.name}[/bold]: {experiment.strategy.name} over {len(shares)} clients"
        f" of {sizes[0]} to {sizes[-1]} {clients.unit}, {classes}"
        f"{cut}encoders {encoders};"
        f" engine {experiment.simulation.engine}, seed {experiment.run.seed}\n"
        f"Run directory: {escape(str(directory))}"
    )
    whole = clients.whole if isinstance(clients, ClientGraphs) else None
    if experiment.data.split == "random" and whole is not None and "train_mask" in whole:
        terminal.say('The masks of the graph are not read; data.split = "stored" would read them')


def _print_outcomes(outcomes: "list[Outcome]", scores: "Sequence[Score]") -> None:
    first, *others = scores
    rows = [
        (outcome.strategy, outcome.summary if "best_round" in (outcome.summary or {}) else None)
        for outcome in outcomes
    ]
    _print_table(
        f"Test {first.label} at the round with the best validation {first.label}",
        {
            first.label: partial(_measure, f"test_{first.key}"),
            "worst client": partial(_measure, f"worst_client_{first.key}"),
            "best round": lambda summary: str(summary["best_round"]),
            "MB sent": lambda s: f"{(s['bytes_up'] + s['bytes_down']) / 1e6:.2f}",
            "seconds": lambda summary: f"{summary['seconds']:.1f}",
            "digest": lambda summary: summary["digest"],
        },
        rows,
    )
    known = {name for _, summary in rows for name in summary or {}}
    if others := [s for s in others if f"test_{s.key}" in known and not s.detail]:
        # A table of their own, so that both fit 80 columns.
        _print_table(
            "Test, in that round",
            {s.label: partial(_measure, f"test_{s.key}") for s in others},
            rows,
        )
    for outcome in outcomes:
        summary = outcome.summary or {}
        if "epsilon" in summary:
            terminal.say(
                f"{outcome.strategy}: ε = {summary['epsilon']:.3g} at δ = {summary['delta']:g} for "
                "one sample in a client's prototypes; the report says what that leaves open."
            )
        if "epsilon_if_noise_were_secret" in summary:
            terminal.say(
                f"{outcome.strategy}: no ε: privacy.noise = 'seed' draws noise that the server "
                "can repeat."
            )
        if outcome.reason:
            terminal.say(f"{outcome.strategy} was not run: it {outcome.reason}.")


def _print_table(
    title: str,
    columns: "dict[str, Callable[[dict[str, Any]], str]]",
    rows: "list[tuple[str, dict[str, Any] | None]]",
) -> None:
    """Print a row per strategy, from its summary; dashes where it has none."""
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("strategy", no_wrap=True)
    for name in columns:
        digest = name == "digest"
        table.add_column(name, justify="left" if digest else "right", no_wrap=digest)
    for strategy, summary in rows:
        cells = ["-" if summary is None else cell(summary) for cell in columns.values()]
        table.add_row(strategy, *cells)
    terminal.console.print(table)


def _measure(key: str, summary: "dict[str, Any]") -> str:
    return _figure(summary.get(key))


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"


if __name__ == "__main__":
    main()
