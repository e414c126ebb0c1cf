"""Flower's own carrier: the same apps under ``flwr run``, in a FLWR_HOME of the run's own.

A SuperLink in simulation mode is started on a free port of the loopback interface and stopped at
the end. What is submitted is a small app that imports the installed components, so that Flower
runs the very code of the other carriers, from any directory.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

from federation.deploy.processes import (
    CONNECTION,
    binary,
    environment,
    free_port,
    start_logged,
    stop_family,
    tail,
    wait_for_superlink,
    write_app,
    write_connection,
)
from federation.experiment import Experiment
from federation.run_directory import RunDirectory
from graphcl.errors import FederationError
from simulations.carriers.base import Carrier


class FlowerCarrier(Carrier):
    """Owns a SuperLink from start to close."""

    _superlink: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="graphcl-flwr-"))
        port = free_port()
        self._environment = environment(self._home)
        write_connection(self._home, {"address": f"127.0.0.1:{port}", "insecure": True})
        log = self._home / "superlink.log"
        command = [
            binary("flower-superlink"),
            *("--insecure", "--simulation", "--isolation", "subprocess"),
            *("--host", "127.0.0.1", "--port", str(port)),
        ]
        self._superlink = start_logged(command, log, self._environment)
        wait_for_superlink(self._superlink, port, log)

    def close(self) -> None:
        if self._superlink is not None:
            stop_family(self._superlink)
            shutil.rmtree(self._home, ignore_errors=True)

    def run(self, experiment: Experiment) -> None:
        app = write_app(self._home / "app", experiment.flat())
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
            *(binary("flwr"), "run", str(app), CONNECTION, "--stream"),
            *("--federation-config", " ".join(federation)),
        ]
        log = RunDirectory(experiment.run.directory).path / "flower.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        run = start_logged(command, log, self._environment)
        try:
            run.wait()
        finally:
            run.kill()
        if not RunDirectory(experiment.run.directory).summary.exists():
            raise FederationError(
                f"the run under Flower did not finish; {log} ends with:\n{tail(log)}"
            )
