"""Sums that a server can read without their terms: pairwise masks that cancel.

Every two clients agree on a secret that the server does not have, and draw the same stream of
words from it, anew for every round. One adds the stream to what it sends, the other subtracts it,
modulo 2^64. A record alone is as good as uniform; the sum over all clients is exact, whatever the
keys are. Numbers are fixed point, with :data:`SCALE` steps to one, so that their sum is the same
in any order.

The server hands the public keys on, and is trusted not to swap them for its own. Nobody holds
shares of a private key: without one client's record the sum of the others cannot be read, then or
later, and the round has failed. What a client puts into a sum, honest or not, is hidden too.

A private key is drawn when the server says hello, so anew in every run and whenever a run is
resumed, and lies in the context of its node, which alone reads it. A node that was started again
in the middle of a run, without its context, fails the round. The simulation's carriers hold all
contexts in processes of one machine and store them in the run directory with the clients' models:
there, masks are rehearsed and protect nothing from whoever reads that directory.

Sources:
    Bonawitz et al., CCS 2017, without its recovery of clients that drop out. X25519: RFC 7748;
    HKDF: RFC 5869; ChaCha20: RFC 8439; all three from ``cryptography``.
"""

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from federation.records import round_of
from graphcl.errors import ReplyError

Words = npt.NDArray[np.uint64]

SCALE = 2.0**32
"""Steps to one: a number is off by 2^-33 at most."""

KEY_BYTES = 32
"""Length of a public key."""

_STATE = "masking"


def encode(values: npt.NDArray[np.float64], clients: int) -> Words:
    """Return numbers as fixed point modulo 2^64.

    Args:
        values: Any shape.
        clients: How many such arrays are summed.

    Raises:
        ReplyError: If a number is not finite, or is so large that the sum might not fit.
    """
    limit = largest(clients)
    fits = np.abs(values) <= limit  # False for NaN, too
    if not fits.all():
        where = [int(i) for i in np.argwhere(~fits)[0]]
        raise ReplyError(
            f"privacy.masking: {values[tuple(where)]:g} at {where} does not fit the fixed point of "
            f"a sum over {clients} clients, which reaches to ±{limit:g}; scale the embeddings "
            "down, or switch masking off"
        )
    return np.rint(values * SCALE).astype(np.int64).view(np.uint64)


def largest(clients: int) -> float:
    """Return the largest number that each of some clients may put into a sum."""
    return float(2**62 / SCALE / clients)


def decode(words: Words) -> npt.NDArray[np.float64]:
    """Inverse of :func:`encode`, of a sum."""
    return words.view(np.int64) / SCALE


def masked(
    words: Words, private: bytes, public: Mapping[int, bytes], client: int, purpose: str
) -> Words:
    """Return a client's words under its masks with all others.

    Args:
        words: Any shape, alike for all clients.
        private: The client's private key.
        public: The public keys of all clients, itself among them.
        client: Which one it is.
        purpose: What is masked, e.g. the round and the record: the same key must never mask two
            things for the same purpose.

    Raises:
        ReplyError: If the client's own key is not the one that was handed on, or another's is
            no key.
    """
    ours = X25519PrivateKey.from_private_bytes(private)
    if public.get(client) != ours.public_key().public_bytes_raw():
        raise ReplyError(f"the public key handed on for client {client} is not its own")
    hidden = words.copy()
    for other in sorted(set(public) - {client}):
        stream = _stream(ours, public, client, other, purpose, words.size).reshape(words.shape)
        if client < other:
            hidden += stream
        else:
            hidden -= stream
    return hidden


def _stream(
    ours: X25519PrivateKey,
    public: Mapping[int, bytes],
    client: int,
    other: int,
    purpose: str,
    count: int,
) -> Words:
    """Return the words that two clients share; both get the same."""
    try:
        secret = ours.exchange(X25519PublicKey.from_public_bytes(public[other]))
    except ValueError as error:
        raise ReplyError(f"the public key of client {other} cannot be used: {error}") from None
    low, high = sorted((client, other))
    pair = f"graphcl masking {low} {high} {purpose} ".encode() + public[low] + public[high]
    key = HKDF(SHA256(), length=32, salt=None, info=pair).derive(secret)
    cipher = Cipher(ChaCha20(key, nonce=bytes(16)), mode=None)  # the key serves this once
    return np.frombuffer(cipher.encryptor().update(bytes(8 * count)), dtype="<u8").astype(np.uint64)


def new_key(state: RecordDict) -> bytes:
    """Draw a client's key pair; keep the private half in its state and return the public one."""
    private = X25519PrivateKey.generate()
    state[_STATE] = ConfigRecord({"private": private.private_bytes_raw(), "round": 0})
    return private.public_key().public_bytes_raw()


def used_mask(state: RecordDict) -> tuple[str, int] | None:
    """Return a name for the key in a client's state, and the last round that it served."""
    kept = state.config_records.get(_STATE)
    if kept is None:
        return None
    private = bytes(kept["private"])  # type: ignore[arg-type]
    return hashlib.sha256(private).hexdigest(), int(kept["round"])  # type: ignore[arg-type]


def use_up(state: RecordDict, rounds: Mapping[str, int]) -> None:
    """Let a state that was brought back know which rounds its key has served since.

    Args:
        state: What lies on the node.
        rounds: By the names of :func:`used_mask`.
    """
    if (mask := used_mask(state)) and (last := rounds.get(mask[0], 0)) > mask[1]:
        state[_STATE] = ConfigRecord({**state.config_records[_STATE], "round": last})


def hide(reply: RecordDict, sent: RecordDict, state: RecordDict, client: int, clients: int) -> None:
    """Mask all array records of a client's reply, in place.

    Args:
        reply: Its arrays hold int64, the words of :func:`encode`.
        sent: The message that is answered: ``masking`` has the public keys, ``config`` the round.
        state: What lies on the node; holds the key, and the last round that it served.
        client: Which client it is.
        clients: Their number.

    Raises:
        ReplyError: If keys are missing, or the round was masked before: the difference of two
            records under one mask is bare.
    """
    kept = state.config_records.get(_STATE)
    if kept is None:
        raise ReplyError("this node has lost its key of the run; resume the run, or start it anew")
    server_round, last = round_of(sent), int(kept["round"])  # type: ignore[arg-type]
    if server_round <= last:
        raise ReplyError(
            f"round {server_round} was asked for after round {last}, whose mask is used up; "
            "resume the run, so that keys are drawn anew"
        )
    record = sent.config_records.get("masking", ConfigRecord())
    public = {int(p): bytes(k) for p, k in record.items()}  # type: ignore[arg-type]
    if sorted(public) != list(range(clients)):
        raise ReplyError(f"got public keys of the clients {sorted(public)}, not of all {clients}")
    for name, arrays in reply.array_records.items():
        hidden = {}
        for key, array in arrays.items():
            purpose = f"{server_round} {name}/{key}"
            words = array.numpy().view(np.uint64)
            secret = masked(words, bytes(kept["private"]), public, client, purpose)  # type: ignore[arg-type]
            hidden[key] = Array(secret.view(np.int64))
        reply[name] = ArrayRecord(hidden)
    state[_STATE] = ConfigRecord({**kept, "round": server_round})
