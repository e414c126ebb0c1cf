"""Real SuperLink and SuperNode processes over TLS on the loopback interface."""

import contextlib
import datetime
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

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
        self.experiment = Experiment.from_flat({**KEYS, **keys})
        description = split(self.experiment, folder / "split")
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

    def processes(self):
        """Return all processes that run for the deployment."""
        roots = [*self.sites.values(), *self.server._processes]
        families = [psutil.Process(one.pid) for one in roots if one.poll() is None]
        return [p for one in families for p in (one, *one.children(recursive=True))]

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
    """Run the simulation that the deployment was split from; return its run directory."""
    directory = str(federation.folder / "simulated")
    LocalGrid(federation.experiment.override({"run.directory": directory})).serve()
    return RunDirectory(directory)


def figures(run):
    summary = json.loads(run.summary.read_text())
    return {k: v for k, v in summary.items() if k.startswith(("test_", "val_", "final_", "worst_"))}


@pytest.mark.slow
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


def test_strangers_are_refused_and_the_known_site_ends_as_its_simulation(federation, tmp_path):
    """Unregistered keys, servers of another authority, plain text, oversized requests."""
    deployed = federation(**{"partition.clients": 1, "run.rounds": 2})
    [name] = deployed.names
    other = tmp_path / "other"
    other.mkdir()
    provision(deployed.folder / "split" / "sites.toml", other / "deployment")
    foreign = other / "deployment" / "sites" / name
    deployed.start_server()
    deployed.wait_for("keys in", lambda: any("may take part" in line for line in deployed.said))
    assert "Failed to activate SuperNode" in node(deployed, name, key=foreign / "node.key")
    assert "CERTIFICATE_VERIFY_FAILED" in node(deployed, name, authority=foreign / "ca.crt")
    assert "Failed to initialize the connection" in node(deployed, name, key="none", plain=True)
    where = f"127.0.0.1:{deployed.server.bundle.port}"
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        urllib.request.urlopen(f"http://{where}/health", timeout=5)
    trust = ssl.create_default_context(cafile=str(deployed.out / "server" / "ca.crt"))
    big = urllib.request.Request(f"https://{where}/v1/fleet/push-object", data=bytes(2**20 + 1))
    with pytest.raises((urllib.error.HTTPError, ConnectionError)) as refused:
        urllib.request.urlopen(big, timeout=5, context=trust)
    assert getattr(refused.value, "code", 413) == 413
    assert "1048577 bytes, and 1048576 are allowed" in deployed.server._log.read_text()

    deployed.start_site(name)
    deployed.wait_for("the end", lambda: not deployed.thread.is_alive())
    assert deployed.error is None
    run = RunDirectory(deployed.server.word.run)
    assert figures(run) == pytest.approx(figures(simulated(deployed)), abs=1e-6)
    left = deployed.processes()
    assert len(left) == 3  # of the server nothing is left; of the site its keeper, node and worker
    deployed.close()
    assert [one for one in left if one.is_running() and one.status() != "zombie"] == []


def test_a_server_whose_certificate_is_over_is_refused(federation):
    deployed = federation(**{"partition.clients": 2, "run.rounds": 1})
    server = deployed.out / "server"
    now = datetime.datetime.now(datetime.UTC)
    old = x509.load_pem_x509_certificate((server / "server.crt").read_bytes())
    authority = load_pem_private_key((deployed.out / "authority" / "ca.key").read_bytes(), None)
    over = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(old.issuer)
        .public_key(old.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=2))
        .not_valid_after(now - datetime.timedelta(days=1))
    )
    for extension in old.extensions:
        over = over.add_extension(extension.value, extension.critical)
    pem = over.sign(authority, SHA384()).public_bytes(Encoding.PEM)
    (server / "server.crt").write_bytes(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server / "server.crt", server / "server.key")
    with socket.create_server(("127.0.0.1", deployed.server.bundle.port)) as listening:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with contextlib.suppress(OSError):
                        context.wrap_socket(connection, server_side=True).close()

        threading.Thread(target=serve, daemon=True).start()
        assert "certificate has expired" in node(deployed, deployed.names[0])


@pytest.mark.slow
def test_a_site_that_claims_another_partition_is_told_and_the_others_go_on(federation):
    deployed = federation(**{"partition.clients": 2, "run.rounds": 2})
    liar = deployed.out / "sites" / deployed.names[1] / "site.toml"
    liar.write_text(liar.read_text().replace("partition = 1", "partition = 0"))
    deployed.start_server()
    for name in deployed.names:
        deployed.start_site(name)
    deployed.wait_for("the end", lambda: not deployed.thread.is_alive())
    assert deployed.error is None
    lines = RunDirectory(deployed.server.word.run).lines()
    failed = [line for line in lines if line.get("status") == "failed"]
    assert {line["partition"] for line in failed} == {1}
    assert all("the node of partition 1 speaks for 0" in line["reason"] for line in failed)
