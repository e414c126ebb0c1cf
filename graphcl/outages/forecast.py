"""From a trained model to a forecast that an operator can act on: counts, intervals, totals."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from graphcl.datasets import OutageEvents, load_outage_events, save_outage_events
from graphcl.errors import GraphCLError, check_fields
from graphcl.outages.intervals import CountIntervals
from graphcl.outages.sa_hgnn import SAHGNN, SAHGNNConfig
from graphcl.training import load_weights, numpy_rng, save_weights


class Total(NamedTuple):
    """What is expected in a district, or in all of the territory."""

    name: str
    expected: float
    low: float
    high: float
    level: float  # nominal coverage of the interval


@dataclass(frozen=True, eq=False)
class Forecast:
    """What a storm is expected to do.

    Attributes:
        storm: The event that was asked about.
        expected: ``[N]``, expected counts.
        low, high: ``[N]``, whole bounds of each location's count.
        level: Nominal coverage of these.
        districts: One total per district; a total's interval is not the sum of intervals.
        total: That of the territory.
    """

    storm: OutageEvents
    expected: Tensor
    low: Tensor
    high: Tensor
    level: float
    districts: list[Total]
    total: Total


@dataclass(frozen=True)
class ForecasterConfig:
    """What a forecaster adds to its model.

    Attributes:
        members: Networks whose expectations are averaged; each starts from weights of its own.
        folds: Parts into which events are divided to calibrate intervals; a part is predicted by a
            network that saw the others. Each event is a part of its own where there are fewer.
        level: Nominal coverage of the intervals.
        unit: What is counted, in the plural.
    """

    members: int = 3
    folds: int = 8
    level: float = 0.9
    unit: str = "customers"

    def __post_init__(self) -> None:
        check_fields(self, ("members",), lambda v: v >= 1, "at least 1")
        check_fields(self, ("folds",), lambda v: v >= 2, "at least 2")
        check_fields(self, ("level",), lambda v: 0 < v < 1, "a share between 0 and 1, such as 0.9")


class OutageForecaster:
    """SA-HGNN with calibrated intervals, in files that an operator can carry.

    Args:
        config: Of the networks.
        forecaster: See :class:`ForecasterConfig`.

    Example:
        >>> from graphcl.datasets import simulate_storms
        >>> events = simulate_storms(60, 6).events
        >>> forecaster = OutageForecaster(SAHGNNConfig(epochs=2), ForecasterConfig(members=1))
        >>> forecast = forecaster.fit(events.of([0, 1, 2, 3, 4])).predict(events.of([5]))
        >>> forecast.expected.shape, len(forecast.districts)
        (torch.Size([60]), 4)
    """

    models: list[SAHGNN]
    locations: CountIntervals
    districts: CountIntervals
    total: CountIntervals
    territory: OutageEvents

    def __init__(
        self,
        config: SAHGNNConfig | None = None,
        forecaster: ForecasterConfig | None = None,
    ):
        self.config = config or SAHGNNConfig()
        self.forecaster = forecaster or ForecasterConfig()
        self.models = []

    def trainings(self, num_events: int) -> int:
        """Return how many networks :meth:`fit` trains, for progress."""
        return self.forecaster.members + min(self.forecaster.folds, num_events)

    def fit(self, events: OutageEvents, on_model: Callable[[], None] = lambda: None) -> Self:
        """Train the networks, and calibrate intervals on events that a network had not seen.

        Args:
            events: Of one territory, at least 3 with counts.
            on_model: Called after every network, :meth:`trainings` times.

        Raises:
            GraphCLError: There are too few events, or they have no counts but zeros.
        """
        if events.outages is None or events.num_events < 3:
            raise GraphCLError(
                f"a forecast needs at least 3 events with counts, one of which calibrates in turn; "
                f"there are {events.num_events}"
                + (" without counts" if events.outages is None else "")
            )
        if not events.outages.any():
            raise GraphCLError(
                f"all counts of the {events.num_events} events are zero, from which nothing can be "
                "learned; look whether the table of outages is empty"
            )
        unseen = self._unseen(events, on_model)
        self.models = []
        for member in range(self.forecaster.members):
            self.models.append(self._network(member).fit(events))
            on_model()
        self.territory = replace(
            events.of([0]),
            weather=torch.zeros(1, events.num_locations, len(events.weather_names)),
            outages=None,
        )
        observed, level = events.outages.double(), self.forecaster.level

        def calibrated(gather: Callable[[Tensor], Tensor]) -> CountIntervals:
            pair = gather(unseen.double()).flatten(), gather(observed).flatten()
            return CountIntervals.calibrate(*pair, level)

        self.locations = calibrated(lambda counts: counts)
        self.districts = calibrated(lambda counts: _by_district(events, counts))
        self.total = calibrated(lambda counts: counts.sum(1))
        return self

    def _network(self, member: int) -> SAHGNN:
        return SAHGNN(replace(self.config, seed=self.config.seed + member))

    def _unseen(self, events: OutageEvents, on_model: Callable[[], None]) -> Tensor:
        """Return the expectation of each event by a network that did not see it, ``[E, N]``."""
        order = numpy_rng(self.config.seed, "folds").permutation(events.num_events)
        folds = min(self.forecaster.folds, events.num_events)
        out = torch.empty(events.num_events, events.num_locations)
        for fold in range(folds):
            held = torch.from_numpy(order[fold::folds].copy())
            seen = torch.ones(events.num_events, dtype=torch.bool)
            seen[held] = False
            out[held] = self._network(0).fit(events.of(seen)).predict(events.of(held))
            on_model()
        return out

    def expected(self, events: OutageEvents) -> Tensor:
        """Return the mean expectation of all networks, ``[E, N]``."""
        self._check_fitted()
        return torch.stack([model.predict(events) for model in self.models]).mean(0)

    def _check_fitted(self) -> None:
        if not self.models:
            raise GraphCLError("the forecaster has no networks yet; call fit or load first")

    def predict(self, storm: OutageEvents) -> Forecast:
        """Return the forecast of one event.

        Raises:
            GraphCLError: There are several events, or the forecaster was not fitted.
            DataError: The event has other features than the model knows.
        """
        if storm.num_events != 1:
            raise GraphCLError(f"predict takes one storm, not {storm.num_events}: use of([i])")
        expected = self.expected(storm)
        low, high = self.locations.around(expected[0])
        names = list(storm.districts())
        totals = self._totals(names, _by_district(storm, expected.double())[0], self.districts)
        whole = self._totals(["all"], expected.double().sum(1), self.total)
        return Forecast(storm, expected[0], low, high, self.locations.level, totals, whole[0])

    def _totals(self, names: list[str], expected: Tensor, intervals: CountIntervals) -> list[Total]:
        low, high = intervals.around(expected)
        rows = zip(names, expected.tolist(), low.tolist(), high.tolist(), strict=True)
        return [Total(*row, intervals.level) for row in rows]

    def save(self, folder: str | Path) -> None:
        """Write the forecaster as a new folder: networks, intervals, and the territory.

        The territory's locations and static features go with it, and the names of the weather that
        a forecast must tell; no past event's weather or outage counts do.

        Raises:
            GraphCLError: The folder exists already, or the forecaster was not fitted.
        """
        self._check_fitted()
        folder = Path(folder)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            raise GraphCLError(f"{folder} exists already: name a new folder") from None
        for number, model in enumerate(self.models):
            model.save(folder / f"network{number}.safetensors")
        kinds = {"locations": self.locations, "districts": self.districts, "total": self.total}
        bounds = {
            f"{kind}/{side}": getattr(intervals, side)
            for kind, intervals in kinds.items()
            for side in ("edges", "low", "high")
        }
        header = {
            "config": asdict(self.config),
            "forecaster": asdict(self.forecaster),
            "levels": {kind: intervals.level for kind, intervals in kinds.items()},
        }
        save_weights(folder / "intervals.safetensors", bounds, header)
        save_outage_events(self.territory, folder / "territory.npz")

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Inverse of :meth:`save`.

        Raises:
            GraphCLError: The folder holds no forecaster.
        """
        folder = Path(folder)
        bounds, header = load_weights(folder / "intervals.safetensors")
        try:
            found = cls(SAHGNNConfig(**header["config"]), ForecasterConfig(**header["forecaster"]))
            for kind, level in header["levels"].items():
                sides = [bounds[f"{kind}/{side}"] for side in ("edges", "low", "high")]
                setattr(found, kind, CountIntervals(level, *sides))
        except (KeyError, TypeError) as error:
            raise GraphCLError(f"{folder}: no saved forecaster: {error}") from None
        found.models = [
            SAHGNN.load(folder / f"network{number}.safetensors")
            for number in range(found.forecaster.members)
        ]
        found.territory = load_outage_events(folder.absolute() / "territory.npz")
        return found


def _by_district(events: OutageEvents, counts: Tensor) -> Tensor:
    """Return totals ``[E, D]`` of counts ``[E, N]``."""
    members: dict[str, Any] = events.districts()
    return torch.stack([counts[:, index].sum(1) for index in members.values()], 1)
