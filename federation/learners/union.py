"""The interactions of several platforms as those of one."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from graphcl.datasets import Interactions, InteractionSplit
from graphcl.recommend.sequences import cat_known


class SideBySide(NamedTuple):
    """Platforms side by side.

    Attributes:
        split: The events of all.
        users: The users of each platform in it.
        items: The items of each platform in it.
        label: Class of each item from 0, -1 of one without, int64 ``[num_items + 1]``.
    """

    split: InteractionSplit
    users: list[slice]
    items: list[slice]
    label: Tensor


def side_by_side(
    splits: Sequence[InteractionSplit],
    labels: Sequence[Tensor],
    class_names: Sequence[str],
    one_catalogue: bool,
) -> SideBySide:
    """Number the users of several platforms one after the other, and their items unless shared.

    Args:
        splits: The events of each platform.
        labels: Class of each item of each platform, int64 ``[num_items + 1]``.
        class_names: Names of the classes, which all platforms share.
        one_catalogue: Whether an item has the same number on all of them.
    """
    first = splits[0].train
    sessions = ranges([_num_sessions(split) for split in splits])
    users = ranges([split.train.num_users for split in splits])
    if one_catalogue:
        items, label = [slice(1, first.num_items + 1)] * len(splits), labels[0]
    else:
        items = ranges([split.train.num_items for split in splits], start=1)
        label = torch.cat([labels[0][:1], *(one[1:] for one in labels)])
    text = first.text if one_catalogue else _text([split.train for split in splits])
    joined = [
        _joined(
            parts,
            users,
            items,
            sessions,
            category=label + 1 if class_names else None,
            category_name=("", *class_names) if class_names else None,
            text=text,
        )
        for parts in zip(*splits, strict=True)
    ]
    return SideBySide(InteractionSplit(*joined), users, items, label)


def ranges(sizes: Sequence[int], start: int = 0) -> list[slice]:
    """Return runs of these sizes, one after the other."""
    return [slice(*bounds) for bounds in pairwise(accumulate(sizes, initial=start))]


def _joined(
    parts: Sequence[Interactions],
    users: Sequence[slice],
    items: Sequence[slice],
    sessions: Sequence[slice],
    **features: Any,
) -> Interactions:
    numbered = list(zip(parts, users, items, strict=True))
    known = [
        None if part.session is None else part.session + of.start
        for part, of in zip(parts, sessions, strict=True)
    ]
    return Interactions(
        name="all platforms",
        user=torch.cat([part.user + of.start for part, of, _ in numbered]),
        item=torch.cat([part.item + of.start - 1 for part, _, of in numbered]),
        num_users=users[-1].stop,
        num_items=items[-1].stop - 1,
        time=cat_known([part.time for part in parts]),
        session=cat_known(known),
        **features,
    )


def _num_sessions(split: InteractionSplit) -> int:
    numbers = [part.session for part in split if part.session is not None and len(part)]
    return 1 + max((int(number.max()) for number in numbers), default=-1)


def _text(parts: Sequence[Interactions]) -> Tensor | None:
    """Return the items' embeddings where all have some of one width."""
    known = [part.text for part in parts if part.text is not None]
    if len(known) < len(parts) or len({text.size(1) for text in known}) > 1:
        return None
    return torch.cat([known[0][:1], *(text[1:] for text in known)])
