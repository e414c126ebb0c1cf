"""Files of interactions: what is documented loads, what was saved is kept, a fault is named."""

import gzip

import numpy as np
import pytest
import torch
from test_interactions import events, make, random_log, same

from graphcl.datasets import load_interactions, save_interactions, simulate_interactions
from graphcl.errors import DataError

LOG = "user,item,time\nbob,tea,30\nann,cup,20\nbob,cup,10\nann,tea,20\nbob,tea,40\n"
ITEMS = "item,category,title\npot,ware|iron,Pot\ntea,,Green tea\ncup,ware,\n"


@pytest.fixture
def table(tmp_path):
    """Return a writer of tables, packed if they are called so."""

    def write(text, name="log.csv"):
        packed = name.endswith(".gz")
        (tmp_path / name).write_bytes(gzip.compress(text.encode()) if packed else text.encode())
        return tmp_path / name

    return write


@pytest.fixture
def archive(tmp_path):
    def write(**arrays):
        np.savez(tmp_path / "log.npz", **arrays)
        return tmp_path / "log.npz"

    return write


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz"])
def test_a_table_is_sorted_and_numbered_by_first_appearance(table, name):
    log = load_interactions(table(LOG, name))
    assert log.name == "log"
    assert log.user_name == ("bob", "ann")
    assert log.item_name == ("", "tea", "cup")
    # Ann's two events are of one time: the order of the file stands.
    assert events(log) == [(0, 2, 10), (0, 1, 30), (0, 1, 40), (1, 2, 20), (1, 1, 20)]
    assert (log.session, log.category, log.title, log.text) == (None,) * 4


def test_the_table_of_items_is_the_catalogue(table):
    table(LOG)
    items = table("\ufeff" + ITEMS, "items.csv")
    log = load_interactions("log.csv", items="items.csv", category_separator="|", root=items.parent)
    assert log.item_name == ("", "pot", "tea", "cup")
    assert log.item.tolist() == [3, 2, 2, 3, 2]
    assert log.title == ("", "Pot", "Green tea", "")
    assert log.category.tolist() == [0, 1, 0, 1]
    assert log.category_name == ("", "ware")
    whole = load_interactions(items.parent / "log.csv", items=items)
    assert whole.category_name == ("", "ware|iron", "ware")


def test_columns_of_other_names_are_mapped_and_further_ones_ignored(table):
    path = table("uid,rating,time,iid,ts\nu1,5,noon,7,3\nu1,4,noon,8,2\n")
    log = load_interactions(path, names={"user": "uid", "item": "iid", "time": "ts"})
    assert log.item_name == ("", "7", "8")
    assert events(log) == [(0, 2, 2), (0, 1, 3)]


def test_a_session_of_a_table_is_unique_for_its_user_only(table):
    log = load_interactions(
        table("user,item,time,session\na,p,3,s2\nb,p,1,s1\na,q,1,s1\na,p,2,s1\nb,q,2,s1\n")
    )
    first, second, third = log.session[0], log.session[2], log.session[3]
    assert log.session.tolist() == [first, first, second, third, third]
    assert len({int(first), int(second), int(third)}) == 3


def test_an_archive_is_read_as_documented(archive):
    log = load_interactions(
        archive(
            user=np.array([1, 0, 1], np.uint8),
            item=np.array([3, 1, 2], np.uint16),
            time=np.array([9, 5, 8], np.int32),
            session=np.array([4, 2, 4]),
            user_name=np.array([17, 19]),
            item_name=np.array([-1, 71, 72, 73]),
            category=np.array([5, 1, 0, 1]),
            category_name=np.array(["none", "tea"]),
            text=np.ones((4, 2)),
            title=np.array(["x", "A", "", "C"]),
            ratings=np.array([None]),
        )
    )
    assert log.name == "log"
    assert events(log) == [(0, 1, 5), (1, 2, 8), (1, 3, 9)]
    assert log.session.tolist() == [2, 4, 4]
    assert log.user_name == ("17", "19")
    # The first entries are padding's, whatever the file holds there.
    assert log.item_name == ("", "71", "72", "73")
    assert log.category.tolist() == [0, 1, 0, 1]
    assert log.category_name == ("", "tea")
    assert log.text.tolist() == [[0, 0], [1, 1], [1, 1], [1, 1]]
    assert log.title == ("", "A", "", "C")


