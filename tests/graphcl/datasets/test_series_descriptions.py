"""Descriptions: one path names one series of an archive of others, and a fault names its key."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_series import same
from test_series_files import arrays

from graphcl.datasets import load_series
from graphcl.errors import DataError

CONFIGS = Path(__file__).parents[3] / "configs" / "series"
TEXT = """
file = "foreign.npz"
name = "main road"
channel_names = ["speed [mph]", "occupancy [1]"]
start = "2012-03-01T00:00-08:00"
interval = 300
missing = 0

[names]
values = "speed"
node = "sensor"
"""
SAID = {
    "names": {"values": "speed", "node": "sensor"},
    "channel_names": ["speed [mph]", "occupancy [1]"],
    "start": "2012-03-01T00:00-08:00",
    "interval": 300,
    "missing": 0,
}


@pytest.fixture(autouse=True)
def archive(tmp_path, monkeypatch):
    """Write an archive of others to the working directory."""
    monkeypatch.chdir(tmp_path)
    own = arrays(values=None, node=None, channel_names=None, start=None, interval=None, name=None)
    named = arrays()
    extra = {"speed": named["values"], "sensor": named["node"], "flow": named["values"] + 1}
    np.savez(tmp_path / "foreign.npz", **own, **extra)


@pytest.fixture
def describe(tmp_path):
    def write(text=TEXT):
        path = tmp_path / "road.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def without(key):
    return "\n".join(line for line in TEXT.splitlines() if not line.startswith(f"{key} "))


def test_a_description_reads_as_the_arguments_do(describe):
    series = load_series(describe())
    assert series.name == "main road"
    plain = load_series("foreign.npz", **SAID)
    assert same(replace(series, name=plain.name), plain)
    assert same(load_series(describe(without("name"))), plain)
    assert not plain.mask.all()


@pytest.mark.parametrize(
    "said",
    [
        {"start": "2020-01-01"},
        {"interval": 60},
        {"channel_names": ["a [1]", "b [1]"]},
        {"missing": 5.0},
        {"names": {"values": "flow"}},
    ],
    ids=lambda said: next(iter(said)),
)
def test_what_the_call_says_goes_before_the_description(describe, said):
    # Of names, key by key: the description still says where the nodes are.
    names = SAID["names"] | said.get("names", {})
    expected = load_series("foreign.npz", **SAID | said | {"names": names})
    assert same(load_series(describe(without("name")), **said), expected)
    assert not same(expected, load_series("foreign.npz", **SAID))


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_description_and_archive_are_found_under_the_root(tmp_path, monkeypatch, describe, by):
    describe()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.delenv("GRAPHCL_DATA", raising=False)
    if by == "environment":
        monkeypatch.setenv("GRAPHCL_DATA", str(tmp_path))
    root = tmp_path if by == "argument" else None
    assert load_series("road.toml", root=root).name == "main road"


FAULTS = {
    "unknown key": ('intervall = 300\nfile = "foreign.npz"', "intervall: unknown key; .* interval"),
    "no file": (without("file"), "no key file: add the path"),
    "file": ("file = 3", "file is 3, must be text"),
    "name": (TEXT.replace('"main road"', "3"), "name is 3, must be text"),
    "one channel": (
        TEXT.replace('["speed [mph]", "occupancy [1]"]', '"speed [mph]"'),
        r"channel_names is 'speed \[mph\]', must be a list of text",
    ),
    "channels": (
        TEXT.replace('"occupancy [1]"', "1"),
        r"channel_names is \['speed \[mph\]', 1\], must be a list of text",
    ),
    "start": (
        TEXT.replace('"2012-03-01T00:00-08:00"', "2012-03-01"),
        r"start is .*date\(2012, 3, 1\), must be text, such as",
    ),
    "interval": (TEXT.replace("300", "300.0"), r"interval is 300\.0, must be a whole number"),
    "truth": (TEXT.replace("300", "true"), "interval is True, must be a whole number"),
    "missing": (TEXT.replace("= 0", '= "none"'), "missing is 'none', must be a number"),
    "names": ('file = "a.npz"\nnames = "speed"', "names is 'speed', must be a table of text"),
    "a name": (TEXT.replace('"sensor"', "3"), "names is .*3.*, must be a table of text"),
    "no TOML": ("file: foreign.npz", "not a readable TOML file"),
}


@pytest.mark.parametrize(("text", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_names_description_and_key(describe, text, message):
    with pytest.raises(DataError, match=rf"road\.toml: {message}"):
        load_series(describe(text))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("foreign.npz", "absent.npz", r"absent\.npz: not found; looked at "),
        ("foreign.npz", "road.toml", r".*road\.toml: not a readable npz archive"),
        ('"speed"', '"sped"', r".*foreign\.npz: missing sped; the file has"),
        ("values = ", "value = ", r".*foreign\.npz: names holds 'value'; what a file may call"),
        ("300", "0", r".*foreign\.npz: interval is 0, must be at least 1 second"),
    ],
    ids=["no archive", "no npz", "no such array", "no such key", "rule"],
)
def test_a_fault_of_the_archive_names_both_files(describe, old, new, message):
    with pytest.raises(DataError, match=rf"road\.toml: file {message}"):
        load_series(describe(TEXT.replace(old, new)))


WEEK = 604_800
REAL = {  # steps, nodes, channels; edges; seconds from step to step
    "metr_la": ((2016, 207, 1), 1722, 300),
    "pemsd7m": ((2016, 228, 1), 1664, 300),
    "sz_taxi": ((2976, 156, 1), 532, 900),
    "nycbike1": ((1295, 128, 2), 884, 3600),
    "chickenpox_hungary": ((521, 20, 1), 102, WEEK),
    "england_covid": ((61, 129, 1), 82_529, 86_400),
    "ili_japan": ((348, 47, 1), 219, WEEK),
    "ili_us_regions": ((785, 10, 1), 42, WEEK),
    "ili_us_states": ((360, 49, 1), 255, WEEK),
}


def test_every_shipped_description_is_checked():
    assert {path.stem for path in CONFIGS.glob("*.toml")} == set(REAL)


@pytest.mark.parametrize("name", REAL)
def test_shipped_descriptions_read_the_real_files(data_root, name):
    shape, edges, interval = REAL[name]
    series = load_series(CONFIGS / f"{name}.toml", root=data_root)
    assert series.name == name
    assert series.values.shape == shape
    assert series.edge_index.shape == (2, edges)
    assert series.interval == interval
    # Speeds are 0 where nobody drove; cases and bikes may well be none.
    zeros = int((series.values == 0).sum())
    assert (zeros == 0) == ("speed" in series.channel_names[0] or name == "chickenpox_hungary")


@pytest.mark.parametrize(("name", "ahead"), [("metr_la", -8), ("pemsd7m", -7), ("nycbike1", -4)])
def test_the_evening_rush_is_in_the_evening(data_root, name, ahead):
    """A start that is off by a few hours, or a local time taken for UTC, moves the rush."""
    series = load_series(CONFIGS / f"{name}.toml", root=data_root)
    hour = (series.time.astype("M8[h]").astype(int) + ahead) % 24
    mean = np.array([series.values[hour == h].nanmean() for h in range(24)])
    rush = mean.argmax() if name == "nycbike1" else mean.argmin()  # most bikes, slowest cars
    assert rush in (17, 18)
