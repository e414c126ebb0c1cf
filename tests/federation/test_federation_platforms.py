"""Interactions as clients: whose users and items are whose, and what cannot be divided."""

from dataclasses import replace

import pytest
import torch

from federation.learners import clients_of
from federation.learners.platforms import platform_of, platforms
from graphcl.datasets import Interactions, save_interactions, simulate_interactions
from graphcl.errors import ConfigError, DataError

NAMES = {
    "data.source": "recsys/ml100k_inter.csv.gz",
    "data.interactions.names": "user=user_id, item=item_id, time=timestamp, category=class",
    "data.interactions.item_tables": "recsys/ml100k_item.csv.gz",
    "data.interactions.category_separator": " ",
}


def of_lists(
    name: str, sequences: list[list[int]], category: list[str] | None = None, num_items: int = 9
) -> Interactions:
    """Return interactions with these items of each user, and these categories of the items."""
    user = torch.tensor([u for u, items in enumerate(sequences) for _ in items])
    item = torch.tensor([i for items in sequences for i in items])
    found = Interactions(name, user, item, len(sequences), num_items)
    if category is None:
        return found
    names = ("", *dict.fromkeys(category))
    number = torch.tensor([0, *(names.index(one) for one in category)])
    return replace(found, category=number, category_name=names)


def shoppers(users: int = 20, items: int = 40, seed: int = 0, name: str = "shop") -> Interactions:
    return replace(simulate_interactions(users, items, seed=seed).interactions, name=name)


def all_events(platform) -> list[tuple[int, int, int]]:
    """Return user, item and time of all events of a platform, part after part."""
    parts = platform.own
    return [
        (int(u), int(i), int(t))
        for part in parts
        for u, i, t in zip(part.user, part.item, part.time, strict=True)
    ]


# Users dealt out.


def test_every_user_is_on_one_client_with_all_of_its_events(shops, tmp_path):
    whole = shoppers(23)
    save_interactions(whole, tmp_path / "shop.npz")
    found = clients_of(shops(**{"data.source": str(tmp_path / "shop.npz")}))
    assert [one.train.num_users for one in found.platforms] == [8, 8, 7]
    histories = []
    for platform in found.platforms:
        train, val, test = platform.own
        for user in range(train.num_users):
            rows = [part.sequence(user).tolist() for part in (train, val, test)]
            histories.append([item for row in rows for item in row])
            assert [len(row) for row in rows[1:]] == [1, 1]
    assert sorted(histories) == sorted(whole.sequence(user).tolist() for user in range(23))
    assert found.report.cut_edges == 0
    assert sum(client.nodes for client in found.report.clients) == 23
    assert sum(client.edges for client in found.report.clients) == len(whole)


def test_the_seed_deals_the_users(shops):
    def histories(seed: int) -> list[list[int]]:
        return [one.train.item.tolist() for one in platforms(shops(**{"run.seed": seed})).platforms]

    assert histories(1) == histories(1)
    assert histories(1) != histories(2)


def test_as_many_clients_as_users_have_one_each(shops):
    found = platforms(shops(**{"partition.clients": 24}))
    assert [one.train.num_users for one in found.platforms] == [1] * 24
    assert all(len(one.own.test) == 1 for one in found.platforms)


def test_clients_of_one_catalogue_share_what_the_items_are(shops):
    """Thousands of clients would not fit if each had its own."""
    first, *others = platforms(shops()).platforms
    for other in others:
        assert other.train.category is first.train.category
        assert other.label is first.label
        assert other.groups is first.groups
        shared = other.train.item.untyped_storage().data_ptr()
        assert shared == first.train.item.untyped_storage().data_ptr()


