"""``graphcl probe``: evaluate label-free node methods, tune them, or perturb their graphs."""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from graphcl.errors import ConfigError
from simulations import terminal

if TYPE_CHECKING:
    from federation.experiment import Scalar
    from simulations.probe import Probed, ProbeExperiment


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
        typer.Option(
            help="aspect, aspect_s, grace, bgrl or polygcl; overrides probe.method, several "
            "compare."
        ),
    ] = None,
    search: Annotated[
        bool,
        typer.Option(
            "--search", help="Tune on validation nodes over the file's \\[search] table instead."
        ),
    ] = False,
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

    Ten splits; the epoch of the probe is chosen on validation nodes, the test nodes are touched
    once. The untrained column is the same network before its first step. Where the method has a
    spectral policy, the last column says how well it tells homophilic nodes from the others: the
    area under the ROC curve, 50 is chance.

    For example:

      graphcl probe configs/nodes/aspect_cora.toml

      graphcl probe --all --set probe.splits=geom

      graphcl probe configs/nodes/aspect_texas.toml --search

      graphcl probe configs/nodes/aspect_texas.toml --method aspect --method aspect_s --perturb 0.1
    """
    paths = sorted(Path("configs/nodes").glob("aspect_*.toml")) if all_ else configs
    if not paths:
        raise ConfigError("name a probe file, or --all in a folder that holds configs/nodes")
    if leaking + search + (perturb is not None) > 1:
        raise ConfigError("--leaking, --search and --perturb each print a table: choose one")
    from simulations.probe import describe_probe_keys

    overrides = terminal.parse_settings(set_ or [], describe_probe_keys())
    files = _files(paths, method or [], overrides)
    if search:
        _search(files, out)
    elif perturb is not None:
        _perturb([experiment for *_, experiment in files], perturb, perturb_seeds, out)
    else:
        _evaluate([experiment for *_, experiment in files], leaking, out)


File = tuple[Path, "dict[str, Scalar]", "ProbeExperiment"]


def _files(paths: list[Path], methods: list[str], overrides: "dict[str, Scalar]") -> list[File]:
    """Return every file with its overrides, once per method; their names must differ."""
    from simulations.probe import load_probe

    files = [(path, overrides, load_probe(path, overrides)) for path in paths]
    if methods:
        chosen = [
            (path, {**own, "probe.method": method, "probe.name": f"{file.probe.name}-{method}"})
            for path, own, file in files
            for method in methods
        ]
        files = [(path, own, load_probe(path, own)) for path, own in chosen]
    name, times = Counter(file.probe.name for *_, file in files).most_common(1)[0]
    if times > 1:
        raise ConfigError(
            f"{times} probes are named {name}, and one's result would overwrite another's; give "
            "each file its own probe.name"
        )
    return files


def _evaluate(experiments: list["ProbeExperiment"], leaking: bool, out: Path) -> None:
    from simulations.probe import run_probe, write_result

    found = []
    try:
        for experiment in experiments:
            own = getattr(experiment, experiment.probe.method)
            with Progress(*terminal.COLUMNS, console=terminal.console) as progress:
                task = progress.add_task(experiment.probe.name, total=own.epochs, figures="")

                def show(epoch: int, terms: dict[str, float], bar: Progress = progress) -> None:
                    bar.update(task, completed=epoch, figures=f"loss {terms['loss']:.3f}")  # noqa: B023

                found.append(run_probe(experiment, show, leaking=leaking))
            write_result(found[-1], out)
    finally:  # what was finished before an interruption is shown, and is on disk
        if found:
            terminal.console.print(_table(found))
            terminal.say(f"Results: [bold]{escape(str(out))}[/bold]")


def _table(found: list["Probed"]) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("probe", no_wrap=True)
    table.add_column("splits")
    for name in ("accuracy %", "untrained %"):
        table.add_column(name, min_width=len("99.99 ± 9.99"))
    leaking = any(probed.result.leaking_test_accuracy is not None for probed in found)
    if leaking:
        table.add_column("leaking %")
        table.add_column("leaking, untrained %")
    judged = any(probed.policy_auc is not None for probed in found)
    if judged:
        table.add_column("policy AUC %")
    for probed in found:
        both = (probed.result, probed.untrained)
        row = [f"{100 * r.mean:.2f} ± {100 * r.confidence:.2f}" for r in both]
        if leaking:
            leaked = [r.leaking_test_accuracy for r in both]
            row += ["-" if each is None else f"{100 * each.mean():.2f}" for each in leaked]
        if judged:
            row.append("-" if probed.policy_auc is None else f"{100 * probed.policy_auc:.0f}")
        table.add_row(probed.experiment.probe.name, probed.experiment.probe.splits, *row)
    return table


def _search(files: list[File], out: Path) -> None:
    from federation.experiment import read_toml
    from simulations.search import Trial, count_trials, search, write_search

    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("probe", "best setting", "validation %", "trials", "seconds"):
        table.add_column(name, no_wrap=name == "probe")
    try:
        for path, overrides, experiment in files:
            with Progress(*terminal.COLUMNS, console=terminal.console) as progress:
                total = count_trials(experiment)
                task = progress.add_task(experiment.probe.name, total=total, figures="")

                def show(trial: Trial, bar: Progress = progress) -> None:
                    bar.update(task, advance=1, figures=f"val {trial.val_accuracy:.4f}")  # noqa: B023

                trials = search(read_toml(path, overrides), str(path), show)
            write_search(experiment, trials, out)
            best = trials[-1]
            table.add_row(
                experiment.probe.name,
                ", ".join(f"{key} = {value}" for key, value in best.settings.items()) or "the file",
                f"{100 * best.val_accuracy:.2f}",
                str(len(trials)),
                f"{sum(trial.seconds for trial in trials):.0f}",
            )
    finally:
        terminal.console.print(table)
    terminal.say(f"Trials: [bold]{escape(str(out))}[/bold]")


def _perturb(experiments: list["ProbeExperiment"], perturb: str, seeds: int, out: Path) -> None:
    from simulations.robustness import (
        parse_ratios,
        robustness_table,
        run_robustness,
        write_robustness,
    )

    ratios = parse_ratios(perturb)
    results = []
    for experiment in experiments:
        with Progress(*terminal.COLUMNS, console=terminal.console) as progress:
            total = 1 + len(ratios) * seeds
            task = progress.add_task(experiment.probe.name, total=total, figures="")
            found = run_robustness(experiment, ratios, seeds, partial(progress.advance, task))
        write_robustness(found, out)
        results.append(found)
    terminal.console.print(robustness_table(results))
    terminal.say(f"Results: [bold]{escape(str(out))}[/bold]")
