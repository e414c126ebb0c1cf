"""Which keys of an experiment go together, as far as that can be told without the data."""

from collections.abc import Collection
from typing import TYPE_CHECKING

from federation.fault_tables import UPDATE_ATTACKS
from federation.tables import (
    BATCHED_STRATEGIES,
    LABEL_SKEWS,
    PROTOTYPE_STRATEGIES,
    SUMMED_STRATEGIES,
    WEIGHT_STRATEGIES,
)
from graphcl.images import IMAGE_ENCODERS
from graphcl.nodes import ENCODERS

if TYPE_CHECKING:
    from federation.experiment import Experiment


def check_combination(experiment: "Experiment") -> None:
    """Refuse what cannot run, whatever the data are.

    Raises:
        ValueError: The message begins with a key and says what to set instead.
    """
    task, strategy, model = experiment.task.name, experiment.strategy.name, experiment.model
    planned = experiment.planned
    if task == "classify":
        _check_encoders(experiment, "nodes", ENCODERS)
    if task == "images":
        _check_encoders(experiment, "images", IMAGE_ENCODERS)
    if strategy in WEIGHT_STRATEGIES and experiment.unlike_models:
        raise ValueError(
            f"strategy.name: '{strategy}' has one model for all, but model.encoders "
            f"gives the clients unlike models ({model.encoders}); name one encoder, or "
            "use 'lgfedavg' or a prototype strategy (fedproto, fedtgp, feddbp)"
        )
    if task not in ("classify", "images") and experiment.simulation.gpus_per_client:
        raise ValueError(
            f"simulation.gpus_per_client: task.name = '{task}' runs on the CPU; leave it at 0"
        )
    if experiment.data.split == "stored" and task not in ("classify", "pretrain"):
        raise ValueError(
            f"data.split: 'stored' reads the masks of a graph, but task.name = '{task}' has none; "
            "leave it at 'random'"
        )
    if experiment.partition.scheme == "users" and task != "recommend":
        raise ValueError(
            f"partition.scheme: 'users' deals out the users of interactions, but task.name = "
            f"'{task}'; choose another scheme, or task.name = 'recommend'"
        )
    if "scfsgl" in planned and task != "forecast":
        raise ValueError(
            f"{_named(experiment, 'scfsgl')}: 'scfsgl' is about forecasts, but task.name "
            f"= '{task}'; choose another strategy, or task.name = 'forecast'"
        )
    if experiment.simulation.batch_clients:
        _check_batches(experiment)
    headless = {"pretrain": "a label-free method", "recommend": "a recommender"}
    heads = {
        "fedper": "leaves the last layers on their node",
        "lgfedavg": "averages the last layers",
    }
    for name in sorted(planned & set(heads)) if task in headless else ():
        raise ValueError(
            f"{_named(experiment, name)}: '{name}' {heads[name]}, and "
            f"{headless[task]} has none behind its embedding; take 'fedavg', with "
            "strategy.personal_weights for what shall stay"
        )
    if task == "images":
        _possible_images(experiment)
    feddbp = experiment.strategy.feddbp
    fisher_leaves = "feddbp" in planned and feddbp.sends_fisher
    if refusal := experiment.privacy.refuse(planned, PROTOTYPE_STRATEGIES, fisher_leaves):
        raise ValueError(refusal)
    if experiment.privacy.masking:
        _possible_masking(experiment)
    if task == "outages":
        _possible_outages(experiment)
    if task == "forecast":
        _possible_forecasts(experiment)
    if task == "recommend":
        _possible_recommendations(experiment)
    _possible_faults(experiment)
    if experiment.asynchrony.buffer:
        _possible_asynchrony(experiment)
    if "feddbp" in planned and feddbp.fuse == "concat" and model.embedding_channels % 2:
        raise ValueError(
            f"model.embedding_channels: {model.embedding_channels} cannot be halved for "
            "the two branches of strategy.feddbp.fuse = 'concat'; take an even number"
        )
    if "feddbp" in planned and feddbp.fisher_bits == 1:
        _possible_bits(experiment)
    halved = task == "pretrain" and experiment.pretrain.method == "aspect"
    if halved and experiment.pretrain.aspect.fusion == "concat" and model.embedding_channels % 2:
        raise ValueError(
            f"model.embedding_channels: {model.embedding_channels} cannot be halved for "
            "the two channels of pretrain.aspect.fusion = 'concat'; take an even number"
        )
    csbm = experiment.data.csbm
    if experiment.data.source == "csbm" and csbm.classes > csbm.nodes:
        raise ValueError(f"data.csbm.classes: {csbm.classes} classes do not fit {csbm.nodes} nodes")
    if experiment.data.source == "csbm" and experiment.data.num_classes not in (0, csbm.classes):
        raise ValueError(
            f"data.num_classes: {experiment.data.num_classes} was promised, but data.csbm.classes "
            f"generates {csbm.classes}; make them equal or leave num_classes at 0"
        )
    needed = experiment.partition.clients * experiment.partition.min_nodes
    if experiment.data.source == "csbm" and needed > csbm.nodes:
        raise ValueError(
            f"partition.clients: {experiment.partition.clients} clients of at least "
            f"{experiment.partition.min_nodes} nodes need more than the {csbm.nodes} nodes there "
            "are; lower partition.clients or partition.min_nodes"
        )


