"""The server's end of a deployment: one message per node and round, asked for until it is answered.

Flower's own ``send_and_receive`` looks for replies every three seconds, and loses a message whose
node was killed after it had taken it. Here a node that starts anew is sent what it has not
answered yet; that is safe, since a message names the round whose personal state it goes on from.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from logging import INFO, WARNING
from typing import Protocol

from flwr.app import Error, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.logger import log
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from federation.deploy.envelope import MESSAGE_TYPE, Answer, Order, reply_of
from federation.deploy.registry import Site
from federation.records import round_of
from federation.replies import MALFORMED
from graphcl.errors import ReplyError

_LOOK_SECONDS = 0.1  # between looks for replies
_NODES_SECONDS = 1.0  # between looks at which nodes are there
_TOLD_SECONDS = 10.0  # between reports of the sites' contacts in a long round
_GRACE_SECONDS = 30.0  # for a node that was here a moment ago, e.g. while it starts anew
_MOST_SENDS = 3  # a message that kills its node again and again is given up
_ONLINE = "online"

Outcome = list[RecordDict | Error]


class NodesGrid(Protocol):
    """What a SuperLink's grid can do beyond Flower's public interface."""

    @property
    def run(self) -> Run:
        """The run."""

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return what is known of the nodes that are online."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there."""


@dataclass
class Contact:
    """What the server knows of a site.

    Attributes:
        online: Whether its node is there.
        seen: When it was last known to be, in seconds since the epoch; 0 = never.
        answered: When it last answered; 0 = never.
        failures: How many messages it has not answered, or answered with an error.
        reason: Why the last one failed; empty once one succeeds.
        activated: When its node started, as Flower tells it.
    """

    online: bool = False
    seen: float = 0.0
    answered: float = 0.0
    failures: int = 0
    reason: str = ""
    activated: str = ""


@dataclass
class _Request:
    """What one node is asked for in an exchange; ``asked`` is what is left where its state is."""

    node: int
    order: Order
    inner: list[Message]
    asked: list[Message]
    sends: int = 0
    activated: str = ""
    ids: set[str] = field(default_factory=set)