def test_attributes_of_an_archive_are_read_and_tell_how_many_items_there_are(archive):
    path = archive(
        items=np.array([1, 2], np.uint16),
        indptr=np.array([0, 2]),
        tags=np.array([7, 7, 3], np.int32),
        tag_bounds=np.array([0, 0, 2, 2, 3], np.int32),
    )
    log = load_interactions(path, names={"attribute": "tags", "attribute_indptr": "tag_bounds"})
    assert log.num_items == 3
    assert log.attribute.tolist() == [7, 7, 3]
    assert log.attribute_indptr.tolist() == [0, 0, 2, 2, 3]


def test_sequences_are_in_order_as_they_are(archive):
    path = archive(clicks=np.array([5, 1, 5, 2], np.uint16), bounds=np.array([0, 3, 3, 4]))
    log = load_interactions(path, names={"items": "clicks", "indptr": "bounds"})
    assert log.time is None
    assert (log.num_users, log.num_items) == (3, 5)
    assert [log.sequence(user).tolist() for user in range(3)] == [[5, 1, 5], [], [2]]


@pytest.mark.parametrize(
    "log",
    [
        make(),
        make(time=None, session=None, text=None, title=None, name="", user_name=("é", "b,", "0")),
        make().leave_one_out().test,
        random_log(0),
        simulate_interactions(50, 40).interactions.sessions(1800),
    ],
    ids=["plain", "little", "a part of a split", "repeats", "simulated"],
)
def test_what_is_saved_loads_as_it_was(tmp_path, log):
    save_interactions(log, tmp_path / "saved")
    assert same(load_interactions("saved", root=tmp_path, duplicates="keep"), log)


def test_broken_interactions_are_not_saved(tmp_path):
    with pytest.raises(DataError, match=r"^shop: num_items is 0"):
        save_interactions(make(num_items=0), tmp_path / "new.npz")
    assert not (tmp_path / "new.npz").exists()


def test_repeats_of_user_item_and_time_are_refused_dropped_or_kept(table):
    path = table("user,item,time,session\na,p,5,x\na,p,7,y\na,q,5,x\na,p,5,x\nb,p,5,z\na,p,5,x\n")
    with pytest.raises(
        DataError, match=r"log\.csv: line 5: user, item and time .*\(2 such\): keep"
    ):
        load_interactions(path)
    dropped = load_interactions(path, duplicates="drop")
    assert events(dropped) == [(0, 1, 5), (0, 2, 5), (0, 1, 7), (1, 1, 5)]
    assert len(dropped.session) == 4
    assert len(load_interactions(path, duplicates="keep")) == 6
    with pytest.raises(DataError, match="duplicates is 'first', must be 'refuse', 'drop' or"):
        load_interactions(path, duplicates="first")


def test_repeats_in_an_archive_are_named_by_their_row(archive):
    rows = {"user": [1, 0, 1], "item": [1, 2, 1], "time": [5, 5, 5]}
    with pytest.raises(DataError, match=r"log\.npz: row 2: user, item and time are there already"):
        load_interactions(archive(**rows))
    assert len(load_interactions(archive(**rows), duplicates="drop")) == 2


def test_an_item_taken_again_is_no_duplicate(archive, table):
    assert len(load_interactions(archive(items=[1, 1, 1], indptr=[0, 3]))) == 3
    assert len(load_interactions(table("user,item,time\na,p,1\na,p,2\n"))) == 2


