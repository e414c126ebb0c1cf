"""The experiment file: one TOML, every key typed, validated before anything starts.

The same keys serve ``graphcl run FILE`` and ``flwr run . --run-config FILE``. Flower flattens a
file into dotted keys with scalar values, so a list is a string: ``encoders = "gcn, sage"``. The
tables are in :mod:`federation.tables`; here is what spans them, and the way in and out.
"""

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import tomli_w
from pydantic import BaseModel, ValidationError, model_validator

from federation.data_tables import DataTable
from federation.keys import Table
from federation.privacy.table import Privacy
from federation.tables import (
    PROTOTYPE_STRATEGIES,
    WEIGHT_STRATEGIES,
    Forecast,
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
    train: Train = Train()
    strategy: Strategy = Strategy()
    privacy: Privacy = Privacy()
    simulation: Simulation = Simulation()

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.strategy.name in WEIGHT_STRATEGIES and self.unlike_models:
            raise ValueError(
                f"strategy.name: '{self.strategy.name}' has one model for all, but model.encoders "
                f"gives the clients unlike models ({self.model.encoders}); name one encoder, or "
                "use a prototype strategy (fedproto, feddbp)"
            )
        if self.task.name != "classify" and self.simulation.gpus_per_client:
            raise ValueError(
                f"simulation.gpus_per_client: task.name = '{self.task.name}' runs on the CPU; "
                "leave it at 0"
            )
        if self.partition.scheme == "users" and self.task.name != "recommend":
            raise ValueError(
                f"partition.scheme: 'users' deals out the users of interactions, but task.name = "
                f"'{self.task.name}'; choose another scheme, or task.name = 'recommend'"
            )
        planned = self.planned
        if "scfsgl" in planned and self.task.name != "forecast":
            raise ValueError(
                f"strategy.name: 'scfsgl' is about forecasts, but task.name = '{self.task.name}'; "
                "choose another strategy, or task.name = 'forecast'"
            )
        headless = {"pretrain": "a label-free method", "recommend": "a recommender"}
        if "fedper" in planned and self.task.name in headless:
            raise ValueError(
                f"strategy.name: 'fedper' leaves the last layers on their node, and "
                f"{headless[self.task.name]} has none behind its embedding; take 'fedavg', with "
                "strategy.personal_weights for what shall stay"
            )
        feddbp = self.strategy.feddbp
        fisher_leaves = "feddbp" in planned and feddbp.reads_fisher
        if refusal := self.privacy.refuse(planned, PROTOTYPE_STRATEGIES, fisher_leaves):
            raise ValueError(refusal)
        if self.task.name == "outages":
            self._possible_outages()
        if self.task.name == "forecast":
            self._possible_forecasts()
        if self.task.name == "recommend":
            self._possible_recommendations()
        if "feddbp" in planned and feddbp.fuse == "concat" and self.model.embedding_channels % 2:
            raise ValueError(
                f"model.embedding_channels: {self.model.embedding_channels} cannot be halved for "
                "the two branches of strategy.feddbp.fuse = 'concat'; take an even number"
            )
        halved = self.task.name == "pretrain" and self.pretrain.method == "aspect"
        if halved and self.pretrain.aspect.fusion == "concat" and self.model.embedding_channels % 2:
            raise ValueError(
                f"model.embedding_channels: {self.model.embedding_channels} cannot be halved for "
                "the two channels of pretrain.aspect.fusion = 'concat'; take an even number"
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
        needed = self.partition.clients * self.partition.min_nodes
        if self.data.source == "csbm" and needed > csbm.nodes:
            raise ValueError(
                f"partition.clients: {self.partition.clients} clients of at least "
                f"{self.partition.min_nodes} nodes need more than the {csbm.nodes} nodes there "
                "are; lower partition.clients or partition.min_nodes"
            )
        return self

    def _possible_outages(self) -> None:
        if self.partition.scheme != "natural":
            raise ValueError(
                "partition.scheme: task.name = 'outages' has one district per client; set it to "
                "'natural'"
            )
        if self.data.source in ("digits", "csbm") or self.data.source.startswith("pyg:"):
            raise ValueError(
                f"data.source: '{self.data.source}' holds no outages; use 'storms', a folder of "
                "CSV tables or an .npz file"
            )
        if "pooled" in self.planned and self.data.outages.newcomer:
            raise ValueError(
                "data.outages.newcomer: pooled training has all storms of all districts, so "
                "nobody is new; leave 'pooled' out"
            )

    def _possible_forecasts(self) -> None:
        rows = self.forecast.num_prototypes
        matching = self.planned & {"scfsgl", *PROTOTYPE_STRATEGIES}
        if rows < 2 and (matching or rows == 1):
            raise ValueError(
                f"forecast.num_prototypes: {rows} rows are no codebook to match"
                f"{', as ' + min(matching) + ' does' if matching else ''}; take at least 2"
            )
        if "pooled" in self.planned and self.partition.scheme != "louvain":
            raise ValueError(
                "strategy.name: 'pooled' has one network for all sensors, but unlike series have "
                "none in common; leave 'pooled' out, or divide one series (partition.scheme = "
                "'louvain')"
            )
        source, scheme, paths = self.data.source, self.partition.scheme, self.data.paths
        simulated = source == "confounded"
        if scheme == "dirichlet":
            raise ValueError(
                "partition.scheme: task.name = 'forecast' has no classes to divide by; set it to "
                "'natural' for one series per client, or to 'louvain' for regions of one series"
            )
        foreign = [path for path in paths if not path.endswith((".npz", ".toml"))]
        if foreign and not simulated:
            raise ValueError(
                f"data.source: '{foreign[0]}' holds no series; use 'confounded', or the paths of "
                ".npz files or of .toml descriptions of such"
            )
        if scheme == "louvain" and (simulated or len(paths) > 1):
            raise ValueError(
                f"partition.scheme: 'louvain' divides one series, but data.source = '{source}' has "
                "one for each client; name one file, or choose natural"
            )
        if scheme == "natural" and not simulated and len(paths) != self.partition.clients:
            raise ValueError(
                f"partition.clients is {self.partition.clients}, but data.source lists "
                f"{len(paths)} series, one per client: set it to {len(paths)}"
            )

    def _possible_recommendations(self) -> None:
        source, scheme, paths = self.data.source, self.partition.scheme, self.data.paths
        table, clients = self.data.interactions, self.partition.clients
        simulated = source == "shoppers"
        if scheme not in ("natural", "users"):
            raise ValueError(
                f"partition.scheme: '{scheme}' divides a graph, but task.name = 'recommend'; set "
                "it to 'natural' for one platform per client, or to 'users' for the users of one"
            )
        foreign = [path for path in paths if not path.endswith((".npz", ".csv", ".csv.gz"))]
        if foreign and not simulated:
            raise ValueError(
                f"data.source: '{foreign[0]}' holds no interactions; use 'shoppers', or the paths "
                "of .npz, .csv or .csv.gz files"
            )
        if scheme == "natural" and simulated:
            raise ValueError(
                "partition.scheme: 'natural' takes one platform per client from files, but "
                "data.source = 'shoppers' is one platform; set it to 'users', or name files"
            )
        if scheme == "natural" and len(paths) != clients:
            raise ValueError(
                f"partition.clients is {clients}, but data.source lists {len(paths)} platforms, "
                f"one per client: set it to {len(paths)}"
            )
        if scheme == "natural" and table.catalogue < 1:
            raise ValueError(
                f"data.interactions.catalogue: {table.catalogue:g} of one catalogue was asked for, "
                "but under partition.scheme = 'natural' each client has its own; leave it at 1"
            )
        if scheme == "users" and len(paths) > 1:
            raise ValueError(
                f"partition.scheme: 'users' deals out the users of one platform, but data.source "
                f"lists {len(paths)}; name one file, or choose natural"
            )
        if simulated and clients > table.users:
            raise ValueError(
                f"partition.clients: {clients} clients need a user each, but "
                f"data.interactions.users is {table.users}; lower the one or raise the other"
            )
        if table.item_tables and len(table.item_paths) != len(paths):
            raise ValueError(
                f"data.interactions.item_tables: '{table.item_tables}' does not go with the "
                f"{len(paths)} of data.source; name one for each, or none"
            )
        if self.model.embedding_channels % 2:
            raise ValueError(
                f"model.embedding_channels: {self.model.embedding_channels} cannot be shared out "
                "over the two heads of a recommender's attention; take an even number"
            )

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

    def override(self, keys: Mapping[str, Scalar]) -> "Experiment":
        """Return this experiment with other values for some dotted keys."""
        return Experiment.from_flat({**self.flat(), **keys})

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


def load_experiment(path: str | Path, overrides: Mapping[str, Scalar] | None = None) -> Experiment:
    """Read an experiment file and apply dotted overrides.

    Raises:
        ConfigError: If the file is missing, is not TOML, or does not validate.
    """
    nested = read_toml(path, overrides)
    return Experiment.from_nested(nested, str(path))


def read_toml(path: str | Path, overrides: Mapping[str, Scalar] | None = None) -> dict[str, Any]:
    """Read a TOML file as nested tables and apply dotted overrides.

    Raises:
        ConfigError: If the file is missing or is not TOML.
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
