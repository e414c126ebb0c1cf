"""Flower's own commands as processes of ours: how they are set, started, awaited and stopped."""

import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import tomli_w

from graphcl.errors import FederationError

_PARENT = "GRAPHCL_PARENT"  # environment variable: who started a process
SAFE_SETTINGS = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ADDRESS": "local",  # no cluster that happens to run on this machine
}
CONNECTION = "graphcl"
MAX_BYTES = "GRAPHCL_MAX_BYTES"  # variable: the largest request to a SuperLink in bytes
NODE_FILE = "GRAPHCL_NODE_FILE"  # variable: the file in which a SuperNode keeps its number

_START_SECONDS = 180.0
_STOP_SECONDS = 8.0
_BINARIES = Path(sys.executable).parent


def binary(name: str) -> str:
    """Return the path of a command of this environment."""
    return str(_BINARIES / name)


def environment(home: Path, own: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment in which Flower's commands run.

    Args:
        home: Their FLWR_HOME.
        own: Further variables.
    """
    return {
        **os.environ,
        **SAFE_SETTINGS,
        "FLWR_HOME": str(home),
        # Flower starts its commands by their bare names.
        "PATH": str(_BINARIES) + os.pathsep + os.environ.get("PATH", ""),
        **(own or {}),
    }


def write_connection(home: Path, connection: Mapping[str, str | bool]) -> None:
    """Tell Flower's command line, in its FLWR_HOME, where the SuperLink is."""
    config = {"superlink": {"default": CONNECTION, CONNECTION: dict(connection)}}
    (home / "config.toml").write_text(tomli_w.dumps(config), encoding="utf-8")


def write_app(
    folder: Path, config: Mapping[str, Any], server: str = "federation.server_app"
) -> Path:
    """Write a Flower app that imports the installed components.

    Args:
        folder: Where; what is there is replaced.
        config: The experiment, as nested tables or dotted keys.
        server: Module of the ServerApp.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for kind, module in (("server", server), ("client", "federation.client_app")):
        source = f'"""Generated."""\n\nfrom {module} import app\n\n__all__ = ["app"]\n'
        (folder / f"{kind}.py").write_text(source, encoding="utf-8")
    project = {
        "project": {"name": "graphcl-run", "version": "1.0.0", "license": "Apache-2.0"},
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "graphcl",
                    "components": {"serverapp": "server:app", "clientapp": "client:app"},
                    "config": dict(config),
                }
            }
        },
    }
    (folder / "pyproject.toml").write_text(tomli_w.dumps(project), encoding="utf-8")
    return folder


def start_logged(
    command: list[str], log: Path, variables: Mapping[str, str], *, append: bool = False
) -> "subprocess.Popen[bytes]":
    """Start a process whose output goes to a file that its owner alone may read."""
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if append else os.O_TRUNC)
    with os.fdopen(os.open(log, flags, 0o600), "wb") as file:
        return subprocess.Popen(  # noqa: S603
            command,
            env={**variables, _PARENT: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_for_superlink(
    process: "subprocess.Popen[bytes]", port: int, log: Path, authority: Path | None = None
) -> None:
    """Wait until a SuperLink answers on the loopback interface.

    Args:
        process: The SuperLink's.
        port: Where it listens.
        log: Its output.
        authority: Certificate by which it is known; None where it speaks plain text.

    Raises:
        FederationError: With the end of its log, if it ends or does not answer in time.
    """
    context = None if authority is None else ssl.create_default_context(cafile=str(authority))
    scheme = "http" if authority is None else "https"
    address = f"{scheme}://127.0.0.1:{port}/health"
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=1, context=context):  # noqa: S310
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise FederationError("flower-superlink did not start:\n" + tail(log))


def tail(log: Path, lines: int = 12) -> str:
    """Return the last lines of a log; empty where there is none."""
    if not log.exists():
        return ""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def stop_family(process: "subprocess.Popen[bytes]", seconds: float = _STOP_SECONDS) -> None:
    """Stop a process and all it started, politely at first.

    Args:
        process: Started by :func:`start_logged`, in a session of its own.
        seconds: How long it may take before it is killed.
    """
    try:
        parent = psutil.Process(process.pid)
        family = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    for stop in ("terminate", "kill"):
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                getattr(member, stop)()
        process.poll()  # reap our own child, or it would count as alive
        _, family = psutil.wait_procs(family, timeout=seconds)
    process.poll()


def end_with_parent() -> None:
    """Let this process end, as by Ctrl-C, when the one that started it is gone."""
    # Told by it, since it may be gone before this process looks.
    parent = int(os.environ.get(_PARENT, os.getppid()))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of what a shell has put behind it
        signal.signal(signal.SIGINT, signal.default_int_handler)

    main = threading.main_thread().ident
    assert main is not None  # noqa: S101 - it runs

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        # To the main thread, which may be in a long wait that nothing else ends.
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=follow, daemon=True).start()


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """Turn Ctrl-C and SIGTERM into an event while the block runs."""
    stop = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in signals}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
