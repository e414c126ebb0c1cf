"""What a task is scored by decides the best round, the worst client and the figures' names."""

import pytest
from flwr.app import MetricRecord

from federation.figures import summarise
from federation.learners import LEARNERS, NodeLearner
from federation.scores import SCORES, Score

MAE = SCORES["outages"][0]
# Client i's errors, and how many examples it has of each kind.
ERRORS, TEST, VAL = (8.0, 2.0, 5.0), (1, 3, 0), (0, 1, 4)


@pytest.fixture
def outages(monkeypatch):
    """Let the clients of a run be scored as those of outages: by these errors."""

    def evaluate(learner, predict):
        client = learner.client
        return {
            "num-examples": TEST[client],
            "val-examples": VAL[client],
            "test-loss": 0.5,
            "mae": ERRORS[client],
            "val-mae": ERRORS[client],
            "rmse": 2 * ERRORS[client],
        }

    def remember(learner, experiment, partition, *others, **named):
        learner.client = partition
        build(learner, experiment, partition, *others, **named)

    build = NodeLearner.__init__
    monkeypatch.setitem(SCORES, "classify", SCORES["outages"])
    monkeypatch.setattr(NodeLearner, "__init__", remember)
    monkeypatch.setattr(NodeLearner, "evaluate", evaluate)


def lines(val, test, clients=()):
    """Return the lines of rounds with these errors, and of their clients in the last one."""
    counts = {"failed": 0, "bytes_up": 1, "bytes_down": 1, "seconds": 0.1}
    rounds = [
        {"kind": "round", "round": r, "val_mae": v, "mae": t, "rmse": 2 * t, **counts}
        for r, (v, t) in enumerate(zip(val, test, strict=True), start=1)
    ]
    of_clients = [
        {"kind": "client", "round": len(rounds), "mae": error, "test_examples": examples}
        for error, examples in clients
    ]
    return of_clients + rounds


def test_every_task_is_scored():
    assert set(LEARNERS) <= set(SCORES)
    for scores in SCORES.values():
        assert len({score.key for score in scores}) == len(scores)
        assert not scores[0].detail  # it is shown by default


def test_names_have_dashes_on_the_wire_and_underscores_in_files():
    score = Score("roc-auc", "ROC AUC", "higher")
    assert (score.val_name, score.key, score.val_key) == ("val-roc-auc", "roc_auc", "val_roc_auc")


def test_labels_begin_a_line_with_a_capital():
    assert Score("mae", "MAE", "lower").title == "MAE"
    assert Score("total-error", "error of the total", "lower").title == "Error of the total"


@pytest.mark.parametrize(("better", "best"), [("higher", 3.0), ("lower", 1.0)])
def test_the_better_value_ranks_higher(better, best):
    assert max((2.0, 1.0, 3.0), key=Score("s", "s", better).rank) == best


def test_the_best_round_of_an_error_has_the_lowest(tiny, monkeypatch):
    """The first of equals, by validation alone."""
    monkeypatch.setitem(SCORES, "classify", SCORES["outages"])
    found = summarise(tiny(), lines(val=(4.0, 1.5, 1.5, 9.0), test=(1.0, 7.0, 5.0, 6.0)))
    assert found["best_round"] == 2
    assert found["val_mae"] == 1.5
    assert found["test_mae"] == 7.0
    assert found["test_rmse"] == 14.0
    assert found["final_test_mae"] == 6.0
    assert not [name for name in found if "accuracy" in name]


def test_the_worst_client_of_an_error_has_the_highest(tiny, monkeypatch):
    """One without test examples has no error at all."""
    monkeypatch.setitem(SCORES, "classify", SCORES["outages"])
    clients = [(2.0, 5), (6.0, 5), (0.0, 0), (99.0, 0)]
    found = summarise(tiny(), lines(val=(4.0,), test=(3.0,), clients=clients))
    assert found["worst_client_mae"] == 6.0


def test_scores_weigh_by_their_own_examples(outages, tiny, staged, tmp_path, lines_of, summary_of):
    staged(tiny("fedavg", tmp_path)).serve()
    for line in lines_of(tmp_path, kind="round"):
        assert line["mae"] == pytest.approx((1 * 8 + 3 * 2) / 4)
        assert line["rmse"] == pytest.approx(2 * (1 * 8 + 3 * 2) / 4)
        assert line["val_mae"] == pytest.approx((1 * 2 + 4 * 5) / 5)
        assert "accuracy" not in line
    for line in lines_of(tmp_path, kind="client"):
        assert line["mae"] == line["val_mae"] == ERRORS[line["partition"]]
        assert line["test_examples"] == TEST[line["partition"]]
    assert summary_of(tmp_path)["worst_client_mae"] == 8.0


def test_an_error_of_no_example_is_not_the_best(
    outages, tiny, staged, tmp_path, lines_of, summary_of
):
    """In round 1 the clients with validation examples are lost, and 0 would beat all errors."""
    grid = staged(tiny("fedavg", tmp_path))
    grid.lost.update({("evaluate", 1, client) for client in (1, 2)})
    grid.serve()
    [line] = lines_of(tmp_path, kind="round", round=1)
    assert line["mae"] == 8.0
    assert "val_mae" not in line
    assert summary_of(tmp_path)["best_round"] == 2


@pytest.mark.parametrize("name", [MAE.name, MAE.val_name])
def test_a_reply_without_the_first_score_is_left_out(
    outages, tiny, staged, tmp_path, lines_of, name
):
    def forget(content):
        kept = {key: value for key, value in content["metrics"].items() if key != name}
        content["metrics"] = MetricRecord(kept)

    grid = staged(tiny("fedavg", tmp_path))
    grid.tamper["evaluate", 2, 1] = forget
    grid.serve()
    [line] = lines_of(tmp_path, kind="client", round=2, partition=1)
    assert f"the metrics lack ['{name}']" in line["evaluation"]
    assert "mae" not in line
