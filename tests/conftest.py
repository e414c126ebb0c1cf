"""What several rooms' tests share: a tiny experiment, and the root of the real data."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from federation.experiment import Experiment

TINY: dict[str, Any] = {
    "data.source": "csbm",
    "data.csbm.nodes": 160,
    "data.csbm.classes": 4,
    "data.csbm.features": 8,
    "partition.clients": 4,
    "partition.alpha": 1.0,
    "model.hidden_channels": 8,
    "model.embedding_channels": 8,
    "train.epochs": 2,
    "run.rounds": 3,
    "run.seed": 3,
    "simulation.engine": "local",
}


def pytest_configure() -> None:
    """Take Ctrl-C seriously: what a shell has put behind it ignores it, and so do its children."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file's tests in one of the processes, and those that start others in one and first.

    A file's fixtures are then made once, and no two tests wait for one another's Ray or Flower.
    """

    def starts(item: pytest.Item) -> bool:
        return item.get_closest_marker("processes") is not None

    for item in items:
        group = "processes" if starts(item) else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=starts, reverse=True)  # stable


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Experiment]:
    """Return a maker of tiny experiments: dotted keys given as a mapping override its own."""

    def make(overrides: dict[str, Any] | None = None, *, folder: str = "run") -> Experiment:
        keys = {**TINY, "run.directory": str(tmp_path / folder), **(overrides or {})}
        return Experiment.from_flat(keys)

    return make


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Return the folder of real data sets, or skip."""
    root = os.environ.get("GRAPHCL_DATA")
    if not root:
        pytest.skip("GRAPHCL_DATA names no folder of real data sets")
    return Path(root)
