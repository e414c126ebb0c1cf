"""Measure what the prototypes of a federation leak, undefended and defended, and what that costs.

Every defence runs the same short federation in this process; what crossed the wire in its last
round is attacked with the encoders that made it. Noise comes from the seed, so that an audit
repeats; its ε is that of the same noise from a secret source.
"""

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from flwr.app import Message, MessageType
from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.table import Table
from torch import Tensor

from federation.client_app import exchange_of, forget_learners
from federation.experiment import Experiment, Scalar
from federation.learners import NodeLearner
from federation.learners.graphs import client_graphs
from federation.privacy.accountant import most_releases, noise_for
from federation.privacy.attacks import (
    length_auc,
    membership_auc,
    nearest_distance,
    owner_is_nearest,
)
from federation.strategies.prototypes import Upload
from federation.tables import PROTOTYPE_STRATEGIES
from graphcl.errors import ConfigError
from simulations.carriers.local import LocalGrid

BINS = (("1", 1), ("2-5", 5), ("6-20", 20), (">20", 10**9))  # samples of a class on a client
_EXACT = 0.01  # of the typical distance, below which a sample counts as reconstructed


@dataclass(frozen=True)
class Defence:
    """What is put between a client and the server.

    Attributes:
        name: As the table shows it.
        keys: What it sets in the experiment.
        epsilon: What it guarantees; None without noise.
    """

    name: str
    keys: dict[str, Scalar]
    epsilon: float | None = None


@dataclass(frozen=True)
class ClassLeak:
    """What one class of one client gave away.

    Attributes:
        size: Its training samples on the client.
        released: Whether its prototype left.
        auc: Of membership by distance to the prototype.
        without: Of membership by the length of the embedding, without the prototype.
        distance: From the prototype to the nearest member, over the typical distance in the class.
        owner: Whether the training sample nearest to the prototype, of all clients, is the owner's.
        chance: Share of all clients' training samples that are the owner's.
    """

    size: int
    released: bool
    auc: float = float("nan")
    without: float = float("nan")
    distance: float = float("nan")
    owner: float = float("nan")
    chance: float = float("nan")


@dataclass(frozen=True)
class Audited:
    """One defence over all seeds.

    Attributes:
        defence: What was tried.
        accuracy: Test accuracy over all clients at the best validation round, by seed.
        by_prototype: The same where the nearest prototype is the prediction, if there are any.
        leaks: Every class of every client, by seed.
    """

    defence: Defence
    accuracy: list[float]
    by_prototype: list[float]
    leaks: list[list[ClassLeak]]


def defences(
    experiment: Experiment, epsilons: Sequence[float], supports: Sequence[int]
) -> list[Defence]:
    """Return what is compared: no federation, no defence, thresholds, then noise.

    Raises:
        ConfigError: If there is nothing to audit, or noise is asked for without a clip.
    """
    if experiment.task.name != "classify" or experiment.strategy.name not in PROTOTYPE_STRATEGIES:
        raise ConfigError(
            f"graphcl audit attacks class prototypes; set task.name to 'classify' and "
            f"strategy.name to one of {', '.join(PROTOTYPE_STRATEGIES)}"
        )
    if experiment.privacy.masking:
        raise ConfigError(
            "privacy.masking: graphcl audit attacks single prototypes, which masks keep from the "
            "server; switch it off to see what they would leak"
        )
    if epsilons and not experiment.privacy.clip:
        raise ConfigError("privacy.clip: noise needs a bound; set it, e.g. --set privacy.clip=3.0")
    off: dict[str, Scalar] = {"privacy.min_support": 1, "privacy.noise_multiplier": 0.0}
    found = [
        Defence("local only", {**off, "privacy.clip": 0.0, "strategy.name": "local"}),
        Defence("none", {**off, "privacy.clip": 0.0}),
    ]
    found += [
        Defence(f"support ≥ {least}", {**off, "privacy.clip": 0.0, "privacy.min_support": least})
        for least in supports
    ]
    if epsilons:
        found.append(Defence(f"clip {experiment.privacy.clip:g}", off))
    releases = most_releases(experiment, range(1, experiment.run.rounds + 1)) if epsilons else 0
    for target in sorted(epsilons, reverse=True):
        noise = noise_for(target, releases, experiment.privacy.delta)
        keys: dict[str, Scalar] = {"privacy.noise_multiplier": noise, "privacy.noise": "seed"}
        found.append(Defence(f"ε = {target:g}", {**off, **keys}, target))
    return found


