"""ASPECT: node-level adaptive spectral fusion for graph contrastive learning.

Li, Yang, Chen, arXiv 2604.01878, 2026. From the abstract and a digest of the paper: a low- and a
high-frequency channel of Chebyshev filters; a policy, computed per node by a perceptron, that fuses
them; InfoNCE; the policy is regularised by channel-wise contrastive evidence. Completed by us,
since the equations were not readable: interpolated monotone filters (PolyGCL) in simplex form and
their sharper start (ours); a linear map per channel (ours); views, negatives and projection head
(GRACE); the inputs and width of the policy and the form of the evidence target (ours). This is
not a reproduction.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from graphcl.contrast import info_nce
from graphcl.nodes.features import Features, drop, linear
from graphcl.nodes.method import NodeMethod, draw_anchors, projection_head
from graphcl.nodes.policy import SpectralPolicy, evidence_target, policy_divergence
from graphcl.nodes.prepared import PreparedGraph
from graphcl.spectral import FilterMode, MonotoneFilters, SymmetricOperator


@dataclass(frozen=True)
class ASPECTConfig:
    """Hyper-parameters of :class:`ASPECT`.

    Attributes:
        hidden_channels: Width of each channel and of the embedding.
        order: Degree of the polynomial filters.
        filters: See :class:`graphcl.spectral.MonotoneFilters`.
        sharpness: See :class:`graphcl.spectral.MonotoneFilters`.
        policy: ``"node"`` is the method; the others are its ablations: two ``"global"`` shares for
            all nodes, one channel alone, or the ``"mean"`` of both.
        drop_features, drop_edges: Probabilities of dropping, in every view.
        temperature: Of the contrast.
        channel_weight: Weight of the contrast within each channel.
        evidence_weight, evidence_temperature: Of the evidence that regularises the policy.
        num_anchors: Nodes contrasted per step, fresh in every one; memory does not grow with N².
        batch_nodes: About so many nodes, and the edges among them, in a step; 0 is the whole graph.
        learning_rate, filter_learning_rate, weight_decay: Of Adam.
        epochs: Passes over all nodes; one step each, unless there are batches.
        seed: Decides weights and views.
    """

    hidden_channels: int = 256
    order: int = 10
    filters: FilterMode = "simplex"
    sharpness: float = 4.0
    policy: Literal["node", "global", "low", "high", "mean"] = "node"
    drop_features: float = 0.3
    drop_edges: float = 0.2
    temperature: float = 0.5
    channel_weight: float = 1.0
    evidence_weight: float = 0.3
    evidence_temperature: float = 0.05
    num_anchors: int = 1024
    batch_nodes: int = 0
    learning_rate: float = 1e-3
    filter_learning_rate: float = 1e-2
    weight_decay: float = 0.0
    epochs: int = 200
    seed: int = 0


class ASPECT(NodeMethod):
    """Embeds nodes by a low- and a high-frequency channel that every node mixes for itself.

    Args:
        config: See :class:`ASPECTConfig`.
    """

    config_type: ClassVar[type] = ASPECTConfig
    config: ASPECTConfig

    def __init__(self, config: ASPECTConfig = ASPECTConfig()):
        super().__init__(config)

    def build(self, in_channels: int) -> None:
        config, width = self.config, self.config.hidden_channels
        self.low = nn.Linear(in_channels, width)
        self.high = nn.Linear(in_channels, width)
        self.activation = nn.PReLU()
        self.filters = MonotoneFilters(config.order, config.filters, config.sharpness)
        self.projection = projection_head(width)
        if config.policy == "node":
            self.policy = SpectralPolicy(width)
        elif config.policy == "global":
            self.shares = nn.Parameter(torch.full((2,), 0.5))

    def channels(self, x: Features, operator: SymmetricOperator) -> tuple[Tensor, Tensor]:
        """Return the low- and the high-frequency embedding, ``[N, hidden_channels]`` each."""
        x = drop(x, self.config.drop_features, self.training)
        # The linear map first: it commutes with the filter and makes it narrower.
        low, high = self.filters(operator, linear(x, self.low.weight), linear(x, self.high.weight))
        return self.activation(low + self.low.bias), self.activation(high + self.high.bias)

    def shares_of(self, low: Tensor, high: Tensor) -> Tensor:
        """Return what every node takes of each channel, ``[N, 2]``, column 0 low."""
        kind = self.config.policy
        if kind == "node":
            shares: Tensor = self.policy(low, high)
            return shares
        if kind == "global":
            return self.shares.expand(len(low), 2)
        fixed = {"low": (1.0, 0.0), "high": (0.0, 1.0), "mean": (0.5, 0.5)}[kind]
        return low.new_tensor(fixed).expand(len(low), 2)

    def forward(self, x: Features, operator: SymmetricOperator) -> Tensor:
        low, high = self.channels(x, operator)
        return _fuse(low, high, self.shares_of(low, high))

    def loss(self, graph: PreparedGraph) -> dict[str, Tensor]:
        config = self.config
        anchors = draw_anchors(len(graph.x), config.num_anchors)
        views = []
        for _ in range(2):
            keep = graph.pattern.drop_edges(config.drop_edges)
            both = self.channels(graph.x, graph.pattern.shifted_laplacian(keep))
            low, high = (channel[anchors] for channel in both)
            shares = self.shares_of(low, high)
            parts = [_fuse(low, high, shares), low, high]
            views.append(([self.projection(part) for part in parts], shares))
        (first, shares1), (second, shares2) = views

        def contrast(index: int) -> Tensor:
            pair = first[index], second[index]
            return info_nce(*pair, temperature=config.temperature, reduction="none")

        terms = {"fused": contrast(0).mean()}
        if config.policy in ("node", "global", "mean"):
            evidence = torch.stack([contrast(1), contrast(2)], 1)
            terms["channels"] = config.channel_weight * evidence.mean()
        if config.policy == "node":
            target = evidence_target(evidence, config.evidence_temperature)
            divergence = policy_divergence(target, shares1) + policy_divergence(target, shares2)
            terms["evidence"] = config.evidence_weight / 2 * divergence
        return terms

    def parameter_groups(self) -> list[dict[str, Any]]:
        filters = {id(parameter) for parameter in self.filters.parameters()}
        others = [p for p in self.parameters() if id(p) not in filters]
        rate = self.config.filter_learning_rate
        return [
            {"params": others},
            {"params": list(self.filters.parameters()), "lr": rate, "weight_decay": 0.0},
        ]

    @torch.no_grad()
    def spectral_policy(self, data: Data) -> Tensor:
        """Return what every node takes of each channel, ``[N, 2]``, column 0 low.

        A node that takes much of the high channel sits where the graph is heterophilic.
        """
        graph = self._prepared(data)
        self.eval()
        return self.shares_of(*self.channels(graph.x, graph.operator))


def _fuse(low: Tensor, high: Tensor, shares: Tensor) -> Tensor:
    return (shares[:, :1] * low).addcmul_(shares[:, 1:], high)
