"""Cohorts are drawn by seed and round alone; discovery refuses a federation that does not fit."""

import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from federation import cohort
from federation.cohort import CohortGrid, discover, draw_cohort
from federation.experiment import Experiment
from graphcl.errors import FederationError
from simulations.carriers.base import SimulatedGrid


def drawn(server_round: int, **keys) -> list[int]:
    keys = {"partition.clients": 20, "strategy.fraction": 0.4} | keys
    return draw_cohort(Experiment.from_flat(keys), server_round)


@settings(deadline=None, max_examples=50)
@given(
    clients=st.integers(1, 60),
    fraction=st.floats(0.01, 1),
    seed=st.integers(0, 9),
    server_round=st.integers(1, 99),
)
def test_cohort_is_distinct_ascending_and_of_the_right_size(clients, fraction, seed, server_round):
    keys = {"partition.clients": clients, "strategy.fraction": fraction, "run.seed": seed}
    members = drawn(server_round, **keys)
    assert members == sorted(set(members))
    assert set(members) <= set(range(clients))
    assert abs(len(members) - fraction * clients) <= 0.5 or len(members) == 1


def test_cohort_depends_on_seed_and_round_only():
    members = drawn(3)
    other = {
        "strategy.name": "fedavg",
        "model.encoders": "gat",
        "run.rounds": 7,
        "run.name": "x",
        "simulation.engine": "local",
    }
    assert drawn(3) == drawn(3, **other) == members
    assert len({tuple(drawn(r)) for r in range(1, 20)}) > 15
    assert len({tuple(drawn(3, **{"run.seed": s})) for s in range(20)}) > 15


def test_everybody_trains_at_fraction_one():
    assert drawn(5, **{"strategy.fraction": 1.0}) == list(range(20))


def test_every_client_gets_its_turn():
    turns = [drawn(r) for r in range(1, 201)]
    share = [sum(client in turn for turn in turns) / 200 for client in range(20)]
    assert all(abs(s - 0.4) < 0.15 for s in share)


class ToldGrid(SimulatedGrid):
    """Nodes that answer hello with what a test tells them to: facts, or a reason to fail."""

    def __init__(self, experiment, answers):
        super().__init__(experiment)
        self.answers = answers

    def get_node_ids(self):
        return list(self.answers)

    def deliver(self, messages, timeout):
        replies = []
        for message in messages:
            answer = self.answers[message.metadata.dst_node_id]
            if isinstance(answer, str):
                replies.append(Message(Error(1, reason=answer), reply_to=message))
            elif isinstance(answer, RecordDict):
                replies.append(Message(answer, reply_to=message))
            elif answer is not None:
                facts = RecordDict({"facts": MetricRecord(answer)})
                replies.append(Message(facts, reply_to=message))
        return replies

    def take_client_states(self):
        return {}

    def put_client_states(self, states):
        pass

    def rest_client_states(self, states):
        pass


class KnownGrid(ToldGrid):
    """The same, known by their keys."""

    def partitions(self):
        return {node: place for place, node in enumerate(sorted(self.answers))}


def facts(partition: int, **changed: int) -> dict[str, int]:
    told = {"partition-id": partition, "num-examples": 4, "in-channels": 5, "num-classes": 3}
    return told | {name.replace("_", "-"): value for name, value in changed.items()}


def found(answers, strategy="fedavg", **keys):
    keys = {"partition.clients": 3, "strategy.name": strategy, "run.timeout": 0.1} | keys
    experiment = Experiment.from_flat(keys)
    return discover(ToldGrid(experiment, answers), experiment)


def test_partitions_are_taken_from_what_nodes_say_not_from_their_ids():
    told = found({901: facts(2), 17: facts(0), 455: facts(1)})
    assert list(told.nodes.items()) == [(17, 0), (455, 1), (901, 2)]
    assert (told.channels, told.num_classes) == ({"in-channels": 5}, 3)


def test_two_nodes_that_claim_one_partition():
    with pytest.raises(FederationError, match="two nodes claim partition 1"):
        found({1: facts(0), 2: facts(1), 3: facts(1)})


def test_nodes_that_are_not_connected():
    with pytest.raises(FederationError, match=r"2 of partition\.clients = 3 nodes are connected"):
        found({1: facts(0), 2: facts(1)})


def test_node_that_never_answers():
    with pytest.raises(FederationError, match=r"2 of 3 nodes said hello within 0\.1 s"):
        found({1: facts(0), 2: facts(1), 3: None})


