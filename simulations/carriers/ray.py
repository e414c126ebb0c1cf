"""The Ray carrier: actors keep their clients' contexts, data and models from round to round.

Partition p always goes to actor ``p mod actors``, all messages of a round in one call. Arrays that
several messages share go to the object store once. An actor that dies is replaced, its clients'
states are restored from the driver's copy and its batch is sent again, first as a whole, then
message by message, so that a client which kills its process costs its own reply alone. Under
``simulation.client_timeout`` every message is a call of its own, and one that takes longer ends
with its actor, while the messages behind it are sent to the actor's successor.
"""

import copy
import logging
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import ray
from flwr.app import ArrayRecord, Context, Message, RecordDict

from federation.experiment import Experiment, Scalar
from federation.records import from_bytes, to_bytes
from graphcl.errors import FederationError
from simulations.carriers.base import (
    Carrier,
    SimulatedGrid,
    ailment_of,
    client_context,
    error_reply,
    partition_of,
    same_records,
)

State = bytes | None  # None: as it was

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


class ClientActor:
    """Holds the clients of some partitions in a process of its own."""

    def __init__(self) -> None:
        logging.getLogger("flwr").setLevel(logging.ERROR)
        # Imported here, so that the driver need not ship the application.
        from federation.client_app import app, experiment_of, forget_learners

        self._app, self._forget, self._experiment_of = app, forget_learners, experiment_of
        self._contexts: dict[int, Context] = {}

    def ready(self) -> None:
        """Answer once the process is up."""

    def begin(
        self, run_config: dict[str, Scalar], num_clients: int, states: dict[int, bytes]
    ) -> None:
        """Forget the clients of any earlier run and take over these states."""
        self._forget()
        self._run_config, self._num_clients = run_config, num_clients
        self._experiment = self._experiment_of(run_config)
        self._contexts = {
            partition: self._context(partition, state) for partition, state in states.items()
        }

    def handle(
        self, messages: list[Message], stored: dict[str, Any]
    ) -> list[tuple[Message, State]]:
        """Answer messages in order; with each reply comes the client's state if it changed.

        Args:
            messages: To clients of this actor.
            stored: References to the array records that all messages share, by name.
        """
        shared = dict(zip(stored, ray.get(list(stored.values())), strict=True))
        return [self._answer(message, shared) for message in messages]

    def _answer(self, message: Message, shared: dict[str, ArrayRecord]) -> tuple[Message, State]:
        partition = partition_of(message)
        if partition not in self._contexts:
            self._contexts[partition] = self._context(partition, None)
        context = self._contexts[partition]
        before = dict(context.state)
        if (ailment := ailment_of(message, self._experiment)) and not self._outlives(ailment):
            return error_reply(message, f"fault plan: {ailment}"), None
        message.content = RecordDict({**message.content, **shared})
        reply = self._app(message, context)
        return reply, None if same_records(context.state, before) else to_bytes(context.state)

    def _outlives(self, ailment: str) -> bool:
        """Suffer a fault of the plan; return whether there is anything left to do."""
        if ailment == "crash":
            os._exit(1)
        if ailment in ("hang", "slow"):
            time.sleep(1e9 if ailment == "hang" else self._experiment.faults.slow_seconds)
        return ailment == "slow"

    def _context(self, partition: int, state: State) -> Context:
        context = client_context(partition, self._run_config, self._num_clients)
        if state is not None:
            context.state = from_bytes(state)
        return context


