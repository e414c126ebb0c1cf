"""Simulated clients: one law under unlike confounders, and a truth that adds up."""

import math

import numpy as np
import pytest
import torch

from graphcl.datasets import confounded_series
from graphcl.datasets.confounded_series import (
    DELAY,
    ECHO,
    PERSISTENCE,
    PROPAGATION,
    RETENTION,
)
from graphcl.errors import DataError


@pytest.fixture(scope="module")
def clients():
    return confounded_series(num_clients=4)


def test_one_seed_decides_everything(clients):
    again, other = confounded_series(num_clients=4), confounded_series(num_clients=4, seed=1)
    for client, same, unlike in zip(clients, again, other, strict=True):
        for part in ("shared", "confounder"):
            assert torch.equal(getattr(client, part), getattr(same, part))
            assert not torch.equal(getattr(client, part), getattr(unlike, part))
        assert torch.equal(client.series.values, same.series.values)
        assert torch.equal(client.series.edge_index, same.series.edge_index)


def test_more_clients_leave_the_first_as_they_were(clients):
    assert torch.equal(confounded_series(1)[0].series.values, clients[0].series.values)


def test_the_series_is_the_sum_of_its_parts_and_noise(clients):
    for client in clients:
        client.series.validate()
        noise = client.series.values[..., 0] - client.shared - client.confounder
        assert noise.std().item() == pytest.approx(0.1, rel=0.02)
        assert noise.mean().item() == pytest.approx(0, abs=0.005)
    plain = confounded_series(1, confounding=0, noise=0)[0]
    assert torch.equal(plain.series.values[..., 0], plain.shared)
    assert not plain.confounder.any()


def test_every_client_obeys_the_same_law_on_its_own_graph(clients):
    """Least squares finds the two coefficients, and the phase of the day, at each client."""
    graphs = set()
    for client in clients:
        s = client.shared.double().numpy()
        (source, target), weight = client.series.edge_index.numpy(), client.series.edge_weight
        adj = np.zeros((20, 20))
        adj[target, source] = weight
        assert np.array_equal(adj, adj.T)
        mean = s[:-1] @ (adj / adj.sum(axis=1, keepdims=True)).T
        day = 2 * math.pi * np.arange(1, 2016) * 300 / 86_400
        cycle = np.stack([np.sin(day), np.cos(day), np.sin(2 * day), np.cos(2 * day)], axis=1)
        columns = [s[:-1].T.ravel(), mean.T.ravel()]
        design = np.concatenate([np.stack(columns, axis=1), np.kron(np.eye(20), cycle)], axis=1)
        fitted = np.linalg.lstsq(design, s[1:].T.ravel(), rcond=None)[0]
        assert fitted[0] == pytest.approx(PERSISTENCE, abs=0.03)
        assert fitted[1] == pytest.approx(PROPAGATION, abs=0.05)
        strength = fitted[2:].reshape(20, 4)
        assert (strength[:, 0] > np.abs(strength[:, 1])).all()
        graphs.add(tuple(source.tolist()))
    assert len(graphs) == len(clients)


def test_confounders_oscillate_at_a_frequency_of_their_client_and_not_of_the_day(clients):
    peaks = []
    for client in clients:
        confounder = client.confounder.double().mean(dim=1).numpy()
        trend = np.polynomial.Polynomial.fit(np.arange(2016), confounder, 1)(np.arange(2016))
        power = np.abs(np.fft.rfft(confounder - trend)) ** 2
        power[: 2 * 7 + 1] = 0  # bursts are slow; the cycles of the shared part end at 2 a day
        peaks.append(int(power.argmax()))
        assert 2.5 * 7 - 1 <= peaks[-1] <= 10 * 7 + 1
    assert len(set(peaks)) == len(peaks)


def test_of_opposite_laws_one_repeats_what_moves_a_confounder_and_the_next_undoes_it(clients):
    echoes = []
    for client, other in zip(confounded_series(4, laws="opposite"), clients, strict=True):
        assert torch.equal(client.shared, other.shared)
        c = client.confounder.double().mean(dim=1).numpy()
        moves = c[1:] - RETENTION * c[:-1]
        before = moves[:-DELAY]
        echoes.append(before @ moves[DELAY:] / (before @ before))
        for lag in (1, 5):
            assert np.corrcoef(moves[:-lag], moves[lag:])[0, 1] == pytest.approx(0, abs=0.15)
    assert echoes == pytest.approx([ECHO, -ECHO, ECHO, -ECHO], abs=0.03)


def test_of_opposite_laws_and_half_an_hour_neither_part_hides_the_other_or_tells_it():
    for client in confounded_series(4, interval=1800, laws="opposite"):
        parts = [part[DELAY:] - part[:-DELAY] for part in (client.shared, client.confounder)]
        assert 0.4 < parts[0].std() / parts[1].std() < 2
        assert abs(np.corrcoef(*(part.flatten().numpy() for part in parts))[0, 1]) < 0.2


def test_the_factor_on_the_confounder_leaves_the_rest_alone(clients):
    double = confounded_series(1, confounding=2.0)[0]
    torch.testing.assert_close(double.confounder, 2 * clients[0].confounder)
    assert torch.equal(double.shared, clients[0].shared)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 3, 50)])
def test_small_clients_are_legal(sizes):
    for client in confounded_series(*sizes):
        assert client.series.validate().values.isfinite().all()


@pytest.mark.parametrize(
    "argument",
    [
        *({name: 0} for name in ("num_clients", "num_nodes", "num_steps", "interval")),
        {"noise": -0.1},
        {"confounding": math.nan},
        {"laws": "alike"},
    ],
    ids=str,
)
def test_an_argument_out_of_range_is_named(argument):
    with pytest.raises(DataError, match=f"confounded_series: {next(iter(argument))} is"):
        confounded_series(**argument)
