"""``graphcl sweep``: an experiment over ranges of its keys and over seeds."""

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import Progress

from graphcl.errors import FederationError
from simulations import terminal


def sweep(
    config: Annotated[Path, typer.Argument(help="Experiment file, e.g. configs/quickstart.toml.")],
    range_: Annotated[
        list[str] | None,
        typer.Option(
            "--range", metavar="KEY=A,B,...", help="Values to try for a key; several make a grid."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds per setting, from run.seed on.")] = 3,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Try so many settings of the grid, drawn at random.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key in all trials."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The sweep's folder; by default runs/NAME-sweep.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Trials at once; 0 = as many as fit.")] = 0,
    address: Annotated[
        str, typer.Option(help="Join the Ray cluster at this address; it must see the folder.")
    ] = "",
) -> None:
    """Run an experiment over ranges of its keys and over seeds, and order the settings.

    Every setting runs with every seed, each trial in a run directory of its
    own and in one process (simulation.engine = "local"), so many at once. All
    trials are checked before the first starts. Give the same command again
    after a stop: what is finished stays, and what was begun goes on from its
    checkpoint.

    Settings are ordered by their mean validation score; the test score stands
    beside it and decides nothing. run.compare is left out: to compare
    strategies, give strategy.name a range. The folder then holds sweep.json,
    sweep.md and sweep.png, and graphcl compare takes it as it is.

    Values are TOML scalars or bare words; quote what has a comma in it.

    For example:

      graphcl sweep configs/quickstart.toml --range train.learning_rate=0.003,0.01,0.03

      graphcl sweep configs/quickstart.toml --range strategy.name=fedproto,feddbp --seeds 5

      graphcl sweep configs/quickstart.toml --range 'model.encoders="gcn","gcn, sage"' --jobs 2
    """
    with terminal.loading():
        from federation.experiment import describe_keys
        from simulations.sweep import lay_out_trials, parse_ranges, plan_sweep
        from simulations.sweep_results import (
            best_settings,
            explain,
            result_table,
            sweep_result,
            write_result,
        )

    overrides = terminal.parse_settings(set_ or [], describe_keys())
    ranges = parse_ranges(range_ or [], describe_keys())
    trials = plan_sweep(config, overrides, ranges, seeds, samples, out)
    folder = trials[0].directory.parent.parent
    with terminal.console.status("Loading and dividing the data"):
        lay_out_trials(trials)
    waiting = [trial for trial in trials if not trial.finished]
    terminal.say(
        f"[bold]{trials[0].experiment.run.name}[/bold]: {len(trials) // seeds} settings with "
        f"{seeds} seeds each, {len(trials) - len(waiting)} of {len(trials)} trials finished\n"
        f"Sweep: {escape(str(folder))}"
    )
    failed: dict[Path, str] = {}
    try:
        if waiting:
            from simulations.trials import run_trials

            with Progress(*terminal.COLUMNS, console=terminal.console) as progress:
                task = progress.add_task("trials", total=len(waiting), figures="")
                failed = run_trials(waiting, folder, jobs, address, lambda: progress.advance(task))
    except KeyboardInterrupt:
        terminal.say("\nStopped. To go on, give the same command again.")
        raise
    finally:
        result = sweep_result(trials, failed)
        write_result(result, folder)
    terminal.console.print(result_table(result))
    for note in explain(result):
        terminal.say(escape(note))
    if result.best:
        shared = " ".join(f"--set {shlex.quote(text)}" for text in set_ or [])
        parts = [f"graphcl run {shlex.quote(str(config))}", shared, best_settings(result.best)]
        terminal.say(f"Best on validation: [bold]{escape(' '.join(filter(None, parts)))}[/bold]")
    for line in result.failures:
        terminal.say(f"[red]failed:[/red] {escape(line)}")
    terminal.say(f"Written: {escape(str(folder))}/sweep.json, sweep.md and sweep.png")
    if result.failures:
        raise FederationError(
            f"{len(result.failures)} of {len(trials)} trials failed; the same command tries them "
            "again"
        )
