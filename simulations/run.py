"""Run an experiment and its comparisons, from a file or from where a killed run stopped."""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from federation.experiment import Experiment, load_experiment
from federation.learners import Clients, clients_of
from federation.run_directory import RunDirectory, new_directory
from federation.tables import WEIGHT_STRATEGIES
from graphcl.errors import ConfigError, FederationError
from simulations.carriers import carrier_for

_PARTITION = "partition.json"

Watch = Callable[[Experiment], AbstractContextManager[object]]


@dataclass(frozen=True)
class Outcome:
    """What became of one strategy.

    Attributes:
        strategy: Its name.
        directory: Its run directory.
        summary: The figures of its ``summary.json``; None where it could not take part.
        reason: Why it could not.
    """

    strategy: str
    directory: Path
    summary: dict[str, Any] | None
    reason: str = ""


def prepare(experiment: Experiment, out: Path = Path("runs")) -> tuple[Path, Clients]:
    """Check an experiment against its data and create its run directory.

    Returns:
        The directory, and what the clients hold.

    Raises:
        ConfigError, DataError, PartitionError: Before anything starts.
    """
    if experiment.run.directory:
        raise ConfigError(
            "run.directory: is for `flwr run`; with graphcl name the parent folder by --out, and "
            "go on with a run by --resume"
        )
    clients = clients_of(experiment)
    directory = new_directory(out, experiment.run.name)
    lay_out(directory, experiment, partition_text(clients))
    return directory, clients


def lay_out(directory: Path, experiment: Experiment, partition: str) -> None:
    """Write what :func:`execute` starts from; what a directory holds already stays.

    Args:
        directory: The run directory.
        experiment: What is to be run in it.
        partition: What :func:`partition_text` says of its clients.

    Raises:
        FederationError: If the directory holds the run of another experiment.
    """
    RunDirectory(directory).open(experiment)
    if not (directory / _PARTITION).exists():
        (directory / _PARTITION).write_text(partition, encoding="utf-8")


def execute(directory: Path, watch: Watch = lambda _: nullcontext()) -> list[Outcome]:
    """Run what is left of the experiment in a run directory: its strategy, then the comparisons.

    Args:
        directory: Made by :func:`prepare`; may hold finished or half finished runs.
        watch: Opened around every strategy that is run, for progress.

    Raises:
        ConfigError: If there is no experiment in the directory.
        FederationError: If a federation could not go on; what it did is in its checkpoint.
    """
    if not (directory / "config.toml").exists():
        raise ConfigError(f"{directory}: no run directory: it holds no config.toml")
    experiment = load_experiment(directory / "config.toml")
    logging.getLogger("flwr").setLevel(logging.ERROR)
    outcomes = [*_planned(experiment, directory)]
    todo = [o for o in outcomes if not o.reason and o.summary is None]
    if todo:
        _check_data(experiment, directory)
        with carrier_for(experiment) as carrier:
            for outcome in todo:
                own = experiment.override(
                    {
                        "strategy.name": outcome.strategy,
                        "run.compare": "",
                        "run.directory": str(outcome.directory.resolve()),
                    }
                )
                with watch(own):
                    carrier.run(own)
    return [
        dataclasses.replace(o, summary=_summary(o.directory)) if not o.reason else o
        for o in outcomes
    ]


def partition_text(clients: Clients) -> str:
    """Return how the data were divided, as a run directory keeps it."""
    return json.dumps(dataclasses.asdict(clients.report), indent=1) + "\n"


def _check_data(experiment: Experiment, directory: Path) -> None:
    """Raise if a resumed run would go on with other data, before anything starts."""
    recorded = directory / _PARTITION
    now = partition_text(clients_of(experiment))
    if recorded.exists() and recorded.read_text(encoding="utf-8") != now:
        raise ConfigError(
            f"data.source: '{experiment.data.source}' does not divide as it did when {directory} "
            "was begun; resume where the same file is found"
        )


def _planned(experiment: Experiment, directory: Path) -> Iterator[Outcome]:
    name = experiment.strategy.name
    yield Outcome(name, directory, _summary(directory))
    compared = [part.strip() for part in experiment.run.compare.split(",") if part.strip()]
    for other in dict.fromkeys(compared):
        folder = directory / "compare" / other
        if other == name:
            continue
        if other in WEIGHT_STRATEGIES and experiment.unlike_models:
            reason = "has one model for all, and the clients hold unlike models"
            yield Outcome(other, folder, None, reason)
        else:
            yield Outcome(other, folder, _summary(folder))


def _summary(directory: Path) -> dict[str, Any] | None:
    path = directory / "summary.json"
    if not path.exists():
        return None
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise FederationError(
            f"{path}: damaged; delete it, and the last round is summed up anew"
        ) from None
    return summary
