"""A node classifier in three parts: encoder, optional projector, linear head."""

from typing import NamedTuple

from torch import Tensor, nn

from graphcl.nodes.encoders import NodeEncoder, Operator


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

    def forward(self, x: Tensor, edge_index: Operator) -> NodeOutput:
        """Embed and classify every node."""
        embedding = self.projector(self.encoder(x, edge_index))
        return NodeOutput(embedding, self.head(embedding))
