"""How long to wait before looking again: briefly while there is work, ever longer while not."""

import time

_GROWTH = 0.05  # of the time since the last work


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