def test_a_client_offers_its_share_of_the_items_and_its_users_take_no_other(shops):
    keys = {"data.interactions.catalogue": 0.6, "data.interactions.users": 60}
    found, whole = platforms(shops(**keys)), platforms(shops(**{**keys, **WHOLE}))
    events = 0
    for platform, unlimited in zip(found.platforms, whole.platforms, strict=True):
        assert int(platform.offered.sum()) == 24
        assert not platform.offered[0]
        kept = [event for event in all_events(unlimited) if platform.offered[event[1]]]
        assert sorted(all_events(platform)) == sorted(kept)
        events += len(kept)
    total = sum(client.edges for client in whole.report.clients)
    assert (found.report.edges, found.report.cut_edges) == (total, total - events)
    assert not found.platforms[0].offered.equal(found.platforms[1].offered)


WHOLE = {"data.interactions.catalogue": 1.0}


def test_who_has_fewer_than_three_events_trains_only(shops, tmp_path):
    save_interactions(of_lists("few", [[1, 2], [3], [4, 5, 6, 7]]), tmp_path / "few.npz")
    keys = {"data.source": str(tmp_path / "few.npz"), "partition.clients": 1}
    [platform] = platforms(shops(**keys)).platforms
    assert sorted(platform.own.train.item.tolist()) == [1, 2, 3, 4, 5]
    assert platform.own.test.item.tolist() == [7]


def test_users_and_items_with_few_events_are_left_out(shops):
    keys = {"data.interactions.min_events": 6, "data.interactions.users": 90}
    found = platforms(shops(**keys, **{"partition.clients": 1}))
    [client] = found.platforms
    items = torch.cat([part.item for part in client.own])
    users = torch.cat([part.user for part in client.own])
    assert int(items.bincount(minlength=client.train.num_items + 1)[1:].min()) >= 6
    assert int(users.bincount(minlength=client.train.num_users).min()) >= 6


# Platforms with catalogues of their own.


def test_files_are_clients_with_numbers_of_their_own(shops, stored_platforms):
    held = shoppers(20, 40, 0, "one"), shoppers(25, 60, 1, "other")
    found = platforms(shops(**stored_platforms(*held)))
    assert [one.name for one in found.platforms] == ["one", "other"]
    for platform, whole in zip(found.platforms, held, strict=True):
        assert platform.train.num_items == whole.num_items
        assert platform.offered is None
        for part, expected in zip(platform.own, whole.leave_one_out(), strict=True):
            assert part.item.equal(expected.item)


def test_classes_are_categories_by_name_whatever_the_order_of_the_platforms(
    shops, stored_platforms
):
    sequences = [[1, 2, 3, 1], [2, 3, 1, 2]]
    one = of_lists("one", sequences, ["toys", "bats", "toys"], 3)
    other = of_lists("other", sequences, ["cars", "toys", "toys"], 3)
    for held in ((one, other), (other, one)):
        found = platforms(shops(**stored_platforms(*held)))
        assert found.class_names == ("bats", "cars", "toys")
        labels = {platform.name: platform.label.tolist() for platform in found.platforms}
        assert labels == {"one": [-1, 2, 0, 2], "other": [-1, 1, 2, 2]}
        assert found.num_classes == 3


def test_the_report_counts_events_by_category(shops, stored_platforms):
    held = of_lists("one", [[1, 2, 3, 1], [2, 3, 1, 2]], ["toys", "bats", "toys"], 3)
    [client] = platforms(shops(**stored_platforms(held))).report.clients
    assert (client.nodes, client.edges, client.class_counts) == (2, 8, (3, 5))
    assert client.edge_homophily is None


