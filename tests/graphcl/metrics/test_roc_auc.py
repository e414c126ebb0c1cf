"""The area under the ROC curve, against its definition over all pairs."""

import pytest
import torch

from graphcl.errors import GraphCLError
from graphcl.metrics import roc_auc


@pytest.mark.parametrize("levels", [3, 1000])
def test_it_is_the_share_of_pairs_in_order_with_ties_half(levels):
    rng = torch.Generator().manual_seed(levels)
    score = torch.randint(levels, (60,), generator=rng).float()
    y = torch.randint(2, (60,), generator=rng)
    difference = score[y == 1][:, None] - score[y == 0]
    expected = ((difference > 0).double() + (difference == 0).double() / 2).mean()
    assert roc_auc(score, y) == pytest.approx(float(expected), abs=1e-12)


def test_perfect_and_reversed_orders():
    y = torch.tensor([0, 0, 1, 1])
    assert roc_auc(torch.tensor([0.1, 0.2, 0.3, 0.4]), y) == 1
    assert roc_auc(torch.tensor([0.4, 0.3, 0.2, 0.1]), y) == 0
    assert roc_auc(torch.zeros(4), y) == 0.5


def test_one_class_alone_has_no_curve():
    with pytest.raises(GraphCLError, match="3 of 3 samples are of class 1"):
        roc_auc(torch.zeros(3), torch.ones(3))
