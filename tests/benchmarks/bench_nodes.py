"""Seconds per epoch and peak memory of ASPECT, beside its filters and loss written plainly.

The plain form is what published code of this family does: features dense, the filter applied to
all input columns by gathering and scattering over edges, once per channel, the Laplacian built in
every step, all pairs of nodes in the loss at once; ours contrasts 512 sampled nodes a step, as its
default does. Same width (512), order (10), views and terms.
Every case runs in a fresh process on one thread, with 16 GiB of address space at most. The plain
form gathers a row of all input columns per edge, 12 GiB on coauthor_physics, and its loss keeps
matrices of all pairs of nodes, 4.4 GiB each there; ours keeps rows as wide as the embedding per
node, and of the pairs those of the sampled nodes. Needs GRAPHCL_DATA.

Run with ``python tests/benchmarks/bench_nodes.py [GRAPH ...]``.
"""

import math
import resource
import statistics
import subprocess
import sys
import time
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812
from torch_geometric.utils import dropout_edge

from graphcl.contrast import info_nce
from graphcl.datasets import load
from graphcl.nodes import ASPECT, ASPECTConfig

GRAPHS = ("cora", "chameleon", "squirrel", "coauthor_physics")
# Of address space, for each case; what asks for more does not fit.
MEMORY_LIMIT = 16 * 2**30
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "MemoryError", "bad_alloc")
WIDTH, ORDER = 512, 10


def ours(graph: str, epochs: int) -> float:
    """Train with the library; return the median of the seconds per epoch."""
    data = load(f"graphs/{graph}.npz")
    config = ASPECTConfig(hidden_channels=WIDTH, order=ORDER, num_anchors=512, epochs=epochs)
    stamps: list[float] = []
    ASPECT(config).fit(data, lambda *_: stamps.append(time.perf_counter()))
    return statistics.median(b - a for a, b in pairwise(stamps))


def plain(graph: str, epochs: int) -> float:
    """Train the plain form; return the median of the seconds per epoch."""
    data = load(f"graphs/{graph}.npz")
    x = data.x / data.x.sum(1, keepdim=True).clamp(min=1e-9)
    method = ASPECT(ASPECTConfig(hidden_channels=WIDTH, order=ORDER)).start(data).train()
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-3)

    def channels(edge_index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        source, target = edge_index
        degree = torch.bincount(source, minlength=len(x)).clamp(min=1).float()
        weight = -(degree[source] * degree[target]).rsqrt()[:, None]

        def propagate(v: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(v).index_add(0, target, weight * v[source])

        dropped, coefficients = F.dropout(x, 0.3), method.filters.coefficients()
        out = []
        for channel, layer in enumerate((method.low, method.high)):
            before, now = dropped, propagate(dropped)
            total = coefficients[0, channel] * before + coefficients[1, channel] * now
            for k in range(2, ORDER + 1):
                before, now = now, 2 * propagate(now) - before
                total = total + coefficients[k, channel] * now
            out.append(method.activation(layer(total)))
        return out[0], out[1]

    def step() -> None:
        views = []
        for _ in range(2):
            low, high = channels(dropout_edge(data.edge_index, 0.2, force_undirected=True)[0])
            shares = method.shares_of(low, high)
            fused = method.projection(shares[:, :1] * low + shares[:, 1:] * high)
            views.append([fused, *(method.channel_projection(part) for part in (low, high))])
        losses = [info_nce(a, b, block_size=None) for a, b in zip(*views, strict=True)]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()

    stamps = []
    for _ in range(epochs):
        step()
        stamps.append(time.perf_counter())
    return statistics.median(b - a for a, b in pairwise(stamps))


def main() -> None:
    """Print one table; with three arguments, run one case in this process."""
    if len(sys.argv) == 4 and sys.argv[1] in ("ours", "plain"):
        torch.set_num_threads(1)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
        seconds = {"ours": ours, "plain": plain}[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
        print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    print(f"{'graph':<18}{'plain s':>9}{'ours s':>8}{'faster':>8}{'plain MiB':>11}{'ours MiB':>10}")
    for graph in sys.argv[1:] or GRAPHS:
        slow, much = in_fresh_process("plain", graph, 4)
        fast, little = in_fresh_process("ours", graph, 15)
        print(
            f"{graph:<18}{_cell(slow, 9, 2)}{_cell(fast, 8, 2)}{_cell(slow / fast, 8, 1)}"
            f"{_cell(much, 11, 0)}{_cell(little, 10, 0)}",
            flush=True,
        )
    print("- does not fit into the memory limit")


def in_fresh_process(kind: str, graph: str, epochs: int) -> tuple[float, float]:
    """Return seconds per epoch and peak MiB of a case; NaN if it ran out of memory."""
    command = [sys.executable, __file__, kind, graph, str(epochs)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and any(sign in done.stderr for sign in OUT_OF_MEMORY):
        return math.nan, math.nan
    if done.returncode:
        raise RuntimeError(f"{kind} {graph} failed:\n{done.stderr}")
    seconds, memory = map(float, done.stdout.split())
    return seconds, memory


def _cell(value: float, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if math.isnan(value) else f"{value:>{width}.{digits}f}"


if __name__ == "__main__":
    main()
