"""Sums taken where replies are made are those that the server would take of all of them."""

import json
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, Message

from federation.experiment import Experiment
from federation.records import to_arrays, to_tensors
from federation.run_directory import RunDirectory
from simulations.carriers.base import SimulatedGrid, partition_of
from simulations.carriers.local import LocalGrid
from simulations.carriers.reduction import reducible

LARGE = {
    "data.csbm.nodes": 640,
    "partition.clients": 70,
    "partition.min_nodes": 4,
    "partition.alpha": 2.0,
    "model.encoders": "gcn",
    "strategy.name": "fedavg",
    "train.epochs": 1,
    "run.min_success": 0.5,
    "run.rounds": 2,
    "run.evaluate_every": 2,
}


class WatchedGrid(LocalGrid):
    """Keeps what clients trained, and lets some of them say something else."""

    def __init__(self, experiment: Experiment, spoiled: tuple[int, ...] = ()):
        super().__init__(experiment)
        self.spoiled = spoiled
        self.trained: list[tuple[int, dict[str, torch.Tensor]]] = []
        self.handed_out: list[Message] = []

    def _answer(self, message: Message) -> Message:
        reply = super()._answer(message)
        if message.metadata.message_type == "train":
            arrays = to_tensors(reply.content.array_records["arrays"])
            if partition_of(message) in self.spoiled:
                arrays["head.bias"] = torch.full_like(arrays["head.bias"], torch.nan)
                reply.content["arrays"] = to_arrays(arrays)
            else:
                samples = reply.content.metric_records["metrics"]["num-examples"]
                self.trained.append((int(samples), arrays))  # type: ignore[arg-type]
        return reply

    def deliver(self, messages: list[Message], timeout: float | None) -> list[Message]:
        replies = super().deliver(messages, timeout)
        if messages[0].metadata.message_type == "train":
            self.handed_out = replies
        return replies


def result(experiment: Experiment) -> tuple[object, list[dict[str, object]]]:
    folder = Path(str(experiment.run.directory))
    lines = [
        {key: value for key, value in line.items() if "seconds" not in key}
        for line in RunDirectory(str(experiment.run.directory)).lines()
    ]
    return json.loads((folder / "summary.json").read_text())["digest"], lines


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "fedadam"])
@pytest.mark.parametrize("spoiled", [(), (0, 1, 2, 41)], ids=["all", "a-block-and-one-spoiled"])
def test_reduced_or_not_a_run_ends_in_the_same_bits_and_tells_the_same(
    tiny, monkeypatch, name, spoiled
) -> None:
    keys = {**LARGE, "strategy.name": name}
    reduced, whole = tiny(keys, folder="reduced"), tiny(keys, folder="whole")
    grid = WatchedGrid(reduced, spoiled)
    grid.serve()
    good = [reply.content for reply in grid.handed_out if "sum" in reply.content]
    sums = [content for content in good if content["sum"]]
    assert len(sums) == 24 - (len(spoiled) > 0)  # blocks of 3, the first of which has nobody left
    assert not any("arrays" in content for content in good)
    assert len(good) == 70 - len(spoiled)
    monkeypatch.setattr(SimulatedGrid, "reduces", lambda self, messages: False)
    grid = WatchedGrid(whole, spoiled)
    grid.serve()
    assert all("arrays" in reply.content for reply in grid.handed_out)
    assert result(reduced) == result(whole)
    refused = [line for line in result(reduced)[1] if "head.bias" in str(line.get("reason", ""))]
    assert len(refused) == len(spoiled) * reduced.run.rounds


def test_the_mean_is_that_of_all_clients(tiny) -> None:
    experiment = tiny({**LARGE, "run.rounds": 1})
    grid = WatchedGrid(experiment)
    grid.serve()
    total = sum(samples for samples, _ in grid.trained)
    assert len({samples for samples, _ in grid.trained}) > 1
    kept = RunDirectory(str(experiment.run.directory)).resume()
    assert kept is not None
    assert isinstance(kept.arrays, ArrayRecord)
    for key, value in to_tensors(kept.arrays).items():
        mean = sum(arrays[key].double() * samples for samples, arrays in grid.trained) / total
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), mean, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    "keys",
    [
        {"strategy.name": "fedmedian"},
        {"strategy.name": "feddbp"},
        {"strategy.name": "fedper"},
        {"strategy.personal_weights": "head"},
        {"faults.lose": 0.1},
        {"faults.hostile": 0.1},
        {"asynchrony.buffer": 2},
        {"simulation.batch_clients": 2, "model.encoders": "mlp", "model.dropout": 0.0},
    ],
    ids=lambda keys: next(iter(keys)),
)
def test_where_the_server_reads_each_reply_it_gets_each(tiny, keys) -> None:
    assert reducible(tiny(LARGE))
    assert not reducible(tiny({**LARGE, **keys}))
