import doctest
import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

from graphcl.contrast import ExcludeIndex, PairWeights, PositiveIndex, SameLabel
from graphcl.errors import GraphCLError

INDEX = torch.tensor([2, -1, 0, 3, 1])
LABELS = torch.tensor([0, 1, 0, 0, 2])


@pytest.mark.parametrize("pairs", [PositiveIndex(INDEX), ExcludeIndex(INDEX), SameLabel(LABELS)])
@pytest.mark.parametrize("rows", [slice(0, 5), slice(1, 3), slice(4, 5)])
def test_shortcuts_do_what_the_tile_says(pairs: PairWeights, rows: slice) -> None:
    torch.manual_seed(0)
    logits = torch.randn(rows.stop - rows.start, 5, dtype=torch.float64)
    tile = pairs.tile(rows, logits)
    pulled, mass = pairs.pull(logits, rows)
    torch.testing.assert_close(pulled, (tile * logits).sum(1))
    torch.testing.assert_close(mass, tile.sum(1))
    masked, scale = logits.clone(), torch.rand(len(logits), dtype=torch.float64)
    pairs.mask_(masked, rows)
    torch.testing.assert_close(masked, logits + tile.log())
    reduced = logits.clone()
    pairs.subtract_(reduced, rows, scale)
    torch.testing.assert_close(reduced, logits - scale[:, None] * tile)


def test_tiles_put_together_are_the_matrix() -> None:
    def tiles(pairs: PairWeights, size: int) -> Tensor:
        blocks = [slice(start, min(start + size, 5)) for start in range(0, 5, size)]
        return torch.cat([pairs.tile(b, torch.empty(b.stop - b.start, 5)) for b in blocks])

    for pairs in (PositiveIndex(INDEX), ExcludeIndex(INDEX), SameLabel(LABELS)):
        assert torch.equal(tiles(pairs, 2), tiles(pairs, 5))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (SameLabel(LABELS), [0, 0, 0.5, 0.5, 0]),
        (SameLabel(LABELS, exclude_self=False), [1 / 3, 0, 1 / 3, 1 / 3, 0]),
        (SameLabel(LABELS, LABELS), [1 / 3, 0, 1 / 3, 1 / 3, 0]),
        (SameLabel(LABELS, LABELS, exclude_self=True), [0, 0, 0.5, 0.5, 0]),
    ],
)
def test_same_label_shares_one_among_the_positives(
    labels: SameLabel, expected: list[float]
) -> None:
    row = labels.tile(slice(0, 1), torch.empty(1, 5, dtype=torch.float64))[0]
    torch.testing.assert_close(row, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("kind", [PositiveIndex, ExcludeIndex, SameLabel])
@pytest.mark.parametrize("wrong", [torch.ones(3), torch.ones(3, 1).long(), torch.ones(3).bool()])
def test_only_one_integer_per_row_will_do(kind: Any, wrong: Tensor) -> None:
    with pytest.raises(GraphCLError, match="one integer per row"):
        kind(wrong)


@pytest.mark.parametrize("module", ["pairs", "kernel", "losses"])
def test_examples_in_the_docstrings_run(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"graphcl.contrast.{module}"))
    assert result.attempted > 0
    assert result.failed == 0