@pytest.mark.parametrize("scheme", ["users", "natural"])
def test_pooled_clients_learn_from_all_and_are_asked_about_their_own(
    shops, stored_platforms, scheme
):
    keys = {}
    if scheme == "natural":
        bare = replace(shoppers(25, 60, 1, "b"), category=None, category_name=None, text=None)
        keys = stored_platforms(shoppers(20, 40, 0, "a").sessions(1800), bare.sessions(1800))
    alone = platforms(shops(**keys)).platforms
    pooled = [platform_of(shops("pooled", **keys), client) for client in range(len(alone))]
    train = pooled[0].train.validate()
    assert train.num_users == sum(one.train.num_users for one in alone)
    assert len(train) == sum(len(one.train) for one in alone)
    first_user = first_item = 0
    for own, platform in zip(alone, pooled, strict=True):
        assert platform.train is train
        for part, expected in zip(platform.own, own.own, strict=True):
            assert (part.user - first_user).equal(expected.user)
            assert (part.item - first_item).equal(expected.item)
            assert part.time.equal(expected.time)
        number = torch.arange(1, own.train.num_items + 1)
        assert platform.label[number + first_item].equal(own.label[number])
        for group, expected in zip(platform.groups, own.groups, strict=True):
            assert int(group.sum()) == int(expected.sum())
            assert group[number + first_item].equal(expected[number])
        first_user += own.train.num_users
        if scheme == "natural":
            assert platform.offered.nonzero().flatten().equal(number + first_item)
            first_item += own.train.num_items
    if scheme == "natural":
        assert len(train.session.unique()) == sum(len(o.train.session.unique()) for o in alone)


def test_films_of_movielens_have_genres(shops, data_root):
    keys = {**NAMES, "data.root": str(data_root), "partition.clients": 943}
    found = platforms(shops(**keys))
    assert (found.num_classes, found.class_names[:2]) == (19, ("Action", "Adventure"))
    assert {one.train.num_users for one in found.platforms} == {1}
    assert found.report.edges == 100_000
    with pytest.raises(ConfigError, match=r"partition\.clients: 944 .* has 943; lower it, to 943"):
        platforms(shops(**{**keys, "partition.clients": 944}))


# What cannot be.


def test_a_client_with_nothing_to_learn_from_names_the_keys(shops, stored_platforms):
    held = of_lists("thin", [[1, 2, 3], [4, 5, 6]])
    keys = stored_platforms(held)
    with pytest.raises(ConfigError, match=r"client thin has no user with two .* leave the platf"):
        platforms(shops(**keys))
    dealt = {**keys, "partition.scheme": "users", "partition.clients": 2}
    with pytest.raises(
        ConfigError, match=r"partition\.clients: client thin-0 .* data\.interactions\.min_events"
    ):
        platforms(shops(**dealt))


@pytest.mark.parametrize("planned", [{"strategy.name": "feddbp"}, {"run.compare": "fedproto"}])
def test_prototypes_need_categories(shops, stored_platforms, planned):
    bare = of_lists("bare", [[1, 2, 3, 4], [5, 6, 7, 8]])
    known = of_lists("known", [[1, 2, 3, 4]], ["toys"] * 9)
    with pytest.raises(DataError, match=r"bare\.npz: the items have no categories, but fedproto"):
        platforms(shops(**stored_platforms(bare), **planned))
    with pytest.raises(DataError, match="bare: nothing to learn from has a category, but fedpro"):
        platforms(shops(**stored_platforms(known, bare), **planned))
    assert platforms(shops(**stored_platforms(known, bare))).num_classes == 1


def test_a_platform_without_a_user_to_test_on_is_named(shops, stored_platforms):
    with pytest.raises(DataError, match="short: leave_one_out: no user has three events"):
        platforms(shops(**stored_platforms(of_lists("short", [[1, 2], [3]]))))


def test_a_file_that_is_missing_is_named(shops):
    keys = {"data.source": "absent.npz", "partition.clients": 1}
    with pytest.raises(DataError, match=r"absent\.npz: not found"):
        platforms(shops(**keys))


def test_repeated_events_are_refused_or_dropped_as_the_file_says(shops, tmp_path):
    rows = [f"u{user},i{item},{60 * item}" for user in range(3) for item in range(6)]
    (tmp_path / "clicks.csv").write_text("\n".join(["user,item,time", *rows, rows[0]]) + "\n")
    keys = {"data.source": str(tmp_path / "clicks.csv"), "partition.clients": 3}
    with pytest.raises(DataError, match="duplicates='drop'"):
        clients_of(shops(**keys))
    dropped = clients_of(shops(**keys, **{"data.interactions.duplicates": "drop"}))
    assert dropped.report.edges == len(rows)
