"""A site of a deployment: a SuperNode and its worker, started anew together when one of them ends.

Everything that is written lies in ``state/`` of the site's folder: FLWR_HOME, logs, the secret
between the two, and the personal states.
"""

import json
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from federation.deploy.authority import CA_CERTIFICATE, SITE_KEY
from federation.deploy.bundles import STATE, SiteBundle
from federation.deploy.files import PRIVATE, make_private_folder, write
from federation.deploy.processes import (
    NODE_FILE,
    environment,
    start_logged,
    stop_family,
    stopped_by_signals,
    tail,
)

STATES = "personal"

_SUPERNODE, _WORKER = "federation.deploy.supernode", "federation.deploy.worker"
_LOOK_SECONDS = 0.2
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # before a new start; doubled by each that fails at once
_STABLE_SECONDS = 60.0
_CONNECTED = "SuperNode ID:"
_REFUSED = "Failed to initialize the connection to the SuperLink"

_Process = subprocess.Popen[bytes]


class SiteNode:
    """Keeps the node of a site's folder running.

    Args:
        folder: Made by ``graphcl deploy init``.
        say: Told in a line what happens.

    Raises:
        ConfigError: If the folder cannot be used.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]):
        self.folder = folder.resolve()
        self.bundle = SiteBundle.load(self.folder)
        self.state = make_private_folder(self.folder / STATE)
        self._say = say
        self._secret = self.state / "worker.secret"
        self._node_log, self._worker_log = self.state / "supernode.log", self.state / "worker.log"
        variables = {NODE_FILE: str(self.state / "node")}
        self._environment = environment(make_private_folder(self.state / "flower"), variables)
        self._processes: list[_Process] = []

    def serve(self, stop: threading.Event) -> None:
        """Run until somebody says stop."""
        pause = _FIRST_PAUSE
        try:
            while not stop.is_set():
                started = time.monotonic()
                self._start()
                self._follow(stop)
                if stop.is_set():
                    break
                self._stop()
                if time.monotonic() - started > _STABLE_SECONDS:
                    pause = _FIRST_PAUSE
                self._say(f"{self._why_ended()}; it starts anew in {pause:g} s")
                stop.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        finally:
            self._stop()

    def _start(self) -> None:
        write(self._secret, secrets.token_bytes(32), PRIVATE)
        runtime = f"127.0.0.1:{self.bundle.port}"
        # Flower reads values of TOML, whose strings are written as JSON's are.
        config = " ".join(f"{k}={json.dumps(v)}" for k, v in self.bundle.node_config.items())
        node = [
            *(sys.executable, "-m", _SUPERNODE),
            *("--superlink", self.bundle.server),
            *("--root-certificates", str(self.folder / CA_CERTIFICATE)),
            *("--auth-supernode-private-key", str(self.folder / SITE_KEY)),
            *("--node-config", config),
            *("--host", "127.0.0.1", "--port", str(self.bundle.port)),
            *("--isolation", "process", "--superexec-auth-secret-file", str(self._secret)),
        ]
        helper = [
            *(sys.executable, "-m", _WORKER),
            *("--runtime", runtime, "--secret", str(self._secret)),
            *("--states", str(make_private_folder(self.state / STATES))),
        ]
        self._processes = [
            start_logged(node, self._node_log, self._environment),
            start_logged(helper, self._worker_log, self._environment),
        ]

    def _stop(self) -> None:
        for process in self._processes:
            stop_family(process)
        self._processes = []

    def _follow(self, stop: threading.Event) -> None:
        """Wait until a process ends or somebody says stop."""
        connected = False
        while not stop.wait(_LOOK_SECONDS):
            if not connected and _CONNECTED in tail(self._node_log, 40):
                connected = True
                self._say(f"Connected to {self.bundle.server}")
            if any(process.poll() is not None for process in self._processes):
                return

    def _why_ended(self) -> str:
        """Say why the node ended, as far as its log tells."""
        said = tail(self._node_log, 40)
        if _REFUSED not in said:
            return f"The node ended ({self._node_log} and {self._worker_log} tell more)"
        reason = " ".join(said[said.index(_REFUSED) :].splitlines()[1:3])
        return f"{self.bundle.server} does not let this site in: {reason}"


def main() -> None:
    """Keep the node of the folder in the first argument running until the process is stopped."""
    with stopped_by_signals() as stop:
        SiteNode(Path(sys.argv[1]), lambda text: print(text, flush=True)).serve(stop)


if __name__ == "__main__":
    main()
