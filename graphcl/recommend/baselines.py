"""What a recommender has to beat: popularity, a recurrent network and self-attention."""

import torch
from torch import Tensor, nn

from graphcl.recommend.encoders import GRUEncoder, TransformerEncoder
from graphcl.recommend.recommender import Recommender
from graphcl.recommend.sequences import Sequences


class SequenceRecommender(Recommender):
    """A table of items and an encoder that reads their vectors."""

    item: nn.Embedding
    encoder: nn.Module

    def build(self, features: dict[str, Tensor]) -> None:
        self.item = item_table(self.num_items, self.config.hidden_channels)
        self.encoder = self.build_encoder()

    def build_encoder(self) -> nn.Module:
        """Return an encoder as :mod:`graphcl.recommend.encoders` describes it."""
        raise NotImplementedError

    def item_vectors(self, items: Tensor | None = None) -> Tensor:
        return self.item.weight if items is None else self.item(items)

    def states(self, batch: Sequences, last: bool = False) -> Tensor:
        states: Tensor = self.encoder(self.inputs(batch.item), batch.mask, last)
        return states

    def inputs(self, item: Tensor) -> Tensor:
        """Return what the encoder reads, int64 ``[B, T]`` to ``[B, T, D]``."""
        vectors: Tensor = self.item(item)
        return vectors


class SASRec(SequenceRecommender):
    """Self-attention over the sequence, trained with cross-entropy over the catalogue.

    Source:
        Kang and McAuley, ICDM 2018; the loss as Klenitskiy and Vasilev, RecSys 2023, have it, with
        which it is a far stronger baseline than with one negative per position.
    """

    def build_encoder(self) -> nn.Module:
        config = self.config
        return TransformerEncoder(config.hidden_channels, config.length, config.dropout)


class GRU4Rec(SequenceRecommender):
    """A gated recurrent network over the sequence, with the same loss.

    Source:
        Hidasi et al., ICLR 2016.
    """

    def build_encoder(self) -> nn.Module:
        return GRUEncoder(self.config.hidden_channels, self.config.dropout)


def item_table(num_items: int, channels: int) -> nn.Embedding:
    """Return a trainable table of items; row 0, padding's, is zero and stays so."""
    table = nn.Embedding(num_items + 1, channels, padding_idx=0)
    nn.init.normal_(table.weight, std=0.02)
    with torch.no_grad():
        table.weight[0] = 0
    return table
