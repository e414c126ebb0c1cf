"""Contrast between situations, against slow loops over its definition."""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from graphcl.errors import GraphCLError
from graphcl.outages import similar_pairs, situation_contrast


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loop(u, pairs, event_type, negatives, temperature):
    """The definition, anchor by anchor."""
    u = F.normalize(u, dim=-1)
    positives = {}
    for event, i, j in pairs.tolist():
        positives.setdefault((event, i), []).append(j)
    losses = []
    for (event, i), partners in positives.items():
        away = [
            torch.exp(u[event, i] @ u[other, n] / temperature)
            for other in range(len(u))
            for n in range(u.shape[1])
            if (other != event if negatives == "all_events" else True)
            and (event_type[other] != event_type[event] if negatives == "other_types" else True)
        ]
        terms = []
        for j in partners:
            near = torch.exp(u[event, i] @ u[event, j] / temperature)
            terms.append(-torch.log(near / (near + sum(away))))
        losses.append(torch.stack(terms).mean())
    return torch.stack(losses).mean()


@pytest.fixture
def pairs():
    outages = torch.randint(0, 4, (4, 7), generator=torch.Generator().manual_seed(2))
    return similar_pairs(normal(7, 5, seed=1), outages, 3, 0.5)


@pytest.mark.parametrize("negatives", ["all_events", "other_types"])
def test_the_contrast_and_its_gradient_are_those_of_the_definition(pairs, negatives):
    event_type = torch.tensor([0, 1, 0, 2])
    u = normal(4, 7, 6).requires_grad_()
    found = situation_contrast(u, pairs, event_type, negatives=negatives, temperature=0.3)
    wanted = loop(u, pairs, event_type, negatives, 0.3)
    torch.testing.assert_close(found, wanted)
    ours, theirs = (torch.autograd.grad(value, u)[0] for value in (found, wanted))
    torch.testing.assert_close(ours, theirs)


def test_an_anchor_of_many_partners_counts_as_one(pairs):
    counts = torch.bincount(pairs[:, 0] * 7 + pairs[:, 1])
    assert len(counts[counts > 0].unique()) > 1  # or the test above would not see the weights


def test_the_contrast_falls_when_similar_locations_move_together(pairs):
    u, event_type = normal(4, 7, 6), torch.zeros(4, dtype=torch.long)
    moved = u.clone()
    for event, i, j in pairs.tolist():
        moved[event, i] += 0.3 * F.normalize(u, dim=-1)[event, j]
    before, after = (situation_contrast(x, pairs, event_type) for x in (u, moved))
    assert after < before - 0.01


def test_storms_of_one_type_are_neutral_where_only_other_types_repel(pairs):
    u = normal(4, 7, 6)
    same = torch.zeros(4, dtype=torch.long)
    contrast = situation_contrast(u, pairs, same, negatives="other_types")
    assert float(contrast) == pytest.approx(0, abs=1e-9)
    assert situation_contrast(u, pairs, same, negatives="all_events") > 0.1


def test_without_similar_locations_the_contrast_is_a_differentiable_0():
    u = normal(2, 3, 4).requires_grad_()
    none = torch.empty(0, 3, dtype=torch.long)
    contrast = situation_contrast(u, none, torch.tensor([0, 1]))
    contrast.backward()
    assert contrast == 0
    assert (u.grad == 0).all()


def test_unknown_negatives_are_refused(pairs):
    with pytest.raises(GraphCLError, match="negatives is 'none': use 'all_events'"):
        situation_contrast(normal(4, 7, 6), pairs, torch.zeros(4), negatives="none")


@pytest.mark.parametrize("tolerance", [0.0, 0.5, math.inf])
@pytest.mark.parametrize("num_similar", [1, 3, 50])
def test_similar_pairs_are_those_of_a_double_loop(num_similar, tolerance):
    traits = normal(9, 5)
    outages = torch.randint(0, 6, (3, 9), generator=torch.Generator().manual_seed(0))
    wanted = set()
    for event in range(3):
        for i in range(9):
            others = [j for j in range(9) if j != i]
            others.sort(key=lambda j, i=i: -float(F.cosine_similarity(traits[i], traits[j], 0)))
            for j in others[:num_similar]:
                level = outages[event].double().log1p()
                if abs(float(level[i] - level[j])) <= tolerance:
                    wanted.add((event, i, j))
    found = similar_pairs(traits, outages, num_similar, tolerance)
    assert len(found) == len(wanted)
    assert set(map(tuple, found.tolist())) == wanted


def test_a_single_location_has_no_similar_one():
    assert similar_pairs(torch.ones(1, 3), torch.ones(4, 1), 4, 0.5).shape == (0, 3)
