"""Attacks that find what is there and nothing where nothing is."""

import pytest
import torch

from federation.privacy.attacks import (
    length_auc,
    membership_auc,
    nearest_distance,
    owner_is_nearest,
)
from graphcl.errors import GraphCLError


def points(number: int, seed: int):
    return torch.randn(number, 8, generator=torch.Generator().manual_seed(seed))


def test_the_prototype_of_one_sample_is_that_sample():
    member, others = points(1, 0), points(20, 1)
    assert membership_auc(member[0], member, others) == 1
    assert nearest_distance(member[0], member, torch.cat((member, others))) == 0
    assert owner_is_nearest(member[0], member, others)


def test_means_of_few_give_away_more_than_means_of_many():
    def mean_auc(number: int) -> float:
        aucs = []
        for seed in range(40):
            members, others = points(number, seed), points(number, 1000 + seed)
            aucs.append(membership_auc(members.mean(0), members, others))
        return sum(aucs) / len(aucs)

    aucs = [mean_auc(number) for number in (2, 8, 64)]
    assert aucs == sorted(aucs, reverse=True)
    assert aucs[0] > 0.9
    assert aucs[2] < 0.65


def test_without_a_prototype_only_the_length_of_embeddings_tells():
    aucs = [length_auc(points(30, seed), points(30, 1000 + seed)) for seed in range(40)]
    assert sum(aucs) / len(aucs) == pytest.approx(0.5, abs=0.03)
    assert length_auc(100 * points(30, 0), points(30, 1)) == 1  # an encoder sure of its samples
    assert length_auc(0.01 * points(30, 0), points(30, 1)) == 0


def test_the_unit_of_distance_is_that_between_samples():
    members = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    assert nearest_distance(torch.tensor([1.0, 0.0]), members, members) == pytest.approx(0.25)
    assert nearest_distance(torch.tensor([10.0, 0.0]), 10 * members, 10 * members) == 0.25


def test_a_nearer_stranger_is_found():
    own, foreign = torch.tensor([[2.0, 0.0]]), torch.tensor([[9.0, 9.0], [0.0, 1.0]])
    assert not owner_is_nearest(torch.zeros(2), own, foreign)
    assert owner_is_nearest(torch.tensor([3.0, 0.0]), own, foreign)


def test_nobody_to_compare_with_is_refused():
    with pytest.raises(GraphCLError, match="both need some"):
        membership_auc(torch.zeros(8), points(3, 0), points(0, 0))
