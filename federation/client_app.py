"""The Flower ClientApp: the same for simulation and edge nodes, whatever carries its messages.

A message is answered from three things: its content, the node's context, and the experiment in
the run's configuration. What a personal algorithm keeps on the node lies in the context's state,
written only after a message was answered, so that a failed round leaves no trace.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from logging import ERROR

import torch
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.common.logger import log
from torch import Tensor

from federation.experiment import Experiment, Scalar, load_experiment
from federation.learners import LEARNERS, ImageLearner, NodeLearner
from federation.learners.base import clear_benches, copied
from federation.privacy.masking import hide, new_key
from federation.records import check_finite, pack, round_of, unpack
from federation.strategies import ALGORITHMS, Exchange
from federation.together import fit_together
from graphcl.errors import FederationError, GraphCLError
from graphcl.training import seed_everything

app = ClientApp()

# In which a site need not have agreed: where things lie, and how long to wait for whom.
_INCIDENTAL = (
    *("run.name", "run.directory", "run.compare", "run.timeout", "run.min_success"),
    *("data.root", "simulation.cpus_per_client"),
)
LEARNER = "learner"  # the record in which an exchange's state lies


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Tell the server which partition this node holds and what its data look like."""

    def answer() -> RecordDict:
        experiment, partition = _seen_by(context)
        facts = _build(experiment, partition).learner.facts() | {"partition-id": partition}
        content = RecordDict({"facts": MetricRecord(dict(facts))})
        if experiment.masked:
            content["masking"] = ConfigRecord({"public": new_key(context.state)})
        return content

    return _answer(message, context, answer)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train for one round and reply with what the algorithm sends up."""

    def answer() -> RecordDict:
        with exchange_of(context, keep=True) as exchange:
            started = time.perf_counter()
            server_round = round_of(message.content)
            partition = int(context.node_config["partition-id"])
            _check_names(exchange, message)
            exchange.receive(message.content)
            seed_everything(exchange.experiment.run.seed, "fit", server_round, partition)
            terms = exchange.learner.fit(exchange.penalty)
            content = exchange.reply()
            if exchange.experiment.masked:
                clients = exchange.experiment.partition.clients
                hide(content, message.content, context.state, partition, clients)
            seconds = time.perf_counter() - started
            content["metrics"] = _told(exchange, partition, terms["loss"], seconds)
        return content

    return _answer(message, context, answer)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the node's model on its own validation and test samples."""

    def answer() -> RecordDict:
        with exchange_of(context, keep=False) as exchange:
            _check_names(exchange, message)
            exchange.receive(message.content)
            metrics = exchange.learner.evaluate(exchange.predict)
        told = {"partition-id": int(context.node_config["partition-id"]), **metrics}
        return RecordDict({"metrics": MetricRecord(dict(told))})

    return _answer(message, context, answer)


def _check_names(exchange: Exchange, message: Message) -> None:
    """Refuse weights whose inputs are called otherwise, or come in another order, than here."""
    told: Mapping[str, object] = message.content.config_records.get("config", {})
    names = [name for name in told if name.endswith("-names")]
    own = exchange.learner.facts() if names else {}
    for name in names:
        if told[name] != own.get(name):
            raise FederationError(
                f"the {name} of this node are not those of the others, or stand in another order: "
                "where weights are averaged, each must have the same place everywhere"
            )


def train_together(messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
    """Answer training messages of several clients at once, see :mod:`federation.together`."""
    started = time.perf_counter()
    replies: dict[int, Message] = {}
    ready: list[tuple[int, Exchange, NodeLearner, dict[str, Tensor]]] = []
    for position, (message, context) in enumerate(zip(messages, contexts, strict=True)):
        try:
            exchange = _exchange(context)
            learner = exchange.learner
            assert isinstance(learner, NodeLearner)  # noqa: S101 - a combination of keys says so
            _recall(exchange, context)
            exchange.receive(message.content)
            ready.append((position, exchange, learner, copied(learner.state())))
        except Exception as error:
            replies[position] = _failed(message, context, error)
    exchanges = [entry[1] for entry in ready]
    try:
        trained = fit_together(
            [entry[2] for entry in ready],
            [entry[3] for entry in ready],
            lambda out, owners: type(exchanges[0]).penalties(exchanges, out, owners),
        )
    except Exception as error:  # nobody knows whose it is
        trained = [GraphCLError(f"{type(error).__name__}: {error}") for _ in ready]
    seconds = (time.perf_counter() - started) / len(messages)
    for (position, exchange, learner, _), result in zip(ready, trained, strict=True):
        message, context = messages[position], contexts[position]
        try:
            if isinstance(result, GraphCLError):
                raise result
            state, loss = result
            learner.take_bench()
            learner.load_state(state)
            partition = int(context.node_config["partition-id"])
            server_round = round_of(message.content)
            # As alone, where nothing was drawn in training: noise on the reply is.
            seed_everything(exchange.experiment.run.seed, "fit", server_round, partition)
            content = exchange.reply()
            content["metrics"] = _told(exchange, partition, loss, seconds)
            _remember(exchange, context, keep=True)
            replies[position] = Message(content, reply_to=message)
        except Exception as error:
            replies[position] = _failed(message, context, error)
    return [replies[position] for position in range(len(messages))]


def _told(exchange: Exchange, partition: int, loss: float, seconds: float) -> MetricRecord:
    """Return what a training reply tells beside what the algorithm sends up."""
    metrics = {
        "partition-id": partition,
        "num-examples": exchange.learner.facts()["num-examples"],
        "loss": loss,
        "seconds": seconds,
    }
    return MetricRecord(dict(metrics))


def _answer(message: Message, context: Context, answer: Callable[[], RecordDict]) -> Message:
    """Answer a message, or say in an error reply what went wrong."""
    try:
        return Message(answer(), reply_to=message)
    except Exception as error:
        return _failed(message, context, error)


def _failed(message: Message, context: Context, error: Exception) -> Message:
    """Return the reply of a node that met an error, which must not take the federation down."""
    reason = f"{type(error).__name__}: {error}"  # the server records it
    log(ERROR, "client %s failed: %s", context.node_config.get("partition-id"), reason)
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=reason), reply_to=message)


