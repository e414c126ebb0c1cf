"""The contexts of clients in one process, of which few need to be in memory at a time."""

from collections.abc import Callable, Mapping, Sequence

from flwr.app import Context

from federation.records import from_bytes, to_bytes

ROOM = 256 * 2**20
_LEAST = 4096  # what a context takes that keeps nothing


class Contexts:
    """Contexts by partition, made or read when they are asked for.

    Args:
        make: Returns the fresh context of a partition.
        stored: Where states can be read that are not in memory, by partition.
        dropped: Called with every client whose state was let go.
        room: Bytes that states may take here; more are dropped, and read again if need be.

    Attributes:
        stored: See above; may be put in place of another.
        pinned: Clients whose states are not dropped.
    """

    def __init__(
        self,
        make: Callable[[int], Context],
        stored: Mapping[int, bytes],
        dropped: Callable[[int], object] = lambda partition: None,
        room: int = ROOM,
    ):
        self.stored = stored
        self.pinned: set[int] = set()
        self._dropped = dropped
        self._make, self._room, self._held = make, room, 0
        self._contexts: dict[int, Context] = {}  # the least recently used first
        self._sizes: dict[int, int] = {}
        self._saved: dict[int, dict[str, object]] = {}  # records that are stored already
        self._touched: set[int] = set()

    def __getitem__(self, partition: int) -> Context:
        context = self._contexts.pop(partition, None) or self._make(partition)
        self._contexts[partition] = context
        if partition not in self._saved:
            state = self.stored.get(partition)
            if state is not None:
                context.state = from_bytes(state)
            self._keep(partition, len(state or b""))
            if self._held > self._room:
                self._shrink()
        self._touched.add(partition)
        return context

    def gather(self, partitions: Sequence[int]) -> list[Context]:
        """Return the contexts of several clients, none of which is dropped for another."""
        pinned = self.pinned
        self.pinned = pinned | set(partitions)
        try:
            return [self[partition] for partition in partitions]
        finally:
            self.pinned = pinned

    def forget(self, partition: int) -> None:
        """Let go of a client's state, if it is here: another one is stored by now."""
        if partition in self._contexts:
            del self._contexts[partition], self._saved[partition]
            self._held -= self._sizes.pop(partition)
            self._touched.discard(partition)

    def take_changed(self) -> dict[int, bytes]:
        """Return the states that changed since the last call, by partition."""
        changed = {}
        for partition in sorted(self._touched):
            if self._changed(partition):
                changed[partition] = to_bytes(self._contexts[partition].state)
                self._keep(partition, len(changed[partition]))
        self._touched.clear()
        return changed

    def _changed(self, partition: int) -> bool:
        """Say whether a client's state holds other records than those that are stored."""
        state, saved = self._contexts[partition].state, self._saved[partition]
        return state.keys() != saved.keys() or any(state[n] is not saved[n] for n in saved)

    def _keep(self, partition: int, size: int) -> None:
        """Note that a client's state is stored as it is now."""
        size = max(size, _LEAST)
        self._held += size - self._sizes.get(partition, 0)
        self._sizes[partition] = size
        self._saved[partition] = dict(self._contexts[partition].state)

    def _shrink(self) -> None:
        """Drop the least recently used states that are stored, down to half of the room."""
        for partition in list(self._contexts)[:-1]:  # the last has just been put
            if self._held <= self._room // 2:
                break
            if partition not in self.pinned and not self._changed(partition):
                self.forget(partition)
                self._dropped(partition)
