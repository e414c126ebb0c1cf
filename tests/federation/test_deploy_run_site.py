"""What a site keeps, and what it makes of envelopes."""

import os
import signal
import stat
import subprocess
import sys
import time

import psutil
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, MetricRecord, RecordDict

from federation.deploy import envelope
from federation.deploy.envelope import Answer, Order
from federation.deploy.states import States
from federation.records import from_bytes, num_bytes, to_arrays, to_bytes, to_tensors
from graphcl.errors import FederationError, ReplyError

RUN = "0123456789abcdef"


def state(value: float) -> RecordDict:
    return RecordDict({"learner": to_arrays({"model/w": torch.full((3,), value)})})


def value(kept: RecordDict) -> float:
    return float(to_tensors(kept.array_records["learner"])["model/w"][0])


def order(**changes) -> Order:
    told = {"run": RUN, "number": "1-1", "base": 2, "keep_as": 3, "kinds": ("evaluate", "train")}
    return Order(**{**told, **changes})


def contents() -> list[RecordDict]:
    arrays = to_arrays({"w": torch.arange(6.0).reshape(2, 3)})
    return [
        RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": number})})
        for number in (2, 3)
    ]


def test_a_state_comes_back_as_it_was_and_for_its_owner_alone(tmp_path):
    States(tmp_path, RUN).save(4, state(0.25))
    assert value(States(tmp_path, RUN).load(4)) == 0.25
    [file] = tmp_path.rglob("*.state")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_it_goes_back_to_any_of_the_last_rounds(tmp_path):
    states = States(tmp_path, RUN)
    for server_round in range(1, 8):
        states.save(server_round, state(server_round))
    assert [value(states.load(number)) for number in range(3, 8)] == [3, 4, 5, 6, 7]
    with pytest.raises(FederationError, match="no state of round 2"):
        states.load(2)


def test_a_course_that_the_server_went_back_on_is_forgotten(tmp_path):
    """Otherwise a new run of the same experiment would find the end of the last one."""
    states = States(tmp_path, RUN)
    for server_round in range(1, 6):
        states.save(server_round, state(server_round))
    states.save(3, state(30))
    assert value(states.load(3)) == 30
    with pytest.raises(FederationError, match="no state of round 5"):
        states.load(5)
    assert value(states.load(2)) == 2


def test_before_the_first_round_there_is_no_state(tmp_path):
    assert not States(tmp_path, RUN).load(0)


def test_a_damaged_state_is_told(tmp_path):
    states = States(tmp_path, RUN)
    states.save(1, state(1))
    [file] = tmp_path.rglob("*.state")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(FederationError, match=r"1\.state: damaged"):
        states.load(1)


@pytest.mark.parametrize("run", ["../../etc", "", "A" * 16, "a" * 65, "abc/def0"])
def test_a_run_is_no_path(tmp_path, run):
    with pytest.raises(FederationError, match="no name of ours"):
        States(tmp_path, run)


def test_an_envelope_holds_the_messages_and_the_order():
    found, inner = Order.unpack(order().pack(contents()))
    assert found == order()
    assert [to_bytes(one) for one in inner] == [to_bytes(one) for one in contents()]


def test_what_two_messages_share_is_in_an_envelope_once():
    big = to_arrays({"w": torch.zeros(5000)})
    same = [RecordDict({"arrays": big}), RecordDict({"arrays": ArrayRecord(dict(big))})]
    once = num_bytes(order().pack(same[:1]))
    assert num_bytes(order().pack(same)) < once + 500


def test_a_long_envelope_comes_in_blocks(monkeypatch):
    monkeypatch.setattr(envelope, "_BLOCK_BYTES", 100)
    packed = order().pack(contents())
    assert len(packed) > 3
    assert Order.unpack(packed)[0] == order()
    del packed["block-1"]
    with pytest.raises(ReplyError, match="block"):
        Order.unpack(packed)


