"""The Flower ClientApp: the same for simulation and edge nodes, whatever carries its messages.

A message is answered from three things: its content, the node's context, and the experiment in
the run's configuration. What a personal algorithm keeps on the node lies in the context's state,
written only after a message was answered, so that a failed round leaves no trace.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from logging import ERROR

import torch
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.common.logger import log

from federation.experiment import Experiment, Scalar, load_experiment
from federation.learners import LEARNERS
from federation.privacy.masking import hide, new_key
from federation.records import check_finite, to_arrays, to_tensors
from federation.strategies import ALGORITHMS, Exchange
from graphcl.errors import FederationError
from graphcl.training import seed_everything

app = ClientApp()

LEARNER = "learner"  # the record in which an exchange's state lies


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Tell the server which partition this node holds and what its data look like."""

    def answer(exchange: Exchange) -> RecordDict:
        facts = exchange.learner.facts() | {"partition-id": _partition(context)}
        content = RecordDict({"facts": MetricRecord(dict(facts))})
        if exchange.experiment.masked:
            content["masking"] = ConfigRecord({"public": new_key(context.state)})
        return content

    return _answer(message, context, answer, keep=False)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train for one round and reply with what the algorithm sends up."""

    def answer(exchange: Exchange) -> RecordDict:
        started = time.perf_counter()
        server_round = int(message.content.config_records["config"]["server-round"])  # type: ignore[arg-type]
        partition = _partition(context)
        exchange.receive(message.content)
        seed_everything(exchange.experiment.run.seed, "fit", server_round, partition)
        terms = exchange.learner.fit(exchange.penalty)
        content = exchange.reply()
        if exchange.experiment.masked:
            clients = exchange.experiment.partition.clients
            hide(content, message.content, context.state, partition, clients)
        metrics = {
            "partition-id": partition,
            "num-examples": exchange.learner.facts()["num-examples"],
            "loss": terms["loss"],
            "seconds": time.perf_counter() - started,
        }
        content["metrics"] = MetricRecord(dict(metrics))
        return content

    return _answer(message, context, answer, keep=True)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the node's model on its own validation and test samples."""

    def answer(exchange: Exchange) -> RecordDict:
        exchange.receive(message.content)
        metrics = exchange.learner.evaluate(exchange.predict)
        return RecordDict(
            {"metrics": MetricRecord({"partition-id": _partition(context), **metrics})}
        )

    return _answer(message, context, answer, keep=False)


def _answer(
    message: Message, context: Context, answer: Callable[[Exchange], RecordDict], *, keep: bool
) -> Message:
    """Answer a message, or say in an error reply what went wrong."""
    try:
        with exchange_of(context, keep) as exchange:
            return Message(answer(exchange), reply_to=message)
    except Exception as error:
        # A node must not take the federation down; the server records the reason.
        reason = f"{type(error).__name__}: {error}"
        log(ERROR, "client %s failed: %s", context.node_config.get("partition-id"), reason)
        return Message(
            Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=reason), reply_to=message
        )


def _partition(context: Context) -> int:
    try:
        partition = int(context.node_config["partition-id"])
    except KeyError:
        raise FederationError(
            "this node has no 'partition-id'; start its SuperNode with "
            '--node-config "partition-id=0 num-partitions=N"'
        ) from None
    clients = experiment_of(context.run_config).partition.clients
    if not 0 <= partition < clients:
        raise FederationError(
            f"this node's 'partition-id' is {partition}; with partition.clients = {clients} it "
            f"must lie in 0..{clients - 1}"
        )
    return partition


@contextmanager
def exchange_of(context: Context, keep: bool) -> Iterator[Exchange]:
    """Bring the node's learner to the state in its context; write it back if asked."""
    experiment = experiment_of(context.run_config)
    if config := context.node_config.get("config"):
        _check_agreed(experiment, str(config))
    if data := context.node_config.get("data"):  # on an edge node, where nobody else's data are
        experiment = experiment.at_site(str(data))
    threads = experiment.simulation.cpus_per_client
    if torch.get_num_threads() != threads:  # the number of threads decides the order of sums
        torch.set_num_threads(threads)
    exchange = _build(experiment, _partition(context))
    learner = exchange.learner
    stored = context.state.array_records.get(LEARNER)
    # The learner still holds this very state where the last message came to the same process.
    keeps = exchange.keeps(experiment)
    if keeps and (stored is None or learner.holds is not stored):
        exchange.start() if stored is None else exchange.load_state(to_tensors(stored))
    learner.holds = None
    yield exchange
    if keeps:
        if keep:
            state = exchange.state()
            for name, tensor in state.items():
                check_finite(name, tensor)  # a node must not keep what it could not recover from
            context.state[LEARNER] = stored = to_arrays(state)
        learner.holds = stored if keep or not exchange.mixes else None
    else:
        learner.reset_optimizer()  # thousands of clients cannot all hold moments that none reads


def _check_agreed(experiment: Experiment, config: str) -> None:
    """Refuse to take part in another experiment than the one in this node's own file."""
    differ = experiment.differing(_agreed(config))
    if differ:
        raise FederationError(
            f"this site agreed to another experiment: the run differs in {', '.join(differ)} from "
            f"{config}; give all sites the server's config.toml, once they have agreed to it"
        )


@lru_cache(maxsize=4)
def _agreed(config: str) -> Experiment:
    return load_experiment(config)


def experiment_of(run_config: dict[str, Scalar]) -> Experiment:
    """Return the experiment in a run's configuration."""
    return _experiment_of(tuple(sorted(run_config.items())))


@lru_cache(maxsize=4)
def _experiment_of(items: tuple[tuple[str, Scalar], ...]) -> Experiment:
    return Experiment.from_flat(dict(items))


def forget_learners() -> None:
    """Let go of the models and graphs of earlier runs in this process."""
    _build.cache_clear()


@lru_cache(maxsize=512)  # bounds what thousands of clients hold in one process
def _build(experiment: Experiment, partition: int) -> Exchange:
    exchange = ALGORITHMS[experiment.strategy.name].exchange
    learner_type = LEARNERS[experiment.task.name]
    learner = learner_type(experiment, partition, exchange.projector(experiment))
    return exchange(experiment, learner)
