"""The Ray carrier: actors keep their clients' contexts, data and models from round to round.

What the clients' data are divided into is made by the driver, and lies in the object store once
per machine, where its actors read it without a copy.

A client goes to the actor that had it last, unless others would then be done earlier, all messages
of a round to an actor in one call. Arrays that several messages share go to the object store once,
and replies of a large cohort are added up in the actor where the server needs but their mean.
The driver has of every client what it keeps, in memory until it is stored and on disk from then on,
and sends it along where the actor does not have it. An actor that dies is replaced and its batch is
sent again, first as a whole, then message by message, so that a client which kills its process
costs its own reply alone. Under ``simulation.client_timeout`` every message is a call of its own,
and one that takes longer ends with its actor, while the messages behind it are sent to the actor's
successor.
"""

import copy
import logging
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import ray
import torch
from flwr.app import ArrayRecord, Message, RecordDict
from ray.util import deregister_serializer, register_serializer
from torch import Tensor

from federation.experiment import Experiment
from federation.learners import Clients, clients_of
from graphcl.errors import FederationError
from simulations.carriers.actor import Answer, ClientActor
from simulations.carriers.base import (
    Carrier,
    SimulatedGrid,
    error_reply,
    partition_of,
)
from simulations.carriers.sharing import share_out

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


class RayGrid(SimulatedGrid):
    """Delivers batches of messages to the actors of a pool."""

    def __init__(self, experiment: Experiment, pool: "ActorPool"):
        super().__init__(experiment)
        self._pool = pool
        self._clients = pool.share(clients_of(experiment))
        self._client_timeout = experiment.simulation.client_timeout or None
        self._seconds: dict[str, dict[int, float]] = {}  # by kind of message and client
        self.put_client_states({})

    def deliver(self, messages: list[Message], timeout: float | None) -> list[Message]:
        deadline = None if timeout is None else time.monotonic() + timeout
        shared = _shared_arrays(messages)
        stored = {name: ray.put(record) for name, record in shared.items()}
        reduces, batches = self.reduces(messages), self._batches(messages)
        blockwise = reduces or self.batched(messages)
        sent = [_without(message, shared) for message in messages]
        calls = {
            actor: self._call(
                actor,
                self._pieces(
                    [sent[position] for block in blocks for position in block],
                    [len(block) for block in blocks] if blockwise else [],
                    reduces,
                ),
                stored,
            )
            for actor, blocks in batches.items()
        }
        replies: dict[int, Message] = {}
        for actor, blocks in batches.items():
            answers = self._collect(actor, calls[actor], stored, deadline)
            positions = [position for block in blocks for position in block]
            replies |= dict(zip(positions, answers, strict=True))
        return [replies[position] for position in range(len(messages))]

    def _batches(self, messages: list[Message]) -> dict[int, list[list[int]]]:
        """Return the positions of the messages that go to each actor, in blocks."""
        count, blocks = len(self._pool.actors), self.blocks(messages)
        blockwise = self.batched(messages) or self.reduces(messages)
        seconds = self._seconds.get(messages[0].metadata.message_type, {}) if messages else {}
        clients = [[partition_of(messages[position]) for position in block] for block in blocks]
        known = {
            index: sum(seconds[p] for p in members)
            for index, members in enumerate(clients)
            if all(p in seconds for p in members)
        }

        def home(index: int) -> int:
            first = clients[index][0]
            return self._holder.get(first, (index if blockwise else first) % count)

        batches: dict[int, list[list[int]]] = {}
        for index, actor in share_out(range(len(blocks)), known, home, count).items():
            batches.setdefault(actor, []).append(blocks[index])
        return batches

    def _pieces(self, batch: list[Message], sizes: list[int], reduces: bool) -> list["_Piece"]:
        """Return what of a batch is one call: all of it, unless every client is watched."""
        if self._client_timeout is None:
            return [_Piece(batch, sizes, reduces)]
        return [_Piece([message]) for message in batch]

    def _call(
        self, actor: int, pieces: list["_Piece"], stored: Mapping[str, Any]
    ) -> list["_Piece"]:
        handle = self._pool.actors[actor].handle
        called = []
        for piece in pieces:
            clients = map(partition_of, piece.batch)
            # What an actor has now, a call before this one may make it drop.
            alone = len(pieces) == 1
            states = {
                p: self._state(p) for p in clients if not (alone and self._holder.get(p) == actor)
            }
            asked = piece.batch, piece.sizes, piece.reduces, states, dict(stored)
            called.append(replace(piece, call=handle.remote(*asked)))
        return called

    def _state(self, partition: int) -> bytes | None:
        return self._states.get(partition) or self._stored.get(partition)

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
            if piece.call is None:
                (piece,) = self._call(actor, [piece], stored)
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            limits = [limit for limit in (left, self._client_timeout) if limit is not None]
            try:
                answers, dropped = ray.get(piece.call, timeout=min(limits, default=None))
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
                # One at a time: of a call that is followed by another, the answer may be lost where
                # the actor dies of the other.
                pieces = again + [replace(one, call=None) for one in rest]
            else:
                pieces = rest
                replies += [answer.reply for answer in answers]
                self._note(actor, piece.batch, answers, dropped)
        return replies

    def _note(
        self, actor: int, batch: list[Message], answers: list[Answer], dropped: list[int]
    ) -> None:
        """Keep what an actor says of clients beside their replies."""
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

    def _replace(self, actor: int) -> None:
        """Start a new actor in place of one that died or hangs."""
        self._pool.replace(actor)
        for partition in [p for p, holder in self._holder.items() if holder == actor]:
            del self._holder[partition]
        self._begin(actor)
        if self._client_timeout is not None:  # its start is nobody's work
            ray.get(self._pool.actors[actor].ready.remote())

    def _begin(self, actor: int) -> None:
        begin = self._pool.actors[actor].begin
        begin.remote(self.run_config, self.num_clients, self._clients)

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


