"""Interactions: their rules and what breaks them, cores, splits, groups of items and sessions."""

from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from graphcl.datasets import Interactions
from graphcl.errors import DataError


def make(**changes):
    """Return legal interactions: user a takes 1, 2, 1, user b 3, user c 2, 4; item 5 is cold."""
    interactions = Interactions(
        name="shop",
        user=torch.tensor([0, 0, 0, 1, 2, 2]),
        item=torch.tensor([1, 2, 1, 3, 2, 4]),
        num_users=3,
        num_items=5,
        time=torch.tensor([10, 20, 30, 5, 15, 15]),
        session=torch.tensor([7, 7, 3, 0, 1, 1]),
        user_name=("a", "b", "c"),
        item_name=("", "p", "q", "r", "s", "t"),
        category=torch.tensor([0, 1, 2, 0, 1, 2]),
        category_name=("", "tea", "cup"),
        text=torch.arange(12.0).reshape(6, 2) * torch.tensor([[0], [1], [1], [1], [1], [1]]),
        title=("", "Green tea", "Cup", "", "Black tea", "Cup"),
        attribute=torch.tensor([4, 0, 9, 4, 4, 2]),
        attribute_indptr=torch.tensor([0, 0, 2, 3, 3, 5, 6]),
    )
    return replace(interactions, **changes)


def changed(field, index, value):
    """Return legal interactions but for one entry of one tensor."""
    tensor = getattr(make(), field).clone()
    tensor[index] = value
    return make(**{field: tensor})


def bare(user, item, time=None, num_users=None, num_items=None):
    """Return interactions without features, sorted."""
    user, item = torch.as_tensor(user), torch.as_tensor(item)
    return Interactions(
        name="bare",
        user=user,
        item=item,
        num_users=num_users or int(user.max()) + 1,
        num_items=num_items or int(item.max()),
        time=None if time is None else torch.as_tensor(time),
    ).sort()


def random_log(seed, n=300, num_users=40, num_items=30):
    """Return interactions of skewed users and items at times with ties."""
    rng = np.random.default_rng(seed)
    user = (num_users * rng.random(n) ** 2).astype(np.int64)
    item = 1 + (num_items * rng.random(n) ** 2).astype(np.int64)
    return bare(user, item, rng.integers(0, 200, n), num_users, num_items)


def same(one, other):
    """Whether two hold the same to the last bit."""
    for field in fields(Interactions):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            if a.dtype != b.dtype or not torch.equal(a, b):
                return False
        elif a != b:
            return False
    return True


def events(interactions):
    """Return each row as a tuple."""
    columns = (interactions.user, interactions.item, interactions.time)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_legal_interactions_pass_unchanged():
    interactions = make()
    assert interactions.validate() is interactions
    assert len(interactions) == 6
    assert repr(interactions) == (
        "Interactions('shop', 6 of 3 users with 5 items, with time, session, user_name, "
        "item_name, category, text, title, attribute)"
    )


def test_everything_but_users_and_items_may_be_absent():
    log = Interactions("bare", make().user, make().item, num_users=3, num_items=5)
    assert repr(log.validate()).endswith("with their order alone)")


def test_a_sequence_is_what_its_user_took_in_order():
    log = make(num_users=4, user_name=None)
    assert log.indptr.tolist() == [0, 3, 4, 6, 6]
    assert [log.sequence(user).tolist() for user in range(4)] == [[1, 2, 1], [3], [2, 4], []]
    with pytest.raises(DataError, match="shop: sequence: user is 4, must be 0 to 3"):
        log.sequence(4)


def test_ties_in_time_keep_their_order_when_sorted():
    log = bare([1, 0, 1, 0, 1], [5, 2, 4, 1, 3], [9, 7, 9, 6, 8])
    assert events(log) == [(0, 1, 6), (0, 2, 7), (1, 3, 8), (1, 5, 9), (1, 4, 9)]


def test_without_times_the_order_of_rows_stands():
    log = bare([1, 0, 1, 0], [4, 2, 3, 1])
    assert log.item.tolist() == [2, 1, 4, 3]


