"""The experiment file: one TOML, every key typed, validated before anything starts.

The same keys serve ``graphcl run FILE`` and ``flwr run . --run-config FILE``. Flower flattens a
file into dotted keys with scalar values, so a list is a string: ``encoders = "gcn, sage"``. The
tables are in :mod:`federation.tables`; here is what spans them, and the way in and out.
"""

import difflib
import tomllib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import tomli_w
from pydantic import BaseModel, ValidationError, model_validator

from federation.combinations import check_combination
from federation.data_tables import DataTable, OwnData
from federation.device_tables import Asynchrony
from federation.fault_tables import FaultTable
from federation.keys import Table
from federation.privacy.table import Privacy
from federation.tables import (
    SUMMED_STRATEGIES,
    Forecast,
    Images,
    Model,
    Outages,
    Partition,
    Pretrain,
    Recommend,
    Run,
    Simulation,
    Strategy,
    Task,
    Train,
)
from graphcl.errors import ConfigError

Scalar = bool | int | float | str

# The keys of the simulation that change figures: sums are rounded in another order.
COUNTED = ("simulation.batch_clients", "simulation.cpus_per_client")


class Experiment(Table):
    """A whole experiment file."""

    run: Run = Run()
    task: Task = Task()
    data: DataTable = DataTable()
    partition: Partition = Partition()
    model: Model = Model()
    pretrain: Pretrain = Pretrain()
    outages: Outages = Outages()
    forecast: Forecast = Forecast()
    recommend: Recommend = Recommend()
    images: Images = Images()
    train: Train = Train()
    strategy: Strategy = Strategy()
    privacy: Privacy = Privacy()
    faults: FaultTable = FaultTable()
    asynchrony: Asynchrony = Asynchrony()
    simulation: Simulation = Simulation()

    @model_validator(mode="after")
    def _possible(self) -> Self:
        check_combination(self)
        return self

    @property
    def planned(self) -> set[str]:
        """The strategies that are to be run, one after the other."""
        return {self.strategy.name, *self.run.compare.split(", ")}

    @property
    def encoder_names(self) -> list[str]:
        """The encoders in turn: client i has the (i mod n)-th."""
        if self.task.name == "pretrain":
            return [self.pretrain.method]
        if self.task.name == "outages":
            return ["sa_hgnn"]
        if self.task.name == "forecast":
            return ["sc_fsgl"]
        if self.task.name == "recommend":
            return [self.recommend.method]
        return self.model.encoder_names

    @property
    def unlike_models(self) -> bool:
        """Whether the clients' models differ, so that their weights cannot be averaged."""
        return len(set(self.encoder_names)) > 1

    @property
    def asynchronous(self) -> bool:
        """Whether aggregates wait for a number of replies instead of a cohort."""
        waits = self.strategy.name in ("local", "pooled")  # nobody learns from another
        return bool(self.asynchrony.buffer) and not waits

    @property
    def masked(self) -> bool:
        """Whether what leaves a client leaves under masks."""
        return self.privacy.masking and self.strategy.name in SUMMED_STRATEGIES

    def override(self, keys: Mapping[str, Scalar]) -> "Experiment":
        """Return this experiment with other values for some dotted keys."""
        return Experiment.from_flat({**self.flat(), **keys})

    def at_site(self, data: str) -> "Experiment":
        """Return this experiment as a node sees it that has its own data and nobody else's.

        Args:
            data: The node's file or folder, in place of what ``data.source`` lists.

        Raises:
            ConfigError: If a client cannot do with its own data alone.
        """
        if self.partition.scheme != "natural":
            raise ConfigError(
                f"partition.scheme: '{self.partition.scheme}' divides the data of all clients, but "
                f"this node has its own alone ({data}); set it to 'natural'"
            )
        if self.strategy.name == "pooled":
            raise ConfigError(
                f"strategy.name: 'pooled' trains on the data of all clients, but this node has its "
                f"own alone ({data}); choose another strategy"
            )
        return self.model_copy(update={"data": OwnData(**dict(self.data), own=data)})

    def differing(self, other: "Experiment", free: Collection[str]) -> list[str]:
        """Return the keys in which two experiments differ that change figures, or what is sent.

        Args:
            other: The other experiment.
            free: Keys in which they may; where and how a simulation runs they always may.
        """
        ours, theirs = self.flat(), other.flat()
        return [
            key
            for key in ours
            if ours[key] != theirs[key]
            and key not in free
            and (key in COUNTED or not key.startswith("simulation."))
        ]

    def flat(self) -> dict[str, Scalar]:
        """Return all keys, dotted, as Flower's ``run_config`` holds them."""
        return dict(flatten(self.model_dump()))

    def to_toml(self) -> str:
        """Return the experiment as a file with every key written out."""
        return tomli_w.dumps(self.model_dump())

    @classmethod
    def from_flat(cls, config: Mapping[str, Scalar]) -> "Experiment":
        """Build an experiment from dotted keys, e.g. a Flower ``run_config``.

        Raises:
            ConfigError: If a key is unknown, a value has the wrong type or range, or the
                combination cannot run.
        """
        nested: dict[str, Any] = {}
        _put(nested, config)
        return cls.from_nested(nested)

    @classmethod
    def from_nested(cls, config: Mapping[str, Any], origin: str = "the experiment") -> "Experiment":
        """Build an experiment from nested tables.

        Raises:
            ConfigError: See :meth:`from_flat`; one line per problem.
        """
        try:
            return cls.model_validate(config)
        except ValidationError as error:
            raise ConfigError(explain(error, origin, known_keys())) from None


