"""A classifier of nodes."""

from typing import ClassVar

import torch
from torch import Tensor
from torch_geometric.data import Data

from graphcl.errors import GraphCLError
from graphcl.nodes.encoders import NodeEncoder, Operator
from graphcl.prototypes import Classifier, ClassifierOutput


class NodeClassifier(Classifier):
    """Classifies the nodes of a graph, see :class:`~graphcl.prototypes.Classifier`.

    Shapes:
        - **x**: ``[num_nodes, in_channels]``, **edge_index**: ``[2, num_edges]`` or an operator
        - **output**: ``embedding [num_nodes, embedding_channels]``, ``logits [num_nodes, C]``
    """

    encoder_class: ClassVar[type[NodeEncoder]] = NodeEncoder
    encoder: NodeEncoder

    def forward(self, x: Tensor, edge_index: Operator) -> ClassifierOutput:
        """Embed and classify every node."""
        return self.classified(self.encoder(x, edge_index))

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
        return self.decide(self.eval()(data.x, data.edge_index))
