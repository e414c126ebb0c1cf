"""Evaluate label-free node methods: pre-train on a graph, freeze, probe linearly over splits."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, ValidationError, ValidationInfo, field_validator
from torch import Tensor
from torch_geometric.data import Data

from federation.experiment import Scalar, describe_keys, explain, flatten, read_toml
from federation.tables import Table, key
from graphcl.datasets import load
from graphcl.datasets.protocols import load_splits, random_splits, stored_splits
from graphcl.datasets.sources import locate
from graphcl.errors import ConfigError
from graphcl.metrics import roc_auc
from graphcl.nodes import (
    ASPECT,
    ASPECTS,
    BGRL,
    GRACE,
    ASPECTConfig,
    ASPECTSConfig,
    BGRLConfig,
    GRACEConfig,
    NodeMethod,
    PolyGCL,
    PolyGCLConfig,
    ProbeResult,
    bootstrap_half_width,
    linear_probe,
)
from graphcl.training import num_threads
from simulations.keys import describe_config, named_by_key

Masks = tuple[Tensor, Tensor, Tensor]
METHODS: dict[str, type[NodeMethod]] = {
    "aspect": ASPECT,
    "aspect_s": ASPECTS,
    "grace": GRACE,
    "bgrl": BGRL,
    "polygcl": PolyGCL,
}


class ProbeTable(Table):
    """What is evaluated, and how."""

    name: str = key("probe", "part of the result's file name", pattern=r"^[A-Za-z0-9._-]+$")
    method: Literal["aspect", "aspect_s", "grace", "bgrl", "polygcl"] = key(
        "aspect", "the label-free method"
    )
    source: str = key("digits", "digits, mixed, pyg:CLASS/NAME, or an .npz file", min_length=1)
    root: str = key("", "folder of data sets; empty = the environment variable GRAPHCL_DATA")
    splits: Literal["random", "stored", "geom"] = key(
        "random",
        "ten random 60/20/20 splits; the file's own masks; or Geom-GCN's ten 48/32/20 splits: its "
        "geom_ masks where its own are of one split, else its own",
    )
    weight_decay: float = key(0.0, "L2 penalty of the probe", ge=0)
    epochs: int = key(2000, "steps of the probe", ge=1)
    patience: int = key(200, "steps without a better validation accuracy that end it", ge=1)
    seeds: int = key(
        1, "trainings, of the method's seed and those that follow it; accuracies are means", ge=1
    )


class ProbeExperiment(Table):
    """A whole probe file: one table for the evaluation, one per method.

    ASPECT-S takes what its own table leaves open from that of ASPECT, which it extends.
    """

    probe: ProbeTable = ProbeTable()
    aspect: ASPECTConfig = ASPECTConfig()
    aspect_s: ASPECTSConfig = Field(default_factory=dict, validate_default=True)
    grace: GRACEConfig = GRACEConfig()
    bgrl: BGRLConfig = BGRLConfig()
    polygcl: PolyGCLConfig = PolyGCLConfig()
    search: dict[str, list[Scalar]] = key({}, "values to try per key, see --search")

    _in_range = field_validator(*METHODS, mode="wrap", check_fields=False)(named_by_key)

    @field_validator("aspect_s", mode="before")
    @classmethod
    def _inherit(cls, own: Any, info: ValidationInfo) -> Any:
        aspect = info.data.get("aspect")  # missing where it is invalid, which is said already
        return {**asdict(aspect), **own} if aspect and isinstance(own, dict) else own


@dataclass(frozen=True)
class Probed:
    """What a probe found.

    Attributes:
        experiment: The whole configuration.
        results: Accuracies per split, one entry per training.
        untrained: The same of the method before its first step: what the filters alone give.
        policy_auc: How well the spectral policy tells homophilic nodes from others, in [0, 1], mean
            over the trainings; None for a method without one, or a graph of one kind of nodes.
    """

    experiment: ProbeExperiment
    results: list[ProbeResult]
    untrained: list[ProbeResult]
    policy_auc: float | None


def load_probe(path: Path, overrides: dict[str, Scalar] | None = None) -> ProbeExperiment:
    """Read a probe file.

    Raises:
        ConfigError: If it is missing, is no TOML, or does not validate.
    """
    return probe_experiment(read_toml(path, overrides, "graphcl probe"), str(path))


def probe_experiment(nested: dict[str, Any], origin: str) -> ProbeExperiment:
    """Validate the nested tables of a probe file.

    Raises:
        ConfigError: If they do not validate; one line per problem.
    """
    try:
        return ProbeExperiment.model_validate(nested)
    except ValidationError as error:
        keys = [name for name, _ in flatten(ProbeExperiment().model_dump())]
        raise ConfigError(explain(error, origin, keys)) from None


def run_probe(
    experiment: ProbeExperiment,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
    *,
    leaking: bool = False,
) -> Probed:
    """Pre-train the method of an experiment without labels and probe its frozen embedding.

    Everything is chosen on validation nodes; every split's test nodes are touched once. With
    ``leaking`` the results also hold what a choice by test nodes would give.
    """
    data, masks = load_graph(experiment.probe)
    results, untrained, policy_aucs = [], [], []
    for training in range(experiment.probe.seeds):
        with num_threads(1):
            start = new_method(experiment, training).start(data)
            untrained.append(
                probe_embedding(experiment.probe, start.embed(data), data.y, masks, leaking)
            )
            method = new_method(experiment, training).fit(data, on_epoch)
            results.append(
                probe_embedding(experiment.probe, method.embed(data), data.y, masks, leaking)
            )
            policy_aucs.append(_policy_auc(method, data))
    known = [auc for auc in policy_aucs if auc is not None]
    return Probed(experiment, results, untrained, float(np.mean(known)) if known else None)


def probe_embedding(
    probe: ProbeTable, embedding: Tensor, y: Tensor, masks: Masks, leaking: bool = False
) -> ProbeResult:
    """Probe an embedding as an experiment's table says."""
    return linear_probe(
        embedding,
        y,
        *masks,
        epochs=probe.epochs,
        patience=probe.patience,
        leaking=leaking,
        weight_decay=probe.weight_decay,
    )