def _named(experiment: "Experiment", strategy: str) -> str:
    """Return the key that names a planned strategy."""
    return "strategy.name" if experiment.strategy.name == strategy else "run.compare"


def _possible_bits(experiment: "Experiment") -> None:
    if experiment.strategy.feddbp.fisher == "server":
        raise ValueError(
            "strategy.feddbp.fisher_bits: 1 bit is what a client says of a channel, but "
            "strategy.feddbp.fisher = 'server' has nothing of it on the wire; leave it at 32"
        )
    if experiment.strategy.feddbp.personal == "soft":
        raise ValueError(
            "strategy.feddbp.fisher_bits: 1 bit says whether a channel matters, but "
            "strategy.feddbp.personal = 'soft' asks how much; take 'hard', 'similar' or 'off'"
        )


def _possible_masking(experiment: "Experiment") -> None:
    planned, strategy = experiment.planned, experiment.strategy
    unsummed = sorted(planned & set(PROTOTYPE_STRATEGIES) - set(SUMMED_STRATEGIES))
    if unsummed:
        raise ValueError(
            f"privacy.masking: the server of '{unsummed[0]}' trains on single prototypes, and sums "
            f"do not hold them; take {' or '.join(SUMMED_STRATEGIES)}, or switch masking off"
        )
    if experiment.partition.clients < 2:
        raise ValueError(
            "privacy.masking: a sum over one client hides nothing; set partition.clients to 2 or "
            "more"
        )
    if strategy.fraction < 1:
        raise ValueError(
            f"privacy.masking: the masks of all clients cancel, but strategy.fraction = "
            f"{strategy.fraction:g} leaves some out; set it to 1"
        )
    if strategy.robust.rule != "mean":
        raise ValueError(
            f"privacy.masking: strategy.robust.rule = '{strategy.robust.rule}' compares single "
            "prototypes, and sums do not hold them; set it to 'mean'"
        )
    if experiment.faults.summary:
        raise ValueError(
            "privacy.masking: a sum cannot be read without a reply, nor with another in its place, "
            f"and [faults] would see to that ({experiment.faults.summary}); set them to 0"
        )
    feddbp = strategy.feddbp
    if "feddbp" in planned and feddbp.personal == "similar":
        raise ValueError(
            "privacy.masking: strategy.feddbp.personal = 'similar' compares single prototypes, and "
            "sums do not hold them; take 'soft', 'hard' or 'off'"
        )
    if "feddbp" in planned and feddbp.fisher == "server":
        raise ValueError(
            "privacy.masking: strategy.feddbp.fisher = 'server' trains on single prototypes, and "
            "sums do not hold them; take 'client'"
        )
    if "feddbp" in planned and feddbp.global_weight == "fisher" and feddbp.fisher_floor < 0.001:
        raise ValueError(
            f"privacy.masking: strategy.feddbp.fisher_floor = {feddbp.fisher_floor:g} makes "
            "weights that drown in the fixed point of masked sums; take at least 0.001"
        )


