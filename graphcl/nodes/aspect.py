"""ASPECT: node-level adaptive spectral fusion for graph contrastive learning.

Li, Yang, Chen, arXiv 2604.01878, 2026. From the abstract and a digest of the paper: a low- and a
high-frequency channel of Chebyshev filters; a policy, computed per node by a perceptron, that fuses
them; InfoNCE; the policy is regularised by channel-wise contrastive evidence. Completed by us,
since the equations were not readable: interpolated monotone filters (PolyGCL) in simplex form and
the band they start from (ours); a linear map per channel (ours); the weighted channels side by side
rather than summed, where so configured (ours); views, negatives and projection heads (GRACE); the
inputs and width of the policy and the form of the evidence target (ours). This is not a
reproduction.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from graphcl.contrast import info_nce
from graphcl.errors import GraphCLError
from graphcl.nodes.features import Features, RowNorm, drop, linear
from graphcl.nodes.method import (
    MethodConfig,
    NodeMethod,
    draw_anchors,
    evaluating,
    grouped,
    projection_head,
)
from graphcl.nodes.policy import SpectralPolicy, evidence_target, policy_divergence
from graphcl.nodes.prepared import PreparedGraph
from graphcl.spectral import FilterMode, MonotoneFilters, SymmetricOperator, filter_polynomial
from graphcl.spectral.sparse import CACHED, block_width


@dataclass(frozen=True)
class ASPECTConfig(MethodConfig):
    """Hyper-parameters of :class:`ASPECT`.

    Attributes:
        hidden_channels: Width of the embedding.
        fusion: ``"sum"`` adds up what a node takes of each channel; ``"concat"`` puts it side by
            side, each channel with half of the width, and nothing of one can cancel the other.
        order: Degree of the polynomial filters.
        filters: See :class:`graphcl.spectral.MonotoneFilters`.
        sharpness, cutoff: The band in which the filters start, see
            :class:`graphcl.spectral.MonotoneFilters`.
        row_norm: What the rows of the features are divided by: ``"l1"``, their sum, or ``"l2"``,
            their length, by which a short text weighs as much as a long one.
        input_scale: Multiplies the features then. At 1 with ``"l1"`` the biases of the first
            layer dwarf them, so that all nodes start alike and training tells them apart; from
            about 100 on the features dominate from the start, and training refines them.
        policy: ``"node"`` is the method; the others are its ablations: two ``"global"`` shares for
            all nodes, one channel alone, or the ``"mean"`` of both.
        drop_features, drop_edges: Probabilities of dropping, in every view.
        temperature: Of the contrast.
        projection_channels: Width of the projection heads that only the loss sees.
        channel_weight: Weight of the contrast within each channel. At 0 the head through which the
            evidence is read stays as it was drawn, a random projection.
        evidence_weight, evidence_temperature: Of the evidence that regularises the policy.
        num_anchors: Nodes contrasted per step, fresh in every one; memory does not grow with N².
        batch_nodes: About so many nodes, and the edges among them, in a step; 0 is the whole graph.
        learning_rate, filter_learning_rate, weight_decay: Of Adam. At a ``filter_learning_rate`` of
            0 the filters stay as they start.
        epochs: Passes over all nodes; one step each, unless there are batches.
        seed: Decides weights and views.
    """

    hidden_channels: int = 256
    fusion: Literal["sum", "concat"] = "sum"
    order: int = 10
    filters: FilterMode = "simplex"
    sharpness: float = 4.0
    cutoff: float = 2.0
    row_norm: RowNorm = "l1"
    input_scale: float = 1.0
    policy: Literal["node", "global", "low", "high", "mean"] = "node"
    drop_features: float = 0.3
    drop_edges: float = 0.2
    temperature: float = 0.5
    projection_channels: int = 128
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.filters == "compat" and (self.sharpness, self.cutoff) != (1, 2):
            raise GraphCLError(
                "filters is 'compat', which starts in no band: set sharpness to 1 and cutoff to 2"
            )


class View(NamedTuple):
    """Nodes of a graph as one view embeds them."""

    low: Tensor  # [n, channel width]
    high: Tensor  # [n, channel width]

    def at(self, rows: Tensor | slice) -> "View":
        """Return some of them."""
        return View(self.low[rows], self.high[rows])


class SpectralEncoder(nn.Module):
    """Embeds nodes by a low- and a high-frequency channel that every node mixes for itself.

    What :class:`ASPECT` trains without labels and ``NodeEncoder("aspect", ...)`` with them.

    Attributes:
        config: Of which it reads the width, the filters, the policy and the dropping of features.

    Shapes:
        - **x**: ``[num_nodes, in_channels]``, **operator**: shifted Laplacian of the graph
        - **output**: ``[num_nodes, hidden_channels]``
    """

    config: ASPECTConfig

    def create_channels(self, in_channels: int) -> int:
        """Create the channels; return the width of either."""
        config, width = self.config, self.config.hidden_channels
        if config.fusion == "concat":
            if width % 2:
                raise GraphCLError(
                    f"hidden_channels: {width} cannot be halved for the two channels of "
                    "fusion='concat'; take an even number"
                )
            width //= 2
        self.low = nn.Linear(in_channels, width)
        self.high = nn.Linear(in_channels, width)
        self.activation = nn.PReLU()
        self.filters = MonotoneFilters(
            config.order, config.filters, config.sharpness, config.cutoff
        )
        return width

    def create_policy(self, width: int) -> None:
        """Create what mixes the channels, each of so many columns."""
        if self.config.policy == "node":
            self.policy = SpectralPolicy(width)
        elif self.config.policy == "global":
            self.shares = nn.Parameter(torch.full((2,), 0.5))

    def channels(
        self, x: Features, operator: SymmetricOperator | Tensor, nodes: Tensor | None = None
    ) -> View:
        """Return the low- and the high-frequency embedding of all nodes, or of ``nodes [n]``."""
        x = drop(x, self.config.drop_features, self.training)
        coefficients = self.filters.coefficients().unbind(1)
        low, high = (
            self._channel(x, operator, nodes, layer, column)
            for layer, column in zip((self.low, self.high), coefficients, strict=True)
        )
        return View(low, high)

    def _channel(
        self,
        x: Features,
        operator: SymmetricOperator | Tensor,
        nodes: Tensor | None,
        layer: nn.Linear,
        coefficients: Tensor,
    ) -> Tensor:
        # The linear map first: it commutes with the filter and makes it narrower. And for a few
        # columns at a time, which go from the one to the other within the cache. On larger graphs
        # there is less to gain, and blocks that lie about in memory take a quarter more of it;
        # dense features would be read once more for every block.
        weight = layer.weight
        width = block_width(len(x), len(weight), weight.device)
        if isinstance(x, Tensor) or len(x) * width > 4 * CACHED:
            width = len(weight)
        parts = [
            filter_polynomial(operator, linear(x, block), coefficients.to(weight.dtype), nodes)
            for block in weight.split(width)
        ]
        filtered = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        activated: Tensor = self.activation(
            torch.add(layer.bias, filtered, alpha=self.config.input_scale)
        )
        return activated

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

    def forward(self, x: Features, operator: SymmetricOperator | Tensor) -> Tensor:
        """Embed every node."""
        view = self.channels(x, operator)
        return self.fuse(view, self.shares_of(*view))

    def fuse(self, view: View, shares: Tensor) -> Tensor:
        """Return what every node takes of its channels, ``[N, hidden_channels]``."""
        low, high = shares[:, :1] * view.low, shares[:, 1:]
        if self.config.fusion == "concat":
            return torch.cat([low, high * view.high], 1)
        return low.addcmul_(high, view.high)


class ASPECT(SpectralEncoder, NodeMethod):
    """A spectral encoder, trained by contrast between views, its policy led by evidence.

    Args:
        config: See :class:`ASPECTConfig`.
    """

    config_type: ClassVar[type] = ASPECTConfig

    def __init__(self, config: ASPECTConfig = ASPECTConfig()):
        super().__init__(config)

    def build(self, in_channels: int) -> None:
        width = self.create_channels(in_channels)
        channels = self.config.projection_channels
        self.projection = projection_head(self.config.hidden_channels, channels)
        self.channel_projection = projection_head(width, channels)
        self.create_policy(width)

    def loss(self, graph: PreparedGraph) -> dict[str, Tensor]:
        anchors = draw_anchors(len(graph.x), self.config.num_anchors)
        return self.contrast_views(self.draw_views(graph, anchors), anchors)

    def draw_views(self, graph: PreparedGraph, nodes: Tensor | None) -> tuple[View, View]:
        """Return two views of nodes, or of all."""
        return self.draw_view(graph, nodes), self.draw_view(graph, nodes)

    def draw_view(self, graph: PreparedGraph, nodes: Tensor | None) -> View:
        """Embed nodes, or all, of a graph with edges and features dropped afresh."""
        keep = graph.pattern.drop_edges(self.config.drop_edges)
        return self.channels(graph.x, graph.pattern.shifted_laplacian(keep), nodes)

    def contrast_views(self, views: tuple[View, View], anchors: Tensor | None) -> dict[str, Tensor]:
        """Return the terms of the loss between two views of the anchors."""
        config = self.config
        shares = [self.shares_of(*view) for view in views]
        fused = [self.fuse(view, share) for view, share in zip(views, shares, strict=True)]

        def contrast(first: Tensor, second: Tensor, head: nn.Module) -> Tensor:
            pair = head(first), head(second)
            return info_nce(*pair, temperature=config.temperature, reduction="none")

        terms = {"fused": contrast(fused[0], fused[1], self.projection).mean()}
        seen = config.policy in ("node", "global", "mean")
        if not seen or not (config.channel_weight or config.evidence_weight):
            return terms
        evidence = torch.stack(
            [contrast(a, b, self.channel_projection) for a, b in zip(*views, strict=True)], 1
        )
        terms["channels"] = config.channel_weight * evidence.mean()
        if config.policy == "node":
            target = self.policy_target(evidence, anchors)
            divergence = torch.stack([policy_divergence(target, share) for share in shares])
            terms["evidence"] = config.evidence_weight * divergence.mean()
        return terms

    def policy_target(self, evidence: Tensor, anchors: Tensor | None) -> Tensor:
        """Return the shares that the policy of the anchors is drawn to, a constant ``[n, 2]``."""
        return evidence_target(evidence, self.config.evidence_temperature)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return grouped(self, list(self.filters.parameters()), self.config.filter_learning_rate, 0.0)

    @torch.no_grad()
    def spectral_policy(self, data: Data) -> Tensor:
        """Return what every node takes of each channel, ``[N, 2]``, column 0 low.

        A node that takes much of the high channel sits where the graph is heterophilic.
        """
        graph = self._prepared(data)
        with evaluating(self):
            return self.shares_of(*self.channels(graph.x, graph.operator))
