"""SC-FSGL: forecasts from factors that clients share and factors of their own.

Liu et al., AAAI 2026 (arXiv 2603.29384).  From the paper: two extractors, over time and over the
graph; the Conditional Separation Module, conditioned on the representation of the round before;
one codebook for both sides, matched by softmax, with the contrast of the best against the second
best prototype; the invariance penalty on the last layer; a local loss of the three.  Completed by
us, since the encoder and all values were not on a page that could be read: time is encoded per
node first and space mixed once, by diffusion as in DCRNN (ICLR 2018), where GMAN's attention over
every step costs fifty times as much; the window relative to its last value and to the node's usual
values; learned node embeddings in place of node2vec; each channel a series of its own, so that no
shared weight depends on the number of nodes or channels; all horizons in one pass; gated fusion
and read-out of the codebook as in GMAN and MegaCRN; absolute in place of squared errors.  This is
not a reproduction.  Separation by transfer, off unless it is asked for, is ours altogether
(:mod:`graphcl.spatiotemporal.correction`).
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from graphcl.datasets import SpatioTemporalSeries
from graphcl.errors import check_fields
from graphcl.spatiotemporal.codebook import CausalCodebook, Match
from graphcl.spatiotemporal.correction import Correction
from graphcl.spatiotemporal.encoder import Anchor, Encoder, Parts
from graphcl.spatiotemporal.forecaster import (
    GraphForecaster,
    NetworkConfig,
    masked_error,
)
from graphcl.spatiotemporal.profile import Profile
from graphcl.spatiotemporal.samples import Sample, last_observed
from graphcl.spatiotemporal.separation import ConditionalSeparation

SIDES = ("temporal", "spatial")


@dataclass(frozen=True)
class SCFSGLConfig(NetworkConfig):
    """Hyper-parameters of :class:`SCFSGL`, beside those of all networks.

    Attributes:
        num_layers: Residual blocks of the temporal extractor.
        hops: Steps of the diffusion, in each direction.
        separation: What divides a shared and an own part: ``"conditional"``, masks conditioned on
            the round before, both parts decoded as one (the paper's); ``"transfer"``, such masks
            and an own part that corrects what the shared one forecasts alone (ours; it recovers
            what clients share better, and may forecast worse); ``"off"``, nothing (an ablation).
        num_prototypes: Rows of the codebook, at least 2; 0 leaves it out.
        temperature: Of the alignment with the codebook.
        alignment_weight: Weight of that alignment.
        invariance_weight: Weight of the invariance penalty.
    """

    num_layers: int = 2
    hops: int = 2
    separation: Literal["conditional", "transfer", "off"] = "conditional"
    num_prototypes: int = 20
    temperature: float = 0.5
    alignment_weight: float = 0.1
    invariance_weight: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, ("num_layers", "hops"), lambda v: v >= 1, "at least 1")
        check_fields(self, ("num_prototypes",), lambda v: v == 0 or v >= 2, "0 or at least 2")
        check_fields(self, ("temperature",), lambda v: v > 0, "above 0")
        weights = ("alignment_weight", "invariance_weight")
        check_fields(self, weights, lambda v: v >= 0, "at least 0")


class Represented(NamedTuple):
    """Windows inside the network.

    Shapes:
        - **fused**: ``[B, N, C, D]``, what is decoded, under transfer of the shared part alone
        - **shared**, **own**: the two parts of each side; both the whole of it without separation
        - **matches**: of the temporal and the spatial side with the codebook; none without one
        - **anchor**: what the forecasts are relative to
    """

    fused: Tensor
    shared: Parts
    own: Parts
    matches: tuple[Match, ...]
    anchor: Anchor


class SCFSGL(GraphForecaster):
    """Shared-causality federated learning on spatio-temporal graphs: the model of one client.

    Alone it is a forecaster like the others.  In a federation (``strategy.name = "scfsgl"``) the
    codebook crosses the wire and the rest stays, but for what :mod:`federation.strategies.scfsgl`
    says.

    Args:
        config: See :class:`SCFSGLConfig`.

    Example:
        >>> from graphcl.datasets import chronological_split, confounded_series
        >>> train, val, test = chronological_split(confounded_series(1, 5, 600)[0].series)
        >>> model = SCFSGL(SCFSGLConfig(hidden_channels=8, epochs=2)).fit(train, val)
        >>> model.forecast(test).values.shape
        torch.Size([12, 5, 1])
    """

    config_type: ClassVar[type] = SCFSGLConfig
    config: SCFSGLConfig

    def build(self) -> None:
        config, N, C = self.config, len(self.node), len(self.channel_names)
        D = config.hidden_channels
        self.profile = Profile(self.calendar, N, C)
        transfer = config.separation == "transfer"
        self.encoder = self._encoder(None if transfer else (N, C))
        if config.separation != "off":
            # The encoder as it was before the round, which conditions the masks.
            self.previous = deepcopy(self.encoder).requires_grad_(False)
            self.separation = nn.ModuleDict({side: ConditionalSeparation(D) for side in SIDES})
        self.own: Correction | None = None
        if transfer:
            self.own = Correction(self._encoder((N, C)), D, config.horizon, config.dropout)
        if config.num_prototypes:
            self.codebook = CausalCodebook(config.num_prototypes, D, config.temperature)
            self.query = nn.ModuleDict({side: nn.Linear(D, D) for side in SIDES})
            self.recall = nn.Linear(3 * D, D)
        self.gate = nn.Linear(2 * D, D)
        self.hidden = nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Dropout(config.dropout))
        self.usual = nn.Linear(D, config.horizon)
        self.out = nn.Linear(D, config.horizon)
        self._held: list[SCFSGL] = []  # in a list, so that it is no module of this one

    def _encoder(self, sensors: tuple[int, int] | None) -> Encoder:
        config = self.config
        steps = 3 * config.history + config.horizon + 1
        sizes = config.hidden_channels, config.num_layers, config.hops
        return Encoder(steps, *sizes, config.dropout, sensors)

    def start(self, train: SpatioTemporalSeries) -> Self:
        super().start(train)
        self.profile.fit(train, self.scaler, self.calendar)
        return self

    def begin_round(self) -> None:
        """Keep the encoder of the round before: it conditions this round's masks.

        In a federation that is the encoder after what the client received was mixed in (ours).
        """
        if self.config.separation != "off":
            self.previous.load_state_dict(self.encoder.state_dict())

    def hold_shared(self) -> None:
        """Under transfer, train the own part from here on against the shared part as it is now.

        For a federation, where the shared part drifts towards the client while it trains and is
        averaged afterwards, which would leave the own part with the drift undone.
        """
        if self.own is not None:
            self._held = []
            self._held = [deepcopy(self).eval().requires_grad_(False)]

    def represent(self, sample: Sample) -> Represented:
        """Encode, separate, match with the codebook and fuse."""
        window, anchor = self._window(sample)
        calendar = self.calendar(sample.time[:, self.config.history - 1])
        whole = self.encoder(window, calendar, self.diffusion)
        shared = own = whole
        if self.config.separation != "off":
            with torch.no_grad():  # and without dropout: the mask is that of a forecast
                before = self.previous.eval()(window, calendar, self.diffusion)
            if self.own is not None:
                own = self.own.encoder(window, calendar, self.diffusion)
            parts = [
                self.separation[side](f, f_previous, f_own)
                for side, f, f_previous, f_own in zip(SIDES, whole, before, own, strict=True)
            ]
            shared, own = (Parts(*part) for part in zip(*parts, strict=True))
            whole = shared if self.own is not None else Parts(*(c + o for c, o in parts))
        fused, matches = self.fuse(whole, shared)
        return Represented(fused, shared, own, matches, anchor)

    def fuse(self, whole: Parts, shared: Parts) -> tuple[Tensor, tuple[Match, ...]]:
        """Join both sides and what the codebook recalls of the shared part.

        Shapes:
            whole, shared: each side ``[B, N, C, D]``.  Returns what is decoded, ``[B, N, C, D]``,
            and the matches of both sides with the codebook, none without one.
        """
        fused = whole.joined(self.gate)
        if not self.config.num_prototypes:
            return fused, ()
        matches = tuple(
            self.codebook(self.query[side](f)) for side, f in zip(SIDES, shared, strict=True)
        )
        recalled = [match.readout for match in matches]
        return fused + self.recall(torch.cat([fused, *recalled], -1)), matches

    def _window(self, sample: Sample) -> tuple[Tensor, Anchor]:
        """Return what the encoder reads of each variable, ``[B, N, C, steps]``, and the anchor."""
        history = self.config.history
        slot, time = self.calendar.slot(sample.time), sample.time
        last = last_observed(sample)
        level = last[:, None]
        before = self.profile(slot[:, :history], time[:, :history], sample.x, sample.x_mask)
        usual = self.profile(slot[:, history:], time[:, history:], sample.y, sample.y_mask)
        steps = [
            torch.where(sample.x_mask, sample.x - level, 0.0),
            sample.x_mask.float(),
            before - level,
            usual - level,
            level,
        ]
        return torch.cat(steps, 1).permute(0, 2, 3, 1), Anchor(last, usual)

    def decode(self, fused: Tensor, anchor: Anchor) -> Tensor:
        """Return standardised forecasts ``[B, horizon, N, C]`` of representations."""
        return self._decode(self.hidden(fused), anchor)

    def _decode(self, hidden: Tensor, anchor: Anchor) -> Tensor:
        share = torch.sigmoid(self.usual(hidden)).permute(0, 3, 1, 2)
        start = torch.lerp(anchor.last[:, None], anchor.usual, share)
        return start + self.out(hidden).permute(0, 3, 1, 2)

    def forecast_of(self, represented: Represented, sample: Sample) -> Tensor:
        """Return standardised forecasts ``[B, horizon, N, C]`` of windows that are represented.

        Under transfer that is what the shared part tells, which gets no gradient by it, corrected
        by the own part.  In training it is the shared part that is held (:meth:`hold_shared`).
        """
        if self.own is None:
            return self.decode(represented.fused, represented.anchor)
        with torch.no_grad():
            if self.training and self._held:
                [held] = self._held
                shared = held.decode(held.represent(sample).fused, represented.anchor)
            else:
                shared = self.decode(represented.fused, represented.anchor)
        return shared + self.own(represented.own, represented.anchor)

    def forward(self, sample: Sample) -> Tensor:
        represented = self.represent(sample)
        projected = represented._replace(fused=self.projector(represented.fused))
        return self.forecast_of(projected, sample)

    def loss(self, sample: Sample) -> dict[str, Tensor]:
        represented = self.represent(sample)
        return self.terms(represented, self.forecast_of(represented, sample), sample)

    def terms(
        self, represented: Represented, forecast: Tensor, sample: Sample
    ) -> dict[str, Tensor]:
        """Return the terms of the loss of a forecast: error, alignment, invariance.

        Under transfer there is a term more, the error of the shared part alone.
        """
        config = self.config
        terms = {"mae": masked_error(forecast, sample)}
        if self.own is not None:
            alone = self.decode(represented.fused, represented.anchor)
            terms["shared"] = masked_error(alone, sample)
        if represented.matches and config.alignment_weight:
            alignment = torch.stack([match.alignment for match in represented.matches])
            terms["codebook"] = config.alignment_weight * alignment.sum()
        if config.separation != "off" and config.invariance_weight:
            penalty = torch.stack(
                [self.invariance(part, represented.anchor, sample) for part in represented.shared]
            )
            terms["invariance"] = config.invariance_weight * penalty.sum()
        return terms

    def invariance(self, part: Tensor, anchor: Anchor, sample: Sample) -> Tensor:
        """Return the squared gradient of the last layer, had it this part alone to forecast from.

        The absolute error has a gradient of sign over count, which does not change with the
        representation, so that no gradient needs to be differentiated: the penalty is in closed
        form.

        Source:
            SC-FSGL, eq. 7, after Arjovsky et al., Invariant Risk Minimization, 2019.
        """
        hidden = self.hidden(part)
        with torch.no_grad():
            off = (self._decode(hidden, anchor) - sample.y).sign() * sample.y_mask
            slope = off / sample.y_mask.sum().clamp(min=1)
        weight = torch.einsum("bfnc,bncd->fd", slope, hidden)
        return weight.square().sum() + slope.sum((0, 2, 3)).square().sum()
