"""Aggregates that wait for a number of replies: who works when, and what a late update counts."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from flwr.app import RecordDict

from federation.asynchrony import VirtualClock, carried_over
from federation.experiment import Experiment
from federation.records import to_arrays, to_tensors
from federation.run_directory import RunDirectory
from graphcl.errors import ConfigError
from simulations.carriers.local import LocalGrid

BUFFERED = {
    "partition.clients": 4,
    "asynchrony.spread": 1.0,
    "asynchrony.buffer": 2,
    "asynchrony.concurrency": 3,
    "run.rounds": 6,
}


def experiment_of(clients: int, **keys: float) -> Experiment:
    named = {f"asynchrony.{name}": value for name, value in keys.items()}
    return Experiment.from_flat({"partition.clients": clients, **named})


def summary(experiment: Experiment) -> dict:
    return json.loads((Path(experiment.run.directory) / "summary.json").read_text())


def run(experiment: Experiment) -> tuple[dict, list[dict]]:
    LocalGrid(experiment).serve()
    return summary(experiment), RunDirectory(experiment.run.directory).lines()


@pytest.mark.parametrize(("buffer", "concurrency"), [(1, 1), (2, 3), (3, 8), (5, 8)])
def test_clients_work_as_a_second_simulation_says(buffer, concurrency):
    samples = {p: 100 + 37 * p for p in range(8)}
    experiment = experiment_of(8, spread=1.2, buffer=buffer, concurrency=concurrency)
    clock = VirtualClock(experiment, samples)
    sent: list[tuple[int, int]] = []  # round and partition, in the order of the contents
    busy: dict[int, tuple[int, float]] = {}  # the round it began in, and when it will be done
    now = 0.0
    for server_round in range(1, 30):
        began: list[int] = []

        def contents(partitions, server_round=server_round, began=began):
            began.extend(partitions)
            return {p: RecordDict() for p in partitions}

        flights = clock.fill_buffer(server_round, contents)
        sent += [(server_round, p) for p in began]
        assert [f.partition for f in flights] == sorted({f.partition for f in flights})
        assert len(flights) == buffer
        for flight in flights:
            took = clock.seconds[flight.partition]
            if flight.partition in busy:
                assert (flight.began, flight.finish) == busy.pop(flight.partition)
            else:
                assert flight.began == server_round  # began and ended while the buffer filled
                assert flight.partition in began
            assert now <= flight.finish <= clock.now
            assert flight.finish - took >= -1e-12
        assert clock.now == max(f.finish for f in flights)
        arrived = {f.partition for f in flights}
        for flight in clock._flights.values():
            assert flight.finish >= clock.now  # nobody who was done earlier is left out
            if flight.partition in began:
                busy[flight.partition] = (flight.began, flight.finish)
        assert set(busy) == set(clock._flights)
        assert not arrived & set(busy)
        assert len(busy) <= concurrency
        now = clock.now
    assert len(sent) == len(set(sent))


def test_fast_devices_send_more_often_and_nobody_waits_for_slow_ones():
    samples = dict.fromkeys(range(10), 1000)
    waiting, buffered = (
        VirtualClock(experiment_of(10, spread=1.0, buffer=buffer), samples) for buffer in (0, 3)
    )
    counts: Counter[int] = Counter()
    for server_round in range(1, 101):
        flights = buffered.fill_buffer(server_round, lambda ps: {p: RecordDict() for p in ps})
        counts.update(f.partition for f in flights)
    for _ in range(30):  # as many updates
        waiting.wait_for(range(10))
    assert buffered.now < waiting.now / 2
    by_speed = sorted(range(10), key=lambda p: buffered.seconds[p])
    assert sum(counts[p] for p in by_speed[:5]) > 1.2 * sum(counts[p] for p in by_speed[5:])


def test_speeds_do_not_depend_on_anything_but_the_seed_and_the_spread():
    samples = dict.fromkeys(range(200), 1000)
    one, again = (VirtualClock(experiment_of(200, spread=1.0), samples) for _ in range(2))
    assert one.seconds == again.seconds
    logarithms = torch.tensor(list(one.seconds.values())).log()
    assert abs(float(logarithms.std()) - 1.0) < 0.15
    alike = VirtualClock(experiment_of(200), samples).seconds
    assert set(alike.values()) == {alike[0]}


def test_a_late_update_is_the_same_move_from_the_weights_of_now():
    torch.manual_seed(0)
    sent, received, now = (
        {"w": torch.randn(3, 4), "count": torch.tensor(number)} for number in (1, 2, 3)
    )
    arrays = [to_arrays(tensors) for tensors in (received, sent, now)]
    learned = SimpleNamespace(moved_from=lambda weights: {"w"})
    moved = to_tensors(carried_over(*arrays, 0.5, learned))
    expected = now["w"].double() + 0.5 * (received["w"].double() - sent["w"].double())
    assert torch.allclose(moved["w"].double(), expected, atol=1e-6)
    assert moved["count"] == 2


def test_a_buffer_of_all_is_a_round(tiny, tmp_path):
    waiting, _ = run(tiny("fedavg", tmp_path / "rounds", **{"run.rounds": 4}))
    everyone = {"asynchrony.buffer": 3, "asynchrony.spread": 1.0, "run.rounds": 4}
    buffered, lines = run(tiny("fedavg", tmp_path / "buffered", **everyone))
    assert buffered["test_accuracy"] == waiting["test_accuracy"]
    assert buffered["bytes_up"] == waiting["bytes_up"]
    assert {line["staleness"] for line in lines if line["kind"] == "client"} == {0}


def test_overtaken_updates_move_the_weights_of_now(tiny, tmp_path, monkeypatch):
    """Every aggregate, again from what was sent and received, in float64."""
    experiment = tiny("fedavg", tmp_path, **BUFFERED)
    sent: dict[tuple[int, int], dict] = {}
    replied: dict[tuple[int, int], dict] = {}
    aggregates: dict[int, dict] = {}

    class Recording(LocalGrid):
        def deliver(self, messages, timeout):
            replies = super().deliver(messages, timeout)
            for message, reply in zip(messages, replies, strict=True):
                if message.metadata.message_type != "train":
                    continue
                began = int(message.content["config"]["server-round"])
                partition = int(reply.content["metrics"]["partition-id"])
                sent[began, partition] = to_tensors(message.content["arrays"])
                weight = float(reply.content["metrics"]["num-examples"])
                replied[began, partition] = (weight, to_tensors(reply.content["arrays"]))
            return replies

    store = RunDirectory.checkpoint

    def checkpoint(self, server_round, arrays, *rest):
        aggregates[server_round] = to_tensors(arrays)
        store(self, server_round, arrays, *rest)

    monkeypatch.setattr(RunDirectory, "checkpoint", checkpoint)
    Recording(experiment).serve()
    lines = RunDirectory(tmp_path).lines()
    seen = set()
    for server_round in range(2, 7):
        now = aggregates[server_round - 1]
        total, mass = dict.fromkeys(now, 0.0), 0.0
        for line in lines:
            if (line["kind"], line["round"]) != ("client", server_round) or "loss" not in line:
                continue
            staleness = line["staleness"]
            seen.add(staleness)
            key = server_round - staleness, line["partition"]
            weight, received = replied[key]
            for name in now:
                move = received[name].double() - sent[key][name].double()
                total[name] += weight * (now[name].double() + move / (1 + staleness) ** 0.5)
            mass += weight
        for name in now:
            expected = total[name] / mass
            assert torch.allclose(aggregates[server_round][name].double(), expected, atol=1e-5)
    assert len(seen) > 1  # else the run shows nothing


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "feddbp", "lgfedavg"])
def test_a_killed_run_resumes_to_the_same_digest(tiny, tmp_path, monkeypatch, strategy):
    whole, _ = run(tiny(strategy, tmp_path / "whole", **BUFFERED))
    assert whole["mean_staleness"] > 0
    with monkeypatch.context() as patch:
        record = RunDirectory.record

        def stop(self, lines):
            if lines[-1]["round"] == 4:
                raise KeyboardInterrupt
            record(self, lines)

        patch.setattr(RunDirectory, "record", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tiny(strategy, tmp_path / "killed", **BUFFERED))
    resumed, _ = run(tiny(strategy, tmp_path / "killed", **BUFFERED))
    assert resumed["digest"] == whole["digest"]


def test_rounds_wait_for_the_slowest_and_local_training_waits_for_nobody_else(tiny, tmp_path):
    keys = {"asynchrony.spread": 1.0, "asynchrony.buffer": 2, "run.rounds": 2}
    local, lines = run(tiny("local", tmp_path, **keys))
    assert "mean_staleness" not in local
    times = [line["virtual_seconds"] for line in lines if line["kind"] == "round"]
    assert times[1] == pytest.approx(2 * times[0])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"asynchrony.buffer": 4}, "partition.clients = 3"),
        ({"asynchrony.buffer": 2, "strategy.fraction": 0.5}, "strategy.fraction = 0.5"),
        ({"asynchrony.buffer": 2, "privacy.masking": True, "strategy.name": "fedproto"}, "masking"),
        ({"asynchrony.buffer": 2, "faults.stale": 0.1}, "faults.stale"),
        ({"asynchrony.concurrency": 2}, "set buffer too"),
        ({"asynchrony.buffer": 3, "asynchrony.concurrency": 2}, "never fill a buffer of 3"),
    ],
)
def test_what_does_not_go_together_is_refused(tiny, keys, message):
    with pytest.raises(ConfigError, match=message):
        tiny("fedavg", **keys)


@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "fedadam"])
def test_what_clients_measure_first_is_not_added_up(outages, staged, tmp_path, strategy):
    """Scales of all aggregates lie within the clients' own; the first mean rate stays."""
    keys = {"train.learning_rate": 1e-9, "strategy.fedadam.learning_rate": 1e-9}
    together = staged(outages("fedavg", tmp_path / "together", **keys))
    together.serve()
    own = [
        to_tensors(together.replies["train", 1, c].content.array_records["arrays"])
        for c in range(3)
    ]
    first = [float(arrays["network.rate.bias"]) for arrays in own]
    assert max(first) - min(first) > 0.01  # else the run shows nothing
    keys |= {**BUFFERED, "partition.clients": 3, "asynchrony.buffer": 1, "run.rounds": 5}
    grid = staged(outages(strategy, tmp_path / "buffered", **keys))
    grid.serve()
    assert summary(grid.experiment)["mean_staleness"] > 0
    rates = []
    for server_round in range(1, 6):
        now = grid.sent["evaluate", server_round, 0].content.array_records["arrays"]
        tensors = to_tensors(now)
        rates.append(float(tensors["network.rate.bias"]))
        for key in (key for key in tensors if "_scale." in key):
            among = torch.stack([arrays[key] for arrays in own])
            assert (tensors[key] >= among.amin(0) - 1e-6).all()
            assert (tensors[key] <= among.amax(0) + 1e-6).all()
    assert rates == pytest.approx([rates[0]] * 5, abs=1e-5)
