"""Devices of unlike speed under a virtual clock, and aggregates that do not wait for the slow ones.

How long a client works follows from its number of samples and its device's drawn speed, never from
what it computes. So it is known which replies fill the next buffer before any of them exists: they
are computed as one batch, on any carrier at full speed, each from what the server sent when that
client began. The same seed gives the same run, and a checkpoint holds the messages on their way.

FedBuff (Nguyen et al., 2022): the server aggregates when its buffer is full, and an update counts
less the more aggregates overtook it. Here updates are weighed by their samples too, as FedAvg does
it, and any server half of the weights may follow. Prototype strategies keep every client's last
upload anyway, so that a late one just takes the place of its predecessor.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from federation.experiment import Experiment
from federation.records import from_bytes, to_arrays, to_bytes, to_tensors
from federation.strategies.weights import LearnedWeights
from graphcl.training import numpy_rng

_STATE = "asynchrony"
_SAMPLES_PER_SECOND = 1000  # passed over by a device of median speed


@dataclass
class Flight:
    """A client at work.

    Attributes:
        partition: Who.
        began: The round in which it was sent its message: it has what the one before left.
        finish: Virtual time of its reply.
        content: What it was sent.
    """

    partition: int
    began: int
    finish: float
    content: RecordDict


class VirtualClock:
    """The virtual time of a run, and who is at work.

    Args:
        experiment: The whole experiment.
        samples: Training samples of every partition.

    Attributes:
        now: Virtual seconds since the start; a device of median speed passes over a thousand
            samples in one.
    """

    def __init__(self, experiment: Experiment, samples: Mapping[int, int]):
        self.experiment = experiment
        self.now = 0.0
        self._starts = 0
        self._flights: dict[int, Flight] = {}
        rng = numpy_rng(experiment.run.seed, "asynchrony", "speed")
        speeds = np.exp(experiment.asynchrony.spread * rng.standard_normal(len(samples)))
        work = experiment.train.epochs / _SAMPLES_PER_SECOND
        self.seconds = {p: work * samples[p] / float(speeds[p]) for p in sorted(samples)}

    @property
    def concurrency(self) -> int:
        """How many clients are at work at any time."""
        table = self.experiment.asynchrony
        return min(table.concurrency or 2 * table.buffer, len(self.seconds))

    def wait_for(self, cohort: Collection[int]) -> None:
        """Let the slowest of a cohort finish."""
        self.now += max(self.seconds[partition] for partition in cohort)

    def fill_buffer(
        self,
        server_round: int,
        contents: Callable[[Sequence[int]], Mapping[int, RecordDict]],
    ) -> list[Flight]:
        """Let time pass until the buffer is full; return who filled it, by partition.

        Whenever a client is done, another begins that is neither at work nor in the buffer, drawn
        at random.  All that begin before the buffer is full are sent the same state of the server.

        Args:
            server_round: The aggregate that the buffer is for.
            contents: Returns what is sent to each of some partitions now.
        """
        arrived: dict[int, Flight] = {}
        began: list[int] = []
        while len(arrived) < self.experiment.asynchrony.buffer:
            while len(self._flights) < self.concurrency and (partition := self._draw(arrived)) >= 0:
                finish = self.now + self.seconds[partition]
                self._flights[partition] = Flight(partition, server_round, finish, RecordDict())
                began.append(partition)
            first = min(self._flights.values(), key=lambda f: (f.finish, f.partition))
            arrived[first.partition] = self._flights.pop(first.partition)
            self.now = first.finish
        everyone = {**arrived, **self._flights}
        for partition, content in contents(sorted(began)).items() if began else ():
            everyone[partition].content = content
        return [arrived[partition] for partition in sorted(arrived)]

    def _draw(self, arrived: Collection[int]) -> int:
        """Return a partition that may begin, or -1."""
        idle = [p for p in self.seconds if p not in self._flights and p not in arrived]
        if not idle:
            return -1
        rng = numpy_rng(self.experiment.run.seed, "asynchrony", "start", self._starts)
        self._starts += 1
        return int(idle[rng.integers(len(idle))])

    def state(self) -> dict[str, ConfigRecord]:
        """Return what a resumed run needs: the time, and the messages on their way."""
        if not self.experiment.asynchrony.timed:
            return {}
        flights = [self._flights[partition] for partition in sorted(self._flights)]
        # Messages of one round may share their content; it is stored once.
        distinct = {id(flight.content): flight.content for flight in flights}
        number = {key: index for index, key in enumerate(distinct)}
        packed = {f"content-{n}": to_bytes(c) for n, c in enumerate(distinct.values())}
        record = ConfigRecord(
            {
                "now": self.now,
                "starts": self._starts,
                "partitions": [flight.partition for flight in flights],
                "began": [flight.began for flight in flights],
                "finish": [flight.finish for flight in flights],
                "contents": [number[id(flight.content)] for flight in flights],
                **packed,
            }
        )
        return {_STATE: record}

    def load_state(self, state: RecordDict) -> None:
        """Inverse of :meth:`state`."""
        record = state.config_records.get(_STATE)
        if record is None:
            return
        stored = dict(record)
        self.now, self._starts = stored["now"], stored["starts"]  # type: ignore[assignment]
        contents = {
            int(name.removeprefix("content-")): from_bytes(bytes(data))  # type: ignore[arg-type]
            for name, data in stored.items()
            if name.startswith("content-")
        }
        columns = (stored[name] for name in ("partitions", "began", "finish", "contents"))
        rows = zip(*columns, strict=True)
        self._flights = {p: Flight(p, began, end, contents[c]) for p, began, end, c in rows}


def carried_over(
    received: ArrayRecord,
    sent: ArrayRecord,
    now: ArrayRecord,
    discount: float,
    learned: LearnedWeights,
) -> ArrayRecord:
    """Return weights of now, moved as a client moved those that it was sent.

    Args:
        received: What the client made of them.
        sent: The weights it began with.
        now: The weights that others made meanwhile.
        discount: What its move counts.
        learned: Which arrays a client moves; the others it measures or counts.

    Returns:
        ``now + discount * (received - sent)``; what is not learned, as received; what the client
        had to compute before it could move, and others computed meanwhile, as now.
    """
    begun, current = to_tensors(sent), to_tensors(now)
    moves, known = learned.moved_from(begun), learned.moved_from(current)
    carried = {}
    for name, weight in to_tensors(received).items():
        if name in moves:
            weight = current[name] + discount * (weight - begun[name])
        elif name in known:
            weight = current[name]
        carried[name] = weight
    return to_arrays(carried)