class DeploymentGrid(Grid):
    """Carries the messages of one run to sites that are known by their keys.

    Args:
        grid: Flower's.
        sites: Who may take part, by the node that was registered for the site's key.
        run: Identifies the run among those that a site keeps states of.
        told: Called with the sites' contacts after every exchange, and every few seconds in one.
        grace: Seconds for which a node that was here a moment ago is waited for.
    """

    def __init__(
        self,
        grid: NodesGrid,
        sites: Mapping[int, Site],
        run: str,
        told: Callable[[Mapping[str, Contact]], None] = lambda _: None,
        grace: float = _GRACE_SECONDS,
    ):
        self._grid, self._run_name, self._told, self._grace = grid, run, told, grace
        self._sites = dict(sites)
        self._bases: dict[int, int] = {}  # round of the state that a partition has, by partition
        self._changed: set[int] = set()
        self._numbers = itertools.count(1)
        self._started = time.time_ns()
        self._waiting: tuple[list[Message], Callable[[list[Message]], None]] | None = None
        self._looked = -math.inf
        self.contacts = {site.name: Contact() for site in sites.values()}

    # The states stay on the sites: a checkpoint holds the round under which each keeps its own.

    def take_client_states(self) -> dict[int, bytes]:
        """Return the rounds under which sites keep a state that changed, by partition."""
        changed = {p: str(self._bases[p]).encode() for p in sorted(self._changed)}
        self._changed.clear()
        return changed

    def put_client_states(self, states: Mapping[int, bytes]) -> None:
        """Let every site go on from the state that it had."""
        self._bases = {partition: int(data) for partition, data in states.items()}
        self._changed.clear()

    def rest_client_states(self, states: Mapping[int, bytes]) -> None:
        """Nothing rests here: sites keep their states themselves."""

    def partitions(self) -> dict[int, int]:
        """Return the partition of every site's node, whether it is there or not."""
        return {node: site.partition for node, site in self._sites.items()}

    def defer(self, messages: list[Message], then: Callable[[list[Message]], None]) -> None:
        """Keep messages back until the next ones go out, in the same envelopes."""
        self._waiting = messages, then

    def settle(self, timeout: float | None) -> None:
        """Send what still waits."""
        if self._waiting:
            self.send_and_receive([], timeout=timeout)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages, and those that waited; return the replies, an error where none came."""
        messages = list(messages)
        waiting, then = self._waiting or ([], None)
        self._waiting = None
        inner: dict[int, list[Message]] = {}
        for message in (*waiting, *messages):
            inner.setdefault(message.metadata.dst_node_id, []).append(message)
        outcomes = self._exchange(inner, timeout)
        replies = {
            id(message): reply_of(message, outcome)
            for node, sent in inner.items()
            for message, outcome in zip(sent, outcomes[node], strict=True)
        }
        if then is not None:
            then([replies[id(message)] for message in waiting])
        return [replies[id(message)] for message in messages]

    def _exchange(
        self, inner: Mapping[int, list[Message]], timeout: float | None
    ) -> dict[int, Outcome]:
        """Ask nodes until each has answered, is gone for good, or the time is over."""
        started = time.monotonic()
        requests = {node: self._request(node, sent) for node, sent in inner.items()}
        outcomes: dict[int, Outcome] = {}
        looked = told = -math.inf
        while len(outcomes) < len(requests):
            now = time.monotonic()
            over = timeout is not None and now - started >= timeout
            left = [request for node, request in requests.items() if node not in outcomes]
            if over or now - looked >= _NODES_SECONDS:
                looked = now
                self._look_at_nodes()
                if now - told >= _TOLD_SECONDS:
                    told = now
                    self._told(self.contacts)
                for request in left:
                    reason = (
                        f"no reply within {timeout:g} s" if over else self._tend(request, timeout)
                    )
                    if reason:
                        outcomes[request.node] = self._failed(request, reason)
            found = self._look_for_replies([r for r in left if r.node not in outcomes])
            outcomes |= found
            if not found:
                time.sleep(_LOOK_SECONDS)
        self._told(self.contacts)
        return outcomes

    def _request(self, node: int, inner: list[Message]) -> _Request:
        return _Request(node, self._order(node, inner), inner, inner)

    def _order(self, node: int, inner: list[Message]) -> Order:
        base = self._bases.get(self._sites[node].partition, 0)
        return Order(
            run=self._run_name,
            number=f"{self._started}-{next(self._numbers)}",
            base=base,
            keep_as=max([base, *map(_trained_round, inner)]),
            kinds=tuple(message.metadata.message_type for message in inner),
        )

    def _tend(self, request: _Request, timeout: float | None) -> str:
        """Send a request, or send it anew; return why that has no use, if it has none."""
        site = self._sites[request.node]
        contact = self.contacts[site.name]
        if not contact.online:
            since = time.time() - contact.seen
            recent = contact.answered and not contact.reason
            waited_for = (recent or request.sends) and since < self._grace
            return "" if waited_for else "the site is offline"
        if request.sends and request.activated == contact.activated:
            return ""
        if request.sends >= _MOST_SENDS:
            return f"the site's process ended {request.sends} times while it held this message"
        if request.sends:
            log(INFO, "site %s started anew and is asked again", site.name)
        message = Message(
            request.order.pack([one.content for one in request.asked]),
            dst_node_id=request.node,
            message_type=MESSAGE_TYPE,
            ttl=timeout,
            group_id=str(request.order.keep_as),
        )
        request.sends += 1
        request.activated = contact.activated
        request.ids |= {key for key in self._grid.push_messages([message]) if key}
        return ""

    def _look_for_replies(self, requests: Sequence[_Request]) -> dict[int, Outcome]:
        by_id = {key: request for request in requests for key in request.ids}
        if not by_id:
            return {}
        found: dict[int, Outcome] = {}
        for reply in self._grid.pull_messages(list(by_id)):
            request = by_id[reply.metadata.reply_to_message_id]
            if reply.metadata.reply_to_message_id not in request.ids:
                continue  # it has been asked for something else since
            request.ids.discard(reply.metadata.reply_to_message_id)
            if reply.has_error() and reply.error.code == ErrorCode.NODE_UNAVAILABLE:
                continue  # it may come back: the nodes are looked at anyway
            if request.node not in found and (outcome := self._answered(request, reply)):
                found[request.node] = outcome
        return found

    def _answered(self, request: _Request, reply: Message) -> Outcome | None:
        """Return what a node replied to each message; None where it is to be asked again."""
        site = self._sites[request.node]
        if reply.has_error():
            return self._failed(request, reply.error.reason or f"error {reply.error.code}")
        try:
            answer, contents = Answer.unpack(reply.content, len(request.asked))
            if answer.lost:
                return self._anew(request)
            if answer.kept not in (None, request.order.keep_as):
                raise ReplyError(f"the site keeps its state as of round {answer.kept}")
        except (ReplyError, *MALFORMED) as error:
            return self._failed(request, f"{type(error).__name__}: {error}")
        if answer.kept is not None:
            self._bases[site.partition] = answer.kept
            self._changed.add(site.partition)
        contact = self.contacts[site.name]
        contact.answered = contact.seen = time.time()
        contact.failures += bool(answer.errors)
        contact.reason = "; ".join(sorted({e.reason or "" for e in answer.errors.values()}))
        answers = {
            id(message): answer.errors.get(place, content)
            for place, (message, content) in enumerate(zip(request.asked, contents, strict=True))
        }
        lost = Error(ErrorCode.NODE_UNAVAILABLE, "the site's state is lost")
        return [answers.get(id(message), lost) for message in request.inner]

    def _anew(self, request: _Request) -> Outcome | None:
        """Let a site whose state is gone, with its disk for instance, train without one.

        It has no model that could be evaluated until then.
        """
        site, base = self._sites[request.node], request.order.base
        if not base:
            return self._failed(request, "the site misses a state that it was not asked for")
        reason = f"its state of round {base} is lost, it starts anew"
        self._bases.pop(site.partition, None)
        self._changed.discard(site.partition)
        left = [m for m in request.asked if m.metadata.message_type != MessageType.EVALUATE]
        if not left:
            return self._failed(request, reason)
        contact = self.contacts[site.name]
        contact.failures += 1
        log(WARNING, "site %s: %s", site.name, reason)
        request.asked, request.order = left, self._order(request.node, left)
        request.ids.clear()
        request.activated = ""  # so that it is asked again
        return None

    def _failed(self, request: _Request, reason: str) -> Outcome:
        site = self._sites[request.node]
        contact = self.contacts[site.name]
        contact.failures += 1
        contact.reason = reason
        log(WARNING, "site %s: %s", site.name, reason)
        return [Error(ErrorCode.NODE_UNAVAILABLE, reason) for _ in request.inner]

    def _look_at_nodes(self) -> None:
        """Find out which sites are there."""
        self._looked = time.monotonic()
        online = {node.node_id: node for node in self._grid.get_nodes() if node.status == _ONLINE}
        for node, site in self._sites.items():
            contact = self.contacts[site.name]
            contact.online = node in online
            if contact.online:
                contact.seen = time.time()
                contact.activated = online[node].last_activated_at

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes of the sites that are online, in the order of their partitions."""
        if time.monotonic() - self._looked >= _LOOK_SECONDS:
            self._look_at_nodes()
            self._told(self.contacts)
        nodes = [node for node, site in self._sites.items() if self.contacts[site.name].online]
        return sorted(nodes, key=lambda node: self._sites[node].partition)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Forward to the grid behind."""
        return self._grid.get_nodes()

    @property
    def run(self) -> Run:
        """The run of the grid behind."""
        return self._grid.run

    def set_run(self, run: Run) -> None:
        """Do nothing: the grid behind has its run."""

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message; part of Flower's interface, ``Message(...)`` does the same."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Forward to the grid behind."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Forward to the grid behind."""
        return self._grid.pull_messages(message_ids)


def _trained_round(message: Message) -> int:
    """Return the round that a message trains for; 0 where it is about something else."""
    if message.metadata.message_type != MessageType.TRAIN:
        return 0
    return round_of(message.content)
