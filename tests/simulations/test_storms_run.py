"""``graphcl run configs/storms.toml``: districts train on storms together, from file to report."""

import html
import json
import re
from pathlib import Path

from federation.scores import SCORES
from simulations.report.units import scored

STORMS = Path(__file__).parents[2] / "configs" / "storms.toml"
SMALL = (
    *("--set", "run.rounds=1", "--set", "train.epochs=1"),
    *("--set", "data.outages.locations=40", "--set", "data.outages.events=8"),
)


def test_districts_train_on_storms_and_the_report_speaks_of_them(graphcl, tmp_path):
    code, out = graphcl("run", str(STORMS), "--engine", "local", *SMALL)
    assert code == 0, out
    assert "fedavg over 4 clients of 5 to 12 locations, 4 classes" in out
    (directory,) = (tmp_path / "runs").iterdir()
    found = [json.loads(path.read_text()) for path in directory.rglob("summary.json")]
    assert {one["strategy"] for one in found} == {"fedavg", "local", "pooled", "feddbp"}
    page = html.unescape((directory / "report.html").read_text(encoding="utf-8"))
    words = " ".join(re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL).split())
    for one in found:
        assert scored(one["test_mae"], SCORES["outages"][0]) in words
    assert "natural partition, encoders sa_hgnn Test MAE" in words
    assert "Test MAE over the rounds" in page
    assert "How the locations of" in page
    assert (
        "A location's class is the worst severity of its outages in the training events." in words
    )
    before_configuration = words.split("[run]")[0]
    assert not re.search(r"\b(nodes?|accuracy)\b", before_configuration, flags=re.IGNORECASE)
