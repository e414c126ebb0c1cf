"""SC-FSGL."""

from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from graphcl.spatiotemporal.calendar import Calendar
from graphcl.spatiotemporal.codebook import CausalCodebook, Match
from graphcl.spatiotemporal.forecaster import (
    GraphForecaster,
    NetworkConfig,
    check_fields,
    masked_error,
)
from graphcl.spatiotemporal.propagation import Diffusion
from graphcl.spatiotemporal.samples import Sample, last_observed
from graphcl.spatiotemporal.separation import ConditionalSeparation


@dataclass(frozen=True)
class SCFSGLConfig(NetworkConfig):
    num_layers: int = 2
    hops: int = 2
    num_prototypes: int = 20
    separation: Literal["previous", "off"] = "previous"
    temperature: float = 0.5
    alignment_weight: float = 0.1
    invariance_weight: float = 0.1
    scale: bool = False


class Encoder(nn.Module):
    def __init__(self, num_nodes: int, num_channels: int, config: SCFSGLConfig):
        super().__init__()
        D = config.hidden_channels
        self.scale = config.scale
        self.window = nn.Sequential(
            nn.Linear(2 * config.history + 2, D), nn.ReLU(), nn.Linear(D, D)
        )
        self.time = nn.Linear(Calendar.width, D, bias=False)
        self.node = nn.Parameter(0.02 * torch.randn(num_nodes, num_channels, D))
        self.temporal = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(D),
                nn.Linear(D, D),
                nn.ReLU(),
                nn.Dropout(config.dropout),
                nn.Linear(D, D),
            )
            for _ in range(config.num_layers)
        )
        self.hops = config.hops
        self.spatial = nn.Linear((1 + 2 * config.hops) * D, D)

    def forward(self, sample, level, deviation, calendar, diffusion: Diffusion):
        B, H, N, C = sample.x.shape
        off = (sample.x - level[:, None]) * sample.x_mask
        window = torch.cat(
            [
                off / deviation[:, None],
                sample.x_mask.float(),
                level[:, None],
                deviation[:, None].log(),
            ],
            1,
        )
        x = self.window(window.permute(0, 2, 3, 1)) + self.node
        x = x + self.time(calendar)[:, None, None]
        t = x
        for block in self.temporal:
            t = t + block(t)
        flat = x.flatten(2)
        hops = [h.unflatten(2, (C, -1)) for h in diffusion.hops(flat, self.hops)]
        s = x + torch.relu(self.spatial(torch.cat([x, *hops], -1)))
        return t, s


class SCFSGL(GraphForecaster):
    config_type: ClassVar[type] = SCFSGLConfig
    config: SCFSGLConfig

    def build(self) -> None:
        config = self.config
        D = config.hidden_channels
        self.encoder = Encoder(len(self.node), len(self.channel_names), config)
        self.previous = deepcopy(self.encoder).requires_grad_(False)
        if config.separation != "off":
            self.separate_t, self.separate_s = ConditionalSeparation(D), ConditionalSeparation(D)
        if config.num_prototypes:
            self.codebook = CausalCodebook(config.num_prototypes, D, config.temperature)
            self.query_t, self.query_s = nn.Linear(D, D), nn.Linear(D, D)
            self.recall = nn.Linear(3 * D, D)
        self.gate = nn.Linear(2 * D, D)
        self.hidden = nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Dropout(config.dropout))
        self.out = nn.Linear(D, config.horizon)

    def begin_round(self):
        self.previous.load_state_dict(self.encoder.state_dict())

    def parts(self, sample):
        level = last_observed(sample)
        if self.config.scale:
            n = sample.x_mask.sum(1).clamp(min=1)
            mean = (sample.x * sample.x_mask).sum(1) / n
            deviation = (
                (((sample.x - mean[:, None]) * sample.x_mask) ** 2).sum(1) / n + 0.01
            ).sqrt()
        else:
            deviation = torch.ones_like(level)
        calendar = self.calendar(sample.time[:, self.config.history - 1])
        t, s = self.encoder(sample, level, deviation, calendar, self.diffusion)
        if self.config.separation == "off":
            return level, deviation, t, s, t, s, t, s
        with torch.no_grad():
            t_, s_ = self.previous(sample, level, deviation, calendar, self.diffusion)
        tc, to = self.separate_t(t, t_)
        sc, so = self.separate_s(s, s_)
        return level, deviation, tc + to, sc + so, tc, sc, to, so

    def decode(self, r, level, deviation):
        y = self.out(self.hidden(r))
        return (y * deviation[..., None] + level[..., None]).permute(0, 3, 1, 2)

    def run(self, sample):
        level, deviation, t, s, tc, sc, to, so = self.parts(sample)
        z = torch.sigmoid(self.gate(torch.cat([s, t], -1)))
        r = z * s + (1 - z) * t
        align = None
        if self.config.num_prototypes:
            ms, mt = self.codebook(self.query_s(sc)), self.codebook(self.query_t(tc))
            r = r + self.recall(torch.cat([r, ms.readout, mt.readout], -1))
            align = ms.alignment + mt.alignment
        return self.decode(r, level, deviation), align, (tc, sc), level, deviation

    def forward(self, sample):
        return self.run(sample)[0]

    def loss(self, sample):
        y, align, shared, level, deviation = self.run(sample)
        terms = {"mae": masked_error(y, sample)}
        if align is not None and self.config.alignment_weight:
            terms["align"] = self.config.alignment_weight * align
        if self.config.invariance_weight and self.config.separation != "off":
            pen = 0
            for part in shared:
                h = self.hidden(part)
                out = (self.out(h) * deviation[..., None] + level[..., None]).permute(0, 3, 1, 2)
                sign = (
                    (out - sample.y).sign() * sample.y_mask
                ).detach() / sample.y_mask.sum().clamp(min=1)
                sign = sign * deviation[:, None]
                g = torch.einsum("bfnc,bncd->fd", sign, h)
                pen = pen + g.square().sum() + sign.sum((0, 2, 3)).square().sum()
            terms["irm"] = self.config.invariance_weight * pen
        return terms
