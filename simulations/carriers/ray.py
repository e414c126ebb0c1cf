"""The Ray carrier: actors keep their clients' contexts, data and models from round to round.

A client goes to the actor that had it last, unless others would then be done earlier, all messages
of a round to an actor in one call. Arrays that several messages share go to the object store once.
The driver has of every client what it keeps, in memory until it is stored and on disk from then on,
and sends it along where the actor does not have it. An actor that dies is replaced and its batch is
sent again, first as a whole, then message by message, so that a client which kills its process
costs its own reply alone.
"""

import copy
import logging
import os
import socket
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import ray
from flwr.app import ArrayRecord, Message, RecordDict

from federation.experiment import Experiment, Scalar
from graphcl.errors import FederationError
from simulations.carriers.base import (
    Carrier,
    SimulatedGrid,
    client_context,
    error_reply,
    partition_of,
)
from simulations.carriers.contexts import Contexts
from simulations.carriers.sharing import share_out

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


class Answer(NamedTuple):
    """A reply, and what else an actor says of a client."""

    reply: Message
    state: bytes | None  # what the client keeps, where that changed
    seconds: float


class ClientActor:
    """Serves clients in a process of its own."""

    def __init__(self) -> None:
        logging.getLogger("flwr").setLevel(logging.ERROR)
        # Imported here, so that the driver need not ship the application.
        from federation.client_app import app, forget_learners

        self._app, self._forget = app, forget_learners

    def ready(self) -> None:
        """Answer once the process is up."""

    def begin(self, run_config: dict[str, Scalar], num_clients: int) -> None:
        """Forget the clients of any earlier run."""
        self._forget()
        self._dropped: list[int] = []
        self._contexts = Contexts(
            lambda partition: client_context(partition, run_config, num_clients),
            stored={},
            dropped=self._dropped.append,
        )

    def handle(
        self, messages: list[Message], states: dict[int, bytes | None], stored: dict[str, Any]
    ) -> tuple[list[Answer], list[int]]:
        """Answer messages in order.

        Args:
            messages: To any clients.
            states: What clients keep, if anything, whose states this actor does not have.
            stored: References to the array records that all messages share, by name.

        Returns:
            The answers, and whose states this actor has let go.
        """
        shared = dict(zip(stored, ray.get(list(stored.values())), strict=True))
        own = {partition: state for partition, state in states.items() if state is not None}
        self._contexts.stored = own
        for partition in states:
            self._contexts.forget(partition)  # of an earlier visit
        answers = []
        for message in messages:
            answer = self._answer(message, shared)
            if answer.state is not None:
                own[partition_of(message)] = answer.state
            answers.append(answer)
        self._contexts.stored = {}
        dropped = self._dropped.copy()
        self._dropped.clear()
        return answers, dropped

    def _answer(self, message: Message, shared: dict[str, ArrayRecord]) -> Answer:
        started, partition = time.perf_counter(), partition_of(message)
        message.content = RecordDict({**message.content, **shared})
        reply = self._app(message, self._contexts[partition])
        state = self._contexts.take_changed().get(partition)
        return Answer(reply, state, time.perf_counter() - started)


class RayGrid(SimulatedGrid):
    """Delivers batches of messages to the actors of a pool."""

    def __init__(self, experiment: Experiment, pool: "ActorPool"):
        super().__init__(experiment)
        self._pool = pool
        self._seconds: dict[str, dict[int, float]] = {}  # by kind of message and client
        self.put_client_states({})

    def deliver(self, messages: list[Message], timeout: float | None) -> list[Message]:
        deadline = None if timeout is None else time.monotonic() + timeout
        shared = _shared_arrays(messages)
        stored = {name: ray.put(record) for name, record in shared.items()}
        batches = self._batches(messages)
        sent = [_without(message, shared) for message in messages]
        calls = {
            actor: self._call(actor, [sent[p] for p in positions], stored)
            for actor, positions in batches.items()
        }
        replies: dict[int, Message] = {}
        for actor, positions in batches.items():
            batch = [sent[position] for position in positions]
            answers = self._collect(actor, calls[actor], batch, stored, deadline)
            for position, answer in zip(positions, answers, strict=True):
                replies[position] = answer
        return [replies[position] for position in range(len(messages))]

    def _batches(self, messages: list[Message]) -> dict[int, list[int]]:
        """Return the positions of the messages that go to each actor."""
        count = len(self._pool.actors)
        seconds = self._seconds.get(messages[0].metadata.message_type, {}) if messages else {}
        served_by = share_out(
            map(partition_of, messages), seconds, lambda p: self._holder.get(p, p % count), count
        )
        batches: dict[int, list[int]] = {}
        for position, message in enumerate(messages):
            batches.setdefault(served_by[partition_of(message)], []).append(position)
        return batches

    def _call(self, actor: int, batch: list[Message], stored: Mapping[str, Any]) -> Any:
        clients = map(partition_of, batch)
        states = {p: self._state(p) for p in clients if self._holder.get(p) != actor}
        return self._pool.actors[actor].handle.remote(batch, states, dict(stored))

    def _state(self, partition: int) -> bytes | None:
        return self._states.get(partition) or self._stored.get(partition)

    def _collect(
        self,
        actor: int,
        call: Any,
        batch: list[Message],
        stored: Mapping[str, Any],
        deadline: float | None,
        *,
        retried: bool = False,
    ) -> list[Message]:
        """Return the replies of one actor's batch, in its order."""
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            answers, dropped = ray.get(call, timeout=left)
        except ray.exceptions.GetTimeoutError:
            self._replace(actor)
            return [error_reply(message, "no reply before run.timeout") for message in batch]
        except ray.exceptions.RayActorError:
            self._replace(actor)
            if retried and len(batch) == 1:
                return [error_reply(batch[0], "the client's process died, again on a new actor")]
            pieces = [[message] for message in batch] if retried else [batch]
            return [
                reply
                for piece in pieces
                for reply in self._collect(
                    actor, self._call(actor, piece, stored), piece, stored, deadline, retried=True
                )
            ]
        for message, answer in zip(batch, answers, strict=True):
            partition = partition_of(message)
            self._holder[partition] = actor
            self._seconds.setdefault(message.metadata.message_type, {})[partition] = answer.seconds
            if answer.state is not None:
                self._states[partition] = answer.state
                self._changed.add(partition)
        for partition in dropped:
            if self._holder.get(partition) == actor:
                del self._holder[partition]
        return [answer.reply for answer in answers]

    def _replace(self, actor: int) -> None:
        """Start a new actor in place of one that died or hangs."""
        self._pool.replace(actor)
        for partition in [p for p, holder in self._holder.items() if holder == actor]:
            del self._holder[partition]
        self._begin(actor)

    def _begin(self, actor: int) -> None:
        self._pool.actors[actor].begin.remote(self.run_config, self.num_clients)

    def take_client_states(self) -> dict[int, bytes]:
        changed = {partition: self._states[partition] for partition in sorted(self._changed)}
        self._changed.clear()
        return changed

    def put_client_states(self, states: Mapping[int, bytes]) -> None:
        self._stored = states
        self._states: dict[int, bytes] = {}  # those that are not stored yet
        self._changed: set[int] = set()
        self._holder: dict[int, int] = {}  # the actor that has a client's state
        for actor in range(len(self._pool.actors)):
            self._begin(actor)

    def rest_client_states(self, states: Mapping[int, bytes]) -> None:
        self._stored = states
        self._states = {partition: self._states[partition] for partition in self._changed}


