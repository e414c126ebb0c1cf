"""Flower's own carrier: the same apps under ``flwr run``, in a FLWR_HOME of the run's own.

A SuperLink in simulation mode is started on a free port of the loopback interface and stopped at
the end. What is submitted is a small app that imports the installed components, so that Flower
runs the very code of the other carriers, from any directory.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import tomli_w

from federation.experiment import Experiment
from federation.run_directory import RunDirectory
from graphcl.errors import FederationError
from simulations.carriers.base import Carrier

SAFE_SETTINGS = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}

_CONNECTION = "graphcl"
_START_SECONDS = 60.0


class FlowerCarrier(Carrier):
    """Owns a SuperLink from start to close."""

    _superlink: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="graphcl-flwr-"))
        self._port = _free_port()
        binaries = str(Path(sys.executable).parent)
        self._environment = {
            **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            **SAFE_SETTINGS,
            "FLWR_HOME": str(self._home),
            "PATH": binaries + os.pathsep + os.environ.get("PATH", ""),
        }
        config = {
            "superlink": {
                "default": _CONNECTION,
                _CONNECTION: {"address": f"127.0.0.1:{self._port}", "insecure": True},
            }
        }
        (self._home / "config.toml").write_text(tomli_w.dumps(config), encoding="utf-8")
        self._log = self._home / "superlink.log"
        with self._log.open("wb") as log:
            self._superlink = subprocess.Popen(  # noqa: S603
                [
                    str(Path(binaries) / "flower-superlink"),
                    *("--insecure", "--simulation", "--isolation", "subprocess"),
                    *("--host", "127.0.0.1", "--port", str(self._port)),
                ],
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._wait(self._superlink)

    def close(self) -> None:
        if self._superlink is not None:
            _stop_family(self._superlink)
            shutil.rmtree(self._home, ignore_errors=True)

    def run(self, experiment: Experiment) -> None:
        app = _write_app(self._home / "app", experiment)
        simulation = experiment.simulation
        federation = [
            f"num-supernodes={experiment.partition.clients}",
            f"client-resources-num-cpus={simulation.cpus_per_client}",
            f"client-resources-num-gpus={float(simulation.gpus_per_client)}",
        ]
        if simulation.actors:
            federation.append(
                f"init-args-num-cpus={simulation.actors * simulation.cpus_per_client}"
            )
        command = [
            *(str(Path(sys.executable).parent / "flwr"), "run", str(app), _CONNECTION, "--stream"),
            *("--federation-config", " ".join(federation)),
        ]
        log = RunDirectory(experiment.run.directory).path / "flower.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            run = subprocess.Popen(  # noqa: S603
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
            try:
                run.wait()
            finally:
                run.kill()
        if not RunDirectory(experiment.run.directory).summary.exists():
            tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:])
            raise FederationError(f"the run under Flower did not finish; {log} ends with:\n{tail}")

    def _wait(self, superlink: "subprocess.Popen[bytes]") -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if superlink.poll() is not None:
                break
            try:
                address = f"http://127.0.0.1:{self._port}/health"
                with urllib.request.urlopen(address, timeout=1):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise FederationError(
            "flower-superlink did not start:\n" + self._log.read_text(encoding="utf-8")[-2000:]
        )


def _write_app(folder: Path, experiment: Experiment) -> Path:
    """Write a Flower app that imports the installed components, with this configuration."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for kind in ("server", "client"):
        source = f'"""Generated."""\n\nfrom federation.{kind}_app import app\n\n__all__ = ["app"]\n'
        (folder / f"{kind}.py").write_text(source, encoding="utf-8")
    project = {
        "project": {"name": "graphcl-run", "version": "1.0.0", "license": "Apache-2.0"},
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "graphcl",
                    "components": {"serverapp": "server:app", "clientapp": "client:app"},
                    "config": experiment.flat(),
                }
            }
        },
    }
    (folder / "pyproject.toml").write_text(tomli_w.dumps(project), encoding="utf-8")
    return folder


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _stop_family(process: "subprocess.Popen[bytes]") -> None:
    """Stop a process and all it started: the simulation runs in a session of its own."""
    try:
        parent = psutil.Process(process.pid)
        family = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for stop in ("terminate", "kill"):
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                getattr(member, stop)()
        process.poll()  # reap our own child, or it would count as alive
        _, family = psutil.wait_procs(family, timeout=8)