# What the files of one command have and those of the others have not.
_MARKS = {
    "graphcl run": ("run", "task", "partition", "strategy"),
    "graphcl probe": ("probe",),
    "graphcl outage": ("outage",),
    "graphcl recommend": ("recommend.source", "recommend.name"),
}


def load_experiment(path: str | Path, overrides: Mapping[str, Scalar] | None = None) -> Experiment:
    """Read an experiment file and apply dotted overrides.

    Raises:
        ConfigError: If the file is missing, is not TOML, or does not validate.
    """
    nested = read_toml(path, overrides)
    return Experiment.from_nested(nested, str(path))


def read_toml(
    path: str | Path, overrides: Mapping[str, Scalar] | None = None, command: str = "graphcl run"
) -> dict[str, Any]:
    """Read a TOML file as nested tables and apply dotted overrides.

    Args:
        path: The file.
        overrides: Values of dotted keys.
        command: Whose file it should be.

    Raises:
        ConfigError: If the file is missing, is not TOML, or is one for another command.
    """
    path = Path(path)
    try:
        nested = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such experiment file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read as a file: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from None
    keys = [f"{key}." for key, _ in flatten(nested)]
    begins = {kind: tuple(f"{mark}." for mark in marks) for kind, marks in _MARKS.items()}
    kinds = [kind for kind in _MARKS if any(key.startswith(begins[kind]) for key in keys)]
    if kinds and command not in kinds:
        raise ConfigError(f"{path}: a file for `{kinds[0]}`, which `{command}` does not read")
    _put(nested, overrides or {})
    return nested


def describe_keys(
    table: type[BaseModel] = Experiment, prefix: str = ""
) -> Iterator[tuple[str, Scalar, str]]:
    """Yield every dotted key of the schema with its default and its meaning."""
    for name, field in table.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from describe_keys(annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field.default, field.description or ""


def known_keys() -> list[str]:
    """Return every dotted key of the schema."""
    return [key for key, _, _ in describe_keys()]


def _put(nested: dict[str, Any], keys: Mapping[str, Scalar]) -> None:
    """Put values at dotted keys into nested tables."""
    for dotted, value in keys.items():
        *tables, last = dotted.split(".")
        inner = nested
        for table in tables:
            inner = inner.setdefault(table, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{dotted}: '{table}' is a value, not a table")
        inner[last] = value


def flatten(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Scalar]]:
    """Yield the values of nested tables with their dotted keys."""
    for name, value in nested.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def explain(error: ValidationError, origin: str, keys: list[str]) -> str:
    """Return one line per problem, each with the key's path and what to do.

    Args:
        error: What pydantic found.
        origin: The file, or what else was validated.
        keys: Every dotted key that would have been valid.
    """
    lines = [_explain(dict(problem), keys) for problem in error.errors()]
    return f"{origin} cannot run:\n" + "\n".join(lines)


def _explain(problem: dict[str, Any], keys: list[str]) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        tables = sorted({k.rsplit(".", 1)[0] for k in keys})
        near = difflib.get_close_matches(key, keys + tables, n=1, cutoff=0.5)
        last = key.rsplit(".", 1)[-1]
        near = near or [k for k in keys if k.rsplit(".", 1)[-1] == last]
        hint = f"; did you mean '{near[0]}'?" if near else f"; the tables are {', '.join(tables)}"
        return f"  {key}: unknown key{hint}"
    message = problem["msg"].removeprefix("Value error, ")
    if not key or message.startswith(tuple(keys)):
        return f"  {message}"
    if problem["type"] in ("model_type", "model_attributes_type"):
        return f"  {key}: must be a table (got {problem['input']!r})"
    shown = "" if isinstance(problem["input"], Mapping) else f" (got {problem['input']!r})"
    return f"  {key}: {message}{shown}"
