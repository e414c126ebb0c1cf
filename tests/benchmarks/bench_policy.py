"""Does a policy per node beat one mixture for all nodes, where a graph mixes two kinds of regions?

A block model whose first half is homophilic and whose second is heterophilic
(:func:`graphcl.datasets.mixed_sbm`); ASPECT with its policy per node, and with the same two
channels mixed alike for all nodes: by two learned shares, by their mean, or one channel alone. Five
graphs, the linear probe over ten random splits of each. The area under the ROC curve says how well
the policy's share of low frequencies tells the homophilic nodes.

Run with ``python tests/benchmarks/bench_policy.py``; it takes some minutes.
"""

import statistics
from dataclasses import replace

import torch

from graphcl.datasets import mixed_sbm
from graphcl.datasets.protocols import random_splits
from graphcl.metrics import roc_auc
from graphcl.nodes import ASPECT, ASPECTConfig, linear_probe

SEEDS = range(21, 26)  # none of them seen while the configuration was chosen
CONFIG = ASPECTConfig(
    hidden_channels=64,
    order=5,
    sharpness=2.0,
    input_scale=50.0,
    drop_features=0.2,
    evidence_weight=20.0,
    evidence_temperature=0.02,
    epochs=150,
)


def main() -> None:
    """Print one row per kind of policy."""
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {kind: [] for kind in ("node", "global", "mean", "low", "high")}
    areas = []
    for seed in SEEDS:
        data = mixed_sbm(seed=seed)
        masks = random_splits(data.y)
        for kind, accuracies in found.items():
            method = ASPECT(replace(CONFIG, policy=kind, seed=seed)).fit(data)
            probed = linear_probe(method.embed(data), data.y, *masks, patience=200)
            accuracies.append(100 * probed.mean)
            if kind == "node":
                shares = method.spectral_policy(data)[:, 0]
                areas.append(roc_auc(shares, data.homophilic.long()))
    print(f"{'policy':<10}{'accuracy %':>16}{'node ahead by':>18}")
    for kind, accuracies in found.items():
        ahead = [own - other for own, other in zip(found["node"], accuracies, strict=True)]
        print(
            f"{kind:<10}{statistics.mean(accuracies):>9.2f} ± {statistics.stdev(accuracies):.2f}"
            f"{statistics.mean(ahead):>12.2f} ± {statistics.stdev(ahead):.2f}"
        )
    area = f"{100 * statistics.mean(areas):.1f} ± {100 * statistics.stdev(areas):.1f}"
    print(f"area under the ROC curve of the policy: {area} %")


if __name__ == "__main__":
    main()
