"""Simulated interactions follow the stated chances, and their features tell of the clusters."""

import pytest
import torch
from test_interactions import same

from graphcl.datasets import simulate_interactions
from graphcl.errors import DataError


@pytest.fixture(scope="module")
def simulation():
    return simulate_interactions()


@pytest.fixture(scope="module")
def steps(simulation):
    """Return the chances of what is not taken yet, and the item that came, of each step."""
    chances, came = [], []
    for user in range(300):
        sequence = simulation.interactions.sequence(user)
        chance = simulation.next_item(sequence[:-1])
        for step in range(1, len(sequence)):
            chance[step - 1, sequence[:step]] = 0
        chances.append(chance / chance.sum(dim=1, keepdim=True))
        came.append(sequence[1:])
    return torch.cat(chances), torch.cat(came)


def test_one_seed_decides_everything(simulation):
    again, other = simulate_interactions(), simulate_interactions(seed=1)
    assert same(again.interactions, simulation.interactions)
    assert torch.equal(again.cluster, simulation.cluster)
    assert not torch.equal(other.cluster, simulation.cluster)
    assert not same(other.interactions, simulation.interactions)


def test_they_are_legal_and_as_long_as_documented(simulation):
    log = simulation.interactions.validate()
    assert (log.num_users, log.num_items) == (1000, 500)
    lengths = log.indptr.diff()
    assert lengths.min() == 5
    assert lengths.double().mean() == pytest.approx(15, abs=1)
    pairs = log.user * (log.num_items + 1) + log.item
    assert len(pairs.unique()) == len(log)  # nobody takes an item twice


def test_chances_are_chances(simulation):
    chance = simulation.next_item(torch.arange(1, 501))
    assert torch.allclose(chance.sum(dim=1), torch.ones(500, dtype=torch.float64))
    assert (chance[:, 0] == 0).all()
    assert (chance[:, 1:] > 0).all()


def test_what_comes_next_has_the_stated_chance(steps):
    chance, item = steps
    # If items come with these chances p, the mean of p of what came is that of the sum of p^2, and
    # ten groups of p hold as many of those that came as their sum says, within five deviations.
    came = chance.gather(1, item[:, None])[:, 0]
    expected = chance.square().sum(dim=1)
    assert float((came - expected).mean()) == pytest.approx(
        0, abs=5 * float((came - expected).std()) / len(item) ** 0.5
    )
    hit = torch.zeros_like(chance).scatter_(1, item[:, None], 1.0)
    order = chance.flatten().argsort()
    for group in order.chunk(10):
        p = chance.flatten()[group]
        assert abs(float(hit.flatten()[group].sum() - p.sum())) <= 5 * float(p.sum()) ** 0.5 + 1


def test_the_last_item_tells_more_than_popularity(simulation, steps):
    chance, item = steps
    counts = simulation.interactions.item.bincount(minlength=501).double()
    popular = counts * (chance > 0)
    hits = [
        (score.topk(10).indices == item[:, None]).any(dim=1).double().mean().item()
        for score in (chance, popular)
    ]
    assert hits[0] > 0.3
    assert hits[0] > 2 * hits[1]


def test_a_session_lasts_as_long_as_its_cluster(simulation):
    log = simulation.interactions.sessions(1800)
    cluster = simulation.cluster[log.item]
    together = (log.user.diff() == 0) & (cluster.diff() == 0)
    assert torch.equal(log.session.diff() == 0, together)
    assert 2 < len(log) / log.session[-1] < 5


def test_popularity_is_skewed_and_hidden_from_the_numbers(simulation):
    counts = simulation.interactions.item.bincount(minlength=501)[1:].double()
    fifth = counts.sort(descending=True).values[:100].sum() / counts.sum()
    assert fifth > 0.5
    place = torch.arange(500.0).double()
    assert abs(torch.corrcoef(torch.stack([place, counts]))[0, 1]) < 0.2


def test_categories_and_texts_tell_of_the_clusters(simulation):
    log, cluster = simulation.interactions, simulation.cluster[1:]
    agree = (log.category[1:] - 1 == cluster).double().mean()
    assert 0.85 < agree < 0.97
    centers = torch.stack([log.text[1:][cluster == c].mean(dim=0) for c in range(10)])
    nearest = torch.cdist(log.text[1:], centers).argmin(dim=1)
    assert (nearest == cluster).double().mean() > 0.95


def test_the_smallest_catalogue_is_not_used_up():
    log = simulate_interactions(200, 20, num_clusters=2).interactions
    assert log.indptr.diff().max() == 5
    assert log.item.max() <= 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_users": 0}, "num_users is 0, must be at least 1"),
        ({"num_clusters": 1}, "num_clusters is 1, must be at least 2"),
        ({"num_items": 39}, "num_items is 39, must be at least 40"),
        ({"num_items": 19, "num_clusters": 2}, "num_items is 19, must be at least 20"),
    ],
)
def test_what_cannot_be_simulated_is_refused(arguments, message):
    with pytest.raises(DataError, match=f"^simulate_interactions: {message}"):
        simulate_interactions(**arguments)
