"""What every model of outage counts shares: inputs, loss, training, prediction, files."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from graphcl.datasets import OutageEvents
from graphcl.errors import DataError, GraphCLError, check_fields
from graphcl.outages.graphs import RowMean, gaussian_knn, nearest_neighbors
from graphcl.outages.scaling import Standardization
from graphcl.prototypes.dual_branch import projector_header, projector_of
from graphcl.training import (
    clip_gradients,
    fit,
    keeps_randomness,
    load_weights,
    save_weights,
    seed_everything,
    torch_rng,
)

_FIRST_RATE = 0.01  # of a network that has seen no counts yet
Target = Literal["raw", "log", "sqrt", "poisson"]


@dataclass(frozen=True)
class OutageModelConfig:
    """Hyper-parameters that all networks on outage counts share.

    Attributes:
        hidden_channels: Width of every layer.
        static_graph: Neighbours in the static graph: the ``"nearest"``, by a Gaussian of the
            distance, or those across ``"borders"``.
        static_neighbors: How many are nearest.
        exposure: What a count is relative to: the ``"customers"`` of a location, as where those
            without power are counted, or ``"none"``, as where repairs are.
        dropout: After each activation.
        target: On which scale a count is compared: ``"raw"`` with Huber's loss and ``delta`` (the
            paper's loss), ``"log"`` with Huber's loss and 1, ``"sqrt"``, where the spread of a
            large count does not depend on its size, with squares, or by the ``"poisson"``
            likelihood, which fits means of small counts without bias.
        delta: Of Huber's loss on raw counts.
        total_weight: Weight of the same comparison between the totals of events, on the scale of
            square roots, where a cell's loss alone would fit medians and miss the total.
        batch_events: Events per step.
        learning_rate, weight_decay: Of AdamW; the rate rises, then falls to nothing.
        epochs: Passes over all events.
        seed: Decides weights, batches and dropout.
    """

    hidden_channels: int = 32
    static_graph: Literal["nearest", "borders"] = "nearest"
    static_neighbors: int = 8
    exposure: Literal["customers", "none"] = "customers"
    dropout: float = 0.3
    target: Target = "sqrt"
    delta: float = 5.0
    total_weight: float = 2.0
    batch_events: int = 8
    learning_rate: float = 5e-3
    weight_decay: float = 1e-3
    epochs: int = 60
    seed: int = 0

    def __post_init__(self) -> None:
        at_least_one = ("hidden_channels", "static_neighbors", "batch_events", "epochs")
        check_fields(self, at_least_one, lambda v: v >= 1, "at least 1")
        check_fields(self, ("delta", "learning_rate"), lambda v: v > 0, "above 0")
        check_fields(self, ("total_weight", "weight_decay"), lambda v: v >= 0, "at least 0")
        check_fields(self, ("dropout",), lambda v: 0 <= v < 1, "at least 0 and below 1")


class Territory(NamedTuple):
    """Locations as a network reads them."""

    static: Tensor  # [N, Fs + 1], the last one being the customers
    customers: Tensor  # [N]
    mean: RowMean  # static graph
    candidates: Tensor  # [N, m], whom a location may listen to in an event


class Storms(NamedTuple):
    """Events at the locations of one territory, as a network reads them."""

    territory: Territory
    weather: Tensor  # [B, N, Fw]
    outages: Tensor  # [B, N], float32; empty where unknown
    event_type: Tensor  # [B], integers

    def of(self, events: Tensor) -> "Storms":
        """Return some of the events."""
        outages = self.outages[events] if len(self.outages) else self.outages
        return Storms(self.territory, self.weather[events], outages, self.event_type[events])


class OutageModel(nn.Module, ABC):
    """A network that maps locations and a storm's weather to expected outage counts.

    It knows no location by name: what it learned on one territory can be asked about another with
    the same features.

    Args:
        config: The model's frozen configuration.
    """

    config_type: ClassVar[type]

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        self.static_names: tuple[str, ...] = ()
        self.weather_names: tuple[str, ...] = ()
        # What a federated algorithm puts behind the embedding of a situation.
        self.projector: nn.Module = nn.Identity()

    @abstractmethod
    def build(self, static_channels: int, weather_channels: int) -> None:
        """Create the layers between the inputs and the embedding of a situation."""

    @abstractmethod
    def embed_events(self, static: Tensor, weather: Tensor, territory: Territory) -> Tensor:
        """Embed every location in every event.

        Shapes:
            static: ``[N, static_channels]``; weather: ``[B, N, weather_channels]``, both
            standardised. Returns ``[B, N, hidden_channels]``.
        """

    @keeps_randomness()
    def start(self, events: OutageEvents) -> Self:
        """Draw the first weights and take the scales of the features from some events.

        Raises:
            GraphCLError: The events have no counts.
        """
        return self._start(events, self.prepare(events))

    def _start(self, events: OutageEvents, storms: Storms) -> Self:
        if not len(storms.outages):
            raise GraphCLError(f"{type(self).__name__}: the events have no counts to learn from")
        seed_everything(self.config.seed, "outages")
        self.create(events.static_names, events.weather_names)
        self.fit_scales(storms)
        return self.eval()

    def create(self, static_names: Sequence[str], weather_names: Sequence[str]) -> None:
        """Create all layers for features of these names, with standard scales."""
        width = self.config.hidden_channels
        self.static_names, self.weather_names = tuple(static_names), tuple(weather_names)
        self.static_scale = Standardization(len(static_names) + 1)
        self.weather_scale = Standardization(len(weather_names))
        self.build(2 * len(static_names) + 2, 2 * len(weather_names))
        self.hidden = nn.Linear(width, width)
        self.rate = nn.Linear(width, 1)
        self._start_at(_FIRST_RATE)

    def fit_scales(self, storms: Storms) -> None:
        """Take the scales of the features, and the mean rate, from some events with counts."""
        self.static_scale.fit(storms.territory.static)
        self.weather_scale.fit(storms.weather.flatten(0, 1))
        exposure = self.exposure(storms.territory.customers).double().sum() * len(storms.outages)
        rate = storms.outages.double().sum() / exposure.clamp(min=1)
        self._start_at(float(rate))

    def _start_at(self, rate: float) -> None:
        """Let the network expect about this rate everywhere, so that training starts near."""
        with torch.no_grad():
            self.rate.bias.fill_(math.log(math.expm1(min(max(rate, 1e-6), 20.0))))

    def prepare(self, events: OutageEvents) -> Storms:
        """Return events as the network reads them; the graph of the locations is built once."""
        config = self.config
        if config.static_graph == "borders":
            edges, weight = events.borders, torch.ones(events.borders.size(1))
        else:
            edges, weight = gaussian_knn(events.latlon, config.static_neighbors)
        territory = Territory(
            torch.cat([events.static, events.customers[:, None]], 1),
            events.customers,
            RowMean(edges, weight, events.num_locations),
            nearest_neighbors(events.latlon, self.num_candidates)[0],
        )
        kinds = {kind: number for number, kind in enumerate(dict.fromkeys(events.event_type))}
        outages = torch.empty(0) if events.outages is None else events.outages.float()
        return Storms(
            territory, events.weather, outages, torch.tensor([kinds[k] for k in events.event_type])
        )

    @property
    def num_candidates(self) -> int:
        """How many of the nearest locations a location may listen to."""
        return 1

    def situations(self, storms: Storms) -> Tensor:
        """Embed every location in every event from raw features, ``[B, N, hidden_channels]``."""
        static = self.static_scale(storms.territory.static)
        return self.embed_events(static, self.weather_scale(storms.weather), storms.territory)

    def counts(self, z: Tensor, customers: Tensor) -> Tensor:
        """Return expected counts ``[B, N]`` of situations: a rate times what it is a rate of."""
        hidden = F.dropout(self.hidden(z.relu()).relu(), self.config.dropout, self.training)
        return F.softplus(self.rate(hidden)).squeeze(-1) * self.exposure(customers)

    def exposure(self, customers: Tensor) -> Tensor:
        """Return what a count is relative to at each location, ``[N]``."""
        return customers if self.config.exposure == "customers" else torch.ones_like(customers)

    def forward(self, storms: Storms) -> Tensor:
        """Return expected counts ``[B, N]``."""
        return self.counts(self.projector(self.situations(storms)), storms.territory.customers)

    def loss(self, storms: Storms) -> dict[str, Tensor]:
        """Return the named terms of the loss on some events."""
        return self.count_loss(self(storms), storms.outages)

    def count_loss(self, expected: Tensor, outages: Tensor) -> dict[str, Tensor]:
        """Return how far expected counts ``[B, N]`` are from the observed ones."""
        config = self.config
        terms = {"count": _compare(expected, outages, config.target, config.delta)}
        if config.total_weight:
            # Of means rather than sums, so that it does not grow with the number of locations.
            # Nothing is expected where nobody is served; a root has no slope at 0.
            off = expected.mean(1).clamp(min=1e-12).sqrt() - outages.mean(1).sqrt()
            terms["total"] = config.total_weight * off.square().mean()
        return terms

    @keeps_randomness()
    def fit(
        self, events: OutageEvents, on_epoch: Callable[[int, dict[str, float]], None] | None = None
    ) -> Self:
        """Train on events with counts.

        Args:
            events: Of one territory.
            on_epoch: Called with the epoch (from 1) and the mean of every term.

        Raises:
            GraphCLError: The events have no counts.
        """
        storms = self.prepare(events)
        self._start(events, storms)
        batches = EventBatches(storms, self.config.batch_events, self.config.seed)
        optimizer = torch.optim.AdamW(
            self.parameters(),
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            fused=True,
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.config.learning_rate, total_steps=self.config.epochs * len(batches) + 1
        )
        clip_gradients(optimizer)
        optimizer.register_step_post_hook(lambda *_: schedule.step())
        self.train()
        fit(self.loss, batches, optimizer, epochs=self.config.epochs, on_epoch=on_epoch)
        return self.eval()

    @torch.no_grad()
    def predict(self, events: OutageEvents) -> Tensor:
        """Return the expected count of every location in every event, ``[E, N]``.

        Raises:
            GraphCLError: The model has no weights yet.
            DataError: The events have other features than the model knows.
        """
        self.check(events)
        self.eval()
        storms = self.prepare(events)
        every = torch.arange(events.num_events)
        return torch.cat(
            [self(storms.of(event)) for event in every.split(self.config.batch_events)]
        )

    @torch.no_grad()
    def embed(self, events: OutageEvents) -> Tensor:
        """Return the embedding of every location in every event, ``[E, N, hidden_channels]``."""
        self.check(events)
        self.eval()
        return self.situations(self.prepare(events))

    def check(self, events: OutageEvents) -> None:
        """Refuse events whose features are not those that the model was trained on."""
        if not self.weather_names:
            raise GraphCLError(f"{type(self).__name__} has no weights yet; call fit or load first")
        for what in ("static_names", "weather_names"):
            known, found = getattr(self, what), getattr(events, what)
            if known != found:
                missing = ", ".join(name for name in known if name not in found) or "none"
                unknown = ", ".join(name for name in found if name not in known) or "none"
                raise DataError(
                    f"{what}: the model was trained on {len(known)} features in another order or "
                    f"of other names: missing {missing}; unknown {unknown}"
                )

    def header(self) -> dict[str, Any]:
        """Return what a file must hold beside the weights."""
        return {
            "config": asdict(self.config),
            "static_names": self.static_names,
            "weather_names": self.weather_names,
            "projector": projector_header(self.projector),
        }

    def save(self, path: Any) -> None:
        """Write configuration and weights to a ``.safetensors`` file."""
        save_weights(path, self.state_dict(), self.header())

    @classmethod
    def load(cls, path: Any) -> Self:
        """Inverse of :meth:`save`.

        Raises:
            GraphCLError: If the file is not one of this model.
        """
        weights, header = load_weights(path)
        return cls.restore(weights, header, str(path))

    @classmethod
    def restore(cls, weights: dict[str, Tensor], header: dict[str, Any], origin: str) -> Self:
        """Return a model from weights and :meth:`header`."""
        try:
            model = cls(cls.config_type(**header["config"]))
            model.create(header["static_names"], header["weather_names"])
            model.projector = projector_of(header.get("projector"))
            model.load_state_dict(weights)
        except (KeyError, TypeError, RuntimeError, GraphCLError) as error:
            raise GraphCLError(f"{origin}: no saved {cls.__name__}: {error}") from None
        return model.eval()


class EventBatches:
    """Events in a fresh order every epoch; a last batch of one joins the one before.

    Args:
        storms: All events.
        size: Events per batch.
        seed: Decides the order.
    """

    def __init__(self, storms: Storms, size: int, seed: int):
        self.storms, self.size = storms, size
        self.generator = torch_rng(seed, "event batches")

    def __len__(self) -> int:
        events = len(self.storms.weather)
        return max(1, events // self.size + (events % self.size > 1))

    def __iter__(self) -> Iterator[Storms]:
        order = torch.randperm(len(self.storms.weather), generator=self.generator)
        for batch in order.tensor_split([self.size * (k + 1) for k in range(len(self) - 1)]):
            yield self.storms.of(batch)


def _compare(expected: Tensor, outages: Tensor, target: Target, delta: float) -> Tensor:
    if target == "raw":
        return F.huber_loss(expected, outages, delta=delta)
    if target == "log":
        return F.huber_loss(expected.log1p(), outages.log1p())
    if target == "poisson":
        return F.poisson_nll_loss(expected, outages, log_input=False)
    return F.mse_loss((expected + 0.375).sqrt(), (outages + 0.375).sqrt())
