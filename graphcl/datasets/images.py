"""Images with classes: the container, its rules, and images of one size."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from graphcl.datasets.validation import check_names, check_unique
from graphcl.errors import DataError

CHANNELS = (1, 3)  # grey, or red, green and blue
_BLOCK = 1024  # images that are floats at a time


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """N images of one size, each with a class; a class may have none.

    Shapes:
        - **name**: what to call the images in a message, usually their file
        - **x**: uint8 ``[N, C, H, W]``, pixels from 0, black, to 255; C is 1 for grey, 3 for RGB
        - **y**: int64 ``[N]``, classes from 0
        - **class_names**: unique names of the classes

    Raises:
        DataError: A rule is broken; the message names the field, the row and the rule.
    """

    name: str
    x: Tensor
    y: Tensor
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        x, y = self.x, self.y
        if x.dtype != torch.uint8 or x.ndim != 4 or x.size(1) not in CHANNELS or not x.numel():
            raise DataError(
                f"{self.name}: x is {x.dtype} of shape {list(x.shape)}, must be torch.uint8 of "
                "shape [N, C, H, W] with C = 1 or 3 and nothing empty"
            )
        if y.dtype != torch.int64 or y.shape != x.shape[:1]:
            raise DataError(
                f"{self.name}: y is {y.dtype} of shape {list(y.shape)}, must be torch.int64 of "
                f"shape [{len(x)}], a class for each of x"
            )
        check_names(self.class_names, f"{self.name}: class_names")
        check_unique(self.class_names, f"{self.name}: class_names")
        check_classes(y, self.num_classes, f"{self.name}: y")

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        channels, height, width = self.x.shape[1:]
        return (
            f"ImageSet({self.name!r}, {len(self)} of {height}x{width} with {channels} channels, "
            f"{self.num_classes} classes)"
        )

    @property
    def num_classes(self) -> int:
        """Number of classes, C."""
        return len(self.class_names)

    def of(self, rows: Tensor) -> Self:
        """Return some of the images, in the order of ``rows``; all classes keep their names."""
        return replace(self, x=self.x[rows], y=self.y[rows])

    def among(self, class_names: Sequence[str]) -> Self:
        """Return the images with their classes counted among other names, found by what they say.

        Classes that are called by their numbers, from 0 on, are places in ``class_names`` unless
        these are numbers, too.

        Raises:
            DataError: An image is of a class that is not among them.
        """
        places = {name: place for place, name in enumerate(class_names)}
        numbers = tuple(map(str, range(self.num_classes)))
        if self.class_names == numbers and not places.keys() & set(numbers):
            places = {number: int(number) for number in numbers[: len(class_names)]}
        for row in self.y.unique().tolist():
            if self.class_names[row] not in places:
                raise DataError(
                    f"{self.name}: there are images of class '{self.class_names[row]}', which is "
                    f"none of {_listed(class_names)}"
                )
        place = torch.tensor([places.get(name, -1) for name in self.class_names])
        return replace(self, y=place[self.y], class_names=tuple(class_names))

    def pixels(self, rows: Tensor) -> Tensor:
        """Return some images as a network reads them, float32 ``[n, C, H, W]`` from -1 to 1."""
        return self.x[rows].float() / 127.5 - 1

    def resized(self, size: int) -> Self:
        """Return the images as squares of ``size`` pixels, see :func:`resize`."""
        return replace(self, x=torch.cat([resize(block, size) for block in self.x.split(_BLOCK)]))


def resize(x: Tensor, size: int) -> Tensor:
    """Return images as squares, by linear interpolation that smooths what it shrinks.

    Args:
        x: uint8 ``[N, C, H, W]``; a square of this size already is returned itself.
        size: Height and width, at least 1.
    """
    if x.shape[2:] == (size, size):
        return x
    scaled = F.interpolate(x.float(), (size, size), mode="bilinear", antialias=True)
    return scaled.round().clamp(0, 255).to(torch.uint8)


def join_images(sets: Sequence[ImageSet], name: str) -> ImageSet:
    """Return the images of several sets, one set after the other.

    Args:
        sets: At least one.
        name: What to call all of them.

    Raises:
        DataError: They differ in their classes, sizes or channels.
    """
    first = sets[0]
    for other in sets[1:]:
        if other.class_names != first.class_names:
            raise DataError(
                f"{other.name}: the classes are {_listed(other.class_names)}, but those of "
                f"{first.name} are {_listed(first.class_names)}: give both the same, in one order"
            )
        if other.x.shape[1:] != first.x.shape[1:]:
            shapes = [list(one.x.shape[1:]) for one in (other, first)]
            raise DataError(
                f"{other.name}: an image is {shapes[0]} as [C, H, W], but those of {first.name} "
                f"are {shapes[1]}: ask for one size, and make all grey or all coloured"
            )
    if len(sets) == 1:
        return replace(first, name=name)
    x, y = (torch.cat([getattr(one, field) for one in sets]) for field in ("x", "y"))
    return ImageSet(name, x, y, first.class_names)


def check_classes(y: Tensor, num_classes: int, field: str) -> None:
    """Check that class ids are those of the classes there are.

    Args:
        y: Integers ``[N]``.
        num_classes: C.
        field: What they are called in a message, with their file.

    Raises:
        DataError: Names the row and the value of the first that is not.
    """
    bad = ((y < 0) | (y >= num_classes)).nonzero().flatten()
    if len(bad):
        row = int(bad[0])
        raise DataError(
            f"{field}[{row}] is {int(y[row])} ({len(bad)} such), but the {num_classes} classes are "
            f"0 to {num_classes - 1}: number them from 0"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(islice(names, 12)) + (", ..." if len(names) > 12 else "")
