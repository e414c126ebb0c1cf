"""Local-only training: the baseline that every federation must beat."""

from collections.abc import Iterable

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from federation.experiment import Experiment
from federation.strategies.base import Algorithm, Exchange, Facts, MessageStrategy


class LocalExchange(Exchange):
    """Client half: nothing comes, nothing goes."""

    def receive(self, content: RecordDict) -> None:
        pass

    def reply(self) -> RecordDict:
        return RecordDict()


class LocalOnly(MessageStrategy):
    """Server half: starts the rounds, exchanges nothing but metrics."""

    def content_for(self, partition: int) -> dict[str, ArrayRecord]:
        return {}

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        return ArrayRecord(), None

    def state(self) -> RecordDict:
        return RecordDict()

    def load_state(self, state: RecordDict) -> None:
        pass


def _check(content: RecordDict, arrays: ArrayRecord, experiment: Experiment, facts: Facts) -> None:
    """Accept every reply: it holds metrics only."""


LOCAL = Algorithm(LocalExchange, lambda experiment, facts: LocalOnly(facts), (), _check)
