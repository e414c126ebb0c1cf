"""Where a site's envelopes are opened, answered in order by the ClientApp, and closed again.

The app, the learners and their data stay in this process from message to message.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from logging import ERROR, WARNING
from pathlib import Path

from flwr.app import Context, Error, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.logger import log

from federation.client_app import app, experiment_of
from federation.deploy.envelope import MESSAGE_TYPE, Answer, Order
from federation.deploy.ledger import Answered, Ledger, question_of
from federation.deploy.states import LostStateError, States
from federation.privacy.masking import use_up


@dataclass
class _Held:
    """The state that is in memory."""

    run: str
    server_round: int
    state: RecordDict


class Desk:
    """Answers what the server sends to one site.

    Args:
        folder: Where the site's states are kept.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._held: _Held | None = None
        self._last: tuple[str, RecordDict] | None = None  # number of an order, and its answer

    def answer(self, message: Message, context: Context) -> Message:
        """Return the reply to an envelope; an error in it, or about it, never raises.

        Args:
            message: From the server.
            context: Who the node is, and the run's configuration; its state is not used.
        """
        if message.metadata.message_type != MESSAGE_TYPE:
            return app(message, context)  # a run of Flower's own, without states on the disk
        try:
            order, contents = Order.unpack(message.content)
            if self._last is None or self._last[0] != order.number:
                self._last = order.number, self._work(message, context, order, contents)
            return Message(self._last[1], reply_to=message)
        except LostStateError as error:
            log(WARNING, "%s; the server is told", error)
            return Message(Answer(None, {}, lost=True).pack([]), reply_to=message)
        except Exception as error:
            # The server records the reason; a site must not take the federation down.
            reason = f"{type(error).__name__}: {error}"
            log(ERROR, "could not answer: %s", reason)
            return Message(
                Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=reason), reply_to=message
            )

    def _work(
        self, message: Message, context: Context, order: Order, contents: list[RecordDict]
    ) -> RecordDict:
        states = States(self._folder, order.run)
        state = self._state(states, order)
        before = dict(state)
        own = Context(  # with a copy, so that what fails below leaves no trace
            context.run_id,
            context.node_id,
            context.node_config,
            RecordDict(before),
            context.run_config,
        )
        ledger = Ledger(states.folder, experiment_of(context.run_config))
        use_up(own.state, ledger.masks())
        replies: list[RecordDict] = []
        errors: dict[int, Error] = {}
        made: dict[str, RecordDict] = {}  # replies that must not be made twice
        for place, (kind, content) in enumerate(zip(order.kinds, contents, strict=True)):
            asked = Message(content, context.node_id, kind)
            if kind == MessageType.TRAIN and ledger.watches:
                question = question_of(order.base, content)
                if answered := ledger.answered(question):
                    replies.append(answered.reply)
                    if answered.kept_as is not None:
                        own.state = states.load(answered.kept_as)
                    continue
                ledger.count()
                reply = app(asked, own)
                if not reply.has_error():
                    made[question] = reply.content
            else:
                reply = app(asked, own)
            if reply.has_error():
                errors[place] = reply.error
            elif kind == MessageType.EVALUATE:
                states.keep_evaluated(content, own.state)
            replies.append(RecordDict() if reply.has_error() else reply.content)
        kept = None
        if not _same(own.state, before):
            states.save(order.keep_as, own.state)  # before the server can count on it
            kept = order.keep_as
        for question, content in made.items():
            ledger.keep(question, Answered(content, kept), own.state)
        self._held = _Held(order.run, order.base if kept is None else kept, own.state)
        return Answer(kept, errors).pack(replies)

    def _state(self, states: States, order: Order) -> RecordDict:
        """Return the state that the server wants the site to go on from."""
        held = self._held
        if held is not None and (held.run, held.server_round) == (order.run, order.base):
            return held.state
        return states.load(order.base)


def _same(state: Mapping[str, object], before: Mapping[str, object]) -> bool:
    return state.keys() == before.keys() and all(state[name] is before[name] for name in state)
