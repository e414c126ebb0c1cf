"""Models on disk: weights and a header as one ``.npz`` file without pickles."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphcl.errors import GraphCLError

_HEADER = "header"


def save_weights(path: str | Path, weights: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write tensors by name, and what else JSON can hold."""
    arrays: dict[str, Any] = {name: v.detach().cpu().numpy() for name, v in weights.items()}
    with Path(path).open("wb") as file:
        np.savez(file, **{_HEADER: np.array(json.dumps(header)), **arrays})


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Inverse of :func:`save_weights`: the tensors and the header.

    Raises:
        GraphCLError: The file is missing or is not of this kind.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(str(file[_HEADER]))
            weights = {n: torch.from_numpy(file[n]) for n in file.files if n != _HEADER}
    except (OSError, KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise GraphCLError(f"{path}: no saved model: {error}") from None
    if not isinstance(header, dict):
        raise GraphCLError(f"{path}: no saved model: its header is no table")
    return weights, header
