"""The command line: ``graphcl run``, ``report``, ``probe`` and ``keys``."""

import math
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from federation.experiment import Experiment, Scalar, describe_keys, load_experiment
from federation.learners.graphs import ClientGraphs
from graphcl.errors import ConfigError, GraphCLError
from simulations.progress import COLUMNS, watch
from simulations.run import Outcome, execute, prepare

if TYPE_CHECKING:
    from simulations.probe import ProbeExperiment

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Contrastive learning on graphs that trains across data silos.",
)
_console = Console()


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
    if resume is not None:
        if engine or address or set_:
            raise ConfigError("--resume goes on with the run's own configuration; drop the others")
        directory = resume
        _say(f"Going on with [bold]{escape(str(directory))}[/bold]")
    else:
        assert config is not None  # noqa: S101 - one of the two is given
        overrides = _overrides(set_ or [], engine, address)
        with _console.status("Loading and dividing the data"):
            experiment = load_experiment(config, overrides)
            directory, clients = prepare(experiment, out)
        _print_plan(experiment, clients, directory)
    try:
        outcomes = execute(directory, lambda experiment: watch(experiment, _console))
    except ConfigError:
        raise
    except (KeyboardInterrupt, GraphCLError):
        _say(f"\nStopped. To go on: [bold]graphcl run --resume {escape(str(directory))}[/bold]")
        raise
    _print_outcomes(outcomes)
    _say(f"Report: [bold]{escape(str(_write_report(directory)))}[/bold]")


@app.command()
def report(directory: Annotated[Path, typer.Argument(help="A run directory.")]) -> None:
    """Write report.html anew from what a run directory holds."""
    _say(escape(str(_write_report(directory))))


@app.command()
def probe(
    configs: Annotated[
        list[Path] | None, typer.Argument(help="Probe files, e.g. configs/nodes/aspect_cora.toml.")
    ] = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Every ASPECT file in configs/nodes.")
    ] = False,
    leaking: Annotated[
        bool,
        typer.Option(
            help="Also show the best test epoch among validation ties, as some tables do."
        ),
    ] = False,
    method: Annotated[
        list[str] | None,
        typer.Option(help="aspect, aspect_s or grace; overrides probe.method, several compare."),
    ] = None,
    perturb: Annotated[
        str | None,
        typer.Option(
            metavar="SHARES",
            help="Show what is lost where this share of edges is flipped and of each feature's "
            "deviation is noise, e.g. 0.1,0.2,0.3.",
        ),
    ] = None,
    perturb_seeds: Annotated[
        int, typer.Option(min=1, help="Perturbed graphs per share of --perturb.")
    ] = 3,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key; may be repeated."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where results are written.")] = Path("runs/probes"),
) -> None:
    """Pre-train a node method without labels and evaluate its frozen embedding linearly.

    Ten splits; epoch and weights of the probe are chosen on validation nodes, the test nodes are
    touched once. The untrained row is the same network before its first step.

    For example:

      graphcl probe configs/nodes/aspect_cora.toml

      graphcl probe configs/nodes/aspect_texas.toml --method aspect --method aspect_s --perturb 0.1
    """
    from simulations.probe import load_probe, run_probe, write_result

    paths = sorted(Path("configs/nodes").glob("aspect_*.toml")) if all_ else configs
    if not paths:
        raise ConfigError("name a probe file, or --all in a folder that holds configs/nodes")
    overrides = _overrides(set_ or [], None, None)
    experiments = [load_probe(path, overrides) for path in paths]
    if method:
        names = [(path, e.probe.name) for path, e in zip(paths, experiments, strict=True)]
        experiments = [
            load_probe(
                path, {**overrides, "probe.method": chosen, "probe.name": f"{name}-{chosen}"}
            )
            for path, name in names
            for chosen in method
        ]
    if perturb is not None:
        if leaking:
            raise ConfigError("--perturb has no leaking column; drop --leaking")
        _probe_perturbed(experiments, perturb, perturb_seeds, out)
        return
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("probe", no_wrap=True)
    for name in ("splits", "accuracy %", "untrained %"):
        table.add_column(name)
    if leaking:
        table.add_column("leaking %")
        table.add_column("leaking, untrained %")
    for experiment in experiments:
        own = getattr(experiment, experiment.probe.method)
        with Progress(*COLUMNS, console=_console) as progress:
            task = progress.add_task(experiment.probe.name, total=own.epochs, figures="")

            def show(epoch: int, terms: dict[str, float], bar: Progress = progress) -> None:
                bar.update(task, completed=epoch, figures=f"loss {terms['loss']:.3f}")  # noqa: B023

            probed = run_probe(experiment, show)
        write_result(probed, out)
        both = (probed.result, probed.untrained)
        row = [f"{100 * r.mean:.2f} ± {100 * r.confidence:.2f}" for r in both]
        if leaking:
            row += [f"{100 * r.leaking_test_accuracy.mean():.2f}" for r in both]
        table.add_row(experiment.probe.name, experiment.probe.splits, *row)
    _console.print(table)
    _say(f"Results: [bold]{escape(str(out))}[/bold]")


