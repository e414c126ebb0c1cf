"""Several messages to one node in one, and its replies likewise; nothing in them is changed.

Flower carries every array of a message in requests of its own, a dozen for a prototype; an envelope
is a few blocks of bytes. Records that the messages inside share are in it once.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from flwr.app import ConfigRecord, Error, Message, Metadata, RecordDict
from flwr.app.message import make_message

from federation.records import from_bytes, to_bytes
from graphcl.errors import ReplyError

_HEAD, _BLOCK = "head", "block"
_BLOCK_BYTES = 16 * 2**20
_MAX_INNER = 8

MESSAGE_TYPE = "query.envelope"


@dataclass(frozen=True)
class Order:
    """What the server asks of a site beside the messages themselves.

    Attributes:
        run: Identifies the run among those that a site keeps states of.
        number: Counts the exchanges of a server process; the same order may arrive twice.
        base: Round whose personal state the site goes on from; 0 = the first.
        keep_as: Round under which it keeps the state that it then has.
        kinds: Flower's types of the messages inside.
    """

    run: str
    number: str
    base: int
    keep_as: int
    kinds: tuple[str, ...]

    def pack(self, contents: Sequence[RecordDict]) -> RecordDict:
        """Return the content of the envelope."""
        head: dict[str, Any] = {
            "run": self.run,
            "number": self.number,
            "base": self.base,
            "keep-as": self.keep_as,
            "kinds": list(self.kinds),
        }
        return _sealed(head, contents)

    @classmethod
    def unpack(cls, content: RecordDict) -> tuple[Self, list[RecordDict]]:
        """Inverse of :meth:`pack`.

        Raises:
            ReplyError: If the content is no envelope of ours.
        """
        head, records = _opened(content)
        try:
            kinds = tuple(str(kind) for kind in head["kinds"])
            order = cls(
                str(head["run"]),
                str(head["number"]),
                int(head["base"]),
                int(head["keep-as"]),
                kinds,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ReplyError(f"malformed envelope: {type(error).__name__}: {error}") from None
        return order, _inner(head, records, len(kinds))


@dataclass(frozen=True)
class Answer:
    """What a site replies beside the replies themselves.

    Attributes:
        kept: Round under which it keeps a new state; None where nothing changed.
        errors: Why a message could not be answered, by its place.
        lost: Whether it has answered nothing, since it does not have the state to go on from.
    """

    kept: int | None
    errors: dict[int, Error]
    lost: bool = False

    def pack(self, replies: Sequence[RecordDict]) -> RecordDict:
        """Return the content of the envelope; an error's own content is not read."""
        head: dict[str, Any] = {"replies": len(replies), "lost": self.lost}
        if self.kept is not None:
            head["kept"] = self.kept
        for place, error in self.errors.items():
            head |= {f"code-{place}": error.code, f"reason-{place}": error.reason or ""}
        return _sealed(head, replies)

    @classmethod
    def unpack(cls, content: RecordDict, expected: int) -> tuple[Self, list[RecordDict]]:
        """Inverse of :meth:`pack`.

        Raises:
            ReplyError: If the content is no envelope with that many replies.
        """
        head, records = _opened(content)
        if head.get("lost") is True:
            return cls(None, {}, lost=True), []
        if head.get("replies") != expected:
            raise ReplyError(f"expected {expected} replies, got {head.get('replies')}")
        kept = head.get("kept")
        if kept is not None and (type(kept) is not int or kept < 0):  # True is no round either
            raise ReplyError("malformed envelope: 'kept' is no round")
        errors = {}
        for place in range(expected):
            code = head.get(f"code-{place}")
            if code is not None:
                if not isinstance(code, int):
                    raise ReplyError("malformed envelope: an error's code is no number")
                errors[place] = Error(code, str(head.get(f"reason-{place}", "")))
        return cls(kept, errors), _inner(head, records, expected)


def reply_of(message: Message, content: RecordDict | Error) -> Message:
    """Return the reply that a message's node would have sent, had it come alone."""
    sent = message.metadata
    metadata = Metadata(
        run_id=sent.run_id,
        message_id="",
        src_node_id=sent.dst_node_id,
        dst_node_id=sent.src_node_id,
        reply_to_message_id=sent.message_id,
        group_id=sent.group_id,
        created_at=sent.created_at,
        ttl=sent.ttl,
        message_type=sent.message_type,
    )
    if isinstance(content, Error):
        return make_message(metadata, error=content)
    return make_message(metadata, content=content)


def _sealed(head: dict[str, Any], contents: Sequence[RecordDict]) -> RecordDict:
    """Return a head and the records of several contents as blocks of bytes."""
    records: dict[str, Any] = {}
    places: dict[bytes, str] = {}  # of a record, by its hash
    for number, content in enumerate(contents):
        for name, record in content.items():
            digest = hashlib.sha256(to_bytes(RecordDict({"": record}))).digest()
            place = places.setdefault(digest, str(len(places)))
            records[place] = record
            head[f"{number}/{name}"] = place
    data = to_bytes(RecordDict({_HEAD: ConfigRecord(head), **records}))
    blocks = range(0, len(data), _BLOCK_BYTES)
    return RecordDict(
        {
            f"{_BLOCK}-{number}": ConfigRecord({"bytes": data[start : start + _BLOCK_BYTES]})
            for number, start in enumerate(blocks)
        }
    )


def _opened(content: RecordDict) -> tuple[dict[str, Any], RecordDict]:
    """Inverse of :func:`_sealed`, but for the contents: the head, and the records by place."""
    blocks = content.config_records
    data = bytearray()
    for number in range(len(content)):
        block = blocks.get(f"{_BLOCK}-{number}", ConfigRecord()).get("bytes")
        if not isinstance(block, bytes):
            raise ReplyError(f"expected an envelope of {len(content)} blocks, block {number} lacks")
        data += block
    try:
        records = from_bytes(bytes(data))
    except Exception as error:  # whatever a stranger's bytes make of the parser
        raise ReplyError(f"malformed envelope: {type(error).__name__}") from None
    if _HEAD not in records.config_records:
        raise ReplyError("malformed envelope: it has no head")
    return dict(records.config_records[_HEAD]), records


def _inner(head: dict[str, Any], records: RecordDict, count: int) -> list[RecordDict]:
    if not 1 <= count <= _MAX_INNER:
        raise ReplyError(f"an envelope holds 1 to {_MAX_INNER} messages, not {count}")
    contents = {str(number): RecordDict() for number in range(count)}
    for key, place in head.items():
        number, separator, name = key.partition("/")
        if not separator:
            continue
        if number not in contents or not isinstance(place, str) or place not in records:
            raise ReplyError(f"malformed envelope: no record for '{key[:80]}'")
        contents[number][name] = records[place]
    return list(contents.values())
