"""Splits of published protocols."""

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from graphcl.datasets.protocols import (
    SPLIT_SEEDS,
    as_splits,
    load_splits,
    random_splits,
    stored_splits,
)
from graphcl.errors import DataError

# Three classes of 12, 6 and 2 nodes: 4 each to train on, of which the last has only 2.
Y = torch.tensor([0, 1, 0] * 6 + [2, 2])

KNOWN = [
    [[1, 4, 9, 12, 13, 14, 15, 16, 18, 19], [3, 5, 8, 11], [0, 2, 6, 7, 10, 17]],
    [[1, 3, 8, 10, 13, 15, 16, 17, 18, 19], [0, 6, 12, 14], [2, 4, 5, 7, 9, 11]],
]  # [split][part]


def random_masks(num_nodes=12, num_splits=3):
    part = torch.randint(3, (num_nodes, num_splits), generator=torch.Generator().manual_seed(0))
    return [part == i for i in range(3)]


def test_random_splits_divide_as_the_protocol_says():
    masks = random_splits(Y)
    assert [mask.dtype for mask in masks] == [torch.bool] * 3
    assert [mask.shape for mask in masks] == [(20, 10)] * 3
    train, val, test = (mask.int() for mask in masks)
    assert (train + val + test == 1).all()
    for label, expected in enumerate([4, 4, 2]):
        assert (train[label == Y].sum(0) == expected).all()
    assert (val.sum(0) == 4).all()
    assert (test.sum(0) == 6).all()


def test_random_splits_draw_as_published():
    # The published procedure, written out with its lists.
    masks = random_splits(Y)
    for split, seed in enumerate(SPLIT_SEEDS):
        rng = np.random.RandomState(seed)
        train = []
        for label in range(3):
            nodes = np.where(Y.numpy() == label)[0]
            train.extend(nodes if len(nodes) < 4 else rng.choice(nodes, 4, replace=False))
        rest = [node for node in range(20) if node not in train]
        val = rng.choice(rest, 4, replace=False)
        test = [node for node in rest if node not in val]
        drawn = [mask[:, split].nonzero().flatten().tolist() for mask in masks]
        assert drawn == [sorted(train), sorted(val), test]


def test_random_splits_known_nodes():
    masks = random_splits(Y, 2)
    for split in range(2):
        assert [mask[:, split].nonzero().flatten().tolist() for mask in masks] == KNOWN[split]


def test_a_class_as_large_as_its_share_is_drawn_all_the_same():
    # 4 of 4 nodes change nothing in the training part, but move the generator on.
    y = torch.tensor([0] * 4 + [1] * 6 + [2] * 10)
    rng = np.random.RandomState(SPLIT_SEEDS[0])
    expected = [rng.choice(np.flatnonzero(y == label), 4, replace=False) for label in range(3)]
    train = random_splits(y, 1)[0]
    assert train[:, 0].nonzero().flatten().tolist() == sorted(np.concatenate(expected).tolist())


def test_random_splits_repeat_and_come_in_order():
    state = np.random.get_state()[1].copy()
    masks, again, few = random_splits(Y), random_splits(Y), random_splits(Y, 3)
    assert (np.random.get_state()[1] == state).all()
    for mask, same, part in zip(masks, again, few, strict=True):
        assert torch.equal(mask, same)
        assert torch.equal(mask[:, :3], part)
    assert len({tuple(column.tolist()) for column in masks[0].T}) == 10


def test_random_splits_read_any_integer_dtype():
    assert torch.equal(random_splits(Y.to(torch.uint8))[2], random_splits(Y)[2])


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.zeros(0, dtype=torch.int64), "at least 1"),
        (torch.zeros(4), "integers"),
        (torch.zeros(4, 1, dtype=torch.int64), "integers"),
        (torch.tensor([0, 1, -1, 0, 1]), "start at 0"),
        (torch.tensor([0, 0, 0, 2, 2, 2]), "no node has class 1"),
        (torch.arange(5), "too few"),
    ],
)
def test_random_splits_refuse_labels(y, message):
    with pytest.raises(DataError, match=message):
        random_splits(y)


