"""What practitioners forecast outages with: trees on the same features, and the last similar storm.

Each has ``fit(events)`` and ``predict(events)`` as the networks have.
"""

from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from graphcl.datasets import OutageEvents
from graphcl.errors import GraphCLError
from graphcl.outages.scaling import Standardization


class OutageTrees:
    """Trees on one row per location and event: weather, static features, customers, position.

    Args:
        kind: ``"boosting"``, histogram gradient boosting with a Poisson loss, or ``"forest"``, a
            random forest; both are scikit-learn's.
        seed: Decides samples of rows and features.
    """

    def __init__(self, kind: Literal["boosting", "forest"], seed: int = 0):
        # Imported here: whoever forecasts with anything else need not wait for it.
        from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor

        self.regressor: Any
        self.quiet = False
        if kind == "boosting":
            self.regressor = HistGradientBoostingRegressor(loss="poisson", random_state=seed)
        else:
            self.regressor = RandomForestRegressor(
                100, min_samples_leaf=5, max_features=1 / 3, random_state=seed, n_jobs=1
            )

    def fit(self, events: OutageEvents) -> Self:
        """Train on events with counts."""
        counts = _counts(events)
        self.quiet = not counts.any()  # the Poisson loss has no minimum there
        if not self.quiet:
            self.regressor.fit(_table(events), counts.flatten().numpy())
        return self

    def predict(self, events: OutageEvents) -> Tensor:
        """Return expected counts ``[E, N]``: none where nothing ever broke."""
        if self.quiet:
            return torch.zeros(events.num_events, events.num_locations)
        flat = torch.from_numpy(self.regressor.predict(_table(events))).float()
        return flat.clamp(min=0).reshape(events.num_events, events.num_locations)


class LastSimilarStorm:
    """Climatology: what the known storm with the most similar weather did to each location."""

    def fit(self, events: OutageEvents) -> Self:
        """Remember events with counts."""
        self.location, self.known = events.location, _counts(events)
        self.scale = Standardization(events.weather.size(2))
        self.scale.fit(events.weather.flatten(0, 1))
        self.weather = self.scale(events.weather)
        return self

    def predict(self, events: OutageEvents) -> Tensor:
        """Return the counts of the most similar storm, ``[E, N]``, for the same locations.

        Raises:
            GraphCLError: The locations are not those that were fitted.
        """
        if events.location != self.location:
            raise GraphCLError(
                f"the last similar storm is known at {len(self.location)} locations, from "
                f"{self.location[0]!r} on, not at these {events.num_locations}, from "
                f"{events.location[0]!r} on: fit it to storms at the same ones in the same order"
            )
        weather = self.scale(events.weather)
        far = torch.stack([(w - self.weather).square().mean((1, 2)) for w in weather])
        return self.known[far.argmin(1)]


class NoOutages:
    """Expects nothing anywhere: what a mean absolute error of mostly zeros must be read against."""

    def fit(self, events: OutageEvents) -> Self:
        """Learn nothing."""
        return self

    def predict(self, events: OutageEvents) -> Tensor:
        """Return zeros, ``[E, N]``."""
        return torch.zeros(events.num_events, events.num_locations)


def _counts(events: OutageEvents) -> Tensor:
    if events.outages is None:
        raise GraphCLError("the events have no counts to learn from")
    return events.outages.float()


def _table(events: OutageEvents) -> np.ndarray:
    place = torch.cat([events.static, events.customers[:, None], events.latlon.float()], 1)
    return torch.cat([events.weather.flatten(0, 1), place.repeat(events.num_events, 1)], 1).numpy()
