"""Images on disk: our npz format, those of known data sets, and the way to each.

The npz format, which a site can write with ``numpy.savez``:

- ``x``: pixels, uint8 ``[N, H, W]`` of grey images or ``[N, H, W, C]`` with C = 1 or 3
- ``y``: classes from 0, integer ``[N]``
- ``classes``: names of the classes, text ``[C]``; without it they are called by their numbers

In place of ``x`` and ``y`` there may be parts, ``train_x``, ``train_y``, ``test_x`` and ``test_y``,
which are put one after the other: how images are split is up to who trains on them. In place of
the pixels of a part there may be pictures as JPEG or PNG, image i in the bytes from ``offsets[i]``
to ``offsets[i + 1]`` of ``jpeg``, with its class in ``labels[i]``; of a part ``train_jpeg``,
``train_offsets``, ``train_labels``. No array may be a pickle.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from graphcl.datasets.arrays import as_integers, as_names, read_arrays, write_arrays
from graphcl.datasets.image_decoding import decode
from graphcl.datasets.image_folders import load_folder
from graphcl.datasets.images import CHANNELS, ImageSet, check_classes, join_images
from graphcl.datasets.sources import locate
from graphcl.datasets.validation import check_every_class
from graphcl.errors import DataError

_PARTS = ("", "train_", "test_")
_FIELDS = ("x", "y", "jpeg", "offsets", "labels")


def load_images(
    source: str | Path,
    *,
    size: int | None = None,
    classes: Sequence[str] = (),
    root: str | Path | None = None,
) -> ImageSet:
    """Load images, those to train and those to test on one after the other.

    Args:
        source: ``"digits"``, scikit-learn's 1,797 of 8x8 pixels (Alpaydin and Kaynak, UCI, 1998);
            or the path of an npz file, as this module describes it, or of a folder with the files
            of CIFAR-10 or CIFAR-100 in their binary version, of Flowers102 or of Tiny-ImageNet, as
            :mod:`graphcl.datasets.image_folders` does. A relative path is looked up in the working
            directory first and then under ``root``.
        size: Height and width to bring the images to; None leaves them as they are.
        classes: Names of all classes there are, of which the source may lack some and have the
            others in another order, see :meth:`ImageSet.among`; without, the source's own.
        root: The folder of data sets; without it, the folder that the environment variable
            ``GRAPHCL_DATA`` names.

    Raises:
        DataError: The source is not found, or breaks a rule.
    """
    if str(source) == "digits":
        images = _digits()
    else:
        place = locate(source, root)
        if place.is_dir():
            images = load_folder(place, size)
        else:
            images = _load_npz(place, size, len(classes))
    if classes:
        images = images.among(classes)
    return images if size is None else images.resized(size)


def save_images(images: ImageSet, path: str | Path) -> None:
    """Write images as the npz file that :func:`load_images` reads."""
    x = images.x.permute(0, 2, 3, 1).numpy()
    names = np.array(images.class_names)
    write_arrays(path, {"x": x, "y": images.y.numpy(), "classes": names})


def _digits() -> ImageSet:
    # Imported here: scikit-learn takes most of a second, which every other data set would wait for.
    from sklearn.datasets import load_digits

    grey, digit = load_digits(return_X_y=True)  # from 0 to 16
    x = torch.as_tensor(grey.reshape(-1, 1, 8, 8) * 255 / 16).round().to(torch.uint8)
    return ImageSet("digits", x, torch.as_tensor(digit), tuple(map(str, range(10))))


def _load_npz(path: Path, size: int | None, num_classes: int) -> ImageSet:
    """Load an archive; of a given number of classes, unless 0, it may lack any."""
    wanted = [part + field for part in _PARTS for field in _FIELDS]
    arrays, found = read_arrays(path, [*wanted, "classes"])
    parts = [p for p in _PARTS if f"{p}x" in arrays or f"{p}jpeg" in arrays]
    if not parts:
        raise DataError(
            f"{path}: has no images, only {', '.join(found) or 'nothing'}: write x and y, or "
            "train_x, train_y, test_x and test_y"
        )
    labels = {part: _labels(arrays, part, path) for part in parts}
    if "classes" in arrays:
        names = as_names(arrays["classes"], f"{path}: classes")
    else:
        if not num_classes:
            check_every_class([y.clamp(min=0) for y in labels.values()], str(path))
            num_classes = max(int(y.max()) for y in labels.values()) + 1
        names = tuple(map(str, range(num_classes)))
    sets = []
    for part, y in labels.items():
        check_classes(y, len(names), f"{path}: {_label_field(arrays, part)}")
        x = (
            _packed(arrays, part, path, size)
            if f"{part}jpeg" in arrays
            else _plain(arrays, part, path)
        )
        if len(x) != len(y):
            raise DataError(
                f"{path}: {_label_field(arrays, part)} has {len(y)} entries for {len(x)} images"
            )
        sets.append(ImageSet(f"{path}: {part or 'x'}", x, y, names))
    return join_images(sets, str(path))


def _label_field(arrays: dict[str, np.ndarray], part: str) -> str:
    return f"{part}labels" if f"{part}jpeg" in arrays else f"{part}y"


def _labels(arrays: dict[str, np.ndarray], part: str, path: Path) -> Tensor:
    field = _label_field(arrays, part)
    if field not in arrays:
        raise DataError(f"{path}: {field} is missing: give each image its class")
    y = as_integers(arrays[field], f"{path}: {field}")
    if y.ndim != 1 or not len(y):
        raise DataError(f"{path}: {field} has shape {list(y.shape)}, must be [N], not empty")
    return torch.from_numpy(y)


def _plain(arrays: dict[str, np.ndarray], part: str, path: Path) -> Tensor:
    x = arrays[f"{part}x"]
    grey = x[..., None] if x.ndim == 3 else x
    if x.dtype != np.uint8 or grey.ndim != 4 or grey.shape[3] not in CHANNELS or not x.size:
        raise DataError(
            f"{path}: {part}x is {x.dtype} of shape {list(x.shape)}, must be uint8 of shape "
            "[N, H, W] or [N, H, W, C] with C = 1 or 3 and nothing empty"
        )
    return torch.from_numpy(np.ascontiguousarray(grey.transpose(0, 3, 1, 2)))


def _packed(arrays: dict[str, np.ndarray], part: str, path: Path, size: int | None) -> Tensor:
    """Decode the pictures of a part."""
    packed, field = arrays[f"{part}jpeg"], f"{path}: {part}offsets"
    if packed.dtype != np.uint8 or packed.ndim != 1:
        raise DataError(
            f"{path}: {part}jpeg is {packed.dtype} of shape {list(packed.shape)}, must be bytes: "
            "uint8 of one axis"
        )
    if f"{part}offsets" not in arrays:
        raise DataError(f"{field} is missing: say where each picture of {part}jpeg begins")
    offsets = as_integers(arrays[f"{part}offsets"], field)
    if offsets.ndim != 1 or len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != len(packed):
        raise DataError(
            f"{field} has shape {list(offsets.shape)}, must be [N + 1] from 0 to {len(packed)}, "
            f"the length of {part}jpeg"
        )
    back = np.flatnonzero(np.diff(offsets) <= 0)
    if len(back):
        row = int(back[0]) + 1
        raise DataError(
            f"{field}[{row}] is {offsets[row]}, not above the one before: sort them, no picture "
            "is empty"
        )
    pictures = (
        (f"{path}: {part}jpeg[{row}]", packed[start:end].tobytes())
        for row, (start, end) in enumerate(pairwise(offsets))
    )
    return decode(pictures, len(offsets) - 1, size)
