"""The in-process carrier: one client after the other, for debugging and unit tests."""

import time
from collections.abc import Iterable, Mapping

import torch
from flwr.app import Message

from federation.client_app import app as client_app
from federation.client_app import forget_learners, train_together
from federation.experiment import Experiment
from graphcl.training import num_threads
from simulations.carriers.base import (
    Carrier,
    SimulatedGrid,
    ailment_of,
    client_context,
    error_reply,
    partition_of,
)
from simulations.carriers.contexts import Contexts
from simulations.carriers.reduction import reduced


class LocalGrid(SimulatedGrid):
    """Calls the ClientApp directly. A client that hangs cannot be interrupted here."""

    def __init__(self, experiment: Experiment):
        super().__init__(experiment)
        self._experiment = experiment
        self.put_client_states({})

    def deliver(self, messages: list[Message], timeout: float | None) -> list[Message]:
        with num_threads(torch.get_num_threads()):  # clients set their own, the server's stay
            return self._answers(messages)

    def _answers(self, messages: list[Message]) -> list[Message]:
        together, reduces = self.batched(messages), self.reduces(messages)
        if not together and not reduces:
            return [self._answer(message) for message in messages]
        replies: dict[int, Message] = {}
        for block in self.blocks(messages):
            sent = [messages[position] for position in block]
            answers = self._answer_together(sent) if together else map(self._answer, sent)
            answers = reduced(sent, answers) if reduces else answers
            replies |= dict(zip(block, answers, strict=True))
        return [replies[position] for position in range(len(messages))]

    def _answer_together(self, messages: list[Message]) -> Iterable[Message]:
        contexts = self.contexts.gather([partition_of(message) for message in messages])
        return train_together(messages, contexts)

    def _answer(self, message: Message) -> Message:
        ailment = ailment_of(message, self._experiment)
        if ailment == "slow":
            time.sleep(self._experiment.faults.slow_seconds)
        elif ailment:  # it must not take the only process there is with it
            return error_reply(message, f"fault plan: {ailment}")
        return client_app(message, self.contexts[partition_of(message)])

    def take_client_states(self) -> dict[int, bytes]:
        return self.contexts.take_changed()

    def put_client_states(self, states: Mapping[int, bytes]) -> None:
        self.contexts = Contexts(
            lambda partition: client_context(partition, self.run_config, self.num_clients), states
        )

    def rest_client_states(self, states: Mapping[int, bytes]) -> None:
        self.contexts.stored = states


class LocalCarrier(Carrier):
    """Everything in this process."""

    def start(self) -> None:
        pass

    def close(self) -> None:
        pass

    def run(self, experiment: Experiment) -> None:
        forget_learners()
        LocalGrid(experiment).serve()
