"""Simulated series of several clients: shared dynamics under confounders of each one's own."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from graphcl.datasets.series import DAY, SpatioTemporalSeries
from graphcl.errors import DataError
from graphcl.training import numpy_rng

PERSISTENCE = 0.6
"""What a node keeps of its shared part from one step to the next, at every client."""
PROPAGATION = 0.3
"""What a node takes of its neighbours' mean shared part, at every client."""

DELAY = 12
"""Steps after which the moves of confounders of opposite laws come back."""
ECHO = 0.9
"""What comes back of them, with a sign of the client's own."""
RETENTION = 0.95
"""What confounders of opposite laws keep of their level from one step to the next."""

_NEIGHBORS = 4
_DAILY = ((1, 1.0, 0.0), (2, 0.4, 1.0))  # cycles a day, amplitude, phase
_INNOVATION = 0.1  # deviation of what is new in a step
_WARM_UP = 200  # steps until what came before the first one is forgotten: 0.9^200 is 1e-9
_WEEK = 7 * DAY
_BURSTS = 2.0  # a day
_BURST_DECAY = 3600.0  # seconds
_MOVE = 0.3  # deviation of a confounder's move in a step
_ECHO_WARM_UP = 80 * DELAY  # steps: 0.9^80 is 2e-4


@dataclass(frozen=True, eq=False)
class ConfoundedSeries:
    """One client's series and the parts it is the sum of, but for noise.

    Shapes:
        - **shared**: float32 ``[T, N]``, obeys the same equation at every client
        - **confounder**: float32 ``[T, N]``, obeys another at other clients
    """

    series: SpatioTemporalSeries
    shared: Tensor
    confounder: Tensor


def confounded_series(
    num_clients: int = 4,
    num_nodes: int = 20,
    num_steps: int = 2016,
    *,
    interval: int = 300,
    laws: Literal["unlike", "opposite"] = "unlike",
    confounding: float = 1.0,
    noise: float = 0.1,
    seed: int = 0,
) -> tuple[ConfoundedSeries, ...]:
    """Simulate clients whose series share a cause and hide it under causes of their own.

    Each client has a graph of its own, nodes in a square joined to their four nearest with weights
    that fall off with distance.  With P the weighted mean over neighbours, the shared part is

        s_t = 0.6 s_{t-1} + 0.3 P s_{t-1} + d_t + e_t

    where d is a cycle of a day and half a day, of one phase everywhere and a strength that each
    node draws, and e is white noise.  The confounder is, times gains that each node draws, by
    ``laws`` one of two.  Where they are unlike, it is an oscillation with a period that the client
    draws between 0.1 and 0.4 days, a trend, and bursts that die away within hours: one rule may
    tell them all.  Where they are opposite, it is

        c_t = 0.95 c_{t-1} + m_t,    m_t = b m_{t-12} + n_t

    with n white: at clients with an even number what moves it is repeated twelve steps later,
    b = 0.9, and at those with an odd one undone, b = -0.9.  Up to twelve steps ahead a client's own
    past tells it, but no rule that is common to as many clients of both kinds does, beyond its slow
    return to 0; while one and the same rule tells the shared part.  That makes the parts
    identifiable from several clients, and not from one.

    Args:
        num_clients: K; client k is the same whatever their number.
        num_nodes: N of each client.
        num_steps: T.
        interval: Seconds from step to step.
        laws: Of the confounders, ``"unlike"`` or ``"opposite"``.
        confounding: Factor on the confounder; 0 leaves it out.
        noise: Deviation of the noise on each value.
        seed: Same seed, same clients.

    Returns:
        One channel, ``signal [1]``, without missing values, from Monday 2024-01-01.

    Raises:
        DataError: An argument is out of range.

    Source:
        Ours.
    """
    sizes = {"num_clients": num_clients, "num_nodes": num_nodes, "num_steps": num_steps}
    for argument, value in {**sizes, "interval": interval}.items():
        if value < 1:
            raise DataError(f"confounded_series: {argument} is {value}, must be at least 1")
    for argument, factor in {"confounding": confounding, "noise": noise}.items():
        if not 0 <= factor < math.inf:
            raise DataError(
                f"confounded_series: {argument} is {factor}, must be finite and not negative"
            )
    if laws not in ("unlike", "opposite"):
        raise DataError(f"confounded_series: laws is {laws!r}, must be 'unlike' or 'opposite'")
    clients = []
    for client in range(num_clients):
        rng = numpy_rng(seed, "confounded_series", client)
        edges, weight = _graph(num_nodes, rng)
        shared = _shared(edges, weight, num_nodes, num_steps, interval, rng)
        if laws == "unlike":
            confounder = _unlike(num_nodes, num_steps, interval, rng)
        else:
            confounder = _opposite(num_nodes, num_steps, client, rng)
        confounder = confounding * confounder
        values = shared + confounder + noise * rng.standard_normal(shared.shape)
        series = SpatioTemporalSeries(
            name=f"client-{client}",
            values=torch.from_numpy(values.astype(np.float32))[..., None],
            channel_names=("signal [1]",),
            node=tuple(f"node-{i}" for i in range(num_nodes)),
            edge_index=torch.from_numpy(edges),
            edge_weight=torch.from_numpy(weight),
            start=np.datetime64("2024-01-01T00:00:00", "s"),
            interval=interval,
        ).validate()
        clients.append(
            ConfoundedSeries(
                series=series,
                shared=torch.from_numpy(shared.astype(np.float32)),
                confounder=torch.from_numpy(confounder.astype(np.float32)),
            )
        )
    return tuple(clients)


