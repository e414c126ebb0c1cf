"""A deployment over a SuperLink of dictionaries: sites that die, return, lie and fall silent."""

import itertools
import json
import logging
import shutil
import time

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.app.message import make_message
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from federation import client_app
from federation.deploy import grid as grid_module
from federation.deploy.desk import Desk
from federation.deploy.envelope import Answer, reply_of
from federation.deploy.grid import DeploymentGrid
from federation.deploy.registry import Site
from federation.deploy.states import States
from federation.records import to_bytes
from federation.rounds import federate
from federation.run_directory import RunDirectory
from graphcl.errors import FederationError
from simulations.carriers.local import LocalGrid

RUN = "0123456789abcdef"
ROUNDS = 4


class Cut(BaseException):
    """The power of the server is cut."""


class SuperLink:
    """Answers in this process what Flower's grid asks of a SuperLink.

    Attributes:
        taken: Called with site and number of envelopes it has taken before it answers one; what it
            returns is what happens: "dies" after it took the message, "loses" the reply after it
            trained, "hangs"; None = it answers.
    """

    def __init__(self, folder, experiment, claims=()):
        self.folder, self.experiment = folder, experiment
        self.run = Run.create_empty(1)
        self.ids = itertools.count(1)
        self.replies, self.taken, self.count, self.offline = {}, lambda *_: None, {}, set()
        self.claims = dict(claims)
        self.activated, self.desks = {}, {}
        for partition in range(experiment.partition.clients):
            self.start(partition)
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 0

    def start(self, partition):
        """Start a site's processes: nothing is left of what the last ones had in memory."""
        client_app.forget_learners()
        self.activated[partition] = str(next(self.ids))
        self.desks[partition] = Desk(self.folder / f"site-{partition}")
        self.offline.discard(partition)

    def sites(self):
        clients = range(self.experiment.partition.clients)
        return {100 + p: Site(f"site-{p}", p, b"") for p in clients}

    def get_nodes(self):
        return [
            NodeInfo(node_id=100 + p, status="online", last_activated_at=activated)
            for p, activated in self.activated.items()
            if p not in self.offline
        ]

    def push_messages(self, messages):
        return [self._push(message) for message in messages]

    def _push(self, message):
        partition = message.metadata.dst_node_id - 100
        number = self.count[partition] = self.count.get(partition, 0) + 1
        message.metadata.__dict__["_message_id"] = key = str(next(self.ids))
        fate = self.taken(partition, number)
        if fate == "dies":
            self.start(partition)
            return key
        if fate == "hangs":
            return key
        config = {"partition-id": self.claims.get(partition, partition)}
        context = Context(1, 100 + partition, config, RecordDict(), self.experiment.flat())
        reply = self.desks[partition].answer(message, context)
        if fate == "loses":
            self.start(partition)
            return key
        self.replies[key] = reply_of(message, reply.error if reply.has_error() else reply.content)
        return key

    def pull_messages(self, ids):
        return [self.replies.pop(key) for key in list(ids) if key in self.replies]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(grid_module, "_LOOK_SECONDS", 0.005)
    monkeypatch.setattr(grid_module, "_NODES_SECONDS", 0.01)


@pytest.fixture
def deployed(tmp_path, tiny):
    """Return an experiment and its SuperLink."""

    def make(strategy="feddbp", claims=(), **keys):
        directory = tmp_path / "deployed"
        experiment = tiny(
            strategy, directory, **{"run.rounds": ROUNDS, "run.timeout": 30.0, **keys}
        )
        return experiment, SuperLink(tmp_path / "sites", experiment, claims)

    return make


def serve(experiment, superlink, grace=30.0):
    run = RunDirectory(experiment.run.directory)
    run.open(experiment)
    grid = DeploymentGrid(superlink, superlink.sites(), RUN, grace=grace)
    federate(grid, experiment, run)
    return grid


