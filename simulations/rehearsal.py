"""One round of one site in memory: what its data are, and all that would leave it.

The site runs the very ClientApp that it runs in a federation, and the server's half is the very
strategy, shown this one node; no network, no file but the site's own.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from federation.client_app import exchange_of
from federation.experiment import Experiment
from federation.learners import LEARNERS
from federation.privacy.accountant import spent
from federation.privacy.masking import new_key
from federation.privacy.statement import Statement, statement
from federation.records import num_bytes, to_arrays
from federation.strategies import ALGORITHMS, Facts
from federation.strategies.weights import first_weights
from graphcl.errors import DataError
from simulations.carriers.local import LocalGrid

# What an entry is, and what of the site's data it was computed from. The first that fits counts.
_MEANINGS = (
    ("*/*/partition-id", "which site this is", "nothing"),
    ("hello/facts/num-examples", "number of training samples", "data"),
    ("hello/facts/num-classes", "number of classes over all sites", "nothing"),
    ("hello/facts/*-channels", "width of the input", "data"),
    ("hello/facts/*-names", "hash of the names of the features", "data"),
    ("hello/masking/public", "public half of a key for masks, drawn anew", "nothing"),
    ("train/metrics/num-examples", "number of training samples", "data"),
    ("train/metrics/loss", "mean training loss of the last epoch", "data and labels"),
    ("train/metrics/seconds", "how long training took", "nothing"),
    ("train/prototypes/words", "prototypes and their weights under masks", "data and labels"),
    ("train/prototypes/classes", "which classes the site holds", "labels"),
    ("train/prototypes/support", "number of samples of each class", "labels"),
    ("train/prototypes/values", "mean embedding of each class", "data and labels"),
    ("train/prototypes/fisher", "how much each channel matters to a class", "data and labels"),
    ("train/codebook/support", "how often each row is the best match", "data"),
    ("train/codebook/prototypes", "codebook after training", "data"),
    ("train/*/*scale.*", "mean or deviation of the inputs", "data"),
    ("train/*/*", "weight after training", "data and labels"),
    ("evaluate/metrics/*-examples", "number of examples that are scored", "data"),
    ("evaluate/metrics/*", "score on the site's own examples", "data and labels"),
)


@dataclass(frozen=True)
class Entry:
    """One named value of a reply.

    Attributes:
        record: The record that holds it.
        name: Its name there.
        shape: Its shape; empty for a number.
        dtype: The type of its numbers.
        bytes: Its size, without its name.
        meaning: What it is.
        source: What of the site's data it was computed from: nothing, data, labels, or both.
    """

    record: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    meaning: str
    source: str


@dataclass(frozen=True)
class Reply:
    """All that leaves in answer to one message.

    Attributes:
        message: ``hello``, ``train`` or ``evaluate``.
        bytes: Its size on the wire, names and all.
        entries: What is in it.
    """

    message: str
    bytes: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Rehearsal:
    """What a site found in its data, and what would leave it.

    Attributes:
        facts: What the site tells before the first round.
        replies: One to each kind of message.
        least_support: Fewest samples behind a mean that leaves; None where none does.
        statement: What the experiment protects, and what it leaves open.
    """

    facts: dict[str, int]
    replies: tuple[Reply, ...]
    least_support: int | None
    statement: Statement


class OneNode(LocalGrid):
    """The grid of one site: the strategy sees no other.

    Args:
        experiment: The federation's.
        partition: Which one this is.
        data: Its own file or folder; without, all data are where the experiment says.
    """

    def __init__(self, experiment: Experiment, partition: int, data: str | None):
        super().__init__(experiment)
        self.node = partition + 1
        if data is not None:
            self.contexts[partition].node_config["data"] = data

    def get_node_ids(self) -> Iterable[int]:
        """Return this one."""
        return [self.node]

    def ask(self, message: Message) -> RecordDict:
        """Return what the site answers.

        Raises:
            DataError: If it cannot.
        """
        [reply] = self.send_and_receive([message])
        if reply.has_error():
            raise DataError(f"the site could not answer: {reply.error.reason}")
        return reply.content


def rehearse(experiment: Experiment, data: str, partition: int = 0) -> Rehearsal:
    """Check a site's data, and let it answer hello, train and evaluate once.

    Args:
        experiment: The federation's.
        data: The site's file or folder.
        partition: Which partition the site holds.

    Raises:
        ConfigError, DataError: If the data do not fit their format or the experiment.
    """
    grid = OneNode(experiment, partition, data)
    with exchange_of(grid.contexts[partition], keep=False) as exchange:
        facts = exchange.learner.facts()
    hello = grid.ask(Message(RecordDict(), grid.node, f"{MessageType.QUERY}.hello"))
    algorithm = ALGORITHMS[experiment.strategy.name]
    told = facts_of(experiment, partition, facts, hello)
    arrays = to_arrays({})
    if "arrays" in algorithm.sends:
        learner = LEARNERS[experiment.task.name]
        model = learner.build(experiment, "server", told.channels, told.num_classes)
        arrays = to_arrays(first_weights(model, experiment))
    strategy = algorithm.strategy(experiment, told)
    [message] = strategy.configure_train(1, arrays, ConfigRecord(), grid)
    train = grid.ask(message)
    algorithm.check_reply(train, arrays, experiment, told)
    [message] = strategy.configure_evaluate(1, arrays, ConfigRecord(), grid)
    evaluate = grid.ask(message)
    contents = {"hello": hello, "train": train, "evaluate": evaluate}
    return Rehearsal(
        facts=facts,
        replies=tuple(_reply(kind, content) for kind, content in contents.items()),
        least_support=_least_support(train),
        statement=statement(
            experiment, spent(experiment, list(range(1, experiment.run.rounds + 1)))
        ),
    )


def facts_of(
    experiment: Experiment, partition: int, told: dict[str, int], hello: RecordDict | None = None
) -> Facts:
    """Return what the server would know, were all sites like this one.

    Args:
        experiment: The federation's.
        partition: Which one this is.
        told: What its learner says of its data.
        hello: Its answer to hello, of which training under masks needs the key.
    """
    keys: dict[int, bytes] = {}
    if experiment.masked and hello is not None:
        others = range(experiment.partition.clients)
        keys = {other: new_key(RecordDict()) for other in others}
        keys[partition] = bytes(hello.config_records["masking"]["public"])  # type: ignore[arg-type]
    return Facts(
        nodes={partition + 1: partition},
        channels={name: width for name, width in told.items() if name.endswith("-channels")},
        num_classes=told["num-classes"],
        public_keys=keys,
    )


def _reply(kind: str, content: RecordDict) -> Reply:
    entries = tuple(_entries(kind, content))
    return Reply(kind, num_bytes(content), entries)


def _entries(kind: str, content: RecordDict) -> Iterator[Entry]:
    for record, held in content.items():
        for name, value in held.items():
            meaning, source = _meaning(f"{kind}/{record}/{name}")
            yield Entry(record, name, *_form(value), meaning, source)


def _form(value: Any) -> tuple[tuple[int, ...], str, int]:
    """Return shape, type and bytes of what a record holds."""
    if hasattr(value, "numpy"):
        array = value.numpy()
        return array.shape, str(array.dtype), array.nbytes
    if isinstance(value, bytes):
        return (len(value),), "bytes", len(value)
    return (), type(value).__name__, 8


def _meaning(path: str) -> tuple[str, str]:
    for pattern, meaning, source in _MEANINGS:
        if fnmatch(path, pattern):
            return meaning, source
    raise AssertionError(f"nobody said what {path} is")


def _least_support(train: RecordDict) -> int | None:
    """Return how many samples are behind the mean with the fewest, where means leave."""
    supports: Sequence[int] = ()
    if "prototypes" in train.array_records and "support" in train.array_records["prototypes"]:
        supports = train.array_records["prototypes"]["support"].numpy().tolist()
    return min(supports, default=None)