def _graph(num_nodes: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return edges in both directions, int64 [2, E], and their weights, float32 [E]."""
    place = rng.uniform(size=(num_nodes, 2))
    distance = np.linalg.norm(place[:, None] - place, axis=-1)
    np.fill_diagonal(distance, np.inf)
    nearest = distance.argsort(axis=1)[:, : min(_NEIGHBORS, num_nodes - 1)]
    joined = np.zeros((num_nodes, num_nodes), dtype=bool)
    np.put_along_axis(joined, nearest, True, axis=1)
    edges = np.stack(np.nonzero(joined | joined.T))
    length = distance[tuple(edges)]
    scale = np.square(length).mean() if length.size else 1.0
    return edges, np.exp(-np.square(length) / scale).astype(np.float32)


def _shared(
    edges: np.ndarray,
    weight: np.ndarray,
    num_nodes: int,
    num_steps: int,
    interval: int,
    rng: np.random.Generator,
) -> np.ndarray:
    source, target = edges
    total = np.bincount(target, weight, num_nodes)
    mean = csr_matrix((weight / total[target], (target, source)), shape=(num_nodes, num_nodes))
    day = 2 * math.pi * np.arange(-_WARM_UP, num_steps) * interval / DAY
    cycle = sum(size * np.sin(count * day + phase) for count, size, phase in _DAILY)
    drive = (1 - PERSISTENCE - PROPAGATION) * np.outer(cycle, rng.uniform(0.5, 1.5, num_nodes))
    drive += _INNOVATION * rng.standard_normal(drive.shape)
    shared = np.zeros_like(drive)
    for step in range(1, len(drive)):
        before = shared[step - 1]
        shared[step] = PERSISTENCE * before + PROPAGATION * (mean @ before) + drive[step]
    return shared[_WARM_UP:]


def _unlike(num_nodes: int, num_steps: int, interval: int, rng: np.random.Generator) -> np.ndarray:
    seconds = np.arange(num_steps) * interval
    period = rng.uniform(0.1, 0.4) * DAY
    oscillation = np.sin(2 * math.pi * (seconds / period + rng.uniform()))
    trend = rng.uniform(-1, 1) * seconds / _WEEK
    onset = rng.poisson(_BURSTS * interval / DAY, num_steps) * rng.exponential(size=num_steps)
    burst = _returning(onset, math.exp(-interval / _BURST_DECAY))
    gain = rng.uniform(0.5, 1.5, (3, num_nodes))
    return np.stack([oscillation, trend, burst], axis=1) @ gain


def _opposite(num_nodes: int, num_steps: int, client: int, rng: np.random.Generator) -> np.ndarray:
    echo = ECHO if client % 2 == 0 else -ECHO
    new = _MOVE * math.sqrt(1 - ECHO**2) * rng.standard_normal(_ECHO_WARM_UP + num_steps)
    moves = _returning(new, echo, DELAY)
    level = _returning(moves, RETENTION)[_ECHO_WARM_UP:]
    return np.outer(level, rng.uniform(0.5, 1.5, num_nodes))


def _returning(new: np.ndarray, share: float, delay: int = 1) -> np.ndarray:
    """Return ``y_t = new_t + share y_{t - delay}``."""
    from scipy.signal import lfilter  # here, since every start would wait for it

    found: np.ndarray = lfilter([1.0], [1.0, *[0.0] * (delay - 1), -share], new)
    return found
