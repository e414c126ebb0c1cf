"""Small graphs with every irregularity, and the Laplacian by its formula."""

import torch
from torch import Tensor


def random_edges(num_nodes: int, num_edges: int, seed: int = 0) -> Tensor:
    """Directed, with duplicates and self loops."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(num_nodes, (2, num_edges), generator=generator)


def dense_shifted(edge_index: Tensor, num_nodes: int) -> Tensor:
    """L - I by the formula, entry by entry."""
    adjacency = torch.zeros(num_nodes, num_nodes, dtype=torch.float64)
    for i, j in edge_index.t().tolist():
        if i != j:
            adjacency[i, j] = adjacency[j, i] = 1
    degree = adjacency.sum(1)
    scale = torch.tensor([d**-0.5 if d else 0.0 for d in degree.tolist()], dtype=torch.float64)
    return -scale[:, None] * adjacency * scale


EMPTY = torch.empty(2, 0, dtype=torch.long)
GRAPHS: dict[str, tuple[Tensor, int]] = {
    "random": (random_edges(20, 45), 20),
    "disconnected": (torch.cat([random_edges(9, 20, 1), random_edges(9, 20, 2) + 9], 1), 18),
    "isolated": (random_edges(8, 14, 3), 12),
    "loops": (torch.tensor([[0, 1, 1, 2, 3], [0, 1, 2, 2, 3]]), 4),
    "duplicates": (torch.tensor([[0, 0, 1, 2, 0], [1, 1, 0, 0, 2]]), 3),
    "bipartite": (torch.tensor([[0, 0, 0, 1, 1], [2, 3, 4, 2, 3]]), 5),
    "single": (EMPTY, 1),
    "single_loop": (torch.zeros(2, 1, dtype=torch.long), 1),
    "no_edges": (EMPTY, 6),
}