def _check_encoders(experiment: "Experiment", what: str, known: Collection[str]) -> None:
    foreign = [name for name in experiment.model.encoder_names if name not in known]
    if foreign:
        raise ValueError(
            f"model.encoders: '{foreign[0]}' embeds no {what}, as task.name = "
            f"'{experiment.task.name}' needs; name one or more of {', '.join(known)}"
        )


def _possible_images(experiment: "Experiment") -> None:
    source, scheme = experiment.data.source, experiment.partition.scheme
    if scheme not in (*LABEL_SKEWS, "natural"):
        raise ValueError(
            f"partition.scheme: '{scheme}' divides no images; choose one of "
            f"{', '.join(LABEL_SKEWS)}, or natural for a source per client"
        )
    foreign = [path for path in experiment.data.paths if path == "csbm" or path.startswith("pyg:")]
    if foreign:
        raise ValueError(
            f"data.source: '{foreign[0]}' holds no images; use 'digits', or the paths of .npz "
            "files or of folders"
        )
    sources, clients = len(experiment.data.paths), experiment.partition.clients
    if scheme == "natural" and sources != clients:
        raise ValueError(
            f"data.source: {sources} names for partition.clients = {clients} clients with images "
            "of their own; name one for each, also where edge nodes bring them"
        )
    twice = [path for path in experiment.data.paths if experiment.data.paths.count(path) > 1]
    if twice:
        raise ValueError(f"data.source: '{twice[0]}' is there twice; name it once")
    if sources > clients:
        raise ValueError(
            f"partition.clients: {clients} clients are fewer than the {sources} sources of "
            f"data.source = '{source}'; each needs one"
        )


