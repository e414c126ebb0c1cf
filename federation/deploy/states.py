"""What a site keeps between rounds, by run and round, on its own disk.

A reply may get lost after the site has trained, and a server may go back to its last checkpoint;
so the site keeps the states of several rounds, and the server says which one to go on from.
"""

import hashlib
import re
from pathlib import Path

from flwr.app import RecordDict

from federation.client_app import LEARNER
from federation.deploy.files import PRIVATE, make_private_folder, write
from federation.records import from_bytes, to_bytes
from graphcl.errors import FederationError

_EVALUATED, _CONTENT = "evaluated", "content/"
_KEPT = 5  # a server's checkpoint is at most two rounds behind, the one before it three
_RUN = re.compile(r"[0-9a-f]{8,64}")
_DIGEST_BYTES = hashlib.sha256().digest_size


class LostStateError(FederationError):
    """A site does not have the state that it is to go on from."""


class States:
    """The personal states of one run.

    Args:
        folder: The site's, for all runs.
        run: What the server calls the run.

    Raises:
        FederationError: If that is no name of ours: it becomes part of a path.
    """

    def __init__(self, folder: Path, run: str):
        if not _RUN.fullmatch(run):
            raise FederationError(
                f"the server calls its run '{run[:80]}', which is no name of ours"
            )
        self.folder = make_private_folder(folder / run)

    def load(self, server_round: int) -> RecordDict:
        """Return the state after a round; before the first there is none.

        Raises:
            LostStateError: If it is missing.
            FederationError: If it is damaged.
        """
        file = self._file(server_round)
        if not file.exists():
            if server_round == 0:
                return RecordDict()
            raise LostStateError(f"this site has no state of round {server_round}")
        return opened(file)

    def save(self, server_round: int, state: RecordDict) -> None:
        """Keep the state after a round; later ones are of a course that the server went back on."""
        write(self._file(server_round), sealed(state), PRIVATE)
        rounds = sorted(int(file.stem) for file in self.folder.glob("*.state"))
        past = [number for number in rounds if number <= server_round]
        for number in {*rounds} - {*past[-_KEPT:]}:
            self._file(number).unlink()

    def keep_evaluated(self, content: RecordDict, state: RecordDict) -> None:
        """Keep what the last evaluation was answered from, which is the model that may be exported.

        Args:
            content: What the server sent for it.
            state: What the site kept at that moment.
        """
        kept = {f"{_CONTENT}{name}": record for name, record in content.items()}
        if LEARNER in state:  # and not the key of its masks
            kept[LEARNER] = state[LEARNER]
        write(self.folder / _EVALUATED, sealed(RecordDict(kept)), PRIVATE)

    def _file(self, server_round: int) -> Path:
        return self.folder / f"{server_round}.state"


def last_evaluated(folder: Path) -> tuple[RecordDict, RecordDict]:
    """Return content and state of a site's last evaluation, of the run that it last took part in.

    Args:
        folder: The site's, for all runs.

    Raises:
        FederationError: If there is none, or the file is damaged.
    """
    files = sorted(folder.glob(f"*/{_EVALUATED}"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise FederationError(
            f"{folder}: this site was never evaluated, so that there is no model yet; let it take "
            "part in a run"
        )
    kept = opened(files[-1])
    content = {n.removeprefix(_CONTENT): r for n, r in kept.items() if n.startswith(_CONTENT)}
    state = {name: record for name, record in kept.items() if not name.startswith(_CONTENT)}
    return RecordDict(content), RecordDict(state)


def sealed(records: RecordDict) -> bytes:
    """Return records as bytes that tell whether they are whole."""
    content = to_bytes(records)
    return hashlib.sha256(content).digest() + content


def opened(file: Path) -> RecordDict:
    """Return the records in a file of :func:`sealed` bytes.

    Raises:
        FederationError: If it is damaged.
    """
    data = file.read_bytes()
    digest, content = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        raise FederationError(
            f"{file}: damaged; put back a copy, or delete it, so that the site starts anew"
        )
    return from_bytes(content)
