"""What a server's processes tell each other, and those who look on, in its state folder."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from federation.deploy.bundles import STATE
from federation.deploy.files import PRIVATE, write

FOLDER = "GRAPHCL_SERVER_FOLDER"  # names the server's folder to the ServerApp

RUNNING, FAILED, FINISHED = "running", "failed", "finished"


class Word:
    """Word from the ServerApp of a server's folder.

    Args:
        folder: The server's.
    """

    def __init__(self, folder: Path):
        state = folder / STATE
        self.run = state / "run"
        self._outcome, self._sites = state / "outcome.json", state / "sites.json"
        self._nodes = state / "nodes.json"

    def leave(self, status: str, error: str = "") -> None:
        """Say how the run is, and which process it is in."""
        outcome = {"status": status, "error": error, "pid": os.getpid()}
        write(self._outcome, json.dumps(outcome), PRIVATE)

    def leave_sites(self, sites: Mapping[str, Mapping[str, Any]]) -> None:
        """Say how the sites are."""
        write(self._sites, json.dumps({"time": time.time(), "sites": sites}), PRIVATE)

    def leave_nodes(self, nodes: Mapping[str, int]) -> None:
        """Tell the ServerApp which node is whose."""
        write(self._nodes, json.dumps(nodes), PRIVATE)

    def forget(self) -> None:
        """Take back what was said about an earlier process."""
        self._outcome.unlink(missing_ok=True)

    def outcome(self) -> dict[str, Any]:
        """Return ``status``, ``error`` and ``pid``; empty before the ServerApp has started."""
        return _read(self._outcome)

    def nodes(self) -> dict[str, int]:
        """Return Flower's number of every site's node, by the site's name."""
        return _read(self._nodes)

    def sites(self) -> dict[str, Any]:
        """Return ``time`` and ``sites``, by name; empty before the first contact."""
        return _read(self._sites)


def _read(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    word: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return word
