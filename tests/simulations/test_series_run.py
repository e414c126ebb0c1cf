"""``graphcl run configs/series.toml``: sites learn to forecast together, from file to report."""

import html
import json
import re
from pathlib import Path

from federation.scores import SCORES
from graphcl.datasets import confounded_series, save_series
from simulations import terminal
from simulations.report.units import scored

SERIES = Path(__file__).parents[2] / "configs" / "series.toml"
SMALL = (
    *("--engine", "local", "--set", "run.rounds=1", "--set", "model.embedding_channels=8"),
    *("--set", "data.series.nodes=6", "--set", "data.series.steps=300"),
)


def words_of(page: Path) -> str:
    text = re.sub(r"<style>.*?</style>|<[^>]+>", " ", page.read_text("utf-8"), flags=re.DOTALL)
    return " ".join(html.unescape(text).split())


def test_sites_learn_to_forecast_and_the_report_speaks_of_them(graphcl, tmp_path, monkeypatch):
    monkeypatch.setattr(terminal, "console", terminal.Console(width=100))
    code, out = graphcl("run", str(SERIES), *SMALL)
    assert code == 0, out
    assert "scfsgl over 4 clients of 6 to 6 sensors, 0% of" in out
    (directory,) = (tmp_path / "runs").iterdir()
    found = [json.loads(path.read_text()) for path in directory.rglob("summary.json")]
    assert {one["strategy"] for one in found} == {"scfsgl", "local", "fedavg"}
    rows = [re.split(r"  +", line.strip()) for line in out.splitlines()]
    assert ["strategy", "relative MAE", "worst client"] in [row[:3] for row in rows]
    for one in found:
        assert [one["strategy"], f"{one['test_relative_mae']:.4f}"] in [row[:2] for row in rows]
    words = words_of(directory / "report.html")
    for one in found:
        assert scored(one["test_relative_mae"], SCORES["forecast"][0]) in words
    assert "Test relative MAE of every client" in words
    assert "A relative MAE is the MAE over that of expecting the last value to stay" in words
    assert re.search(r"No edge of the \d+ is cut", words)
    assert "Client Encoder Sensors Edges 0 sc_fsgl 6" in words
    before_configuration = words.split("[run]")[0]
    assert not re.search(
        r"\b(nodes?|accuracy|homophily|entropy|class\w*)\b", before_configuration, re.IGNORECASE
    )


def test_regions_of_one_series_are_divided_and_pooled(graphcl, tmp_path):
    save_series(confounded_series(1, 12, 300)[0].series, tmp_path / "city.npz")
    cut = ("data.source=city.npz", "partition.scheme=louvain", "partition.clients=2")
    keys = (*cut, "partition.min_nodes=2", "run.compare=pooled")
    settings = [part for key in keys for part in ("--set", key)]
    code, out = graphcl("run", str(SERIES), *SMALL, *settings)
    assert code == 0, out
    (directory,) = (tmp_path / "runs").iterdir()
    summary = json.loads((directory / "compare" / "pooled" / "summary.json").read_text())
    assert 0 < summary["test_relative_mae"] < 10
    partition = json.loads((directory / "partition.json").read_text())
    share = f"{partition['cut_edges']} of {partition['edges']} edges"
    assert share in words_of(directory / "report.html")
