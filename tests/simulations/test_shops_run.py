"""``graphcl run configs/shops.toml``: shops learn to recommend together, from file to report."""

import html
import json
import re
from pathlib import Path

import pytest

from federation.experiment import load_experiment
from federation.learners import clients_of
from federation.scores import SCORES
from graphcl.datasets import save_interactions, simulate_interactions
from simulations import terminal
from simulations.report.units import scored

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = (
    *("--engine", "local", "--set", "run.rounds=1", "--set", "model.embedding_channels=8"),
    *("--set", "data.interactions.users=40", "--set", "data.interactions.items=60"),
)


def words_of(page: Path) -> str:
    text = re.sub(r"<style>.*?</style>|<[^>]+>", " ", page.read_text("utf-8"), flags=re.DOTALL)
    return " ".join(html.unescape(text).split())


def test_shops_learn_to_recommend_and_the_report_speaks_of_them(graphcl, tmp_path, monkeypatch):
    monkeypatch.setattr(terminal, "console", terminal.Console(width=80))
    code, out = graphcl("run", str(CONFIGS / "shops.toml"), *SMALL)
    assert code == 0, out
    said = r"fedavg over 8 clients of 5 to 5 users, 10 classes, \d+% of\s\d+ events cut; encoders"
    assert re.search(said, out), out
    (directory,) = (tmp_path / "runs").iterdir()
    found = [json.loads(path.read_text()) for path in directory.rglob("summary.json")]
    assert {one["strategy"] for one in found} == {"fedavg", "local", "pooled", "feddbp"}
    rows = [re.split(r"  +", line.strip()) for line in out.splitlines()]
    assert ["strategy", "NDCG@10"] in [row[:2] for row in rows]
    assert ["strategy", "HR@10", "MRR"] in rows
    for one in found:
        assert [one["strategy"], f"{one['test_ndcg_10']:.4f}"] in [row[:2] for row in rows]
    words = words_of(directory / "report.html")
    for one in found:
        assert scored(one["test_ndcg_10"], SCORES["recommend"][0]) in words
    assert "Test NDCG@10 of every client" in words
    assert re.search(r"\d+ of \d+ events \(\d+.\d.%\) are with items that the user's client", words)
    assert "the number counts the events" in words
    assert "An event's class is the category of its item." in words
    assert "Client Encoder Users Events Label entropy 0 sasrec 5" in words
    before_configuration = words.split("[run]")[0]
    assert not re.search(r"\b(nodes?|edges?|accuracy|homophily)\b", before_configuration, re.I)


def test_platforms_with_catalogues_of_their_own_run_from_files(graphcl, tmp_path):
    for name, items in (("books", 45), ("films", 50), ("games", 60)):
        found = simulate_interactions(20, items).interactions
        save_interactions(found, tmp_path / f"{name}.npz")
    keys = ("data.source=books.npz,films.npz,games.npz", "run.compare=pooled", "run.rounds=1")
    settings = [part for key in keys for part in ("--set", key)]
    config = str(CONFIGS / "amazon_platforms.toml")
    code, out = graphcl("run", config, "--engine", "local", *settings)
    assert code == 0, out
    assert "over 3 clients of 20 to 20 users, 10 classes, 0% of" in out
    (directory,) = (tmp_path / "runs").iterdir()
    assert re.search(r"No event of the \d+ is lost", words_of(directory / "report.html"))


@pytest.mark.parametrize("name", ["amazon_platforms", "ml100k_users", "ml100k_shops"])
def test_what_is_shipped_fits_the_real_data(name, data_root):
    experiment = load_experiment(CONFIGS / f"{name}.toml", {"data.root": str(data_root)})
    assert clients_of(experiment).report.edges >= 100_000
