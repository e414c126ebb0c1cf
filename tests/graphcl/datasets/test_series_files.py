"""Files of series: what is documented loads, what was saved is kept, a fault is named."""

from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
import torch
from test_series import NAN, dynamic, graphs, make, same

from graphcl.datasets import load_series, save_series
from graphcl.errors import DataError

ZERO = timedelta()


def arrays(**changes):
    """Return the archive's arrays of the series ``make()``; a change to None leaves a key out."""
    series = make()
    keys = {
        "values": series.values.double().numpy(),
        "channel_names": np.array(series.channel_names),
        "node": np.array(series.node),
        "edges": series.edge_index.T.numpy().astype(np.int16),
        "edge_weight": series.edge_weight.numpy(),
        "start": np.array("2012-03-01T08:00Z"),
        "interval": np.array(300, dtype=np.int32),
        "name": np.array("road"),
    }
    keys.update(changes)
    return {key: value for key, value in keys.items() if value is not None}


@pytest.fixture
def archive(tmp_path):
    def write(**changes):
        path = tmp_path / "series.npz"
        np.savez(path, **arrays(**changes))
        return path

    return write


def stamped(archive, texts, **changes):
    """Load one node whose values are 1, 2, ... at the times given."""
    values = np.arange(1.0, len(texts) + 1)[:, None]
    one = {"node": None, "edges": np.empty((0, 2), int), "edge_weight": None}
    times = {"time": np.array(texts), "start": None, "interval": None}
    channel = {"channel_names": np.array(["x [1]"])}
    return load_series(archive(values=values, **{**one, **times, **channel, **changes}))


def clock(change, before, after, minutes):
    """Return what a wall clock shows from six hours before to six hours after it is changed.

    Args:
        change: When it is, in UTC.
        before: Hours that it is ahead of UTC until then.
        after: Hours that it is ahead of UTC from then on.
        minutes: How often it is read.
    """
    changed = datetime.fromisoformat(change)
    steps = [timedelta(minutes=step) for step in range(-360, 360, minutes)]
    return [
        (changed + step).astimezone(timezone(timedelta(hours=before if step < ZERO else after)))
        for step in steps
    ]


def test_an_archive_is_read_as_documented(archive):
    assert same(load_series(archive()), make())


def test_a_matrix_is_the_same_graph(archive):
    adj = np.zeros((3, 3))
    for (u, v), weight in zip(make().edge_index.T.tolist(), make().edge_weight, strict=True):
        adj[u, v] = weight
    series = load_series(archive(edges=None, edge_weight=None, adj=adj))
    assert graphs(series) == graphs(make())


def test_what_may_be_absent_has_its_default(archive):
    series = load_series(
        archive(
            values=np.ones((4, 3), np.uint8),
            channel_names=np.array(["n [1]"]),
            node=None,
            edge_weight=None,
            name=None,
        )
    )
    assert series.values.shape == (4, 3, 1)
    assert series.node == ("0", "1", "2")
    assert series.edge_weight.tolist() == [1.0] * 4
    assert series.name == "series"


@pytest.mark.parametrize(
    "series",
    [
        make(),
        dynamic(),
        make(edge_index=torch.empty(2, 0, dtype=torch.int64), edge_weight=torch.empty(0)),
        make(values=torch.full((4, 3, 2), 1 / 3), name="", node=("0", "é", 'a,"b'), interval=86400),
    ],
    ids=["plain", "a graph per step", "no edges", "tricky"],
)
def test_what_is_saved_loads_as_it_was(tmp_path, series):
    save_series(series, tmp_path / "saved")
    assert same(load_series("saved", root=tmp_path), series)


def test_a_broken_series_is_not_saved(tmp_path):
    with pytest.raises(DataError, match=r"^road: interval is 0"):
        save_series(make(interval=0), tmp_path / "new.npz")
    assert not (tmp_path / "new.npz").exists()


def test_other_names_and_what_the_file_lacks_are_given(archive):
    series = make()
    path = archive(
        values=None,
        speed=series.values.numpy(),
        node=None,
        sensor=np.array(series.node),
        channel_names=None,
        start=None,
        interval=None,
    )
    loaded = load_series(
        path,
        names={"values": "speed", "node": "sensor"},
        channel_names=series.channel_names,
        start="2012-03-01T00:00-08:00",
        interval=300,
    )
    assert same(loaded, series)


def test_the_value_that_stands_for_none_is_missing_and_no_zero(archive):
    values = np.array([[[3], [0], [5]]] * 4, dtype=np.int16)
    path = archive(values=values, channel_names=np.array(["n [1]"]))
    assert load_series(path).mask.all()
    series = load_series(path, missing=0)
    assert series.mask[..., 0].tolist() == [[True, False, True]] * 4
    assert series.values[:, 1].isnan().all()


