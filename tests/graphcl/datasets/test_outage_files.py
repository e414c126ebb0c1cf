"""Files of outage events: both forms load as they were saved, and a fault is named by its place."""

import csv
import gzip

import numpy as np
import pytest
import torch
from test_outage_events import make, same

from graphcl.datasets import load_outage_events, load_storm, save_outage_events, simulate_storms
from graphcl.errors import DataError

TABLES = {
    "locations": [
        "location,latitude,longitude,district,customers,canopy_share [1],age [a]",
        "a,41.0,-72.0,west,10,0.5,1",
        "b,41.1,-72.0,east,0,,2",
        "c,41.2,-72.0,west,30,0.7,3",
        "d,41.2,-72.0,east,40,0.1,4",
    ],
    "events": ["event,type", "ida,rain", "sandy,tropical"],
    "weather": [
        "location,event,gust_max [m/s],rain_total [mm]",
        *(f"{place},sandy,{8 + 2 * i},{9 + 2 * i}" for i, place in enumerate("abcd")),
        *(f"{place},ida,{2 * i},{2 * i + 1}" for i, place in reversed(list(enumerate("abcd")))),
    ],
    "outages": [
        "event,location,outages",
        "sandy,d,99",
        "ida,b,1",
        "ida,d,3",
        "ida,c,2",
        "sandy,a,4",
        "sandy,c,6",
        "sandy,b,5",
    ],
    "borders": ["location,neighbor", "b,a", "b,c", "d,c", "a,b"],
}

STORM = ["rain_total [mm],location,gust_max [m/s]", "4,d,8", "3,c,7", "2,b,6", "1,a,5"]


@pytest.fixture
def folder(tmp_path):
    """Return a writer of the tables; a change replaces lines of a table, or leaves it out (None).

    A change maps the name of a table to a mapping from line numbers, counted from 1, to lines.
    """

    def write(**changes):
        for table, lines in TABLES.items():
            change = changes.get(table, {})
            if change is not None:
                numbered = dict(enumerate(lines, 1)) | change
                text = "\n".join(line for _, line in sorted(numbered.items()) if line is not None)
                (tmp_path / f"{table}.csv").write_text(text + "\n", encoding="utf-8")
        return tmp_path

    return write


def arrays(**changes):
    """Return the archive's arrays of the same events; a change to None leaves a key out."""
    events = make()
    keys = {
        "location": np.array(events.location),
        "latlon": events.latlon.numpy(),
        "district": np.array(events.district),
        "customers": np.array([10, 0, 30, 40]),
        "static": events.static.numpy(),
        "static_names": np.array(events.static_names),
        "event": np.array(events.event),
        "event_type": np.array(events.event_type),
        "weather": events.weather.numpy().astype(np.float64),
        "weather_names": np.array(events.weather_names),
        "outages": events.outages.numpy().astype(np.int32),
        "borders": np.array([[1, 0], [1, 2], [3, 2], [0, 1]], dtype=np.int16),
    }
    keys.update(changes)
    return {key: value for key, value in keys.items() if value is not None}


@pytest.fixture
def archive(tmp_path):
    def write(**changes):
        path = tmp_path / "storms.npz"
        np.savez(path, **arrays(**changes))
        return path

    return write


def test_a_folder_is_read_as_documented(folder):
    assert same(load_outage_events(folder()), make())


def test_an_archive_is_read_as_documented(archive):
    assert same(load_outage_events(archive()), make())


def test_packed_tables_are_read_alike(folder):
    place = folder()
    for table in list(place.iterdir()):
        (place / f"{table.name}.gz").write_bytes(gzip.compress(table.read_bytes()))
        table.unlink()
    assert same(load_outage_events(place), make())