HEAD = "user,item,time\n"
TABLES = {
    "empty file": ("", "missing user, item, time; the file has nothing: add"),
    "no rows": (HEAD, "has no row under its header"),
    "no time": ("user,item,ts\na,p,1\n", "missing time; the file has user, item, ts: .* in names"),
    "two columns": ("user,item,time,time\na,p,1,2\n", "line 1: the column 'time' is there twice"),
    "short row": (HEAD + "a,p,1\n\nb,q\n", "line 4 has 2 cells, must have the 3 of the header"),
    "empty id": (HEAD + "a,p,1\n,q,2\n", "line 3, column 'user': '' is no name: write one"),
    "NaN id": (HEAD + "a,p,1\na,NaN,2\n", "line 3, column 'item': 'NaN' is no name"),
    "space": (HEAD + "a,p,1\na, p,2\n", "line 3, column 'item': ' p' is no name"),
    "empty time": (HEAD + "a,p,1\na,q,\n", "line 3, column 'time': '' is no whole number of sec"),
    "NaN time": (HEAD + "a,p,nan\n", "line 2, column 'time': 'nan' is no whole number"),
    "half second": (HEAD + "a,p,1.5\n", "line 2, column 'time': '1.5' is no whole number"),
    "wild time": (HEAD + f"a,p,{10**30}\n", "line 2, column 'time': '1000.* is no whole number"),
    "milliseconds": (HEAD + f"a,p,{10**13}\n", r"time\[0\] is 10000000000000 .*, not milliseconds"),
    "open quote": (HEAD + 'a,"p,1\n', "not a readable CSV table"),
    "left session": (
        "user,item,time,session\na,p,1,x\na,p,2,y\na,p,3,x\n",
        r"session\[2\], in the order of user and time, is 0 again",
    ),
}


@pytest.mark.parametrize("fault", TABLES)
def test_a_fault_of_a_table_is_named_by_its_line(table, fault):
    text, message = TABLES[fault]
    with pytest.raises(DataError, match=rf"log\.csv: {message}"):
        load_interactions(table(text))


def test_an_item_outside_the_catalogue_is_named_by_its_line(table):
    path, items = table(LOG), table("item\ntea\npot\n", "items.csv")
    with pytest.raises(
        DataError, match=r"log\.csv: line 3, column 'item': 'cup' is none of the 2 known .*: add it"
    ):
        load_interactions(path, items=items)


def test_an_item_twice_in_the_catalogue_is_named_by_its_line(table):
    path, items = table(LOG), table("item\ntea\ncup\npot\ncup\n", "items.csv")
    with pytest.raises(DataError, match=r"items\.csv: line 5, column 'item': 'cup' again: keep"):
        load_interactions(path, items=items)


def test_what_goes_with_another_form_is_refused(table, archive):
    path, items = table(LOG), table(ITEMS, "items.csv")
    with pytest.raises(DataError, match="columns of the table of items: give it"):
        load_interactions(path, names={"title": "name"})
    with pytest.raises(DataError, match="missing kind; the file has item, category, title"):
        load_interactions(path, items=items, names={"category": "kind"})
    with pytest.raises(DataError, match="names holds 'rating'; what a file may call otherwise is"):
        load_interactions(path, names={"rating": "stars"})
    with pytest.raises(DataError, match="items and category_separator go with a table"):
        load_interactions(archive(user=[0], item=[1]), items=items)


ROWS = {"user": [0, 0, 1], "item": [1, 2, 1]}
SEQUENCES = {"items": [1, 2, 1], "indptr": [0, 2, 3]}
ARCHIVES = {
    "nothing": ({"x": [1]}, "missing user, item; the file has x: add what is missing, or say"),
    "no bounds": ({"items": [1]}, "missing indptr; the file has items"),
    "two forms": (ROWS | SEQUENCES, "holds items and indptr, and user, item too: give one"),
    "no rows": ({"user": np.empty(0, int), "item": np.empty(0, int)}, "there is no interaction"),
    "half item": (ROWS | {"item": [1.0, 2.5, 1.0]}, "item is float64, must be an integer dtype"),
    "NaN time": (ROWS | {"time": [1, np.nan, 2]}, "time is float64, must be an integer dtype"),
    "negative": (ROWS | {"user": [0, 0, -1]}, r"user\[2\] is -1 \(1 such\), must be 0 to 0"),
    "all negative": (ROWS | {"user": [-4, -4, -5]}, r"user\[0\] is -4 \(3 such\), must be 0 to 0"),
    "padding": (ROWS | {"item": [1, 2, 0]}, r"item\[2\] is 0 \(1 such\), must be 1 to 2: .*from 1"),
    "unknown": (ROWS | {"num_items": 1}, r"item\[1\] is 2 \(1 such\), must be 1 to 1"),
    "wild user": (ROWS | {"user": [0, 0, 10**15]}, "num_users is absent and a number of 10{15} is"),
    "wild item": ({**SEQUENCES, "items": [1, 10**15, 1]}, "num_items is absent and a number of 1"),
    "short": (ROWS | {"time": [1, 2]}, r"time has shape \[2\], must be \[n\] with n = 3"),
    "long user": (ROWS | {"user": [0] * 4, "time": [1, 2, 3]}, r"user has shape \[4\]"),
    "columns": (ROWS | {"user": [[0], [0], [1]]}, r"user has shape \(3, 1\), must have 1 axes"),
    "flat text": (ROWS | {"text": np.zeros(3)}, r"text has shape \(3,\), must have 2 axes"),
    "number": ({**SEQUENCES, "indptr": 3}, r"indptr has shape \(\), must have 1 axes"),
    "falling": ({**SEQUENCES, "indptr": [0, 3, 2, 3]}, "indptr falls after user 1, must never"),
    "beyond": (
        {**SEQUENCES, "indptr": [0, 4]},
        "indptr runs from 0 to 4, must run from 0 to the 3",
    ),
    "no user": (
        {**SEQUENCES, "indptr": [0]},
        r"indptr has shape \(1,\), must be \(num_users \+ 1,",
    ),
    "contradiction": (
        {**SEQUENCES, "time": [5, 4, 1]},
        r"time\[1\] is 4 after 5 of the same user, 0 \(1 such\): sort the rows",
    ),
    "boundless": (ROWS | {"attribute": [1]}, "attribute and attribute_indptr go together"),
    "half attribute": (
        ROWS | {"attribute": [0.5], "attribute_indptr": [0, 0, 1, 1]},
        "attribute is float64, must be an integer dtype",
    ),
    "bounds": (
        ROWS | {"attribute": [5, 5], "attribute_indptr": [0, 0, 2, 1]},
        "attribute_indptr begins with 0, 0 and ends with 1",
    ),
    "objects": (ROWS | {"user": np.array([None] * 3)}, "user cannot be read"),
}


