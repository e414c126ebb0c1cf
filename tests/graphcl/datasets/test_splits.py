"""Stratified random splits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphcl.datasets import split_nodes
from graphcl.errors import DataError

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=80)


@settings(deadline=None)
@given(
    labels=LABELS,
    train=st.floats(0.01, 1),
    rest=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_every_node_once_and_every_class_in_its_share(labels, train, rest, seed):
    y, val = torch.tensor(labels), rest * (1 - train)
    train_mask, val_mask, test_mask = split_nodes(y, train, val, seed=seed)
    assert (train_mask.int() + val_mask.int() + test_mask.int() == 1).all()
    for label in y.unique():
        members = y == label
        size = int(members.sum())
        assert train_mask[members].any()
        for mask, share in ((train_mask, train), (val_mask, val), (test_mask, 1 - train - val)):
            assert abs(int(mask[members].sum()) - share * size) < 1.5 + 1e-9


def test_exact_shares():
    y = torch.arange(100) % 4
    masks = split_nodes(y, 0.6, 0.2, seed=0)
    assert [[int(mask[y == label].sum()) for mask in masks] for label in range(4)] == [
        [15, 5, 5]
    ] * 4


def test_shares_that_sum_to_one_leave_no_test_node():
    masks = split_nodes(torch.zeros(50, dtype=torch.int64), 0.7, 0.3, seed=0)
    assert [int(mask.sum()) for mask in masks] == [35, 15, 0]


def test_seed_decides():
    y = torch.arange(60) % 3
    one, again, other = (split_nodes(y, 0.5, 0.25, seed=seed)[0] for seed in (4, 4, 5))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("train", "val"), [(0.0, 0.5), (-0.1, 0.5), (0.5, -0.1), (0.8, 0.3), (float("nan"), 0.1)]
)
def test_impossible_shares(train, val):
    with pytest.raises(DataError, match="train_ratio"):
        split_nodes(torch.zeros(10, dtype=torch.int64), train, val, seed=0)


def test_no_nodes():
    with pytest.raises(DataError, match="at least one node"):
        split_nodes(torch.zeros(0, dtype=torch.int64), 0.5, 0.2, seed=0)
