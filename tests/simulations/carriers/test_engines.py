"""The same experiment ends in the same digest on every carrier, whatever happens to its workers."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from federation.experiment import Experiment
from federation.learners.graphs import client_graphs
from federation.run_directory import RunDirectory
from graphcl.datasets import contextual_sbm, save_npz
from simulations.carriers.flower import FlowerCarrier
from simulations.carriers.local import LocalGrid
from simulations.carriers.ray import RayCarrier, RayGrid

pytestmark = pytest.mark.processes

UNLIKE = {"model.encoders": "gcn, sage, gat", "strategy.name": "feddbp"}
ALIKE = {"model.encoders": "gcn", "strategy.name": "fedavg", "strategy.fraction": 0.5}
PRETRAIN = {
    **ALIKE,
    "task.name": "pretrain",
    "pretrain.aspect.order": 3,
    "strategy.personal_weights": "encoder.policy",
}
OUTAGES = {
    **ALIKE,
    "task.name": "outages",
    "data.source": "storms",
    "data.outages.locations": 24,
    "data.outages.events": 8,
    "partition.scheme": "natural",
}
IMAGES = {
    "task.name": "images",
    "data.source": "digits",
    "partition.scheme": "practical",
    "model.encoders": "cnn, resnet4",
    "model.hidden_channels": 2,
    "images.batch_size": 64,
    "train.epochs": 1,
    "run.rounds": 2,
}
SERIES = {
    "task.name": "forecast",
    "data.source": "confounded",
    "data.series.nodes": 5,
    "data.series.steps": 300,
    "partition.scheme": "natural",
    "partition.clients": 2,
    "forecast.epoch_windows": 64,
    "train.epochs": 1,
}
SHOPS = {
    "task.name": "recommend",
    "data.source": "shoppers",
    "data.interactions.users": 12,
    "data.interactions.items": 40,
    "data.interactions.catalogue": 0.8,
    "partition.scheme": "users",
    "recommend.length": 6,
    "train.epochs": 1,
    "run.rounds": 2,
}
ASYNCHRONOUS = {
    **ALIKE,
    "strategy.fraction": 1.0,
    "asynchrony.spread": 1.0,
    "asynchrony.buffer": 2,
    "asynchrony.concurrency": 3,
}
MASKED = {**UNLIKE, "privacy.masking": True}
LARGE = {  # a cohort of blocks that share a sum
    **ALIKE,
    "data.csbm.nodes": 640,
    "partition.clients": 70,
    "partition.min_nodes": 4,
    "run.rounds": 2,
    "run.evaluate_every": 2,
    "strategy.fraction": 0.6,
    "train.epochs": 1,
}
BATCHED = {
    "model.encoders": "mlp",
    "model.dropout": 0.0,
    "strategy.name": "feddbp",
    "strategy.fraction": 0.75,
    "simulation.batch_clients": 2,
}
FAULTY = {
    **UNLIKE,
    "strategy.robust.rule": "trimmed",
    "run.min_success": 0.0,
    "faults.drop": 0.2,
    "faults.stale": 0.4,
    "faults.partial": 0.3,
    "faults.hostile": 0.25,
    "faults.corrupt": 0.2,
    "faults.memory": 0.2,
    "faults.slow": 0.2,
    "faults.slow_seconds": 0.01,
}


def figures(experiment: Experiment) -> dict[str, object]:
    return json.loads((Path(experiment.run.directory) / "summary.json").read_text())


def run_locally(experiment: Experiment) -> str:
    LocalGrid(experiment).serve()
    return str(figures(experiment)["digest"])


@pytest.fixture(scope="module", params=[1, 2], ids=["one-actor", "two-actors"])
def carrier(request: pytest.FixtureRequest) -> Iterator[RayCarrier]:
    base = Experiment.from_flat({"simulation.actors": request.param})
    with RayCarrier(base) as started:
        yield started


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param(UNLIKE, id="feddbp"),
        pytest.param(ALIKE, id="fedavg"),
        pytest.param(PRETRAIN, id="pretrain"),
        pytest.param(OUTAGES, id="outages"),
        pytest.param(FAULTY, id="faulty"),
        pytest.param(MASKED, id="masked"),
        pytest.param(ASYNCHRONOUS, id="asynchronous"),
        pytest.param(BATCHED, id="batched"),
        pytest.param(LARGE, id="large"),
        pytest.param({**IMAGES, "strategy.name": "feddbp"}, id="images"),
        pytest.param({**SERIES, "strategy.name": "scfsgl"}, id="series-scfsgl"),
        pytest.param({**SERIES, "strategy.name": "fedper"}, id="series-fedper"),
        pytest.param({**SHOPS, "strategy.name": "fedavg"}, id="shops-fedavg"),
        pytest.param({**SHOPS, "strategy.name": "feddbp"}, id="shops-feddbp"),
    ],
)
def test_ray_ends_in_the_digest_of_the_local_carrier(tiny, carrier, strategy) -> None:
    expected = run_locally(tiny(strategy, folder="local"))
    experiment = tiny(strategy, folder="ray")
    carrier.run(experiment)
    assert figures(experiment)["digest"] == expected


def test_actors_get_the_data_from_the_driver(tiny, carrier, tmp_path) -> None:
    """They need not see the files: a cluster's workers may have no folder in common with it."""
    file = tmp_path / "graph.npz"
    save_npz(contextual_sbm(120, 3, 8), file)
    keys = {**UNLIKE, "data.source": str(file)}
    expected = run_locally(tiny(keys, folder="local"))
    file.unlink()  # this process has read it
    experiment = tiny(keys, folder="ray")
    carrier.run(experiment)
    assert figures(experiment)["digest"] == expected


