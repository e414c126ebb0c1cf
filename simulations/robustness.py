"""Evaluate how much accuracy a node method loses on randomly perturbed graphs.

Two questions, on the same perturbed graphs, splits and probe as the clean accuracy:

- **poisoned**: the method is trained and probed on the perturbed graph, as after bad records;
- **evaded**: method and probe come from the clean graph and meet the perturbed one at test time.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.box import SIMPLE
from rich.table import Table
from torch import Tensor
from torch_geometric.data import Data

from graphcl.errors import ConfigError
from graphcl.nodes import NodeMethod, ProbeResult, bootstrap_half_width
from graphcl.spectral import random_perturbation
from graphcl.training import num_threads
from simulations.probe import (
    Masks,
    ProbeExperiment,
    by_split,
    figures,
    load_graph,
    new_method,
    probe_embedding,
)


@dataclass(frozen=True)
class Perturbed:
    """Probes on the graphs of one strength of perturbation, one per training and graph.

    Attributes:
        ratio: Flips per edge, and noise per standard deviation of a feature.
        poisoned: Trained and probed on the perturbed graph.
        evaded: Trained and probed on the clean graph, tested on the perturbed one.
    """

    ratio: float
    poisoned: list[ProbeResult]
    evaded: list[ProbeResult]


@dataclass(frozen=True)
class Robustness:
    """What an evaluation under perturbation found.

    Attributes:
        experiment: The whole configuration.
        clean: The probes on the graph as it is, one per training.
        perturbed: One entry per strength.
    """

    experiment: ProbeExperiment
    clean: list[ProbeResult]
    perturbed: list[Perturbed]


def parse_ratios(text: str) -> list[float]:
    """Read strengths of perturbation, e.g. ``0.1,0.2,0.3``.

    Raises:
        ConfigError: One is no number in (0, 1].
    """
    try:
        ratios = [float(part) for part in text.split(",")]
    except ValueError:
        ratios = []
    if not ratios or not all(0 < ratio <= 1 for ratio in ratios):
        raise ConfigError(f"--perturb {text}: write shares above 0 and up to 1, e.g. 0.1,0.2,0.3")
    return ratios


def run_robustness(
    experiment: ProbeExperiment,
    ratios: Sequence[float],
    seeds: int,
    on_fit: Callable[[], None] = lambda: None,
) -> Robustness:
    """Probe a method on the clean graph and on perturbed ones.

    The perturbed graphs depend on strength and seed alone, so that methods meet the same ones.

    Args:
        experiment: What is evaluated, and how.
        ratios: Strengths of :func:`graphcl.spectral.random_perturbation`.
        seeds: Number of perturbed graphs per strength.
        on_fit: Called after every training, ``probe.seeds * (1 + len(ratios) * seeds)`` times.
    """
    data, masks = load_graph(experiment.probe)
    trainings = range(experiment.probe.seeds)

    def fitted(graph: Data, training: int) -> NodeMethod:
        method = new_method(experiment, training).fit(graph)
        on_fit()
        return method

    def probed(embedding: Tensor, y: Tensor, masks: Masks) -> ProbeResult:
        return probe_embedding(experiment.probe, embedding, y, masks)

    def perturb(ratio: float) -> Perturbed:
        graphs = [random_perturbation(data, ratio, seed=seed) for seed in range(seeds)]
        pairs = [(training, graph) for training in trainings for graph in graphs]
        return Perturbed(
            ratio,
            [
                probed(fitted(graph, training).embed(graph), data.y, masks)
                for training, graph in pairs
            ],
            [
                probed(*_evasion(clean[training], methods[training].embed(graph), data.y, masks))
                for training, graph in pairs
            ],
        )

    with num_threads(1):
        methods = [fitted(data, training) for training in trainings]
        clean = [method.embed(data) for method in methods]
        return Robustness(
            experiment,
            [probed(embedding, data.y, masks) for embedding in clean],
            [perturb(ratio) for ratio in ratios],
        )


def write_robustness(found: Robustness, out: Path) -> Path:
    """Write configuration and accuracies as JSON; return the file."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{found.experiment.probe.name}-perturbed.json"
    content = {
        "experiment": found.experiment.model_dump(),
        "clean": figures(found.clean),
        "perturbed": [
            {
                "ratio": level.ratio,
                "poisoned": figures(level.poisoned),
                "evaded": figures(level.evaded),
            }
            for level in found.perturbed
        ],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def robustness_table(results: Sequence[Robustness]) -> Table:
    """Return one row per method and strength: accuracies in percent, drops in points."""
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("probe", no_wrap=True)
    for name in ("perturbed", "clean %", "poisoned %", "drop", "evaded %", "drop"):
        table.add_column(name, justify="right")
    for found in results:
        clean = 100 * by_split(found.clean).mean()
        for level in found.perturbed:
            row = [found.experiment.probe.name, f"{100 * level.ratio:g}%", f"{clean:.2f}"]
            for probes in (level.poisoned, level.evaded):
                accuracy = 100 * by_split(probes)
                half = bootstrap_half_width(accuracy)
                row += [f"{accuracy.mean():.2f} ± {half:.2f}", f"{clean - accuracy.mean():.2f}"]
            table.add_row(*row)
    return table


def _evasion(
    clean: Tensor, perturbed: Tensor, y: Tensor, masks: Masks
) -> tuple[Tensor, Tensor, Masks]:
    """Return a probe's input whose training and validation nodes are clean, the test perturbed."""
    train, val, test = masks
    none = torch.zeros_like(train)
    halves = (torch.cat([train, none]), torch.cat([val, none]), torch.cat([none, test]))
    return torch.cat([clean, perturbed]), torch.cat([y, y]), halves
