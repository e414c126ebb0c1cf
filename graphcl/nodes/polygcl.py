"""PolyGCL: a low- and a high-pass filter against shuffled features (Chen et al., ICLR 2024).

From the paper and its code: two polynomial filters that stay monotone and share one linear map,
the mean of both channels as summary, a bilinear discriminator that tells each channel's nodes from
those of shuffled features, both channels added with two learned weights, and training that ends
where its loss no longer falls.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from graphcl.nodes.batch_norm import BatchNorm
from graphcl.nodes.features import Features, RowNorm, dense, drop
from graphcl.nodes.method import MethodConfig, NodeMethod, grouped
from graphcl.nodes.prepared import PreparedGraph
from graphcl.spectral import MonotoneFilters, SymmetricOperator
from graphcl.training import fit_best


@dataclass(frozen=True)
class PolyGCLConfig(MethodConfig):
    """Hyper-parameters of :class:`PolyGCL`; see also :class:`graphcl.nodes.ASPECTConfig`.

    Attributes:
        drop_features: Probability of dropping a feature before the filters.
        dropout: The same after the filters, before the linear map.
        batch_norm: Whether the filtered features are normalised.
        activation: After the linear map.
        filter_weight_decay: Of the filters and of the channels' weights.
        epochs: At most.
        patience: Epochs without a smaller loss until training ends; what is kept is the best.
        unit_rows: Whether embeddings are scaled to one length, as those of the other methods are.
    """

    hidden_channels: int = 512
    order: int = 10
    row_norm: RowNorm = "l1"
    drop_features: float = 0.5
    dropout: float = 0.5
    batch_norm: bool = False
    activation: Literal["relu", "prelu"] = "relu"
    batch_nodes: int = 0
    learning_rate: float = 1e-3
    filter_learning_rate: float = 1e-2
    weight_decay: float = 0.0
    filter_weight_decay: float = 0.0
    epochs: int = 500
    patience: int = 20
    unit_rows: bool = False
    seed: int = 0


class PolyGCL(NodeMethod):
    """Two monotone filters and a linear map, trained to tell a graph from its shuffled copy.

    Args:
        config: See :class:`PolyGCLConfig`.
    """

    config_type: ClassVar[type] = PolyGCLConfig
    config: PolyGCLConfig

    def __init__(self, config: PolyGCLConfig = PolyGCLConfig()):
        super().__init__(config)

    def build(self, in_channels: int) -> None:
        config, width = self.config, self.config.hidden_channels
        self.filters = MonotoneFilters(config.order, "compat")
        self.norm = BatchNorm(in_channels, momentum=0.01) if config.batch_norm else nn.Identity()
        self.linear = nn.Linear(in_channels, width)
        self.activation = nn.PReLU() if config.activation == "prelu" else nn.ReLU()
        self.discriminator = nn.Bilinear(width, width, 1)
        self.shares = nn.Parameter(torch.full((2,), 0.5))  # of low and high

    def channels(self, x: Features, operator: SymmetricOperator) -> tuple[Tensor, Tensor]:
        """Return the low- and the high-frequency embedding of all nodes, ``[N, hidden]`` each."""
        config = self.config
        # Each channel drops features of its own.
        dropped = [dense(drop(x, config.drop_features, self.training)) for _ in range(2)]
        low, high = (
            self.activation(self.linear(self.norm(F.dropout(part, config.dropout, self.training))))
            for part in self.filters(operator, *dropped)
        )
        return low, high

    def forward(self, x: Features, operator: SymmetricOperator) -> Tensor:
        return self._add(*self.channels(x, operator))

    def embedding(self, graph: PreparedGraph) -> Tensor:
        return super().embedding(graph) if self.config.unit_rows else self(graph.x, graph.operator)

    def loss(self, graph: PreparedGraph) -> dict[str, Tensor]:
        real = self.channels(graph.x, graph.operator)
        false = self.channels(graph.x[torch.randperm(len(graph.x))], graph.operator)
        summary = self._add(*real).mean(0).relu()
        # What nn.Bilinear computes, without a copy of the summary per node.
        direction = self.discriminator.weight[0] @ summary
        scores = [torch.cat(part) @ direction + self.discriminator.bias for part in (real, false)]
        missed = F.softplus(-scores[0]).mean() + F.softplus(scores[1]).mean()
        return {"discrimination": missed / 2}

    def parameter_groups(self) -> list[dict[str, Any]]:
        rate, decay = self.config.filter_learning_rate, self.config.filter_weight_decay
        return grouped(self, [*self.filters.parameters(), self.shares], rate, decay)

    def optimize(
        self,
        batches: Iterable[PreparedGraph],
        optimizer: torch.optim.Optimizer,
        on_epoch: Callable[[int, dict[str, float]], None] | None,
    ) -> None:
        config = self.config
        fit_best(
            self,
            self.loss,
            batches,
            optimizer,
            epochs=config.epochs,
            patience=config.patience,
            on_epoch=on_epoch,
        )

    def _add(self, low: Tensor, high: Tensor) -> Tensor:
        return self.shares[0] * low + self.shares[1] * high
