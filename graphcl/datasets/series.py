"""Series of one graph: what each of its N nodes reported at each of T equal steps of time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from graphcl.datasets.validation import check_names, check_unique, select_indices, split_unit
from graphcl.errors import DataError

DAY = 86_400  # seconds


@dataclass(frozen=True, eq=False, repr=False)
class SpatioTemporalSeries:
    """C channels of the N nodes of one graph over T steps, every ``interval`` seconds.

    NaN in ``values`` is a missing value, and ``mask`` is read off it: the two cannot disagree, and
    code that forgets the mask meets NaN in its first sum instead of a gap that looks like a
    measured 0.  A channel is named with its unit in brackets: ``speed [mph]``, ``flow [1/h]``.

    Time is UTC, where no hour is missing or there twice.

    Shapes:
        - **name**: what to call the series in a message
        - **values**: float32 ``[T, N, C]``, NaN where missing
        - **channel_names**: C unique names with units
        - **node**: N unique names
        - **edge_index**: int64 ``[2, E]``, directed, source above target; E may be 0
        - **edge_weight**: float32 ``[E]``, positive
        - **start**: ``datetime64[s]``, time of the first step; **interval**: seconds
        - **edge_ptr**: int64 ``[T + 1]`` if every step has a graph of its own, that of step t being
          edges ``edge_ptr[t]`` to ``edge_ptr[t + 1]``; None if one graph holds throughout
    """

    name: str
    values: Tensor
    channel_names: tuple[str, ...]
    node: tuple[str, ...]
    edge_index: Tensor
    edge_weight: Tensor
    start: np.datetime64
    interval: int
    edge_ptr: Tensor | None = None

    @property
    def num_steps(self) -> int:
        """T."""
        return self.values.shape[0]

    @property
    def num_nodes(self) -> int:
        """N."""
        return len(self.node)

    @property
    def num_channels(self) -> int:
        """C."""
        return len(self.channel_names)

    @property
    def mask(self) -> Tensor:
        """Whether each value was observed, bool ``[T, N, C]``."""
        return ~self.values.isnan()

    @property
    def time(self) -> np.ndarray:
        """Time of each step, ``datetime64[s]`` ``[T]``."""
        return self.start + np.arange(self.num_steps) * np.timedelta64(self.interval, "s")

    def __repr__(self) -> str:
        edges = f"{self.edge_index.shape[1]} edges{' over all steps' * (self.edge_ptr is not None)}"
        return (
            f"SpatioTemporalSeries({self.name!r}, {self.num_steps} steps of {self.interval} s from "
            f"{self.start}, {self.num_nodes} nodes, {edges}, {', '.join(self.channel_names)}, "
            f"{self.values.isnan().double().mean():.1%} missing)"
        )

    def seconds(self, steps: Tensor) -> Tensor:
        """Return the time of each step, int64 seconds since 1970 in UTC, of any shape."""
        return int(self.start.astype(np.int64)) + steps * self.interval

    def graph(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the graph of one step without a copy: ``[2, E_t]`` edges and ``[E_t]`` weights.

        Raises:
            DataError: There is no such step.
        """
        if not 0 <= step < self.num_steps:
            raise DataError(
                f"{self.name}: graph: step is {step}, must be 0 to {self.num_steps - 1}"
            )
        if self.edge_ptr is None:
            return self.edge_index, self.edge_weight
        edges = slice(int(self.edge_ptr[step]), int(self.edge_ptr[step + 1]))
        return self.edge_index[:, edges], self.edge_weight[edges]

    def at(self, nodes: Tensor | Sequence[int]) -> Self:
        """Return the series of some nodes, in the order given; edges that leave are dropped.

        The part is not validated again: there a channel may be missing everywhere.

        Args:
            nodes: Indices of nodes, int64 and each once, or a boolean mask [N].

        Raises:
            DataError: Nothing is selected, or an index is out of range or repeated.
        """
        index = select_indices(nodes, self.num_nodes, f"{self.name}: at: nodes")
        place = torch.full((self.num_nodes,), -1)
        place[index] = torch.arange(len(index))
        ends = place[self.edge_index]
        kept = (ends >= 0).all(dim=0)
        before = torch.cat([torch.zeros(1, dtype=torch.int64), kept.cumsum(0)])
        return replace(
            self,
            values=self.values[:, index],
            node=tuple(self.node[i] for i in index.tolist()),
            edge_index=ends[:, kept],
            edge_weight=self.edge_weight[kept],
            edge_ptr=None if self.edge_ptr is None else before[self.edge_ptr],
        )

    def between(self, start: int, end: int) -> Self:
        """Return steps ``start`` to ``end - 1``; values and edges are views, never copies.

        The part is not validated again: there a channel may be missing everywhere.

        Raises:
            DataError: The bounds are out of range or enclose no step.
        """
        if not 0 <= start < end <= self.num_steps:
            raise DataError(
                f"{self.name}: between: start is {start} and end {end}, must be 0 <= start < end "
                f"<= {self.num_steps}, the number of steps"
            )
        part = replace(
            self,
            values=self.values[start:end],
            start=self.start + np.timedelta64(start * self.interval, "s"),
        )
        if self.edge_ptr is None:
            return part
        ptr = self.edge_ptr[start : end + 1]
        edges = slice(int(ptr[0]), int(ptr[-1]))
        return replace(
            part,
            edge_index=self.edge_index[:, edges],
            edge_weight=self.edge_weight[edges],
            edge_ptr=ptr - ptr[0],
        )

    def validate(self, name: str | None = None) -> Self:
        """Return the series unchanged after checking every rule of the class.

        Args:
            name: What to call it in a message instead of its own name, usually its file.

        Raises:
            DataError: A rule is broken; the message names the field, the step, node or edge, and
                the rule.
        """
        name = self.name if name is None else name
        _check_names(self, name)
        _check_time(self, name)
        _check_tensors(self, name)
        _check_values(self, name)
        _check_edges(self, name)
        return self


