"""Replies that are added up where they are made, so that one sum travels for a block of clients."""

from collections.abc import Iterable, Sequence
from functools import partial

from flwr.app import ArrayRecord, Message, RecordDict
from torch import Tensor

from federation.experiment import Experiment
from federation.records import to_arrays
from federation.replies import check_training_reply, objection
from federation.strategies import ALGORITHMS
from federation.strategies.sums import SUM, add_reply
from federation.strategies.weights import check_weights


def reducible(experiment: Experiment) -> bool:
    """Say whether sums are all that the server needs of replies.

    They are not where it reads or changes replies one by one, nor where clients keep something, so
    that it matters who serves them.
    """
    algorithm = ALGORITHMS[experiment.strategy.name]
    return (
        algorithm.averages
        and not algorithm.exchange.keeps(experiment)
        and not experiment.faults.summary
        and not experiment.asynchronous
        and not experiment.simulation.batch_clients
    )


def reduced(messages: Sequence[Message], replies: Iterable[Message]) -> list[Message]:
    """Return the replies to a block with the sum in place of the first one's arrays.

    The others have an empty sum. A reply that must not enter the aggregate stays as it is, for the
    server to refuse.

    Args:
        messages: To the clients of a block, in the order of their partitions.
        replies: To each of them; of an iterator one at a time is in memory.
    """
    sums: dict[str, Tensor] = {}
    kept: list[Message] = []
    summed: list[Message] = []
    for message, reply in zip(messages, replies, strict=True):
        own = partial(check_weights, arrays=message.content.array_records["arrays"])
        check = partial(check_training_reply, arrays=("arrays",), check_reply=own)
        kept.append(reply)
        if reply.has_error() or objection(check, reply.content, message.metadata.dst_node_id - 1):
            continue
        add_reply(sums, reply.content)
        reply.content = RecordDict({"metrics": reply.content["metrics"], SUM: ArrayRecord()})
        summed.append(reply)
    if summed:
        summed[0].content[SUM] = to_arrays(sums)
    return kept
