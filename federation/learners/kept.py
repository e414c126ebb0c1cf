"""What a process makes of an experiment's data once, or is given by another that made it."""

from collections.abc import Callable
from typing import Generic, TypeVar

from federation.data_tables import DataTable
from federation.tables import Partition

T = TypeVar("T")
_MOST = 2  # results in a process: those of a run, and of the one before it


class Kept(Generic[T]):
    """A function of data, partition and seed whose last results are kept.

    Args:
        make: The function; whoever reads its results must not write to them.
    """

    def __init__(self, make: Callable[[DataTable, Partition, int], T]):
        self._make = make
        self._results: dict[tuple[DataTable, Partition, int], T] = {}

    def __call__(self, data: DataTable, partition: Partition, seed: int) -> T:
        found = self._results.get((data, partition, seed))
        if found is None:
            found = self._make(data, partition, seed)
            self.adopt(found, data, partition, seed)
        return found

    def adopt(self, result: T, data: DataTable, partition: Partition, seed: int) -> None:
        """Keep a result that was made elsewhere."""
        self._results.pop((data, partition, seed), None)
        if len(self._results) == _MOST:
            del self._results[next(iter(self._results))]
        self._results[data, partition, seed] = result

    def clear(self) -> None:
        """Let go of all results."""
        self._results.clear()
