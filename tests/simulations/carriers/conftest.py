"""A folder of Ray's own for tests that tell Ray of a cluster."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the folder in which Ray, started meanwhile, notes where clusters of this machine are.

    Not pytest's, whose name is too long for a socket.
    """
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        (Path(folder) / "ray").mkdir()
        yield Path(folder) / "ray"
