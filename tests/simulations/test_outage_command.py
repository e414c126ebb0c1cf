"""``graphcl outage``: from a utility's tables to a page and a table, and what a mistake says."""

import csv
import json
import re
import shutil

import pytest

from graphcl.datasets import save_storm, simulate_storms
from graphcl.outages import ForecasterConfig, OutageForecaster, SAHGNNConfig
from simulations import outages

TINY = """
[outage]
name = "tiny"
source = "example/history"

[sa_hgnn]
hidden_channels = 8
epochs = 2

[forecaster]
members = 1
folds = 2
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a model and a storm to forecast, made once."""
    folder = tmp_path_factory.mktemp("made")
    events = simulate_storms(30, 6, seed=2).events
    config = SAHGNNConfig(hidden_channels=8, epochs=2)
    forecaster = OutageForecaster(config, ForecasterConfig(members=1, folds=2))
    forecaster.fit(events.of(range(5))).save(folder / "model")
    save_storm(events.of([5]), folder / "storm.csv")
    return folder


@pytest.fixture
def outage(graphcl, tmp_path, made):
    """Return a caller of ``graphcl outage`` beside the model, the storm and ``tiny.toml``."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tiny.toml").write_text(TINY)
    return lambda *arguments: graphcl("outage", *arguments)


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_from_tables_to_a_page(graphcl, tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY)
    size = ("--locations", "30", "--events", "5")
    assert graphcl("outage", "simulate", "example", *size)[0] == 0
    code, out = graphcl("outage", "train", "tiny.toml", "--out", "fitted")
    assert code == 0, out
    assert "Trained on 5 events: fitted" in out
    code, out = graphcl(
        *("outage", "predict", "--model", "fitted", "--event", "example/storm.csv"),
        *("--out", "page.html", "--table", "table.csv"),
    )
    assert code == 0, out
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<h1>storm</h1>" in page
    assert not re.search(r"https?:|\bsrc=", page)
    found = rows(tmp_path / "table.csv")
    assert [row["location"] for row in found] == [f"cell-{i}" for i in range(30)]
    assert all(0 <= int(row["low"]) <= int(row["high"]) for row in found)
    assert not [row for row in found if row["low"].startswith("-")]
    for strip in ("strip-0", "strip-3"):
        total = sum(float(row["expected"]) for row in found if row["district"] == strip)
        shown = re.search(rf"{strip} +(\d+) +\d+ to \d+ +\d+", out)
        assert shown, out
        assert int(shown[1]) == pytest.approx(total, abs=0.6)
    assert re.search(r"all +\d+ +\d+ to \d+ +67", out)  # 5 events carry a level of 4 / 6


def test_predicting_again_gives_the_same_bytes(outage, tmp_path):
    written = []
    for _ in range(2):
        code, out = outage(
            "predict", "--model", "model", "--event", "storm.csv", "--table", "t.csv"
        )
        assert code == 0, out
        written.append([(tmp_path / name).read_bytes() for name in ("map.html", "t.csv")])
    assert written[0] == written[1]


def test_rows_and_columns_of_a_storm_may_stand_in_any_order(outage, tmp_path):
    outage("predict", "--model", "model", "--event", "storm.csv", "--table", "one.csv")
    header, *lines = csv.reader((tmp_path / "storm.csv").read_text().splitlines())
    turned = [line[::-1] for line in (header, *lines[::-1])]
    (tmp_path / "turned.csv").write_text("\n".join(map(",".join, turned)) + "\n")
    outage("predict", "--model", "model", "--event", "turned.csv", "--table", "other.csv")
    assert rows(tmp_path / "one.csv") == rows(tmp_path / "other.csv")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("gust_max [m/s]", "gust_max [mph]", "the column 'gust_max [mph]' is 'gust_max [m/s]'"),
        ("gust_max [m/s]", "snow [cm]", "missing gust_max [m/s]; unknown snow [cm]"),
        ("cell-7,", "cell-77,", "'cell-77'"),
        (r"cell-7,[^\n]*\n", "", "no row for location 'cell-7'"),
    ],
)
def test_a_storm_that_does_not_fit_is_named_and_nothing_is_written(
    outage, tmp_path, old, new, message
):
    text = (tmp_path / "storm.csv").read_text()
    pattern = old if old.startswith("cell-7,[") else re.escape(old)
    (tmp_path / "wrong.csv").write_text(re.sub(pattern, new, text))
    code, out = outage("predict", "--model", "model", "--event", "wrong.csv")
    assert code == 1
    assert message in out
    assert "wrong.csv" in out
    assert "Traceback" not in out
    assert not (tmp_path / "map.html").exists()


def test_swapped_coordinates_are_told(outage, tmp_path):
    outage("simulate", "example", "--locations", "30", "--events", "5")
    path = tmp_path / "example" / "history" / "locations.csv"
    # A longitude beyond 90, since 72 degrees west could be a latitude.
    text = path.read_text().replace(",-72.", ",121.")
    path.write_text(text.replace("latitude,longitude", "longitude,latitude"))
    code, out = outage("train", "tiny.toml", "--out", "fitted")
    assert code == 1
    assert "example/history: latitude of location 'cell-0' is 121." in out
    assert "the columns look swapped, put degrees north before degrees east" in out
    assert not (tmp_path / "fitted").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "tiny.toml"], "Missing option '--out'"),
        (["train", "tiny.toml", "--out", "model"], "--out model exists already"),
        (["train", "none.toml", "--out", "new"], "none.toml: no such"),
        (["train", "tiny.toml", "--out", "new"], "example/history: not found"),
        (["train", "tiny.toml", "--out", "new", "--set", "sa_hgnn.epoch=1"], "'sa_hgnn.epochs'"),
        (
            ["train", "tiny.toml", "--out", "new", "--set", "forecaster.level=90"],
            "forecaster.level is 90.0, must be a share between 0 and 1",
        ),
        (
            ["train", "tiny.toml", "--out", "new", "--set", "forecaster.folds=1"],
            "forecaster.folds is 1, must be at least 2",
        ),
        (["evaluate", "tiny.toml", "--set", "forecaster.members=0"], "forecaster.members is 0"),
        (
            ["predict", "--model", "none", "--event", "storm.csv"],
            "intervals.safetensors: no saved",
        ),
        (["predict", "--model", "model", "--event", "none.csv"], "none.csv: not found"),
        (["evaluate", "tiny.toml", "--method", "oracle"], "--method oracle: unknown; choose from"),
        (["simulate", "made", "--locations", "1"], "'--locations': 1 is not in the range"),
    ],
)
def test_a_mistake_is_one_message_and_nothing_is_made(outage, tmp_path, arguments, message):
    before = sorted(tmp_path.rglob("*"))
    code, out = outage(*arguments)
    assert code != 0
    assert message in out
    assert "Traceback" not in out
    assert sorted(tmp_path.rglob("*")) == before


def test_a_simulation_does_not_overwrite_tables(outage, tmp_path):
    size = ("--locations", "30", "--events", "5")
    outage("simulate", "example", *size)
    before = (tmp_path / "example" / "history" / "locations.csv").read_bytes()
    code, out = outage("simulate", "example", *size, "--seed", "1")
    assert code == 1
    assert "example/history" in out
    assert (tmp_path / "example" / "history" / "locations.csv").read_bytes() == before


SIMULATED = ("--set", "outage.source=simulated", "--set", "outage.locations=30")
FEW = ("--set", "outage.events=5", "--set", "outage.seed=2")


def test_evaluation_shows_and_writes_every_method_and_the_intervals(outage, tmp_path):
    code, out = outage(
        *("evaluate", "tiny.toml", *SIMULATED, *FEW, "--intervals"),
        *("--method", "last_similar_storm", "--method", "sa_hgnn"),
    )
    assert code == 0, out
    written = json.loads((tmp_path / "runs" / "outages" / "tiny.json").read_text())
    assert list(written["methods"]) == ["last_similar_storm", "sa_hgnn"]
    for name, one in written["methods"].items():
        assert re.search(rf"{name} .*{one['totals']['morisita_horn']:.3f}", out)
    measured = written["coverage"]["measured"]["locations"]
    assert re.search(rf"locations +90.0 +{100 * measured:.1f}", out)


@pytest.mark.parametrize("leave", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_keeps_what_was_finished(outage, tmp_path, monkeypatch, leave):
    def interrupted(experiment):
        raise leave

    monkeypatch.setitem(outages.METHODS, "sa_hgnn", interrupted)
    arguments = ("--method", "last_similar_storm", "--method", "sa_hgnn")
    try:
        outage("evaluate", "tiny.toml", *SIMULATED, *FEW, *arguments)
    except RuntimeError:
        assert leave is RuntimeError
    written = json.loads((tmp_path / "runs" / "outages" / "tiny.json").read_text())
    assert list(written["methods"]) == ["last_similar_storm"]


@pytest.mark.parametrize("command", ["simulate", "train", "predict", "evaluate"])
def test_help_shows_an_example(outage, command):
    code, out = outage(command, "--help")
    assert code == 0
    assert "For example:" in out
    assert f"graphcl outage {command}" in out
