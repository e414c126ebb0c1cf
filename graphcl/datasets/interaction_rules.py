"""The rules of :class:`graphcl.datasets.Interactions`, each with the message of who breaks it."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from graphcl.datasets.validation import check_names, check_unique
from graphcl.errors import DataError

if TYPE_CHECKING:
    from graphcl.datasets.interactions import Interactions

_LATEST = 253_402_300_799  # the last second of the year 9999
_NAMES = (  # field, what it has an entry for, whether the first entry is padding's
    ("user_name", "num_users", False),
    ("item_name", "num_items", True),
    ("title", "num_items", True),
)


def check_fields(interactions: "Interactions", name: str) -> None:
    """Check all but the order of the rows.

    Raises:
        DataError: A rule is broken; the message names the field, the row and the rule.
    """
    if not len(interactions):
        raise DataError(f"{name}: there is no interaction: give at least one")
    for field in ("num_users", "num_items"):
        value = getattr(interactions, field)
        if not isinstance(value, int) or value < 1:
            raise DataError(f"{name}: {field} is {value!r}, must be an integer, at least 1")
    _check_tensors(interactions, name)
    _check_ids(interactions, name)
    _check_names(interactions, name)
    _check_features(interactions, name)
    _check_attributes(interactions, name)


def _check_tensors(interactions: "Interactions", name: str) -> None:
    n, rows = len(interactions), interactions.num_items + 1
    width = 0 if interactions.text is None else interactions.text.shape[-1]
    m = 0 if interactions.attribute is None else interactions.attribute.numel()
    wanted = {
        "user": (torch.int64, "[n]", [n]),
        "item": (torch.int64, "[n]", [n]),
        "time": (torch.int64, "[n]", [n]),
        "session": (torch.int64, "[n]", [n]),
        "category": (torch.int64, "[num_items + 1]", [rows]),
        "text": (torch.float32, "[num_items + 1, D]", [rows, max(width, 1)]),
        "attribute": (torch.int64, "[m]", [m]),
        "attribute_indptr": (torch.int64, "[num_items + 2]", [rows + 1]),
    }
    for field, (dtype, letters, shape) in wanted.items():
        value = getattr(interactions, field)
        if value is None:
            continue
        if value.dtype != dtype:
            raise DataError(f"{name}: {field} is {value.dtype}, must be {dtype}: convert it")
        if list(value.shape) != shape:
            raise DataError(
                f"{name}: {field} has shape {list(value.shape)}, must be {letters} with n = {n} "
                f"interactions, num_items = {interactions.num_items}, D at least 1"
            )


def _check_ids(interactions: "Interactions", name: str) -> None:
    for field, first, last, rule in (
        ("user", 0, interactions.num_users - 1, "number the users from 0"),
        ("item", 1, interactions.num_items, "number the items from 1, for 0 is padding"),
        ("time", -_LATEST, _LATEST, "write seconds since 1970, not milliseconds"),
    ):
        value = getattr(interactions, field)
        if value is None:
            continue
        bad = ((value < first) | (value > last)).nonzero()
        if len(bad):
            row = int(bad[0])
            raise DataError(
                f"{name}: {field}[{row}] is {int(value[row])} ({len(bad)} such), must be {first} "
                f"to {last}: {rule}"
            )


def _check_names(interactions: "Interactions", name: str) -> None:
    for field, count, padded in _NAMES:
        names = getattr(interactions, field)
        if names is None:
            continue
        wanted = getattr(interactions, count) + padded
        if len(names) != wanted:
            raise DataError(
                f"{name}: {field} has {len(names)} entries, must have {wanted}, {count}"
                f"{' and one for padding' * padded}"
            )
        if padded and names[0]:
            raise DataError(f"{name}: {field}[0] is {names[0]!r}, must be '': 0 is padding")
        if field != "title":
            check_names(names[padded:], f"{name}: {field}{'[1:]' * padded}")
            check_unique(names, f"{name}: {field}")


def _check_features(interactions: "Interactions", name: str) -> None:
    category, names = interactions.category, interactions.category_name
    if (category is None) != (names is None):
        raise DataError(f"{name}: category and category_name go together: give both or neither")
    if category is not None and names is not None:
        if not names or names[0]:
            raise DataError(f"{name}: category_name[0] must be '', the name of no category")
        check_names(names[1:], f"{name}: category_name[1:]")
        check_unique(names, f"{name}: category_name")
        bad = ((category < 0) | (category >= len(names))).nonzero()
        if len(bad):
            row = int(bad[0])
            raise DataError(
                f"{name}: category[{row}] is {int(category[row])} ({len(bad)} such), must be 0 to "
                f"{len(names) - 1} for the {len(names)} of category_name"
            )
    text = interactions.text
    if text is not None:
        bad = (~text.isfinite()).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            raise DataError(
                f"{name}: text[{row}, {column}] is {text[row, column].item()} ({len(bad)} such), "
                "must be finite: write a row of zeros for an item without text"
            )
    for field, value in (("category", category), ("text", text)):
        if value is not None and value[0].any():
            raise DataError(f"{name}: {field}[0] must be 0: item 0 is padding")


def _check_attributes(interactions: "Interactions", name: str) -> None:
    attribute, indptr = interactions.attribute, interactions.attribute_indptr
    if attribute is None or indptr is None:
        if attribute is not indptr:
            raise DataError(
                f"{name}: attribute and attribute_indptr go together: give both or neither"
            )
        return
    bad = (attribute < 0).nonzero()
    if len(bad):
        row = int(bad[0])
        raise DataError(
            f"{name}: attribute[{row}] is {int(attribute[row])} ({len(bad)} such), must be at "
            "least 0: leave out what is not known"
        )
    ends = [int(indptr[0]), int(indptr[1]), int(indptr[-1])]
    if ends != [0, 0, len(attribute)]:
        raise DataError(
            f"{name}: attribute_indptr begins with {ends[0]}, {ends[1]} and ends with {ends[2]}, "
            f"must begin with 0, 0, for item 0 is padding, and end with {len(attribute)}, the "
            "entries of attribute"
        )
    falls = (indptr.diff() < 0).nonzero()
    if len(falls):
        raise DataError(
            f"{name}: attribute_indptr falls after item {int(falls[0])}, must never decrease"
        )


def check_order(interactions: "Interactions", name: str) -> None:
    """Check that rows are sorted by user and then by time, and that sessions are whole.

    Raises:
        DataError: They are not; the message names the field, the row and the rule.
    """
    user, time, session = interactions.user, interactions.time, interactions.session
    same = user.diff() == 0
    falls = (user.diff() < 0).nonzero()
    if len(falls):
        row = int(falls[0]) + 1
        raise DataError(
            f"{name}: user[{row}] is {int(user[row])} after {int(user[row - 1])}: sort the rows by "
            "user and then by time, as sort() does"
        )
    if time is not None:
        falls = (same & (time.diff() < 0)).nonzero()
        if len(falls):
            row = int(falls[0]) + 1
            raise DataError(
                f"{name}: time[{row}] is {int(time[row])} after {int(time[row - 1])} of the same "
                f"user, {int(user[row])} ({len(falls)} such): sort the rows, as sort() does"
            )
    if session is not None:
        _check_sessions(session, same, name)


def _check_sessions(session: Tensor, same_user: Tensor, name: str) -> None:
    """Check that no session is left and entered again, or goes on at another user."""
    starts = torch.cat([same_user.new_ones(1), (session.diff() != 0) | ~same_user]).nonzero()[:, 0]
    ids, times = session[starts].unique(return_counts=True)
    if len(ids) < len(starts):
        again = int(ids[times > 1][0])
        row = int(starts[session[starts] == again][1])
        raise DataError(
            f"{name}: session[{row}], in the order of user and time, is {again} again after "
            "another session or user: number the sessions over all users and let one end before "
            "the next begins, or leave them out and use sessions()"
        )