def _check_batches(experiment: "Experiment") -> None:
    """Refuse to train clients as one batch where a client alone would do something else."""
    model, simulation = experiment.model, experiment.simulation
    others = sorted(experiment.planned - {*BATCHED_STRATEGIES, ""})
    reasons = {
        f"task.name = '{experiment.task.name}' has other learners": experiment.task.name
        != "classify",
        f"model.encoders = '{model.encoders}' are no perceptrons": {*model.encoder_names}
        != {"mlp"},
        "model.dropout draws from one stream per client": model.dropout > 0,
        f"'{others[0] if others else ''}' is none of {', '.join(BATCHED_STRATEGIES)}": bool(others),
        "privacy.masking hides the replies of single clients": experiment.masked,
        "strategy.personal_weights stay on the clients": bool(experiment.strategy.personal_names),
        "Flower's own engine sends one message at a time": simulation.engine == "flower",
        "faults of processes strike single clients": experiment.faults.of_processes,
        "simulation.client_timeout watches single clients": simulation.client_timeout > 0,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(f"simulation.batch_clients: {reason}; leave it at 0")


def _possible_faults(experiment: "Experiment") -> None:
    faults, planned = experiment.faults, experiment.planned
    if faults.summary and "pooled" in planned:
        raise ValueError(
            "faults: 'pooled' has the data in one place and no clients that could fail; leave "
            "it out, or the faults"
        )
    if faults.of_processes and experiment.simulation.engine == "flower":
        raise ValueError(
            "faults.crash, hang, memory and slow are of processes, and Flower's own engine goes on "
            "with those that died; take simulation.engine = 'ray' or 'local'"
        )
    if faults.of_processes and experiment.asynchrony.buffer:
        raise ValueError(
            "faults.crash, hang, memory and slow are drawn for rounds, and asynchrony.buffer has "
            "none; leave one of them out"
        )
    waits = experiment.simulation.engine == "ray" and not experiment.simulation.client_timeout
    if faults.hang and waits:
        raise ValueError(
            "faults.hang: nothing would end it before run.timeout; set simulation.client_timeout, "
            "to 20 seconds for instance"
        )
    if faults.hostile and "scfsgl" in planned:
        raise ValueError(
            "faults.hostile: attacks are on prototypes and on weights, and 'scfsgl' sends "
            "codebooks; leave it out, or set hostile to 0"
        )
    weighing = sorted(planned & set(WEIGHT_STRATEGIES))
    if faults.hostile and weighing and faults.attack not in UPDATE_ATTACKS:
        raise ValueError(
            f"faults.attack: '{faults.attack}' is about the prototypes of classes, and "
            f"'{weighing[0]}' sends weights; take one of {', '.join(UPDATE_ATTACKS)}"
        )


def _possible_asynchrony(experiment: "Experiment") -> None:
    table, clients = experiment.asynchrony, experiment.partition.clients
    if max(table.buffer, table.concurrency) > clients:
        raise ValueError(
            f"asynchrony: a buffer of {table.buffer} and {table.concurrency or 'as many'} clients "
            f"at work need as many clients, but partition.clients = {clients}; lower them"
        )
    if experiment.strategy.fraction < 1:
        raise ValueError(
            f"asynchrony.buffer: without rounds there is no strategy.fraction = "
            f"{experiment.strategy.fraction:g} of the clients to draw; leave it at 1 and set "
            "asynchrony.concurrency"
        )
    if experiment.privacy.masking:
        raise ValueError(
            "asynchrony.buffer: privacy.masking hides a client in the sum over all, and a buffer "
            "holds some; leave one of them out"
        )
    if experiment.faults.stale:
        raise ValueError(
            "asynchrony.buffer: replies are late by the clock already; leave faults.stale at 0"
        )


def _possible_outages(experiment: "Experiment") -> None:
    if experiment.partition.scheme != "natural":
        raise ValueError(
            "partition.scheme: task.name = 'outages' has one district per client; set it to "
            "'natural'"
        )
    if experiment.data.source in ("digits", "csbm") or experiment.data.source.startswith("pyg:"):
        raise ValueError(
            f"data.source: '{experiment.data.source}' holds no outages; use 'storms', a folder of "
            "CSV tables or an .npz file"
        )
    paths = experiment.data.paths
    if len(paths) > 1 and len(paths) != experiment.partition.clients:
        raise ValueError(
            f"partition.clients is {experiment.partition.clients}, but data.source lists "
            f"{len(paths)} territories, one per client: set it to {len(paths)}"
        )
    if len(paths) > 1 and "pooled" in experiment.planned:
        raise ValueError(
            f"{_named(experiment, 'pooled')}: 'pooled' has one network for all locations, but "
            "data.source lists territories that came apart; leave 'pooled' out, or name one source"
        )
    if "pooled" in experiment.planned and experiment.data.outages.newcomer:
        raise ValueError(
            "data.outages.newcomer: pooled training has all storms of all districts, so "
            "nobody is new; leave 'pooled' out"
        )


def _possible_forecasts(experiment: "Experiment") -> None:
    rows = experiment.forecast.num_prototypes
    matching = experiment.planned & {"scfsgl", *PROTOTYPE_STRATEGIES}
    if rows < 2 and (matching or rows == 1):
        raise ValueError(
            f"forecast.num_prototypes: {rows} rows are no codebook to match"
            f"{', as ' + min(matching) + ' does' if matching else ''}; take at least 2"
        )
    if "pooled" in experiment.planned and experiment.partition.scheme != "louvain":
        raise ValueError(
            f"{_named(experiment, 'pooled')}: 'pooled' has one network for all sensors, but "
            "unlike series have none in common; leave 'pooled' out, or divide one series "
            "(partition.scheme = 'louvain')"
        )
    source, scheme, paths = (
        experiment.data.source,
        experiment.partition.scheme,
        experiment.data.paths,
    )
    simulated = source == "confounded"
    if scheme in LABEL_SKEWS:
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
    if scheme == "natural" and not simulated and len(paths) != experiment.partition.clients:
        raise ValueError(
            f"partition.clients is {experiment.partition.clients}, but data.source lists "
            f"{len(paths)} series, one per client: set it to {len(paths)}"
        )


def _possible_recommendations(experiment: "Experiment") -> None:
    source, scheme, paths = (
        experiment.data.source,
        experiment.partition.scheme,
        experiment.data.paths,
    )
    table, clients = experiment.data.interactions, experiment.partition.clients
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
    if experiment.model.embedding_channels % 2:
        raise ValueError(
            f"model.embedding_channels: {experiment.model.embedding_channels} cannot be shared out "
            "over the two heads of a recommender's attention; take an even number"
        )
