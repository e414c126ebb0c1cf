"""SA-HGNN: outages of a storm from what a territory is and what the storm does where.

Shen et al., arXiv 2604.04916, 2026. From the abstract and a digest of the paper: static and
event-specific features; an adjacency learned per event; a hybrid convolution with a static and a
dynamic branch; contrast that pulls similar locations of an event together and pushes the locations
of other events away; Huber's loss. Completed by us, since the equations were not readable: the
graph learner, mix-hop convolution and row normalisation (MTGNN, KDD 2020); the Gaussian graph of
nearest neighbours; candidates, mixing scalar, gated fusion with the event's own features beside it
(ours); InfoNCE with several positives and the rule of similarity; the rate per customer, squared
errors on the scale of square roots and the comparison of totals (ours; Huber's loss on raw counts
is ``target="raw"``, ``total_weight=0``). This is not a reproduction.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from graphcl.errors import check_fields
from graphcl.outages.dynamic_graph import DynamicGraphLearner
from graphcl.outages.model import (
    OutageModel,
    OutageModelConfig,
    Storms,
    Territory,
)
from graphcl.outages.situations import Negatives, similar_pairs, situation_contrast


@dataclass(frozen=True)
class SAHGNNConfig(OutageModelConfig):
    """Hyper-parameters of :class:`SAHGNN`, beside those that all models share.

    Attributes:
        branch: Whether the event's branch follows a ``"dynamic"`` graph, learned per event, or
            the ``"static"`` one (an ablation).
        graph_channels: Width in which the adjacency is learned.
        dynamic_neighbors: Whom a location listens to in an event, at most.
        candidates: Of how many nearest locations these are chosen: storms act locally.
        saturation: Of the graph learner.
        hops: Steps of the mix-hop convolution.
        retain: Share of its own input that each step keeps.
        contrast_weight: Weight of the contrast between situations; 0 leaves it out.
        temperature: Of the contrast.
        negatives: Locations of all other events, or of those of another type.
        num_anchors: Locations contrasted per step, the same in all its events.
        num_similar: Locations that count as similar to one, at most.
        similar_outages: How far the logarithms of their counts may be apart.
        projection_channels: Width of the projection that only the contrast sees.
    """

    branch: Literal["dynamic", "static"] = "dynamic"
    graph_channels: int = 8
    dynamic_neighbors: int = 4
    candidates: int = 12
    saturation: float = 3.0
    hops: int = 2
    retain: float = 0.05
    contrast_weight: float = 0.01
    temperature: float = 0.2
    negatives: Negatives = "all_events"
    num_anchors: int = 64
    num_similar: int = 4
    similar_outages: float = 0.5
    projection_channels: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one = (
            *("graph_channels", "dynamic_neighbors", "candidates", "hops"),
            *("num_anchors", "num_similar", "projection_channels"),
        )
        check_fields(self, at_least_one, lambda v: v >= 1, "at least 1")
        check_fields(self, ("saturation", "temperature"), lambda v: v > 0, "above 0")
        check_fields(self, ("contrast_weight", "similar_outages"), lambda v: v >= 0, "at least 0")
        check_fields(self, ("retain",), lambda v: 0 <= v <= 1, "at least 0 and at most 1")


class Mean(Protocol):
    """A mean over each location and its neighbours."""

    def __matmul__(self, x: Tensor) -> Tensor: ...


class MixHop(nn.Module):
    """Mixes what is 0 to g hops away: ``H_t = b H + (1 - b) P H_(t-1)``, all side by side.

    Args:
        channels: Width, in and out.
        hops: g.
        retain: b.

    Shapes:
        - **input**, **output**: ``[N, channels]``

    Source:
        Wu et al., MTGNN, KDD 2020, eq. 8 to 10.
    """

    def __init__(self, channels: int, hops: int, retain: float):
        super().__init__()
        self.mix = nn.Linear((hops + 1) * channels, channels)
        self.hops, self.retain = hops, retain

    def forward(self, h: Tensor, mean: Mean) -> Tensor:
        states = [h]
        for _ in range(self.hops):
            states.append(torch.lerp(mean @ states[-1], h, self.retain))
        out: Tensor = self.mix(torch.cat(states, 1))
        return out


class MixedMean:
    """``share`` of one mean and the rest of another."""

    def __init__(self, share: Tensor, one: Mean, other: Mean):
        self.share, self.one, self.other = share, one, other

    def __matmul__(self, x: Tensor) -> Tensor:
        return self.share * (self.one @ x) + (1 - self.share) * (self.other @ x)


class SAHGNN(OutageModel):
    """Spatially aware hybrid graph network: what a place is, and what a storm makes of it.

    Args:
        config: See :class:`SAHGNNConfig`.

    Example:
        >>> from graphcl.datasets import simulate_storms
        >>> events = simulate_storms(60, 3).events
        >>> SAHGNN(SAHGNNConfig(epochs=2)).fit(events).predict(events).shape
        torch.Size([3, 60])
    """

    config_type: ClassVar[type] = SAHGNNConfig
    config: SAHGNNConfig

    def __init__(self, config: SAHGNNConfig = SAHGNNConfig()):
        super().__init__(config)

    def build(self, static_channels: int, weather_channels: int) -> None:
        config, width = self.config, self.config.hidden_channels
        self.static = nn.Linear(static_channels, width)
        self.weather = nn.Linear(weather_channels, width)
        self.static_hops, self.event_hops = (
            nn.ModuleList(MixHop(width, config.hops, config.retain) for _ in range(2))
            for _ in range(2)
        )
        if config.branch == "dynamic":
            self.learner = DynamicGraphLearner(
                2 * width, config.graph_channels, config.dynamic_neighbors, config.saturation
            )
            self.mixture = nn.Parameter(torch.zeros(()))
        self.gate = nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.projection_channels)
        )

    @property
    def num_candidates(self) -> int:
        return self.config.candidates

    def embed_events(self, static: Tensor, weather: Tensor, territory: Territory) -> Tensor:
        place = self._activate(self.static(static))
        lasting = self._branch(self.static_hops, place, territory.mean)
        events = [
            self._event(self._activate(w), place, lasting, territory) for w in self.weather(weather)
        ]
        return torch.stack(events)

    def _event(self, storm: Tensor, place: Tensor, lasting: Tensor, territory: Territory) -> Tensor:
        mean: Mean = territory.mean
        if self.config.branch == "dynamic":
            learned = self.learner(torch.cat([place, storm], 1), territory.candidates)
            mean = MixedMean(self.mixture.sigmoid(), territory.mean, learned)
        passing = self._branch(self.event_hops, storm, mean)
        gate = torch.sigmoid(self.gate(torch.cat([lasting, passing], 1)))
        out: Tensor = self.norm(torch.lerp(passing, lasting, gate) + storm)
        return out

    def _branch(self, hops: nn.ModuleList, h: Tensor, mean: Mean) -> Tensor:
        out: Tensor = hops[1](self._activate(hops[0](h, mean)), mean)
        return out

    def _activate(self, h: Tensor) -> Tensor:
        return F.dropout(h.relu(), self.config.dropout, self.training)

    def loss(self, storms: Storms) -> dict[str, Tensor]:
        z = self.situations(storms)
        expected = self.counts(z, storms.territory.customers)
        return self.count_loss(expected, storms.outages) | self.contrast_loss(z, storms)

    def contrast_loss(self, z: Tensor, storms: Storms) -> dict[str, Tensor]:
        """Return the contrast between situations ``[B, N, hidden_channels]``, where it counts."""
        if not self.config.contrast_weight or len(z) < 2:
            return {}
        config = self.config
        drawn = torch.randperm(z.size(1))[: config.num_anchors]
        traits = self.static_scale(storms.territory.static[drawn])
        pairs = similar_pairs(
            traits, storms.outages[:, drawn], config.num_similar, config.similar_outages
        )
        contrast = situation_contrast(
            self.projection(z[:, drawn]),
            pairs,
            storms.event_type,
            negatives=config.negatives,
            temperature=config.temperature,
        )
        return {"contrast": config.contrast_weight * contrast}
