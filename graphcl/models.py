"""Trained models on disk, whatever room they are of: one line to load."""

import json
from pathlib import Path
from typing import Any

from graphcl.errors import GraphCLError

MODEL, DESCRIPTION = "model.safetensors", "model.json"


def save_model(model: Any, folder: str | Path, about: dict[str, Any]) -> None:
    """Write a model's ``model.safetensors``, and ``model.json`` with what is known about it.

    Args:
        model: One of :func:`kinds`.
        folder: Made if need be.
        about: What else to write down, as far as JSON can hold it.

    Raises:
        GraphCLError: If the model is of no kind that could be loaded again.
    """
    name = type(model).__name__
    if name not in kinds():
        raise GraphCLError(f"{folder}: a {name} cannot be stored; there are {', '.join(kinds())}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder / MODEL)
    (folder / DESCRIPTION).write_text(
        json.dumps({"class": name, **about}, indent=1) + "\n", encoding="utf-8"
    )


def load_model(folder: str | Path, series: Any = None) -> Any:
    """Load a model that ``graphcl deploy export`` or :func:`save_model` wrote.

    Args:
        folder: Holds ``model.safetensors`` and ``model.json``.
        series: For a forecaster: the series whose graph it is asked on.

    Returns:
        A classifier of nodes or of images (``predict``), a label-free method (``embed``), a model
        of outages (``predict``), a forecaster (``predict``) or a recommender (``rank``).

    Raises:
        GraphCLError: If there is none, or a forecaster is given no series.
        DataError: If the series has other sensors or channels.
    """
    folder = Path(folder)
    try:
        name = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))["class"]
        kind = kinds()[name]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GraphCLError(f"{folder / DESCRIPTION}: describes no model: {error}") from None
    if name != "SCFSGL":
        return kind.load(folder / MODEL)
    if series is None:
        raise GraphCLError(f"{folder}: a forecaster needs the series whose graph it is asked on")
    return kind.load(folder / MODEL, series)


def kinds() -> dict[str, Any]:
    """Return the classes of models that can be stored, by name."""
    # Imported here: who loads a model of one room need not wait for the others at other times.
    from graphcl.images import ImageClassifier
    from graphcl.nodes import ASPECT, ASPECTS, GRACE, NodeClassifier
    from graphcl.outages import SAHGNN
    from graphcl.recommend import RECOMMENDERS
    from graphcl.spatiotemporal import SCFSGL

    methods: tuple[type, ...] = (ASPECT, ASPECTS, GRACE, SAHGNN, SCFSGL, *RECOMMENDERS.values())
    known = (NodeClassifier, ImageClassifier, *methods)
    return {kind.__name__: kind for kind in known}