def _partition(context: Context, experiment: Experiment) -> int:
    try:
        partition = int(context.node_config["partition-id"])
    except KeyError:
        raise FederationError(
            "this node has no 'partition-id'; start its SuperNode with "
            '--node-config "partition-id=0 num-partitions=N"'
        ) from None
    clients = experiment.partition.clients
    if not 0 <= partition < clients:
        raise FederationError(
            f"this node's 'partition-id' is {partition}; with partition.clients = {clients} it "
            f"must lie in 0..{clients - 1}"
        )
    return partition


@contextmanager
def exchange_of(context: Context, keep: bool) -> Iterator[Exchange]:
    """Bring the node's learner to the state in its context; write it back if asked."""
    exchange = _exchange(context)
    _recall(exchange, context)
    yield exchange
    _remember(exchange, context, keep)


def _recall(exchange: Exchange, context: Context) -> None:
    """Bring a learner at the workbench to the state in its node's context, if it keeps one."""
    learner, stored = exchange.learner, context.state.array_records.get(LEARNER)
    # The learner still holds this very state where the last message came to the same process.
    if exchange.keeps(exchange.experiment) and (stored is None or learner.holds is not stored):
        exchange.start() if stored is None else exchange.load_state(unpack(stored))
    learner.holds = None


def _remember(exchange: Exchange, context: Context, keep: bool) -> None:
    """Write a learner's state to its node's context, if it keeps one and is to keep this."""
    learner = exchange.learner
    if not exchange.keeps(exchange.experiment):
        learner.reset_optimizer()  # thousands of clients cannot all hold moments that none reads
        return
    if keep:
        state = exchange.state()
        check_finite(state)  # a node must not keep what it could not recover from
        context.state[LEARNER] = pack(state)
    if keep or not exchange.mixes:
        learner.holds = context.state.array_records.get(LEARNER)


def _exchange(context: Context) -> Exchange:
    """Return the node's exchange, its learner at the workbench in whatever state that is."""
    experiment, partition = _seen_by(context)
    threads = experiment.simulation.cpus_per_client
    if torch.get_num_threads() != threads:  # the number of threads decides the order of sums
        torch.set_num_threads(threads)
    exchange = _build(experiment, partition)
    exchange.learner.take_bench()
    return exchange


def _seen_by(context: Context) -> tuple[Experiment, int]:
    """Return the experiment as a node knows it, and which partition it holds."""
    experiment = experiment_of(context.run_config)
    partition = _partition(context, experiment)
    if config := context.node_config.get("config"):
        _check_agreed(experiment, str(config))
    if data := context.node_config.get("data"):  # on an edge node, where nobody else's data are
        experiment = experiment.at_site(str(data))
    return experiment, partition


def _check_agreed(experiment: Experiment, config: str) -> None:
    """Refuse to take part in another experiment than the one in this node's own file."""
    differ = experiment.differing(_agreed(config), _INCIDENTAL)
    if differ:
        raise FederationError(
            f"this site agreed to another experiment: the run differs in {', '.join(differ)} from "
            f"{config}; give all sites the server's config.toml, once they have agreed to it"
        )


@lru_cache(maxsize=4)
def _agreed(config: str) -> Experiment:
    return load_experiment(config)


_known: list[tuple[dict[str, Scalar], Experiment]] = []


def experiment_of(run_config: dict[str, Scalar]) -> Experiment:
    """Return the experiment in a run's configuration; the last one is known."""
    # Comparing two dictionaries takes a fraction of what hashing one would.
    if not _known or _known[0][0] != run_config:
        _known[:] = [(dict(run_config), Experiment.from_flat(run_config))]
    return _known[0][1]


def forget_learners() -> None:
    """Let go of the models and graphs of earlier runs in this process."""
    _build.cache_clear()
    clear_benches()


@lru_cache(maxsize=512)  # bounds what thousands of clients hold in one process
def _build(experiment: Experiment, partition: int) -> Exchange:
    exchange = ALGORITHMS[experiment.strategy.name].exchange
    learner_type = LEARNERS[experiment.task.name]
    projector = exchange.projector(experiment)
    if issubclass(learner_type, NodeLearner | ImageLearner):
        return exchange(experiment, learner_type(experiment, partition, projector, shared=True))
    return exchange(experiment, learner_type(experiment, partition, projector))
