"""What a run leaves on disk: configuration, metrics, checkpoints, summary.

========================  ===========================================================
``config.toml``           every key of the experiment
``environment.json``      versions and platform
``metrics.jsonl``         a line per client and round, then a line for the round
``checkpoint/``           manifest, server state, client states by round; no pickle
``summary.json``          written at the end: figures, bytes, digest
``releases``              rounds whose messages went out, a line each, also if repeated
========================  ===========================================================

A checkpoint counts from the moment its manifest is renamed into place; whatever was written
after it is cut off on resume. The one before is kept, and used where the last one is damaged. No
random generator is stored: every stream derives from the seed, the round and the client.
"""

import fcntl
import hashlib
import itertools
import json
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from logging import WARNING
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from flwr.app import ArrayRecord, RecordDict
from flwr.common.logger import log
from pydantic import BaseModel, ValidationError

from federation.experiment import Experiment, load_experiment
from federation.records import from_bytes, to_bytes
from graphcl.errors import ConfigError, FederationError

Line = dict[str, Any]

# No part of the digest: what comes from a clock, and free text that differs between machines.
_UNCOUNTED = ("seconds", "reason", "evaluation")
# Keys in which a resumed run may differ from its first half: they change no result.
_FREE = ("run.directory", "run.rounds", "run.compare", "run.timeout", "run.min_success")
# Of a checkpoint; raised whenever what is stored of clients or strategies is laid out anew.
_FORMAT = 1
_PACKAGES = ("graphcl", "torch", "torch-geometric", "flwr", "ray", "numpy", "scipy", "networkx")


class _StoredFile(BaseModel):
    file: str
    sha256: str


class _StoredState(BaseModel):
    """A client's state: a part of a file that holds those of one round."""

    file: str
    start: int
    size: int
    sha256: str


class _Manifest(BaseModel):
    format: int = 0  # of one that was written before formats had numbers
    round: int
    metrics_bytes: int
    server: _StoredFile
    clients: dict[str, _StoredState] | None

    @property
    def files(self) -> set[str]:
        return {self.server.file, *(entry.file for entry in (self.clients or {}).values())}


@runtime_checkable
class KeepsClientStates(Protocol):
    """A grid that can hand out and take back what its clients keep between rounds."""

    def take_client_states(self) -> dict[int, bytes]:
        """Return the states that changed since the last call, by partition."""

    def put_client_states(self, states: Mapping[int, bytes]) -> None:
        """Replace the states of clients."""

    def rest_client_states(self, states: Mapping[int, bytes]) -> None:
        """Learn where all states can be read, so that not all need to stay in memory."""


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
    clients: Mapping[int, bytes] | None


