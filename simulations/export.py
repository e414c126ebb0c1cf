"""From a run to a model per site, which loads and predicts without any federation."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord
from torch import nn

from federation.client_app import exchange_of
from federation.deploy.bundles import STATE, SiteBundle, load_bundle_experiment
from federation.deploy.site import STATES
from federation.deploy.states import last_evaluated
from federation.experiment import Experiment, load_experiment
from federation.learners.outages import OutageNetwork
from federation.learners.pretraining import PretrainingModel
from federation.learners.territories import territory_of
from federation.records import from_bytes, round_of
from federation.run_directory import Checkpoint, RunDirectory
from federation.strategies import ALGORITHMS, Exchange
from federation.strategies.base import MessageStrategy
from federation.strategies.fedproto import FedProtoExchange
from graphcl.errors import ConfigError
from graphcl.models import save_model
from simulations.rehearsal import OneNode, facts_of


def export_run(
    directory: Path, out: Path, *, partition: int | None = None, data: str | None = None
) -> list[Path]:
    """Write the model of every client after a run's last complete round.

    It is the model that the client was last evaluated with: the global one, or its own.

    Args:
        directory: The run directory.
        out: Where a folder per client is made.
        partition: Of one client alone.
        data: Where this one client's data are; by default where the run had them.

    Returns:
        The folders, each of which :func:`graphcl.load_model` loads.

    Raises:
        ConfigError: If there is no complete round or no such partition, or the models are elsewhere
            or of no kind that can be stored.
    """
    if not (directory / "config.toml").exists():
        raise ConfigError(f"{directory}: no run directory: it holds no config.toml")
    experiment = load_experiment(directory / "config.toml")
    checkpoint = RunDirectory(directory).latest()
    if checkpoint is None:
        raise ConfigError(f"{directory}: no round is complete yet, so that there is no model")
    states = checkpoint.clients
    # Of edge nodes a checkpoint holds the number of the round whose state they have, at most.
    elsewhere = states is None or any(data.isdigit() for data in states.values())
    if elsewhere and ALGORITHMS[experiment.strategy.name].exchange.keeps(experiment):
        raise ConfigError(
            f"{directory}: '{experiment.strategy.name}' keeps models on the sites, and the run "
            "directory of the server has none of them; export on a site: graphcl deploy export "
            "BUNDLE OUT"
        )
    every = range(experiment.partition.clients)
    if partition is not None and partition not in every:
        raise ConfigError(
            f"--partition {partition}: {directory} has the partitions 0 to {every[-1]}"
        )
    clients = every if partition is None else [partition]
    written = []
    for client in clients:
        folder = out / _name(experiment, client)
        _export(experiment, checkpoint, client, data, folder)
        written.append(folder)
    return written


def export_site(bundle: Path, out: Path) -> Path:
    """Write the model that a site was last evaluated with, on the site itself.

    Args:
        bundle: The site's folder.
        out: Where a folder with the site's name is made.

    Returns:
        That folder.

    Raises:
        ConfigError: If the model is of no kind that can be stored.
        FederationError: If the site was never evaluated.
    """
    site, experiment = SiteBundle.load(bundle), load_bundle_experiment(bundle)
    content, state = last_evaluated(bundle / STATE / STATES)
    context = OneNode(experiment, site.partition, site.data).contexts[site.partition]
    context.state = state
    with exchange_of(context, keep=False) as exchange:
        exchange.receive(content)
        number = round_of(content)
        write_model(exchange, site.partition, number, out / site.name)
    return out / site.name


def _name(experiment: Experiment, client: int) -> str:
    """Return what a client's folder is called: as that of its data, where it has one."""
    paths = experiment.data.paths
    named = [Path(path).parent.name for path in paths]
    if len(set(named)) == experiment.partition.clients and all(named):
        return named[client]
    return f"site-{client}"


def _export(
    experiment: Experiment, checkpoint: Checkpoint, client: int, data: str | None, folder: Path
) -> None:
    grid = OneNode(experiment, client, data)
    context = grid.contexts[client]
    if client in (checkpoint.clients or {}):
        context.state = from_bytes((checkpoint.clients or {})[client])
    with exchange_of(context, keep=False) as exchange:
        facts = facts_of(experiment, client, exchange.learner.facts())
    strategy = ALGORITHMS[experiment.strategy.name].strategy(experiment, facts)
    if isinstance(strategy, MessageStrategy):
        strategy.load_state(checkpoint.strategy)
    number, arrays = checkpoint.server_round, checkpoint.arrays
    [message] = strategy.configure_evaluate(number, arrays, ConfigRecord(), grid)
    with exchange_of(context, keep=False) as exchange:
        exchange.receive(message.content)
        write_model(exchange, client, number, folder)


def write_model(exchange: Exchange, client: int, server_round: int, folder: Path) -> None:
    """Write the model of an exchange as it is.

    Raises:
        ConfigError: If it is of no kind that can be stored.
    """
    experiment = exchange.experiment
    about = {
        "task": experiment.task.name,
        "strategy": experiment.strategy.name,
        "round": server_round,
        "partition": client,
        "config": experiment.model_dump(),
    }
    save_model(trained(exchange, client), folder, about)


def trained(exchange: Exchange, client: int) -> nn.Module:
    """Return a copy of the model that an exchange predicts with, as its room knows it.

    Raises:
        ConfigError: If its room has no place for a part of it.
    """
    experiment = exchange.experiment
    release = _RELEASES.get(experiment.task.name)
    if release is None or experiment.strategy.name == "pooled":
        raise ConfigError(
            f"task.name = '{experiment.task.name}', strategy.name = '{experiment.strategy.name}': "
            f"the models of sites are exported of {', '.join(_RELEASES)}, without 'pooled'"
        )
    return release(exchange, client).cpu().eval()


def _classifier(exchange: Exchange, client: int) -> nn.Module:
    model = copy.deepcopy(exchange.learner.model)
    if isinstance(exchange, FedProtoExchange) and exchange.config.inference == "prototype":
        model.prototypes = exchange.rule()
    return model


def _method(exchange: Exchange, client: int) -> nn.Module:
    model: Any = exchange.learner.model
    assert isinstance(model, PretrainingModel)  # noqa: S101 - by the task
    if not isinstance(model.projector, nn.Identity):
        raise ConfigError(
            "strategy.feddbp.fuse: the projector behind the embedding has no place in a label-free "
            "method; models of runs with fuse = 'none' can be exported, and of other strategies"
        )
    method = copy.deepcopy(model.encoder)
    method.in_channels = exchange.learner.facts()["in-channels"]
    return method


def _outages(exchange: Exchange, client: int) -> nn.Module:
    model: Any = exchange.learner.model
    assert isinstance(model, OutageNetwork)  # noqa: S101 - by the task
    network = copy.deepcopy(model.network)
    network.projector = copy.deepcopy(model.projector)
    events = territory_of(exchange.experiment, client).events
    network.static_names, network.weather_names = events.static_names, events.weather_names
    return network


def _forecaster(exchange: Exchange, client: int) -> nn.Module:
    model: Any = exchange.learner.model
    network = copy.deepcopy(model.network)
    network.projector = copy.deepcopy(model.projector)
    return network


def _ranking(exchange: Exchange, client: int) -> nn.Module:
    model: Any = exchange.learner.model
    return copy.deepcopy(model.network)  # items are ranked before the projector


_RELEASES: dict[str, Callable[[Exchange, int], nn.Module]] = {
    "classify": _classifier,
    "images": _classifier,
    "pretrain": _method,
    "outages": _outages,
    "forecast": _forecaster,
    "recommend": _ranking,
}
