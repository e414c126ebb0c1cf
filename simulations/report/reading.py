"""A run directory as values: what the files hold, checked, and nothing else.

A run that was killed is read as far as it came: no ``summary.json``, and perhaps half a last line
of metrics.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from federation.experiment import Experiment, load_experiment
from federation.partition import PartitionReport
from federation.tables import WEIGHT_STRATEGIES
from graphcl.errors import ConfigError, FederationError


@dataclass(frozen=True)
class ClientLine:
    """One client in one round, as in ``metrics.jsonl``; its figures are None where it failed."""

    kind: Literal["client"]
    round: int
    partition: int
    status: Literal["ok", "failed", "idle"]
    reason: str = ""
    evaluation: str = ""
    accuracy: float | None = None
    test_examples: int | None = None


@dataclass(frozen=True)
class RoundLine:
    """One round over all clients, as in ``metrics.jsonl``; no accuracy if it was not evaluated."""

    kind: Literal["round"]
    round: int
    ok: int
    failed: int
    bytes_down: int
    bytes_up: int
    seconds: float
    loss: float | None = None
    accuracy: float | None = None
    val_accuracy: float | None = None
    accuracy_head: float | None = None
    accuracy_prototype: float | None = None


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
        planned: Number of rounds it was to run.
        rounds: The complete rounds, ascending.
        clients: Every client of every round.
        digest: The digest of the result; None while unfinished.
    """

    name: str
    planned: int
    rounds: tuple[RoundLine, ...]
    clients: tuple[ClientLine, ...]
    digest: str | None

    @property
    def finished(self) -> bool:
        """Whether it came to its end."""
        return self.digest is not None

    @cached_property
    def evaluated(self) -> tuple[RoundLine, ...]:
        """The rounds that have an accuracy."""
        return tuple(line for line in self.rounds if line.accuracy is not None)

    @cached_property
    def trained(self) -> tuple[RoundLine, ...]:
        """The rounds that have a training loss: some client succeeded."""
        return tuple(line for line in self.rounds if line.loss is not None)

    @cached_property
    def best(self) -> RoundLine | None:
        """The first round with the best validation accuracy."""
        return max(
            self.evaluated, key=lambda line: (line.val_accuracy or 0.0, -line.round), default=None
        )

    @property
    def final(self) -> RoundLine | None:
        """The last round that was evaluated."""
        return self.evaluated[-1] if self.evaluated else None

    @cached_property
    def accuracies(self) -> dict[int, float]:
        """Test accuracy of every client at the best round, by partition."""
        return {
            line.partition: line.accuracy
            for line in self.clients
            if self.best and line.round == self.best.round and line.accuracy is not None
        }

    @property
    def worst_client(self) -> tuple[float, int] | None:
        """The lowest accuracy of a client at the best round, and its partition."""
        return min(((value, client) for client, value in self.accuracies.items()), default=None)

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
        runs: The main strategy, then the compared ones.
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
        """Number of test nodes of every client that was ever evaluated."""
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
    lines = _metrics(directory / "metrics.jsonl")
    summary = directory / "summary.json"
    return StrategyRun(
        name=experiment.strategy.name,
        planned=experiment.run.rounds,
        rounds=tuple(line for line in lines if isinstance(line, RoundLine)),
        clients=tuple(line for line in lines if isinstance(line, ClientLine)),
        digest=_parse(TypeAdapter(_Summary), summary).digest if summary.exists() else None,
    )


def _metrics(path: Path) -> list[ClientLine | RoundLine]:
    """Read all metrics; a last line without its end is what a killed run was writing."""
    *whole, _ = _bytes(path).split(b"\n")
    lines = []
    for number, text in enumerate(whole, start=1):
        try:
            lines.append(_LINE.validate_json(text))
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
