"""How long to wait before looking again: briefly while there is work, ever longer while not."""

import inspect
import time
from functools import partial
from types import ModuleType

from graphcl.errors import FederationError

_GROWTH = 0.05  # of the time since the last work
_FIRST_SECONDS = 0.02  # before a second look for the parts of a message; later ones double


def hasten_pulls(module: ModuleType, name: str = "pull_objects") -> None:
    """Let a module of Flower look again at once for the parts of a message that are under way.

    A message can be seen before its parts are there, and who looks often, sees it then. Flower
    waits a second, on each of the three ways between server, node and worker.

    Args:
        module: Changed.
        name: Of the function by which it pulls.

    Raises:
        FederationError: If the module pulls otherwise than the one that this was written for.
    """
    pull = getattr(module, name, None)
    if pull is None or "initial_backoff" not in inspect.signature(pull).parameters:
        raise FederationError(
            f"this version of Flower pulls messages otherwise than 1.41 does ({module.__name__}): "
            'install "flwr>=1.41,<1.42", or adapt federation/deploy/pace.py'
        )
    setattr(module, name, partial(pull, initial_backoff=_FIRST_SECONDS))


class Pace:
    """Waits that grow with the time since something was last found.

    Args:
        quickest, slowest: Bounds of a wait, in seconds.
    """

    def __init__(self, quickest: float, slowest: float):
        self._quickest, self._slowest = quickest, slowest
        self._found = time.monotonic()

    def found(self) -> None:
        """Note that there is work."""
        self._found = time.monotonic()

    def wait(self) -> None:
        """Sleep until it is time to look again."""
        idle = time.monotonic() - self._found
        time.sleep(min(self._slowest, max(self._quickest, _GROWTH * idle)))