def test_an_answer_tells_errors_by_their_place():
    metrics = RecordDict({"metrics": MetricRecord({"loss": 1.5})})
    packed = Answer(3, {1: Error(7, "no data")}).pack([metrics, RecordDict()])
    answer, replies = Answer.unpack(packed, 2)
    assert answer.kept == 3
    assert (answer.errors[1].code, answer.errors[1].reason) == (7, "no data")
    assert to_bytes(replies[0]) == to_bytes(metrics)


def tampered(head: dict, **records) -> RecordDict:
    data = to_bytes(RecordDict({"head": ConfigRecord(head), **records}))
    return RecordDict({"block-0": ConfigRecord({"bytes": data})})


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"metrics": MetricRecord({"loss": 1.0})}),
        RecordDict({"block-0": ConfigRecord({"bytes": b"\xff\xfe\x00garbage"})}),
        RecordDict({"block-0": ConfigRecord({"bytes": to_bytes(RecordDict())})}),
        tampered({"replies": 1}),
        tampered({"replies": 2, "kept": -1}),
        tampered({"replies": 2, "kept": "3"}),
        tampered({"replies": 2, "code-0": "x"}),
        tampered({"replies": 2, "0/metrics": "7"}),
        tampered({"replies": 2, "9/metrics": "head"}),
        tampered({"replies": 2, "x/metrics": "head"}),
    ],
)
def test_a_malformed_answer_is_a_reply_error(content):
    with pytest.raises(ReplyError):
        Answer.unpack(content, 2)


@pytest.mark.parametrize(
    "head",
    [
        {"run": RUN, "number": "1", "base": 0, "keep-as": 1},
        {"run": RUN, "number": "1", "base": "x", "keep-as": 1, "kinds": ["train"]},
        {"run": RUN, "number": "1", "base": 0, "keep-as": 1, "kinds": ["train"] * 9},
    ],
)
def test_a_malformed_order_is_a_reply_error(head):
    with pytest.raises(ReplyError):
        Order.unpack(tampered(head))


def test_random_bytes_are_never_more_than_a_reply_error():
    rng = torch.Generator().manual_seed(0)
    good = bytearray(Answer(1, {}).pack(contents()).config_records["block-0"]["bytes"])
    for _ in range(200):
        bad = bytearray(good)
        for place in torch.randint(len(bad), (3,), generator=rng):
            bad[place] ^= 0x55
        content = RecordDict({"block-0": ConfigRecord({"bytes": bytes(bad)})})
        try:
            _, replies = Answer.unpack(content, 2)
        except ReplyError:
            continue
        assert all(isinstance(reply, RecordDict) for reply in replies)
    assert from_bytes(bytes(good))


HELPER = """
import sys, time
from federation.deploy.processes import end_with_parent
time.sleep(float(sys.argv[1]))
end_with_parent()
time.sleep(600)
"""
STARTER = """
import os, signal, sys, time
from pathlib import Path
from federation.deploy.processes import start_logged
if sys.argv[3] == "ignored":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
command = [sys.executable, "-c", sys.argv[1], sys.argv[4]]
helper = start_logged(command, Path(sys.argv[2]), os.environ)
print(helper.pid, flush=True)
time.sleep(float(sys.argv[5]))
os._exit(1)
"""


@pytest.mark.parametrize("interrupts", ["heard", "ignored"])
@pytest.mark.parametrize(("loads", "lives"), [(0.0, 3.0), (3.0, 0.0)], ids=["later", "at once"])
def test_no_helper_outlives_the_process_that_started_it(tmp_path, interrupts, loads, lives):
    """Whether that ends later or while the helper still loads, and in the background of a shell."""
    arguments = [HELPER, str(tmp_path / "log"), interrupts, str(loads), str(lives)]
    command = [sys.executable, "-c", STARTER, *arguments]
    started = subprocess.run(command, capture_output=True, text=True, timeout=60)
    helper = int(started.stdout)
    try:
        deadline = time.monotonic() + 30
        while psutil.pid_exists(helper):
            assert time.monotonic() < deadline, "the helper is still there"
            time.sleep(0.05)
    finally:
        if psutil.pid_exists(helper):
            os.kill(helper, signal.SIGKILL)
    assert "KeyboardInterrupt" in (tmp_path / "log").read_text()
