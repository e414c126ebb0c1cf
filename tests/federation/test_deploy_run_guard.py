"""What Flower's commands are changed by: the guard of the SuperLink, the haste of the SuperNode."""

import asyncio
import logging
import threading
import time
from importlib import import_module
from types import SimpleNamespace

import pytest
from flwr.app import ConfigRecord
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.superlink.grid import http_grid
from flwr.supernode.runtime import run_clientapp

from federation.deploy import pace as pace_module
from federation.deploy import supernode
from federation.deploy.pace import Pace
from federation.deploy.superlink import Guard
from graphcl.errors import FederationError

LIMIT = 1000


def status_of(path: str, *, client: str = "10.0.0.7", length: str | None = "10") -> int:
    """Return the status of a request through the guard; 200 = it was let through."""
    sent: list[dict] = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        sent.append(message)

    headers = [] if length is None else [(b"content-length", length.encode())]
    scope = {"type": "http", "path": path, "client": (client, 5000), "headers": headers}
    asyncio.run(Guard(app, LIMIT)(scope, None, send))
    return sent[0]["status"]


@pytest.mark.parametrize("path", ["/v1/fleet/pull-messages", "/v1/fleet/push-object", "/health"])
@pytest.mark.parametrize("client", ["10.0.0.7", "127.0.0.1"])
def test_nodes_are_served_from_anywhere(path, client):
    assert status_of(path, client=client) == 200


def test_what_strangers_ask_for_neither_forges_lines_of_the_log_nor_fills_the_disk(caplog):
    sent = []

    async def send(message):
        sent.append(message)

    async def ask(times):
        guard = Guard(None, LIMIT)
        scope = {"type": "http", "path": "/x\n2026-01-01 all is well" + "y" * 9999, "headers": []}
        for _ in range(times):
            await guard(scope | {"client": ("10.0.0.7", 5000)}, None, send)

    with caplog.at_level(logging.WARNING, logger="flwr"):
        asyncio.run(ask(5500))
    assert len(sent) == 2 * 5500
    assert len(caplog.messages) == 1000 + 4
    assert "(5000 so far)" in caplog.messages[-1]
    assert all("\n" not in line and len(line) < 250 for line in caplog.messages)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/push-messages",
        "/docs",
        "/openapi.json",
        "/v1/responses",
        "/v1/Fleet/pull-messages",
        "/",
    ],
)
def test_all_else_is_for_the_server_itself(path):
    """A stranger who could submit a run would have its code run by the server."""
    assert status_of(path) == 403
    assert status_of(path, client="::1") == 200


def test_nobody_registers_a_key_for_itself():
    assert status_of("/v1/fleet/register-node") == 403
    assert status_of("/v1/fleet/register-node", client="127.0.0.1") == 403


@pytest.mark.parametrize(
    ("length", "status"),
    [("1000", 200), ("1001", 413), ("99999999999999", 413), (None, 411), ("-1", 411), ("x", 411)],
)
def test_a_request_of_a_node_is_bounded_before_it_is_read(length, status):
    assert status_of("/v1/fleet/push-object", length=length) == status


def test_the_waits_of_flowers_loop_are_those_that_are_shortened(monkeypatch):
    """A new version of Flower that waits otherwise must not go unnoticed."""
    loop = import_module(supernode._LOOP)
    monkeypatch.setattr(loop, "time", time)
    monkeypatch.setattr(loop, "pull_objects", loop.pull_objects)
    supernode.hasten()
    assert isinstance(loop.time, supernode._QuickClock)
    monkeypatch.setattr(supernode, "_WAITS", ["sleep(5)"])
    with pytest.raises(FederationError, match="waits for messages otherwise"):
        supernode.hasten()


@pytest.fixture
def waits(monkeypatch):
    """Return the waits for parts of messages that Flower would make."""
    waits = []

    class Event(threading.Event):
        def wait(self, timeout=None):
            waits.append(timeout)
            return super().wait(0)

    threads = SimpleNamespace(Event=Event, Lock=threading.Lock)
    monkeypatch.setattr(inflatable_utils, "threading", threads)
    return waits


def late(*parts):
    """Return how parts are pulled, each of which is there at the third look only."""
    looks = {}

    def pull(name):
        looks[name] = looks.get(name, 0) + 1
        if looks[name] < 3:
            raise inflatable_utils.ObjectUnavailableError(name)
        return dict(parts)[name]

    return pull


@pytest.mark.parametrize("module", [import_module(supernode._LOOP), http_grid])
def test_server_and_node_look_at_once_for_parts_that_are_under_way(monkeypatch, waits, module):
    monkeypatch.setattr(module, "pull_objects", module.pull_objects)
    pace_module.hasten_pulls(module)
    assert module.pull_objects(["a"], late(("a", b"part"))) == {"a": b"part"}
    assert len(waits) == 2
    assert max(waits) < 0.1


def test_a_worker_looks_at_once_for_parts_that_are_under_way(monkeypatch, waits):
    name = "pull_and_inflate_object_from_tree"
    monkeypatch.setattr(run_clientapp, name, getattr(run_clientapp, name))
    pace_module.hasten_pulls(run_clientapp, name)
    record = ConfigRecord({"a": 1})
    objects = {k: o.deflate() for k, o in get_all_nested_objects(record).items()}
    tree = get_object_tree(record)
    found = run_clientapp.pull_and_inflate_object_from_tree(
        tree, late(*objects.items()), lambda _: None, return_type=ConfigRecord
    )
    assert found == record
    assert waits
    assert max(waits) < 0.1


def test_a_module_that_pulls_otherwise_is_refused():
    with pytest.raises(FederationError, match="pulls messages otherwise"):
        pace_module.hasten_pulls(time)


def test_waits_grow_while_nothing_is_found_and_are_short_again_after(monkeypatch):
    now, slept = [0.0], []

    def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(pace_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(pace_module.time, "sleep", sleep)
    pace = Pace(0.1, 3.0)
    for _ in range(200):
        pace.wait()
    assert slept == sorted(slept)
    assert (slept[0], slept[-1]) == (0.1, 3.0)
    pace.found()
    pace.wait()
    assert slept[-1] == 0.1
