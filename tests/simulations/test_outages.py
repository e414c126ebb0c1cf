"""Evaluation of outage forecasts: nothing that is predicted was trained on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from graphcl.errors import ConfigError
from graphcl.metrics import mean_absolute_error
from graphcl.outages import SAHGNN, Forecast, OutageGCN, OutageModelConfig, Total
from simulations import outages
from simulations.outages import (
    METHODS,
    Coverage,
    OutageExperiment,
    count_trainings,
    describe_outage_keys,
    divide,
    evaluate,
    load_events,
    load_outage_experiment,
    measure_coverage,
    write_evaluation,
)

CONFIGS = Path(__file__).parents[2] / "configs" / "outages"
KEYS = {
    "outage": {"name": "tiny", "locations": 30, "events": 5, "seed": 3},
    "sa_hgnn": {"hidden_channels": 8, "epochs": 2},
    "forecaster": {"members": 1, "folds": 2},
}


def tiny(**table) -> OutageExperiment:
    return OutageExperiment.model_validate({**KEYS, "outage": {**KEYS["outage"], **table}})


@pytest.fixture(scope="module")
def events():
    return load_events(tiny())


class Fake:
    """Predicts what was observed, and remembers what it was shown."""

    def __init__(self, seen):
        self.seen = seen

    def fit(self, events):
        self.trained = events.event

    def predict(self, events):
        self.seen.append((self.trained, events.event))
        return events.outages.float()


@pytest.fixture
def seen(monkeypatch):
    """What a fake method was trained on and asked for, fold by fold."""
    found = []
    monkeypatch.setitem(METHODS, "fake", lambda experiment: Fake(found))
    return found


def test_each_event_is_predicted_from_all_others(events, seen):
    calls = []
    found = evaluate(tiny(), events, "fake", lambda: calls.append(1))
    assert [asked for _, asked in seen] == [(name,) for name in events.event]
    for trained, asked in seen:
        assert sorted((*trained, *asked)) == sorted(events.event)
    assert len(calls) == 5
    assert torch.equal(found.expected, events.outages.float())


def test_named_events_are_predicted_from_the_rest_in_their_order(events, seen):
    experiment = tiny(test_events=" event-3, event-1 ")
    found = evaluate(experiment, events, "fake")
    assert seen == [(("event-0", "event-2", "event-4"), ("event-3", "event-1"))]
    assert torch.equal(found.expected, events.outages[[3, 1]].float())
    assert found.per_event["mae"] == [0, 0]


def test_measures_are_of_the_events_they_stand_beside(events):
    found = evaluate(tiny(), events, "last_similar_storm")
    for event in range(5):
        wanted = mean_absolute_error(found.expected[event], events.outages[event])
        assert found.per_event["mae"][event] == pytest.approx(wanted)
    totals = found.expected.sum(1), events.outages.double().sum(1)
    hit = totals[1] > 0
    wanted = 100 * ((totals[0] - totals[1]).abs() / totals[1])[hit].mean()
    assert found.totals["mape"] == pytest.approx(float(wanted))
    assert found.totals["mae"] == pytest.approx(sum(found.per_event["mae"]) / 5)


def test_one_test_event_has_no_r2(events):
    assert "r2" not in evaluate(tiny(test_events="event-0"), events, "last_similar_storm").totals
    assert "r2" in evaluate(tiny(), events, "last_similar_storm").totals


def test_quiet_test_events_have_no_error_in_percent(events, seen):
    quiet = replace(events, outages=events.outages.clone())
    quiet.outages[[1, 3]] = 0
    found = evaluate(tiny(test_events="event-1, event-3"), quiet, "fake").totals
    assert set(found) == {"mae", "rmse", "morisita_horn", "crmse"}
    assert found["mae"] == found["crmse"] == 0


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_predicts(method, events):
    found = evaluate(tiny(test_events="event-1, event-4"), events, method)
    assert found.expected.shape == (2, 30)
    assert found.expected.isfinite().all()
    assert (found.expected >= 0).all()


def test_methods_are_what_their_names_say():
    experiment = tiny()
    full, static, plain, gcn = (
        METHODS[name](experiment).models[0]
        for name in ("sa_hgnn", "no_dynamic_graph", "no_contrast", "gcn")
    )
    assert full.config == experiment.sa_hgnn
    assert static.config == replace(full.config, branch="static")
    assert plain.config == replace(full.config, contrast_weight=0.0)
    assert isinstance(full, SAHGNN)
    assert isinstance(gcn, OutageGCN)
    for name in OutageModelConfig.__dataclass_fields__:
        assert getattr(gcn.config, name) == getattr(full.config, name)


def test_members_start_from_seeds_of_their_own():
    experiment = OutageExperiment.model_validate({**KEYS, "forecaster": {"members": 3}})
    for name in ("sa_hgnn", "gcn"):
        assert [m.config.seed for m in METHODS[name](experiment).models] == [0, 1, 2]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("event-1, storm-9", r"outage\.test_events: no event is called storm-9; there are event-0"),
        ("event-0,event-1,event-2,event-3", r"1 of 5 events are left to train on"),
    ],
)
def test_test_events_that_cannot_be_are_named(events, names, message):
    with pytest.raises(ConfigError, match=message):
        divide(tiny(test_events=names), events)


def test_events_without_counts_cannot_be_measured(events, monkeypatch):
    class Silent(Fake):
        def predict(self, events):
            return torch.zeros(events.num_events, events.num_locations)

    monkeypatch.setitem(METHODS, "fake", lambda experiment: Silent([]))
    with pytest.raises(ConfigError, match=r"outage\.source: the events have no counts"):
        evaluate(tiny(), replace(events, outages=None), "fake")


def test_coverage_is_measured_on_events_that_calibration_did_not_see(events, monkeypatch):
    shown = []

    class Watched(outages.OutageForecaster):
        def fit(self, events, on_model=lambda: None):
            shown.append(set(events.event))
            return super().fit(events, on_model)

        def predict(self, storm):
            assert storm.event[0] not in shown[-1]
            assert storm.outages is None
            return super().predict(storm)

    monkeypatch.setattr(outages, "OutageForecaster", Watched)
    experiment, calls = tiny(), []
    coverage = measure_coverage(experiment, events, lambda: calls.append(1))
    assert len(shown) == 5
    assert len(calls) == count_trainings(experiment, events) == 5 * (1 + 2)
    assert set(coverage.per_event) == set(events.event)
    mean = sum(coverage.per_event.values()) / 5
    assert coverage.measured["locations"] == pytest.approx(mean)
    assert coverage.nominal["locations"] == 0.9
    assert coverage.nominal["total"] == pytest.approx(3 / 5)  # 4 events calibrate


def test_what_lies_outside_is_counted_as_outside(events, monkeypatch):
    class Narrow(outages.OutageForecaster):
        """Says of every storm that nothing breaks."""

        def fit(self, events, on_model=lambda: None):
            return self

        def predict(self, storm):
            zero = torch.zeros(storm.num_locations)
            total = Total("all", 0.0, 0.0, 0.0, 0.9)
            districts = [total] * len(storm.districts())
            return Forecast(storm, zero, zero, zero, 0.9, districts, total)

    monkeypatch.setattr(outages, "OutageForecaster", Narrow)
    coverage = measure_coverage(tiny(), events, lambda: None)
    quiet = events.outages == 0
    assert coverage.measured["locations"] == pytest.approx(float(quiet.double().mean()))
    assert coverage.measured["total"] == pytest.approx(float(quiet.all(1).double().mean()))
    for event, name in enumerate(events.event):
        assert coverage.per_event[name] == pytest.approx(float(quiet[event].double().mean()))


def test_the_file_holds_configuration_events_and_measures(events, tmp_path):
    experiment = tiny(test_events="event-4, event-0")
    found = [evaluate(experiment, events, "last_similar_storm")]
    coverage = Coverage({"total": 0.9}, {"total": 0.5}, {"event-4": 1.0})
    path = write_evaluation(experiment, events, found, coverage, tmp_path / "deep" / "runs")
    assert path == tmp_path / "deep" / "runs" / "tiny.json"
    written = json.loads(path.read_text())
    assert written["events"] == ["event-4", "event-0"]
    assert OutageExperiment.model_validate(written["experiment"]) == experiment
    one = written["methods"]["last_similar_storm"]
    assert one["per_event"] == found[0].per_event
    assert one["totals"] == found[0].totals
    assert one["expected_totals"] == found[0].expected.double().sum(1).tolist()
    assert written["coverage"]["measured"] == {"total": 0.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[sa_hgnn]\nepoch = 3", r"sa_hgnn\.epoch: unknown key; did you mean 'sa_hgnn\.epochs'"),
        ("[forecaster]\nlevl = 0.5", r"did you mean 'forecaster\.level'"),
        ("[outag]\nname = 'x'", "did you mean 'outage'"),
        ("[sa_hgnn]\ntarget = 'cubic'", r"sa_hgnn\.target: .*'poisson'"),
        ("[sa_hgnn]\nepochs = 'many'", r"sa_hgnn\.epochs: .*integer"),
        ("[sa_hgnn]\nbatch_events = 0", r"sa_hgnn\.batch_events is 0, must be at least 1"),
        ("[sa_hgnn]\nhidden_channels = 0", r"sa_hgnn\.hidden_channels is 0, must be at least 1"),
        ("[sa_hgnn]\nepochs = 0", r"sa_hgnn\.epochs is 0, must be at least 1"),
        ("[sa_hgnn]\ndropout = 2", r"sa_hgnn\.dropout is 2\.0, must be at least 0 and below 1"),
        ("[sa_hgnn]\ntotal_weight = -1", r"sa_hgnn\.total_weight is -1\.0, must be at least 0"),
        ("[sa_hgnn]\ncontrast_weight = -1", r"sa_hgnn\.contrast_weight is -1\.0, must be"),
        ("[sa_hgnn]\ntemperature = 0", r"sa_hgnn\.temperature is 0\.0, must be above 0"),
        ("[outage]\nname = 'a/b'", r"outage\.name"),
        ("[outage]\nevents = 1", r"outage\.events"),
        ("[outage", r"file\.toml"),
    ],
)
def test_a_wrong_key_is_named(tmp_path, text, message):
    (tmp_path / "file.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_outage_experiment(tmp_path / "file.toml")


def test_settings_override_the_file():
    experiment = load_outage_experiment(
        CONFIGS / "simulated.toml", {"sa_hgnn.epochs": 7, "outage.seed": 5}
    )
    assert (experiment.sa_hgnn.epochs, experiment.outage.seed) == (7, 5)
    assert experiment.sa_hgnn.target == "poisson"


def test_every_key_has_a_meaning_and_exists():
    keys = {name: meaning for name, _, meaning in describe_outage_keys()}
    assert all(keys.values())
    dumped = OutageExperiment().model_dump()
    named = {
        f"{table}.{key}" for table in ("outage", "sa_hgnn", "forecaster") for key in dumped[table]
    }
    assert named | {"columns", "units"} == set(keys)
    assert keys["sa_hgnn.learning_rate"] == keys["sa_hgnn.weight_decay"]


def test_the_simulated_file_names_events_that_exist():
    experiment = load_outage_experiment(CONFIGS / "simulated.toml")
    (fold,) = divide(experiment, load_events(experiment))
    assert (len(fold.train), len(fold.test)) == (18, 6)


def test_typhoons_load_train_and_predict(data_root):
    experiment = load_outage_experiment(CONFIGS / "taiwan.toml", {"outage.root": str(data_root)})
    events = load_events(experiment)
    assert (events.num_events, events.num_locations) == (8, 7851)
    model = SAHGNN(replace(experiment.sa_hgnn, epochs=3))
    expected = model.fit(events.of(range(7))).predict(events.of([7]))
    assert expected.isfinite().all()
    assert 0 < float(expected.sum()) < float(events.customers.sum())