@dataclass(frozen=True)
class _Piece:
    """Messages to one actor that are one call of it.

    Attributes:
        batch: The messages.
        sizes: How many of them are a block each; empty for none.
        reduces: Whether the replies of a block are added up; else they are one batch.
        tried: Whether an actor died under them.
        call: The answers to come.
    """

    batch: list[Message]
    sizes: list[int] = field(default_factory=list)
    reduces: bool = False
    tried: bool = False
    call: Any = None

    def smaller(self) -> list["_Piece"]:
        """Return what to try where an actor died: all again, then one by one, then nothing."""
        if not self.tried:
            return [replace(self, tried=True)]
        alone = [1] if self.sizes and not self.reduces else []
        singles = [_Piece([message], alone, tried=True) for message in self.batch]
        return singles if len(singles) > 1 else []


class ActorPool:
    """The actors of a carrier.

    Args:
        count: How many.
        cpus, gpus: What Ray reserves for each.
    """

    def __init__(self, count: int, cpus: int, gpus: float):
        self._actor = ray.remote(num_cpus=cpus, num_gpus=gpus)(ClientActor)
        self._shared: tuple[Clients, Any] | None = None
        self.actors = [self._actor.remote() for _ in range(count)]
        try:
            ray.get([actor.ready.remote() for actor in self.actors])
        except ray.exceptions.RayError as error:
            cause = str(error).strip().splitlines()[-1]
            raise FederationError(f"an actor could not start: {cause}") from None

    def share(self, clients: Clients) -> Any:
        """Return a reference to what clients hold, the same one while it is the same."""
        if self._shared is None or self._shared[0] is not clients:
            # Ray would copy tensors, and with them all that they are views of.
            register_serializer(Tensor, serializer=_numbers, deserializer=torch.from_numpy)
            try:
                self._shared = clients, ray.put(clients)
            finally:
                deregister_serializer(Tensor)
        return self._shared[1]

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


def _numbers(tensor: Tensor) -> np.ndarray:
    found: np.ndarray = tensor.contiguous().numpy()
    return found


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
