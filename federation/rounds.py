"""The round loop: cohort, messages, checked replies, aggregate, metrics, checkpoint.

Flower's own ``Strategy.start`` begins at round 1 and keeps only aggregates; this loop drives the
same strategies, resumes, orders replies by partition before anything is summed, and records every
client of every round.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from flwr.app import ArrayRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from federation.asynchrony import Flight, VirtualClock, carried_over
from federation.cohort import CohortGrid, discover, draw_cohort
from federation.experiment import Experiment
from federation.faults import Faults
from federation.figures import client_lines, round_line, summarise
from federation.learners import LEARNERS
from federation.privacy.accountant import spent
from federation.records import to_arrays
from federation.replies import Exchanged
from federation.run_directory import Checkpoint, KeepsClientStates, Line, RunDirectory
from federation.scores import SCORES, Score
from federation.strategies import ALGORITHMS, Facts
from federation.strategies.base import KeepsState
from federation.strategies.weights import LearnedWeights, first_weights
from graphcl.errors import FederationError


@runtime_checkable
class DefersMessages(Protocol):
    """A grid on which messages can wait, and go out with the next ones to the same nodes."""

    def defer(self, messages: list[Message], then: Callable[[list[Message]], None]) -> None:
        """Keep messages back; their replies go to a function before others are handed out."""

    def settle(self, timeout: float | None) -> None:
        """Send what still waits."""


@runtime_checkable
class ReducesReplies(Protocol):
    """A grid that may check training replies and add up their arrays before it hands them out."""

    def reduces(self, messages: Sequence[Message]) -> bool:
        """Say whether it does so with the replies to these messages."""


@dataclass(frozen=True)
class _Round:
    """A round whose aggregate is there and whose evaluation may be under way."""

    grid: Grid
    server_round: int
    train: Exchanged
    arrays: ArrayRecord
    state: RecordDict
    changed: dict[int, bytes] | None
    told: Line

    def close(
        self,
        run: RunDirectory,
        evaluation: Exchanged | None,
        scores: Sequence[Score],
        seconds: float,
    ) -> None:
        """Put the round on record."""
        line = round_line(self.server_round, self.train, evaluation, scores, seconds) | self.told
        run.record([*client_lines(self.server_round, self.train, evaluation, scores), line])
        stored = run.checkpoint(self.server_round, self.arrays, self.state, self.changed)
        if stored is not None and isinstance(self.grid, KeepsClientStates):
            self.grid.rest_client_states(stored)


def federate(grid: Grid, experiment: Experiment, run: RunDirectory) -> None:
    """Run all rounds of an experiment, or those that are left of it.

    Raises:
        FederationError: If nodes are missing, or fewer than ``run.min_success`` of a cohort
            succeed, under masking any fewer than all; the last complete round stays in the
            checkpoint.
    """
    # Before nodes say hello, when each draws the key that its state must hold from then on.
    checkpoint = _restore(grid, experiment, run)
    facts = discover(grid, experiment)
    scores = SCORES[experiment.task.name]
    strategy = ALGORITHMS[experiment.strategy.name].strategy(experiment, facts)
    faults = Faults(experiment, facts)
    clock = VirtualClock(experiment, facts.samples)
    overtakes = experiment.asynchronous and "arrays" in ALGORITHMS[experiment.strategy.name].sends
    learned = LearnedWeights(experiment, facts) if overtakes else None
    arrays, first = _begin(experiment, facts, strategy, faults, clock, checkpoint)
    for server_round in range(first, experiment.run.rounds + 1):
        started = time.perf_counter()
        run.releasing(server_round)
        train = _train(
            grid, experiment, facts, strategy, faults, clock, server_round, arrays, learned
        )
        if train.success < (1.0 if experiment.masked else experiment.run.min_success):
            run.record(client_lines(server_round, train, None, scores))
            raise FederationError(_too_few(server_round, train, experiment))
        aggregated, _ = strategy.aggregate_train(server_round, train.good)
        arrays = arrays if aggregated is None else aggregated
        done = _Round(
            grid,
            server_round,
            train,
            arrays,
            RecordDict({**_strategy_state(strategy), **faults.state(), **clock.state()}),
            grid.take_client_states() if isinstance(grid, KeepsClientStates) else None,
            {"virtual_seconds": clock.now} if experiment.asynchrony.timed else {},
        )
        _evaluate(grid, experiment, facts, strategy, run, done, started)
    if isinstance(grid, DefersMessages):
        grid.settle(experiment.run.timeout or None)
    server = RecordDict({"arrays": arrays, **_strategy_state(strategy)})
    summary = summarise(experiment, run.lines()) | spent(experiment, run.releases())
    run.finish(summary, server)


def _train(
    grid: Grid,
    experiment: Experiment,
    facts: Facts,
    strategy: Strategy,
    faults: Faults,
    clock: VirtualClock,
    server_round: int,
    arrays: ArrayRecord,
    learned: LearnedWeights | None,
) -> Exchanged:
    """Let clients train; keep the replies that may enter the aggregate."""
    algorithm = ALGORITHMS[experiment.strategy.name]

    def messages(cohort: Sequence[int]) -> dict[int, Message]:
        """Return what a cohort is sent now, by partition."""
        members = set(cohort)
        nodes = [node for node, partition in facts.nodes.items() if partition in members]
        shown = CohortGrid(grid, nodes)
        made = strategy.configure_train(server_round, arrays, facts.config(), shown)
        return {facts.nodes[message.metadata.dst_node_id]: message for message in made}

    if experiment.asynchronous:
        flights = clock.fill_buffer(
            server_round, lambda began: {p: m.content for p, m in messages(began).items()}
        )
        cohort = [flight.partition for flight in flights]
        sent = _renewed(flights, facts)
    else:
        flights, cohort = [], draw_cohort(experiment, server_round)
        clock.wait_for(cohort)
        sent = list(messages(cohort).values())
    train = Exchanged(
        grid,
        facts,
        cohort,
        experiment.run.timeout,
        faults=faults.of_round(server_round),
        staleness={flight.partition: server_round - flight.began for flight in flights},
        reduced=isinstance(grid, ReducesReplies) and grid.reduces(sent),
    )
    train.send(sent)
    train.check_training(
        algorithm.sends,
        lambda content: algorithm.check_reply(content, arrays, experiment, facts),
    )
    if learned is not None:
        _carry_over(train, {f.partition: f for f in flights}, arrays, experiment, learned)
    return train


def _renewed(flights: Sequence[Flight], facts: Facts) -> list[Message]:
    """Return the messages of clients at work; one that was made long ago would have expired."""
    nodes = {partition: node for node, partition in facts.nodes.items()}
    return [
        Message(f.content, dst_node_id=nodes[f.partition], message_type=MessageType.TRAIN)
        for f in flights
    ]


def _carry_over(
    train: Exchanged,
    flights: Mapping[int, Flight],
    arrays: ArrayRecord,
    experiment: Experiment,
    learned: LearnedWeights,
) -> None:
    """Turn weights that others overtook into the same move from the weights of now."""
    for reply in train.good:
        partition = train.facts.nodes[reply.metadata.src_node_id]
        if overtaken := train.staleness.get(partition, 0):
            reply.content["arrays"] = carried_over(
                reply.content.array_records["arrays"],
                flights[partition].content.array_records["arrays"],
                arrays,
                (1 + overtaken) ** -experiment.asynchrony.staleness,
                learned,
            )


def _evaluate(
    grid: Grid,
    experiment: Experiment,
    facts: Facts,
    strategy: Strategy,
    run: RunDirectory,
    done: _Round,
    started: float,
) -> None:
    """Let all clients evaluate, in the rounds in which that is due, and close the round."""
    scores, timeout = SCORES[experiment.task.name], experiment.run.timeout
    last = done.server_round == experiment.run.rounds
    if done.server_round % experiment.run.evaluate_every and not last:
        done.close(run, None, scores, time.perf_counter() - started)
        return
    evaluation = Exchanged(grid, facts, list(facts.nodes.values()), timeout)
    messages = evaluation.outgoing(
        strategy.configure_evaluate(done.server_round, done.arrays, facts.config(), evaluation.grid)
    )

    def close(replies: Iterable[Message], seconds: float) -> None:
        evaluation.take(replies)
        evaluation.check_evaluation(scores)
        done.close(run, evaluation, scores, seconds)

    if isinstance(grid, DefersMessages):
        seconds = time.perf_counter() - started
        grid.defer(messages, lambda replies: close(replies, seconds))
    else:
        replies = grid.send_and_receive(messages, timeout=timeout or None)
        close(replies, time.perf_counter() - started)


def _restore(grid: Grid, experiment: Experiment, run: RunDirectory) -> Checkpoint | None:
    """Return the last checkpoint, if there is one, and give the clients back what they kept."""
    checkpoint = run.resume()
    if checkpoint and ALGORITHMS[experiment.strategy.name].exchange.keeps(experiment):
        if checkpoint.clients is None or not isinstance(grid, KeepsClientStates):
            raise FederationError(
                f"{run.path}: '{experiment.strategy.name}' keeps weights on the clients, and "
                "Flower's engine kept them out of the checkpoint; start the run anew, on the "
                "engine local or ray if it must be resumable"
            )
        grid.put_client_states(checkpoint.clients)
    return checkpoint


def _begin(
    experiment: Experiment,
    facts: Facts,
    strategy: Strategy,
    faults: Faults,
    clock: VirtualClock,
    checkpoint: Checkpoint | None,
) -> tuple[ArrayRecord, int]:
    """Return the arrays and the number of the first round to run."""
    if checkpoint is None:
        return _initial_arrays(experiment, facts), 1
    faults.load_state(checkpoint.strategy)
    clock.load_state(checkpoint.strategy)
    if isinstance(strategy, KeepsState):
        strategy.load_state(checkpoint.strategy)
    return checkpoint.arrays, checkpoint.server_round + 1


def _initial_arrays(experiment: Experiment, facts: Facts) -> ArrayRecord:
    if "arrays" not in ALGORITHMS[experiment.strategy.name].sends:
        return ArrayRecord()
    learner_type = LEARNERS[experiment.task.name]
    model = learner_type.build(experiment, "server", facts.channels, facts.num_classes)
    return to_arrays(first_weights(model, experiment))


def _strategy_state(strategy: Strategy) -> RecordDict:
    return strategy.state() if isinstance(strategy, KeepsState) else RecordDict()


def _too_few(server_round: int, train: Exchanged, experiment: Experiment) -> str:
    reasons = "; ".join(f"client {p}: {why}" for p, why in sorted(train.reasons.items())[:3])
    if experiment.masked:
        return (
            f"round {server_round}: {len(train.good)} of {len(train.cohort)} clients succeeded "
            f"({reasons}); under privacy.masking all must, since the masks of the others cancel "
            "with theirs alone, and nobody holds a share of a client's key to make up for it; mend "
            "the clients and resume, or switch masking off in a new run"
        )
    return (
        f"round {server_round}: {len(train.good)} of {len(train.cohort)} clients succeeded, below "
        f"run.min_success = {experiment.run.min_success:g} ({reasons}); mend the clients and "
        "resume, or lower run.min_success"
    )
