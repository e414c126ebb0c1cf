"""Clients that train as one batch end where they would end alone."""

import pytest
import torch

from federation.experiment import Experiment
from federation.learners import NodeLearner
from federation.records import from_bytes, to_tensors, unpack
from federation.run_directory import RunDirectory
from federation.strategies.feddbp import FedDBPExchange
from federation.strategies.prototypes import PrototypeTable
from federation.together import fit_together
from graphcl.errors import ConfigError, FederationError, GraphCLError
from simulations.carriers.local import LocalGrid

TOGETHER = {
    "model.encoders": "mlp",
    "model.dropout": 0.0,
    "partition.clients": 5,
    "data.csbm.nodes": 100,
    "train.epochs": 3,
    "strategy.fraction": 0.8,
}
# What FedDBP may send under noise.
NO_FISHER = {
    "strategy.feddbp.personal": "similar",
    "strategy.feddbp.global_weight": "count",
    "privacy.noise": "seed",
}


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("size", [1, 3, 50])
def test_batches_end_where_single_clients_do(tiny, tmp_path, lines_of, optimizer, size):
    weights, losses = [], []
    for folder, together in (("alone", 0), ("together", size)):
        keys = {**TOGETHER, "train.optimizer": optimizer, "simulation.batch_clients": together}
        grid = LocalGrid(tiny("fedavg", tmp_path / folder, **keys))
        grid.serve()
        lines = lines_of(tmp_path / folder, kind="client", status="ok")
        losses.append([line["loss"] for line in lines])
        bytes_up = {line["bytes_up"] for line in lines}
        supports = {line["support"] for line in lines}
        weights.append(to_tensors(final_arrays(tmp_path / folder)))
    assert len(supports) > 1  # so that some are filled up
    assert len(bytes_up) == 1
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    for name, alone in weights[0].items():
        torch.testing.assert_close(weights[1][name], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize(
    ("strategy", "keys"),
    [
        ("local", {}),
        ("fedproto", {}),
        ("fedtgp", {}),
        ("feddbp", {}),
        ("feddbp", {"strategy.feddbp.fuse": "none", "strategy.feddbp.lambda_align": 0.0}),
        ("feddbp", {"privacy.noise_multiplier": 0.5, "privacy.clip": 1.0, **NO_FISHER}),
    ],
    ids=["local", "fedproto", "fedtgp", "feddbp", "feddbp-contrast", "feddbp-noised"],
)
def test_personal_clients_keep_in_batches_what_they_keep_alone(
    tiny, tmp_path, lines_of, optimizer, strategy, keys
):
    # Some clients sit rounds out, so that a batch holds Adam's moments of unlike numbers of steps.
    states, losses = [], []
    for folder, together in (("alone", 0), ("together", 3)):
        own = {"train.optimizer": optimizer, "simulation.batch_clients": together, "run.rounds": 4}
        LocalGrid(tiny(strategy, tmp_path / folder, **TOGETHER, **own, **keys)).serve()
        clients = RunDirectory(tmp_path / folder).resume().clients
        kept = {p: from_bytes(clients[p]).array_records["learner"] for p in clients}
        states.append({p: unpack(record) for p, record in kept.items()})
        lines = lines_of(tmp_path / folder, kind="client", status="ok")
        losses.append([line["loss"] for line in lines])
    assert states[0].keys() == states[1].keys()
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    if optimizer == "adam":
        assert len({float(state["optimizer/0/step"]) for state in states[0].values()}) > 1
    for partition, alone in states[0].items():
        assert states[1][partition].keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(states[1][partition][name], value, rtol=1e-3, atol=1e-4)


def final_arrays(directory):
    return RunDirectory(directory).resume().arrays


@pytest.fixture
def learners(tiny):
    experiment = tiny("fedavg", **TOGETHER)
    return [NodeLearner(experiment, partition) for partition in range(3)]


def nothing(out, owners):
    return {}


def feddbp(learners):
    """Return the terms of FedDBP for learners, each with prototypes of its own."""
    exchanges = []
    for partition, learner in enumerate(learners):
        exchanges.append(FedDBPExchange(learner.config, learner))
        values = torch.randn(3, 6, generator=torch.Generator().manual_seed(partition))
        exchanges[-1].table = PrototypeTable(values, torch.tensor([True, partition != 2, True]))
    return lambda out, owners: FedDBPExchange.penalties(exchanges, out, owners)


@pytest.mark.parametrize("terms", [lambda learners: nothing, feddbp], ids=["fedavg", "feddbp"])
def test_a_client_that_diverges_fails_alone(learners, terms):
    starts = [learner.state() for learner in learners]
    before = fit_together(learners, starts, terms(learners))
    learners[1].x = torch.full_like(learners[1].x, torch.inf)
    one, broken, other = fit_together(learners, starts, terms(learners))
    assert isinstance(broken, GraphCLError)
    assert "not finite in epoch 1" in str(broken)
    for found, expected in ((one, before[0]), (other, before[2])):
        assert found[1] == expected[1]
        assert all(torch.equal(found[0][name], expected[0][name]) for name in expected[0])


def test_what_starts_a_batch_is_left_as_it_was(learners):
    starts = [{n: w.clone() for n, w in learner.state().items()} for learner in learners]
    kept = [{n: w.clone() for n, w in start.items()} for start in starts]
    fit_together(learners, starts, nothing)
    for start, before in zip(starts, kept, strict=True):
        assert all(torch.equal(start[name], before[name]) for name in before)


def test_no_client_is_no_error():
    assert fit_together([], [], nothing) == []


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"model.encoders": "gcn"}, "no perceptrons"),
        ({"model.dropout": 0.5}, "one stream per client"),
        ({"strategy.name": "lgfedavg"}, "'lgfedavg' is none of fedavg"),
        ({"run.compare": "fedprox"}, "'fedprox' is none of fedavg"),
        ({"strategy.name": "fedproto", "privacy.masking": True}, "masking"),
        ({"strategy.personal_weights": "head"}, "personal_weights"),
        ({"simulation.engine": "flower"}, "one message at a time"),
        ({"simulation.client_timeout": 5.0}, "single clients"),
        ({"faults.crash": 0.1}, "single clients"),
        ({"task.name": "images", "data.source": "digits", "model.encoders": "cnn"}, "learners"),
    ],
)
def test_what_would_differ_is_refused(keys, reason):
    base = {**TOGETHER, "strategy.name": "fedavg", "simulation.batch_clients": 4}
    Experiment.from_flat(base)
    with pytest.raises(ConfigError, match=rf"simulation\.batch_clients: .*{reason}.*leave it at 0"):
        Experiment.from_flat({**base, **keys})


def test_a_resumed_run_keeps_its_batches(tiny, tmp_path):
    LocalGrid(tiny("fedavg", tmp_path, **TOGETHER)).serve()
    other = tiny("fedavg", tmp_path, **TOGETHER, **{"simulation.batch_clients": 4})
    with pytest.raises(FederationError, match=r"differs in simulation\.batch_clients"):
        LocalGrid(other).serve()