def load_graph(probe: ProbeTable) -> tuple[Data, Masks]:
    """Load the graph of an evaluation and the masks of its splits."""
    data = load(probe.source, root=probe.root or None)
    return data, _splits(probe, data.y, data)


def new_method(experiment: ProbeExperiment, training: int = 0) -> NodeMethod:
    """Return the method of an experiment, without weights yet, for the training of that number."""
    name = experiment.probe.method
    config = getattr(experiment, name)
    return METHODS[name](replace(config, seed=config.seed + training))


def write_result(probed: Probed, out: Path) -> Path:
    """Write configuration and accuracies of a probe as JSON; return the file."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{probed.experiment.probe.name}-{probed.experiment.probe.splits}.json"
    content = {
        "experiment": probed.experiment.model_dump(),
        "trained": figures(probed.results),
        "untrained": figures(probed.untrained),
        "policy_auc": probed.policy_auc,
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def by_split(probes: Sequence[ProbeResult]) -> np.ndarray:
    """Return the test accuracy of each split, averaged over several probes of the same splits."""
    return np.mean([probe.test_accuracy for probe in probes], axis=0)


def figures(probes: Sequence[ProbeResult]) -> dict[str, Any]:
    """Return what several probes of the same splits found, as it is written to JSON.

    The confidence is that of the splits; how far trainings lie apart is in ``test_accuracy``.
    """
    accuracy = by_split(probes)
    found: dict[str, Any] = {
        "mean": float(accuracy.mean()),
        "confidence": bootstrap_half_width(accuracy),
        "validation_mean": float(np.mean([probe.val_accuracy for probe in probes])),
        "test_accuracy": [probe.test_accuracy.tolist() for probe in probes],
    }
    leaked = leaking_by_split(probes)
    if leaked is not None:
        found["leaking_mean"] = float(leaked.mean())
        found["leaking_confidence"] = bootstrap_half_width(leaked)
    return found


def leaking_by_split(probes: Sequence[ProbeResult]) -> np.ndarray | None:
    """Return the leaking test accuracy of each split, averaged as :func:`by_split` does."""
    leaked = [p.leaking_test_accuracy for p in probes if p.leaking_test_accuracy is not None]
    return np.mean(leaked, axis=0) if leaked else None


def describe_probe_keys() -> Iterator[tuple[str, Scalar, str]]:
    """Yield every dotted key of a probe file with its default and its meaning."""
    yield from describe_keys(ProbeTable, "probe.")
    for method, kind in METHODS.items():
        # The other methods refer to ASPECT's docstring for what they share with it.
        yield from describe_config(kind.config_type, f"{method}.", ASPECTConfig)
    yield "search", "{}", "values to try per dotted key with --search, e.g. aspect.temperature"


def _policy_auc(method: NodeMethod, data: Data) -> float | None:
    if not isinstance(method, ASPECT) or method.config.policy != "node":
        return None
    degree, same = torch.zeros(2, len(data.y))
    source, target = data.edge_index
    degree.index_add_(0, source, torch.ones(len(source)))
    same.index_add_(0, source, (data.y[source] == data.y[target]).float())
    homophilic = (2 * same >= degree)[degree > 0].long()
    if not len(homophilic) or homophilic.min() == homophilic.max():
        return None
    return roc_auc(method.spectral_policy(data)[degree > 0, 0], homophilic)


def _splits(probe: ProbeTable, y: Tensor, data: Any) -> Masks:
    if probe.splits == "random":
        return random_splits(y)
    own = getattr(data, "train_mask", None)
    if probe.splits == "stored":
        if own is None:
            raise ConfigError(
                f"probe.splits = 'stored': {probe.source} has no masks of its own; choose random"
            )
        return stored_splits(data)
    if own is not None and own[0].numel() > 1:
        return stored_splits(data)
    if not probe.source.endswith(".npz"):
        raise ConfigError(
            f"probe.splits = 'geom': {probe.source} has no such masks; choose random, or name an "
            ".npz file that has them"
        )
    return load_splits(locate(probe.source, probe.root or None))