class RunDirectory:
    """The directory of one run of one strategy.

    Args:
        path: Made by :meth:`open`; a directory with a checkpoint goes on from it.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.metrics = self.path / "metrics.jsonl"
        self.summary = self.path / "summary.json"
        self._releases = self.path / "releases"
        self._manifest = self.path / "checkpoint" / "manifest.json"
        self._previous = self.path / "checkpoint" / "previous.json"

    @classmethod
    def of(cls, experiment: Experiment) -> "RunDirectory":
        """Open the run directory of an experiment; by default a new one under ``runs/``."""
        run = cls(experiment.run.directory or new_directory(Path("runs"), experiment.run.name))
        run.open(experiment)
        return run

    def open(self, experiment: Experiment) -> None:
        """Write configuration and environment, or check that they are this experiment's.

        Raises:
            FederationError: If the directory holds the run of another experiment.
        """
        self._manifest.parent.mkdir(parents=True, exist_ok=True)
        config = self.path / "config.toml"
        if config.exists():
            if differ := experiment.differing(load_experiment(config), _FREE):
                raise FederationError(
                    f"{self.path} holds the run of another experiment: it differs in "
                    f"{', '.join(differ)}; choose another run.directory"
                )
        else:
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

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep any other process from writing here; the lock ends with this process.

        Raises:
            FederationError: If another process holds the directory.
        """
        with (self.path / "lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FederationError(
                    f"{self.path}: another process is writing here; wait for it or stop it"
                ) from None
            yield

    def releasing(self, server_round: int) -> None:
        """Note that the messages of a round go out; unlike metrics this is never cut off.

        A round that a resumed run repeats makes its clients release anew.

        Raises:
            FederationError: If it cannot be noted, for want of room for instance.
        """
        with self._writing(), self._releases.open("a", encoding="utf-8") as file:
            file.write(f"{server_round}\n")
            file.flush()
            os.fsync(file.fileno())

    def releases(self) -> list[int]:
        """Return the rounds whose messages went out, in their order."""
        if not self._releases.exists():
            return []
        return [int(line) for line in self._releases.read_text(encoding="utf-8").splitlines()]

    def record(self, lines: Iterable[Line]) -> None:
        """Append lines to the metrics.

        Raises:
            FederationError: If they cannot be written, for want of room for instance.
        """
        with self._writing(), self.metrics.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())

    def lines(self) -> list[Line]:
        """Return all metrics."""
        return [json.loads(line) for line in self.metrics.read_text(encoding="utf-8").splitlines()]

    def checkpoint(
        self,
        server_round: int,
        arrays: ArrayRecord,
        strategy: RecordDict,
        changed: Mapping[int, bytes] | None,
    ) -> "StoredStates | None":
        """Store the state after a round; only clients whose state changed are written.

        Args:
            server_round: The round just completed.
            arrays: The global arrays.
            strategy: The strategy's own state.
            changed: Client states that changed since the last checkpoint, or None where the
                carrier keeps them to itself.

        Returns:
            All client states, to be read from here; None where the carrier keeps them.

        Raises:
            FederationError: If it cannot be written, for want of room for instance.
        """
        with self._writing():
            return self._checkpoint(server_round, arrays, strategy, changed)

    def _checkpoint(
        self,
        server_round: int,
        arrays: ArrayRecord,
        strategy: RecordDict,
        changed: Mapping[int, bytes] | None,
    ) -> "StoredStates | None":
        old = self._read_manifest(self._manifest)
        folder = self._manifest.parent
        server = RecordDict({"arrays": arrays})
        for name, record in strategy.items():
            server[f"strategy/{name}"] = record
        clients = None
        if changed is not None:
            kept = dict((old and old.clients) or {})
            clients = kept | _store_states(folder, f"clients-{server_round}.bin", changed, kept)
        stored = _store(folder, f"server-{server_round}.bin", to_bytes(server))
        manifest = _Manifest(
            format=_FORMAT,
            round=server_round,
            metrics_bytes=self.metrics.stat().st_size,
            server=stored,
            clients=clients,
        )
        if old is not None:
            _write_atomically(self._previous, self._manifest.read_bytes())
        _write_atomically(self._manifest, manifest.model_dump_json().encode())
        files = manifest.files | (old.files if old else set())
        for file in folder.glob("*.bin"):
            if file.name not in files:
                file.unlink()
        return None if clients is None else StoredStates(folder, clients)

    def resume(self) -> Checkpoint | None:
        """Return the last checkpoint, and cut off the metrics of any later, unfinished round.

        Where a file of it is missing or damaged, a warning says so, and the one before is returned.

        Raises:
            FederationError: If that one is missing or damaged, too.
        """
        try:
            return self._resume(self._manifest)
        except FederationError as error:
            if not self._previous.exists():
                raise
            try:
                checkpoint = self._resume(self._previous)
            except FederationError:
                raise error from None
            if checkpoint is None:
                raise
            self._manifest.unlink(missing_ok=True)
            self._previous.rename(self._manifest)
            log(WARNING, "%s\nGoing on from round %d instead", error, checkpoint.server_round)
            return checkpoint

    def _resume(self, path: Path) -> Checkpoint | None:
        manifest = self._read_manifest(path)
        if manifest is None:
            if self.summary.exists():
                raise FederationError(
                    f"{path}: missing, though the run is finished; start the run anew"
                )
            if self._previous.exists():
                raise FederationError(f"{path}: missing; start the run anew")
            self.metrics.write_bytes(b"")
            return None
        written = self.metrics.stat().st_size if self.metrics.exists() else 0
        if written < manifest.metrics_bytes:
            raise FederationError(
                f"{self.metrics}: {written} bytes, but the checkpoint vouches for "
                f"{manifest.metrics_bytes}; start the run anew"
            )
        checkpoint = self._load(manifest)
        with self.metrics.open("r+b") as file:  # last: a damaged checkpoint must not cut anything
            file.truncate(manifest.metrics_bytes)
        return checkpoint

    def latest(self) -> Checkpoint | None:
        """Return the last checkpoint and change nothing.

        Raises:
            FederationError: If a file of the checkpoint is missing or damaged.
        """
        manifest = self._read_manifest(self._manifest)
        return None if manifest is None else self._load(manifest)

    def _load(self, manifest: _Manifest) -> Checkpoint:
        folder = self._manifest.parent
        server = from_bytes(_load(folder, manifest.server))
        strategy = RecordDict(
            {
                name.removeprefix("strategy/"): record
                for name, record in server.items()
                if name.startswith("strategy/")
            }
        )
        clients = None
        if manifest.clients is not None:
            clients = StoredStates(folder, manifest.clients)
            clients.check()
        return Checkpoint(manifest.round, server.array_records["arrays"], strategy, clients)

    def finish(self, summary: Mapping[str, Any], server: RecordDict) -> str:
        """Write the summary; return the digest of metrics and final server state.

        Raises:
            FederationError: If it cannot be written, for want of room for instance.
        """
        digest = self.digest(server)
        with self._writing():
            _write_atomically(self.summary, _json({**summary, "digest": digest}))
        return digest

    def digest(self, server: RecordDict) -> str:
        """Return a hash of everything a run computed, without anything from a clock."""
        hasher = hashlib.sha256()
        for line in self.lines():
            timeless = {key: value for key, value in line.items() if key not in _UNCOUNTED}
            hasher.update(json.dumps(timeless, sort_keys=True).encode())
        for name in sorted(server):
            for key in sorted(server[name]):
                value = server[name][key]
                shape = getattr(value, "shape", ()), getattr(value, "dtype", "")
                data = getattr(value, "data", None) or repr(value).encode()
                hasher.update(json.dumps([name, key, *shape, len(data)]).encode())
                hasher.update(data)
        return hasher.hexdigest()[:16]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Say what to do where nothing more can be written."""
        try:
            yield
        except OSError as error:
            raise FederationError(
                f"{self.path}: cannot be written ({error.strerror}); what was written last still "
                "counts: make room, then resume the run"
            ) from error

    def _read_manifest(self, path: Path) -> "_Manifest | None":
        if not path.exists():
            return None
        try:
            manifest = _Manifest.model_validate_json(path.read_bytes())
        except ValidationError:
            raise FederationError(f"{path}: damaged; start the run anew") from None
        if manifest.format != _FORMAT:
            raise FederationError(
                f"{path}: of another version of graphcl (format {manifest.format}, this one reads "
                f"{_FORMAT}); go on with that version, or start the run anew"
            )
        return manifest


def new_directory(out: Path, name: str) -> Path:
    """Create a run directory that nobody has, named by the time."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out}: cannot hold run directories: {error.strerror}") from None
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    for number in itertools.count(1):
        directory = out / (stem if number == 1 else f"{stem}-{number}")
        try:
            directory.mkdir()
            return directory
        except FileExistsError:
            continue
    raise AssertionError("unreachable: the count has no end")


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def _write_atomically(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".new")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _store(folder: Path, name: str, data: bytes) -> _StoredFile:
    with (folder / name).open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # the manifest will vouch for it
    return _StoredFile(file=name, sha256=hashlib.sha256(data).hexdigest())


