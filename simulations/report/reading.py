"""A run directory as values: what the files hold, checked, and nothing else.

A run that was killed is read as far as it came: no ``summary.json``, and perhaps half a last line
of metrics.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from federation.experiment import Experiment, load_experiment
from federation.partition import PartitionReport
from federation.privacy.accountant import spent
from federation.privacy.statement import Statement, statement
from federation.run_directory import RunDirectory
from federation.scores import SCORES, Score
from federation.tables import WEIGHT_STRATEGIES
from graphcl.errors import ConfigError, FederationError
from simulations.report.units import percent

_UNITS = {"images": "images", "outages": "locations", "forecast": "sensors", "recommend": "users"}
_LINKS = {"recommend": "events"}
_CLASSES_NOTES = {
    "outages": "A location's class is the worst severity of its outages in the training events.",
    "recommend": "An event's class is the category of its item.",
}


@dataclass(frozen=True)
class ClientLine:
    """One client in one round, as in ``metrics.jsonl``; it has no scores where it failed."""

    kind: Literal["client"]
    round: int
    partition: int
    status: Literal["ok", "failed", "idle"]
    reason: str = ""
    evaluation: str = ""
    fault: str = ""
    test_examples: int | None = None
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundLine:
    """One round over all clients, as in ``metrics.jsonl``; no scores if it was not evaluated."""

    kind: Literal["round"]
    round: int
    ok: int
    failed: int
    bytes_down: int
    bytes_up: int
    seconds: float
    virtual_seconds: float | None = None
    loss: float | None = None
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """A client that did not count, and why.

    Attributes:
        strategy: Under which strategy.
        round: In which round.
        client: Which client.
        phase: ``training`` or ``evaluation``.
        reason: As the federation recorded it.
    """

    strategy: str
    round: int
    client: int
    phase: str
    reason: str


@dataclass(frozen=True)
class StrategyRun:
    """What one strategy did.

    Attributes:
        name: The strategy.
        score: What it is judged by, at the round that is best by the same on validation examples.
        planned: Number of rounds it was to run.
        rounds: The complete rounds, ascending.
        clients: Every client of every round.
        digest: The digest of the result; None while unfinished.
        spent: ε and δ so far, where there is noise.
        claims: What is protected and what is not.
    """

    name: str
    score: Score
    planned: int
    rounds: tuple[RoundLine, ...]
    clients: tuple[ClientLine, ...]
    digest: str | None
    spent: dict[str, float]
    claims: Statement

    @property
    def finished(self) -> bool:
        """Whether it came to its end."""
        return self.digest is not None

    @cached_property
    def evaluated(self) -> tuple[RoundLine, ...]:
        """The rounds that have the score, on test and on validation examples."""
        needed = {self.score.key, self.score.val_key}
        return tuple(line for line in self.rounds if needed <= set(line.scores))

    @cached_property
    def trained(self) -> tuple[RoundLine, ...]:
        """The rounds that have a training loss: some client succeeded."""
        return tuple(line for line in self.rounds if line.loss is not None)

    @cached_property
    def best(self) -> RoundLine | None:
        """The first round with the best score on validation examples."""
        rank, name = self.score.rank, self.score.val_key
        return max(
            self.evaluated, key=lambda line: (rank(line.scores[name]), -line.round), default=None
        )

    @property
    def final(self) -> RoundLine | None:
        """The last round that was evaluated."""
        return self.evaluated[-1] if self.evaluated else None

    @cached_property
    def client_scores(self) -> dict[int, float]:
        """The score of every client that has test examples at the best round, by partition."""
        name = self.score.key
        return {
            line.partition: line.scores[name]
            for line in self.clients
            if self.best
            and line.round == self.best.round
            and line.test_examples
            and name in line.scores
        }

    @property
    def worst_client(self) -> tuple[float, int] | None:
        """The worst score of a client at the best round, and the first partition that has it."""
        pairs = ((value, client) for client, value in self.client_scores.items())
        return min(pairs, key=lambda pair: (self.score.rank(pair[0]), pair[1]), default=None)

    @property
    def bytes_up(self) -> int:
        """What the clients sent in training."""
        return sum(line.bytes_up for line in self.rounds)

    @property
    def bytes_down(self) -> int:
        """What the server sent in training."""
        return sum(line.bytes_down for line in self.rounds)

    @property
    def seconds(self) -> float:
        """Time of all rounds."""
        return sum(line.seconds for line in self.rounds)

    @cached_property
    def faults(self) -> Mapping[str, int]:
        """How often every fault of the plan befell a client's training, by name."""
        return Counter(fault for line in self.clients for fault in line.fault.split(", ") if fault)

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Every client that did not count, with its reason, in the order of the rounds."""
        return tuple(
            Failure(self.name, line.round, line.partition, phase, reason)
            for line in self.clients
            for phase, reason in (("training", line.reason), ("evaluation", line.evaluation))
            if reason
        )


@dataclass(frozen=True)
class Absent:
    """A strategy that was to be compared and left no run.

    Attributes:
        name: The strategy.
        status: ``not run`` where it could not, ``not finished`` where it did not get to it.
        reason: Why it could not.
    """

    name: str
    status: str
    reason: str = ""


@dataclass(frozen=True)
class Environment:
    """What the run ran on, as in ``environment.json``."""

    python: str
    platform: str
    packages: dict[str, str]


@dataclass(frozen=True)
class RunReading:
    """Everything a report shows.

    Attributes:
        experiment: The resolved configuration.
        config: Its text.
        environment: Versions and platform.
        runs: The main strategy, then the compared ones, all judged by the same score.
        absent: Compared strategies without a run.
        partition: How the data were divided; None where the run did not divide them itself.
    """

    experiment: Experiment
    config: str
    environment: Environment
    runs: tuple[StrategyRun, ...]
    absent: tuple[Absent, ...]
    partition: PartitionReport | None

    @cached_property
    def num_clients(self) -> int:
        """Number of clients, from the data; from the configuration before anything ran."""
        seen = [line.partition + 1 for run in self.runs for line in run.clients]
        divided = len(self.partition.clients) if self.partition else 0
        return max([*seen, divided]) or self.experiment.partition.clients

    @cached_property
    def test_examples(self) -> dict[int, int]:
        """Number of test examples of every client that was ever evaluated."""
        return {
            line.partition: line.test_examples
            for run in self.runs
            for line in run.clients
            if line.test_examples is not None
        }

    @property
    def failures(self) -> tuple[Failure, ...]:
        """The failures of all strategies."""
        return tuple(failure for run in self.runs for failure in run.failures)

    @cached_property
    def scores(self) -> tuple[Score, ...]:
        """What the runs were judged by, then the other scores of the task that some run has."""
        first, *others = SCORES[self.experiment.task.name]
        known = {name for run in self.runs for line in run.rounds for name in line.scores}
        return (first, *(score for score in others if score.key in known))

    @property
    def unit(self) -> str:
        """What was divided over the clients, in words."""
        return _UNITS.get(self.experiment.task.name, "nodes")

    @property
    def links(self) -> str:
        """What lies between those, in words."""
        return _LINKS.get(self.experiment.task.name, "edges")

    @property
    def classified(self) -> str:
        """What has a class, in words."""
        return self.links if self.experiment.task.name == "recommend" else self.unit

    @property
    def classes_note(self) -> str:
        """What the classes are where they are no labels."""
        return _CLASSES_NOTES.get(self.experiment.task.name, "")

    @property
    def cut_note(self) -> str:
        """What became of the edges of the whole, as a sentence about their number."""
        report = self.partition
        if report is None or not report.edges:
            return ""
        lost, of, share = report.cut_edges, report.edges, percent(report.cut_share)
        if self.experiment.task.name == "recommend":
            return (
                f"{lost} of {of} events ({share}) are with items that the user's client does not "
                "offer and are lost."
                if lost
                else f"No event of the {of} is lost: every client offers what its users took."
            )
        return (
            f"{lost} of {of} edges ({share}) join two clients and are lost to both."
            if lost
            else f"No edge of the {of} is cut: every edge lies within a client."
        )

    @property
    def has_homophily(self) -> bool:
        """Whether it can be said of edges that they join nodes of one class."""
        clients = self.partition.clients if self.partition else ()
        return any(client.edge_homophily is not None for client in clients)

    def encoder(self, client: int) -> str:
        """Return the encoder of a client: the list is dealt out in turn."""
        names = self.experiment.encoder_names
        return names[client % len(names)]


def read_run(directory: Path) -> RunReading:
    """Read a run directory and the comparisons in it.

    Raises:
        FederationError: If a file is missing or damaged; the message names it.
    """
    experiment = _experiment(directory)
    runs = [_strategy_run(directory, experiment)]
    absent = []
    for name in _compared(directory, experiment):
        folder = directory / "compare" / name
        if (folder / "config.toml").exists():
            runs.append(_strategy_run(folder, _experiment(folder)))
        else:
            absent.append(_absent(name, experiment))
    return RunReading(
        experiment=experiment,
        config=_bytes(directory / "config.toml").decode(),
        environment=_parse(TypeAdapter(Environment), directory / "environment.json"),
        runs=tuple(runs),
        absent=tuple(absent),
        partition=_partition(directory / "partition.json"),
    )


_LINE: TypeAdapter[ClientLine | RoundLine] = TypeAdapter(
    Annotated[ClientLine | RoundLine, Field(discriminator="kind")]
)
_FIELDS = TypeAdapter(dict[str, Any])


@dataclass(frozen=True)
class _Summary:
    digest: str


def _experiment(directory: Path) -> Experiment:
    try:
        return load_experiment(directory / "config.toml")
    except ConfigError as error:
        raise FederationError(f"{directory}: not a run directory: {error}") from None


def _compared(directory: Path, experiment: Experiment) -> list[str]:
    """Return the strategies that were to be compared, then any others there are runs of."""
    listed = [name for name in experiment.run.compare.split(", ") if name]
    found = sorted(path.parent.name for path in directory.glob("compare/*/config.toml"))
    return [name for name in dict.fromkeys(listed + found) if name != experiment.strategy.name]


def _absent(name: str, experiment: Experiment) -> Absent:
    if name in WEIGHT_STRATEGIES and experiment.unlike_models:
        encoders = ", ".join(dict.fromkeys(experiment.encoder_names))
        reason = f"one model for all needs alike clients, and they hold {encoders}"
        return Absent(name, "not run", reason)
    return Absent(name, "not finished")


def _partition(path: Path) -> PartitionReport | None:
    if not path.exists():
        return None
    report: PartitionReport = _parse(TypeAdapter(PartitionReport), path)
    if len({len(client.class_counts) for client in report.clients}) != 1:
        raise FederationError(f"{path}: damaged: the clients' class_counts differ in length")
    return report


def _strategy_run(directory: Path, experiment: Experiment) -> StrategyRun:
    scores = SCORES[experiment.task.name]
    lines = _metrics(directory / "metrics.jsonl", scores)
    summary = directory / "summary.json"
    budget = spent(experiment, RunDirectory(directory).releases())
    return StrategyRun(
        name=experiment.strategy.name,
        score=scores[0],
        planned=experiment.run.rounds,
        rounds=tuple(line for line in lines if isinstance(line, RoundLine)),
        clients=tuple(line for line in lines if isinstance(line, ClientLine)),
        digest=_parse(TypeAdapter(_Summary), summary).digest if summary.exists() else None,
        spent=budget,
        claims=statement(experiment, budget),
    )


def _metrics(path: Path, scores: Sequence[Score]) -> list[ClientLine | RoundLine]:
    """Read all metrics; a last line without its end is what a killed run was writing."""
    names = {name for score in scores for name in (score.key, score.val_key)}
    *whole, _ = _bytes(path).split(b"\n")
    lines = []
    for number, text in enumerate(whole, start=1):
        try:
            line = _FIELDS.validate_json(text)
            found = {name: value for name, value in line.items() if name in names}
            lines.append(_LINE.validate_python({**line, "scores": found}))
        except ValidationError as error:
            raise FederationError(f"{path}, line {number}: damaged: {_first(error)}") from None
    return lines


def _parse(adapter: TypeAdapter[Any], path: Path) -> Any:
    try:
        return adapter.validate_json(_bytes(path))
    except ValidationError as error:
        raise FederationError(f"{path}: damaged: {_first(error)}") from None


def _first(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    return ": ".join([*(str(key) for key in problem["loc"]), problem["msg"]])


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or "unreadable"
        raise FederationError(f"{path}: cannot be read: {reason}") from None
