"""The server of a deployment: a SuperLink, the sites' keys in it, and the run, kept going.

Everything that is written lies in ``state/`` of the server's folder: FLWR_HOME and the SuperLink's
database, logs, the run directory, and word from the ServerApp.
"""

import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil

from federation.deploy.authority import CA_CERTIFICATE, SERVER_CERTIFICATE, SERVER_KEY
from federation.deploy.bundles import CONFIG, STATE, ServerBundle
from federation.deploy.files import make_private_folder
from federation.deploy.processes import (
    CONNECTION,
    MAX_BYTES,
    binary,
    environment,
    start_logged,
    stop_family,
    tail,
    wait_for_superlink,
    write_app,
    write_connection,
)
from federation.deploy.registry import Site, let_in
from federation.deploy.sites import read_table
from federation.deploy.word import FAILED, FINISHED, FOLDER, Word
from graphcl.errors import FederationError

_LOOK_SECONDS = 0.2
_MOST_RESTARTS = 5
_QUICK = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1"}
_SUPERLINK, _SERVER_APP = "federation.deploy.superlink", "federation.deploy.server_app"

_Process = subprocess.Popen[bytes]


class Server:
    """Runs the experiment of a server's folder to its end.

    Args:
        folder: Made by ``graphcl deploy init``.
        say: Told in a line what happens.
        max_bytes: The largest request that a site may send.

    Raises:
        ConfigError: If the folder cannot be used.
    """

    def __init__(self, folder: Path, say: Callable[[str], None], max_bytes: int):
        self.folder = folder.resolve()
        self.bundle = ServerBundle.load(self.folder)
        self.state = make_private_folder(self.folder / STATE)
        self.word = Word(self.folder)
        self._say = say
        self._home = make_private_folder(self.state / "flower")
        self._log = self.state / "superlink.log"
        self._environment = environment(
            self._home,
            {**_QUICK, MAX_BYTES: str(max_bytes), FOLDER: str(self.folder)},
        )
        self._app_log = self.state / "serverapp.log"
        self._processes: list[_Process] = []

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        return (self.word.run / "summary.json").exists()

    def serve(self, stop: threading.Event) -> bool:
        """Run until the experiment is finished or somebody says stop.

        Returns:
            Whether it is finished.

        Raises:
            FederationError: If the run cannot go on; what it did is in its checkpoint.
        """
        try:
            for restart in range(_MOST_RESTARTS + 1):
                if restart:
                    self._say("The SuperLink ended; it starts anew, and the run goes on")
                self._stop_all()
                superlink = self._start_superlink()
                self._register_keys()
                if self._follow(stop, superlink, self._submit()):
                    return self.finished
            raise FederationError(
                f"the SuperLink ended {_MOST_RESTARTS + 1} times; {self._log} ends with:\n"
                + tail(self._log)
            )
        finally:
            self._stop_all()

    def _start_superlink(self) -> _Process:
        where = {"address": f"127.0.0.1:{self.bundle.port}"}
        authority = self.folder / CA_CERTIFICATE
        write_connection(self._home, {**where, "root-certificates": str(authority)})
        command = [
            *(sys.executable, "-m", _SUPERLINK),
            *("--host", self.bundle.bind, "--port", str(self.bundle.port)),
            *("--ssl-ca-certfile", str(authority)),
            *("--ssl-certfile", str(self.folder / SERVER_CERTIFICATE)),
            *("--ssl-keyfile", str(self.folder / SERVER_KEY)),
            *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
            *("--database", str(self.state / "superlink.db")),
        ]
        process = self._started(command, self._log)
        wait_for_superlink(process, self.bundle.port, self._log, authority)
        return process

    def _stop_all(self) -> None:
        while self._processes:
            stop_family(self._processes.pop())
        self._stop_app()

    def _stop_app(self) -> None:
        """Stop a ServerApp whose SuperLink is gone: it would keep the run directory."""
        pid = self.word.outcome().get("pid")
        if pid is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            app = psutil.Process(pid)
            if "flwr-serverapp" in " ".join(app.cmdline()):
                app.kill()  # at a loss of none: the checkpoint is written in one step
                app.wait()

    def _register_keys(self) -> None:
        """Let in the keys of the folder and no others."""
        sites = [Site.of(known) for known in self.bundle.site]
        address = f"127.0.0.1:{self.bundle.port}"
        admitted = let_in(sites, address, self.folder / CA_CERTIFICATE)
        self.word.leave_nodes(admitted.nodes)
        for name in admitted.new:
            self._say(f"The key of site {name} may take part")
        if admitted.gone:
            self._say(
                f"{admitted.gone} keys that the folder does not hold may not take part any more"
            )

    def _submit(self) -> _Process:
        """Hand the run to the SuperLink; what is started follows the ServerApp's log to its end."""
        self.word.forget()
        config = read_table(self.folder / CONFIG, "copy the whole folder anew")
        app = write_app(self._home / "app", config, _SERVER_APP)
        command = [binary("flwr"), "run", str(app), CONNECTION, "--stream"]
        return self._started(command, self._app_log)

    def _started(self, command: list[str], log: Path) -> _Process:
        process = start_logged(command, log, self._environment, append=True)
        self._processes.append(process)
        return process

    def _follow(self, stop: threading.Event, superlink: _Process, client: _Process) -> bool:
        """Wait for the end of the run; say False if the SuperLink ended before it."""
        while not stop.wait(_LOOK_SECONDS):
            word = self.word.outcome()
            if word.get("status") == FINISHED:
                return True
            if word.get("status") == FAILED:
                raise FederationError(f"the run stopped: {word['error']}")
            if superlink.poll() is not None:
                return False
            gone = client.poll() is not None and not psutil.pid_exists(word.get("pid", client.pid))
            if gone and self.word.outcome().get("status") not in (FAILED, FINISHED):
                raise FederationError(
                    f"the ServerApp ended; {self._app_log} ends with:\n{tail(self._app_log)}"
                )
        return True
