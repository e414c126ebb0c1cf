"""Real SuperLink and SuperNode processes over TLS on the loopback interface."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import psutil
import pytest

from federation.deploy.processes import free_port, stop_family
from federation.deploy.provision import provision
from federation.deploy.server import Server
from federation.deploy.split import split
from federation.experiment import Experiment
from federation.run_directory import RunDirectory
from simulations.carriers.local import LocalGrid

KEYS = {
    "run.name": "edge",
    "run.seed": 5,
    "run.timeout": 120.0,
    "data.source": "csbm",
    "data.csbm.nodes": 240,
    "data.csbm.classes": 3,
    "data.csbm.features": 8,
    "partition.min_nodes": 10,
    "model.hidden_channels": 8,
    "model.embedding_channels": 8,
    "train.epochs": 1,
    "strategy.name": "feddbp",
    "simulation.engine": "local",
}
WAIT_SECONDS = 240.0


class Federation:
    """A provisioned deployment of the clients of a simulation, all on this machine."""

    def __init__(self, folder, **keys):
        self.folder = folder
        description = split(Experiment.from_flat({**KEYS, **keys}), folder / "split")
        text = (folder / "split" / "sites.toml").read_text()
        for port in (8000, *(site.port for site in description.site)):
            text = text.replace(f"port = {port}\n", f"port = {free_port()}\n")
        (folder / "split" / "sites.toml").write_text(text)
        self.out = folder / "deployment"
        provision(folder / "split" / "sites.toml", self.out)
        self.names = [site.name for site in description.site]
        self.sites = {}
        self.said = []
        self.stop = threading.Event()
        self.error = None
        self.server = Server(self.out / "server", self.said.append, 2**20)

    def start_site(self, name):
        folder = self.out / "sites" / name
        with (folder / "out.log").open("ab") as log:
            self.sites[name] = subprocess.Popen(
                [sys.executable, "-m", "federation.deploy.site", str(folder)],
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def kill_site(self, name):
        """Cut a site's power: nothing of it can say good-bye."""
        process = psutil.Process(self.sites[name].pid)
        for member in (process, *process.children(recursive=True)):
            member.kill()
        self.sites.pop(name).wait()

    def kill_superlink(self):
        os.kill(self.server._processes[0].pid, signal.SIGKILL)

    def start_server(self):
        def serve():
            try:
                self.server.serve(self.stop)
            except Exception as error:
                self.error = error

        self.thread = threading.Thread(target=serve)
        self.thread.start()

    def rounds(self):
        """Return how many rounds are on record."""
        file = self.server.word.run / "metrics.jsonl"
        text = file.read_text() if file.exists() else ""
        return text.count('"kind": "round"')

    def wait_for(self, what, condition):
        deadline = time.monotonic() + WAIT_SECONDS
        while not condition():
            assert self.error is None, self.error
            assert time.monotonic() < deadline, f"{what} did not happen; {self.logs()}"
            time.sleep(0.05)

    def logs(self):
        files = [*self.out.glob("sites/*/out.log"), *self.out.glob("**/state/*.log")]
        return "\n".join(f"--- {file}\n{file.read_text()[-1500:]}" for file in files)

    def close(self):
        self.stop.set()
        for process in self.sites.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        if hasattr(self, "thread"):
            self.thread.join()
        for process in self.sites.values():
            stop_family(process)


@pytest.fixture
def federation(tmp_path):
    """Return a maker of deployments; all that they start is stopped."""
    made = []

    def make(**keys):
        made.append(Federation(tmp_path, **keys))
        return made[-1]

    yield make
    for one in made:
        one.close()


def simulated(federation):
    """Run the experiment that the deployment runs as a simulation; return its run directory."""
    from federation.experiment import load_experiment

    config = federation.folder / "split" / "config.toml"
    directory = str(federation.folder / "simulated")
    experiment = load_experiment(config, {"run.directory": directory})
    LocalGrid(experiment).serve()
    return RunDirectory(directory)


