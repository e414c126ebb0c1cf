"""SA-HGNN and the graph convolution beside it: what no storm, territory or file may change."""

import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from graphcl.datasets import simulate_storms
from graphcl.errors import DataError, GraphCLError
from graphcl.metrics import root_mean_squared_error
from graphcl.outages import (
    SAHGNN,
    LastSimilarStorm,
    MixHop,
    OutageGCN,
    OutageModelConfig,
    SAHGNNConfig,
)
from graphcl.outages.model import EventBatches
from graphcl.outages.sa_hgnn import MixedMean

SMALL = {"hidden_channels": 16, "epochs": 3, "batch_events": 3}


def sa_hgnn(**changes):
    return SAHGNN(SAHGNNConfig(**{**SMALL, **changes}))


def gcn(**changes):
    return OutageGCN(OutageModelConfig(**{**SMALL, **changes}))


both = pytest.mark.parametrize("make", [sa_hgnn, gcn])


def with_weather(events, weather):
    return replace(events, weather=weather, outages=None)


@both
@pytest.mark.parametrize("static_graph", ["nearest", "borders"])
def test_the_order_of_locations_does_not_matter(make, static_graph, events, shuffled) -> None:
    model = make(static_graph=static_graph).fit(events)
    expected = model.predict(events)
    torch.testing.assert_close(
        model.predict(shuffled.events), expected[:, shuffled.order], rtol=1e-4, atol=1e-5
    )
    assert expected.std() > 0


@both
def test_an_event_is_predicted_alike_whatever_stands_beside_it(make, events) -> None:
    model = make().fit(events)
    twins = with_weather(events, events.weather[[0, 0, 1, 2, 0, 3]])
    expected = model.predict(twins)
    assert torch.equal(expected[0], expected[1])
    assert torch.equal(expected[0], expected[4])
    assert not torch.allclose(expected[0], expected[2])
    torch.testing.assert_close(model.predict(twins.of([2])), expected[[2]])


@both
def test_counts_are_never_read_by_a_prediction(make, events) -> None:
    model = make().fit(events)
    blind = replace(events, outages=None)
    assert torch.equal(model.predict(blind), model.predict(events))


@both
def test_another_territory_can_be_asked(make, events) -> None:
    other = simulate_storms(30, 2, seed=7).events
    expected = make().fit(events).predict(other)
    assert expected.shape == (2, 30)
    assert expected.isfinite().all()
    assert (expected >= 0).all()


@both
def test_missing_values_train_and_predict(make, events) -> None:
    weather, static = events.weather.clone(), events.static.clone()
    weather[:, ::3, 0] = torch.nan
    weather[0, 5] = torch.nan
    weather[1, :, 2] = torch.nan
    static[::4, 1] = torch.nan
    holed = replace(events, weather=weather, static=static)
    assert make().fit(holed).predict(holed).isfinite().all()
    assert make().fit(events).predict(holed).isfinite().all()


@both
@pytest.mark.parametrize("target", ["raw", "log", "sqrt", "poisson"])
def test_storms_that_broke_nothing_train(make, target, events) -> None:
    calm = replace(events, outages=torch.zeros_like(events.outages))
    expected = make(target=target).fit(calm).predict(calm)
    assert expected.isfinite().all()
    assert expected.mean() < 0.01


@both
def test_a_territory_where_nobody_is_served_trains(make, events) -> None:
    empty = replace(events, customers=torch.zeros(events.num_locations))
    assert (make().fit(empty).predict(empty) == 0).all()


@both
@pytest.mark.parametrize("static_graph", ["nearest", "borders"])
def test_one_location_and_one_event_train(make, static_graph) -> None:
    one = simulate_storms(1, 1, num_districts=1).events
    expected = make(static_graph=static_graph).fit(one).predict(one)
    assert expected.shape == (1, 1)
    assert expected.isfinite().all()


@both
def test_locations_without_neighbours_train(make, events) -> None:
    islands = replace(events, borders=torch.empty(2, 0, dtype=torch.int64))
    assert make(static_graph="borders").fit(islands).predict(islands).isfinite().all()


