"""What fills the target and the candidates slot: constant matrices read by blocks of rows.

Both slots hold the same kind of thing, a non-negative matrix ``[N, M]`` over (query, key) pairs
through which no gradient flows. It may be too large to exist, so it only ever shows one block of
rows, and structured matrices never show even that.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from graphcl.errors import GraphCLError

TileFunction = Callable[[slice], Tensor]


class PairWeights(ABC):
    """A constant, non-negative matrix ``[N, M]`` that is read one block of rows at a time.

    A subclass must provide :meth:`tile`; it overrides the other methods where the structure of its
    matrix makes them cheaper than a full tile.
    """

    @abstractmethod
    def tile(self, rows: slice, like: Tensor) -> Tensor:
        """Return the rows ``rows``, ``[B, M]``, in the type and on the device of ``like``."""

    def check(self, n_rows: int, n_columns: int, slot: str) -> None:  # noqa: B027
        """Raise unless the matrix fits ``n_rows`` queries and ``n_columns`` keys.

        Args:
            n_rows: Number of queries N.
            n_columns: Number of keys M.
            slot: The slot's name, for the message.

        Raises:
            GraphCLError: A size or an index does not fit.
        """

    def pull(self, logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """Return ``sum_j A_ij logits_ij`` and ``sum_j A_ij`` for the rows of one block."""
        weights = self.tile(rows, logits)
        return (weights * logits).sum(1), weights.sum(1)

    def subtract_(self, block: Tensor, rows: slice, scale: Tensor) -> None:
        """Subtract ``scale_i A_ij`` from the block, in place."""
        block.addcmul_(self.tile(rows, block), scale[:, None], value=-1)

    def mask_(self, logits: Tensor, rows: slice) -> None:
        """Add ``log A_ij`` to the logits, in place: minus infinity for a weight of zero."""
        logits.add_(self.tile(rows, logits).log())


class _Indexed(PairWeights):
    """A matrix that is told by at most one column per row; -1 stands for no column."""

    def __init__(self, index: Tensor) -> None:
        if index.dim() != 1 or not _is_integer(index):
            raise GraphCLError(
                f"{type(self).__name__}: index has shape {tuple(index.shape)} and type "
                f"{index.dtype}; pass one integer per row"
            )
        self.index = index.detach().long()

    def check(self, n_rows: int, n_columns: int, slot: str) -> None:
        """Raise unless there is one column in ``[-1, n_columns)`` for each row."""
        name = f"{slot}: {type(self).__name__}"
        _check_length(name, self.index, n_rows, "queries")
        if not n_rows:
            return
        low, high = (int(bound) for bound in self.index.aminmax())
        if low < -1 or high >= n_columns:
            wrong = low if low < -1 else high
            raise GraphCLError(
                f"{name} holds the index {wrong}, but there are {n_columns} keys; "
                f"use 0 to {n_columns - 1}, or -1 for none"
            )

    def _at(self, rows: slice, value: Tensor | float, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return each row's column and ``value`` there, 0 for a row that has no column."""
        index = self.index[rows].to(like.device)
        present = index >= 0
        values = torch.where(present, value, 0).to(like)
        return index.clamp_min(0)[:, None], values[:, None]