def figures(run):
    summary = json.loads(run.summary.read_text())
    return {k: v for k, v in summary.items() if k.startswith(("test_", "val_", "final_", "worst_"))}


def test_a_federation_of_real_processes_ends_as_its_simulation(federation):
    deployed = federation(**{"partition.clients": 2, "run.rounds": 3, "model.encoders": "gcn, mlp"})
    deployed.start_server()
    for name in deployed.names:
        deployed.start_site(name)
    deployed.wait_for("the end", lambda: not deployed.thread.is_alive())
    assert deployed.error is None
    run = RunDirectory(deployed.server.word.run)
    assert figures(run) == pytest.approx(figures(simulated(deployed)), abs=1e-6)
    assert not any(psutil.pid_exists(pid) for pid in [deployed.server.word.outcome()["pid"]])


@pytest.mark.skipif("GRAPHCL_SLOW" not in os.environ, reason="minutes; make deploy-test runs it")
def test_two_kills_change_no_figure(federation):
    """Three unlike sites, ten rounds; a site is killed in a round, and so is the SuperLink."""
    keys = {"partition.clients": 3, "run.rounds": 10, "model.encoders": "gcn, sage, mlp"}
    deployed = federation(**keys)
    victim = deployed.names[1]
    deployed.start_server()
    for name in deployed.names:
        deployed.start_site(name)
    deployed.wait_for("round 3", lambda: deployed.rounds() >= 3)
    deployed.kill_site(victim)
    deployed.start_site(victim)
    deployed.wait_for("round 6", lambda: deployed.rounds() >= 6)
    deployed.kill_superlink()
    deployed.wait_for("the end", lambda: not deployed.thread.is_alive())
    assert deployed.error is None
    assert any("starts anew" in line for line in deployed.said)
    run = RunDirectory(deployed.server.word.run)
    assert [line["ok"] for line in run.lines() if line["kind"] == "round"] == [3] * 10
    assert figures(run) == pytest.approx(figures(simulated(deployed)), abs=1e-6)


def node(deployed, name, *, key=None, authority=None, plain=False):
    """Start a SuperNode alone, of a site's folder but for what is given; return what it said."""
    folder = deployed.out / "sites" / name
    where = f"127.0.0.1:{deployed.server.bundle.port}"
    trust = (
        ["--insecure"] if plain else ["--root-certificates", str(authority or folder / "ca.crt")]
    )
    known = (
        [] if key == "none" else ["--auth-supernode-private-key", str(key or folder / "node.key")]
    )
    command = [
        *(sys.executable, "-m", "federation.deploy.supernode", "--superlink", where),
        *(*trust, *known, "--node-config", "partition-id=0", "--max-retries", "1"),
        *("--host", "127.0.0.1", "--port", str(free_port()), "--isolation", "process"),
    ]
    variables = {**os.environ, "GRAPHCL_NODE_FILE": str(folder / "state" / "node")}
    variables["FLWR_HOME"] = str(folder / "state" / "flower")
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    return done.stdout + done.stderr


def test_strangers_are_refused(federation, tmp_path):
    """Keys that nobody registered, servers of another authority, plain text, no key at all."""
    deployed = federation(**{"partition.clients": 2, "run.rounds": 1})
    other = tmp_path / "other"
    other.mkdir()
    provision(deployed.folder / "split" / "sites.toml", other / "deployment")
    foreign = other / "deployment" / "sites" / deployed.names[0]
    deployed.start_server()
    deployed.wait_for("keys in", lambda: any("may take part" in line for line in deployed.said))
    name = deployed.names[0]
    assert "Failed to activate SuperNode" in node(deployed, name, key=foreign / "node.key")
    assert "CERTIFICATE_VERIFY_FAILED" in node(deployed, name, authority=foreign / "ca.crt")
    assert "Connected" not in node(deployed, name, key="none", plain=True)
    url = f"http://127.0.0.1:{deployed.server.bundle.port}/health"
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        urllib.request.urlopen(url, timeout=5)