def simulated(experiment, tmp_path):
    client_app.forget_learners()
    other = experiment.override({"run.directory": str(tmp_path / "simulated")})
    LocalGrid(other).serve()
    return tmp_path / "simulated"


def digest(directory):
    return json.loads((directory / "summary.json").read_text())["digest"]


@pytest.mark.parametrize("strategy", ["feddbp", "fedavg", "fedper", "scfsgl"])
def test_one_message_a_round_gives_what_the_simulation_gives(
    deployed, tmp_path, strategy, forecasts
):
    """Also where weights, moments or parts of a model stay on the site."""
    if strategy == "scfsgl":
        experiment = forecasts(strategy, tmp_path / "deployed")
        superlink = SuperLink(tmp_path / "sites", experiment)
    else:
        experiment, superlink = deployed(strategy)
    serve(experiment, superlink)
    assert digest(tmp_path / "deployed") == digest(simulated(experiment, tmp_path))
    envelopes = 1 + experiment.run.rounds + 1  # hello, the rounds, the last evaluation
    assert set(superlink.count.values()) == {envelopes}


def test_rounds_without_evaluation_are_the_same(deployed, tmp_path):
    experiment, superlink = deployed(**{"run.evaluate_every": 3})
    serve(experiment, superlink)
    assert digest(tmp_path / "deployed") == digest(simulated(experiment, tmp_path))


def test_masked_sums_are_the_same(deployed, tmp_path):
    """The key that a site draws when it says hello must be in its state from then on."""
    experiment, superlink = deployed("fedproto", **{"privacy.masking": True})
    superlink.taken = lambda site, number: "dies" if (site, number) == (1, 3) else None
    serve(experiment, superlink)
    lines = [
        [*map(json.loads, (path / "metrics.jsonl").read_text().splitlines())]
        for path in (tmp_path / "deployed", simulated(experiment, tmp_path))
    ]
    losses = [[line["loss"] for line in one if line["kind"] == "round"] for one in lines]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    ("fate", "number"),
    [("dies", 1), ("dies", 4), ("loses", 1), ("loses", 4), ("loses", ROUNDS + 2)],
)
def test_a_site_that_is_killed_and_returns_changes_nothing(deployed, tmp_path, fate, number):
    """Whether it was killed before it trained, or after it trained and before its reply was out."""
    experiment, superlink = deployed()
    superlink.taken = lambda site, n: fate if (site, n) == (1, number) else None
    serve(experiment, superlink)
    assert digest(tmp_path / "deployed") == digest(simulated(experiment, tmp_path))


@pytest.mark.parametrize(
    ("strategy", "number"), [("feddbp", 2), ("feddbp", 4), ("fedper", ROUNDS + 2), ("fedtgp", 4)]
)
def test_a_server_that_is_killed_goes_on_from_its_checkpoint(deployed, tmp_path, number, strategy):
    """Sites are ahead of the checkpoint by then, and go back to the state that it knows."""
    experiment, superlink = deployed(strategy)

    def cut(site, n):
        if (site, n) == (1, number):
            raise Cut

    superlink.taken = cut
    with pytest.raises(Cut):
        serve(experiment, superlink)
    superlink.taken = lambda *_: None
    superlink.start(2)
    serve(experiment, superlink)
    assert digest(tmp_path / "deployed") == digest(simulated(experiment, tmp_path))


def test_a_reply_that_was_lost_leaves_the_site_where_the_server_thinks_it_is(deployed, lines_of):
    """The round that it trained in vain is trained again, from the same state."""
    experiment, superlink = deployed(**{"run.timeout": 0.5})
    superlink.taken = lambda site, n: "hangs" if (site, n) == (1, 3) else None
    asked = []
    original = Desk._state

    def state(desk, states, order):
        asked.append((order.base, order.keep_as))
        return original(desk, states, order)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Desk, "_state", state)
        serve(experiment, superlink)
    failed = lines_of(experiment.run.directory, partition=1, status="failed")
    assert [(line["round"], line["reason"]) for line in failed] == [(2, "no reply within 0.5 s")]
    assert (1, 3) in asked  # round 3 goes on from the state of round 1
    assert asked.count((2, 3)) == experiment.partition.clients - 1


