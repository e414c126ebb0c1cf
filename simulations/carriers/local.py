"""The in-process carrier: one client after the other, for debugging and unit tests."""

import time
from collections.abc import Mapping

from flwr.app import Message, RecordDict

from federation.client_app import app as client_app
from federation.client_app import forget_learners
from federation.experiment import Experiment
from federation.records import from_bytes, to_bytes
from simulations.carriers.base import (
    Carrier,
    SimulatedGrid,
    ailment_of,
    client_context,
    error_reply,
    partition_of,
    same_records,
)


class LocalGrid(SimulatedGrid):
    """Calls the ClientApp directly. A client that hangs cannot be interrupted here."""

    def __init__(self, experiment: Experiment):
        super().__init__(experiment)
        self._experiment = experiment
        self.contexts = {
            partition: client_context(partition, self.run_config, self.num_clients)
            for partition in range(self.num_clients)
        }
        self._saved: dict[int, dict[str, object]] = {p: {} for p in self.contexts}

    def deliver(self, messages: list[Message], timeout: float | None) -> list[Message]:
        return [self._answer(message) for message in messages]

    def _answer(self, message: Message) -> Message:
        ailment = ailment_of(message, self._experiment)
        if ailment == "slow":
            time.sleep(self._experiment.faults.slow_seconds)
        elif ailment:  # it must not take the only process there is with it
            return error_reply(message, f"fault plan: {ailment}")
        return client_app(message, self.contexts[partition_of(message)])

    def take_client_states(self) -> dict[int, bytes]:
        changed = {}
        for partition, context in self.contexts.items():
            if not same_records(context.state, self._saved[partition]):
                self._saved[partition] = dict(context.state)
                changed[partition] = to_bytes(context.state)
        return changed

    def put_client_states(self, states: Mapping[int, bytes]) -> None:
        for partition, context in self.contexts.items():
            context.state = from_bytes(states[partition]) if partition in states else RecordDict()
            self._saved[partition] = dict(context.state)


class LocalCarrier(Carrier):
    """Everything in this process."""

    def start(self) -> None:
        pass

    def close(self) -> None:
        pass

    def run(self, experiment: Experiment) -> None:
        forget_learners()
        LocalGrid(experiment).serve()