def test_actors_read_the_data_where_they_lie(tiny, carrier) -> None:
    experiment = tiny(UNLIKE)
    carrier.run(experiment)

    def mapping(actor: object) -> str:
        address = client_graphs(experiment).whole.x.data_ptr()
        for line in Path("/proc/self/maps").read_text().splitlines():
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            if start <= address < end:
                return line
        return "nowhere"

    for actor in carrier._pool.actors:
        assert "plasma" in ray.get(actor.__ray_call__.remote(mapping))


class CountingGrid(RayGrid):
    """Counts in how many messages each of its deliveries looks up the kind."""

    def deliver(self, messages, timeout):
        self.looked_at, self.delivered = 0, len(messages)
        return super().deliver(messages, timeout)

    def batched(self, messages):
        self.looked_at += len(messages)
        assert self.looked_at <= 4 * self.delivered, "work that grows with the square of clients"
        return super().batched(messages)


def test_work_of_the_driver_grows_as_the_messages(tiny, carrier) -> None:
    grid = CountingGrid(tiny({**ALIKE, "partition.clients": 8}), carrier._pool)
    grid.serve()
    assert grid.looked_at > 0


def test_another_seed_ends_in_another_digest(tiny) -> None:
    first = run_locally(tiny(UNLIKE, folder="first"))
    assert run_locally(tiny(UNLIKE, folder="again")) == first
    assert run_locally(tiny({**UNLIKE, "run.seed": 4}, folder="other")) != first


class KillingGrid(RayGrid):
    """Kills the process of one actor in the middle of a round's training."""

    phases = 0

    def deliver(self, messages, timeout):
        self.phases += 1
        if self.phases == 4:  # hello, train 1, evaluate 1, train 2
            victim = self._pool.actors[0]
            pid = ray.get(victim.__ray_call__.remote(lambda actor: os.getpid()))
            os.kill(pid, signal.SIGKILL)
        return super().deliver(messages, timeout)


# Masked, since nodes then keep most: models and moments, their own uploads, and their keys.
@pytest.mark.parametrize("keys", [MASKED, {**LARGE, "run.evaluate_every": 1}])
def test_a_killed_actor_is_replaced_and_the_digest_stays(tiny, carrier, keys) -> None:
    expected = run_locally(tiny(keys, folder="local"))
    experiment = tiny(keys, folder="killed")
    KillingGrid(experiment, carrier._pool).serve()
    assert figures(experiment)["digest"] == expected
    assert figures(experiment)["failed_updates"] == 0


