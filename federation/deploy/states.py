"""What a site keeps between rounds, by run and round, on its own disk.

A reply may get lost after the site has trained, and a server may go back to its last checkpoint;
so the site keeps the states of several rounds, and the server says which one to go on from.
"""

import hashlib
import re
from pathlib import Path

from flwr.app import RecordDict

from federation.deploy.files import PRIVATE, make_private_folder, write
from federation.records import from_bytes, to_bytes
from graphcl.errors import FederationError

_KEPT = 4  # a server's checkpoint is at most two rounds behind
_RUN = re.compile(r"[0-9a-f]{8,64}")
_DIGEST_BYTES = hashlib.sha256().digest_size


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
        self._folder = make_private_folder(folder / run)

    def load(self, server_round: int) -> RecordDict:
        """Return the state after a round; before the first there is none.

        Raises:
            FederationError: If it is missing or damaged.
        """
        file = self._file(server_round)
        if not file.exists():
            if server_round == 0:
                return RecordDict()
            raise FederationError(
                f"this site has no state of round {server_round}: was its state folder lost, or "
                "does another machine hold it? Put it back, or start the run anew"
            )
        data = file.read_bytes()
        digest, content = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        if hashlib.sha256(content).digest() != digest:
            raise FederationError(f"{file}: damaged; put back a copy, or start the run anew")
        return from_bytes(content)

    def save(self, server_round: int, state: RecordDict) -> None:
        """Keep the state after a round; later ones are of a course that the server went back on."""
        content = to_bytes(state)
        write(self._file(server_round), hashlib.sha256(content).digest() + content, PRIVATE)
        rounds = sorted(int(file.stem) for file in self._folder.glob("*.state"))
        past = [number for number in rounds if number <= server_round]
        for number in {*rounds} - {*past[-_KEPT:]}:
            self._file(number).unlink()

    def _file(self, server_round: int) -> Path:
        return self._folder / f"{server_round}.state"
