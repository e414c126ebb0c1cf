"""Who is near whom on the sphere, and the mean over a fixed graph, against dense references."""

import math

import pytest
import torch

from graphcl.errors import GraphCLError
from graphcl.outages import RowMean, gaussian_knn, nearest_neighbors
from graphcl.outages.graphs import EARTH_RADIUS_KM


def haversine(latlon):
    """All great-circle distances, km, [N, N]."""
    latitude, longitude = torch.deg2rad(latlon.double()).unbind(1)
    across = latitude[:, None] - latitude
    around = longitude[:, None] - longitude
    a = (across / 2).sin() ** 2 + latitude.cos()[:, None] * latitude.cos() * (around / 2).sin() ** 2
    return 2 * EARTH_RADIUS_KM * a.clamp(max=1).sqrt().asin()


def places(name):
    rng = torch.Generator().manual_seed(0)
    unit = torch.rand(30, 2, generator=rng, dtype=torch.float64)
    return {
        "everywhere": torch.stack([180 * unit[:, 0] - 90, 360 * unit[:, 1] - 180], 1),
        "date line": torch.stack(
            [4 * unit[:, 0] - 2, torch.remainder(4 * unit[:, 1] + 358, 360) - 180], 1
        ),
        "north pole": torch.stack([90 - unit[:, 0], 360 * unit[:, 1] - 180], 1),
        "south pole": torch.stack([unit[:, 0] - 90, 360 * unit[:, 1] - 180], 1),
        "a street": torch.stack([41 + 1e-4 * unit[:, 0], -72 + 1e-4 * unit[:, 1]], 1),
    }[name]


@pytest.mark.parametrize("k", [1, 5, 29, 100])
@pytest.mark.parametrize(
    "name", ["everywhere", "date line", "north pole", "south pole", "a street"]
)
def test_the_nearest_are_those_of_all_haversine_distances(name, k):
    latlon = places(name)
    index, km = nearest_neighbors(latlon, k)
    distance = haversine(latlon).fill_diagonal_(math.inf)
    wanted = distance.topk(min(k, 29), largest=False)
    assert torch.equal(index, wanted.indices)
    torch.testing.assert_close(km, wanted.values, rtol=1e-6, atol=1e-6)


def test_across_the_date_line_is_near():
    latlon = torch.tensor([[0.0, 179.9], [0.0, -179.9], [0.0, 179.0]], dtype=torch.float64)
    index, km = nearest_neighbors(latlon, 1)
    assert index.flatten().tolist() == [1, 0, 0]
    assert float(km[0, 0]) == pytest.approx(math.radians(0.2) * EARTH_RADIUS_KM, rel=1e-6)


def test_locations_that_share_a_point_are_neighbours_but_not_of_themselves():
    index, km = nearest_neighbors(torch.tensor([[24.0, 121.0]] * 6 + [[25.0, 121.0]]), 3)
    assert index.shape == (7, 3)
    assert (index != torch.arange(7)[:, None]).all()
    assert all(len(set(row)) == 3 for row in index.tolist())
    assert (km[:6] == 0).all()


def test_one_location_has_no_neighbours():
    latlon = torch.tensor([[24.0, 121.0]])
    index, km = nearest_neighbors(latlon, 8)
    assert index.shape == km.shape == (1, 0)
    edges, weight = gaussian_knn(latlon, 8)
    assert torch.equal(RowMean(edges, weight, 1) @ torch.ones(1, 2), torch.ones(1, 2))


@pytest.mark.parametrize(("shape", "k"), [((4, 2), 0), ((4, 3), 2), ((8,), 2)])
def test_no_neighbours_or_no_positions_are_refused(shape, k):
    with pytest.raises(GraphCLError, match=f"k is {k} and latlon has shape"):
        nearest_neighbors(torch.zeros(shape), k)


def test_gaussian_weights_have_the_median_distance_of_the_last_neighbour_as_scale():
    latlon, k = places("date line"), 4
    edges, weight = gaussian_knn(latlon, k)
    index, km = nearest_neighbors(latlon, k)
    assert torch.equal(edges, torch.stack([torch.arange(30).repeat_interleave(k), index.flatten()]))
    scale = km[:, -1].median()
    torch.testing.assert_close(weight, torch.exp(-(km**2) / (2 * scale**2)).flatten())


def test_gaussian_weights_of_a_shared_point_and_a_far_island_are_finite_and_positive():
    latlon = torch.tensor([[24.0, 121.0]] * 5 + [[-60.0, -10.0]])
    weight = gaussian_knn(latlon, 2)[1]
    assert ((weight > 0) & (weight <= 1)).all()


def graph(name):
    if name == "no edges":
        return torch.empty(2, 0, dtype=torch.long), torch.empty(0)
    if name == "borders":
        return torch.tensor([[0, 1, 1, 3], [1, 2, 4, 4]]), torch.ones(4)
    # Both directions of 0-1 with unlike weights; location 5 has no neighbour.
    return torch.tensor([[0, 1, 2, 4], [1, 0, 1, 3]]), torch.tensor([0.2, 0.7, 0.5, 0.1])


def dense(edges, weight):
    one_way = torch.zeros(6, 6, dtype=torch.float64)
    one_way[edges[0], edges[1]] = weight.double()
    adjacency = torch.maximum(one_way, one_way.T) + torch.eye(6, dtype=torch.float64)
    return adjacency / adjacency.sum(1, keepdim=True)


@pytest.mark.parametrize("name", ["no edges", "borders", "directed"])
def test_a_row_mean_and_its_gradient_are_the_dense_ones(name):
    edges, weight = graph(name)
    mean, matrix = RowMean(edges, weight, 6), dense(edges, weight)
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    out = mean @ x
    torch.testing.assert_close(out.double(), matrix @ x.double(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mean @ torch.ones(6, 1), torch.ones(6, 1))  # rows sum to 1
    upstream = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    out.backward(upstream)
    torch.testing.assert_close(x.grad, (matrix.T @ upstream.double()).float(), rtol=1e-5, atol=1e-6)


def test_a_location_without_neighbours_keeps_what_it_has():
    edges, weight = graph("directed")
    x = torch.randn(6, 3)
    torch.testing.assert_close((RowMean(edges, weight, 6) @ x)[5], x[5])
    torch.testing.assert_close(RowMean(*graph("no edges"), 6) @ x, x)
