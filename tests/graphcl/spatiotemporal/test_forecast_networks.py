"""Networks that SC-FSGL is compared with: STID, STGCN, Graph WaveNet."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from graphcl.datasets import SpatioTemporalSeries, Windows, chronological_split
from graphcl.errors import GraphCLError
from graphcl.spatiotemporal import (
    STGCN,
    STID,
    Calendar,
    GraphWaveNet,
    GraphWaveNetConfig,
    LastValue,
    NetworkForecaster,
    Sample,
    STGCNConfig,
    STIDConfig,
)
from graphcl.spatiotemporal.graph_wavenet import DilatedLayer
from graphcl.spatiotemporal.layers import inputs
from graphcl.spatiotemporal.stgcn import GatedConvolution

NETWORKS = [STID, STGCN, GraphWaveNet]
DAY = 86_400


def waves(num_steps: int = 240, interval: int = 3600) -> SpatioTemporalSeries:
    """Return sines of periods of their own on five nodes, of which the last has no edge."""
    step = torch.arange(num_steps)[:, None, None]
    period = torch.tensor([8.0, 10.0, 12.0, 16.0, 24.0])[:, None]
    values = torch.sin(2 * math.pi * step / period + torch.tensor([0.0, 1.0]))
    return SpatioTemporalSeries(
        name="waves",
        values=values,
        channel_names=("flow [1/h]", "speed [mph]"),
        node=tuple("abcde"),
        edge_index=torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]]),
        edge_weight=torch.tensor([1.0, 0.5, 2.0, 1.0]),
        start=np.datetime64("2024-01-01T00:00:00", "s"),
        interval=interval,
    ).validate()


def started(kind: type, series: SpatioTemporalSeries, **fields: object) -> NetworkForecaster:
    return kind(kind.config_type(**{"hidden_channels": 8, **fields})).start(series)


def some(model: NetworkForecaster, series: SpatioTemporalSeries, count: int = 4) -> Sample:
    return Sample.of(model.windows(series).batch(torch.arange(count)), model.scaler)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize(("history", "horizon"), [(1, 1), (2, 4), (3, 5), (9, 1), (13, 2)])
def test_forecasts_of_any_history_cover_horizon_nodes_and_channels(kind, history, horizon):
    series = waves()
    model = started(kind, series, history=history, horizon=horizon)
    forecast = model(some(model, series))
    assert forecast.shape == (4, horizon, 5, 2)
    assert forecast.isfinite().all()


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_graph_of_one_node_without_edges_is_a_graph(kind):
    series = waves().at([4])
    model = started(kind, series)
    assert model(some(model, series)).isfinite().all()


@pytest.mark.parametrize("kind", NETWORKS)
def test_what_is_stored_for_a_missing_input_does_not_matter(kind):
    series = waves()
    model = started(kind, series)
    sample = some(model, series)
    mask = torch.rand(sample.x.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    holed = sample._replace(x_mask=mask)
    garbage = holed._replace(x=torch.where(mask, sample.x, torch.nan))
    assert torch.equal(model(garbage), model(holed))
    zeros = torch.where(mask, sample.x, 0.0)
    as_if_measured = sample._replace(x=zeros)
    assert not torch.allclose(model(as_if_measured), model(holed))  # a gap is no measured mean


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("history", [1, 3, 12])
def test_gradients_reach_every_parameter(kind, history):
    series = waves(num_steps=16 * 24)  # weeks enough for every embedding
    model = started(kind, series, history=history).train()
    sum(model.loss(some(model, series)).values()).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


@pytest.mark.parametrize("kind", NETWORKS)
def test_each_step_and_channel_of_the_window_counts(kind):
    series = waves()
    model = started(kind, series, history=10)
    sample = some(model, series, count=1)
    x = sample.x.clone().requires_grad_()
    model(sample._replace(x=x)).sum().backward()
    assert x.grad.abs().amin() > 0


@pytest.mark.parametrize("kind", NETWORKS)
def test_networks_learn_waves_that_the_last_value_cannot_follow(kind):
    train, val, test = chronological_split(waves(), 0.6, 0.2)
    config = kind.config_type(
        hidden_channels=16, dropout=0.0, horizon=6, epochs=12, batch_windows=8, learning_rate=5e-3
    )
    model = kind(config).fit(train, val)
    naive = LastValue(replace(LastValue().config, horizon=6)).fit(train, val)
    truth = torch.stack([test.values[i : i + 6] for i in range(12, test.num_steps - 5)])
    learned, last = ((m.predict(test) - truth).abs().mean() for m in (model, naive))
    assert learned < 0.4 * last


@pytest.mark.parametrize("kind", [STID, GraphWaveNet])  # STGCN needs more than a few epochs
def test_networks_forecast_traffic_better_than_the_last_value(kind, data_root):
    path = data_root / "spatiotemporal" / "metr_la_week1_los_loop.npz"
    with np.load(path, allow_pickle=False) as file:
        speed, adjacency = torch.from_numpy(file["speed"]).float(), file["adj_dcrnn"]
    edges = torch.from_numpy(np.stack(adjacency.nonzero()))
    series = SpatioTemporalSeries(
        name="METR-LA",
        values=speed[..., None],
        channel_names=("speed [mph]",),
        node=tuple(f"sensor-{i}" for i in range(speed.size(1))),
        edge_index=edges,
        edge_weight=torch.from_numpy(adjacency)[edges[0], edges[1]].float(),
        start=np.datetime64("2012-03-01T00:00:00", "s"),
        interval=300,
    ).at(torch.arange(20))
    train, val, _ = chronological_split(series.validate())
    errors = []
    model = kind(kind.config_type(epochs=5, epoch_windows=480, learning_rate=4e-3))
    model.fit(train, val, on_epoch=lambda _, terms: errors.append(terms["val"]))
    naive = LastValue().fit(train, val)
    off = naive.scaler(naive.predict(val)) - naive.scaler(windows_ahead(val))
    # 0.91 to 0.93 over three seeds.
    assert min(errors) < 0.96 * off.abs().mean()


def windows_ahead(series: SpatioTemporalSeries) -> torch.Tensor:
    """Return what follows every window of twelve steps in and twelve out."""
    return Windows(series, 12, 12).batch(torch.arange(series.num_steps - 23)).y


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_file_keeps_the_forecasts(kind, tmp_path):
    series = waves(num_steps=16 * 24)
    model = started(kind, series, history=5)
    model.save(tmp_path / "model.safetensors")
    loaded = kind.load(tmp_path / "model.safetensors", series)
    assert torch.equal(loaded.predict(series), model.predict(series))


@pytest.mark.parametrize("kind", NETWORKS)
def test_windows_of_a_batch_do_not_read_one_another(kind):
    series = waves()
    model = started(kind, series)
    sample = some(model, series)
    alone = torch.cat([model(Sample(*(part[i : i + 1] for part in sample))) for i in range(4)])
    assert torch.allclose(model(sample), alone, atol=1e-5)


def test_stgcn_forecasts_the_same_in_any_order_of_the_nodes():
    series = waves()
    order = [3, 0, 4, 2, 1]
    moved = series.at(order)
    forecast, other = (started(STGCN, s).predict(s) for s in (series, moved))
    assert torch.allclose(other, forecast[:, :, order], atol=1e-5)


def test_stgcn_reads_a_short_history_as_a_long_one_that_began_with_a_gap():
    series = waves()
    short, long = (started(STGCN, series, history=history) for history in (3, 9))
    sample = some(long, series)
    gap = sample._replace(x_mask=sample.x_mask & (torch.arange(9) >= 6)[:, None, None])
    cut = Sample(sample.x[:, 6:], sample.x_mask[:, 6:], sample.y, sample.y_mask, sample.time[:, 6:])
    assert torch.allclose(short(cut), long(gap), atol=1e-6)


@pytest.mark.parametrize("kind", [STGCN, GraphWaveNet])
def test_neighbours_along_and_against_an_edge_are_read_and_no_others(kind):
    series = waves()
    series = replace(series, edge_index=torch.tensor([[0, 1], [1, 2]]), edge_weight=torch.ones(2))
    model = started(kind, series, history=1, hops=1)
    if kind is GraphWaveNet:
        with torch.no_grad():  # whom the learned graph reads: node 4, and by a hair the others
            model.source.fill_(10.0)
            model.target.copy_(torch.tensor([0.0, 0.0, 0.0, 0.0, 10.0])[:, None])
    sample = some(model, series, count=1)
    x = sample.x.clone().requires_grad_()
    model(sample._replace(x=x))[:, :, 1].sum().backward()
    read = {node for node in range(5) if x.grad[:, :, node].abs().amax() > 1e-9}
    # STGCN mixes twice: two hops; Graph WaveNet once with a history of 1.
    assert read == ({0, 1, 2} if kind is STGCN else {0, 1, 2, 4})


def test_a_gated_convolution_reads_no_step_after_its_own():
    torch.manual_seed(0)
    convolution = GatedConvolution(3, 4, kernel=3)
    x = torch.randn(2, 2, 9, 3)
    y = convolution(x)
    assert y.shape == (2, 2, 7, 4)
    for step in range(9):
        changed = x.clone()
        changed[:, :, step] += 1
        differs = (convolution(changed) != y).flatten(0, 1).any(0).any(-1)
        ends = torch.arange(2, 9)  # output i ends at step i + 2
        assert differs.tolist() == ((ends >= step) & (ends < step + 3)).tolist()


@pytest.mark.parametrize("steps", [6, 7])
def test_a_dilated_layer_reads_its_last_two_steps(steps):
    torch.manual_seed(0)
    layer = DilatedLayer(GraphWaveNetConfig(hidden_channels=4, dropout=0.0))
    diffusion, adaptive = started(STGCN, waves()).diffusion, torch.full((5, 5), 0.2)
    x = torch.randn(5, 2, steps, 4)
    y = layer(x, diffusion, adaptive)
    ends = torch.arange(steps - 1, -1, -2).flip(0)
    assert y.shape == (5, 2, len(ends), 4)
    for step in range(steps):
        changed = x.clone()
        changed[:, :, step] += 1
        differs = (layer(changed, diffusion, adaptive) != y).flatten(0, 1).any(0).any(-1)
        assert differs.tolist() == ((ends == step) | (ends == step + 1)).tolist()


@pytest.mark.parametrize("history", [1, 2, 5, 12])
def test_every_second_step_suffices_for_convolutions_dilated_by_1_2_4(history):
    series = waves()
    model = started(GraphWaveNet, series, history=history)
    sample = some(model, series)
    assert torch.allclose(model(sample), slow_wavenet(model, sample), atol=1e-5)


def slow_wavenet(model: GraphWaveNet, sample: Sample) -> torch.Tensor:
    """Return what all steps of all layers give, with matrices written out."""
    adjacency = torch.zeros(5, 5)
    index, weight = waves().edge_index, waves().edge_weight
    adjacency[index[1], index[0]] = weight
    walks = [a / a.sum(1, keepdim=True).clamp(min=1e-9) for a in (adjacency, adjacency.T)]
    walks.append(torch.softmax(torch.relu(model.source @ model.target.T), 1))
    x = model.value(inputs(sample))
    x = x + model.time(model.calendar(sample.time[:, : model.config.history]))
    skips = []
    for depth, layer in enumerate(model.layers):
        weight = layer.gated.weight.unflatten(1, (2, -1)).transpose(1, 2)
        padded = F.pad(x.flatten(0, 1).transpose(1, 2), (2**depth, 0))
        both = F.conv1d(padded, weight, layer.gated.bias, dilation=2**depth)
        value, gate = both.transpose(1, 2).unflatten(0, (5, -1)).chunk(2, -1)
        h = value.tanh() * gate.sigmoid()
        powers = [torch.matrix_power(walk, k) for walk in walks for k in (1, 2)]
        around = [torch.einsum("nm,mbtd->nbtd", power, h) for power in powers]
        x = x + layer.spatial(torch.cat([h, *around], -1))
        skips.append(x[:, :, -1])
    return model.head(model.hidden(model.skip(torch.cat(skips, -1)).relu()).relu())


def test_the_learned_graph_of_graph_wavenet_shares_out_what_a_node_reads():
    model = started(GraphWaveNet, waves())
    assert torch.allclose(model.adaptive.sum(1), torch.ones(5))
    assert not torch.allclose(model.adaptive, model.adaptive.T)


def test_stid_embeds_the_cycles_that_training_saw_twice_and_no_others():
    sizes = {
        num_steps: [len(table.weight) for table in started(STID, waves(num_steps)).cycles]
        for num_steps in (30, 2 * 24, 14 * 24)
    }
    assert sizes == {30: [], 48: [24], 336: [24, 7]}


def test_stid_knows_the_time_of_the_last_step_of_the_window():
    series = waves(num_steps=14 * 24)
    model = started(STID, series)
    sample = some(model, series)
    last = model.config.history - 1
    later, week_on, elsewhere = (sample.time.clone() for _ in range(3))
    later[:, last] += 3600
    week_on[:, last] += 7 * DAY
    elsewhere[:, :last] += 3600
    assert not torch.allclose(model(sample._replace(time=later)), model(sample))
    for time in (week_on, elsewhere):
        assert torch.equal(model(sample._replace(time=time)), model(sample))


@pytest.mark.parametrize(
    ("interval", "num_steps", "num_places", "places"),
    [
        (300, 2 * 7 * 288, [288, 7], [[0, 1, 287], [0, 0, 6]]),
        (20_000, 400, [4, 7], [[0, 0, 3], [0, 0, 6]]),  # the last place is the longest
        (DAY, 800, [7, 52], [[0, 0, 6], None]),
        (7 * DAY, 200, [52], [None]),
    ],
)
def test_a_calendar_counts_time_of_day_day_of_week_and_week_of_year(
    interval, num_steps, num_places, places
):
    calendar = Calendar().fit(waves(num_steps, interval))
    assert calendar.num_places == num_places
    monday = int(np.datetime64("2024-01-01T00:00:00", "s").astype(np.int64))
    asked = monday + torch.tensor([0, 300, 7 * DAY - 300])
    for found, expected in zip(calendar.places(asked), places, strict=True):
        assert expected is None or found.tolist() == expected
    seconds = waves(num_steps, interval).seconds(torch.arange(num_steps))
    for found, count in zip(calendar.places(seconds), num_places, strict=True):
        assert found.unique().tolist() == list(range(count))


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (STIDConfig, "num_layers"),
        (STGCNConfig, "hops"),
        (GraphWaveNetConfig, "hops"),
        (GraphWaveNetConfig, "adaptive_channels"),
    ],
)
def test_a_network_without_a_layer_a_hop_or_an_embedding_is_refused(config, field):
    with pytest.raises(GraphCLError, match=f"{field} is 0, must be at least 1"):
        config(**{field: 0})
