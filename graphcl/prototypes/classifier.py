"""A classifier in three parts: encoder, optional projector, linear head."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from torch import Tensor, nn

from graphcl.errors import GraphCLError
from graphcl.prototypes.dual_branch import projector_header, projector_of
from graphcl.prototypes.nearest import NearestPrototype
from graphcl.training.checkpoints import load_weights, save_weights


class ClassifierOutput(NamedTuple):
    """What a classifier says about each sample."""

    embedding: Tensor  # [N, embedding_channels], what prototypes are made of
    logits: Tensor  # [N, num_classes]


class Classifier(nn.Module, ABC):
    """Encoder, projector and linear head; the head reads the projected embedding.

    Args:
        encoder: Embeds the samples; its ``arguments`` build it again.
        embedding_channels: Width of the (projected) embedding.
        num_classes: Number of classes.
        projector: Maps an embedding to one of the same width; the identity by default.

    Attributes:
        encoder_class: What encoders are of.
        prototypes: Set, it decides in place of the head what :meth:`predict` returns.
    """

    encoder_class: ClassVar[type[Any]]

    def __init__(
        self,
        encoder: Any,
        embedding_channels: int,
        num_classes: int,
        projector: nn.Module | None = None,
    ):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(embedding_channels, num_classes)
        self.projector = nn.Identity() if projector is None else projector
        self.prototypes: NearestPrototype | None = None

    @abstractmethod
    def forward(self, *inputs: Any) -> ClassifierOutput:
        """Embed and classify every sample."""

    @abstractmethod
    def predict(self, data: Any) -> Tensor:
        """Return the class of every sample, int64 ``[N]``: what :meth:`decide` says."""

    def classified(self, encoded: Tensor) -> ClassifierOutput:
        """Project and classify what the encoder returned."""
        embedding = self.projector(encoded)
        return ClassifierOutput(embedding, self.head(embedding))

    def decide(self, out: ClassifierOutput) -> Tensor:
        """Return classes by the nearest of :attr:`prototypes` if there are some, or by the head."""
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
            GraphCLError: If the file is not one of such a classifier.
        """
        weights, header = load_weights(path)
        try:
            model = cls(
                cls.encoder_class(**header["encoder"]),
                header["embedding_channels"],
                header["num_classes"],
                projector_of(header["projector"]),
            )
            if "prototypes" in header:
                held = (weights[f"prototypes.{name}"] for name in ("values", "known"))
                model.prototypes = NearestPrototype(*held, **header["prototypes"])
            model.load_state_dict(weights)
        except (KeyError, TypeError, ValueError, RuntimeError, GraphCLError) as error:
            raise GraphCLError(f"{path}: no saved {cls.__name__}: {error}") from None
        return model.eval()
