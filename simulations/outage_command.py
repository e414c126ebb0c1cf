"""``graphcl outage``: simulate, train, predict and evaluate forecasts of storm outages."""

from collections.abc import Callable
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
    from graphcl.outages import Forecast
    from simulations.outages import Coverage, Evaluated, OutageExperiment
    from simulations.report.outage_map import MapData

app = typer.Typer(no_args_is_help=True, help="Forecast the power outages of a storm.")

Config = Annotated[Path, typer.Argument(help="Outage file, e.g. configs/outages/simulated.toml.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key; may be repeated."),
]


@app.command()
def simulate(
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    locations: Annotated[int, typer.Option(min=4, help="Number of locations.")] = 400,
    events: Annotated[int, typer.Option(min=3, help="Number of past storms.")] = 24,
    seed: Annotated[int, typer.Option(help="Decides everything.")] = 0,
) -> None:
    """Write simulated storms in the file format that a utility brings: an example to copy.

    OUT/history holds the tables of past storms, OUT/storm.csv the weather forecast of one more.

    For example:

      graphcl outage simulate example
    """
    terminal.check_folder(out, "OUT")
    with terminal.loading():
        from graphcl.datasets import save_outage_events, save_storm, simulate_storms

    simulated = simulate_storms(locations, events + 1, seed=seed).events
    save_outage_events(simulated.of(range(events)), out / "history")
    save_storm(simulated.of([events]), out / "storm.csv")
    terminal.say(f"Past storms: [bold]{escape(str(out / 'history'))}[/bold]")
    terminal.say(f"One forecast: [bold]{escape(str(out / 'storm.csv'))}[/bold]")


@app.command()
def train(
    config: Config,
    out: Annotated[Path, typer.Option(help="Folder of the model to make.")],
    set_: Settings = None,
) -> None:
    """Train SA-HGNN on all events of a file and calibrate its intervals on unseen ones.

    For example:

      graphcl outage train configs/outages/simulated.toml --out model

      graphcl outage train FILE.toml --set outage.source=example/history --out model
    """
    if out.exists():
        raise ConfigError(f"--out {out} exists already: name a new folder")
    with terminal.loading():
        from graphcl.outages import OutageForecaster
        from graphcl.training import num_threads
        from simulations.outages import load_events

    experiment = _load(config, set_)
    events = load_events(experiment)
    forecaster = OutageForecaster(experiment.sa_hgnn, experiment.forecaster)
    with num_threads(1), Progress(*terminal.COLUMNS, console=terminal.console) as progress:
        total = forecaster.trainings(events.num_events)
        task = progress.add_task(experiment.outage.name, total=total, figures="")
        forecaster.fit(events, partial(progress.advance, task))
    forecaster.save(out)
    terminal.say(f"Trained on {events.num_events} events: [bold]{escape(str(out))}[/bold]")


@app.command()
def predict(
    model: Annotated[Path, typer.Option(help="Folder that graphcl outage train made.")],
    event: Annotated[Path, typer.Option(help="CSV table: location and its forecast weather.")],
    out: Annotated[Path, typer.Option(help="Page to write.")] = Path("map.html"),
    table: Annotated[
        Path | None, typer.Option(help="Also write the forecast of every location as CSV.")
    ] = None,
) -> None:
    """Forecast a storm's outages: totals per district here, every location on an offline map.

    For example:

      graphcl outage predict --model model --event storm.csv --out map.html
    """
    terminal.check_file(out)
    if table is not None:
        terminal.check_file(table, "--table")
    with terminal.loading():
        from graphcl.datasets import load_storm
        from graphcl.outages import OutageForecaster
        from graphcl.training import num_threads
        from simulations.report.outage_map import write_outage_map

    with terminal.console.status("Forecasting"), num_threads(1):
        forecaster = OutageForecaster.load(model)
        forecast = forecaster.predict(load_storm(event.absolute(), forecaster.territory))
        write_outage_map(out, _map_data(forecast, forecaster.forecaster.unit))
        if table is not None:
            _write_table(forecast, table)
    terminal.console.print(_totals_table(forecast))
    terminal.say(f"Map: [bold]{escape(str(out))}[/bold]")