@app.command()
def keys(
    table: Annotated[str, typer.Argument(help="Only keys that start so, e.g. strategy.")] = "",
) -> None:
    """List every key of an experiment file with its default and its meaning."""
    listing = Table("key", "default", "meaning", box=None)
    for key, default, meaning in describe_keys():
        if key.startswith(table):
            listing.add_row(key, escape(repr(default)), escape(meaning))
    _console.print(listing)


def main() -> None:
    """Run the command line; a known error is one message and a non-zero exit."""
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except GraphCLError as error:
        Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")):
            Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}")
            sys.exit(2)
        raise


def _write_report(directory: Path) -> Path:
    # Imported here: no run needs to wait for matplotlib before it starts.
    from simulations.report import write_report

    return write_report(directory)


def _overrides(settings: list[str], engine: str | None, address: str | None) -> dict[str, Scalar]:
    overrides: dict[str, Scalar] = {}
    texts = {key for key, default, _ in describe_keys() if isinstance(default, str)}
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator:
            raise ConfigError(f"--set {setting}: write KEY=VALUE, e.g. --set run.rounds=5")
        text = value.strip()
        # A key that holds text takes what was typed, be it a number.
        overrides[key.strip()] = text if key.strip() in texts else _scalar(text)
    if engine:
        overrides["simulation.engine"] = engine
    if address:
        overrides["simulation.address"] = address
    return overrides


def _scalar(text: str) -> Scalar:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip("\"'")


def _print_plan(experiment: Experiment, clients: ClientGraphs, directory: Path) -> None:
    shares, report = clients.report.clients, clients.report
    sizes = sorted(share.nodes for share in shares)
    encoders = ", ".join(experiment.encoder_names)
    _say(
        f"[bold]{experiment.run.name}[/bold]: {experiment.strategy.name} over {len(shares)} clients"
        f" of {sizes[0]} to {sizes[-1]} nodes, {clients.num_classes} classes, "
        f"{report.cut_share:.0%} of {report.edges} edges cut; encoders {encoders};"
        f" engine {experiment.simulation.engine}, seed {experiment.run.seed}\n"
        f"Run directory: {escape(str(directory))}"
    )


def _probe_perturbed(
    experiments: list["ProbeExperiment"], perturb: str, seeds: int, out: Path
) -> None:
    from simulations.robustness import (
        parse_ratios,
        robustness_table,
        run_robustness,
        write_robustness,
    )

    ratios = parse_ratios(perturb)
    results = []
    for experiment in experiments:
        with Progress(*COLUMNS, console=_console) as progress:
            total = 1 + len(ratios) * seeds
            task = progress.add_task(experiment.probe.name, total=total, figures="")
            found = run_robustness(experiment, ratios, seeds, partial(progress.advance, task))
        write_robustness(found, out)
        results.append(found)
    _console.print(robustness_table(results))
    _say(f"Results: [bold]{escape(str(out))}[/bold]")


def _print_outcomes(outcomes: list[Outcome]) -> None:
    table = Table(
        title="Test accuracy at the round with the best validation accuracy",
        title_justify="left",
        box=SIMPLE,
        padding=(0, 1, 0, 0),
    )
    binary = any("test_roc_auc" in (outcome.summary or {}) for outcome in outcomes)
    table.add_column("strategy")
    scores = ("accuracy", "ROC AUC") if binary else ("accuracy",)
    for name in (*scores, "worst client", "best round", "MB sent", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("digest", no_wrap=True)
    for outcome in outcomes:
        summary = outcome.summary
        if summary is None or "test_accuracy" not in summary:
            table.add_row(outcome.strategy, *["-"] * (len(table.columns) - 1))
            continue
        table.add_row(
            outcome.strategy,
            f"{summary['test_accuracy']:.4f}",
            *([f"{summary.get('test_roc_auc', math.nan):.4f}"] if binary else []),
            f"{summary['worst_client_accuracy']:.4f}",
            str(summary["best_round"]),
            f"{(summary['bytes_up'] + summary['bytes_down']) / 1e6:.2f}",
            f"{summary['seconds']:.1f}",
            summary["digest"],
        )
    _console.print(table)
    for outcome in outcomes:
        if outcome.reason:
            _say(f"{outcome.strategy} was not run: it {outcome.reason}.")


def _say(text: str) -> None:
    """Print a line that is never broken, so that a path in it can be copied."""
    _console.print(text, soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
