"""``flower-supernode``, but quick: a thin start of Flower's own command.

Two things are changed, and checked to be there: the waits between two looks for a message, and for
its parts, grow here from a fraction of a second, where Flower's are three and one; and a node that
was killed takes its place again at once, which Flower lets it do only when its last heartbeat is
old.
"""

import contextlib
import inspect
import os
import re
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
from flwr.proto.fleet_pb2 import ActivateNodeRequest, ActivateNodeResponse, DeactivateNodeRequest
from flwr.supernode import fleet_http_connection
from flwr.supernode.cli.flower_supernode import flower_supernode
from flwr.supernode.fleet_http_client import FleetHttpClient

from federation.deploy.files import PRIVATE, write
from federation.deploy.pace import Pace, hasten_pulls
from federation.deploy.processes import NODE_FILE, end_with_parent
from graphcl.errors import FederationError

_LOOP = "flwr.supernode.start_client_internal"
_WAITS = ["sleep(0.5)", "sleep(0.5)", "sleep(3)"]  # for a reply, for its content, for a message
_QUICKEST, _SLOWEST = 0.1, 3.0
_QUICK_REPLY = 0.02


class _QuickClock:
    """Stands for the module ``time`` in Flower's loop, which uses nothing but ``sleep``."""

    def __init__(self) -> None:
        self._pace = Pace(_QUICKEST, _SLOWEST)

    def sleep(self, seconds: float) -> None:
        """Wait less than asked: for the worker's reply, or for the next message."""
        if seconds < 1:
            self._pace.found()
            time.sleep(_QUICK_REPLY)
        else:
            self._pace.wait()


def hasten() -> None:
    """Let Flower's loop look for messages more often.

    Raises:
        FederationError: If the loop is not the one that this was written for.
    """
    loop = import_module(_LOOP)  # by name: its package has a function that is called the same
    if sorted(re.findall(r"\btime\.(\w+\(.*?\))", inspect.getsource(loop))) != _WAITS:
        raise FederationError(
            "this version of Flower waits for messages otherwise than 1.41 does: install "
            '"flwr>=1.41,<1.42", or adapt federation/deploy/supernode.py'
        )
    loop.time = _QuickClock()  # type: ignore[attr-defined]
    hasten_pulls(loop)


class _ReturningClient(FleetHttpClient):
    """Gives up the place that an earlier process of this node held, and takes it."""

    def ActivateNode(self, request: ActivateNodeRequest) -> ActivateNodeResponse:  # noqa: N802
        file = Path(os.environ[NODE_FILE])
        if file.exists():
            # Refused where it was not active, or is another node since its key changed.
            with contextlib.suppress(httpx.HTTPStatusError):
                self.DeactivateNode(DeactivateNodeRequest(node_id=int(file.read_text())))
        response = super().ActivateNode(request)
        write(file, str(response.node_id), PRIVATE)
        return response


def main() -> Any:
    """Run the SuperNode with Flower's own options."""
    end_with_parent()
    hasten()
    if not hasattr(fleet_http_connection, "FleetHttpClient"):
        raise FederationError("flwr.supernode.fleet_http_connection has no FleetHttpClient")
    fleet_http_connection.FleetHttpClient = _ReturningClient  # type: ignore[misc]
    return flower_supernode()


if __name__ == "__main__":
    sys.exit(main())