def audit(
    experiment: Experiment,
    tried: Sequence[Defence],
    seeds: int,
    on_run: Callable[[], None] = lambda: None,
) -> list[Audited]:
    """Run a federation under every defence and attack what it released.

    Args:
        experiment: What is run; its strategy exchanges prototypes of node classes.
        tried: From :func:`defences`.
        seeds: Number of runs per defence, with ``run.seed`` and the seeds after it.
        on_run: Called after every run, ``len(tried) * seeds`` times.
    """
    found = []
    for defence in tried:
        one = Audited(defence, [], [], [])
        for seed in range(experiment.run.seed, experiment.run.seed + seeds):
            with tempfile.TemporaryDirectory() as directory:
                own = experiment.override(
                    {
                        **defence.keys,
                        "run.seed": seed,
                        "run.compare": "",
                        "run.directory": directory,
                        "simulation.engine": "local",
                    }
                )
                forget_learners()
                grid = _Tap(own)
                grid.serve()
                summary = json.loads((Path(directory) / "summary.json").read_text())
            one.accuracy.append(summary["test_accuracy"])
            if grid.uploads:
                one.by_prototype.append(summary["test_accuracy_prototype"])
            one.leaks.append([*_leaks(own, grid)] if grid.uploads else [])
            on_run()
        found.append(one)
    return found


class _Tap(LocalGrid):
    """The in-process grid, with what every client released last."""

    def __init__(self, experiment: Experiment):
        super().__init__(experiment)
        self.uploads: dict[int, Upload] = {}

    def deliver(self, messages: list[Message], timeout: float | None) -> list[Message]:
        replies = super().deliver(messages, timeout)
        for message, reply in zip(messages, replies, strict=True):
            if message.metadata.message_type == MessageType.TRAIN and not reply.has_error():
                record = reply.content.array_records.get("prototypes")
                if record is not None:
                    partition = message.metadata.dst_node_id - 1
                    self.uploads[partition] = Upload.from_arrays(record)
        return replies


def _leaks(experiment: Experiment, grid: _Tap) -> Iterator[ClassLeak]:
    """Attack the last release of every client with the encoder that made it."""
    for partition, upload in sorted(grid.uploads.items()):
        with exchange_of(grid.contexts[partition], keep=False) as exchange:
            learner = exchange.learner
            assert isinstance(learner, NodeLearner)  # noqa: S101 - classify has no other
            out = learner.forward()
            foreign = _foreign(learner, experiment, partition)
        train = learner.masks["train"]
        prototypes = dict(zip(upload.classes.tolist(), upload.values, strict=True))
        for label in out.y[train].unique().tolist():
            of_class = out.y == label
            members, others = out.embedding[of_class & train], out.embedding[of_class & ~train]
            if label not in prototypes or not len(others):
                yield ClassLeak(len(members), label in prototypes)
                continue
            prototype = prototypes[label]
            yield ClassLeak(
                size=len(members),
                released=True,
                auc=membership_auc(prototype, members, others),
                without=length_auc(members, others),
                distance=nearest_distance(prototype, members, out.embedding[of_class]),
                owner=float(owner_is_nearest(prototype, out.embedding[train], foreign)),
                chance=int(train.sum()) / (int(train.sum()) + len(foreign)),
            )


@torch.no_grad()
def _foreign(learner: NodeLearner, experiment: Experiment, partition: int) -> Tensor:
    """Embed all other clients' training samples with one client's encoder."""
    graphs = client_graphs(experiment).graphs
    return torch.cat(
        [
            learner.model(graph.x, graph.edge_index).embedding[graph.train_mask]
            for other, graph in enumerate(graphs)
            if other != partition
        ]
    )


@dataclass(frozen=True)
class Leakage:
    """The classes of one size under one defence.

    Attributes:
        size: Their number of samples, as the table shows it.
        classes: Their number, over all seeds.
        withheld: Share that did not leave.
        auc, auc_spread: Mean over seeds, and the standard deviation between them.
        without: Mean of what the encoder alone tells.
        distance: Median of the distance to the nearest member.
        exact: Share whose nearest member is reconstructed.
        owner: Share whose nearest sample is the owner's.
        chance: What that would be by chance.
    """

    size: str
    classes: int
    withheld: float
    auc: float | None = None
    auc_spread: float | None = None
    without: float | None = None
    distance: float | None = None
    exact: float | None = None
    owner: float | None = None
    chance: float | None = None