class StoredStates(Mapping[int, bytes]):
    """The client states of a checkpoint by partition, each read when it is asked for.

    Raises:
        FederationError: At a look, if the file is missing or damaged.
    """

    def __init__(self, folder: Path, entries: Mapping[str, _StoredState]):
        self._folder = folder
        self._entries = {int(partition): entry for partition, entry in entries.items()}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[int]:
        return iter(self._entries)

    def __getitem__(self, partition: int) -> bytes:
        entry = self._entries[partition]
        path = self._folder / entry.file
        try:
            with path.open("rb") as file:
                file.seek(entry.start)
                data = file.read(entry.size)
        except FileNotFoundError:
            raise FederationError(
                f"{path}: missing from the checkpoint; start the run anew"
            ) from None
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise FederationError(f"{path}: damaged (its hash differs); start the run anew")
        return data

    def check(self) -> None:
        """Look at all states, one after the other."""
        for partition in self:
            self[partition]


def _store_states(
    folder: Path, name: str, changed: Mapping[int, bytes], kept: Mapping[str, _StoredState]
) -> dict[str, _StoredState]:
    """Write states to one file, and with them those that hardly fill a file any more.

    Args:
        folder: Where the files are.
        name: Of the new one.
        changed: States by partition.
        kept: Where the states lie up to now.
    """
    still = {p: entry for p, entry in kept.items() if int(p) not in changed}
    live: dict[str, int] = {}
    for entry in still.values():
        live[entry.file] = live.get(entry.file, 0) + entry.size
    sparse = {file for file, size in live.items() if 4 * size < (folder / file).stat().st_size}
    moved = StoredStates(folder, {p: e for p, e in still.items() if e.file in sparse})
    written: dict[str, _StoredState] = {}
    if not changed and not moved:
        return written
    with (folder / name).open("wb") as file:
        for partition in sorted({*changed, *moved}):
            data = changed[partition] if partition in changed else moved[partition]
            digest = hashlib.sha256(data).hexdigest()
            written[str(partition)] = _StoredState(
                file=name, start=file.tell(), size=len(data), sha256=digest
            )
            file.write(data)
        file.flush()
        os.fsync(file.fileno())  # the manifest will vouch for it
    return written


def _load(folder: Path, entry: _StoredFile) -> bytes:
    path = folder / entry.file
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise FederationError(f"{path}: missing from the checkpoint; start the run anew") from None
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise FederationError(f"{path}: damaged (its hash differs); start the run anew")
    return data
