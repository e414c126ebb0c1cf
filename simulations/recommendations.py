"""The recommend file: which interactions, how they are divided, and the recommenders' settings."""

from collections.abc import Callable, Collection
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
)

from federation.experiment import Scalar, describe_keys, explain, flatten, read_toml
from federation.tables import Table, key
from graphcl.datasets import (
    Interactions,
    InteractionSplit,
    embed_texts,
    load_interactions,
    simulate_interactions,
)
from graphcl.errors import ConfigError
from graphcl.recommend import RECOMMENDERS, Recommender
from simulations.keys import describe_config, named_by_key

# What gives every item an embedding of what is known of it, one line each.
TEXTS: dict[str, Callable[[Interactions], Interactions]] = {
    "none": lambda interactions: interactions,
    "tfidf": embed_texts,
}


class RecommendTable(Table):
    """Which interactions there are, and which of them are held out."""

    name: str = key("recommend", "part of the results' file names", pattern=r"^[A-Za-z0-9._-]+$")
    source: str = key(
        "simulated", "simulated, an .npz archive, or a .csv or .csv.gz table", min_length=1
    )
    root: str = key("", "folder of data sets; empty = the environment variable GRAPHCL_DATA")
    items: str = key("", "table of the items that goes with a table of interactions, if any")
    category_separator: str = key(
        "", "between the categories in one cell, of which the first counts"
    )
    duplicates: Literal["refuse", "drop", "keep"] = key(
        "refuse", "what to do with a second row of the same user, item and time"
    )
    k_core: int = key(1, "leave out users and items with fewer interactions, repeatedly", ge=1)
    text: str = key(
        "none",
        "tfidf = embed words, categories and attributes of items; none = as the file has it",
    )
    split: Literal["leave-one-out", "time"] = key(
        "leave-one-out",
        "test on each user's last event and validate on the last but one, or cut all at two times",
    )
    val_ratio: float = key(0.1, "time: share of the events that validate", gt=0, lt=1)
    test_ratio: float = key(0.1, "time: share of the events to test on, the latest", gt=0, lt=1)
    method: str = key("sasrec", f"what graphcl recommend train trains: {', '.join(RECOMMENDERS)}")
    seeds: int = key(3, "trainings per method in graphcl recommend evaluate", ge=1)
    seed: int = key(0, "decides the simulated interactions", ge=0)
    num_users: int = key(1000, "simulated: number of users", ge=1)
    num_items: int = key(500, "simulated: number of items, in ten clusters", ge=40)

    @field_validator("method", "text")
    @classmethod
    def _known(cls, name: str, info: ValidationInfo) -> str:
        return check_name(name, RECOMMENDERS if info.field_name == "method" else TEXTS)


class RecommendExperiment(Table):
    """A whole recommend file: beside these tables one for each recommender, by its name."""

    recommend: RecommendTable = RecommendTable()
    columns: dict[str, str] = key({}, "what the file calls a key that we name otherwise")

    _in_range = field_validator(*RECOMMENDERS, mode="wrap", check_fields=False)(named_by_key)


_TABLES: dict[str, Any] = {
    name: (kind.config_type, kind.config_type()) for name, kind in RECOMMENDERS.items()
}
_File = create_model("_File", __base__=RecommendExperiment, **_TABLES)


def load_recommend_experiment(
    path: Path, overrides: dict[str, Scalar] | None = None
) -> RecommendExperiment:
    """Read a recommend file.

    Raises:
        ConfigError: If it is missing, is no TOML, or does not validate.
    """
    return recommend_experiment(read_toml(path, overrides, "graphcl recommend"), str(path))


def recommend_experiment(nested: dict[str, Any], origin: str) -> RecommendExperiment:
    """Validate the nested tables of a recommend file.

    Raises:
        ConfigError: If they do not validate; one line per problem.
    """
    try:
        return _File.model_validate(nested)
    except ValidationError as error:
        keys = [name for name, _ in flatten(_File().model_dump())]
        raise ConfigError(explain(error, origin, [*keys, "columns"])) from None


def describe_recommend_keys() -> list[tuple[str, Scalar, str]]:
    """Return every dotted key of a recommend file with its default and its meaning."""
    return [
        *describe_keys(RecommendTable, "recommend."),
        ("columns", "{}", "what the file calls a key that we name otherwise, per key"),
        *(
            described
            for name, kind in RECOMMENDERS.items()
            for described in describe_config(kind.config_type, f"{name}.")
        ),
    ]


def check_name(name: str, known: Collection[str]) -> str:
    """Return a name that is known.

    Raises:
        ValueError: It is not.
    """
    if name not in known:
        raise ValueError(f"{name!r} is unknown; choose from {', '.join(known)}")
    return name


def load_data(experiment: RecommendExperiment) -> Interactions:
    """Load or simulate the interactions of an experiment.

    Raises:
        DataError: A file is missing or breaks a rule, or too few interactions are left.
    """
    table = experiment.recommend
    if table.source == "simulated":
        found = simulate_interactions(table.num_users, table.num_items, seed=table.seed)
        interactions = found.interactions
    else:
        interactions = load_interactions(
            table.source,
            items=table.items or None,
            names=experiment.columns,
            category_separator=table.category_separator or None,
            duplicates=table.duplicates,
            root=table.root or None,
        )
    if table.k_core > 1:
        interactions = interactions.k_core(table.k_core)
    return TEXTS[table.text](interactions)


def divide(experiment: RecommendExperiment, interactions: Interactions) -> InteractionSplit:
    """Return what is trained, validated and tested on.

    Raises:
        DataError: A part would have no event.
    """
    table = experiment.recommend
    if table.split == "time":
        return interactions.split_by_time(table.val_ratio, table.test_ratio)
    return interactions.leave_one_out()


def seeds_of(experiment: RecommendExperiment, method: str) -> list[int | None]:
    """Return the seeds of a method's trainings, [None] for one that draws nothing."""
    config = getattr(experiment, method)
    if all(field.name != "seed" for field in fields(config)):
        return [None]
    return list(range(config.seed, config.seed + experiment.recommend.seeds))


def new_recommender(
    experiment: RecommendExperiment, method: str, seed: int | None = None
) -> Recommender:
    """Return a recommender as an experiment's table has it, without weights yet.

    Args:
        experiment: The whole configuration.
        method: Its name.
        seed: Instead of the table's own.
    """
    config = getattr(experiment, method)
    if seed is not None:
        config = replace(config, seed=seed)
    return RECOMMENDERS[method](config)
