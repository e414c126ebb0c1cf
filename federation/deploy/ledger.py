"""What a site has given away in a run, which going back to an earlier state does not take back.

The server says which state a site goes on from. Where replies are masked or noised, one that it
makes twice tells more than either: the difference of two records under one mask is bare, and two
draws of noise average out. So the same question is answered with the same reply, and another
question neither under a mask that was used nor with noise beyond what the rounds account for.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from federation.deploy.files import PRIVATE, write
from federation.deploy.states import opened, sealed
from federation.experiment import Experiment
from federation.privacy.masking import used_mask
from federation.records import to_bytes
from graphcl.errors import FederationError

_REPLY, _NOTE = "reply/", "note"


@dataclass(frozen=True)
class Answered:
    """A reply, and the round under which the site keeps the state it then had, if it changed."""

    reply: RecordDict
    kept_as: int | None


class Ledger:
    """What left a site in one run; nothing is written where replies are not protected.

    Args:
        folder: The site's of that run.
        experiment: Says what protects its replies.
    """

    def __init__(self, folder: Path, experiment: Experiment):
        self._spent, self._answer = folder / "spent.json", folder / "answer"
        self._noised = experiment.privacy.noise_multiplier > 0
        self._rounds = experiment.run.rounds
        self.watches = self._noised or experiment.masked

    def masks(self) -> Mapping[str, int]:
        """Return the last round that the masks of each key served."""
        masks: dict[str, int] = self._read()["masks"]
        return masks

    def answered(self, question: str) -> Answered | None:
        """Return the reply to the last question, if this is the same one.

        Args:
            question: From :func:`question_of`.
        """
        if not self._answer.exists():
            return None
        kept = opened(self._answer)
        note = kept.config_records[_NOTE]
        if note["question"] != question:
            return None
        reply = {n.removeprefix(_REPLY): r for n, r in kept.items() if n.startswith(_REPLY)}
        kept_as = int(note["kept-as"])  # type: ignore[arg-type]
        return Answered(RecordDict(reply), kept_as if kept_as >= 0 else None)

    def count(self) -> None:
        """Count a noised reply, before it is made.

        Raises:
            FederationError: If there were as many as the run has rounds: the server's ε holds for
                no more.
        """
        if not self._noised:
            return
        spent = self._read()
        if spent["releases"] >= self._rounds:
            raise FederationError(
                f"this site has sent {spent['releases']} noised replies in this run, as many as "
                f"run.rounds: one more would cost more than the epsilon that it agreed to"
            )
        self._write(spent | {"releases": spent["releases"] + 1})

    def keep(self, question: str, answered: Answered, state: RecordDict) -> None:
        """Put a reply on record, before it leaves.

        Args:
            question: From :func:`question_of`.
            answered: What it is answered with.
            state: What the site keeps then, with the key of its masks.
        """
        if mask := used_mask(state):
            spent = self._read()
            key, server_round = mask
            last = max(server_round, spent["masks"].get(key, 0))
            self._write(spent | {"masks": {**spent["masks"], key: last}})
        kept_as = -1 if answered.kept_as is None else answered.kept_as
        note = ConfigRecord({"question": question, "kept-as": kept_as})
        records = {f"{_REPLY}{name}": record for name, record in answered.reply.items()}
        write(self._answer, sealed(RecordDict({_NOTE: note, **records})), PRIVATE)

    def _read(self) -> dict[str, Any]:
        if not self._spent.exists():
            return {"masks": {}, "releases": 0}
        spent: dict[str, Any] = json.loads(self._spent.read_text(encoding="utf-8"))
        return spent

    def _write(self, spent: Mapping[str, object]) -> None:
        write(self._spent, json.dumps(spent), PRIVATE)


def question_of(base: int, content: RecordDict) -> str:
    """Return what tells one training message from another: its content and the state before."""
    return hashlib.sha256(f"{base} ".encode() + to_bytes(content)).hexdigest()