class DeadlyGrid(RayGrid):
    """Makes one client take its process down whenever it trains."""

    def _call(self, actor, pieces, stored):
        self.asked = [*getattr(self, "asked", []), len(pieces)]
        return super()._call(actor, pieces, stored)

    def _begin(self, actor: int) -> None:
        super()._begin(actor)

        def arm(holder) -> None:  # a local function travels to the actor by value
            answer = holder._app

            def deadly(message, context):
                partition = context.node_config["partition-id"]
                if partition == 1 and message.metadata.message_type == "train":
                    os._exit(1)
                return answer(message, context)

            holder._app = deadly

        self._pool.actors[actor].__ray_call__.remote(arm)


def test_a_client_that_kills_its_process_costs_its_own_reply_alone(tiny, carrier) -> None:
    experiment = tiny({**UNLIKE, "run.rounds": 1}, folder="deadly")
    grid = DeadlyGrid(experiment, carrier._pool)
    grid.serve()
    # Nothing waits behind a client that may take the answers before it down.
    assert set(grid.asked) == {1}
    lines = RunDirectory(experiment.run.directory).lines()
    trained = {line["partition"]: line for line in lines if line["kind"] == "client"}
    assert [trained[p]["status"] for p in range(4)] == ["ok", "failed", "ok", "ok"]
    assert "died" in trained[1]["reason"]


def test_clients_that_crash_or_hang_cost_their_own_replies_alone(tiny, carrier) -> None:
    keys = {
        **ALIKE,
        "strategy.fraction": 1.0,
        "partition.clients": 6,
        "run.rounds": 2,
        "run.seed": 1,  # in round 2 clients 0 and 1 crash, 3 hangs
        "run.min_success": 0.0,
        "faults.crash": 0.1,
        "faults.hang": 0.1,
        "simulation.client_timeout": 5.0,
    }
    local = tiny(keys, folder="local")
    expected = run_locally(local)
    experiment = tiny(keys, folder="ray")
    carrier.run(experiment)
    assert figures(experiment)["digest"] == expected
    lines = RunDirectory(experiment.run.directory).lines()
    reasons = {line.get("fault"): line["reason"] for line in lines if line.get("fault")}
    assert "simulation.client_timeout" in reasons["hang"]
    assert "died" in reasons["crash"]
    struck = [line for line in lines if line.get("fault")]
    assert figures(experiment)["failed_updates"] == len(struck)


def test_ctrl_c_under_flower_leaves_no_process_behind(tiny, tmp_path) -> None:
    experiment = tiny({**ALIKE, "run.rounds": 2000, "run.directory": ""})
    (tmp_path / "long.toml").write_text(experiment.to_toml())
    command = [sys.executable, "-m", "simulations.cli", "run", "long.toml", "--engine", "flower"]
    with (tmp_path / "out.txt").open("wb") as out:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + 120
        while not any(path.stat().st_size for path in tmp_path.glob("runs/*/metrics.jsonl")):
            assert process.poll() is None, (tmp_path / "out.txt").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        family = psutil.Process(process.pid).children(recursive=True)
        assert any("simulation" in " ".join(member.cmdline()) for member in family)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        _, alive = psutil.wait_procs(family, timeout=15)
        assert [member.cmdline() for member in alive] == []
    finally:
        process.kill()


def test_flower_agrees_with_the_local_carrier_and_its_superlink_is_stopped(
    tiny, ray_folder
) -> None:
    # As if a cluster ran on this machine: it is left alone.
    (ray_folder / "ray_current_cluster").write_text("127.0.0.1:1")
    local = tiny(UNLIKE, folder="local")
    run_locally(local)
    experiment = tiny({**UNLIKE, "simulation.actors": 2}, folder="flower")
    with FlowerCarrier(experiment) as carrier:
        superlink = carrier._superlink
        carrier.run(experiment)
    assert superlink.poll() is not None
    with pytest.raises(ProcessLookupError):
        os.killpg(superlink.pid, 0)
    ours, theirs = figures(local), figures(experiment)
    for name in ("test_accuracy", "val_accuracy", "test_accuracy_prototype"):
        assert theirs[name] == pytest.approx(ours[name], abs=1e-6)
    assert (theirs["bytes_up"], theirs["bytes_down"]) == (ours["bytes_up"], ours["bytes_down"])
    losses = [
        [line["loss"] for line in RunDirectory(e.run.directory).lines() if line["kind"] == "round"]
        for e in (local, experiment)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