@both
def test_the_same_seed_gives_the_same_weights_to_the_bit(make, events) -> None:
    first, again = make().fit(events), make().fit(events)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    assert not torch.equal(make(seed=1).fit(events).predict(events), first.predict(events))


@both
def test_a_saved_model_predicts_as_before_and_other_tools_read_it(make, events, tmp_path) -> None:
    model = make().fit(events)
    model.save(tmp_path / "model.safetensors")
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()
    again = type(model).load(tmp_path / "model.safetensors")
    assert again.config == model.config
    assert torch.equal(again.predict(events), model.predict(events))
    assert torch.equal(again.embed(events), model.embed(events))


def test_a_file_of_another_model_is_refused(events, tmp_path) -> None:
    gcn().fit(events).save(tmp_path / "gcn.safetensors")
    with pytest.raises(GraphCLError, match=r"gcn.safetensors: no saved SAHGNN"):
        SAHGNN.load(tmp_path / "gcn.safetensors")
    sa_hgnn().fit(events).save(tmp_path / "sa.safetensors")
    with pytest.raises(GraphCLError, match=r"sa.safetensors: no saved OutageGCN"):
        OutageGCN.load(tmp_path / "sa.safetensors")


@both
@pytest.mark.parametrize("field", ["static_names", "weather_names"])
def test_features_that_the_model_does_not_know_are_named(make, field, events) -> None:
    names = getattr(events, field)
    other = replace(events, **{field: (*names[:-1], "snow [cm]")})
    model = make().fit(events)
    message = re.escape(f"missing {names[-1]}; unknown snow [cm]")
    with pytest.raises(DataError, match=f"^{field}: .*{message}"):
        model.predict(other)
    turned = replace(events, **{field: names[::-1]})
    with pytest.raises(DataError, match="in another order"):
        model.embed(turned)


@both
def test_events_without_counts_cannot_train_and_untrained_models_cannot_predict(
    make, events
) -> None:
    with pytest.raises(GraphCLError, match="the events have no counts to learn from"):
        make().fit(replace(events, outages=None))
    with pytest.raises(GraphCLError, match="has no weights yet; call fit or load first"):
        make().predict(events)


@both
@pytest.mark.parametrize("target", ["raw", "log", "sqrt", "poisson"])
def test_every_target_learns(make, target, events) -> None:
    seen = []
    make(target=target, epochs=25, learning_rate=0.01, dropout=0.0).fit(
        events, lambda epoch, terms: seen.append(terms)
    )
    assert len(seen) == 25
    assert seen[-1]["count"] < seen[0]["count"]


def test_training_starts_from_the_mean_rate(events) -> None:
    model = sa_hgnn().start(events)
    with torch.no_grad():
        model.rate.weight.zero_()
    total = float(model.predict(events).double().sum())
    assert total == pytest.approx(float(events.outages.sum()), rel=1e-3)


def test_the_scales_of_features_are_those_of_all_training_events(events) -> None:
    model = sa_hgnn().start(events.of([0, 1, 2]))
    weather = model.weather_scale(events.weather[:3])[..., : len(events.weather_names)]
    seen = weather.flatten(0, 1)[:, events.weather[:3].flatten(0, 1).std(0) > 0]
    torch.testing.assert_close(seen.mean(0), torch.zeros(seen.size(1)), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.std(0, correction=0), torch.ones(seen.size(1)))
    before = model.weather_scale.mean.clone()
    model.predict(events.of([3, 4, 5]))
    assert torch.equal(model.weather_scale.mean, before)


def test_a_rate_per_customer_scales_with_the_customers_and_a_count_does_not(events) -> None:
    """Of the same situation: the number of customers is a feature too, so that it must be kept."""
    for exposure, factor in (("customers", 2), ("none", 1)):
        model = sa_hgnn(exposure=exposure).fit(events)
        z = model.embed(events)
        with torch.no_grad():
            one, double = model.counts(z, events.customers), model.counts(z, 2 * events.customers)
        torch.testing.assert_close(double, factor * one)


def test_without_customers_nothing_is_expected_per_customer(events) -> None:
    customers = events.customers.clone()
    customers[4] = 0
    expected = sa_hgnn().fit(events).predict(replace(events, customers=customers))
    assert (expected[:, 4] == 0).all()
    assert (expected[:, :4] > 0).all()