RULES = {
    "empty": (
        {"user": torch.empty(0).long(), "item": torch.empty(0).long()},
        "there is no interaction: give at least one",
    ),
    "no users": ({"num_users": 0}, "num_users is 0, must be an integer, at least 1"),
    "half items": ({"num_items": 4.5}, r"num_items is 4\.5, must be an integer"),
    "float items": ({"item": torch.ones(6)}, r"item is torch\.float32, must be torch\.int64"),
    "short": ({"user": torch.zeros(5).long()}, r"user has shape \[5\], must be \[n\] with n = 6"),
    "padding": (("item", 3, 0), r"item\[3\] is 0 \(1 such\), must be 1 to 5: .* 0 is padding"),
    "unknown item": (("item", 2, 6), r"item\[2\] is 6 \(1 such\), must be 1 to 5"),
    "negative": (("user", 0, -1), r"user\[0\] is -1 \(1 such\), must be 0 to 2: .* from 0"),
    "unknown user": (("user", 5, 3), r"user\[5\] is 3 \(1 such\), must be 0 to 2"),
    "milliseconds": (("time", 2, 1_700_000_000_000), r"time\[2\] is 17.*, not milliseconds"),
    "users": (("user", 0, 1), r"user\[1\] is 0 after 1: sort the rows .* as sort\(\) does"),
    "unsorted": (
        ("time", 1, 5),
        r"time\[1\] is 5 after 10 of the same user, 0 \(1 such\): sort the rows",
    ),
    "session again": (
        {"session": torch.tensor([7, 3, 7, 0, 1, 1])},
        r"session\[2\], in the order of user and time, is 7 again",
    ),
    "session of two": (
        {"session": torch.tensor([7, 7, 3, 3, 1, 1])},
        r"session\[3\], .* is 3 again after another session or user: number the sessions",
    ),
    "few names": ({"user_name": ("a", "b")}, "user_name has 2 entries, must have 3, num_users"),
    "no name for padding": (
        {"item_name": ("p", "q", "r", "s", "t")},
        "item_name has 5 entries, must have 6, num_items and one for padding",
    ),
    "padding named": (
        {"item_name": ("o", "p", "q", "r", "s", "t")},
        r"item_name\[0\] is 'o', must be '': 0 is padding",
    ),
    "twice": ({"user_name": ("a", "b", "a")}, "user_name holds 'a' 2 times"),
    "space": (
        {"item_name": ("", "p", " q", "r", "s", "t")},
        r"item_name\[1:\]\[1\] is ' q': write a name",
    ),
    "nameless category": ({"category_name": None}, "category and category_name go together"),
    "no none": ({"category_name": ("tea", "cup", "x")}, r"category_name\[0\] must be ''"),
    "category": (("category", 4, 3), r"category\[4\] is 3 \(1 such\), must be 0 to 2"),
    "padding's category": (("category", 0, 1), r"category\[0\] must be 0"),
    "flat text": ({"text": torch.zeros(6)}, r"text has shape \[6\], must be \[num_items \+ 1, D\]"),
    "NaN": (("text", (2, 1), float("nan")), r"text\[2, 1\] is nan \(1 such\), must be finite"),
    "padding's text": (("text", (0, 0), 1.0), r"text\[0\] must be 0"),
    "titles": ({"title": ("", "Cup")}, "title has 2 entries, must have 6"),
    "boundless": ({"attribute_indptr": None}, "attribute and attribute_indptr go together"),
    "bounds of nothing": ({"attribute": None}, "attribute and attribute_indptr go together"),
    "attribute": (("attribute", 2, -1), r"attribute\[2\] is -1 \(1 such\), must be at least 0"),
    "square attributes": (
        {"attribute": torch.zeros(6, 1).long()},
        r"attribute has shape \[6, 1\], must be \[m\]",
    ),
    "few bounds": (
        {"attribute_indptr": torch.tensor([0, 0, 6])},
        r"attribute_indptr has shape \[3\], must be \[num_items \+ 2\]",
    ),
    "padding's attribute": (
        ("attribute_indptr", 1, 1),
        "attribute_indptr begins with 0, 1 and ends with 6, must begin with 0, 0, for item 0 is",
    ),
    "bounds beyond": (("attribute_indptr", 6, 7), "attribute_indptr begins .* end with 6, the"),
    "falling bounds": (("attribute_indptr", 3, 1), "attribute_indptr falls after item 2, must"),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_is_named_with_field_row_and_remedy(rule):
    change, message = RULES[rule]
    broken = make(**change) if isinstance(change, dict) else changed(*change)
    with pytest.raises(DataError, match=f"^log: {message}"):
        broken.validate("log")


@pytest.mark.parametrize("rule", ["milliseconds", "unknown item", "session again", "twice"])
def test_sorting_mends_the_order_and_nothing_else(rule):
    change, message = RULES[rule]
    broken = make(**change) if isinstance(change, dict) else changed(*change)
    with pytest.raises(DataError, match=f"^shop: {message}"):
        broken.sort()


def core_one_by_one(log, k):
    """Return the rows of the k-core by dropping one row after the other."""
    rows = events(log)
    while True:
        users, items = Counter(u for u, _, _ in rows), Counter(i for _, i, _ in rows)
        bad = [row for row in rows if users[row[0]] < k or items[row[1]] < k]
        if not bad:
            return rows
        rows.remove(bad[0])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [1, 2, 5, 7])
