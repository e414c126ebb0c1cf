"""A whole federation in a fraction of a second, and clients that misbehave on cue."""

import json
import logging
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from flwr.app import Message
from torch_geometric.data import Data
from torch_geometric.utils import to_undirected

from federation import client_app
from federation.experiment import Experiment
from federation.learners import NodeLearner
from federation.run_directory import RunDirectory
from graphcl.datasets import Interactions, save_interactions
from graphcl.datasets.node_graph import save_npz
from simulations.carriers.local import LocalGrid

pytest.register_assert_rewrite("edge_nodes")

logging.getLogger("flwr").setLevel(logging.CRITICAL)

TINY = {
    "run.rounds": 2,
    "data.source": "csbm",
    "data.csbm.nodes": 60,
    "data.csbm.classes": 3,
    "data.csbm.features": 5,
    "data.csbm.degree": 4.0,
    "partition.clients": 3,
    "partition.min_nodes": 5,
    "model.hidden_channels": 4,
    "model.embedding_channels": 6,
    "train.epochs": 1,
    "simulation.engine": "local",
}


@pytest.fixture(scope="session")
def tiny():
    """Build a tiny experiment: ``tiny("fedavg", directory, **{"run.rounds": 3})``."""

    def build(strategy: str = "feddbp", directory: Path | str = "", **keys) -> Experiment:
        fixed = {"strategy.name": strategy, "run.directory": str(directory)}
        return Experiment.from_flat(TINY | fixed | keys)

    return build


FORECAST = {
    "task.name": "forecast",
    "data.source": "confounded",
    "data.series.nodes": 5,
    "data.series.steps": 300,
    "partition.scheme": "natural",
    "model.embedding_channels": 8,
    "model.dropout": 0.1,
    "forecast.num_prototypes": 4,
    "forecast.epoch_windows": 64,
}


@pytest.fixture
def forecasts(tiny):
    """Build a tiny experiment on series, as ``tiny`` does."""
    return lambda strategy="fedavg", directory="", **keys: tiny(
        strategy, directory, **{**FORECAST, **keys}
    )


OUTAGES = {
    "task.name": "outages",
    "data.source": "storms",
    "data.outages.locations": 24,
    "data.outages.events": 9,
    "data.outages.districts": 3,
    "partition.scheme": "natural",
}


@pytest.fixture
def outages(tiny):
    """Build a tiny experiment on outages, as ``tiny`` does."""
    return lambda strategy="fedavg", directory="", **keys: tiny(
        strategy, directory, **{**OUTAGES, **keys}
    )


SHOPS = {
    "task.name": "recommend",
    "data.source": "shoppers",
    "data.interactions.users": 24,
    "data.interactions.items": 40,
    "partition.scheme": "users",
    "model.embedding_channels": 8,
    "model.dropout": 0.1,
    "recommend.length": 6,
    "recommend.batch_size": 8,
}


@pytest.fixture
def shops(tiny):
    """Build a tiny experiment on interactions, as ``tiny`` does."""
    return lambda strategy="fedavg", directory="", **keys: tiny(
        strategy, directory, **{**SHOPS, **keys}
    )


@pytest.fixture
def stored_platforms(tmp_path):
    """Write interactions to files of their own, one per client; return the keys that lead there."""

    def write(*platforms: Interactions) -> dict[str, str | int]:
        paths = [tmp_path / f"{one.name}.npz" for one in platforms]
        for one, path in zip(platforms, paths, strict=True):
            save_interactions(one, path)
        return {
            "data.source": ", ".join(map(str, paths)),
            "partition.clients": len(paths),
            "partition.scheme": "natural",
        }

    return write