@app.command()
def evaluate(
    config: Config,
    method: Annotated[
        list[str] | None, typer.Option(help="Only this one; may be repeated. Default: all.")
    ] = None,
    intervals: Annotated[
        bool, typer.Option(help="Also measure how often the intervals hold; trains many networks.")
    ] = False,
    set_: Settings = None,
    out: Annotated[Path, typer.Option(help="Where results are written.")] = Path("runs/outages"),
) -> None:
    """Predict events from others that do not include them, beside what practitioners use.

    MAE, RMSE and similarity (Morisita-Horn's; 1 is the observed pattern) are means over events of
    measures over locations; MAPE, CRMSE and R2 are of the events' totals, CRMSE of what is left of
    their errors when the mean error is taken away. The results' file holds these and more of every
    event.

    For example:

      graphcl outage evaluate configs/outages/simulated.toml

      graphcl outage evaluate configs/outages/taiwan.toml --method sa_hgnn --intervals
    """
    terminal.check_folder(out)
    with terminal.loading():
        from graphcl.training import num_threads
        from simulations.outages import (
            METHODS,
            count_trainings,
            divide,
            load_events,
            measure_coverage,
            write_evaluation,
        )
        from simulations.outages import evaluate as evaluate_method

    methods = method or list(METHODS)
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise ConfigError(f"--method {unknown[0]}: unknown; choose from {', '.join(METHODS)}")
    experiment = _load(config, set_)
    events = load_events(experiment)
    found: list[Evaluated] = []
    coverage = None
    try:
        with num_threads(1), Progress(*terminal.COLUMNS, console=terminal.console) as progress:
            folds = len(divide(experiment, events))
            for name in methods:
                task = progress.add_task(name, total=folds, figures="")
                found.append(
                    evaluate_method(experiment, events, name, partial(progress.advance, task))
                )
            if intervals:
                total = count_trainings(experiment, events)
                task = progress.add_task("intervals", total=total, figures="")
                advance: Callable[[], None] = partial(progress.advance, task)
                coverage = measure_coverage(experiment, events, advance)
    finally:  # what was finished before an interruption is shown, and is on disk
        if found:
            path = write_evaluation(experiment, events, found, coverage, out)
            terminal.console.print(_methods_table(found))
            terminal.say(f"Results: [bold]{escape(str(path))}[/bold]")
    if coverage is not None:
        terminal.console.print(_coverage_table(coverage))


def _load(config: Path, settings: list[str] | None) -> "OutageExperiment":
    from simulations.outages import describe_outage_keys, load_outage_experiment

    overrides = terminal.parse_settings(settings or [], describe_outage_keys())
    return load_outage_experiment(config, overrides)


def _methods_table(found: list["Evaluated"]) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("method", no_wrap=True)
    columns = {
        "MAE": ("mae", ".4g"),
        "RMSE": ("rmse", ".4g"),
        "similarity": ("morisita_horn", ".3f"),
        "MAPE %": ("mape", ".1f"),
        "CRMSE": ("crmse", ".4g"),
        "R2": ("r2", ".3f"),
    }
    for name in (*columns, "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in found:
        row = [
            f"{one.totals[key]:{form}}" if key in one.totals else "-"
            for key, form in columns.values()
        ]
        table.add_row(one.method, *row, f"{one.seconds:.0f}")
    return table


def _coverage_table(coverage: "Coverage") -> Table:
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("intervals of", "nominal %", "measured %"):
        table.add_column(name)
    for kind, nominal in coverage.nominal.items():
        table.add_row(kind, f"{100 * nominal:.1f}", f"{100 * coverage.measured[kind]:.1f}")
    for event, share in coverage.per_event.items():
        table.add_row(f"  locations in {event}", "", f"{100 * share:.1f}")
    return table


def _totals_table(forecast: "Forecast") -> Table:
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), title=forecast.storm.event[0])
    table.add_column("district")
    for name in ("expected", "interval", "level %"):
        table.add_column(name, justify="right")
    largest = sorted(forecast.districts, key=lambda total: -total.expected)
    for total in (*largest, forecast.total):
        table.add_row(
            total.name,
            f"{total.expected:.0f}",
            f"{total.low:.0f} to {total.high:.0f}",
            f"{100 * total.level:.0f}",
        )
    return table


def _map_data(forecast: "Forecast", unit: str) -> "MapData":
    from simulations.report.outage_map import DistrictTotal, MapData

    storm = forecast.storm
    return MapData(
        title=storm.event[0],
        unit=unit,
        location=storm.location,
        district=storm.district,
        latlon=storm.latlon,
        expected=forecast.expected,
        low=forecast.low,
        high=forecast.high,
        level=forecast.level,
        customers=storm.customers,
        district_totals=[DistrictTotal(*total[:4]) for total in forecast.districts],
        total=DistrictTotal(*forecast.total[:4]),
        borders=storm.borders,
    )


def _write_table(forecast: "Forecast", path: Path) -> None:
    import csv

    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["location", "district", "expected", "low", "high"])
        storm = forecast.storm
        numbers = zip(
            forecast.expected.tolist(), forecast.low.tolist(), forecast.high.tolist(), strict=True
        )
        for location, district, (expected, low, high) in zip(
            storm.location, storm.district, numbers, strict=True
        ):
            writer.writerow([location, district, f"{expected:.3f}", f"{low:.0f}", f"{high:.0f}"])