class PositiveIndex(_Indexed):
    """One positive key per query: ``A_ij = 1`` where j is ``index[i]``, else 0.

    Shapes:
        index: ``[N]`` integers in ``[-1, M)``; -1 gives the query no positive.

    Raises:
        GraphCLError: The index is not one integer per query or points outside the keys.

    Example:
        >>> PositiveIndex(torch.tensor([1, -1])).tile(slice(0, 2), torch.empty(2, 3))
        tensor([[0., 1., 0.],
                [0., 0., 0.]])
    """

    def tile(self, rows: slice, like: Tensor) -> Tensor:
        """Return a block of one-hot rows."""
        return torch.zeros_like(like).scatter_add_(1, *self._at(rows, 1.0, like))

    def pull(self, logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """Return the positive's logit and 1, or twice 0 for a row without a positive."""
        index, present = self._at(rows, 1.0, logits)
        # Not `gather`: autograd would keep the logits for it, and they are masked in place later.
        positive = logits[torch.arange(len(index), device=index.device), index.squeeze(1)]
        return positive * present.squeeze(1), present.squeeze(1)

    def subtract_(self, block: Tensor, rows: slice, scale: Tensor) -> None:
        """Subtract the row's scale at its positive, in place."""
        block.scatter_add_(1, *self._at(rows, -scale, block))


class ExcludeIndex(_Indexed):
    """Every key but one per query: ``A_ij = 0`` where j is ``index[i]``, else 1.

    Shapes:
        index: ``[N]`` integers in ``[-1, M)``; -1 excludes nothing.

    Raises:
        GraphCLError: The index is not one integer per query or points outside the keys.

    Example:
        >>> ExcludeIndex(torch.tensor([1, -1])).tile(slice(0, 2), torch.empty(2, 3))
        tensor([[1., 0., 1.],
                [1., 1., 1.]])
    """

    def tile(self, rows: slice, like: Tensor) -> Tensor:
        """Return a block of ones with a zero at each excluded pair."""
        return torch.ones_like(like).scatter_add_(1, *self._at(rows, -1.0, like))

    def mask_(self, logits: Tensor, rows: slice) -> None:
        """Set the logit of each excluded pair to minus infinity, in place."""
        logits.scatter_add_(1, *self._at(rows, -torch.inf, logits))


class SameLabel(PairWeights):
    """All keys of the query's label, in equal shares: ``A_ij = 1 / |P(i)|`` for j in ``P(i)``.

    Shapes:
        rows: ``[N]`` integer labels of the queries.
        columns: ``[M]`` integer labels of the keys; the queries' own by default.

    Args:
        rows: Labels of the queries.
        columns: Labels of the keys.
        exclude_self: Whether key i is left out of ``P(i)``; by default exactly where the keys are
            the queries.

    Raises:
        GraphCLError: The labels are not one integer per query and per key.

    Example:
        >>> SameLabel(torch.tensor([0, 0, 0, 1])).tile(slice(0, 2), torch.empty(2, 4))
        tensor([[0.0000, 0.5000, 0.5000, 0.0000],
                [0.5000, 0.0000, 0.5000, 0.0000]])
    """

    def __init__(
        self, rows: Tensor, columns: Tensor | None = None, *, exclude_self: bool | None = None
    ) -> None:
        for labels in (rows, rows if columns is None else columns):
            if labels.dim() != 1 or not _is_integer(labels):
                raise GraphCLError(
                    f"SameLabel: labels have shape {tuple(labels.shape)} and type "
                    f"{labels.dtype}; pass one integer per row"
                )
        self.rows = rows
        self.columns = rows if columns is None else columns
        self.exclude_self = columns is None if exclude_self is None else exclude_self

    def check(self, n_rows: int, n_columns: int, slot: str) -> None:
        """Raise unless there is one label for each query and each key."""
        _check_length(f"{slot}: SameLabel", self.rows, n_rows, "queries")
        _check_length(f"{slot}: SameLabel", self.columns, n_columns, "keys")

    def tile(self, rows: slice, like: Tensor) -> Tensor:
        """Return a block of rows, each of which sums to one or is all zero."""
        same = (self.rows[rows, None] == self.columns[None, :]).to(like)
        if self.exclude_self and rows.start < like.shape[1]:
            same.diagonal(offset=rows.start).zero_()
        return same.div_(same.sum(1, keepdim=True).clamp_min_(1))


class _Tiles(PairWeights):
    """Any matrix, given by a function from a slice of rows to that block."""

    def __init__(self, function: TileFunction, slot: str) -> None:
        self.function = function
        self.slot = slot

    def tile(self, rows: slice, like: Tensor) -> Tensor:
        """Return the function's block after a look at its shape and its sign."""
        return self._block(rows, like).to(like)

    def mask_(self, logits: Tensor, rows: slice) -> None:
        """Add the logarithm of the block, in place; of truth values without computing it."""
        block = self._block(rows, logits)
        if block.dtype == torch.bool:
            logits.masked_fill_(block.logical_not().to(logits.device), -torch.inf)
        else:
            logits.add_(block.to(logits).log())

    def _block(self, rows: slice, like: Tensor) -> Tensor:
        block = self.function(rows)
        if block.shape != like.shape:
            raise GraphCLError(
                f"{self.slot}: the block of rows {rows.start} to {rows.stop - 1} has shape "
                f"{tuple(block.shape)}; return {tuple(like.shape)}, one column per key"
            )
        # A comparison with NaN is false, so this form of the test refuses NaN too.
        if block.dtype != torch.bool and not bool(block.min() >= 0):
            raise GraphCLError(
                f"{self.slot}: rows {rows.start} to {rows.stop - 1} hold a negative value or NaN; "
                "pass weights of zero or more"
            )
        return block.detach()


def as_pair_weights(
    value: PairWeights | Tensor | TileFunction, n_rows: int, n_columns: int, slot: str
) -> PairWeights:
    """Return the filler of a slot as :class:`PairWeights` that fit N queries and M keys.

    Args:
        value: Pair weights, a dense ``[N, M]`` tensor, or a function from a slice of rows to its
            block ``[rows, M]``.
        n_rows: Number of queries N.
        n_columns: Number of keys M.
        slot: The slot's name, for messages.

    Raises:
        GraphCLError: The value is of another kind or does not fit.
    """
    if isinstance(value, Tensor):
        if value.shape != (n_rows, n_columns):
            raise GraphCLError(
                f"{slot} has shape {tuple(value.shape)}; pass [{n_rows}, {n_columns}], one row per "
                "query and one column per key, or PositiveIndex, ExcludeIndex or SameLabel"
            )
        return _Tiles(value.__getitem__, slot)
    if isinstance(value, PairWeights):
        value.check(n_rows, n_columns, slot)
        return value
    if callable(value):
        return _Tiles(value, slot)
    raise GraphCLError(
        f"{slot} is a {type(value).__name__}; pass pair weights, a tensor or a function of a slice"
    )


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _check_length(name: str, tensor: Tensor, expected: int, what: str) -> None:
    if len(tensor) != expected:
        raise GraphCLError(
            f"{name} has {len(tensor)} entries for {expected} {what}; pass one for each"
        )
