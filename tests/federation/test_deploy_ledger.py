"""What left a site under masks or noise is not made a second time, whatever the server asks."""

import json

import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from federation import client_app
from federation.deploy.desk import Desk
from federation.deploy.envelope import MESSAGE_TYPE, Answer, Order
from federation.privacy.masking import new_key
from federation.records import to_bytes
from federation.strategies.prototypes import PrototypeTable

RUN = "0123456789abcdef"
CLASSES = 3
NOISED = {"privacy.clip": 1.0, "privacy.noise_multiplier": 2.0, "privacy.min_support": 2}


class Site:
    """One site's desk, and a server that asks what it likes."""

    def __init__(self, folder, experiment):
        self.folder, self.experiment, self.number = folder, experiment, 0
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 0
        self.start()

    def start(self):
        """Start its processes anew: nothing in memory is left."""
        client_app.forget_learners()
        self.desk = Desk(self.folder)

    def ask(self, kind, content, base=0, keep_as=0):
        """Return the reply to one message, or the reason why there is none."""
        self.number += 1
        order = Order(RUN, str(self.number), base, keep_as, (kind,))
        sent = Message(order.pack([content]), dst_node_id=7, message_type=MESSAGE_TYPE)
        context = Context(1, 7, {"partition-id": 0}, RecordDict(), self.experiment.flat())
        reply = self.desk.answer(sent, context)
        if reply.has_error():
            return reply.error.reason
        answer, contents = Answer.unpack(reply.content, 1)
        return answer.errors[0].reason if answer.errors else contents[0]

    def train(self, server_round, base=0, **config):
        """Ask for a round of training, from the state of another round."""
        content = RecordDict({"config": ConfigRecord({"server-round": server_round, **config})})
        channels = self.experiment.model.embedding_channels
        content["prototypes"] = PrototypeTable.empty(CLASSES, channels).to_arrays()
        if self.experiment.masked:
            content["masking"] = ConfigRecord(self.keys)
        return self.ask(MessageType.TRAIN, content, base, server_round)

    def hello(self):
        """Let it draw a key; the others have theirs."""
        told = self.ask("query.hello", RecordDict())
        others = range(1, self.experiment.partition.clients)
        self.keys = {str(p): new_key(RecordDict()) for p in others}
        self.keys["0"] = told["masking"]["public"]


@pytest.fixture
def site(tmp_path, tiny):
    def make(**keys):
        experiment = tiny("fedproto", tmp_path / "run", **{"run.rounds": 3, **keys})
        return Site(tmp_path / "site", experiment)

    return make


@pytest.mark.parametrize("restart", [False, True])
def test_a_mask_serves_one_record_whatever_state_the_server_names(site, restart):
    asked = site(**{"privacy.masking": True})
    asked.hello()
    first = asked.train(1)
    if restart:
        asked.start()
    other = asked.train(1, variant=2)
    assert "whose mask is used up" in other
    assert to_bytes(asked.train(1)) == to_bytes(first)  # the same question: the same words
    assert not isinstance(asked.train(2, base=1), str)
    if restart:
        asked.start()
    assert "round 1 was asked for after round 2" in asked.train(1, variant=3)
    asked.hello()  # as when a run is resumed: under a new key the round may be repeated
    assert not isinstance(asked.train(1, variant=3), str)


@pytest.mark.parametrize("restart", [False, True])
def test_noise_is_drawn_once_for_a_question_and_for_no_more_of_them_than_rounds(site, restart):
    asked = site(**NOISED)
    first = asked.train(1)
    if restart:
        asked.start()
    assert to_bytes(asked.train(1)) == to_bytes(first)
    for variant in (1, 2):
        assert to_bytes(asked.train(1, variant=variant)) != to_bytes(first)
    if restart:
        asked.start()
    refused = asked.train(1, variant=3)
    assert "3 noised replies in this run, as many as run.rounds" in refused
    spent = json.loads((asked.folder / RUN / "spent.json").read_text(encoding="utf-8"))
    assert spent["releases"] == 3


def test_without_protection_nothing_is_put_on_record(site):
    asked = site()
    for _ in range(5):
        asked.train(1)
    assert {file.name for file in (asked.folder / RUN).iterdir()} <= {"1.state"}
