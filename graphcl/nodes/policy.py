"""The node-wise spectral policy: how much of each frequency channel a node takes."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class SpectralPolicy(nn.Module):
    """A small perceptron that mixes the low- and the high-frequency channel of every node.

    It starts undecided: both shares are one half for every node.

    Args:
        channels: Width of either channel's embedding.
        hidden_channels: Width of the hidden layer.

    Shapes:
        - **low**, **high**: ``[num_nodes, channels]``
        - **output**: ``[num_nodes, 2]``, rows sum to one, column 0 is the low channel

    Source:
        Li et al., ASPECT, 2026, for a policy per node computed by a perceptron; inputs, width and
        initialisation are completed.
    """

    def __init__(self, channels: int, hidden_channels: int = 64):
        super().__init__()
        self.hidden = nn.Linear(2 * channels, hidden_channels)
        self.shares = nn.Linear(hidden_channels, 2)
        nn.init.zeros_(self.shares.weight)
        nn.init.zeros_(self.shares.bias)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """Return the share of each channel for every node."""
        # One layer on the directions of both channels, divided by their lengths after the product,
        # where a row has only as many numbers as the hidden layer.
        weights = self.hidden.weight.chunk(2, dim=1)
        hidden = self.hidden.bias + sum(
            F.linear(part, weight) / part.norm(dim=-1, keepdim=True).clamp(min=1e-12)
            for part, weight in zip((low, high), weights, strict=True)
        )
        return self.shares(hidden.relu()).softmax(-1)


def evidence_target(evidence: Tensor, temperature: float) -> Tensor:
    """Return the shares that a channel-wise contrastive loss speaks for.

    A channel whose loss on a node is small tells that node well from the others.

    Shapes:
        - **evidence**: ``[num_nodes, 2]``, contrastive loss of each channel on each node
        - **output**: ``[num_nodes, 2]``, rows sum to one; a constant
    """
    return (-evidence.detach() / temperature).softmax(-1)


def channel_sensitivity(clean: tuple[Tensor, Tensor], perturbed: tuple[Tensor, Tensor]) -> Tensor:
    """Return how far a perturbation turns every node's embedding in each channel.

    Half the squared distance of the directions: ``1 - cos`` of the two, and 0 for a zero row that
    stays zero.

    Shapes:
        - **clean**, **perturbed**: low and high channel, ``[num_nodes, channels]`` each
        - **output**: ``[num_nodes, 2]``, in [0, 2]; a constant

    Source:
        Li et al., ASPECT, 2026, for an empirical sensitivity per channel; the cosine is completed.
    """
    turns = [
        (F.normalize(a.detach(), dim=-1) - F.normalize(b.detach(), dim=-1)).square().sum(-1) / 2
        for a, b in zip(clean, perturbed, strict=True)
    ]
    return torch.stack(turns, -1)


def reliability_target(
    evidence: Tensor, sensitivity: Tensor, temperature: float, stability_weight: float
) -> Tensor:
    """Return the shares that favour channels both telling and stable.

    :func:`evidence_target`, with the sensitivity of each channel against it.

    Shapes:
        - **evidence**, **sensitivity**: ``[num_nodes, 2]``
        - **output**: ``[num_nodes, 2]``, rows sum to one; a constant

    Source:
        Li et al., ASPECT, 2026, for a policy that weighs stability; the form is completed.
    """
    return (-evidence.detach() / temperature - stability_weight * sensitivity).softmax(-1)


def policy_divergence(target: Tensor, policy: Tensor) -> Tensor:
    """Return the mean Kullback-Leibler divergence of a policy from its target, at least zero.

    Shapes:
        - **target**, **policy**: ``[num_nodes, 2]``, rows sum to one
    """
    floor = 1e-8
    difference = target.clamp(min=floor).log() - policy.clamp(min=floor).log()
    return (target * difference).sum(-1).mean()