def test_a_long_round_tells_again_and_again_who_is_there(deployed, monkeypatch):
    """Else a status that is ninety seconds old would call every site offline."""
    monkeypatch.setattr(grid_module, "_TOLD_SECONDS", 0.0)
    experiment, superlink = deployed(**{"run.timeout": 0.6})
    superlink.taken = lambda site, n: "hangs" if (site, n) == (1, 3) else None
    told = []

    def tell(contacts):
        told.append((superlink.count[1], [one.online for one in contacts.values()]))

    superlink.count[1] = 0
    run = RunDirectory(experiment.run.directory)
    run.open(experiment)
    federate(DeploymentGrid(superlink, superlink.sites(), RUN, tell), experiment, run)
    waiting = [online for number, online in told if number == 3]
    assert len(waiting) > 5  # in one exchange
    assert all(map(all, waiting))


def test_a_site_that_is_offline_is_passed_over_at_once_and_comes_back(deployed, lines_of):
    experiment, superlink = deployed(**{"run.rounds": 6})

    def taken(site, number):
        if (site, number) == (0, 3):  # in round 2
            superlink.offline.add(1)
        if (site, number) == (0, 6):  # in round 5
            superlink.start(1)
        return None

    superlink.taken = taken
    started = time.monotonic()
    serve(experiment, superlink, grace=0.1)
    assert time.monotonic() - started < experiment.run.timeout  # nobody waited for it to answer
    failed = {line["round"] for line in lines_of(experiment.run.directory, status="failed")}
    assert failed == {2, 3, 4} or failed == {3, 4, 5} or failed == {2, 3, 4, 5}
    last = lines_of(experiment.run.directory, kind="client", round=6)
    assert [line["status"] for line in last] == ["ok"] * 3


@pytest.mark.parametrize("strategy", ["feddbp", "fedper"])
def test_a_site_that_lost_its_disk_starts_anew(deployed, lines_of, caplog, strategy):
    experiment, superlink = deployed(strategy)

    def taken(site, number):
        if (site, number) == (1, 4):
            shutil.rmtree(superlink.folder / "site-1")
            superlink.start(1)

    superlink.taken = taken
    with caplog.at_level(logging.WARNING, logger="flwr"):
        grid = serve(experiment, superlink)
    lines = lines_of(experiment.run.directory, kind="client", partition=1)
    assert [line["status"] for line in lines] == ["ok"] * ROUNDS
    # Before it trains, it has no model: the score of an untrained one must not be recorded.
    assert [line.get("evaluation", "") for line in lines] == [
        "",
        "the site's state is lost",
        "",
        "",
    ]
    assert ["accuracy" in line for line in lines] == [True, False, True, True]
    assert "site-1: its state of round 2 is lost, it starts anew" in caplog.text
    assert grid.contacts["site-1"].failures == 1
    assert grid.contacts["site-1"].reason == ""
    # It was not carried along without a state: from now on it keeps one again.
    assert States(superlink.folder / "site-1", RUN).load(ROUNDS)


def test_a_site_that_lost_its_disk_after_the_last_round_has_no_score(deployed, lines_of):
    experiment, superlink = deployed()

    def taken(site, number):
        if (site, number) == (1, ROUNDS + 2):  # hello, the rounds, the last evaluation
            shutil.rmtree(superlink.folder / "site-1")
            superlink.start(1)

    superlink.taken = taken
    serve(experiment, superlink)
    (last,) = lines_of(experiment.run.directory, kind="client", partition=1, round=ROUNDS)
    assert "is lost" in last["evaluation"]
    assert not list((superlink.folder / "site-1").glob("*/evaluated"))


