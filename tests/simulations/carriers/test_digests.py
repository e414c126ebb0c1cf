"""One digest whatever carries the messages, how many workers there are, and when they die.

A worker dies after a number of answers that a seed draws, in the middle of whatever it was doing.
The default suite tries one seed; ``make test-slow`` tries many.
"""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from federation.experiment import Experiment
from federation.learners import Clients
from federation.run_directory import RunDirectory
from simulations.carriers.local import LocalGrid
from simulations.carriers.ray import ActorPool, RayCarrier, RayGrid

pytestmark = pytest.mark.processes

PERSONAL = {
    "model.encoders": "gcn, mlp",
    "strategy.name": "feddbp",
    "strategy.fraction": 0.7,
    "partition.clients": 7,
    "data.csbm.nodes": 120,
    "run.rounds": 3,
}
BATCHED = {
    **PERSONAL,
    "model.encoders": "mlp",
    "model.dropout": 0.0,
    "simulation.batch_clients": 2,
}
AVERAGED = {**BATCHED, "strategy.name": "fedavg"}


def cases(**kinds: object) -> list[object]:
    """Return twenty seeds of every kind, of which the first of the first kind is not slow."""
    return [
        pytest.param(keys, seed, id=f"{name}-{seed}", marks=[pytest.mark.slow] * (number > 0))
        for number, (name, keys, seed) in enumerate(
            (name, keys, seed) for name, keys in kinds.items() for seed in range(20)
        )
    ]


class Few:
    """The first actors of a pool."""

    def __init__(self, pool: ActorPool, count: int):
        self._pool, self._count = pool, count

    @property
    def actors(self) -> list[object]:
        return self._pool.actors[: self._count]

    def share(self, clients: Clients) -> object:
        return self._pool.share(clients)

    def replace(self, index: int) -> None:
        self._pool.replace(index)


class DyingGrid(RayGrid):
    """Lets one actor die after a number of answers."""

    def __init__(self, experiment: Experiment, pool: object, rng: random.Random):
        super().__init__(experiment, pool)
        answers = rng.randrange(1, 8)

        def arm(holder) -> None:  # a local function travels to the actor by value
            left = [answers]

            def dying(original):
                def deadly(*arguments):
                    left[0] -= 1
                    return os._exit(1) if left[0] < 0 else original(*arguments)

                return deadly

            holder._answer = dying(holder._answer)
            holder._train_together = dying(holder._train_together)

        victim = rng.randrange(len(pool.actors))
        ray.get(pool.actors[victim].__ray_call__.remote(arm))


@pytest.fixture(scope="module")
def pool() -> Iterator[ActorPool]:
    base = Experiment.from_flat({"simulation.actors": 4, "simulation.engine": "ray"})
    with RayCarrier(base) as carrier:
        yield carrier._pool


def digest(experiment: Experiment) -> str:
    summary = json.loads((Path(experiment.run.directory) / "summary.json").read_text())
    assert summary["failed_updates"] == 0
    return str(summary["digest"])


@pytest.mark.parametrize(
    ("keys", "seed"), cases(personal=PERSONAL, batched=BATCHED, averaged=AVERAGED)
)
def test_every_carrier_and_every_death_ends_in_one_digest(tiny, pool, keys, seed) -> None:
    rng = random.Random(seed)
    local = tiny({**keys, "run.seed": seed}, folder="local")
    LocalGrid(local).serve()
    for count in (1, 2, 4):
        experiment = tiny({**keys, "run.seed": seed}, folder=f"ray-{count}")
        DyingGrid(experiment, Few(pool, count), rng).serve()
        assert digest(experiment) == digest(local), f"{count} actors"


@pytest.mark.parametrize(("keys", "seed"), cases(personal=PERSONAL))
def test_a_driver_that_is_killed_anywhere_resumes_to_one_digest(tiny, pool, keys, seed) -> None:
    """It dies before or after any of its writes, and goes on with another number of actors."""
    rng = random.Random(seed)
    keys = {**keys, "run.seed": seed}
    local = tiny(keys, folder="local")
    LocalGrid(local).serve()
    experiment = tiny(keys, folder="killed")
    with pytest.MonkeyPatch.context() as patch:
        kill(patch, rng.choice(["releasing", "record", "checkpoint"]), rng.randrange(1, 4), rng)
        with pytest.raises(KeyboardInterrupt):
            RayGrid(experiment, Few(pool, rng.choice([1, 2, 4]))).serve()
    RayGrid(experiment, Few(pool, rng.choice([1, 2, 4]))).serve()
    assert digest(experiment) == digest(local)


def kill(patch, method: str, call: int, rng: random.Random) -> None:
    """Interrupt the n-th call of a method of the run directory, before or after it."""
    original, left, before = getattr(RunDirectory, method), [call], rng.random() < 0.5

    def interrupted(self, *arguments):
        left[0] -= 1
        if left[0] == 0 and before:
            raise KeyboardInterrupt
        result = original(self, *arguments)
        if left[0] == 0:
            raise KeyboardInterrupt
        return result

    patch.setattr(RunDirectory, method, interrupted)
