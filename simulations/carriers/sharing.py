"""Which worker serves which client, so that all are done at about the same time."""

from collections.abc import Callable, Iterable, Mapping
from statistics import fmean

_GAP = 0.05  # of the longest queue: what is less is not worth a move
_LESS = 1 - 1e-6  # of a gap: what fills it but for rounding would move to and fro for ever


def share_out(
    clients: Iterable[int],
    seconds: Mapping[int, float],
    home: Callable[[int], int],
    workers: int,
) -> dict[int, int]:
    """Return the worker of every client: its home, unless that is the last to be done.

    Args:
        clients: Who has something to do.
        seconds: What it took last time, where that is known.
        home: The worker that has what a client needs.
        workers: How many there are.
    """
    served_by = {client: home(client) for client in clients}
    known = [seconds[client] for client in served_by if client in seconds]
    usual = fmean(known) if known else 1.0
    cost = {client: seconds.get(client, usual) for client in served_by}
    queues = [0.0] * workers
    for client, worker in served_by.items():
        queues[worker] += cost[client]
    while True:
        longest = max(range(workers), key=queues.__getitem__)
        shortest = min(range(workers), key=queues.__getitem__)
        gap = queues[longest] - queues[shortest]
        if gap <= _GAP * queues[longest]:
            return served_by
        movable = [c for c, w in served_by.items() if w == longest and cost[c] < _LESS * gap]
        if not movable:
            return served_by
        moved = min(movable, key=lambda c: (abs(gap / 2 - cost[c]), c))
        served_by[moved] = shortest
        queues[longest] -= cost[moved]
        queues[shortest] += cost[moved]
