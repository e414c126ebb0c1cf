"""FAERec: items' own vectors fused and aligned with those of their texts (Wei et al., SIGIR 2026).

From the paper (arXiv 2604.03688) and the authors' code: the mapper of frozen text embeddings, the
gate that mixes both vectors of an item channel by channel, one position for both of them, the first
vectors from the principal components of the texts, both alignments and their curriculum.

Completed: the encoder from SASRec, one of the three in the code. Ours, where the code has something
else:

- Training and ranking read the same vectors of items, own plus mapped text. The code trains on the
  own vectors alone and ranks by normalised sums. After two epochs on Amazon Beauty (attributes for
  texts, one seed, learning rate 1e-3) the NDCG@10 of validation events was 0.024 to 0.026 so, 0.022
  as in the code, 0.021 with normalised sums in both places and 0.020 with own vectors alone.
- The softmax of every recommender here stands for one negative per position. The code drew that
  one outside of the user's whole sequence, held-out events included; here nothing held out is read.
- The alignments read the items of a batch and, as the code does by way of its negatives, as many
  drawn at random; at most 2,048 of both, for the memory of the item level grows with their square.
- The first vectors have the deviation of other tables, 0.02; with that of the components, as in the
  code, the same figure was 0.019, and 0.023 with vectors drawn at random. What widths exceed the
  components is drawn. Only items enter the components, not the two rows of zeros around them.
- The softmax does not train the own vector of an item that nobody took in training: as a target it
  never comes, so that it would only be pushed away. The alignment with its text trains it alone.
- Popularity is counted in the training events alone and is 0, not 1, for an item nobody took.
- What a user has seen is left out of the ranking, not scored 0, and there is no second padding.
"""

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from graphcl.datasets import Interactions
from graphcl.errors import DataError, check_fields
from graphcl.recommend.alignment import curriculum, feature_alignment, item_alignment
from graphcl.recommend.baselines import SequenceRecommender
from graphcl.recommend.dropout import Dropout
from graphcl.recommend.encoders import CausalLayers
from graphcl.recommend.recommender import RecommenderConfig
from graphcl.recommend.sequences import Sequences

_ALIGNED = 2048  # items of a batch at most


@dataclass(frozen=True)
class FAERecConfig(RecommenderConfig):
    """Hyper-parameters of :class:`FAERec`, by default those of the authors' code for Beauty.

    Attributes:
        dropout: In the encoder and of both vectors that the gate mixes.
        mapper_dropout: In the mapper from texts to items.
        gate_dropout: In the gate.
        temperature: Of the alignment of items.
        redundancy: Of the alignment of features, the weight of correlations between different ones.
        align_weight: Of both alignments together.
        period: Epochs in which the weight between both goes to and fro.
        floor: Least share of the alignment of items; where users are few and take much, 0.3.
    """

    dropout: float = 0.4
    mapper_dropout: float = 0.3
    gate_dropout: float = 0.1
    temperature: float = 0.05
    redundancy: float = 0.005
    align_weight: float = 0.2
    period: int = 30
    floor: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        share = "at least 0 and below 1"
        check_fields(self, ("mapper_dropout", "gate_dropout"), lambda v: 0 <= v < 1, share)
        check_fields(self, ("temperature",), lambda v: v > 0, "above 0")
        check_fields(self, ("redundancy", "align_weight"), lambda v: v >= 0, "at least 0")
        check_fields(self, ("period",), lambda v: v >= 1, "at least 1")
        check_fields(self, ("floor",), lambda v: 0 <= v <= 1, "0 to 1")


