"""A node classifier in three parts: encoder, optional projector, linear head."""

from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from graphcl.contrast.dual_branch import projector_header, projector_of
from graphcl.errors import GraphCLError
from graphcl.nodes.encoders import NodeEncoder, Operator
from graphcl.nodes.nearest import NearestPrototype
from graphcl.training.checkpoints import load_weights, save_weights


class NodeOutput(NamedTuple):
    """What a classifier says about each node."""

    embedding: Tensor  # [num_nodes, embedding_channels], what prototypes are made of
    logits: Tensor  # [num_nodes, num_classes]


class NodeClassifier(nn.Module):
    """Encoder, projector and linear head; the head reads the projected embedding.

    Args:
        encoder: Embeds the nodes.
        embedding_channels: Width of the (projected) embedding.
        num_classes: Number of classes.
        projector: Maps an embedding to one of the same width; the identity by default.

    Attributes:
        prototypes: Set, it decides in place of the head what :meth:`predict` returns.

    Shapes:
        - **x**: ``[num_nodes, in_channels]``, **edge_index**: ``[2, num_edges]`` or an operator
        - **output**: ``embedding [num_nodes, embedding_channels]``, ``logits [num_nodes, C]``
    """

    def __init__(
        self,
        encoder: NodeEncoder,
        embedding_channels: int,
        num_classes: int,
        projector: nn.Module | None = None,
    ):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(embedding_channels, num_classes)
        self.projector = nn.Identity() if projector is None else projector
        self.prototypes: NearestPrototype | None = None

    def forward(self, x: Tensor, edge_index: Operator) -> NodeOutput:
        """Embed and classify every node."""
        embedding = self.projector(self.encoder(x, edge_index))
        return NodeOutput(embedding, self.head(embedding))

    @torch.no_grad()
    def predict(self, data: Data) -> Tensor:
        """Return the class of every node of a graph, also of one never seen, int64 ``[N]``.

        By the nearest of :attr:`prototypes` where there are some, else by the head.

        Raises:
            GraphCLError: The graph has another number of features.
        """
        if data.num_features != self.encoder.arguments["in_channels"]:
            raise GraphCLError(
                f"{type(self).__name__} was trained on {self.encoder.arguments['in_channels']} "
                f"features, the graph has {data.num_features}"
            )
        out = self.eval()(data.x, data.edge_index)
        return out.logits.argmax(-1) if self.prototypes is None else self.prototypes(out.embedding)

    def save(self, path: str | Path) -> None:
        """Write arguments and weights to a ``.safetensors`` file.

        Raises:
            GraphCLError: The projector is of a kind that :meth:`load` could not build.
        """
        header: dict[str, Any] = {
            "encoder": self.encoder.arguments,
            "embedding_channels": self.head.in_features,
            "num_classes": self.head.out_features,
            "projector": projector_header(self.projector),
        }
        if self.prototypes is not None:
            keys = ("fidelity", "temperature", "fuse")
            header["prototypes"] = {key: getattr(self.prototypes, key) for key in keys}
        save_weights(path, self.state_dict(), header)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Inverse of :meth:`save`.

        Raises:
            GraphCLError: If the file is not one of a classifier.
        """
        weights, header = load_weights(path)
        try:
            model = cls(
                NodeEncoder(**header["encoder"]),
                header["embedding_channels"],
                header["num_classes"],
                projector_of(header["projector"]),
            )
            if "prototypes" in header:
                held = (weights[f"prototypes.{name}"] for name in ("values", "known"))
                model.prototypes = NearestPrototype(*held, **header["prototypes"])
            model.load_state_dict(weights)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise GraphCLError(f"{path}: no saved {cls.__name__}: {error}") from None
        return model.eval()