def test_a_step_without_a_row_is_masked(archive):
    texts = ["2012-03-01T08:00", "2012-03-01T08:05", "2012-03-01T08:20", "2012-03-01T08:25"]
    series = stamped(archive, texts)
    assert series.interval == 300
    assert str(series.start) == "2012-03-01T08:00:00"
    assert series.values[:, 0, 0].nan_to_num(-1).tolist() == [1, 2, -1, -1, 3, 4]
    assert series.mask[:, 0, 0].tolist() == [True, True, False, False, True, True]


def test_half_of_the_steps_may_be_without_a_row_but_no_more(archive):
    texts = ["2012-03-01T00:00", "2012-03-01T01:00", "2012-03-01T02:00", "2012-03-01T07:00"]
    assert stamped(archive, texts).num_steps == 8
    texts[3] = "2012-03-01T08:00"
    with pytest.raises(
        DataError, match=r"series\.npz: time: 5 of the 9 steps of 3600 s .* cut the series"
    ):
        stamped(archive, texts)


def test_a_wild_stamp_takes_no_memory(archive):
    with pytest.raises(DataError, match="have no row, must be half at most"):
        stamped(archive, ["2012-03-01T00:00:00", "2012-03-01T00:00:01", "9999-01-01T00:00:00"])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["2012-03-01T08:05", "2012-03-01T08:10", "2012-03-01T08:10"], r"\[2\] is .* again .*keep"),
        (["2012-03-01T08:05", "2012-03-01T08:10", "2012-03-01T08:00"], r"\[2\] is .* after .*sort"),
        (["2012-03-01", "2012-03-01"], r"\[1\] is 2012-03-01T00:00:00 again \(1 such\): keep one"),
        (["2012-03-02", "2012-03-01"], r"\[1\] is .* after .*: sort the rows by time"),
        (
            ["2012-03-01T08:00", "2012-03-01T08:05", "2012-03-01T08:10", "2012-03-01T08:17"],
            r"\[3\] is 2012-03-01T08:17:00, 420 s after the row before .* interval of 300 s",
        ),
        (["0001-01-01T00:00+08:00", "2"], r"\[0\] is .*, no time in ISO 8601"),
        (["2012-03-01T08:00", "8:05"], r"\[1\] is '8:05', no time in ISO 8601"),
        (["2012-03-01T08:00Z", "2012-03-01T08:05"], r"\[1\] differs .* naming an offset"),
        (["2012-03-01T08:00:00.5", "2012-03-01T08:05"], r"\[0\] is .*in whole seconds"),
        (np.array(["NaT", "2012-03-01"], "M8[s]"), r"\[0\] is NaT .*in whole seconds"),
        ([1330588800, 1330589100], " is int64, must be ISO 8601 text or datetime64"),
        (["2012-03-01T08:00"], " of a single row tells no interval: add it"),
    ],
    ids=[
        *("duplicate", "unsorted", "two alike", "two backwards", "off the grid", "year 0"),
        *("no time", "half zoned", "half second", "NaT", "numbers", "single"),
    ],
)
def test_times_that_are_no_regular_steps_are_refused(archive, texts, message):
    with pytest.raises(DataError, match=rf"series\.npz: time{message}"):
        stamped(archive, texts)


def test_a_given_interval_decides_what_is_off_the_grid(archive):
    texts = ["2012-03-01T00:00", "2012-03-01T02:00", "2012-03-01T04:00"]
    assert stamped(archive, texts, interval=np.array(3600)).num_steps == 5
    with pytest.raises(DataError, match=r"time\[1\] is .*7200 s .* interval of 5000 s"):
        stamped(archive, texts, interval=np.array(5000))


FORWARD = "an hour of a Sunday night is missing, as where clocks are set forward"
BACK = "an hour that was there already, as where clocks are set back"
CHANGES = {
    "Los Angeles in spring": ("2012-03-11T10:00Z", -8, -7, FORWARD),
    "Los Angeles in autumn": ("2012-11-04T09:00Z", -7, -8, BACK),
    "London in spring": ("2012-03-25T01:00Z", 0, 1, FORWARD),
    "Berlin in spring": ("2012-03-25T01:00Z", 1, 2, FORWARD),
    "Berlin in autumn": ("2012-10-28T01:00Z", 2, 1, BACK),
    "Sao Paulo in spring": ("2012-10-21T03:00Z", -3, -2, FORWARD),
    "Sao Paulo in autumn": ("2012-02-26T02:00Z", -2, -3, BACK),
}