class FAERec(SequenceRecommender):
    """Self-attention over items that are what users do with them and what is written of them.

    The interactions need ``text``, from any model of language or from
    :func:`graphcl.datasets.embed_texts`. With e an item's own vector, g(m) that of its text and p a
    position, the encoder reads ``LayerNorm(z a + (1 - z) b)``, where ``a = e + p``, ``b = g(m) +
    p`` and z, in (0, 1) for each channel, is what the gate says of both; ``e + g(m)`` is ranked by.
    Another encoder with the contract of :mod:`graphcl.recommend.encoders` comes from
    :meth:`build_encoder`.

    Source:
        Wei et al., arXiv 2604.03688; see the head of this file for what is ours.
    """

    config_type: ClassVar[type] = FAERecConfig
    config: FAERecConfig
    text: Tensor  # [num_items + 1, D], frozen
    epochs_begun: Tensor

    def features(self, interactions: Interactions) -> dict[str, Tensor]:
        if interactions.text is None:
            raise DataError(
                f"{interactions.name}: the items have no text, which FAERec reads: call "
                "embed_texts(interactions), or set it with dataclasses.replace; in a recommend "
                'file, set recommend.text = "tfidf" and recommend.items to a table with titles; a '
                "federation reads .npz archives that hold text"
            )
        return {"text": interactions.text}

    def build(self, features: dict[str, Tensor]) -> None:
        super().build(features)
        config, width = self.config, self.config.hidden_channels
        channels = self.text.size(1)
        inner = max(1, channels // 2)
        self.mapper = _perceptron(channels, inner, width, config.mapper_dropout)
        self.gate = Gate(width, config.gate_dropout)
        self.position = nn.Parameter(torch.empty(config.length, width))
        nn.init.normal_(self.position, std=0.02)
        self.norm = nn.LayerNorm(width)
        self.dropout = Dropout(config.dropout)
        # Part of the state, as it must be after a run is resumed; a mean over clients is a float.
        self.register_buffer("epochs_begun", torch.zeros(()))

    def build_encoder(self) -> nn.Module:
        return CausalLayers(self.config.hidden_channels, self.config.dropout)

    def start(self, interactions: Interactions) -> Self:
        super().start(interactions)
        text = self.text[1:]
        if (text != text[:1]).any():  # else, as at a server that knows no text, all is drawn
            components = _components(text, self.config.hidden_channels)
            with torch.no_grad():
                self.item.weight[1:, : components.size(1)] = components
        return self

    def begin_epoch(self) -> None:
        self.epochs_begun += 1

    def item_vectors(self, items: Tensor | None = None) -> Tensor:
        if items is None:
            items = torch.arange(self.num_items + 1, device=self.count.device)
        own, taken = self.item(items), self.count[items, None] > 0
        text = self.mapper(self.text[items])
        # Padding has no text.
        return torch.where(taken, own, own.detach()) + text * (items > 0)[:, None]

    def inputs(self, item: Tensor) -> Tensor:
        items, place = item.unique(return_inverse=True)
        position = self.position[-item.size(1) :]
        own = self.dropout(self.item(item) + position)
        text = self.dropout(self.mapper(self.text[items])[place] + position)
        return self.norm(self.gate(own, text))

    def loss(self, batch: Sequences) -> dict[str, Tensor]:
        config = self.config
        item = self._aligned(batch)
        own, text = self.item(item), self.mapper(self.text[item])
        epoch = max(0, int(self.epochs_begun) - 1)
        share = curriculum(epoch, config.period, config.floor)
        items = item_alignment(own, text, item, config.temperature)
        channels = feature_alignment(own, text, self.count[item], config.redundancy)
        return {
            **super().loss(batch),
            "item": config.align_weight * share * items,
            "feature": config.align_weight * (1 - share) * channels,
        }

    def _aligned(self, batch: Sequences) -> Tensor:
        """Return items of a batch and as many of the catalogue, int64 ``[n]``, with repetitions."""
        read = batch.item[batch.mask]
        drawn = torch.randint(1, self.num_items + 1, read.shape).to(read.device)
        both = torch.cat([read, drawn])
        return both[torch.randperm(len(both))[:_ALIGNED].to(both.device)]


class Gate(nn.Module):
    """Mixes two vectors channel by channel, in shares that both of them decide.

    Args:
        channels: D.
        dropout: In the hidden layer.

    Source:
        FAERec (arXiv 2604.03688), as its code has it.
    """

    def __init__(self, channels: int, dropout: float):
        super().__init__()
        self.share = _perceptron(2 * channels, 2 * channels, channels, dropout)
        nn.init.zeros_(self.share.get_parameter("3.bias"))  # at first, half of each

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Return the mixture of two ``[..., D]``."""
        share = self.share(torch.cat([one, other], dim=-1)).sigmoid()
        return share * one + (1 - share) * other


def _perceptron(channels: int, hidden: int, out: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(channels, hidden), nn.GELU(), Dropout(dropout), nn.Linear(hidden, out)
    )


def _components(text: Tensor, channels: int) -> Tensor:
    """Return the first principal components of unlike texts with a deviation of 0.02 in all."""
    from sklearn.decomposition import PCA

    pca = PCA(min(channels, *text.shape), svd_solver="covariance_eigh")
    with threadpool_limits(1):  # their number decides the order of sums
        components = torch.from_numpy(pca.fit_transform(text.cpu().numpy()))
    deviation = components.std(correction=0).clamp(min=torch.finfo(components.dtype).tiny)
    return components * (0.02 / deviation)