def test_a_core_is_what_is_left_when_all_else_is_dropped_one_by_one(seed, k):
    log = random_log(seed)
    log = replace(
        log,
        user_name=tuple(str(u) for u in range(log.num_users)),
        item_name=("", *(str(i) for i in range(1, log.num_items + 1))),
    )
    core = log.k_core(k).validate()
    named = [(int(core.user_name[u]), int(core.item_name[i]), t) for u, i, t in events(core)]
    assert named == core_one_by_one(log, k)
    assert core.indptr.diff().min() >= k
    assert core.item.bincount(minlength=core.num_items + 1)[1:].min() >= k


def test_a_core_needs_more_than_one_pass():
    # Item 3 is lost first, then user 1, then item 2, then user 0.
    chain = [(0, 1), (0, 2), (1, 2), (1, 3), (2, 1), (2, 4), (3, 1), (3, 4)]
    core = bare(*zip(*chain, strict=True)).k_core(2)
    assert core.num_users == core.num_items == 2
    assert core.item.tolist() == [1, 2, 1, 2]


def test_features_follow_the_items_of_a_core():
    core = make().k_core(2).validate()
    assert core.user_name == ("a",)  # b and c have one event of an item that others take
    assert core.item_name == ("", "p")
    assert core.item.tolist() == [1, 1]
    assert core.time.tolist() == [10, 30]
    assert core.session.tolist() == [7, 3]
    assert core.category.tolist() == [0, 1]
    assert core.text.tolist() == [[0, 0], [2, 3]]
    assert core.title == ("", "Green tea")
    assert core.attribute.tolist() == [4, 0]
    assert core.attribute_indptr.tolist() == [0, 0, 2]


def test_attributes_stay_with_their_items_where_others_leave():
    log = replace(
        make(),
        user=torch.tensor([0, 0, 0, 0, 1, 1, 1]),
        item=torch.tensor([1, 2, 3, 4, 2, 3, 4]),
        num_users=2,
        time=None,
        session=None,
        user_name=("a", "b"),
    )
    core = log.k_core(2).validate()
    assert core.item_name == ("", "q", "r", "s")
    assert core.attribute.tolist() == [9, 4, 4]
    assert core.attribute_indptr.tolist() == [0, 0, 1, 1, 3]


def test_a_core_of_nothing_is_refused():
    with pytest.raises(DataError, match=r"no part of it has 4 interactions .* smaller k"):
        make().k_core(4)
    with pytest.raises(DataError, match="k is 0, must be at least 1"):
        make().k_core(0)


@pytest.mark.parametrize("seed", range(3))
def test_the_last_event_is_for_testing_and_the_one_before_for_validation(seed):
    log = random_log(seed, n=120)
    split = log.leave_one_out()
    for user in range(log.num_users):
        whole = log.sequence(user).tolist()
        cut = len(whole) - 2 if len(whole) >= 3 else len(whole)
        parts = [part.sequence(user).tolist() for part in split]
        assert parts == [whole[:cut], whole[cut : cut + 1], whole[cut + 1 :]]
    lengths = set(log.indptr.diff().tolist())
    assert {0, 1, 2, 3} <= lengths  # the cases that differ are all there
    for part in split:
        part.validate()
        assert (part.num_users, part.num_items) == (log.num_users, log.num_items)


