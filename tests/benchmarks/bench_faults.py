"""Many rounds with faults of every kind: is a round lost, or an aggregate wrong?

FedAvg on Ray actors; every kind of fault strikes 5 % of the updates: no message, a lost reply, a
corrupt one, a process that crashes, hangs or runs out of memory, a slow one. After every round the
aggregate is computed again, in float64, from the replies of those clients whose update counted, as
they left the actors. The driver stops itself twice on the way and resumes; and the same experiment
in one process, without a stop, must end in the same digest.

Run with ``python tests/benchmarks/bench_faults.py [--rounds 200]``; a hung client costs its
time-out and a new process, so 200 rounds take about a quarter of an hour on two cores.
"""

import argparse
import json
import logging
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Message, RecordDict

from federation.client_app import forget_learners
from federation.experiment import Experiment
from federation.records import to_tensors
from federation.rounds import federate
from federation.run_directory import Line, RunDirectory
from simulations.carriers.base import partition_of
from simulations.carriers.local import LocalGrid
from simulations.carriers.ray import RayCarrier, RayGrid

KINDS = ("drop", "lose", "corrupt", "crash", "hang", "memory", "slow")
SETTINGS = {
    "run.seed": 5,
    "run.min_success": 0.0,
    "run.evaluate_every": 20,
    "data.source": "csbm",
    "data.csbm.nodes": 400,
    "partition.clients": 20,
    "partition.min_nodes": 5,
    "strategy.name": "fedavg",
    "strategy.fraction": 0.25,
    "train.epochs": 1,
    "simulation.actors": 2,
    "simulation.client_timeout": 5.0,
    "faults.slow_seconds": 0.2,
    **{f"faults.{kind}": 0.05 for kind in KINDS},
}


class StoppedError(Exception):
    """The driver's end, on purpose."""


class WatchedGrid(RayGrid):
    """Remembers the training replies of the last round, as the actors gave them."""

    replies: dict[int, RecordDict]

    def deliver(self, messages: list[Message], timeout: float | None) -> list[Message]:
        replies = super().deliver(messages, timeout)
        if messages and messages[0].metadata.message_type == "train":
            self.replies = {
                partition_of(message): RecordDict(dict(reply.content))
                for message, reply in zip(messages, replies, strict=True)
                if not reply.has_error()
            }
        return replies


class WatchedRun(RunDirectory):
    """Computes every aggregate again, and stops after some rounds.

    Attributes:
        grid: Whose replies count.
        stops: Rounds after which the driver ends.
        checked: Aggregates that were computed again.
        deviation: The largest distance of a weight from its own.
    """

    grid: WatchedGrid
    stops: frozenset[int]
    checked = 0
    deviation = 0.0

    def record(self, lines: list[Line]) -> None:  # type: ignore[override]
        lines = list(lines)
        self._counted = [line["partition"] for line in lines if line.get("status") == "ok"]
        super().record(lines)

    def checkpoint(self, server_round: int, arrays: ArrayRecord, *state: object):  # type: ignore[override]
        if self._counted:
            contents = [self.grid.replies[partition] for partition in self._counted]
            weights = [float(c["metrics"]["num-examples"]) for c in contents]
            tensors = [to_tensors(c.array_records["arrays"]) for c in contents]
            for name, weight in to_tensors(arrays).items():
                parts = zip(weights, tensors, strict=True)
                expected = sum(w * t[name].double() for w, t in parts) / sum(weights)
                self.deviation = max(self.deviation, float((weight - expected).abs().max()))
            self.checked += 1
        stored = super().checkpoint(server_round, arrays, *state)  # type: ignore[arg-type]
        if server_round in self.stops:
            raise StoppedError
        return stored


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        keys = {**SETTINGS, "run.rounds": rounds}
        local, ray = (
            Experiment.from_flat({**keys, "run.directory": str(Path(folder) / name)})
            for name in ("local", "ray")
        )
        LocalGrid(local).serve()
        forget_learners()
        stops = {rounds // 3, 2 * rounds // 3}
        started, checked, deviation = time.perf_counter(), 0, 0.0
        with RayCarrier(ray) as carrier:
            while True:
                run = WatchedRun(ray.run.directory)
                run.open(ray)
                run.grid, run.stops = WatchedGrid(ray, carrier._pool), frozenset(stops)
                try:
                    federate(run.grid, ray, run)
                    break
                except StoppedError:
                    stops.discard(min(stops))
                finally:
                    checked += run.checked
                    deviation = max(deviation, run.deviation)
        seconds = time.perf_counter() - started
        lines = run.lines()
        digests = [
            json.loads((Path(folder) / name / "summary.json").read_text())["digest"]
            for name in ("local", "ray")
        ]
    done = [line for line in lines if line["kind"] == "round"]
    clients = [line for line in lines if line.get("status") in ("ok", "failed")]
    print(f"{len(done)} of {rounds} rounds, {len(clients)} updates, {seconds:.0f} s on Ray")
    print(f"{'fault':<22}{'struck':>8}{'counted':>9}{'refused':>9}")
    struck: dict[str, Counter[str]] = {}
    for line in clients:
        struck.setdefault(line.get("fault", "none"), Counter())[line["status"]] += 1
    for fault, status in sorted(struck.items()):
        print(f"{fault:<22}{status.total():>8}{status['ok']:>9}{status['failed']:>9}")
    print(f"{checked} aggregates computed again, largest deviation {deviation:.1e}")
    print(f"digests: in one process {digests[0]}, on Ray with two stops {digests[1]}")
    same = digests[0] == digests[1]
    if not (len(done) == rounds and deviation < 1e-5 and same):
        raise SystemExit("a round is lost, an aggregate wrong, or the digests differ")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