def test_a_table_as_a_spreadsheet_writes_it_is_read(folder):
    """With a byte order mark, carriage returns, quotes and an empty line at the end."""
    place = folder()
    text = "\r\n".join(TABLES["locations"]).replace("west", '"west"') + "\r\n\r\n"
    (place / "locations.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert same(load_outage_events(place), make())


def test_no_counts_is_a_forecast_and_no_borders_is_none(folder, archive):
    for path in (folder(outages=None, borders=None), archive(outages=None, borders=None)):
        events = load_outage_events(path)
        assert events.outages is None
        assert events.borders.shape == (2, 0)


def test_a_table_without_rows_counts_zero_everywhere(folder):
    place = folder()
    (place / "outages.csv").write_text("event,location,outages\n")
    assert load_outage_events(place).outages.tolist() == [[0] * 4] * 2


def test_an_archive_without_types_holds_storms(archive):
    assert load_outage_events(archive(event_type=None)).event_type == ("storm", "storm")


def test_integer_names_become_text(archive):
    assert load_outage_events(archive(location=np.arange(4))).location == ("0", "1", "2", "3")


def tricky():
    """Return events whose values and names are hard to keep: every bit pattern, commas, quotes."""
    events = simulate_storms(30, 3, num_districts=2, seed=5).events
    bits = torch.randint(-(2**31), 2**31 - 1, events.weather.shape, dtype=torch.int64)
    weather = bits.to(torch.int32).view(torch.float32)
    weather[torch.isinf(weather)] = float("nan")
    weather[..., 0] = 1 / 3
    static = events.static.clone()
    static[3, 2] = float("nan")
    return make(
        **{
            **vars(events),
            "weather": weather,
            "static": static,
            "district": tuple(f'Ü "{d}",\nnorth' for d in events.district),
            "borders": events.borders.flip(1),
        }
    )


@pytest.mark.parametrize("name", ["storms.npz", "storms"])
@pytest.mark.parametrize(
    "events",
    [
        make(),
        make(outages=None, borders=torch.empty(2, 0, dtype=torch.int64)),
        make(static=torch.empty(4, 0), static_names=()),
        make(outages=torch.zeros(2, 4, dtype=torch.int64)),
        tricky(),
    ],
    ids=["plain", "forecast", "no static features", "nothing broke", "tricky"],
)
def test_what_is_saved_loads_as_it_was(tmp_path, events, name):
    save_outage_events(events, tmp_path / name)
    assert same(load_outage_events(name, root=tmp_path), events)


def test_saving_refuses_a_folder_in_use_and_broken_events(tmp_path):
    (tmp_path / "outages.csv").write_text("event,location,outages\n")
    with pytest.raises(DataError, match="holds files already: save to a folder that is new"):
        save_outage_events(make(outages=None), tmp_path)
    with pytest.raises(DataError, match=r"to save as .*: district has 1 entries"):
        save_outage_events(make(district=("x",)), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_other_names_and_units_are_mapped(folder, archive):
    place = folder(
        locations={1: "cell,latitude,longitude,town,customers,canopy_share [1],age"},
        weather={1: "cell,event,gust_max [m/s],rain_total"},
        outages={1: "event,cell,outages"},
        borders={1: "cell,neighbor"},
    )
    units = {"age": "a", "rain_total": "mm"}
    columns = {"location": "cell", "district": "town"}
    assert same(load_outage_events(place, columns=columns, units=units), make())

    path = archive(
        event=None,
        storm=np.array(make().event),
        static_names=np.array(["canopy_share [1]", "age"]),
        weather_names=np.array(["gust_max [m/s]", "rain_total"]),
    )
    assert same(load_outage_events(path, columns={"event": "storm"}, units=units), make())


@pytest.mark.parametrize("form", ["folder", "archive"])
def test_customers_may_be_a_static_feature(folder, archive, form):
    if form == "folder":
        place = folder()
        rows = list(csv.reader(TABLES["locations"]))
        lines = [",".join(row[:4] + row[5:]) for row in rows]
        (place / "locations.csv").write_text("\n".join(lines))
    else:
        place = archive(customers=None)
    events = load_outage_events(place, columns={"customers": "static:age [a]"})
    assert events.customers.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert events.static_names == make().static_names
    with pytest.raises(DataError, match=r"no customers: .*columns=\{'customers': 'static:NAME'\}"):
        load_outage_events(place)
    with pytest.raises(DataError, match=r"from 'meters', but the static features are canopy"):
        load_outage_events(place, columns={"customers": "static:meters"})


def test_customers_from_the_only_static_feature_are_numbers_of_their_own(archive):
    """A contiguous column would otherwise be a view: a change to one would change both."""
    static = np.array([[10], [20], [30], [40]], dtype=np.float32)
    place = archive(customers=None, static=static, static_names=np.array(["meters [1]"]))
    events = load_outage_events(place, columns={"customers": "static:meters [1]"})
    events.customers.zero_()
    assert events.static.flatten().tolist() == [10, 20, 30, 40]


FOLDER_RULES = {
    "no table": ({"weather": None}, {}, r"weather\.csv: no such file"),
    "no column": (
        {"locations": {1: "location,lat,longitude,district,customers,canopy_share [1],age [a]"}},
        {},
        r"locations\.csv: missing latitude; the file has location, lat, .*say in columns",
    ),
    "semicolons": ({"events": {1: "event;type"}}, {}, r"events\.csv: missing event, type; the f"),
    "empty file": (
        {"events": {1: None, 2: None, 3: None}},
        {},
        r"events\.csv: missing event, type; the file has nothing",
    ),
    "column twice": ({"events": {1: "event,type,type"}}, {}, r"line 1: the column 'type' is there"),
    "ragged": ({"weather": {3: "b,sandy,10"}}, {}, r"weather\.csv: line 3 has 3 cells, must .* 4"),
    "no number": (
        {"weather": {3: "b,sandy,10,NA"}},
        {},
        r"weather\.csv: line 3, column 'rain_total \[mm\]': 'NA' is no finite number",
    ),
    "decimal comma": (
        {"locations": {2: 'a,"41,0",-72.0,west,10,0.5,1'}},
        {},
        r"locations\.csv: line 2, column 'latitude': '41,0' is no .* with a point for decimals",
    ),
    "infinite": ({"weather": {3: "b,sandy,inf,1"}}, {}, r"line 3, column 'gust_max .*'inf' is no"),
    "overflow": (
        {"weather": {3: "b,sandy,1e39,1"}},
        {},
        r"line 3, .*'1e39' is no finite .*float32",
    ),
    "location twice": (
        {"locations": {4: "a,41.2,-72.0,west,30,0.7,3"}},
        {},
        r"locations\.csv: line 4, column 'location': 'a' again",
    ),
    "event twice": ({"events": {3: "ida,rain"}}, {}, r"events\.csv: line 3, .*'ida' again"),
    "weather of an unknown": (
        {"weather": {4: "z,sandy,1,1"}},
        {},
        r"weather\.csv: line 4, column 'location': 'z' is none of the 4 known names",
    ),
    "weather twice": (
        {"weather": {4: "a,sandy,1,1"}},
        {},
        r"weather\.csv: line 4, column 'event', 'location': 'sandy', 'a' again: keep one row",
    ),
    "weather missing": (
        {"weather": {4: None}},
        {},
        r"weather\.csv: no row for event and location 'sandy', 'c' \(1 such\)",
    ),
    "weather all empty": (
        {"weather": {4: "c,sandy,,"}},
        {},
        "weather is missing entirely in event 'sandy' at location 'c'",
    ),
    "unknown event": (
        {"outages": {3: "irma,b,1"}},
        {},
        r"outages\.csv: line 3, column 'event': 'irma' is none of the 2",
    ),
    "outages twice": (
        {"outages": {4: "ida,b,1"}},
        {},
        r"outages\.csv: line 4, column 'event', 'location': 'ida', 'b' again",
    ),
    "broken count": (
        {"outages": {4: "ida,d,2.5"}},
        {},
        r"line 4, column 'outages': 2.5 is no count",
    ),
    "huge count": (
        {"outages": {4: "ida,d,1e30"}},
        {},
        r"line 4, column 'outages': 1e\+30 is too large for a count",
    ),
    "empty count": (
        {"outages": {4: "ida,d,"}},
        {},
        r"line 4, column 'outages': nan is no count: .*",
    ),
    "negative count": (
        {"outages": {4: "ida,d,-3"}},
        {},
        "outages is -3 in event 'ida' at loca.* 'd'",
    ),
    "unknown neighbour": (
        {"borders": {3: "b,e"}},
        {},
        r"borders\.csv: line 3, column 'neighbor': 'e' is none",
    ),
    "its own neighbour": ({"borders": {3: "b,b"}}, {}, r"borders\[:, 1\] is \[1, 1\]"),
    "swapped": (
        {
            "locations": {
                1: "location,longitude,latitude,district,customers,canopy_share [1],age [a]",
                2: "a,41.0,-172.0,west,10,0.5,1",
            }
        },
        {},
        "latitude of location 'a' is -172.0 .*: the columns look swapped",
    ),
    "no unit": (
        {"weather": {1: "location,event,gust_max,rain_total [mm]"}},
        {},
        r"'gust_max': name the unit in brackets.*units=\{'gust_max': \.\.\.\}",
    ),
    "unknown unit": ({}, {"units": {"gust": "m/s"}}, "units holds 'gust', which is no feature"),
    "second unit": (
        {},
        {"units": {"age [a]": "a"}},
        r"units holds 'age \[a\]', which is no feature without a unit",
    ),
    "unknown key": (
        {},
        {"columns": {"latlon": "position"}},
        "columns holds 'latlon'; what a file may call otherwise is location, latitude",
    ),
}


@pytest.mark.parametrize(("changes", "options", "message"), FOLDER_RULES.values(), ids=FOLDER_RULES)
def test_a_faulty_folder_is_refused_by_place(folder, changes, options, message):
    with pytest.raises(DataError, match=message):
        load_outage_events(folder(**changes), **options)


def test_tables_that_cannot_be_read_are_refused(folder):
    place = folder()
    (place / "events.csv").write_bytes("event,type\nCiarán,rain\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"events\.csv: not a readable CSV table in UTF-8"):
        load_outage_events(place)
    (place / "events.csv").write_text('event,type\n"ida,rain\n')
    with pytest.raises(DataError, match=r"events\.csv: not a readable CSV table"):
        load_outage_events(place)
    (place / "events.csv").unlink()
    (place / "events.csv.gz").write_bytes(gzip.compress(b"event,type\n")[:-9])
    with pytest.raises(DataError, match=r"events\.csv\.gz: not a readable CSV table"):
        load_outage_events(place)
    (place / "events.csv").write_text("event,type\n")
    with pytest.raises(DataError, match=r"holds both events\.csv and events\.csv\.gz: keep one"):
        load_outage_events(place)


ARCHIVE_RULES = {
    "no key": ({"latlon": None}, {}, "missing latlon; the file has location, district"),
    "mapped key": (
        {},
        {"columns": {"event": "storm"}},
        "missing storm; the file has .*say in columns what",
    ),
    "mapped optional key": ({"borders": None}, {"columns": {"borders": "edges"}}, "missing edges"),
    "unknown key": ({}, {"columns": {"latitude": "lat"}}, "columns holds 'latitude'"),
    "pickle": ({"event": np.array(["a", None])}, {}, "event cannot be read"),
    "float names": (
        {"location": np.ones(4)},
        {},
        r"location is float64 of shape \(4,\), must be t",
    ),
    "names in rows": (
        {"district": np.full((4, 1), "w")},
        {},
        r"district is <U1 of shape \(4, 1\), must be text of one axis",
    ),
    "text weather": ({"weather": np.full((2, 4, 2), "1")}, {}, "weather is <U1, must be real"),
    "float counts": ({"outages": np.ones((2, 4))}, {}, "outages is float64, must be an integer"),
    "float borders": ({"borders": np.ones((1, 2))}, {}, "borders is float64, must be an integer"),
    "turned borders": (
        {"borders": np.zeros((2, 3), int)},
        {},
        r"borders has shape \(2, 3\), must be \(B, 2\)",
    ),
    "far border": ({"borders": np.array([[0, 4]])}, {}, r"\[0, 4\] .* locations are 0 to 3"),
    "overflow": (
        {"weather": np.full((2, 4, 2), 1e39)},
        {},
        r"weather 'gust_max \[m/s\]' is inf in event 'ida' at location 'a'",
    ),
    "short weather": ({"weather": np.ones((2, 3, 2))}, {}, r"weather has shape \[2, 3, 2\]"),
    "flat static": (
        {"static": np.ones(4)},
        {"columns": {"customers": "static:age [a]"}},
        r"static has shape \(4,\), must be \(N, 2\)",
    ),
}


@pytest.mark.parametrize(
    ("changes", "options", "message"), ARCHIVE_RULES.values(), ids=ARCHIVE_RULES
)
def test_a_faulty_archive_is_refused_by_key(archive, changes, options, message):
    path = archive(**changes)
    with pytest.raises(DataError, match=f"^{path}: .*{message}"):
        load_outage_events(path, **options)


def test_a_path_that_is_nowhere_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.npz: not found; looked at"):
        load_outage_events("nowhere.npz", root=tmp_path)
    (tmp_path / "table.csv").write_text("event,type\n")
    with pytest.raises(DataError, match="not a readable npz archive"):
        load_outage_events(tmp_path / "table.csv")


@pytest.fixture
def forecast(tmp_path):
    def write(lines, name="lee.csv"):
        data = "\n".join(lines).encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return tmp_path / name

    return write


@pytest.mark.parametrize("name", ["lee.csv", "lee.csv.gz"])
def test_a_forecast_takes_the_order_of_the_model(forecast, name):
    storm = load_storm(name, make(), root=forecast(STORM, name).parent)
    assert storm.weather.tolist() == [[[5, 1], [6, 2], [7, 3], [8, 4]]]
    assert (storm.event, storm.event_type, storm.outages) == (("lee",), ("storm",), None)
    assert same(
        storm, make(event=("lee",), event_type=("storm",), weather=storm.weather, outages=None)
    )


def test_a_forecast_may_miss_a_value(forecast):
    storm = load_storm(forecast([*STORM[:-1], ",a,5"]), make())
    assert storm.weather[0, 0, 0] == 5
    assert storm.weather[0, 0, 1].isnan()


def test_a_forecast_maps_its_names_and_units(forecast):
    path = forecast(["rain_total,cell,gust_max [m/s]", *STORM[1:]])
    storm = load_storm(path, make(), columns={"location": "cell"}, units={"rain_total": "mm"})
    assert storm.weather[0, :, 1].tolist() == [1, 2, 3, 4]


STORM_RULES = {
    "other unit": (
        ["rain_total [mm],location,gust_max [km/h]", *STORM[1:]],
        r"the column 'gust_max \[km/h\]' is 'gust_max \[m/s\]' where the model was trained: conv",
    ),
    "no unit": (
        ["rain_total [mm],location,gust_max", *STORM[1:]],
        r"the column 'gust_max' is 'gust_max \[m/s\]' where the model was trained",
    ),
    "missing column": (
        [line.rpartition(",")[0] for line in STORM],
        r"missing gust_max \[m/s\]; unknown none",
    ),
    "extra column": (
        [f"{STORM[0]},ice [mm]", *(f"{line},0" for line in STORM[1:])],
        r"missing none; unknown ice \[mm\]",
    ),
    "other column": (
        ["rain_total [mm],location,wind [m/s]", *STORM[1:]],
        r"missing gust_max \[m/s\]; unknown wind \[m/s\]",
    ),
    "no location column": (["rain_total [mm],cell,gust_max [m/s]", *STORM[1:]], "missing location"),
    "missing location": (STORM[:-1], r"no row for location 'a' \(1 such\)"),
    "unknown location": (
        [*STORM, "1,e,1"],
        "line 6, column 'location': 'e' is none of the 4 known",
    ),
    "location twice": ([*STORM, "1,b,1"], "line 6, column 'location': 'b' again"),
    "no weather there": (
        [*STORM[:-1], ",a,"],
        "weather is missing entirely in event 'lee' at .*'a'",
    ),
    "no number": ([*STORM[:-1], "x,a,1"], r"line 5, column 'rain_total \[mm\]': 'x' is no finite"),
}


@pytest.mark.parametrize(("lines", "message"), STORM_RULES.values(), ids=STORM_RULES)
def test_a_forecast_unlike_the_model_is_refused(forecast, lines, message):
    path = forecast(lines)
    with pytest.raises(DataError, match=f"^{path}: .*{message}"):
        load_storm(path, make())


TAIWAN = "outage/taiwan_typhoon_outages.npz"
TAIWAN_COLUMNS = {
    "event": "storm",
    "district": "city",
    "location": "village_code",
    "borders": "edges",
    "customers": "static:households",
}
TAIWAN_UNITS = (
    {f"pole_type{kind}": "1" for kind in range(1, 11)}
    | {"households": "1", "electricity_meters": "1"}
    | {f"precp_{span}": "mm" for span in ("total", "day", "24h", "12h", "6h", "3h", "1h")}
    | {"wind_max": "m/s", "gust_max": "m/s", "track_min_km": "km", "track_intensity_at_min": "m/s"}
    | {"track_hours_within_200km": "h", "track_intensity_over_dist2_max": "1e-4 m/s/km2"}
)


def test_taiwan_loads_without_a_conversion(data_root):
    events = load_outage_events(TAIWAN, columns=TAIWAN_COLUMNS, units=TAIWAN_UNITS, root=data_root)
    assert (events.num_events, events.num_locations) == (8, 7851)
    assert events.borders.shape == (2, 20353)
    totals = [2444, 486027, 96187, 27340, 4501064, 2354238, 278533, 997241]
    assert events.outages.sum(dim=1).tolist() == totals
    assert events.event[4:6] == ("Soudelor", "Dujuan")
    assert set(events.event_type) == {"storm"}
    assert events.weather_names[9] == "track_min_km [km]"
    households = events.static[:, events.static_names.index("households [1]")]
    assert torch.equal(events.customers, households)
    assert len(events.districts()) == 22
