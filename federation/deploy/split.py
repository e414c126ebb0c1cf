"""The clients of a simulation as sites: a folder of data each, to try a deployment with them."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch_geometric.data import Data

from federation.deploy.files import make_private_folder, write
from federation.deploy.sites import Deployment, ServerTable, SiteTable
from federation.experiment import Experiment, Scalar
from federation.learners import Albums, Platforms, Sites, Territories, clients_of
from federation.learners.graphs import ClientGraphs
from federation.learners.platforms import Platform
from graphcl.datasets import (
    Interactions,
    save_images,
    save_interactions,
    save_npz,
    save_outage_events,
    save_series,
)
from graphcl.errors import ConfigError
from graphcl.recommend.sequences import cat_known

_FIRST_PORT = 9094

Save = Callable[[Path], None]


def split(experiment: Experiment, out: Path) -> Deployment:
    """Write the data of every client, and the files that make them the sites of a deployment.

    ``out/data/NAME/`` holds what the client NAME learns from, in the format of its task,
    ``out/config.toml`` is the experiment in which these are the natural partition, and
    ``out/sites.toml`` describes them as sites of one machine.

    Args:
        experiment: Any whose data can come divided.
        out: A folder that does not exist yet.

    Raises:
        ConfigError: If the folder exists, or the clients' data cannot be told apart.
        DataError, PartitionError: If the data cannot be loaded or divided.
    """
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out}: there is something already; name a folder that is not there yet")
    named = list(_held(experiment))
    names = _names([name for name, _, _ in named])
    data = make_private_folder(out / "data")
    files = []
    for name, (_, file, save) in zip(names, named, strict=True):
        make_private_folder(data / name)
        save(data / name / file)
        files.append(f"{name}/{file}")
    natural = experiment.override(
        {
            "data.source": ", ".join(files),
            "data.root": str(data.resolve()),
            "partition.scheme": "natural",
            "partition.clients": len(names),
            "run.compare": "",
            **_told(experiment),
        }
    )
    deployment = Deployment(
        experiment="config.toml",
        server=ServerTable(name=_slug(experiment.run.name), hosts=["127.0.0.1"], bind="127.0.0.1"),
        site=[
            SiteTable(name=name, data=str((data / name).resolve()), port=_FIRST_PORT + number)
            for number, name in enumerate(names)
        ],
    )
    write(out / "config.toml", natural.to_toml())
    write(out / "sites.toml", deployment.to_toml())
    return deployment


def _held(experiment: Experiment) -> Iterator[tuple[str, str, Save]]:
    """Yield what every client is called, its file, and what writes it."""
    clients = clients_of(experiment)
    if isinstance(clients, ClientGraphs):
        for graph in clients.graphs:
            kept = graph if experiment.data.split == "stored" else _bare(graph)
            yield "site", "graph.npz", partial(save_npz, kept)
    elif isinstance(clients, Territories):
        for territory in clients.territories:
            yield territory.name, "events.npz", partial(save_outage_events, territory.events)
    elif isinstance(clients, Sites):
        for series in clients.series:
            yield series.name, "series.npz", partial(save_series, series)
    elif isinstance(clients, Platforms):
        for platform in clients.platforms:
            yield platform.name, "interactions.npz", partial(save_interactions, _rejoined(platform))
    else:
        for album in clients.albums:
            yield "site", "images.npz", partial(save_images, album.images.of(album.rows))


def _bare(graph: Data) -> Data:
    """Return a graph without the masks, which every client draws itself."""
    return Data(x=graph.x, edge_index=graph.edge_index, y=graph.y)


def _rejoined(platform: Platform) -> Interactions:
    """Return the events of a platform's users as they were before they were split."""
    parts = platform.own
    joined = replace(
        parts.train,
        user=torch.cat([part.user for part in parts]),
        item=torch.cat([part.item for part in parts]),
        time=cat_known([part.time for part in parts]),
        session=cat_known([part.session for part in parts]),
    )
    return joined.sort().k_core(1)


def _told(experiment: Experiment) -> dict[str, Scalar]:
    """Return the keys that say what a site cannot know from its own data, or that are done with."""
    clients = clients_of(experiment)
    if isinstance(clients, Albums):
        height, width = clients.whole.x.shape[2:]
        if height != width:
            raise ConfigError(
                f"data.images.size: the images are {height}x{width}, and sites must agree on one "
                "size; set it"
            )
        key = "data.images.classes"
        return {key: _list(clients.whole.class_names, key), "data.images.size": height}
    if isinstance(clients, ClientGraphs):
        return {"data.num_classes": clients.num_classes}
    if isinstance(clients, Territories):
        return {"data.outages.columns": "", "data.outages.units": ""}
    if not isinstance(clients, Platforms):
        return {}
    prefix = "data.interactions."
    return {
        f"{prefix}categories": _list(clients.class_names, f"{prefix}categories"),
        **{f"{prefix}{key}": "" for key in ("names", "item_tables", "category_separator")},
        f"{prefix}min_events": 1,
        f"{prefix}catalogue": 1.0,
    }


def _list(names: Sequence[str], key: str) -> str:
    unlistable = [name for name in names if "," in name]
    if unlistable:
        raise ConfigError(
            f"{key}: '{unlistable[0]}' holds a comma, which ends a name in a list; rename it"
        )
    return ", ".join(names)


def _names(names: Sequence[str]) -> list[str]:
    """Return names that a site may have: its own where these tell all apart, else numbers."""
    slugs = [_slug(name) for name in names]
    if len(set(slugs)) < len(slugs) or "server" in slugs:
        width = len(str(len(slugs) - 1))
        return [f"site-{number:0{width}}" for number in range(len(slugs))]
    return slugs


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower())[:40].strip("-") or "site"