class StagedGrid(LocalGrid):
    """The in-process grid with a record of its traffic, and hands that change replies.

    Attributes:
        sent: ``(kind, round, partition)`` to the message that went there.
        replies: The same to the reply as the client gave it.
        now: What is being delivered.
        tamper: ``(kind, round, partition)`` to a function that changes a reply in place.
        lost: Keys of replies that never arrive.
    """

    def __init__(self, experiment: Experiment):
        super().__init__(experiment)
        self.experiment = experiment
        self.sent, self.replies, self.tamper, self.lost = {}, {}, {}, set()
        self.states = defaultdict(dict)
        self.now = None

    def deliver(self, messages: list[Message], timeout: float | None) -> list[Message]:
        arrived = []
        for message in messages:
            config = message.content.config_records.get("config", {})
            kind = message.metadata.message_type
            partition = message.metadata.dst_node_id - 1
            self.now = key = (kind, int(config.get("server-round", 0)), partition)
            self.sent[key] = message
            self.states[key]["before"] = dict(self.contexts[partition].state)
            [reply] = super().deliver([message], timeout)
            self.states[key]["after"] = dict(self.contexts[partition].state)
            self.replies[key] = reply
            if key in self.tamper:
                self.tamper[key](reply.content)
            if key not in self.lost:
                arrived.append(reply)
        self.now = None
        return arrived


@pytest.fixture
def staged():
    """Make a grid on which replies can be watched, changed and lost."""
    return StagedGrid


@pytest.fixture
def in_fit(monkeypatch):
    """Make a client do something in the middle of its training: ``in_fit(grid, key, act)``.

    ``act(learner, penalty, fit)`` replaces the learner's fit for that round and partition.
    """
    original = NodeLearner.fit

    def stage(grid: StagedGrid, key: tuple, act) -> None:
        def fit(learner, penalty):
            if grid.now == key:
                return act(learner, penalty, original)
            return original(learner, penalty)

        monkeypatch.setattr(NodeLearner, "fit", fit)

    return stage


@pytest.fixture
def new_process():
    """Forget every learner, as a process that was killed and started again has."""

    def forget() -> None:
        client_app.forget_learners()

    forget()
    yield forget
    forget()


@pytest.fixture
def killed_and_resumed(new_process):
    """Run an experiment that is killed before the checkpoint of a round, and resume it.

    ``killed_and_resumed(experiment, 3)``; the processes that it runs in are not the caller's.
    """

    def run(experiment: Experiment, server_round: int) -> None:
        original = RunDirectory.checkpoint

        def checkpoint(directory, now, *state):
            if now == server_round:
                raise KeyboardInterrupt
            original(directory, now, *state)

        new_process()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RunDirectory, "checkpoint", checkpoint)
            with pytest.raises(KeyboardInterrupt):
                LocalGrid(experiment).serve()
        new_process()
        LocalGrid(experiment).serve()

    return run


@pytest.fixture
def three_silos(tmp_path):
    """Write a folder of three graphs: one class only, no edges, a single node."""
    rng = torch.Generator().manual_seed(0)

    def features(y):
        return 3 * torch.nn.functional.one_hot(y, 4) + 0.1 * torch.randn(len(y), 4, generator=rng)

    one, three, last = torch.ones(12, dtype=torch.long), torch.arange(12) % 3, torch.tensor([2])
    nothing = torch.empty(2, 0, dtype=torch.long)
    ring = torch.stack([torch.arange(12), (torch.arange(12) + 1) % 12])
    silos = {
        "one-class": Data(x=features(one), edge_index=to_undirected(ring), y=one),
        "no-edges": Data(x=features(three), edge_index=nothing, y=three),
        "single-node": Data(x=features(last), edge_index=nothing, y=last),
    }
    folder = tmp_path / "silos"
    folder.mkdir()
    for number, (name, graph) in enumerate(silos.items()):
        save_npz(graph, folder / f"{number}-{name}.npz")
    return folder


@pytest.fixture
def summary_of():
    """Read a finished run's summary."""
    return lambda directory: json.loads((Path(directory) / "summary.json").read_text())


@pytest.fixture
def lines_of():
    """Read a run's metrics: ``lines_of(directory, kind="client", round=2)``."""

    def read(directory, **where):
        text = (Path(directory) / "metrics.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        return [line for line in lines if all(line.get(k) == v for k, v in where.items())]

    return read
