"""Evaluate models of outages on events they have not seen, beside what practitioners use."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from pydantic import (
    ValidationError,
    field_validator,
)
from torch import Tensor

from federation.experiment import Scalar, describe_keys, explain, flatten, read_toml
from federation.tables import Table, key
from graphcl.datasets import OutageEvents, load_outage_events, simulate_storms
from graphcl.errors import ConfigError
from graphcl.metrics import (
    crmse,
    interval_coverage,
    mape,
    mean_absolute_error,
    morisita_horn,
    ncrmse,
    r2,
    root_mean_squared_error,
)
from graphcl.outages import (
    SAHGNN,
    ForecasterConfig,
    LastSimilarStorm,
    NoOutages,
    OutageForecaster,
    OutageGCN,
    OutageModelConfig,
    OutageTrees,
    SAHGNNConfig,
)
from simulations.keys import describe_config, named_by_key


class OutageTable(Table):
    """Which events there are, and which of them are predicted unseen."""

    name: str = key("outages", "part of the result's file name", pattern=r"^[A-Za-z0-9._-]+$")
    source: str = key(
        "simulated", "simulated, a folder of CSV tables, or an .npz file", min_length=1
    )
    root: str = key("", "folder of data sets; empty = the environment variable GRAPHCL_DATA")
    test_events: str = key(
        "", "events to predict from all others at once; empty = each from all others in turn"
    )
    seed: int = key(0, "decides the simulated storms", ge=0)
    locations: int = key(400, "simulated: number of locations", ge=4)
    events: int = key(24, "simulated: number of storms", ge=4)


class OutageExperiment(Table):
    """A whole outage file."""

    outage: OutageTable = OutageTable()
    columns: dict[str, str] = key({}, "what the file calls a key that we name otherwise")
    units: dict[str, str] = key({}, "units of features whose name has none")
    sa_hgnn: SAHGNNConfig = SAHGNNConfig()
    forecaster: ForecasterConfig = ForecasterConfig()

    _in_range = field_validator("sa_hgnn", "forecaster", mode="wrap")(named_by_key)


class Model(Protocol):
    """What is evaluated."""

    def fit(self, events: OutageEvents) -> Any:
        """Train on events with counts."""

    def predict(self, events: OutageEvents) -> Tensor:
        """Return expected counts ``[E, N]``."""


class Networks:
    """The mean over some networks, each with a seed of its own.

    Args:
        make: Returns a network for a seed.
        members: How many.
    """

    def __init__(self, make: Callable[[int], Model], members: int):
        self.models = [make(member) for member in range(members)]

    def fit(self, events: OutageEvents) -> None:
        """Train all."""
        for model in self.models:
            model.fit(events)

    def predict(self, events: OutageEvents) -> Tensor:
        """Return their mean, ``[E, N]``."""
        return torch.stack([model.predict(events) for model in self.models]).mean(0)


def _sa_hgnn(experiment: OutageExperiment, **changes: Any) -> Model:
    config = replace(experiment.sa_hgnn, **changes)
    return Networks(
        lambda member: SAHGNN(replace(config, seed=config.seed + member)),
        experiment.forecaster.members,
    )


def _gcn(experiment: OutageExperiment) -> Model:
    shared = {f.name: getattr(experiment.sa_hgnn, f.name) for f in fields(OutageModelConfig)}
    return Networks(
        lambda member: OutageGCN(OutageModelConfig(**{**shared, "seed": shared["seed"] + member})),
        experiment.forecaster.members,
    )


METHODS: dict[str, Callable[[OutageExperiment], Model]] = {
    "sa_hgnn": _sa_hgnn,
    "no_dynamic_graph": lambda e: _sa_hgnn(e, branch="static"),
    "no_contrast": lambda e: _sa_hgnn(e, contrast_weight=0.0),
    "gcn": _gcn,
    "gradient_boosting": lambda e: OutageTrees("boosting", e.sa_hgnn.seed),
    "random_forest": lambda e: OutageTrees("forest", e.sa_hgnn.seed),
    "last_similar_storm": lambda e: LastSimilarStorm(),
    "no_outages": lambda e: NoOutages(),
}


class Fold(NamedTuple):
    """What is trained on and what is predicted."""

    train: list[int]
    test: list[int]


@dataclass(frozen=True)
class Evaluated:
    """What one method predicted.

    Attributes:
        method: Its name.
        expected: ``[E, N]``, each event predicted unseen.
        per_event: Measures of every event, ``[E]`` each.
        totals: Measures over the totals of all events.
        seconds: Of training and prediction.
    """

    method: str
    expected: Tensor
    per_event: dict[str, list[float]]
    totals: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class Coverage:
    """How often what was observed lay inside the intervals of unseen events.

    Attributes:
        nominal: What was promised, by what was counted.
        measured: Share inside.
        per_event: Share of locations inside, by event.
    """

    nominal: dict[str, float]
    measured: dict[str, float]
    per_event: dict[str, float] = field(default_factory=dict)


def load_outage_experiment(
    path: Path, overrides: dict[str, Scalar] | None = None
) -> OutageExperiment:
    """Read an outage file.

    Raises:
        ConfigError: If it is missing, is no TOML, or does not validate.
    """
    try:
        return OutageExperiment.model_validate(read_toml(path, overrides, "graphcl outage"))
    except ValidationError as error:
        keys = [name for name, _ in flatten(OutageExperiment().model_dump())]
        raise ConfigError(explain(error, str(path), [*keys, "columns", "units"])) from None


def describe_outage_keys() -> list[tuple[str, Scalar, str]]:
    """Return every dotted key of an outage file with its default and its meaning."""
    return [
        *describe_keys(OutageTable, "outage."),
        ("columns", "{}", "what the file calls a key that we name otherwise, per key"),
        ("units", "{}", "units of features whose name has none, per feature"),
        *describe_config(SAHGNNConfig, "sa_hgnn."),
        *describe_config(ForecasterConfig, "forecaster."),
    ]


def load_events(experiment: OutageExperiment) -> OutageEvents:
    """Load or simulate the events of an experiment."""
    table = experiment.outage
    if table.source == "simulated":
        return simulate_storms(table.locations, table.events, seed=table.seed).events
    return load_outage_events(
        table.source, columns=experiment.columns, units=experiment.units, root=table.root or None
    )


def divide(experiment: OutageExperiment, events: OutageEvents) -> list[Fold]:
    """Return what is trained on and what is predicted; no event's locations are divided.

    Raises:
        ConfigError: A test event is unknown, or too few are left to train on.
    """
    every = range(events.num_events)
    names = [name.strip() for name in experiment.outage.test_events.split(",") if name.strip()]
    unknown = [name for name in names if name not in events.event]
    if unknown:
        raise ConfigError(
            f"outage.test_events: no event is called {', '.join(unknown)}; there are "
            f"{', '.join(events.event)}"
        )
    if names:
        test = [events.event.index(name) for name in names]
        folds = [Fold([e for e in every if e not in test], test)]
    else:
        folds = [Fold([e for e in every if e != test], [test]) for test in every]
    if len(folds[0].train) < 2:
        raise ConfigError(
            f"outage.test_events: {len(folds[0].train)} of {events.num_events} events are left to "
            "train on; at least 2 are needed"
        )
    return folds


def evaluate(
    experiment: OutageExperiment,
    events: OutageEvents,
    method: str,
    on_fold: Callable[[], None] = lambda: None,
) -> Evaluated:
    """Predict every test event from events that do not include it, and measure."""
    started = time.perf_counter()
    folds = divide(experiment, events)
    predicted = []
    for fold in folds:
        model = METHODS[method](experiment)
        model.fit(events.of(fold.train))
        predicted.append(model.predict(events.of(fold.test)))
        on_fold()
    expected = torch.cat(predicted)
    observed = _observed(events, folds)
    seconds = time.perf_counter() - started
    return Evaluated(method, expected, *_measure(expected, observed), seconds)


def measure_coverage(
    experiment: OutageExperiment, events: OutageEvents, on_model: Callable[[], None]
) -> Coverage:
    """Calibrate a forecaster for every fold and see what its intervals hold.

    Args:
        experiment: The whole configuration.
        events: All events.
        on_model: Called after every training, :func:`count_trainings` times.
    """
    inside: dict[str, list[Tensor]] = {"locations": [], "districts": [], "total": []}
    nominal, per_event = {}, {}
    for fold in divide(experiment, events):
        forecaster = OutageForecaster(experiment.sa_hgnn, experiment.forecaster)
        forecaster.fit(events.of(fold.train), on_model)
        for test in fold.test:
            storm = events.of([test])
            found = forecaster.predict(replace(storm, outages=None))
            observed = _observed(events, [Fold([], [test])])[0]
            bounds = {
                "locations": (found.low, found.high, observed),
                "districts": (
                    torch.tensor([total.low for total in found.districts]),
                    torch.tensor([total.high for total in found.districts]),
                    torch.stack([observed[i].sum() for i in storm.districts().values()]),
                ),
                "total": (
                    torch.tensor([found.total.low]),
                    torch.tensor([found.total.high]),
                    observed.sum()[None],
                ),
            }
            for kind, (low, high, y) in bounds.items():
                inside[kind].append((low <= y) & (y <= high))
            per_event[storm.event[0]] = interval_coverage(*bounds["locations"])
            nominal = {
                "locations": found.level,
                "districts": found.districts[0].level,
                "total": found.total.level,
            }
    measured = {kind: float(torch.cat(parts).double().mean()) for kind, parts in inside.items()}
    return Coverage(nominal, measured, per_event)


def count_trainings(experiment: OutageExperiment, events: OutageEvents) -> int:
    """Return how many networks :func:`measure_coverage` trains."""
    forecaster = OutageForecaster(experiment.sa_hgnn, experiment.forecaster)
    return sum(forecaster.trainings(len(fold.train)) for fold in divide(experiment, events))


def write_evaluation(
    experiment: OutageExperiment,
    events: OutageEvents,
    found: Sequence[Evaluated],
    coverage: Coverage | None,
    out: Path,
) -> Path:
    """Write configuration and measures as JSON; return the file."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{experiment.outage.name}.json"
    tested = [test for fold in divide(experiment, events) for test in fold.test]
    content = {
        "experiment": experiment.model_dump(),
        "events": [events.event[test] for test in tested],
        "methods": {
            one.method: {
                "per_event": one.per_event,
                "totals": one.totals,
                "expected_totals": one.expected.double().sum(1).tolist(),
                "seconds": one.seconds,
            }
            for one in found
        },
        "coverage": None if coverage is None else asdict(coverage),
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def _observed(events: OutageEvents, folds: Sequence[Fold]) -> Tensor:
    if events.outages is None:
        raise ConfigError("outage.source: the events have no counts to be measured by")
    return events.outages[[test for fold in folds for test in fold.test]].float()


def _measure(expected: Tensor, observed: Tensor) -> tuple[dict[str, list[float]], dict[str, float]]:
    measures = {
        "mae": mean_absolute_error,
        "rmse": root_mean_squared_error,
        "morisita_horn": morisita_horn,
    }
    pairs = list(zip(expected, observed, strict=True))
    per_event = {name: [of(p, y) for p, y in pairs] for name, of in measures.items()}
    totals = expected.double().sum(1), observed.double().sum(1)
    over = {"crmse": crmse}
    if totals[1].any():  # in percent of nothing there is no error
        over |= {"mape": mape, "ncrmse": ncrmse}
    if len(totals[1].unique()) > 1:
        over["r2"] = r2
    means = {name: float(np.mean(values)) for name, values in per_event.items()}
    return per_event, {**means, **{name: of(*totals) for name, of in over.items()}}