def by_size(one: Audited) -> list[Leakage]:
    """Summarise the leaks of one defence by the size of the class; empty sizes are left out."""
    found, low = [], 0
    for name, high in BINS:
        seeds = [[leak for leak in run if low < leak.size <= high] for run in one.leaks]
        low = high
        every = [leak for run in seeds for leak in run]
        if every:
            found.append(_leakage(name, every, seeds))
    return found


def _leakage(size: str, every: list[ClassLeak], seeds: list[list[ClassLeak]]) -> Leakage:
    attacked = [leak for leak in every if not math.isnan(leak.auc)]
    withheld = _mean([not leak.released for leak in every])
    if not attacked:
        return Leakage(size, len(every), withheld)
    per_seed = [[leak.auc for leak in run if not math.isnan(leak.auc)] for run in seeds]
    means = [_mean(aucs) for aucs in per_seed if aucs]
    return Leakage(
        size=size,
        classes=len(every),
        withheld=withheld,
        auc=_mean(means),
        auc_spread=_deviation(means) if len(means) > 1 else None,
        without=_mean([leak.without for leak in attacked]),
        distance=float(np.median([leak.distance for leak in attacked])),
        exact=_mean([leak.distance < _EXACT for leak in attacked]),
        owner=_mean([leak.owner for leak in attacked]),
        chance=_mean([leak.chance for leak in attacked]),
    )


def audit_table(found: Sequence[Audited]) -> Table:
    """Return a row per defence and size of class."""
    table = Table(box=SIMPLE, padding=0)
    table.add_column("defence", no_wrap=True)
    for name in (
        "acc. %",
        "proto %",
        "size",
        "left",
        "AUC",
        "without",
        "nearest",
        "exact",
        "owner",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for one in found:
        first = [one.defence.name, _spread(one.accuracy, 100), _spread(one.by_prototype, 100)]
        for size in by_size(one):
            auc = [] if size.auc is None else [f"{size.auc:.2f}"]
            auc += [] if size.auc_spread is None else [f"{size.auc_spread:.2f}".lstrip("0")]
            table.add_row(
                *first,
                size.size,
                f"{1 - size.withheld:.0%}",
                "±".join(auc) or "-",
                *("-" if x is None else f"{x:.2f}" for x in (size.without, size.distance)),
                *("-" if x is None else f"{x:.0%}" for x in (size.exact, size.owner)),
            )
            first = ["", "", ""]
        if not any(one.leaks):
            table.add_row(*first)
    return table


def _spread(values: Sequence[float], scale: float) -> str:
    """Return a mean and, of several values, the standard deviation."""
    if not values:
        return "-"
    mean = f"{scale * _mean(values):.1f}"
    return f"{mean}±{scale * _deviation(values):.1f}" if len(values) > 1 else mean


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _deviation(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def write_audit(experiment: Experiment, found: Sequence[Audited], directory: Path) -> None:
    """Write ``audit.json`` and, where noise was tried, ``audit.png`` into a directory."""
    content = {
        "experiment": experiment.model_dump(),
        "defences": [
            {
                **asdict(one.defence),
                "accuracy": one.accuracy,
                "accuracy_by_prototype": one.by_prototype,
                "leakage": [asdict(size) for size in by_size(one)],
            }
            for one in found
        ],
    }
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    (directory / "audit.json").write_text(text, encoding="utf-8")
    noised = [one for one in found if one.defence.epsilon is not None]
    if noised:
        _plot(noised, [o for o in found if o.defence.name in ("none", "local only")], directory)


def _plot(noised: Sequence[Audited], lines: Sequence[Audited], directory: Path) -> None:
    """Draw accuracy over ε, mean and standard deviation over seeds, between two references."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for one, style in zip(lines, (":", "--"), strict=True):
        axes.axhline(100 * _mean(one.accuracy), color="0.4", ls=style, label=one.defence.name)
    for name, marker in (("accuracy", "o"), ("by_prototype", "s")):
        axes.errorbar(
            [one.defence.epsilon or 0.0 for one in noised],
            [100 * _mean(getattr(one, name)) for one in noised],
            [100 * _deviation(getattr(one, name)) for one in noised],
            marker=marker,
            capsize=3,
            label=f"noise, {name.replace('_', ' ')}",
        )
    axes.set(xscale="log", xlabel="ε of the whole run", ylabel="test accuracy of all clients, %")
    axes.legend()
    figure.savefig(directory / "audit.png", dpi=150)
