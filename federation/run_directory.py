"""What a run leaves on disk: configuration, metrics, checkpoints, summary.

========================  ===========================================================
``config.toml``           every key of the experiment
``environment.json``      versions and platform
``metrics.jsonl``         a line per client and round, then a line for the round
``checkpoint/``           manifest, server state, state of every client; no pickle
``summary.json``          written at the end: figures, bytes, digest
========================  ===========================================================

A checkpoint counts from the moment its manifest is renamed into place; whatever was written
after it is cut off on resume. No random generator is stored: every stream derives from the seed,
the round and the client.
"""

import hashlib
import json
import os
import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from flwr.app import ArrayRecord, RecordDict

from federation.experiment import Experiment
from federation.records import from_bytes, to_bytes
from graphcl.errors import FederationError

Line = dict[str, Any]

_CLOCKED = ("seconds",)  # keys that come from a clock; no part of the digest
_PACKAGES = ("graphcl", "torch", "torch-geometric", "flwr", "ray", "numpy", "scipy", "networkx")


@runtime_checkable
class KeepsClientStates(Protocol):
    """A grid that can hand out and take back what its clients keep between rounds."""

    def take_client_states(self) -> dict[int, bytes]:
        """Return the states that changed since the last call, by partition."""

    def put_client_states(self, states: Mapping[int, bytes]) -> None:
        """Replace the states of clients."""


@dataclass(frozen=True)
class Checkpoint:
    """The state after a round.

    Attributes:
        server_round: The last complete round.
        arrays: The global arrays.
        strategy: The strategy's own state.
        clients: State of every client that keeps one, by partition; None where the carrier kept
            them to itself.
    """

    server_round: int
    arrays: ArrayRecord
    strategy: RecordDict
    clients: dict[int, bytes] | None


class RunDirectory:
    """The directory of one run of one strategy.

    Args:
        path: Created if missing; a directory with a checkpoint goes on from it.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.metrics = self.path / "metrics.jsonl"
        self.summary = self.path / "summary.json"
        self._manifest = self.path / "checkpoint" / "manifest.json"

    @classmethod
    def of(cls, experiment: Experiment) -> "RunDirectory":
        """Open the run directory of an experiment; by default a new one under ``runs/``."""
        name = (
            experiment.run.directory
            or f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{experiment.run.name}"
        )
        run = cls(name)
        run.open(experiment)
        return run

    def open(self, experiment: Experiment) -> None:
        """Write configuration and environment, unless the run has them already."""
        self._manifest.parent.mkdir(parents=True, exist_ok=True)
        config = self.path / "config.toml"
        if not config.exists():
            # Without its own path, a directory can be moved, sent and resumed elsewhere.
            portable = experiment.override({"run.directory": ""})
            _write_atomically(config, portable.to_toml().encode())
            environment = {
                "python": platform.python_version(),
                "platform": platform.platform(),
                "packages": {package: version(package) for package in _PACKAGES},
            }
            _write_atomically(self.path / "environment.json", _json(environment))
        self.metrics.touch()

    def record(self, lines: Iterable[Line]) -> None:
        """Append lines to the metrics."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))

    def lines(self) -> list[Line]:
        """Return all metrics."""
        return [json.loads(line) for line in self.metrics.read_text(encoding="utf-8").splitlines()]

    def checkpoint(
        self,
        server_round: int,
        arrays: ArrayRecord,
        strategy: RecordDict,
        changed: Mapping[int, bytes] | None,
    ) -> None:
        """Store the state after a round; only clients whose state changed are written.

        Args:
            server_round: The round just completed.
            arrays: The global arrays.
            strategy: The strategy's own state.
            changed: Client states that changed since the last checkpoint, or None where the
                carrier keeps them to itself.
        """
        old = self._read_manifest() or {"server": {}, "clients": {}}
        folder = self._manifest.parent
        server = RecordDict({"arrays": arrays})
        for name, record in strategy.items():
            server[f"strategy/{name}"] = record
        clients = None
        if changed is not None:
            clients = dict(old["clients"] or {})
            for partition, data in sorted(changed.items()):
                clients[str(partition)] = _store(
                    folder, f"client-{partition}-{server_round}.bin", data
                )
        stored = _store(folder, f"server-{server_round}.bin", to_bytes(server))
        manifest = {
            "round": server_round,
            "metrics_bytes": self.metrics.stat().st_size,
            "server": stored,
            "clients": clients,
        }
        _write_atomically(self._manifest, _json(manifest))
        kept = {stored["file"], *(entry["file"] for entry in (clients or {}).values())}
        for file in folder.glob("*.bin"):
            if file.name not in kept:
                file.unlink()

    def resume(self) -> Checkpoint | None:
        """Return the last checkpoint, and cut off the metrics of any later, unfinished round.

        Raises:
            FederationError: If a file of the checkpoint is missing or damaged.
        """
        manifest = self._read_manifest()
        if manifest is None:
            self.metrics.write_bytes(b"")
            return None
        with self.metrics.open("r+b") as file:
            file.truncate(manifest["metrics_bytes"])
        folder = self._manifest.parent
        server = from_bytes(_load(folder, manifest["server"]))
        strategy = RecordDict(
            {
                name.removeprefix("strategy/"): record
                for name, record in server.items()
                if name.startswith("strategy/")
            }
        )
        clients = manifest["clients"]
        return Checkpoint(
            manifest["round"],
            server.array_records["arrays"],
            strategy,
            None
            if clients is None
            else {int(partition): _load(folder, entry) for partition, entry in clients.items()},
        )

    def finish(self, summary: Mapping[str, Any], server: RecordDict) -> str:
        """Write the summary; return the digest of metrics and final server state."""
        digest = self.digest(server)
        _write_atomically(self.summary, _json({**summary, "digest": digest}))
        return digest

    def digest(self, server: RecordDict) -> str:
        """Return a hash of everything a run computed, without anything from a clock."""
        hasher = hashlib.sha256()
        for line in self.lines():
            timeless = {key: value for key, value in line.items() if key not in _CLOCKED}
            hasher.update(json.dumps(timeless, sort_keys=True).encode())
        for name in sorted(server):
            for key in sorted(server[name]):
                value = server[name][key]
                hasher.update(f"{name}/{key}".encode())
                hasher.update(getattr(value, "data", None) or repr(value).encode())
        return hasher.hexdigest()[:16]

    def _read_manifest(self) -> dict[str, Any] | None:
        if not self._manifest.exists():
            return None
        manifest: dict[str, Any] = json.loads(self._manifest.read_text(encoding="utf-8"))
        return manifest


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def _write_atomically(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".new")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _store(folder: Path, name: str, data: bytes) -> dict[str, str]:
    (folder / name).write_bytes(data)
    return {"file": name, "sha256": hashlib.sha256(data).hexdigest()}


def _load(folder: Path, entry: Mapping[str, str]) -> bytes:
    path = folder / entry["file"]
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise FederationError(f"{path}: missing from the checkpoint; start the run anew") from None
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise FederationError(f"{path}: damaged (its hash differs); start the run anew")
    return data
