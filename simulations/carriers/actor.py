"""The process of the Ray carrier in which clients live: their contexts, models and replies."""

import itertools
import logging
import os
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import ray
from flwr.app import ArrayRecord, Message, RecordDict

from federation.experiment import Scalar
from federation.learners import Clients, adopt_clients
from simulations.carriers.base import ailment_of, client_context, error_reply, partition_of
from simulations.carriers.contexts import Contexts
from simulations.carriers.reduction import reduced


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
        from federation.client_app import app, experiment_of, forget_learners, train_together

        self._app, self._train_together = app, train_together
        self._forget, self._experiment_of = forget_learners, experiment_of

    def ready(self) -> None:
        """Answer once the process is up."""

    def begin(self, run_config: dict[str, Scalar], num_clients: int, clients: Clients) -> None:
        """Forget the clients of any earlier run, and take what those of this one hold."""
        self._forget()
        self._experiment = self._experiment_of(run_config)
        adopt_clients(self._experiment, clients)
        self._dropped: list[int] = []
        self._contexts = Contexts(
            lambda partition: client_context(partition, run_config, num_clients),
            stored={},
            dropped=self._dropped.append,
        )

    def handle(
        self,
        messages: list[Message],
        sizes: list[int],
        reduces: bool,
        states: dict[int, bytes | None],
        stored: dict[str, Any],
    ) -> tuple[list[Answer], list[int]]:
        """Answer messages in order.

        Args:
            messages: To any clients.
            sizes: How many of them, one after the other, are a block; empty for none.
            reduces: Whether the replies of a block are added up; else they are one batch.
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
        self._contexts.pinned = {partition_of(message) for message in messages} - set(states)
        answers = []
        given = self._answers(messages, sizes, reduces, shared)
        for message, answer in zip(messages, given, strict=True):
            if answer.state is not None:
                own[partition_of(message)] = answer.state
            answers.append(answer)
        self._contexts.pinned = set()
        self._contexts.stored = {}
        dropped = self._dropped.copy()
        self._dropped.clear()
        return answers, dropped

    def _answers(
        self,
        messages: list[Message],
        sizes: list[int],
        reduces: bool,
        shared: dict[str, ArrayRecord],
    ) -> Iterator[Answer]:
        """Answer messages one after the other, or so many at once each time."""
        if not sizes:
            yield from (self._answer(message, shared) for message in messages)
        left, answer = iter(messages), self._answer_reduced if reduces else self._answer_together
        for size in sizes:
            yield from answer(list(itertools.islice(left, size)), shared)

    def _answer_reduced(
        self, messages: list[Message], shared: dict[str, ArrayRecord]
    ) -> list[Answer]:
        answers: list[Answer] = []

        def replies() -> Iterator[Message]:
            for message in messages:
                answers.append(self._answer(message, shared))
                yield answers[-1].reply

        kept = reduced(messages, replies())
        return [answer._replace(reply=r) for answer, r in zip(answers, kept, strict=True)]

    def _answer_together(
        self, messages: list[Message], shared: dict[str, ArrayRecord]
    ) -> list[Answer]:
        started, partitions = time.perf_counter(), [partition_of(message) for message in messages]
        for message in messages:
            message.content = RecordDict({**message.content, **shared})
        replies = self._train_together(messages, self._contexts.gather(partitions))
        states = self._contexts.take_changed()
        seconds = (time.perf_counter() - started) / len(messages)
        return [
            Answer(reply, states.get(partition), seconds)
            for partition, reply in zip(partitions, replies, strict=True)
        ]

    def _answer(self, message: Message, shared: dict[str, ArrayRecord]) -> Answer:
        started, partition = time.perf_counter(), partition_of(message)
        context = self._contexts[partition]
        if (ailment := ailment_of(message, self._experiment)) and not self._outlives(ailment):
            return Answer(error_reply(message, f"fault plan: {ailment}"), None, 0.0)
        message.content = RecordDict({**message.content, **shared})
        reply = self._app(message, context)
        state = self._contexts.take_changed().get(partition)
        return Answer(reply, state, time.perf_counter() - started)

    def _outlives(self, ailment: str) -> bool:
        """Suffer a fault of the plan; return whether there is anything left to do."""
        if ailment == "crash":
            os._exit(1)
        if ailment in ("hang", "slow"):
            time.sleep(1e9 if ailment == "hang" else self._experiment.faults.slow_seconds)
        return ailment == "slow"