def test_nobody_to_test_on_is_refused():
    with pytest.raises(DataError, match="no user has three events"):
        make(user=torch.tensor([0, 0, 1, 1, 2, 2]), time=None, session=None).leave_one_out()


def test_points_in_time_are_the_same_for_all_users():
    log = random_log(0)
    train, val, test = log.split_by_time(0.1, 0.2)
    assert train.time.max() < val.time.min() <= val.time.max() < test.time.min()
    assert sorted(events(train) + events(val) + events(test)) == sorted(events(log))
    assert [len(part) for part in (train, val, test)] == pytest.approx([210, 30, 60], abs=5)
    for part in (train, val, test):
        part.validate()


def test_events_of_one_time_are_all_later_or_all_earlier():
    log = bare([0, 1, 0, 1, 0, 1], [1, 2, 3, 1, 2, 3], [1, 5, 5, 5, 9, 9])
    train, val, test = log.split_by_time(1 / 3, 1 / 3)
    assert [part.time.tolist() for part in (train, val, test)] == [[1], [5, 5, 5], [9, 9]]


@pytest.mark.parametrize(
    ("time", "ratios", "message"),
    [
        ([1, 2, 3, 4, 5, 6], (0.0, 0.5), r"val_ratio is 0\.0 and test_ratio 0\.5: each part"),
        ([1, 2, 3, 4, 5, 6], (0.5, 0.5), "each part needs an event, and there are 6"),
        ([1, 2, 3, 4, 5, 6], (0.5, -0.5), "each part needs an event"),
        ([1, 1, 1, 1, 1, 6], (0.3, 0.3), "too many events at one time: .* other ratios"),
        ([1, 6, 6, 6, 6, 6], (0.3, 0.3), "too many events at one time"),
        (None, (0.1, 0.1), "split_by_time: the interactions have no time: give it"),
    ],
)
def test_a_part_without_an_event_is_refused(time, ratios, message):
    log = bare([0, 0, 0, 1, 1, 1], [1, 2, 3, 1, 2, 3], time)
    with pytest.raises(DataError, match=f"^bare: .*{message}"):
        log.split_by_time(*ratios)


def test_the_head_is_the_fifth_that_training_saw_most():
    counts = [0, 3, 9, 1, 9, 2, 3, 1, 1, 1, 1, 0]  # of items 0 to 11; ten are seen
    item = torch.arange(12).repeat_interleave(torch.tensor(counts))
    groups = bare(torch.zeros_like(item), item, num_items=11).item_groups()
    assert [group.nonzero().flatten().tolist() for group in groups] == [
        [2, 4],
        [1, 3, 5, 6, 7, 8, 9, 10],
        [11],
    ]


def test_every_item_is_in_one_group_and_held_out_events_do_not_count():
    log = random_log(1)
    split = log.leave_one_out()
    head, tail, cold = split.train.item_groups()
    assert (head.int() + tail.int() + cold.int()).tolist() == [0] + [1] * log.num_items
    seen = set(split.train.item.tolist())
    assert set(cold.nonzero().flatten().tolist()) == set(range(1, log.num_items + 1)) - seen
    counts = split.train.item.bincount(minlength=log.num_items + 1)
    assert counts[head].min() >= counts[tail].max()


def test_one_item_is_the_head():
    assert bare([0, 0], [2, 2], num_items=3).item_groups().head.tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize("gap", [1, 3, 10, 1000])
def test_a_session_ends_with_a_pause_or_with_its_user(gap):
    log = random_log(2)
    session = log.sessions(gap).validate().session.tolist()
    number, before = -1, None
    for row, (user, _, time) in enumerate(events(log)):
        number += before is None or before[0] != user or time - before[1] > gap
        assert session[row] == number
        before = (user, time)


def test_sessions_need_times_and_a_gap():
    with pytest.raises(DataError, match="sessions: the interactions have no time"):
        make(time=None).sessions(30)
    with pytest.raises(DataError, match="sessions: gap is 0, must be at least 1 second"):
        make().sessions(0)


def test_some_rows_keep_the_numbers_of_users_and_items():
    part = make().select(make().item == 2).validate()
    assert events(part) == [(0, 2, 20), (2, 2, 15)]
    assert part.session.tolist() == [7, 1]
    assert part.item_name == make().item_name
