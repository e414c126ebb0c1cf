"""Few contexts are in memory at a time, and nobody can tell."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.records import from_bytes, to_arrays, to_tensors
from simulations.carriers.base import client_context
from simulations.carriers.contexts import Contexts
from simulations.carriers.sharing import share_out

CLIENTS = 12


def write(context, value: float) -> None:
    context.state["learner"] = to_arrays({"w": torch.full((2000,), value)})  # 8 kB


def read(context) -> float | None:
    record = context.state.array_records.get("learner")
    return None if record is None else float(to_tensors(record)["w"][0])


@settings(max_examples=40, deadline=None)
@given(
    visits=st.lists(
        st.tuples(st.integers(0, CLIENTS - 1), st.booleans(), st.booleans()), max_size=60
    )
)
def test_a_client_finds_what_it_wrote_last_whatever_was_dropped(visits) -> None:
    stored, expected, dropped = {}, {}, []
    contexts = Contexts(
        lambda partition: client_context(partition, {}, CLIENTS),
        stored,
        dropped.append,
        room=3 * 8200,  # for three states
    )
    for step, (partition, writes, stores) in enumerate(visits):
        context = contexts[partition]
        assert read(context) == expected.get(partition)
        assert context.node_config["partition-id"] == partition
        if writes:
            expected[partition] = float(step)
            write(context, float(step))
        if stores:
            stored |= contexts.take_changed()
            assert contexts.take_changed() == {}
    stored |= contexts.take_changed()
    kept = {p: from_bytes(s).array_records["learner"] for p, s in stored.items()}
    assert {p: float(to_tensors(record)["w"][0]) for p, record in kept.items()} == expected


def test_states_that_are_stored_make_room_for_others() -> None:
    stored, dropped = {}, []
    contexts = Contexts(
        lambda p: client_context(p, {}, CLIENTS), stored, dropped.append, room=3 * 8200
    )
    for partition in range(CLIENTS):
        write(contexts[partition], 1.0)
    assert dropped == []  # none of them may be lost
    stored |= contexts.take_changed()
    for partition in range(3):
        assert read(contexts[partition]) == 1.0
    contexts[CLIENTS]
    assert len(set(dropped)) > CLIENTS - 4


@settings(max_examples=60, deadline=None)
@given(
    clients=st.sets(st.integers(0, 60), min_size=1),
    known=st.dictionaries(st.integers(0, 60), st.floats(0.001, 10.0)),
    workers=st.integers(1, 5),
)
def test_everybody_is_served_once_and_no_move_would_end_it_earlier(clients, known, workers) -> None:
    served_by = share_out(clients, known, lambda client: client % workers, workers)
    assert set(served_by) == clients
    assert set(served_by.values()) <= set(range(workers))
    values = [known[c] for c in clients if c in known]
    usual = sum(values) / len(values) if values else 1.0
    queues = [
        sum(known.get(c, usual) for c, w in served_by.items() if w == worker)
        for worker in range(workers)
    ]
    longest = queues.index(max(queues))
    least = min(known.get(c, usual) for c, w in served_by.items() if w == longest)
    assert max(queues) - min(queues) <= max(0.05 * max(queues), least) * (1 + 1e-5)


def test_clients_stay_at_home_where_that_is_as_fast() -> None:
    home = {0: 0, 1: 1, 2: 0, 3: 1}
    assert share_out(home, dict.fromkeys(home, 0.5), home.__getitem__, 2) == home
    slow = {0: 3.0, 1: 1.0, 2: 1.0, 3: 1.0}
    assert share_out(home, slow, home.__getitem__, 2) == {0: 0, 1: 1, 2: 1, 3: 1}
