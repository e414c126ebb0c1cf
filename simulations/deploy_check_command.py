"""``graphcl deploy check``: what a site's data are, and what would leave it once it takes part."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from graphcl.errors import ConfigError
from simulations import terminal

if TYPE_CHECKING:
    from federation.experiment import Experiment, Scalar
    from simulations.rehearsal import Rehearsal, Reply

# What people call a task, and the keys with which it is checked where no file says others.
_SHORT: "dict[str, dict[str, Scalar]]" = {
    "classify": {"strategy.name": "feddbp"},
    "images": {"strategy.name": "feddbp", "model.encoders": "cnn", "model.hidden_channels": 16},
    "outages": {"strategy.name": "fedavg", "data.source": "storms"},
    "forecast": {"strategy.name": "scfsgl", "data.source": "confounded"},
    "recommend": {"strategy.name": "fedavg", "data.source": "interactions.npz"},
}
_CALLED = {"nodes": "classify", "outage": "outages", "traffic": "forecast"}


def check(
    data: Annotated[Path, typer.Argument(help="The site's file or folder of data, or its bundle.")],
    config: Annotated[
        Path | None, typer.Option("--config", help="The federation's experiment file.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help=f"Instead: {', '.join(_SHORT)}, with the defaults of the task."),
    ] = None,
    partition: Annotated[int, typer.Option(help="Which partition the site holds.", min=0)] = 0,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key; may be repeated."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Check a site's data, and list all that would leave it.

    One round runs in memory, without any network: the site's data are checked against the task's
    format, the model is built and trained for a round, and every value of every reply is listed
    with its shape, its size and what it was computed from.

    For example:

      graphcl deploy check /srv/graphcl/data --config config.toml

      graphcl deploy check /srv/graphcl/data --task outage

      graphcl deploy check deployment/sites/north
    """
    from federation.deploy.bundles import SiteBundle, load_bundle_experiment
    from federation.experiment import describe_keys, load_experiment
    from simulations.rehearsal import rehearse

    overrides = terminal.parse_settings(set_ or [], describe_keys())
    place = str(data.expanduser().resolve())
    if (data / "site.toml").is_file():
        if config or task or overrides or partition:
            raise ConfigError(f"{data}: a bundle says all that is needed; drop the other options")
        bundle, experiment = SiteBundle.load(data), load_bundle_experiment(data)
        place, partition = bundle.data, bundle.partition
    elif not data.exists():
        raise ConfigError(f"{data}: not found; name a site's folder, or where its data are")
    elif (config is None) == (task is None):
        raise ConfigError(
            f"{data} is no site's folder (it has no site.toml): name the experiment file by "
            "--config, or a task by --task, not both"
        )
    elif config is not None:
        experiment = load_experiment(config, overrides)
    else:
        experiment = _defaults(task or "", place, overrides)
    if partition >= experiment.partition.clients:
        raise ConfigError(
            f"--partition {partition}: partition.clients is {experiment.partition.clients}, so "
            f"that the partitions are 0 to {experiment.partition.clients - 1}"
        )
    logging.getLogger("flwr").setLevel(logging.ERROR)
    with terminal.console.status("One round in memory"):
        found = rehearse(experiment, place, partition)
    if as_json:
        print(json.dumps(_as_json(experiment, place, partition, found), indent=1))
    else:
        _print(experiment, place, found)


def _defaults(task: str, place: str, overrides: "dict[str, Scalar]") -> "Experiment":
    from federation.experiment import Experiment
    from graphcl.datasets import count_classes, load_silo

    name = _CALLED.get(task, task)
    if name not in _SHORT:
        raise ConfigError(
            f"--task {task}: no task is called so; there are {', '.join((*_SHORT, *_CALLED))}"
        )
    keys: dict[str, Scalar] = {
        "task.name": name,
        "partition.scheme": "natural",
        "partition.clients": 1,
        **_SHORT[name],
    }
    if name == "classify" and "data.num_classes" not in overrides:
        keys["data.num_classes"] = count_classes([load_silo(place)])
    if name == "images":
        keys |= _of_images(place, overrides)
    return Experiment.from_flat({**keys, **overrides})


def _of_images(place: str, overrides: "dict[str, Scalar]") -> "dict[str, Scalar]":
    """Return what a federation would tell its sites of their images, as this site has them."""
    from federation.learners.albums import own_source
    from graphcl.datasets import load_images

    size = int(overrides.get("data.images.size", 0))
    images = load_images(own_source(place), size=size or None)
    for name in images.class_names:
        if "," in name:
            raise ConfigError(
                f"{place}: class {name!r}: a federation lists the names of its classes in one line "
                "(data.images.classes), commas between them; call the class otherwise"
            )
    return {
        "data.images.classes": ", ".join(images.class_names),
        "data.images.size": images.x.size(2),
    }


def _as_json(
    experiment: "Experiment", place: str, partition: int, found: "Rehearsal"
) -> dict[str, Any]:
    return {
        "data": place,
        "task": experiment.task.name,
        "strategy": experiment.strategy.name,
        "partition": partition,
        **dataclasses.asdict(found),
    }


def _print(experiment: "Experiment", place: str, found: "Rehearsal") -> None:
    counts = {name: n for name, n in found.facts.items() if not name.endswith("-names")}
    facts = ", ".join(f"{value} {name}" for name, value in counts.items())
    terminal.say(
        f"[bold]{escape(place)}[/bold] fits task.name = '{experiment.task.name}': {facts}.\n"
        f"All that would leave this site under strategy.name = '{experiment.strategy.name}':"
    )
    for reply in found.replies:
        terminal.console.print(_table(reply))
    if found.least_support is not None:
        terminal.say(_support(found.least_support))
    for title, sentences in (
        ("What is protected", found.statement.protected),
        ("What is not", found.statement.open),
    ):
        if sentences:
            terminal.say(f"[bold]{title}[/bold]")
            for sentence in sentences:
                terminal.say(f"- {escape(sentence)}")


def _support(least: int) -> str:
    if least == 1:
        return (
            "A class has one sample here, and its mean is that sample's embedding: "
            "privacy.min_support keeps such classes at home."
        )
    return f"Every mean has {least} samples behind it or more."


def _table(reply: "Reply") -> Table:
    when = {
        "hello": "once, before the first round",
        "train": "every round in which the site trains",
        "evaluate": "every round that is evaluated",
    }
    table = Table(
        title=f"{reply.message}: {reply.bytes:,} bytes, {when[reply.message]}",
        title_justify="left",
        box=SIMPLE,
        padding=(0, 1, 0, 0),
    )
    for column in ("record", "name", "shape", "type"):
        table.add_column(column, overflow="fold", no_wrap=column not in ("record", "name"))
    table.add_column("bytes", justify="right")
    table.add_column("what it is")
    table.add_column("from")
    for entry in reply.entries:
        shape = "x".join(map(str, entry.shape))
        table.add_row(
            escape(entry.record),
            escape(entry.name),
            shape,
            entry.dtype,
            f"{entry.bytes:,}",
            entry.meaning,
            entry.source,
        )
    return table
