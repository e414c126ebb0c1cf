"""What a command and all that it starts cost: memory and processor time, sampled while it runs.

Linux only: a page that several processes share must count once, which needs its proportional set
size.
"""

import contextlib
import threading
import time

import psutil

_PAUSE = 1.0  # seconds between two samples


class Family:
    """Watches a process and its descendants from a thread until it has ended.

    Attributes:
        peak_mib: Most memory that all held at one time, in MiB.
    """

    def __init__(self, pid: int):
        self.peak_mib = 0.0
        self._root = psutil.Process(pid)
        self._seconds: dict[tuple[int, float], float] = {}
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def processor_seconds(self) -> float:
        """Return what all have used so far, also those that have ended since a sample."""
        with self._lock:
            self._sample(memory=False)
            return sum(self._seconds.values())

    def stop(self) -> None:
        """Stop watching."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.is_set():
            with self._lock:
                self._sample(memory=True)
            time.sleep(_PAUSE)

    def _sample(self, *, memory: bool) -> None:
        held = 0
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [self._root, *self._root.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    times = process.cpu_times()
                    key = process.pid, process.create_time()
                    self._seconds[key] = times.user + times.system
                    if memory:
                        held += process.memory_full_info().pss
        self.peak_mib = max(self.peak_mib, held / 2**20)