@pytest.mark.parametrize("fault", ARCHIVES)
def test_a_fault_of_an_archive_is_named_by_its_row(archive, fault):
    arrays, message = ARCHIVES[fault]
    with pytest.raises(DataError, match=rf"log\.npz: {message}"):
        load_interactions(archive(**arrays))


@pytest.mark.parametrize("name", ["none.csv", "none.csv.gz", "none.npz"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(DataError, match=f"{name}"):
        load_interactions(tmp_path / name)


def test_what_is_no_gzip_is_refused(tmp_path):
    (tmp_path / "log.csv.gz").write_text(LOG)
    with pytest.raises(DataError, match=r"log\.csv\.gz: not a readable CSV table"):
        load_interactions(tmp_path / "log.csv.gz")


@pytest.mark.parametrize(
    ("file", "users", "items", "count"),
    [("amazon_beauty", 22363, 12101, 198502), ("yelp", 30431, 20033, 316354)],
)
def test_real_sequences_have_their_published_sizes(data_root, file, users, items, count):
    log = load_interactions(data_root / "recsys" / f"{file}.npz")
    assert (log.num_users, log.num_items, len(log)) == (users, items, count)
    core = log.k_core(5)
    assert torch.equal(core.item, log.item)  # they are 5-cores already
    split = log.leave_one_out()
    assert [len(part) for part in split] == [count - 2 * users, users, users]
    stored = np.load(data_root / "recsys" / f"{file}.npz")
    last = stored["items"][stored["indptr"][1:] - 1]
    assert split.test.item.tolist() == last.tolist()


def test_real_ratings_have_titles_and_genres(data_root):
    folder = data_root / "recsys"
    log = load_interactions(
        folder / "ml100k_inter.csv.gz",
        items=folder / "ml100k_item.csv.gz",
        names={
            "user": "user_id",
            "item": "item_id",
            "time": "timestamp",
            "title": "movie_title",
            "category": "class",
        },
        category_separator=" ",
    )
    assert (log.num_users, log.num_items, len(log)) == (943, 1682, 100_000)
    assert (log.item_name[1], log.title[1]) == ("1", "Toy Story")
    assert log.category_name[log.category[1]] == "Animation"
    assert len(log.category_name) == 20  # 18 genres, unknown, and none
    # Every user has rated at least twenty films.
    assert log.indptr.diff().min() == 20
    assert [len(part) for part in log.leave_one_out()] == [98_114, 943, 943]
    assert [len(part) for part in log.split_by_time(0.1, 0.1)] == pytest.approx(
        [80_000, 10_000, 10_000], abs=10
    )