def test_the_term_of_totals_mends_what_logarithms_of_counts_miss(events) -> None:
    observed = float(events.outages.sum())

    def missed(weight: float) -> float:
        model = gcn(target="log", total_weight=weight, epochs=40, learning_rate=0.01, dropout=0.0)
        return abs(float(model.fit(events).predict(events).sum()) - observed) / observed

    assert missed(20.0) < 0.5 * missed(0.0)


def test_terms_are_named_and_left_out_where_their_weight_is_0(events) -> None:
    def terms(**changes) -> list[str]:
        model = sa_hgnn(**changes).start(events)
        return list(model.loss(model.prepare(events)))

    assert terms() == ["count", "total", "contrast"]
    assert terms(total_weight=0.0) == ["count", "contrast"]
    assert terms(contrast_weight=0.0) == ["count", "total"]
    model = sa_hgnn().start(events)
    assert list(model.loss(model.prepare(events.of([0])))) == ["count", "total"]


def test_the_gradient_reaches_every_weight(events) -> None:
    model = sa_hgnn(dropout=0.0).start(events).train()
    sum(model.loss(model.prepare(events)).values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_the_static_ablation_has_no_learned_graph(events) -> None:
    names = dict(sa_hgnn(branch="static").start(events).named_parameters())
    assert not [name for name in names if name.startswith(("learner", "mixture"))]


def test_mix_hop_is_its_recursion() -> None:
    torch.manual_seed(0)
    mix, h = MixHop(4, 3, 0.2).double(), torch.randn(6, 4, dtype=torch.float64)
    mean = torch.rand(6, 6, dtype=torch.float64).softmax(1)
    states = [h]
    for _ in range(3):
        states.append(0.2 * h + 0.8 * mean @ states[-1])
    wanted = torch.cat(states, 1) @ mix.mix.weight.T + mix.mix.bias
    torch.testing.assert_close(mix(h, mean), wanted)


def test_a_mixed_mean_is_the_weighted_sum_of_both() -> None:
    one, other, x = torch.randn(3, 5, 5).unbind()
    mixed = MixedMean(torch.tensor(0.25), one, other) @ x
    torch.testing.assert_close(mixed, (0.25 * one + 0.75 * other) @ x)


@pytest.mark.parametrize(
    ("num_events", "size", "wanted"),
    [
        (6, 3, [3, 3]),
        (7, 3, [3, 4]),
        (8, 3, [2, 3, 3]),
        (1, 8, [1]),
        (9, 8, [9]),
        (3, 1, [1, 1, 1]),
    ],
)
def test_a_last_batch_of_one_event_joins_the_one_before(num_events, size, wanted) -> None:
    events = simulate_storms(4, num_events, num_districts=1).events
    batches = EventBatches(sa_hgnn().prepare(events), size, seed=0)
    for _ in range(2):
        epoch = list(batches)
        assert sorted(len(batch.weather) for batch in epoch) == wanted
        assert len(batches) == len(epoch)
        seen = torch.cat([batch.weather for batch in epoch])
        assert torch.equal(seen.flatten().sort().values, events.weather.flatten().sort().values)
        for batch in epoch:  # each keeps its own counts
            place = [
                next(e for e in range(num_events) if torch.equal(events.weather[e], w))
                for w in batch.weather
            ]
            assert torch.equal(batch.outages, events.outages[place].float())


@pytest.mark.parametrize("seed", [0, 1])
def test_networks_beat_the_mean_of_past_storms_and_the_last_similar_one(seed) -> None:
    events = simulate_storms(150, 30, seed=seed).events
    past, new = events.of(range(24)), events.of(range(24, 30))
    config = SAHGNNConfig(
        target="poisson",
        total_weight=0.0,
        batch_events=2,
        learning_rate=0.01,
        dropout=0.1,
        epochs=25,
    )
    observed = new.outages.float()
    error = root_mean_squared_error(SAHGNN(config).fit(past).predict(new), observed)
    mean = past.outages.float().mean(0).expand_as(observed)
    for reference in (mean, LastSimilarStorm().fit(past).predict(new)):
        assert error < 0.85 * root_mean_squared_error(reference, observed)