class RayGrid(SimulatedGrid):
    """Delivers batches of messages to the actors of a pool."""

    def __init__(self, experiment: Experiment, pool: "ActorPool"):
        super().__init__(experiment)
        self._pool = pool
        self._client_timeout = experiment.simulation.client_timeout or None
        self._states: dict[int, bytes] = {}
        self._changed: set[int] = set()
        for index in range(len(pool.actors)):
            self._begin(index)

    def deliver(self, messages: list[Message], timeout: float | None) -> list[Message]:
        deadline = None if timeout is None else time.monotonic() + timeout
        shared = _shared_arrays(messages)
        stored = {name: ray.put(record) for name, record in shared.items()}
        batches: dict[int, list[int]] = {}
        for position, message in enumerate(messages):
            batches.setdefault(partition_of(message) % len(self._pool.actors), []).append(position)
        sent = [_without(message, shared) for message in messages]
        calls = {
            actor: self._call(actor, self._pieces([sent[p] for p in positions]), stored)
            for actor, positions in batches.items()
        }
        replies: dict[int, Message] = {}
        for actor, positions in batches.items():
            answers = self._collect(actor, calls[actor], stored, deadline)
            replies |= dict(zip(positions, answers, strict=True))
        return [replies[position] for position in range(len(messages))]

    def _pieces(self, batch: list[Message]) -> list["_Piece"]:
        """Return what of a batch is one call: all of it, unless every client is watched."""
        if self._client_timeout is None:
            return [_Piece(batch)]
        return [_Piece([message]) for message in batch]

    def _call(
        self, actor: int, pieces: list["_Piece"], stored: Mapping[str, Any]
    ) -> list["_Piece"]:
        handle = self._pool.actors[actor].handle
        return [replace(piece, call=handle.remote(piece.batch, dict(stored))) for piece in pieces]

    def _collect(
        self,
        actor: int,
        pieces: list["_Piece"],
        stored: Mapping[str, Any],
        deadline: float | None,
    ) -> list[Message]:
        """Return the replies to the messages of one actor, in their order."""
        replies: list[Message] = []
        while pieces:
            piece, *rest = pieces
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            limits = [limit for limit in (left, self._client_timeout) if limit is not None]
            try:
                answers = ray.get(piece.call, timeout=min(limits, default=None))
            except ray.exceptions.GetTimeoutError:
                self._replace(actor)
                over = deadline is not None and time.monotonic() >= deadline
                lost = [m for one in pieces for m in one.batch] if over else piece.batch
                limit = "run.timeout" if over else "simulation.client_timeout"
                replies += [error_reply(message, f"no reply before {limit}") for message in lost]
                pieces = [] if over else self._call(actor, rest, stored)
            except ray.exceptions.RayActorError:
                self._replace(actor)
                again = piece.smaller()
                if not again:
                    why = "the client's process died, again on a new actor"
                    replies += [error_reply(message, why) for message in piece.batch]
                pieces = self._call(actor, again + rest, stored)
            else:
                pieces = rest
                for message, (reply, state) in zip(piece.batch, answers, strict=True):
                    replies.append(reply)
                    if state is not None:
                        self._states[partition_of(message)] = state
                        self._changed.add(partition_of(message))
        return replies

    def _replace(self, actor: int) -> None:
        """Start a new actor in place of one that died or hangs."""
        self._pool.replace(actor)
        self._begin(actor)
        if self._client_timeout is not None:  # its start is nobody's work
            ray.get(self._pool.actors[actor].ready.remote())

    def _begin(self, actor: int) -> None:
        count = len(self._pool.actors)
        states = {p: state for p, state in self._states.items() if p % count == actor}
        self._pool.actors[actor].begin.remote(self.run_config, self.num_clients, states)

    def take_client_states(self) -> dict[int, bytes]:
        changed = {partition: self._states[partition] for partition in sorted(self._changed)}
        self._changed.clear()
        return changed

    def put_client_states(self, states: Mapping[int, bytes]) -> None:
        self._states = dict(states)
        self._changed.clear()
        for actor in range(len(self._pool.actors)):
            self._begin(actor)


@dataclass(frozen=True)
class _Piece:
    """Messages to one actor that are one call of it.

    Attributes:
        batch: The messages.
        tried: Whether an actor died under them.
        call: The answers to come.
    """

    batch: list[Message]
    tried: bool = False
    call: Any = None

    def smaller(self) -> list["_Piece"]:
        """Return what to try where an actor died: all again, then one by one, then nothing."""
        if not self.tried:
            return [_Piece(self.batch, tried=True)]
        singles = [_Piece([message], tried=True) for message in self.batch]
        return singles if len(singles) > 1 else []


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