@pytest.mark.parametrize("strategy", ["fedavg", "feddbp"])
def test_nodes_that_differ_in_classes(strategy):
    with pytest.raises(FederationError, match=r"differ in num-classes: \{0: 3, 1: 4, 2: 3\}"):
        found({1: facts(0), 2: facts(1, num_classes=4), 3: facts(2)}, strategy)


def test_unlike_features_stop_weights_but_not_prototypes():
    answers = {1: facts(0), 2: facts(1, in_channels=9), 3: facts(2)}
    with pytest.raises(FederationError, match=r"differ in in-channels: \{0: 5, 1: 9, 2: 5\}"):
        found(answers, "fedavg")
    assert len(found(answers, "feddbp").nodes) == 3


def test_node_that_answers_hello_with_an_error():
    with pytest.raises(FederationError, match="could not start: DataError: no file"):
        found({1: facts(0), 2: "DataError: no file", 3: facts(2)})


@pytest.mark.parametrize("partition", [-1, 3, 70])
def test_partition_that_the_federation_does_not_have(partition):
    with pytest.raises(FederationError, match=f"partition {partition}"):
        found({1: facts(0), 2: facts(1), 3: facts(partition)})


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (RecordDict(), "does not tell num-classes, num-examples, partition-id"),
        (RecordDict({"facts": ConfigRecord({"partition-id": "1"})}), "does not tell"),
        ({"partition-id": 1, "num-examples": 4}, "does not tell num-classes"),
        (facts(1, num_examples=-4), "'num-examples', which is no count"),
        (facts(1, num_examples=4.5), "'num-examples', which is no count"),
        (facts(1, other_channels=5), "differs from the others in what it tells: other-channels"),
    ],
)
@pytest.mark.parametrize("first", [False, True])
def test_a_node_that_tells_nonsense_is_refused_and_others_begin_without_it(answer, said, first):
    answers = {1: facts(0), 2: answer, 3: facts(2)}
    if first:  # whoever answers first must not decide what the others have to tell
        answers = {2: answer, **answers}
    with pytest.raises(FederationError, match=said):
        found(answers, "feddbp")
    keys = {"partition.clients": 3, "strategy.name": "feddbp", "run.min_success": 0.5}
    experiment = Experiment.from_flat(keys | {"run.timeout": 0.1})
    grid = KnownGrid(experiment, answers)
    told = discover(grid, experiment)
    assert told.nodes == {1: 0, 2: 1, 3: 2}  # it may answer later
    assert told.samples == {0: 4, 1: 4, 2: 4}


@pytest.mark.parametrize("key", [{}, {"public": b"short"}, {"public": "x" * 32}])
def test_a_node_without_a_key_for_its_masks(key):
    answers = {
        n: RecordDict(
            {"facts": MetricRecord(facts(n)), "masking": ConfigRecord({"public": key_of(n)})}
        )
        for n in range(3)
    }
    answers[1]["masking"] = ConfigRecord(key)
    with pytest.raises(FederationError, match="node 1 sent no key for its masks"):
        found(answers, "fedproto", **{"privacy.masking": True})


def key_of(partition):
    return bytes([partition]) * 32


def test_timeout_zero_waits_for_nodes_forever(monkeypatch):
    """As the key says: 0 = forever."""
    clock = [0.0]
    monkeypatch.setattr(cohort.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(cohort.time, "sleep", lambda _: clock.__setitem__(0, clock[0] + 100))
    experiment = Experiment.from_flat(
        {"partition.clients": 3, "strategy.name": "fedavg", "run.timeout": 0.0}
    )
    grid = ToldGrid(experiment, {1: facts(0), 2: facts(1), 3: facts(2)})
    late = grid.get_node_ids
    grid.get_node_ids = lambda: late() if clock[0] > 5000 else late()[:2]
    assert len(discover(grid, experiment).nodes) == 3


def test_strategy_sees_the_cohort_only():
    experiment = Experiment.from_flat({"partition.clients": 3})
    grid = ToldGrid(experiment, {1: facts(0), 2: facts(1), 3: facts(2)})
    shown = CohortGrid(grid, [2, 3])
    assert list(shown.get_node_ids()) == [2, 3]
    assert list(grid.get_node_ids()) == [1, 2, 3]
    message = shown.create_message(RecordDict(), "query.hello", 2, "1")
    [reply] = shown.send_and_receive([message])
    assert reply.metadata.src_node_id == 2
