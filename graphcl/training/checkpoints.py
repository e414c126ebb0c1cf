"""Models on disk: weights and a header as one ``.safetensors`` file, which holds no code."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from graphcl.errors import GraphCLError

_HEADER = "header"


def save_weights(path: str | Path, weights: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write tensors by name, and what else JSON can hold.

    Raises:
        GraphCLError: If the header is too large for such a file.
    """
    # Copies, since no two of a file's tensors may share memory, as tied weights do.
    copies = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    try:
        data = save(copies, metadata={_HEADER: json.dumps(header)})
    except SafetensorError as error:  # names that take more than a hundred megabytes
        raise GraphCLError(f"{path}: cannot be saved: {error}") from None
    Path(path).write_bytes(data)


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Inverse of :func:`save_weights`: the tensors and the header.

    Raises:
        GraphCLError: The file is missing or is not of this kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[_HEADER])
            # Copies: the file may be written anew while they are in use.
            weights = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise GraphCLError(f"{path}: no saved model: {error}") from None
    if not isinstance(header, dict):
        raise GraphCLError(f"{path}: no saved model: its header is no table")
    return weights, header
