"""``graphcl run configs/digits_images.toml``: images are learned together, from file to report."""

import html
import re
from pathlib import Path

from simulations import terminal

DIGITS = Path(__file__).parents[2] / "configs" / "digits_images.toml"
SMALL = (
    *("--engine", "local", "--set", "run.rounds=1", "--set", "run.compare=local"),
    *("--set", "model.hidden_channels=2", "--set", "images.batch_size=64"),
)


def words_of(page: Path) -> str:
    text = re.sub(r"<style>.*?</style>|<[^>]+>", " ", page.read_text("utf-8"), flags=re.DOTALL)
    return " ".join(html.unescape(text).split())


def test_images_are_learned_and_the_report_speaks_of_them(graphcl, tmp_path, monkeypatch):
    monkeypatch.setattr(terminal, "console", terminal.Console(width=100))
    code, out = graphcl("run", str(DIGITS), *SMALL)
    assert code == 0, out
    said = r"feddbp over 10 clients of \d+ to \d+ images, 10 classes, encoders cnn, resnet6"
    assert re.search(said, " ".join(out.split())), out
    (directory,) = (tmp_path / "runs").iterdir()
    page = directory / "report.html"
    words = words_of(page)
    assert "How the images of 10 classes lie on 10 clients" in page.read_text("utf-8")
    assert "Client Encoder Images Label entropy 0 cnn" in words  # images have no edges
    before_configuration = words.split("[run]")[0]
    assert not re.search(r"\b(nodes?|edges?|homophily)\b", before_configuration, re.I)
