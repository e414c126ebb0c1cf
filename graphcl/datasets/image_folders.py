"""Public image data sets as their makers ship them, in a folder each.

- **CIFAR-100, binary version**: ``train.bin`` and ``test.bin``, and, for the names,
  ``fine_label_names.txt``; the classes are the 100 fine ones (Krizhevsky, 2009)
- **CIFAR-10, binary version**: ``data_batch_1.bin`` to ``data_batch_5.bin``, ``test_batch.bin``,
  and, for the names, ``batches.meta.txt``
- **Flowers102**: ``jpg/*.jpg`` and ``imagelabels.mat``; the pictures differ in size, so that one
  must be asked for (Nilsback and Zisserman, 2008)
- **Tiny-ImageNet**, or pictures of one's own: a folder ``train`` with a folder for each class,
  whose pictures lie in it at any depth; nothing beside ``train`` is read, since Tiny-ImageNet's own
  test images have no classes
"""

from pathlib import Path

import numpy as np
import scipy.io
import torch
from scipy.io.matlab import MatReadError

from graphcl.datasets.image_decoding import decode
from graphcl.datasets.images import ImageSet, check_classes
from graphcl.errors import DataError

_CIFAR_SHAPE = (3, 32, 32)
# What scipy raises of other files, and of the MATLAB files of version 7.3, which are HDF5.
_UNREADABLE = (KeyError, ValueError, TypeError, OSError, NotImplementedError, MatReadError)
_PICTURES = (".jpg", ".jpeg", ".png")


def load_folder(folder: Path, size: int | None = None) -> ImageSet:
    """Load the images of a folder, whose data set is told by its files.

    Args:
        folder: It exists.
        size: Height and width that pictures are brought to while they are read; None leaves them.

    Raises:
        DataError: The files are of no known data set, or break its rules.
    """
    if (folder / "train.bin").exists():
        files = [folder / "train.bin", folder / "test.bin"]
        return _cifar(files, 2, 100, folder / "fine_label_names.txt")
    if (folder / "data_batch_1.bin").exists():
        files = [*sorted(folder.glob("data_batch_*.bin")), folder / "test_batch.bin"]
        return _cifar(files, 1, 10, folder / "batches.meta.txt")
    if (folder / "imagelabels.mat").exists():
        return _flowers(folder, size)
    if (folder / "train").is_dir():
        return _class_folders(folder / "train", size)
    raise DataError(
        f"{folder}: no known images: name an .npz file, or a folder with train.bin (CIFAR-100), "
        "data_batch_1.bin (CIFAR-10), imagelabels.mat (Flowers102), or train with a folder for "
        "each class (Tiny-ImageNet)"
    )


def _cifar(files: list[Path], label_bytes: int, num_classes: int, names: Path) -> ImageSet:
    """Read records of class bytes, of which the last counts, and then the pixels."""
    parts = [_records(file, label_bytes, num_classes) for file in files]
    x, y = (torch.cat(fields) for fields in zip(*parts, strict=True))
    known = tuple(map(str, range(num_classes)))
    if names.exists():
        known = tuple(names.read_text(encoding="utf-8").split())
        if len(known) != num_classes:
            raise DataError(f"{names}: holds {len(known)} names, must be {num_classes}")
    return ImageSet(str(files[0].parent), x, y, known)


def _records(file: Path, label_bytes: int, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pixels and the classes of one file."""
    if not file.exists():
        raise DataError(f"{file}: not found: put all files of the data set into one folder")
    length = label_bytes + int(np.prod(_CIFAR_SHAPE))
    raw = np.fromfile(file, dtype=np.uint8)
    if not len(raw) or len(raw) % length:
        raise DataError(
            f"{file}: holds {len(raw)} bytes, must be records of {length}: the file is cut short "
            "or not the binary version"
        )
    rows = torch.from_numpy(raw.reshape(-1, length))
    y = rows[:, label_bytes - 1].long()
    check_classes(y, num_classes, f"{file}: class")
    return rows[:, label_bytes:].reshape(-1, *_CIFAR_SHAPE), y


def _flowers(folder: Path, size: int | None) -> ImageSet:
    file = folder / "imagelabels.mat"
    try:
        labels = scipy.io.loadmat(file)["labels"].ravel()
    except _UNREADABLE as error:
        raise DataError(f"{file}: holds no labels of Flowers102 ({error})") from error
    pictures = sorted((folder / "jpg").glob("*.jpg"))
    if not pictures or len(pictures) != len(labels):
        raise DataError(
            f"{file}: labels has {len(labels)} entries for the {len(pictures)} pictures in "
            f"{folder / 'jpg'}"
        )
    y = torch.as_tensor(labels.astype(np.int64)) - 1  # the file counts from 1
    num_classes = int(y.max()) + 1
    check_classes(y, num_classes, f"{file}: labels - 1")
    x = decode(((str(picture), picture) for picture in pictures), len(pictures), size)
    return ImageSet(str(folder), x, y, tuple(str(c + 1) for c in range(num_classes)))


def _class_folders(folder: Path, size: int | None) -> ImageSet:
    classes = sorted(place.name for place in folder.iterdir() if place.is_dir())
    found = [
        (picture, label)
        for label, name in enumerate(classes)
        for picture in sorted((folder / name).rglob("*"))
        if picture.suffix.lower() in _PICTURES
    ]
    if not found:
        raise DataError(
            f"{folder}: no pictures: put those of each class into a folder named after it, as "
            f"{', '.join(_PICTURES)}"
        )
    x = decode(((str(picture), picture) for picture, _ in found), len(found), size)
    y = torch.tensor([label for _, label in found])
    return ImageSet(str(folder.parent), x, y, tuple(classes))
