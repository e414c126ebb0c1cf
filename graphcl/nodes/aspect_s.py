"""ASPECT-S: ASPECT whose policy also weighs how stable each channel is under an adversary.

Li, Yang, Chen, arXiv 2604.01878, 2026. From the abstract and a digest of the paper: an optional
extension; perturbations of structure and features, found by projected gradient steps with the
Rayleigh quotient as a bias of the search; empirical sensitivities per channel that the policy
weighs. Completed by us: variables, budgets and the sampled subgraph (after ARIEL, WWW 2022), the
bound on features in units of their standard deviation, the sensitivity by the cosine, how it
enters the policy's target, and the adversarial term of the loss. This is not a reproduction.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor
from torch_geometric.data import Data

from graphcl.contrast import info_nce
from graphcl.nodes.aspect import ASPECT, ASPECTConfig, View
from graphcl.nodes.features import rows
from graphcl.nodes.method import PreparedGraph, draw_anchors, evaluating
from graphcl.nodes.policy import channel_sensitivity, reliability_target
from graphcl.spectral import EdgePattern, SymmetricOperator, find_attack, relaxed_laplacian


@dataclass(frozen=True)
class ASPECTSConfig(ASPECTConfig):
    """Hyper-parameters of :class:`ASPECTS`: those of ASPECT, and the following.

    Attributes:
        edge_budget: Expected flips of an attack at most, as a share of the subgraph's edges.
        feature_bound: Largest change of a feature, in standard deviations of that feature. (An
            absolute bound means little: a row of 1,703 words sums to one.)
        attack_steps: Gradient steps of an attack.
        rayleigh_weight: How much an attack is drawn to high frequencies.
        attacked_nodes: Size of the sampled subgraph that is attacked; it costs its square.
        attack_every: Steps that an attack serves; with ``batch_nodes`` each batch has an attack of
            its own.
        warmup_steps: Steps without attacks at the start.
        stability_weight: How much the policy avoids sensitive channels; 0 is ASPECT's policy.
        adversarial_weight: Weight of the contrast between a view and the attacked subgraph.
    """

    edge_budget: float = 0.1
    feature_bound: float = 0.02
    attack_steps: int = 3
    rayleigh_weight: float = 1.0
    attacked_nodes: int = 500
    attack_every: int = 5
    warmup_steps: int = 20
    stability_weight: float = 10.0
    adversarial_weight: float = 0.3


class AttackedNodes(NamedTuple):
    """An attacked induced subgraph, which serves for some steps."""

    graph: PreparedGraph  # that it was sampled from
    nodes: Tensor  # [n], the sample
    x: Tensor  # [n, in_channels], perturbed
    operator: SymmetricOperator  # shifted Laplacian, perturbed
    sensitivity: Tensor  # [num_nodes, 2], 0 outside the sample


class ASPECTS(ASPECT):
    """ASPECT with a policy that prefers channels that an adversary cannot turn.

    Every ``attack_every`` steps an adversary looks for the flips of edges and changes of features
    of a sampled subgraph that move its embedding most. How far they turn each channel joins the
    evidence that the policy follows, and the attacked subgraph is a further view to agree with.

    Args:
        config: See :class:`ASPECTSConfig`.

    Example:
        >>> from graphcl.datasets import contextual_sbm
        >>> data = contextual_sbm(60, 2, 8)
        >>> config = ASPECTSConfig(hidden_channels=16, epochs=3, warmup_steps=1)
        >>> ASPECTS(config).fit(data).embed(data).shape
        torch.Size([60, 16])
    """

    config_type: ClassVar[type] = ASPECTSConfig
    config: ASPECTSConfig

    def __init__(self, config: ASPECTSConfig = ASPECTSConfig()):
        super().__init__(config)

    def build(self, in_channels: int) -> None:
        super().build(in_channels)
        self._steps = 0
        self._attacked: AttackedNodes | None = None

    def fit(
        self, data: Data, on_epoch: Callable[[int, dict[str, float]], None] | None = None
    ) -> Self:
        super().fit(data, on_epoch)
        self._attacked = None  # it holds the training graph
        return self

    def after_step(self, progress: float) -> None:
        super().after_step(progress)
        self._steps += 1

    def loss(self, graph: PreparedGraph) -> dict[str, Tensor]:
        attacked = self._attacked = self._current_attack(graph)
        anchors = draw_anchors(len(graph.x), self.config.num_anchors)
        if attacked is None or not self.config.adversarial_weight:
            return self.contrast_views(self.draw_views(graph, anchors), anchors)
        view1, clean = self._draw_both(graph, anchors, attacked.nodes)
        terms = self.contrast_views((view1, self.draw_view(graph, anchors)), anchors)
        perturbed = self(attacked.x, attacked.operator)
        contrast = self._contrast(self.fuse(clean, self.shares_of(*clean)), perturbed)
        terms["adversarial"] = self.config.adversarial_weight * contrast
        return terms

    def policy_target(self, evidence: Tensor, anchors: Tensor | None) -> Tensor:
        if self._attacked is None:
            return super().policy_target(evidence, anchors)
        config, sensitivity = self.config, self._attacked.sensitivity
        return reliability_target(
            evidence,
            sensitivity if anchors is None else sensitivity[anchors],
            config.evidence_temperature,
            config.stability_weight,
        )

    def _draw_both(
        self, graph: PreparedGraph, anchors: Tensor | None, nodes: Tensor
    ) -> tuple[View, View]:
        """Return one view, seen at the anchors and at some nodes."""
        if anchors is None:
            view = self.draw_view(graph, None)
            return view, view.at(nodes)
        view = self.draw_view(graph, torch.cat([anchors, nodes]))
        return view.at(slice(len(anchors))), view.at(slice(len(anchors), None))

    def attack(self, graph: PreparedGraph) -> AttackedNodes:
        """Attack a fresh sample of a graph's nodes; weights and mode of the method stay."""
        config = self.config
        nodes = torch.randperm(len(graph.x))[: config.attacked_nodes]
        adjacency, x = graph.pattern.induced_adjacency(nodes), rows(graph.x, nodes)
        with evaluating(self):
            with torch.no_grad():
                clean = self(x, relaxed_laplacian(adjacency))
            found = find_attack(
                lambda operator, x: self._contrast(clean, self(x, operator)),
                adjacency,
                x,
                edge_budget=config.edge_budget,
                feature_bound=config.feature_bound * x.std(0, correction=0),
                steps=config.attack_steps,
                rayleigh_weight=config.rayleigh_weight,
            )
            operator = _sparse_laplacian(found.adjacency)
            with torch.no_grad():
                turned = channel_sensitivity(
                    self.channels(x, _sparse_laplacian(adjacency)),
                    self.channels(found.x, operator),
                )
        sensitivity = turned.new_zeros(len(graph.x), 2)
        sensitivity[nodes] = turned
        return AttackedNodes(graph, nodes, found.x, operator, sensitivity)

    def _current_attack(self, graph: PreparedGraph) -> AttackedNodes | None:
        attacked, age = self._attacked, self._steps - self.config.warmup_steps
        if age < 0:
            return None
        stale = attacked is None or attacked.graph is not graph
        return self.attack(graph) if stale or age % self.config.attack_every == 0 else attacked

    def _contrast(self, first: Tensor, second: Tensor) -> Tensor:
        pair = self.projection(first), self.projection(second)
        return info_nce(*pair, temperature=self.config.temperature)


def _sparse_laplacian(adjacency: Tensor) -> SymmetricOperator:
    return EdgePattern(adjacency.nonzero().t(), len(adjacency)).shifted_laplacian()
