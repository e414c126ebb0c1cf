"""What every label-free method on nodes shares: fit, embed, save, load."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch_geometric.data import Data

from graphcl.errors import GraphCLError, check_choices, check_fields
from graphcl.nodes.batches import NodeBatches
from graphcl.nodes.features import Features
from graphcl.nodes.prepared import PreparedGraph, prepare
from graphcl.spectral import SymmetricOperator
from graphcl.training import (
    fit,
    keeps_randomness,
    load_weights,
    save_weights,
    seed_everything,
)

_RULES: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (
        (
            *("hidden_channels", "projection_channels", "order", "num_anchors", "patience"),
            "epochs",
            *("attack_steps", "attack_every", "attacked_nodes"),
        ),
        lambda v: v >= 1,
        "at least 1",
    ),
    (
        (
            *("warmup_steps", "weight_decay", "filter_weight_decay", "filter_learning_rate"),
            *("channel_weight", "evidence_weight", "rayleigh_weight", "stability_weight"),
            *("adversarial_weight", "edge_budget", "feature_bound"),
        ),
        lambda v: 0 <= v < math.inf,
        "at least 0",
    ),
    (
        (
            *("learning_rate", "temperature", "evidence_temperature"),
            *("input_scale", "sharpness", "cutoff"),
        ),
        lambda v: 0 < v < math.inf,
        "above 0",
    ),
    (("drop_features", "drop_edges", "dropout"), lambda v: 0 <= v < 1, "0 to just under 1"),
    (("batch_nodes",), lambda v: v == 0 or v >= 2, "at least 2, or 0 for the whole graph"),
    (("momentum",), lambda v: 0 <= v <= 1, "0 to 1"),
)


class MethodConfig:
    """Base of the methods' configurations: what a hyper-parameter of some name may be.

    Raises:
        GraphCLError: A number is out of its range, or a choice unknown.
    """

    def __post_init__(self) -> None:
        check_choices(self)
        for names, allowed, rule in _RULES:
            own = [name for name in names if hasattr(self, name)]
            check_fields(self, own, allowed, rule)


class NodeMethod(nn.Module, ABC):
    """A method that embeds nodes without labels.

    Args:
        config: The method's frozen configuration; its ``seed`` decides weights and views.

    Example:
        >>> from graphcl.datasets import contextual_sbm
        >>> from graphcl.nodes import ASPECT, ASPECTConfig
        >>> data = contextual_sbm(60, 2, 8)
        >>> ASPECT(ASPECTConfig(hidden_channels=16, epochs=2)).fit(data).embed(data).shape
        torch.Size([60, 16])
    """

    config_type: ClassVar[type]

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        self.in_channels = 0

    @abstractmethod
    def build(self, in_channels: int) -> None:
        """Create the layers."""

    @abstractmethod
    def forward(self, x: Features, operator: SymmetricOperator) -> Tensor:
        """Embed nodes: ``x [N, in_channels]`` to ``[N, hidden_channels]``."""

    @abstractmethod
    def loss(self, graph: PreparedGraph) -> dict[str, Tensor]:
        """Return the named terms of the loss on freshly drawn views."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimiser's parameter groups."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def after_step(self, progress: float) -> None:
        """Do what follows a step, e.g. move a slowly following copy.

        Args:
            progress: Share of the training's steps before this one, from 0 to just under 1.
        """

    @keeps_randomness()
    def start(self, data: Data) -> Self:
        """Draw the first weights for a graph's features; the method can embed, untrained."""
        return self._start(self.prepare(data))

    def prepare(self, data: Data) -> PreparedGraph:
        """Return a graph as the method reads it."""
        return prepare(data, self.config.row_norm)

    def _start(self, graph: PreparedGraph) -> Self:
        seed_everything(self.config.seed, "method")
        self.in_channels = graph.x.size(1)
        self.build(self.in_channels)
        return self.eval()

    @keeps_randomness()
    def fit(
        self, data: Data, on_epoch: Callable[[int, dict[str, float]], None] | None = None
    ) -> Self:
        """Train on one graph, whole or in batches of nodes; labels are never read.

        Args:
            data: ``x [N, F]`` and ``edge_index [2, E]``.
            on_epoch: Called with the epoch (from 1) and the mean of every term.
        """
        graph = self.prepare(data)
        batches = NodeBatches(graph, self.config.batch_nodes, self.config.seed)
        self._start(graph)
        optimizer = torch.optim.Adam(
            self.parameter_groups(),
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            fused=True,
        )
        steps, total = count(), self.config.epochs * len(batches)
        optimizer.register_step_post_hook(lambda *_: self.after_step(next(steps) / total))
        self.train()
        self.optimize(batches, optimizer, on_epoch)
        return self.eval()

    def optimize(
        self,
        batches: Iterable[PreparedGraph],
        optimizer: torch.optim.Optimizer,
        on_epoch: Callable[[int, dict[str, float]], None] | None,
    ) -> None:
        """Take the steps of :meth:`fit`."""
        fit(self.loss, batches, optimizer, epochs=self.config.epochs, on_epoch=on_epoch)

    @torch.no_grad()
    def embed(self, data: Data) -> Tensor:
        """Return the embeddings of a graph's nodes, also of one never seen, ``[N, hidden]``.

        The contrast knows directions only, so every row is scaled to length ``sqrt(hidden)``: a
        unit per channel, whatever the scale of the features; a zero row stays zero. PolyGCL leaves
        rows as they are unless told otherwise.

        Raises:
            GraphCLError: If the method was not fitted, or knows another number of features.
        """
        graph = self._prepared(data)
        with evaluating(self):
            return self.embedding(graph)

    def embedding(self, graph: PreparedGraph) -> Tensor:
        """Return what :meth:`embed` does, of a prepared graph, differentiable, in either mode."""
        z = self(graph.x, graph.operator)
        return F.normalize(z, dim=-1) * math.sqrt(z.size(-1))

    def save(self, path: str | Path) -> None:
        """Write configuration and weights to a ``.safetensors`` file.

        Raises:
            GraphCLError: If there are no weights yet.
        """
        self._check_weights()
        header = {"config": asdict(self.config), "in_channels": self.in_channels}
        save_weights(path, self.state_dict(), header)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Inverse of :meth:`save`.

        Raises:
            GraphCLError: If the file is not one of this method.
        """
        weights, header = load_weights(path)
        try:
            method = cls(cls.config_type(**header["config"]))
            method.in_channels = header["in_channels"]
            method.build(method.in_channels)
            method.load_state_dict(weights)
        except (KeyError, TypeError, RuntimeError) as error:
            raise GraphCLError(f"{path}: no saved {cls.__name__}: {error}") from None
        return method.eval()

    def _check_weights(self) -> None:
        if not self.in_channels:
            raise GraphCLError(
                f"{type(self).__name__} has no weights yet; call fit, start or load first"
            )

    def _prepared(self, data: Data) -> PreparedGraph:
        self._check_weights()
        graph = self.prepare(data)
        if graph.x.size(1) != self.in_channels:
            raise GraphCLError(
                f"{type(self).__name__} was fitted on {self.in_channels} features, the graph has "
                f"{graph.x.size(1)}"
            )
        return graph


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Leave out all dropping for a while."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def draw_anchors(num_nodes: int, num_anchors: int) -> Tensor | None:
    """Return the nodes that are contrasted in a step: all (``None``), or a fresh sample."""
    if num_nodes <= num_anchors:
        return None
    return torch.randperm(num_nodes)[:num_anchors]


def grouped(
    method: nn.Module, own: list[nn.Parameter], learning_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Return an optimiser's groups: some parameters with a step size and decay of their own."""
    known = {id(parameter) for parameter in own}
    others = [p for p in method.parameters() if id(p) not in known]
    return [
        {"params": others},
        {"params": own, "lr": learning_rate, "weight_decay": weight_decay},
    ]


def projection_head(channels: int, out_channels: int) -> nn.Sequential:
    """Return GRACE's projection head: the loss sees its output, the user never does."""
    return nn.Sequential(
        nn.Linear(channels, out_channels), nn.ELU(), nn.Linear(out_channels, out_channels)
    )