@pytest.mark.parametrize("minutes", [5, 60])
@pytest.mark.parametrize(("change", "before", "after", "message"), CHANGES.values(), ids=CHANGES)
def test_local_time_is_refused_where_its_clock_changes(
    archive, change, before, after, message, minutes
):
    times = clock(change, before, after, minutes)
    local = [time.replace(tzinfo=None).isoformat() for time in times]
    with pytest.raises(DataError, match=rf"time\[\d+\] is .*{message}.*write UTC, or the offset"):
        stamped(archive, local)


@pytest.mark.parametrize(("change", "before", "after", "_"), CHANGES.values(), ids=CHANGES)
def test_the_same_hours_load_in_utc_and_with_their_offset(archive, change, before, after, _):
    times = clock(change, before, after, 5)
    zoned = stamped(archive, [time.isoformat() for time in times])
    utc = np.array([int(time.timestamp()) for time in times]).astype("M8[s]")
    assert same(zoned, stamped(archive, utc))
    assert zoned.time.tolist() == utc.tolist()
    assert zoned.mask.all()


def test_an_hour_may_be_missing_on_another_night_or_in_zoned_time(archive):
    first = datetime(2012, 3, 7)  # a Wednesday
    times = [first + timedelta(minutes=5 * step) for step in range(48) if not 24 <= step < 36]
    assert (~stamped(archive, [time.isoformat() for time in times]).mask).sum() == 12
    sunday = [f"{(time + timedelta(days=4)).isoformat()}Z" for time in times]
    assert (~stamped(archive, sunday).mask).sum() == 12


FILE_RULES = {
    "unknown key": ({}, {"names": {"speed": "v"}}, "names holds 'speed'; what a file may call"),
    "no values": ({"values": None}, {}, "missing values; the file has channel_names, .*in names"),
    "no such name": ({}, {"names": {"node": "sensor"}}, "missing sensor; the file has"),
    "no channels": ({"channel_names": None}, {}, r"missing channel_names \(or the argument\)"),
    "channels twice": ({}, {"channel_names": ["x [1]"]}, "holds channel_names itself: leave the"),
    "interval twice": ({}, {"interval": 60}, "holds interval itself: leave the argument out"),
    "two graphs": ({"adj": np.eye(3)}, {}, "has both edges and adj: give one of the two"),
    "no graph": ({"edges": None}, {}, "has no edges or adj: give one"),
    "two clocks": ({"time": np.array(["2012"] * 4)}, {}, "has both start and time"),
    "no clock": ({"start": None}, {}, "has no start or time"),
    "no interval": ({"interval": None}, {}, "start needs an interval, seconds from step to step"),
    "no step": ({"interval": np.array(0)}, {}, "interval is 0, must be at least 1"),
    "half": ({"interval": np.array(0.5)}, {}, r"interval is float64 of shape \(\), .* an integer"),
    "two starts": ({"start": np.array(["2012"] * 2)}, {}, r"start is <U4 of shape \(2,\), must be"),
    "no date": ({"start": np.array("soon")}, {}, r"start\[0\] is 'soon', no time in ISO 8601"),
    "flat": ({"values": np.zeros(4)}, {}, r"values has shape \(4,\), must be \(T, N, C\)"),
    "empty": ({"values": np.zeros((0, 3, 2))}, {}, r"values has shape \(0, 3, 2\), .*at least 1"),
    "text": ({"values": np.full((4, 3), "x")}, {}, "values is <U1, must be real"),
    "overflow": ({"values": np.full((4, 3, 2), 1e300)}, {}, r"values\[0, 0, 0\] is inf"),
    "more nodes": ({"node": np.arange(4)}, {}, r"values has shape \[4, 3, 2\], .* N = 4 nodes"),
    "node matrix": ({"node": np.eye(3)}, {}, r"node is float64 of shape \(3, 3\), must be text"),
    "no unit": ({"channel_names": np.array(["a", "b"])}, {}, "holds 'a': name the unit"),
    "turned edges": (
        {"edges": np.zeros((2, 4), int)},
        {},
        r"edges has shape \(2, 4\), must be \(E",
    ),
    "real edges": ({"edges": np.zeros((4, 2))}, {}, "edges is float64, must be an integer"),
    "far edge": ({"edges": np.full((4, 2), 3)}, {}, r"edge_index\[:, 0\] is \[3, 3\] \(4 such\)"),
    "short weights": ({"edge_weight": np.ones(3)}, {}, r"edge_weight has shape \[3\]"),
    "short adj": (
        {"edges": None, "edge_weight": None, "adj": np.eye(2)},
        {},
        r"adj has shape \(2, 2\), must be \(3, 3\) for the 3 nodes",
    ),
    "negative adj": (
        {"edges": None, "edge_weight": None, "adj": np.diag([1, -1, np.nan])},
        {},
        r"adj\[1, 1\] is -1\.0 \(2 such\), must be finite and not negative",
    ),
    "weights of adj": (
        {"edges": None, "adj": np.eye(3)},
        {},
        "edge_weight belongs to edges, but the graph is adj: leave it out",
    ),
    "short time": (
        {"start": None, "time": np.array(["2012"] * 3)},
        {},
        r"time has shape \(3,\), must be \(4,\), one for each row",
    ),
    "gap in graphs": (
        {
            "start": None,
            "time": np.array([f"2012-03-01T0{hour}:00" for hour in (0, 1, 2, 4)]),
            "interval": None,
            "edge_ptr": np.array([0, 1, 2, 3, 4]),
        },
        {},
        "edge_ptr has no graph for the 1 steps that time leaves out: write those steps too",
    ),
    "pickle": ({"node": np.array(["a", None, 3], dtype=object)}, {}, "node cannot be read"),
}


