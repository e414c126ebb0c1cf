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
from graphcl.errors import ConfigError, GraphCLError
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
        val_accuracy: Best validation accuracy, mean over the splits and ``probe.seeds`` trainings;
            below 0 where one of them failed.
        seconds: What these trainings and probes took.
        error: Why one failed; empty where none did.
    """

    settings: dict[str, Scalar]
    val_accuracy: float
    seconds: float
    error: str = ""


def count_trials(experiment: ProbeExperiment) -> int:
    """Return how many trials a search takes at most.

    Raises:
        ConfigError: If the file has nothing to search.
    """
    lists = _lists(experiment).values()
    if not any(lists) and any(experiment.search.values()):
        raise ConfigError(
            f"{experiment.probe.name}: no key of the file's [search] table concerns "
            f'{experiment.probe.method}; add some, for example "{experiment.probe.method}.'
            'learning_rate" = [0.001, 0.01]'
        )
    if not any(lists):
        raise ConfigError(
            f"{experiment.probe.name}: --search needs a [search] table, for example "
            '"aspect.temperature" = [0.2, 0.5, 1.0]'
        )
    return 1 + sum(len(values) for values in lists)


def search(
    nested: dict[str, Any],
    origin: str,
    on_trial: Callable[[Trial], None] = lambda trial: None,
    known: Iterable[Trial] = (),
) -> list[Trial]:
    """Try the values of a probe file's ``[search]`` table; return all trials, see :func:`best`.

    A value with which training fails, for instance since a step is too large, loses to the others.

    Args:
        nested: The file's tables.
        origin: The file, for messages.
        on_trial: Called after every trial.
        known: Trials of this very file that need not be run again, from :func:`read_search`.

    Raises:
        ConfigError: If a trial's setting does not validate; all are checked before the first runs.
        GraphCLError: If the file's own setting cannot be trained.
    """
    lists = _lists(probe_experiment(nested, origin))
    for key, value in _candidates(lists):
        probe_experiment(_with(nested, {key: value}), origin)
    trials: dict[str, Trial] = {}
    before = {_name(_with(nested, trial.settings), origin): trial for trial in known}

    def attempt(settings: dict[str, Scalar]) -> None:
        tables = _with(nested, settings)
        name = _name(tables, origin)
        if name not in trials:
            trials[name] = before.get(name) or _try(probe_experiment(tables, origin), settings)
            on_trial(trials[name])

    attempt({})
    for key, values in lists.items():
        kept = best(trials.values()).settings
        for value in values:
            attempt({**kept, key: value})
    return list(trials.values())


def best(trials: Iterable[Trial]) -> Trial:
    """Return the trial with the best validation accuracy, the first of equals."""
    return max(trials, key=lambda trial: trial.val_accuracy)


def read_search(experiment: ProbeExperiment, out: Path) -> list[Trial]:
    """Return the trials that :func:`write_search` left of this experiment.

    Raises:
        ConfigError: If the file is damaged, or holds trials of other settings.
    """
    path = _file(experiment, out)
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        before, trials = content["experiment"], [Trial(**trial) for trial in content["trials"]]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path}: damaged; delete it, and the search begins anew") from None
    if before != _tables(experiment):
        raise ConfigError(
            f"{path} holds {len(trials)} trials of other settings: name another folder by --out, "
            "or delete the file"
        )
    return trials


def write_search(experiment: ProbeExperiment, trials: list[Trial], out: Path) -> Path:
    """Write trials as JSON, in their order, and which is best; return the file."""
    out.mkdir(parents=True, exist_ok=True)
    path = _file(experiment, out)
    content = {
        "experiment": _tables(experiment),
        "best": best(trials).settings,
        "trials": [vars(trial) for trial in trials],
    }
    part = path.with_suffix(".part")  # so that a stop in the middle leaves the trials before
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
    return path


def _file(experiment: ProbeExperiment, out: Path) -> Path:
    return out / f"{experiment.probe.name}-search.json"


def _tables(experiment: ProbeExperiment) -> dict[str, Any]:
    """Return what decides a trial; the values to try may become more."""
    chosen = {"probe", experiment.probe.method}
    tables: dict[str, Any] = json.loads(experiment.model_dump_json(include=chosen))
    return tables


def _lists(experiment: ProbeExperiment) -> dict[str, list[Scalar]]:
    """Return the values to try of the keys that the method reads."""
    method = experiment.probe.method
    read = {"probe", method, *(["aspect"] if method == "aspect_s" else [])}
    return {key: values for key, values in experiment.search.items() if key.split(".")[0] in read}


def _name(tables: dict[str, Any], origin: str) -> str:
    return json.dumps(_tables(probe_experiment(tables, origin)))


def _try(experiment: ProbeExperiment, settings: dict[str, Scalar]) -> Trial:
    started = time.perf_counter()
    data, masks = load_graph(experiment.probe)
    accuracies = []
    try:
        for training in range(experiment.probe.seeds):
            with num_threads(1):
                embedding = new_method(experiment, training).fit(data).embed(data)
                result = probe_embedding(experiment.probe, embedding, data.y, masks)
            accuracies.append(float(result.val_accuracy.mean()))
    except GraphCLError as error:
        if not settings:
            raise
        return Trial(settings, -1.0, time.perf_counter() - started, str(error))
    return Trial(settings, fmean(accuracies), time.perf_counter() - started)


def _candidates(lists: dict[str, list[Scalar]]) -> Iterator[tuple[str, Scalar]]:
    return ((key, value) for key, values in lists.items() for value in values)


def _with(nested: dict[str, Any], settings: dict[str, Scalar]) -> dict[str, Any]:
    """Return the tables of a file with other values for some dotted keys."""
    nested = deepcopy(nested)
    for dotted, value in settings.items():
        table, _, key = dotted.partition(".")
        nested.setdefault(table, {})[key] = value
    return nested
