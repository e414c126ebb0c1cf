"""The experiment file: one TOML, every key typed, validated before anything starts.

The same keys serve ``graphcl run FILE`` and ``flwr run . --run-config FILE``. Flower flattens a file
into dotted keys with scalar values, so a list is written as a string: ``encoders = "gcn, sage"``.
"""

import difflib
import tomllib

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from graphcl.errors import ConfigError
from graphcl.nodes import ENCODERS

Scalar = bool | int | float | str

STRATEGIES = ("local", "fedavg", "fedprox", "fedproto", "feddbp")
WEIGHT_STRATEGIES = ("fedavg", "fedprox")


def _names(text: str, known: tuple[str, ...], what: str) -> str:
    """Check a comma-separated list of names; return it in its normal form."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f", did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"unknown {what} '{name}'{hint} (known: {', '.join(known)})")
    return ", ".join(names)


def _encoders(text: str) -> str:
    names = _names(text, tuple(ENCODERS), "encoder")
    if not names:
        raise ValueError(f"name at least one encoder (known: {', '.join(ENCODERS)})")
    return names


def _strategies(text: str) -> str:
    return _names(text, STRATEGIES, "strategy")


Fraction = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class Table(BaseModel):
    """A table of the experiment file: frozen, typed, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class Run(Table):
    """What is run and how long."""

    name: str = Field("experiment", min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    seed: int = Field(0, ge=0)
    rounds: Count = 50
    evaluate_every: Count = 1
    compare: Annotated[str, AfterValidator(_strategies)] = ""
    min_success: Annotated[float, Field(ge=0, le=1)] = 0.5
    timeout: NonNegative = 600.0
    directory: str = ""


class Digits(Table):
    """scikit-learn's handwritten digits as a k-nearest-neighbour graph."""

    neighbors: Count = 8


class ContextualSBM(Table):
    """A contextual stochastic block model: a graph generator with known homophily."""

    nodes: Count = 1000
    classes: int = Field(5, ge=2)
    features: Count = 32
    degree: Positive = 10.0
    homophily: Annotated[float, Field(ge=0, le=1)] = 0.8
    signal: NonNegative = 1.0


class DataTable(Table):
    """Where the graph comes from and how its nodes are split on every client."""

    source: str = Field("digits", min_length=1)
    root: str = ""
    train_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.2
    val_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.4
    num_classes: int = Field(0, ge=0)
    digits: Digits = Digits()
    csbm: ContextualSBM = ContextualSBM()

    @model_validator(mode="after")
    def _test_nodes_remain(self) -> Self:
        if self.train_ratio + self.val_ratio >= 1:
            raise ValueError(
                f"train_ratio + val_ratio = {self.train_ratio + self.val_ratio:g} leaves no test "
                "nodes; their sum must stay below 1"
            )
        return self


class Partition(Table):
    """How the nodes are divided over the clients."""

    scheme: Literal["dirichlet", "louvain", "natural"] = "dirichlet"
    clients: int = Field(10, ge=1)
    alpha: Positive = 0.3
    min_nodes: Count = 10


class Model(Table):
    """The node encoders: client i takes the (i mod n)-th of the list."""

    encoders: Annotated[str, AfterValidator(_encoders)] = "gcn"
    hidden_channels: Count = 64
    embedding_channels: Count = 64
    num_layers: Count = 2
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5

    @property
    def encoder_names(self) -> list[str]:
        """The encoders as a list."""
        return self.encoders.split(", ")


class Train(Table):
    """Local training on every client and round."""

    epochs: Count = 3
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: Positive = 0.01
    weight_decay: NonNegative = 5e-4


class FedProxTable(Table):
    """FedProx: weight of the proximal term."""

    proximal_mu: NonNegative = 0.01


class FedProtoTable(Table):
    """FedProto: weight of the alignment, mean of the prototypes, inference."""

    lambda_align: NonNegative = 1.0
    global_weight: Literal["uniform", "count"] = "count"
    inference: Literal["head", "prototype"] = "head"


class FedDBPTable(Table):
    """FedDBP: both branches, Fisher weights, personalised fusion, inference."""

    fuse: Literal["concat", "sum"] = "concat"
    lambda_align: NonNegative = 1.0
    lambda_contrast: NonNegative = 1.0
    temperature: Positive = 0.1
    global_weight: Literal["fisher", "count", "uniform"] = "fisher"
    fisher_floor: Positive = 0.1
    personal: Literal["soft", "hard", "off"] = "soft"
    keep: Annotated[float, Field(ge=0, le=1)] = 0.5
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.4
    inference: Literal["head", "prototype"] = "head"


class Strategy(Table):
    """The federated algorithm, its cohort, and the parameters of each algorithm."""

    name: Literal["local", "fedavg", "fedprox", "fedproto", "feddbp"] = "feddbp"
    fraction: Fraction = 1.0
    fedprox: FedProxTable = FedProxTable()
    fedproto: FedProtoTable = FedProtoTable()
    feddbp: FedDBPTable = FedDBPTable()


class Simulation(Table):
    """Which carrier moves the messages, and what one client may use."""

    engine: Literal["local", "ray", "flower"] = "ray"
    actors: int = Field(0, ge=0)
    cpus_per_client: Count = 1
    gpus_per_client: NonNegative = 0.0
    address: str = ""


class Experiment(Table):
    """A whole experiment file."""

    run: Run = Run()
    data: DataTable = DataTable()
    partition: Partition = Partition()
    model: Model = Model()
    train: Train = Train()
    strategy: Strategy = Strategy()
    simulation: Simulation = Simulation()

    @model_validator(mode="after")
    def _possible(self) -> Self:
        unlike = len(set(self.model.encoder_names)) > 1
        if self.strategy.name in WEIGHT_STRATEGIES and unlike:
            raise ValueError(
                f"strategy.name: '{self.strategy.name}' averages weights, but model.encoders gives "
                f"the clients unlike models ({self.model.encoders}); name one encoder, or use a "
                "prototype strategy (fedproto, feddbp)"
            )
        feddbp = self.strategy.feddbp
        if feddbp.fuse == "concat" and self.model.embedding_channels % 2:
            raise ValueError(
                f"model.embedding_channels: {self.model.embedding_channels} cannot be halved for "
                "the two branches of strategy.feddbp.fuse = 'concat'; take an even number"
            )
        csbm = self.data.csbm
        if self.data.source == "csbm" and csbm.classes > csbm.nodes:
            raise ValueError(
                f"data.csbm.classes: {csbm.classes} classes do not fit {csbm.nodes} nodes"
            )
        if self.data.source == "csbm" and self.data.num_classes not in (0, csbm.classes):
            raise ValueError(
                f"data.num_classes: {self.data.num_classes} was promised, but data.csbm.classes "
                f"generates {csbm.classes}; make them equal or leave num_classes at 0"
            )
        if self.data.source == "csbm":
            if self.partition.clients * self.partition.min_nodes > csbm.nodes:
                raise ValueError(
                    f"partition.clients: {self.partition.clients} clients of at least "
                    f"{self.partition.min_nodes} nodes need more than the {csbm.nodes} nodes there "
                    "are; lower partition.clients or partition.min_nodes"
                )
        return self

    def with_strategy(self, name: str) -> "Experiment":
        """Return this experiment under another strategy and with no comparison of its own."""
        flat = self.flat() | {"strategy.name": name, "run.compare": ""}
        return Experiment.from_flat(flat)

    def flat(self) -> dict[str, Scalar]:
        """Return all keys, dotted, as Flower's ``run_config`` holds them."""
        return dict(_flatten(self.model_dump()))

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
        for key, value in config.items():
            *tables, last = key.split(".")
            inner = nested
            for table in tables:
                inner = inner.setdefault(table, {})
                if not isinstance(inner, dict):
                    raise ConfigError(f"{key}: '{table}' is a value, not a table")
            inner[last] = value
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
            lines = [_explain(dict(problem)) for problem in error.errors()]
            raise ConfigError(f"{origin} cannot run:\n" + "\n".join(lines)) from None


def load_experiment(path: str | Path, overrides: Mapping[str, Scalar] | None = None) -> Experiment:
    """Read an experiment file and apply dotted overrides.

    Raises:
        ConfigError: If the file is missing, is not TOML, or does not validate.
    """
    path = Path(path)
    try:
        nested = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such experiment file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from None
    for key, value in (overrides or {}).items():
        inner = nested
        *tables, last = key.split(".")
        for table in tables:
            inner = inner.setdefault(table, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{key}: '{table}' is a value, not a table")
        inner[last] = value
    return Experiment.from_nested(nested, str(path))


def known_keys(table: type[BaseModel] = Experiment, prefix: str = "") -> list[str]:
    """Return every dotted key of the schema."""
    keys = []
    for name, field in table.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            keys += known_keys(annotation, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def _flatten(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Scalar]]:
    for key, value in nested.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _explain(problem: dict[str, Any]) -> str:
    """Turn one pydantic problem into a line with the key's path and what to do."""
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        keys = known_keys()
        tables = sorted({k.rsplit(".", 1)[0] for k in keys})
        near = difflib.get_close_matches(key, keys + tables, n=1, cutoff=0.5)
        last = key.rsplit(".", 1)[-1]
        near = near or [k for k in keys if k.rsplit(".", 1)[-1] == last]
        hint = f"; did you mean '{near[0]}'?" if near else f"; the tables are {', '.join(tables)}"
        return f"  {key}: unknown key{hint}"
    message = problem["msg"].removeprefix("Value error, ")
    if not key or message.startswith(tuple(known_keys())):
        return f"  {message}"
    shown = "" if isinstance(problem["input"], Mapping) else f" (got {problem['input']!r})"
    return f"  {key}: {message}{shown}"


__all__ = [
    "STRATEGIES",
    "WEIGHT_STRATEGIES",
    "Experiment",
    "Scalar",
    "known_keys",
    "load_experiment",
]
