"""FedAvg and FedProx over large cohorts: a mean of sums over blocks of clients.

A cohort falls into blocks of neighbours by partition. A block's sum is taken in double precision,
one client after the other, and the mean is of the blocks' sums in their order. So it is the same to
the bit whoever adds a block up, the server or a process that served it
(:mod:`simulations.carriers.reduction`), and the server holds no more than one sum of each block.
"""

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, FedProx
from torch import Tensor

from federation.records import to_arrays, to_tensors
from federation.strategies.base import Facts

# The record in which the first reply of a block has what all add up to; empty in the others.
SUM = "sum"
_BLOCKS = 32  # at most; enough to share them out evenly


def block_size(clients: int) -> int:
    """Return how many clients of a cohort share a sum; 1 where the cohort is small."""
    return max(1, -(-clients // _BLOCKS))


def add_reply(sums: dict[str, Tensor], content: RecordDict) -> None:
    """Add a reply's arrays to float64 sums, as often as it has samples."""
    samples = float(content.metric_records["metrics"]["num-examples"])  # type: ignore[arg-type]
    for name, value in to_tensors(content.array_records["arrays"]).items():
        weighted = value.double().mul_(samples)
        sums[name] = sums[name].add_(weighted) if name in sums else weighted


class _MeanOfSums:
    """What takes the place of Flower's mean where a cohort has blocks of several clients.

    Attributes:
        exact: Whether small cohorts are summed in double precision, too. Flower's mean of weights
            that nobody changed differs from them by rounding.

    Args:
        facts: What the nodes told before the first round.
        in_blocks: False where aggregates are of few, who did not begin together.
        options: Of Flower's strategy.
    """

    exact: ClassVar[bool] = False

    def __init__(self, facts: Facts, in_blocks: bool = True, **options: Any):
        super().__init__(**options)
        self._facts = facts
        self._in_blocks = in_blocks
        self._size, self._block = 1, dict[int, int]()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        messages: list[Message] = list(
            super().configure_train(server_round, arrays, config, grid)  # type: ignore[misc]
        )
        self._types = {name: getattr(torch, array.dtype) for name, array in arrays.items()}
        if not self._in_blocks:
            return messages
        nodes = [message.metadata.dst_node_id for message in messages]
        self._size = block_size(len(nodes))
        ordered = sorted(nodes, key=self._facts.nodes.__getitem__)
        self._block = {node: place // self._size for place, node in enumerate(ordered)}
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the arrays by training samples; the replies come in the order of partitions."""
        if self._size == 1 and not self.exact:
            mean: tuple[ArrayRecord | None, MetricRecord | None]
            mean = super().aggregate_train(server_round, replies)  # type: ignore[misc]
            return mean
        samples, blocks = 0.0, dict[int, dict[str, Tensor]]()
        for reply in replies:
            content, block = reply.content, self._block.get(reply.metadata.src_node_id, 0)
            samples += float(content.metric_records["metrics"]["num-examples"])  # type: ignore[arg-type]
            if SUM not in content:
                add_reply(blocks.setdefault(block, {}), content)
            elif block not in blocks:  # the sum is in the first reply of a block
                blocks[block] = to_tensors(content.array_records[SUM])
        if not blocks:
            return None, None
        total, *others = blocks.values()
        for sums in others:
            for name, value in sums.items():
                total[name].add_(value)
        mean_of = {name: (value / samples).to(self._types[name]) for name, value in total.items()}
        return to_arrays(mean_of), None


class BlockFedAvg(_MeanOfSums, FedAvg):
    """FedAvg (McMahan et al., 2017)."""


class BlockFedProx(_MeanOfSums, FedProx):
    """FedProx (Li et al., 2020)."""