@pytest.mark.parametrize("num_splits", [0, 11])
def test_random_splits_have_ten_seeds(num_splits):
    with pytest.raises(DataError, match="num_splits"):
        random_splits(Y, num_splits)


def test_stored_splits():
    masks = random_masks()
    data = Data(train_mask=masks[0], val_mask=masks[1], test_mask=masks[2])
    for stored, mask in zip(stored_splits(data), masks, strict=True):
        assert torch.equal(stored, mask)
    single = [mask[:, 0] for mask in masks]
    data = Data(train_mask=single[0], val_mask=single[1], test_mask=single[2])
    for stored, mask in zip(stored_splits(data), single, strict=True):
        assert torch.equal(stored, mask[:, None])


def test_one_test_set_belongs_to_every_split():
    test = torch.tensor([False, False, True])
    train = torch.tensor([[True, False], [False, True], [False, False]])
    data = Data(train_mask=train, val_mask=train.flip(1), test_mask=test)
    assert torch.equal(stored_splits(data)[2], test[:, None].expand(3, 2))


def test_stored_splits_need_masks():
    with pytest.raises(DataError, match="no val_mask, test_mask"):
        stored_splits(Data(train_mask=torch.ones(3, dtype=torch.bool)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: [m[0].int(), m[1], m[2]], "train_mask has shape .* booleans"),
        (lambda m: [m[0], m[1][:, :, None], m[2]], "val_mask has shape"),
        (lambda m: [m[0], m[1][:0], m[2]], "val_mask has shape"),
        (lambda m: [m[0], m[1][1:], m[2]], "val_mask has shape .* 12 nodes"),
        (lambda m: [m[0], m[1], m[2][:, :2]], "test_mask has shape .* 3 splits"),
        (lambda m: [m[0], m[1], m[2] | m[0]], "train_mask and test_mask overlap at node"),
    ],
)
def test_masks_that_do_not_fit(change, message):
    with pytest.raises(DataError, match=message):
        as_splits(*change(random_masks()))


def write(path, masks, prefix="geom_"):
    names = ("train_mask", "val_mask", "test_mask")
    np.savez(path, **{prefix + n: m.numpy().T for n, m in zip(names, masks, strict=True)})
    return path


@pytest.mark.parametrize("prefix", ["geom_", ""])
def test_load_splits(tmp_path, prefix):
    masks = random_masks()
    path = write(tmp_path / "graph.npz", masks, prefix)
    for loaded, mask in zip(load_splits(path, prefix), masks, strict=True):
        assert torch.equal(loaded, mask)


def test_load_splits_of_one_split(tmp_path):
    path = write(tmp_path / "graph.npz", [mask[:, 0] for mask in random_masks()])
    assert [mask.shape for mask in load_splits(path)] == [(12, 1)] * 3


def test_load_splits_says_what_is_wrong(tmp_path):
    masks = random_masks()
    path = tmp_path / "graph.npz"
    with pytest.raises(DataError, match="no such file"):
        load_splits(path)
    path.write_bytes(b"not an archive")
    with pytest.raises(DataError, match="not a readable npz"):
        load_splits(path)
    bare = tmp_path / "bare.npy"
    np.save(bare, np.zeros(3))
    with pytest.raises(DataError, match="one bare array"):
        load_splits(bare)
    write(path, masks, "other_")
    with pytest.raises(DataError, match=r"missing keys: geom_train_mask.*the file has other_test"):
        load_splits(path)
    write(path, [masks[0], masks[1].int(), masks[2]])
    with pytest.raises(DataError, match="geom_val_mask is int32"):
        load_splits(path)
    write(path, [masks[0], masks[0], masks[2]])
    with pytest.raises(DataError, match=r"geom_train_mask and .*geom_val_mask overlap"):
        load_splits(path)
    objects = np.array([None, {}], dtype=object)
    np.savez(path, geom_train_mask=objects, geom_val_mask=objects, geom_test_mask=objects)
    with pytest.raises(DataError, match="geom_train_mask cannot be read"):
        load_splits(path)