def test_a_site_that_misses_a_state_it_was_not_asked_for_is_not_asked_for_ever(deployed):
    experiment, superlink = deployed("fedavg")
    superlink.desks[1].answer = lambda message, context: Message(
        Answer(None, {}, lost=True).pack([]), reply_to=message
    )
    contact = serve(experiment, superlink).contacts["site-1"]
    assert "misses a state" in contact.reason
    assert contact.failures > 0


def test_a_message_that_kills_its_site_is_given_up(deployed, lines_of):
    experiment, superlink = deployed()
    superlink.taken = lambda site, number: "dies" if site == 1 and number in (3, 4, 5) else None
    serve(experiment, superlink)
    [line] = lines_of(experiment.run.directory, status="failed")
    assert (line["round"], line["partition"]) == (2, 1)
    assert "ended 3 times" in line["reason"]


def test_broken_data_stop_one_site_and_tell_why(deployed, lines_of, monkeypatch):
    experiment, superlink = deployed()
    original = client_app._build.__wrapped__

    def build(experiment, partition, *own):
        if partition == 1:
            raise ValueError("graph.npz: x holds NaN in row 7")
        return original(experiment, partition, *own)

    monkeypatch.setattr(client_app, "_build", build)
    grid = serve(experiment, superlink)
    failed = lines_of(experiment.run.directory, status="failed")
    assert {line["partition"] for line in failed} == {1}
    assert all("x holds NaN in row 7" in line["reason"] for line in failed)
    assert "x holds NaN in row 7" in grid.contacts["site-1"].reason
    assert grid.contacts["site-1"].failures >= ROUNDS


def test_too_few_sites_with_usable_data_end_the_run(deployed, monkeypatch):
    experiment, superlink = deployed(**{"run.min_success": 0.9})
    superlink.taken = lambda site, number: "hangs" if site == 1 else None
    experiment = experiment.override({"run.timeout": 0.3})
    with pytest.raises(FederationError, match="2 of 3 nodes said hello"):
        serve(experiment, superlink)


def test_a_site_that_claims_another_partition_takes_no_part(deployed, lines_of):
    """Its key says which partition is its own, whatever its configuration says."""
    experiment, superlink = deployed(claims={1: 2})
    serve(experiment, superlink)
    failed = lines_of(experiment.run.directory, status="failed")
    assert {(line["round"], line["partition"]) for line in failed} == {
        (number, 1) for number in range(1, ROUNDS + 1)
    }
    assert all("the node of partition 1 speaks for 2" in line["reason"] for line in failed)


def enveloped(head):
    """Return an envelope with a head of somebody's making."""
    data = to_bytes(RecordDict({"head": ConfigRecord({"replies": 1, **head})}))
    return RecordDict({"block-0": ConfigRecord({"bytes": data})})


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        Error(1, "it crashed"),
        enveloped({"0/x": [1, 2]}),
        enveloped({"9" * 5000 + "/x": "0"}),
        enveloped({"\u00b2/x": "0"}),
        enveloped({"kept": True, "0/x": "head"}),
    ],
    ids=["bare", "error", "list", "digits", "superscript", "kept"],
)
def test_a_reply_that_is_no_envelope_fails_its_site_alone(deployed, lines_of, content):
    experiment, superlink = deployed()
    original = superlink.pull_messages

    def pull(ids):
        for reply in original(ids):
            if reply.metadata.src_node_id == 101 and superlink.count[1] > 1:
                is_error = isinstance(content, Error)
                told = {"error" if is_error else "content": content}
                yield make_message(reply.metadata, **told)
            else:
                yield reply

    superlink.pull_messages = pull
    serve(experiment, superlink)
    failed = lines_of(experiment.run.directory, status="failed")
    assert {line["partition"] for line in failed} == {1}
    assert "it crashed" in failed[0]["reason"] or "envelope" in failed[0]["reason"]
