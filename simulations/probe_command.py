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
    import numpy as np

    from federation.experiment import Scalar
    from simulations.probe import Probed, ProbeExperiment
    from simulations.search import Trial


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
            "--search",
            help="Tune on validation nodes over the file's \\[search] table instead; after a stop, "
            "the same command goes on.",
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
        int | None,
        typer.Option(min=1, help="Perturbed graphs per share of --perturb, 3 if not given."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key; may be repeated."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where results are written.")] = Path("runs/probes"),
) -> None:
    """Pre-train a node method without labels and evaluate its frozen embedding linearly.

    Ten splits; the epoch of the probe is chosen on validation nodes, the test nodes are touched
    once. The untrained column is the same network before its first step. With probe.seeds above
    one, accuracies are means over so many trainings, and a column has the lowest and the highest of
    them; --search judges a setting by its mean, too. Where the method has a
    spectral policy, the last column says how well it tells homophilic nodes from the others: the
    area under the ROC curve, 50 is chance.

    For example:

      graphcl probe configs/nodes/aspect_cora.toml

      graphcl probe --all --set probe.splits=geom

      graphcl probe configs/nodes/aspect_texas.toml --search

      graphcl probe configs/nodes/aspect_texas.toml --method aspect --method aspect_s --perturb 0.1
    """
    if all_ and configs:
        raise ConfigError(f"--all probes every file of configs/nodes: leave out {configs[0]}")
    paths = sorted(Path("configs/nodes").glob("aspect_*.toml")) if all_ else configs
    if not paths:
        raise ConfigError("name a probe file, or --all in a folder that holds configs/nodes")
    terminal.check_folder(out)
    if leaking + search + (perturb is not None) > 1:
        raise ConfigError("--leaking, --search and --perturb each print a table: choose one")
    if perturb_seeds is not None and perturb is None:
        raise ConfigError("--perturb-seeds says how often --perturb perturbs: give both")
    with terminal.loading():
        from simulations.probe import describe_probe_keys

    overrides = terminal.parse_settings(set_ or [], describe_probe_keys())
    files = _files(paths, method or [], overrides)
    if search:
        _search(files, out)
    elif perturb is not None:
        _perturb([experiment for *_, experiment in files], perturb, perturb_seeds or 3, out)
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
                total = own.epochs * experiment.probe.seeds
                task = progress.add_task(experiment.probe.name, total=total, figures="")

                def show(epoch: int, terms: dict[str, float], bar: Progress = progress) -> None:
                    bar.update(task, advance=1, figures=f"loss {terms['loss']:.3f}")  # noqa: B023

                found.append(run_probe(experiment, show, leaking=leaking))
            write_result(found[-1], out)
    finally:  # what was finished before an interruption is shown, and is on disk
        if found:
            terminal.console.print(_table(found))
            if leaking:
                terminal.console.print(_leaking_table(found))
            terminal.say(f"Results: [bold]{escape(str(out))}[/bold]")


def _table(found: list["Probed"]) -> Table:
    from simulations.probe import by_split

    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("probe", "splits", "accuracy %", "untrained %"):
        table.add_column(name, no_wrap=True)
    seeded = any(len(probed.results) > 1 for probed in found)
    if seeded:
        table.add_column("seeds %", no_wrap=True)
    judged = any(probed.policy_auc is not None for probed in found)
    if judged:
        table.add_column("AUC %", no_wrap=True)
    for probed in found:
        both = (probed.results, probed.untrained)
        row = [_with_interval(by_split(probes)) for probes in both]
        if seeded:
            means = [100 * result.mean for result in probed.results]
            row.append(f"{min(means):.1f}–{max(means):.1f}" if len(means) > 1 else "-")  # noqa: RUF001
        if judged:
            row.append("-" if probed.policy_auc is None else f"{100 * probed.policy_auc:.0f}")
        table.add_row(probed.experiment.probe.name, probed.experiment.probe.splits, *row)
    return table


def _leaking_table(found: list["Probed"]) -> Table:
    from simulations.probe import leaking_by_split

    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("leaking: epoch by test nodes", "accuracy %", "untrained %"):
        table.add_column(name, no_wrap=True)
    for probed in found:
        leaked = [leaking_by_split(probes) for probes in (probed.results, probed.untrained)]
        figures = ["-" if each is None else f"{100 * each.mean():.2f}" for each in leaked]
        table.add_row(probed.experiment.probe.name, *figures)
    return table


def _with_interval(accuracy: "np.ndarray") -> str:
    from graphcl.nodes import bootstrap_half_width

    return f"{100 * accuracy.mean():.2f} ± {100 * bootstrap_half_width(accuracy):.2f}"


def _search(files: list[File], out: Path) -> None:
    from simulations.search import best

    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("probe", "best setting", "validation %", "trials", "seconds"):
        table.add_column(name, no_wrap=name == "probe")
    try:
        for file in files:
            trials = _search_one(*file, out)
            winner = best(trials)
            settings = (f"{key} = {value}" for key, value in winner.settings.items())
            table.add_row(
                file[-1].probe.name,
                ", ".join(settings) or "the file",
                f"{100 * winner.val_accuracy:.2f}",
                str(len(trials)),
                f"{sum(trial.seconds for trial in trials):.0f}",
            )
    except KeyboardInterrupt:
        terminal.say(f"\nStopped. The same command goes on from the trials in {escape(str(out))}")
        raise
    finally:
        if table.row_count:
            terminal.console.print(table)
    terminal.say(f"Trials: [bold]{escape(str(out))}[/bold]")


def _search_one(
    path: Path, overrides: "dict[str, Scalar]", experiment: "ProbeExperiment", out: Path
) -> list["Trial"]:
    """Search over one file; every trial is on disk before the next begins."""
    from federation.experiment import read_toml
    from simulations.search import best, count_trials, read_search, search, write_search

    trials: list[Trial] = []
    if known := read_search(experiment, out):
        terminal.say(
            f"{experiment.probe.name}: {len(known)} trials are in [bold]{escape(str(out))}[/bold] "
            "already and are not run again; delete the file to begin anew"
        )
    with Progress(*terminal.COLUMNS, console=terminal.console) as progress:
        total = count_trials(experiment)
        task = progress.add_task(experiment.probe.name, total=total, figures="")

        def keep(trial: "Trial") -> None:
            trials.append(trial)
            # With those of an earlier run that are still to come, lest a stop loses them.
            later = [one for one in known if one not in trials]
            write_search(experiment, trials + later, out)
            reached = "failed" if trial.error else f"val {trial.val_accuracy:.4f}"
            figures = f"{reached}, best {best(trials).val_accuracy:.4f}"
            progress.update(task, advance=1, figures=figures)

        search(read_toml(path, overrides, "graphcl probe"), str(path), keep, known)
    return trials


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
            total = experiment.probe.seeds * (1 + len(ratios) * seeds)
            task = progress.add_task(experiment.probe.name, total=total, figures="")
            found = run_robustness(experiment, ratios, seeds, partial(progress.advance, task))
        write_robustness(found, out)
        results.append(found)
    terminal.console.print(robustness_table(results))
    terminal.say(f"Results: [bold]{escape(str(out))}[/bold]")
