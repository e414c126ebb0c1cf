"""How a deployment is: its sites, the round, failures; as a table's rows and for Prometheus.

All of it comes from what the server's processes leave in its state folder; no data are in there.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from federation.deploy.bundles import CONFIG, ServerBundle
from federation.deploy.sites import read_table
from federation.deploy.word import RUNNING, Word

_STALE_SECONDS = 90.0  # after which what was last known of a site says nothing of now


@dataclass(frozen=True)
class SiteStatus:
    """How one site is.

    Attributes:
        name, partition: Which.
        online: Whether its node is there.
        seconds_since_contact: Since it was last known to be there; None = never.
        rounds_ok, rounds_failed: Of those on record.
        failures: Messages that it has not answered, or with an error, since the server started.
        reason: Of the last failure, if it has not answered since.
    """

    name: str
    partition: int
    online: bool
    seconds_since_contact: float | None
    rounds_ok: int
    rounds_failed: int
    failures: int
    reason: str


@dataclass(frozen=True)
class Status:
    """How the deployment is.

    Attributes:
        name: Of the federation.
        state: ``running``, ``finished``, ``failed``, or ``stopped``.
        error: Why it failed.
        round: The last one on record.
        rounds: How many there are to be.
        seconds_per_round: Mean over those on record; None before the first.
        bytes_up, bytes_down: Content of the rounds on record.
        sites: One by one, in the order of their partitions.
    """

    name: str
    state: str
    error: str
    round: int
    rounds: int
    seconds_per_round: float | None
    bytes_up: int
    bytes_down: int
    sites: list[SiteStatus]

    @property
    def table(self) -> dict[str, Any]:
        """Return all as nested tables."""
        return asdict(self)


def read_status(folder: Path) -> Status:
    """Return how the deployment of a server's folder is.

    Raises:
        ConfigError: If the folder cannot be used.
    """
    bundle = ServerBundle.load(folder)
    word = Word(folder)
    lines = _lines(word.run / "metrics.jsonl")
    rounds = [line for line in lines if line["kind"] == "round"]
    outcome, contacts = word.outcome(), word.sites()
    state = str(outcome.get("status", "stopped"))
    if state == RUNNING and not psutil.pid_exists(outcome["pid"]):
        state = "stopped"
    fresh = state == RUNNING and time.time() - contacts.get("time", 0.0) < _STALE_SECONDS
    seconds = [line["seconds"] for line in rounds]
    return Status(
        name=bundle.name,
        state=state,
        error=str(outcome.get("error", "")),
        round=max((line["round"] for line in rounds), default=0),
        rounds=int(read_table(folder / CONFIG, "copy the whole folder anew")["run"]["rounds"]),
        seconds_per_round=sum(seconds) / len(seconds) if seconds else None,
        bytes_up=sum(line["bytes_up"] for line in rounds),
        bytes_down=sum(line["bytes_down"] for line in rounds),
        sites=[
            _site(
                known.name, known.partition, contacts.get("sites", {}).get(known.name), lines, fresh
            )
            for known in sorted(bundle.site, key=lambda known: known.partition)
        ],
    )


def _site(
    name: str,
    partition: int,
    contact: dict[str, Any] | None,
    lines: list[dict[str, Any]],
    fresh: bool,
) -> SiteStatus:
    own = [line.get("status") for line in lines if line.get("partition") == partition]
    known = contact or {}
    seen = float(known.get("seen", 0.0))
    return SiteStatus(
        name=name,
        partition=partition,
        online=fresh and bool(known.get("online")),
        seconds_since_contact=time.time() - seen if seen else None,
        rounds_ok=own.count("ok"),
        rounds_failed=own.count("failed"),
        failures=int(known.get("failures", 0)),
        reason=str(known.get("reason", "")),
    )


def _lines(file: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a file that may be written to right now."""
    if not file.exists():
        return []
    data = file.read_bytes()
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


def exposition(status: Status) -> str:
    """Return the status in Prometheus' text format, version 0.0.4."""
    return "".join(f"{line}\n" for line in _exposed(status))


def _exposed(status: Status) -> Iterator[str]:
    seconds = status.seconds_per_round
    single: list[tuple[str, str, str, float | None]] = [
        ("up", "gauge", "Whether the run goes on.", float(status.state == RUNNING)),
        ("round", "gauge", "Last round on record.", status.round),
        ("rounds", "gauge", "Rounds that there are to be.", status.rounds),
        ("round_seconds", "gauge", "Mean seconds per round on record.", seconds),
        (
            "received_bytes",
            "gauge",
            "Content that sites sent in rounds on record.",
            status.bytes_up,
        ),
        ("sent_bytes", "gauge", "Content sent to sites in rounds on record.", status.bytes_down),
    ]
    for name, kind, meaning, value in single:
        if value is not None:
            yield from _head(name, kind, meaning)
            yield f"graphcl_{name} {value:g}"
    per_site: list[tuple[str, str, str, str]] = [
        ("site_online", "gauge", "Whether the site's node is there.", "online"),
        (
            "site_seconds_since_contact",
            "gauge",
            "Since the site was last known to be there.",
            "seconds_since_contact",
        ),
        ("site_rounds_ok", "gauge", "Rounds on record that the site took part in.", "rounds_ok"),
        ("site_rounds_failed", "gauge", "Rounds on record that it failed in.", "rounds_failed"),
        ("site_failures", "gauge", "Messages that failed since the server started.", "failures"),
    ]
    for name, kind, meaning, attribute in per_site:
        yield from _head(name, kind, meaning)
        for site in status.sites:
            value = getattr(site, attribute)
            if value is not None:
                # A site's name holds nothing that would need to be escaped.
                yield f'graphcl_{name}{{site="{site.name}"}} {float(value):g}'


def _head(name: str, kind: str, meaning: str) -> Iterator[str]:
    yield f"# HELP graphcl_{name} {meaning}"
    yield f"# TYPE graphcl_{name} {kind}"