class ActorPool:
    """The actors of a carrier.

    Args:
        count: How many.
        cpus, gpus: What Ray reserves for each.
    """

    def __init__(self, count: int, cpus: int, gpus: float):
        self._actor = ray.remote(num_cpus=cpus, num_gpus=gpus)(ClientActor)
        self.actors = [self._actor.remote() for _ in range(count)]
        try:
            ray.get([actor.ready.remote() for actor in self.actors])
        except ray.exceptions.RayError as error:
            cause = str(error).strip().splitlines()[-1]
            raise FederationError(f"an actor could not start: {cause}") from None

    def replace(self, index: int) -> None:
        """Start a new actor in place of another."""
        ray.kill(self.actors[index])
        self.actors[index] = self._actor.remote()


class RayCarrier(Carrier):
    """Starts Ray, or joins the cluster at ``simulation.address``, and keeps one pool of actors."""

    def start(self) -> None:
        simulation = self.experiment.simulation
        if simulation.address:
            connect(simulation.address)
        else:
            cpus = max(os.cpu_count() or 1, simulation.actors * simulation.cpus_per_client)
            start_here(cpus)
        fitting = fitting_actors(self.experiment)
        if simulation.actors > fitting:
            raise FederationError(
                f"simulation.actors: {simulation.actors} do not fit, {fitting} do; lower it, or "
                "what a client uses (simulation.cpus_per_client, gpus_per_client)"
            )
        count = simulation.actors or min(fitting, self.experiment.partition.clients)
        self._pool = ActorPool(count, simulation.cpus_per_client, simulation.gpus_per_client)

    def close(self) -> None:
        ray.shutdown()  # its actors end with the driver, on a cluster of others too

    def run(self, experiment: Experiment) -> None:
        RayGrid(experiment, self._pool).serve()


def start_here(cpus: int) -> None:
    """Start Ray on this machine for this process alone."""
    # "local": a cluster that happens to run here is joined only by its address.
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, **_QUIET)


def connect(address: str) -> None:
    """Join the Ray cluster at an address.

    Raises:
        FederationError: If none answers there.
    """
    try:
        host, separator, port = address.rpartition(":")
        if separator and port.isdigit() and "/" not in host:
            # Ray itself would try for minutes and then end the process.
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        ray.init(address=address, **_QUIET)
    except OSError as error:
        raise FederationError(
            f"simulation.address: no Ray cluster answers at '{address}' ({error}); start one with "
            "'ray start --head', or leave the key empty"
        ) from None


def fitting_actors(experiment: Experiment) -> int:
    """Return how many clients fit at once into the cluster that was joined or started.

    Raises:
        FederationError: If not even one does.
    """
    simulation = experiment.simulation
    resources = ray.cluster_resources()
    count = int(resources.get("CPU", 0) // simulation.cpus_per_client)
    if simulation.gpus_per_client:
        count = min(count, int(resources.get("GPU", 0) / simulation.gpus_per_client))
    if count < 1:
        cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
        raise FederationError(
            f"no client fits: it needs {simulation.cpus_per_client} CPUs and "
            f"{simulation.gpus_per_client:g} GPUs, and Ray has {cpus:g} CPUs and {gpus:g} GPUs; "
            "lower simulation.cpus_per_client or gpus_per_client"
        )
    return count


def _shared_arrays(messages: list[Message]) -> dict[str, ArrayRecord]:
    """Return the array records that all messages share: global arrays, sent once a round."""
    if len(messages) < 2:
        return {}
    first, *others = messages
    return {
        name: record
        for name, record in first.content.array_records.items()
        if all(other.content.get(name) is record for other in others)
    }


def _without(message: Message, shared: Mapping[str, ArrayRecord]) -> Message:
    """Return the message without the records that travel through the object store."""
    if not shared:
        return message
    light = copy.copy(message)
    light.content = RecordDict({n: r for n, r in message.content.items() if n not in shared})
    return light
