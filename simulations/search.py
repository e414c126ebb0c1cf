"""Tune a node method on validation nodes: one key after the other, every trial on record.

A probe file's ``[search]`` table lists values for dotted keys of the file, in the order in which
they are tried. A key's best value is kept before the next key is looked at, so that the cost is the
sum of the lists and not their product. Test nodes are never looked at.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from federation.experiment import Scalar
from graphcl.errors import ConfigError
from graphcl.training import num_threads
from simulations.probe import (
    ProbeExperiment,
    load_graph,
    new_method,
    probe_embedding,
    probe_experiment,
)


@dataclass(frozen=True)
class Trial:
    """One setting and how it did.

    Attributes:
        settings: Dotted keys that differ from the file.
        val_accuracy: Best validation accuracy, mean over the splits and ``probe.seeds`` trainings.
        seconds: What these trainings and probes took.
    """

    settings: dict[str, Scalar]
    val_accuracy: float
    seconds: float


def count_trials(experiment: ProbeExperiment) -> int:
    """Return how many trials a search takes at most.

    Raises:
        ConfigError: If the file has nothing to search.
    """
    lists = experiment.search.values()
    if not any(lists):
        raise ConfigError(
            f"{experiment.probe.name}: --search needs a [search] table, for example "
            '"aspect.temperature" = [0.2, 0.5, 1.0]'
        )
    return 1 + sum(len(values) for values in lists)


def search(
    nested: dict[str, Any], origin: str, on_trial: Callable[[Trial], None] = lambda trial: None
) -> list[Trial]:
    """Try the values of a probe file's ``[search]`` table; return all trials, see :func:`best`.

    Args:
        nested: The file's tables.
        origin: The file, for messages.
        on_trial: Called after every trial.

    Raises:
        ConfigError: If a trial's setting does not validate; all are checked before the first runs.
    """
    for key, value in _candidates(probe_experiment(nested, origin).search):
        probe_experiment(_with(nested, {key: value}), origin)
    trials: dict[str, Trial] = {}

    def attempt(settings: dict[str, Scalar]) -> None:
        experiment = probe_experiment(_with(nested, settings), origin)
        name = experiment.model_dump_json()
        if name not in trials:
            trials[name] = _try(experiment, settings)
            on_trial(trials[name])

    attempt({})
    for key, values in probe_experiment(nested, origin).search.items():
        kept = best(trials.values()).settings
        for value in values:
            attempt({**kept, key: value})
    return list(trials.values())


def best(trials: Iterable[Trial]) -> Trial:
    """Return the trial with the best validation accuracy, the first of equals."""
    return max(trials, key=lambda trial: trial.val_accuracy)


def write_search(experiment: ProbeExperiment, trials: list[Trial], out: Path) -> Path:
    """Write trials as JSON, in their order, and which is best; return the file."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{experiment.probe.name}-search.json"
    content = {
        "experiment": experiment.model_dump(),
        "best": best(trials).settings,
        "trials": [vars(trial) for trial in trials],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def _try(experiment: ProbeExperiment, settings: dict[str, Scalar]) -> Trial:
    started = time.perf_counter()
    data, masks = load_graph(experiment.probe)
    accuracies = []
    for training in range(experiment.probe.seeds):
        with num_threads(1):
            embedding = new_method(experiment, training).fit(data).embed(data)
            result = probe_embedding(experiment.probe, embedding, data.y, masks)
        accuracies.append(float(result.val_accuracy.mean()))
    seconds = time.perf_counter() - started
    return Trial(settings, fmean(accuracies), seconds)


def _candidates(lists: dict[str, list[Scalar]]) -> Iterator[tuple[str, Scalar]]:
    return ((key, value) for key, values in lists.items() for value in values)


def _with(nested: dict[str, Any], settings: dict[str, Scalar]) -> dict[str, Any]:
    """Return the tables of a file with other values for some dotted keys."""
    nested = deepcopy(nested)
    for dotted, value in settings.items():
        table, _, key = dotted.partition(".")
        nested.setdefault(table, {})[key] = value
    return nested