def _check_names(series: SpatioTemporalSeries, name: str) -> None:
    for field in ("node", "channel_names"):
        names = getattr(series, field)
        if not names:
            raise DataError(f"{name}: {field} is empty: give at least one")
        check_names(names, f"{name}: {field}")
        check_unique(names, f"{name}: {field}")
    for channel in series.channel_names:
        if not split_unit(channel)[1]:
            raise DataError(
                f"{name}: channel_names holds {channel!r}: name the unit in brackets, such "
                "as 'speed [mph]' or, for a number without one, 'occupancy [1]'"
            )


def _check_time(series: SpatioTemporalSeries, name: str) -> None:
    start = series.start
    if not isinstance(start, np.datetime64) or start.dtype != np.dtype("M8[s]"):
        raise DataError(
            f"{name}: start is {start!r}, must be a datetime64[s], "
            "numpy.datetime64('2012-03-01T08:00', 's')"
        )
    if np.isnat(start):
        raise DataError(f"{name}: start is no time (NaT): give the time of the first step")
    if not isinstance(series.interval, int) or series.interval < 1:
        raise DataError(
            f"{name}: interval is {series.interval!r}, must be a whole number of seconds, "
            "at least 1"
        )


def _check_tensors(series: SpatioTemporalSeries, name: str) -> None:
    T, E = series.num_steps, series.edge_index.shape[-1]
    wanted = {
        "values": (torch.float32, "[T, N, C]", [T, series.num_nodes, series.num_channels]),
        "edge_index": (torch.int64, "[2, E]", [2, E]),
        "edge_weight": (torch.float32, "[E]", [E]),
        "edge_ptr": (torch.int64, "[T + 1]", [T + 1]),
    }
    for field, (dtype, letters, shape) in wanted.items():
        value = getattr(series, field)
        if field == "edge_ptr" and value is None:
            continue
        if value.dtype != dtype:
            raise DataError(f"{name}: {field} is {value.dtype}, must be {dtype}: convert it")
        if list(value.shape) != shape:
            raise DataError(
                f"{name}: {field} has shape {list(value.shape)}, must be {letters} with "
                f"T = {T} steps, N = {series.num_nodes} nodes, C = {series.num_channels} "
                f"channel_names, E = {E} edges"
            )
    if T == 0:
        raise DataError(f"{name}: values has no step: give at least one")


def _check_values(series: SpatioTemporalSeries, name: str) -> None:
    infinite = series.values.isinf()
    if infinite.any():
        step, node, channel = infinite.nonzero()[0].tolist()
        raise DataError(
            f"{name}: values[{step}, {node}, {channel}] is "
            f"{series.values[step, node, channel].item()} ({int(infinite.sum())} such), "
            f"{series.channel_names[channel]!r} of node {series.node[node]!r} at "
            f"{series.time[step]}: write a number, or leave the value missing (NaN)"
        )
    missing = series.values.isnan().flatten(end_dim=1).all(dim=0).nonzero()
    if len(missing):
        raise DataError(
            f"{name}: {series.channel_names[int(missing[0])]!r} is missing everywhere: fill "
            "it in or leave the channel out"
        )


def _check_edges(series: SpatioTemporalSeries, name: str) -> None:
    edges, weight, N = series.edge_index, series.edge_weight, series.num_nodes
    bad = ((edges < 0) | (edges >= N)).any(dim=0).nonzero()
    if len(bad):
        edge = int(bad[0])
        raise DataError(
            f"{name}: edge_index[:, {edge}] is {edges[:, edge].tolist()} ({len(bad)} such), "
            f"but the nodes are 0 to {N - 1}: number them by their place in values, from 0"
        )
    bad = (~weight.isfinite() | (weight <= 0)).nonzero()
    if len(bad):
        edge = int(bad[0])
        raise DataError(
            f"{name}: edge_weight[{edge}] is {weight[edge].item()} ({len(bad)} such), must "
            "be positive and finite: leave the edge out if it weighs nothing"
        )
    pair = edges[0] * N + edges[1]
    if series.edge_ptr is not None:
        _check_edge_ptr(series, series.edge_ptr, name)
        pair = pair + N * N * torch.arange(series.num_steps).repeat_interleave(
            series.edge_ptr.diff()
        )
    pairs, times = pair.unique(return_counts=True)
    if len(pairs) < len(pair):
        repeated = int(pairs[times > 1][0]) % (N * N)
        raise DataError(
            f"{name}: edge_index holds {[repeated // N, repeated % N]} more than once in "
            "one graph: write each edge once"
        )


def _check_edge_ptr(series: SpatioTemporalSeries, ptr: Tensor, name: str) -> None:
    falls = (ptr.diff() < 0).nonzero()
    if len(falls):
        raise DataError(f"{name}: edge_ptr falls after step {int(falls[0])}, must never decrease")
    E = series.edge_index.shape[1]
    if int(ptr[0]) != 0 or int(ptr[-1]) != E:
        raise DataError(
            f"{name}: edge_ptr runs from {int(ptr[0])} to {int(ptr[-1])}, must run from 0 "
            f"to the {E} edges"
        )
