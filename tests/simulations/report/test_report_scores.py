"""A report speaks of the scores of its run's task, and knows which way is better."""

import re

import pytest

from federation.scores import SCORES, Score
from graphcl.errors import FederationError
from simulations.report.units import DASH, scored

VAL_MAE = {1: 40.0, 2: 30.0, 3: 20.0, 4: 25.0}  # round 3 is the best


def outage_scores(strategy, server_round, client):
    mae = 12.345 + server_round + 2 * client + (1 if strategy == "local" else 0)
    return {
        "mae": mae,
        "val_mae": VAL_MAE[server_round],
        "rmse": 2 * mae,
        "total_error": 7.5,
        "morisita_horn": 0.8,
    }


@pytest.fixture
def outages(monkeypatch, make_run):
    """Write a run of outages, where lower is better; and their comparison with training alone."""
    monkeypatch.setitem(SCORES, "classify", SCORES["outages"])
    return lambda **options: make_run(
        compare="local", others={"local": {}}, scores_of=outage_scores, **options
    )


def test_a_run_of_outages_is_told_in_its_scores(outages, report):
    page = report(outages())
    assert "accuracy" not in page.html.lower()
    assert "Head" not in page.html
    assert "Test MAE 17.34 best validation, round 3" in page.text
    assert "MAE of every client" in page.text
    assert [label.split(".")[0] for label in page.plots][::2][:2] == [
        "Test MAE over the rounds",
        "Test MAE of 3 clients",
    ]
    header = next(row for row in page.rows if row[0] == "Strategy")
    assert header[1:8] == [
        "Test MAE",
        "Last round",
        "Worst client",
        "RMSE",
        "Total error",
        "Morisita-Horn",
        "Up",
    ]
    assert page.row("feddbp")[1:7] == [
        "17.34 round 3",
        "18.34",
        "19.34",
        "34.69",
        "7.500",
        "0.800",
    ]
    assert len({len(row) for row in page.rows if row[0] in ("Strategy", "● feddbp")}) == 1
    assert (
        "Test MAE, worst client, RMSE, total error and Morisita-Horn are those of the "
        "round with the best validation MAE." in page.text
    )
    assert "percentage points" not in page.text


def test_the_lower_error_is_the_better_one(outages, report):
    page = report(outages())
    assert re.findall(r"<strong>(.*?)</strong>", page.html) == ["17.34"]  # local has 18.34
    assert "Worst client 19.34 client 2" in page.text
    assert "The worst: feddbp client 2 with 19.34; local client 2 with 20.34." in page.plots[2]
    assert "lower is better" in page.text
    assert "the further left the better" in page.text


def test_the_higher_accuracy_is_the_better_one(make_run, report):
    page = report(make_run(others={"local": {"rounds": 1}}))
    assert re.findall(r"<strong>(.*?)</strong>", page.html) == ["89.8\xa0%"]
    assert "higher is better" in page.text
    assert "the further right the better" in page.text


def test_a_client_without_test_examples_is_not_the_worst(make_run, report):
    run = make_run()
    metrics = (run / "metrics.jsonl").read_text()
    lowest = re.compile(r'("partition": 2.*?)"accuracy": [\d.]+(.*)"test_examples": 22')
    assert len(lowest.findall(metrics)) == 4
    metrics = lowest.sub(r'\1"accuracy": 0.0\2"test_examples": 0', metrics)
    (run / "metrics.jsonl").write_text(metrics)
    page = report(run)
    assert "Worst client 89.8 % client 1" in page.text
    assert next(row for row in page.rows if row[0] == "2")[3] == DASH


def test_two_classes_have_a_column_for_the_roc_curve(make_run, report):
    def binary(strategy, server_round, client):
        return {"accuracy": 0.5, "val_accuracy": 0.5, "roc_auc": 0.75}

    page = report(make_run(scores_of=binary))
    assert next(row for row in page.rows if row[0] == "Strategy")[4] == "ROC AUC"
    assert page.row("feddbp")[4] == "75.0 %"


def test_a_score_that_is_no_number_is_damage(make_run, report):
    run = make_run(rounds=1)
    path = run / "metrics.jsonl"
    path.write_text(re.sub(r'"accuracy": [\d.]+', '"accuracy": "high"', path.read_text(), count=1))
    with pytest.raises(FederationError, match=r"line 1: damaged: client: scores: accuracy"):
        report(run)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, DASH),
        (0.0312, "0.031"),
        (9.87654, "9.877"),
        (-12.3456, "-12.35"),
        (123456.7, "123457"),
    ],
)
def test_a_score_has_four_digits_and_all_before_its_point(value, text):
    assert scored(value, Score("mae", "MAE", "lower")) == text
    assert scored(0.5, Score("auc", "AUC", "higher", percent=True)) == "50.0\xa0%"
