"""Status and metrics of a deployment, from what its processes leave."""

import contextlib
import json
import os
import re
import socket
import time
import urllib.error
import urllib.request

import pytest

from federation.deploy.metrics import exposed
from federation.deploy.provision import provision
from federation.deploy.status import exposition, read_status
from federation.deploy.word import FAILED, FINISHED, RUNNING, Word
from graphcl.errors import ConfigError

SITES = """
experiment = "config.toml"
[server]
name = "north"
[[site]]
name = "ams"
data = "/srv/ams"
[[site]]
name = "ber"
data = "/srv/ber"
"""


@pytest.fixture
def folder(tmp_path, tiny):
    """Return a server's folder, provisioned for two sites."""
    keys = {"partition.scheme": "natural", "partition.clients": 2, "data.source": "a.npz, b.npz"}
    keys |= {"run.rounds": 9, "data.num_classes": 3}
    (tmp_path / "config.toml").write_text(tiny("feddbp", "", **keys).to_toml())
    (tmp_path / "sites.toml").write_text(SITES)
    provision(tmp_path / "sites.toml", tmp_path / "out")
    return tmp_path / "out" / "server"


def leave(folder, status=RUNNING, error="", age=0.0):
    word = Word(folder)
    word.leave(status, error)
    contact = {"online": True, "seen": time.time() - 5, "failures": 0, "reason": ""}
    gone = {"online": False, "seen": 0.0, "failures": 2, "reason": "the site is offline"}
    word.leave_sites({"ams": contact, "ber": gone})
    if age:
        file = word._sites
        file.write_text(json.dumps({**json.loads(file.read_text()), "time": time.time() - age}))
    word.run.mkdir(exist_ok=True)
    lines = []
    for number in (1, 2):
        lines += [
            {"kind": "client", "round": number, "partition": 0, "status": "ok"},
            {"kind": "client", "round": number, "partition": 1, "status": "failed"},
            {"kind": "round", "round": number, "seconds": 2.0, "bytes_up": 10, "bytes_down": 20},
        ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (word.run / "metrics.jsonl").write_text(text + '{"kind": "round", "rou')


def test_it_tells_the_round_and_every_site(folder):
    leave(folder)
    status = read_status(folder)
    assert (status.name, status.state, status.round, status.rounds) == ("north", RUNNING, 2, 9)
    assert (status.seconds_per_round, status.bytes_up, status.bytes_down) == (2.0, 20, 40)
    ams, ber = status.sites
    assert (ams.name, ams.online, ams.rounds_ok, ams.rounds_failed) == ("ams", True, 2, 0)
    assert ams.seconds_since_contact == pytest.approx(5, abs=2)
    assert (ber.online, ber.rounds_failed, ber.failures) == (False, 2, 2)
    assert ber.seconds_since_contact is None
    assert ber.reason == "the site is offline"


def test_before_anything_ran_there_is_nothing_to_tell(folder):
    status = read_status(folder)
    assert (status.state, status.round, status.seconds_per_round) == ("stopped", 0, None)
    assert [site.online for site in status.sites] == [False, False]


@pytest.mark.parametrize(("left", "told"), [(FINISHED, FINISHED), (FAILED, FAILED)])
def test_an_end_is_told_with_its_reason(folder, left, told):
    leave(folder, left, "too few sites")
    assert (read_status(folder).state, read_status(folder).error) == (told, "too few sites")


def test_a_run_whose_process_is_gone_is_stopped(folder, monkeypatch):
    leave(folder)
    monkeypatch.setattr(
        "federation.deploy.status.psutil.pid_exists", lambda pid: pid != os.getpid()
    )
    status = read_status(folder)
    assert status.state == "stopped"
    assert not any(site.online for site in status.sites)


def test_old_word_says_nothing_of_now(folder):
    leave(folder, age=1000)
    assert not read_status(folder).sites[0].online


def test_prometheus_gets_every_figure_in_its_format(folder):
    leave(folder)
    text = exposition(read_status(folder))
    sample = re.compile(r'[a-z_]+(\{site="[a-z0-9-]+"\})? [0-9.e+-]+')
    for line in text.splitlines():
        assert line.startswith(("# HELP ", "# TYPE ")) or sample.fullmatch(line), line
    assert "graphcl_round 2\n" in text
    assert 'graphcl_site_online{site="ams"} 1\n' in text
    assert 'graphcl_site_rounds_failed{site="ber"} 2\n' in text
    assert "offline" not in text  # no text that sites or data made up


def has_ipv6_loopback():
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


no_ipv6 = pytest.mark.skipif(not has_ipv6_loopback(), reason="this machine has no IPv6 loopback")


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("[::1]", marks=no_ipv6)])
def test_the_endpoint_serves_metrics_and_nothing_else(folder, host):
    leave(folder)
    with exposed(folder, f"{host}:0") as port:
        with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=5) as reply:
            assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            assert b"graphcl_up 1" in reply.read()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://{host}:{port}/", timeout=5)


@pytest.mark.parametrize("address", ["9464", "127.0.0.1:x", "127.0.0.1:99999999"])
def test_an_address_that_nobody_can_listen_at_is_told(folder, address):
    with pytest.raises(ConfigError, match="--metrics"), exposed(folder, address):
        pass
