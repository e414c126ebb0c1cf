import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from federation.experiment import Experiment
from federation.tables import PROTOTYPE_STRATEGIES
from simulations.report import write_report

MakeRun = Callable[..., Path]
# From strategy, round and client to the scores of its line.
ScoresOf = Callable[[str, int, int], dict[str, float]]
CLASSES = 4


def client_line(
    server_round: int, client: int, scores: dict[str, float], reason: str
) -> dict[str, Any]:
    line: dict[str, Any] = {"kind": "client", "round": server_round, "partition": client}
    if reason:
        line |= {"status": "failed", "reason": reason, "bytes_down": 400, "bytes_up": 0}
    else:
        line |= {"status": "ok", "loss": 1.0, "support": 10, "seconds": 0.01}
        line |= {"bytes_down": 400, "bytes_up": 900}
    if scores and not reason:
        line |= scores
        line |= {"test_loss": 0.5, "val_examples": 20, "test_examples": 20 + client}
    return line


def class_scores(strategy: str, server_round: int, client: int) -> dict[str, float]:
    names = ["accuracy", "val_accuracy", "accuracy_head"]
    if strategy in PROTOTYPE_STRATEGIES:
        names.append("accuracy_prototype")
    return dict.fromkeys(names, accuracy_of(server_round, client))


def accuracy_of(server_round: int, client: int) -> float:
    """Rises until round 3, then falls: with four rounds or more, round 3 is the best."""
    return 0.9 - 0.1 * abs(server_round - 3) / 3 - 0.002 * client


def write_run(
    directory: Path,
    *,
    strategy: str = "feddbp",
    compare: str = "",
    rounds: int = 4,
    done: int | None = None,
    clients: int = 3,
    encoders: str = "gcn, sage",
    evaluate_every: int = 1,
    failing: Mapping[tuple[int, int], str] | None = None,
    scale: int = 1,
    partition: bool = True,
    scores_of: ScoresOf = class_scores,
) -> Path:
    """Write the files of one strategy's run; with ``done`` it was killed after so many rounds."""
    directory.mkdir(parents=True)
    config = {
        "run.name": "synthetic",
        "run.seed": 11,
        "run.rounds": rounds,
        "run.compare": compare,
        "run.evaluate_every": evaluate_every,
        "partition.clients": clients,
        "model.encoders": encoders,
        "strategy.name": strategy,
    }
    (directory / "config.toml").write_text(Experiment.from_flat(config).to_toml())
    environment = {"python": "3.11.0", "platform": "test", "packages": {"torch": "2.13.0"}}
    (directory / "environment.json").write_text(json.dumps(environment))
    if partition:
        (directory / "partition.json").write_text(json.dumps(partition_of(clients)))
    lines: list[dict[str, Any]] = []
    for server_round in range(1, (rounds if done is None else done) + 1):
        evaluated = server_round % evaluate_every == 0 or server_round == rounds
        reasons = {c: (failing or {}).get((server_round, c), "") for c in range(clients)}
        scores = [scores_of(strategy, server_round, c) if evaluated else {} for c in range(clients)]
        own = [client_line(server_round, c, scores[c], reasons[c]) for c in range(clients)]
        ok = [line for line in own if line["status"] == "ok"]
        lines += own
        line = {
            "kind": "round",
            "round": server_round,
            "cohort": clients,
            "ok": len(ok),
            "failed": clients - len(ok),
            "bytes_down": 400 * clients * scale,
            "bytes_up": 900 * len(ok) * scale,
            "seconds": 0.25,
        }
        if ok:
            line["loss"] = 2.0 / server_round
        if ok:
            line |= {name: math.fsum(x[name] for x in ok) / len(ok) for name in scores[0]}
        lines.append(line)
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if done is None:
        (directory / "summary.json").write_text(json.dumps({"digest": f"{strategy}-digest"}))
    return directory


def partition_of(clients: int) -> dict[str, Any]:
    def own(client: int) -> dict[str, Any]:
        counts = [(7 * client + 3 * label) % 11 for label in range(CLASSES)]
        return {
            "nodes": sum(counts),
            "edges": 5 * client,
            "class_counts": counts,
            "label_entropy": 1.25,
            "edge_homophily": 0.75 if client else None,
        }

    everyone = [own(client) for client in range(clients)]
    return {"clients": everyone, "edges": 200, "cut_edges": 50, "cut_share": 0.25}


def write_runs(
    directory: Path, others: Mapping[str, dict[str, Any]] | None = None, **options: Any
) -> Path:
    """Write a run with these options; ``others`` maps compared strategies to their own."""
    write_run(directory, **options)
    shared = {key: value for key, value in options.items() if key != "compare"}
    for name, own in (others or {}).items():
        folder = directory / "compare" / name
        write_run(folder, **{**shared, "strategy": name, "partition": False, **own})
    return directory


class Page(HTMLParser):
    """A parsed report: checks that every element is closed, and keeps what tests ask for."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self, html: str):
        super().__init__()
        self.html = html
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "h2":
            self.headings.append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.words += data.split()
        if "h2" in self.open:
            self.headings[-1] += data.strip()
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] = " ".join([*self.rows[-1][-1].split(), *data.split()])

    @property
    def text(self) -> str:
        """All visible words, with single spaces."""
        return " ".join(self.words)

    @property
    def plots(self) -> list[str]:
        """The alternative texts of the plots."""
        return [attrs["aria-label"] or "" for tag, attrs in self.tags if tag == "svg"]

    def row(self, first: str) -> list[str]:
        """Return the cells of the first row that begins so."""
        return next(row for row in self.rows if row and row[0].endswith(first))


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Write a run with the options of :func:`write_runs`."""
    return partial(write_runs, tmp_path / "run")


@pytest.fixture
def report() -> Callable[[Path], Page]:
    """Write a report and parse it."""
    return read_report


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The report of a run with two comparisons, and one that could not be."""
    directory = tmp_path_factory.mktemp("family") / "run"
    others: dict[str, dict[str, Any]] = {"local": {}, "fedproto": {}}
    return read_report(write_runs(directory, others, compare="local, fedproto, fedavg"))


def read_report(directory: Path) -> Page:
    return Page(write_report(directory).read_text(encoding="utf-8"))
