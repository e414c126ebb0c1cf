"""Compressed pictures as pixels."""

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from graphcl.datasets.images import resize
from graphcl.errors import DataError

# What Pillow raises of files that are broken, cut short, or far larger than any picture.
_UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def decode(
    pictures: Iterable[tuple[str, Path | bytes]], count: int, size: int | None = None
) -> Tensor:
    """Decode JPEG or PNG pictures, uint8 ``[count, C, H, W]``.

    C is 1 where all pictures are grey, else 3, with the grey ones among them in three equal ones.

    Args:
        pictures: What to call each in a message, and its file or its bytes.
        count: How many there are, at least 1.
        size: Height and width of the result; None where all have one size that stays.

    Raises:
        DataError: One cannot be read, or has another size than the first.
    """
    x, grey = torch.empty(0, dtype=torch.uint8), True
    for row, (name, picture) in enumerate(pictures):
        pixels = _pixels(name, picture)
        grey &= pixels.size(0) == 1
        if size is not None:
            pixels = resize(pixels[None], size)[0]
        if row == 0:
            x = torch.empty(count, 3, *pixels.shape[1:], dtype=torch.uint8)
        if pixels.shape[1:] != x.shape[2:]:
            raise DataError(
                f"{name}: is {_by(pixels)}, but the first picture is {_by(x)}: ask for one size, "
                "to which all are brought"
            )
        x[row] = pixels
    return x[:, :1].contiguous() if grey else x


def _pixels(name: str, picture: Path | bytes) -> Tensor:
    """Return one picture, uint8 ``[1 or 3, H, W]``."""
    try:
        with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as image:
            array = np.array(image if image.mode == "L" else image.convert("RGB"))
    except _UNREADABLE as error:
        raise DataError(f"{name}: not a readable picture ({error})") from error
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


def _by(pixels: Tensor) -> str:
    height, width = pixels.shape[-2:]
    return f"{height}x{width}"