@pytest.mark.parametrize(
    ("changes", "options", "message"), FILE_RULES.values(), ids=FILE_RULES.keys()
)
def test_a_fault_names_file_and_key(archive, changes, options, message):
    with pytest.raises(DataError, match=rf"series\.npz: .*{message}"):
        load_series(archive(**changes), **options)


SPEED = {"channel_names": ["speed [mph]"], "start": "2012-03-01T00:00-08:00", "interval": 300}
FILES = {
    "metr_la_week1_los_loop": (
        {"names": {"values": "speed", "node": "sensor_id"}, **SPEED},
        (2016, 207, 1),
        2833,
    ),
    "pemsd7m_week1": ({"names": {"values": "speed"}, **SPEED}, (2016, 228, 1), 1664),
    "sz_taxi": (
        {"names": {"values": "speed"}, **SPEED, "interval": 900, "missing": 0},
        (2976, 156, 1),
        532,
    ),
    "nycbike1_last_1295h": (
        {
            "names": {"values": "flow"},
            "channel_names": ["inflow [1/h]", "outflow [1/h]"],
            "start": "2014-08-08T00:00",
            "interval": 3600,
        },
        (1295, 128, 2),
        884,
    ),
    "chickenpox_hungary": (
        {
            "names": {"values": "cases", "node": "node_names"},
            "channel_names": ["cases [1]"],
            "start": "2005-01-03",
            "interval": 604_800,
        },
        (521, 20, 1),
        102,
    ),
    "england_covid": (
        {
            "names": {"values": "cases"},
            "channel_names": ["cases [1/d]"],
            "start": "2020-03-03",
            "interval": 86_400,
        },
        (61, 129, 1),
        82_529,
    ),
} | {
    f"ili_{place}": (
        {
            "names": {"values": "counts"},
            "channel_names": ["cases [1]"],
            "start": "2012-01-02",
            "interval": 604_800,
        },
        (*shape, 1),
        edges,
    )
    for place, shape, edges in (
        ("japan_prefectures", (348, 47), 219),
        ("us_states", (360, 49), 255),
        ("us_hhs_regions", (785, 10), 42),
    )
}


@pytest.mark.parametrize("file", FILES)
def test_real_files_load_by_a_mapping(data_root, file):
    options, shape, edges = FILES[file]
    series = load_series(data_root / "spatiotemporal" / f"{file}.npz", **options)
    assert series.values.shape == shape
    assert series.edge_index.shape == (2, edges)
    stored = np.load(data_root / "spatiotemporal" / f"{file}.npz")
    values = stored[options["names"]["values"]].reshape(shape)
    if "missing" in options:
        assert torch.equal(series.mask, torch.from_numpy(values != 0))
    assert (series.values.numpy() == values)[series.mask.numpy()].all()


def test_a_real_graph_per_step_is_that_of_the_day(data_root):
    options, _, _ = FILES["england_covid"]
    path = data_root / "spatiotemporal" / "england_covid.npz"
    series, stored = load_series(path, **options), np.load(path)
    edges, weight = series.between(20, 40).at(torch.arange(129)).graph(5)
    day = slice(*stored["edge_ptr"][25:27])
    assert np.array_equal(edges.T, stored["edges"][day])
    assert np.array_equal(weight, stored["edge_weight"][day])


def test_missing_values_of_a_file_stay_apart_from_zeros(archive):
    values = np.zeros((4, 3, 2))
    values[2, 1, 1] = NAN
    series = load_series(archive(values=values))
    assert int((~series.mask).sum()) == 1
    assert (series.values[series.mask] == 0).all()
