"""``graphcl recommend``: from a file to figures and to a service, and what a mistake says."""

import json
import re
import signal
import subprocess
import sys
import urllib.request
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest

from graphcl.datasets import load_interactions, save_interactions, simulate_interactions
from graphcl.errors import DataError, GraphCLError
from graphcl.recommend import RECOMMENDERS, load_recommender
from simulations import recommend_evaluation, terminal
from simulations.recommend_evaluation import Figure
from simulations.recommendations import (
    describe_recommend_keys,
    divide,
    load_data,
    load_recommend_experiment,
)

CONFIGS = Path(__file__).parents[2] / "configs" / "recommend"
TINY = """
[recommend]
name = "tiny"
source = "clicks.npz"
seeds = 2

[sasrec]
hidden_channels = 8
length = 8
epochs = 2

[gru4rec]
hidden_channels = 8
epochs = 2
"""
TWO = ("--method", "pop", "--method", "sasrec")


@pytest.fixture
def recommend(graphcl, tmp_path):
    """Return a caller of ``graphcl recommend`` beside ``tiny.toml`` and its interactions."""
    interactions = simulate_interactions(80, 40, num_clusters=4, seed=1).interactions
    save_interactions(interactions, tmp_path / "clicks.npz")
    (tmp_path / "tiny.toml").write_text(TINY)
    return lambda *arguments: graphcl("recommend", *arguments)


def results(folder, name="tiny"):
    return json.loads((folder / "runs" / "recommend" / f"{name}.json").read_text())


def trainings(folder, name="tiny"):
    return sorted(path.name for path in (folder / "runs" / "recommend" / name).iterdir())


def test_evaluation_shows_and_writes_the_protocol_and_every_method(recommend, tmp_path):
    code, out = recommend("evaluate", "tiny.toml", *TWO)
    assert code == 0, out
    found = results(tmp_path)
    assert list(found["methods"]) == ["pop", "sasrec"]
    page = (tmp_path / "runs" / "recommend" / "tiny.md").read_text()
    for line in found["protocol"]:
        assert line in out
        assert line in page
    assert "no sampled negatives" in out
    assert "it is a miss (0 of 80)" in out
    for name, one in found["methods"].items():
        assert list(one["metrics"]) == ["all", "head", "tail"]
        figure = one["metrics"]["all"]["NDCG@10"]
        shown = f"{100 * figure['mean']:.2f}"
        if name == "sasrec":
            shown += f" ± {100 * figure['half_width']:.2f}"
        assert re.search(rf"all +{name} .*{re.escape(shown)}", out)
        assert re.search(rf"\| all \| {name} \|.* {re.escape(shown)} \|", page)
    assert "Trainings: pop 1 of 0 epochs and 0 s; sasrec 2 of 2 epochs" in out
    assert [one["seed"] for one in found["trainings"]] == [None, 0, 1]


@pytest.mark.parametrize(
    ("width", "hidden"),
    [(60, "HR@5, HR@20, NDCG@5, NDCG@20, MRR"), (80, "HR@5, NDCG@5, MRR"), (140, None)],
)
def test_a_narrow_terminal_shows_fewer_measures_and_whole_figures(
    recommend, monkeypatch, width, hidden
):
    recommend("evaluate", "tiny.toml", *TWO)
    monkeypatch.setattr(terminal, "console", terminal.Console(width=width))
    code, out = recommend("evaluate", "tiny.toml", *TWO)
    assert code == 0, out
    assert "…" not in out
    if hidden is None:
        assert "Too wide" not in out
    else:
        assert f"Too wide for this terminal, and in the files below: {hidden}\n" in out
    assert "NDCG@10" in out
    table = [line for line in out.splitlines() if re.match(" (all|head|tail) ", line)]
    assert len(table) == 6
    assert max(map(len, table)) <= width


def test_what_is_finished_is_not_run_again_unless_data_or_settings_change(
    recommend, tmp_path, monkeypatch
):
    recommend("evaluate", "tiny.toml", *TWO)
    first, ran = results(tmp_path), []
    train_and_test = recommend_evaluation.train_and_test

    def noted(experiment, split, pair, *rest):
        ran.append(pair)
        return train_and_test(experiment, split, pair, *rest)

    monkeypatch.setattr(recommend_evaluation, "train_and_test", noted)
    code, out = recommend("evaluate", "tiny.toml", *TWO)
    assert code == 0
    assert "3 of 3 trainings are in runs/recommend/tiny already and are not run again" in out
    assert ran == []
    assert results(tmp_path) == first
    recommend("evaluate", "tiny.toml", *TWO, "--seeds", "3")
    assert ran == [("sasrec", 2)]
    recommend("evaluate", "tiny.toml", *TWO, "--set", "sasrec.dropout=0.1")
    assert ran[1:] == [("sasrec", 0), ("sasrec", 1)]
    save_interactions(
        simulate_interactions(80, 40, num_clusters=4, seed=2).interactions, tmp_path / "clicks.npz"
    )
    recommend("evaluate", "tiny.toml", *TWO)
    assert ran[3:] == [("pop", None), ("sasrec", 0), ("sasrec", 1)]


def test_processes_find_what_one_finds(recommend, tmp_path):
    found = []
    for jobs in ("1", "2"):
        code, out = recommend("evaluate", "tiny.toml", *TWO, "--jobs", jobs, "--out", jobs)
        assert code == 0, out
        found.append(json.loads((tmp_path / jobs / "tiny.json").read_text())["trainings"])
    for one in (*found[0], *found[1]):
        one.pop("seconds")
    assert sorted(map(str, found[0])) == sorted(map(str, found[1]))


def test_processes_tell_of_every_epoch(recommend, tmp_path):
    experiment = load_recommend_experiment(tmp_path / "tiny.toml", {})
    told = {"1": [], "2": []}
    for jobs, epochs in told.items():
        evaluation = recommend_evaluation.Evaluation(experiment, ["sasrec"], tmp_path / jobs)
        ended = list(evaluation.run(int(jobs), lambda *epoch, kept=epochs: kept.append(epoch)))
        assert len(ended) == 2
    assert [(pair.seed, number) for pair, number, _ in told["1"]] == [
        (0, 1),
        (0, 2),
        (1, 1),
        (1, 2),
    ]
    assert sorted(told["2"], key=str) == sorted(told["1"], key=str)


def test_what_ended_together_with_a_process_that_died_is_kept(recommend, tmp_path, monkeypatch):
    class Pool(ThreadPoolExecutor):
        """Its first training breaks the pool, its second has succeeded by then."""

        def __init__(self, *_) -> None:
            super().__init__(1)
            self.given = 0

        def submit(self, work, *arguments) -> Future:
            self.given += 1
            ended: Future = Future()
            if self.given == 1:
                ended.set_exception(BrokenProcessPool())
            else:
                ended.set_result(work(*arguments))
            return ended

    experiment = load_recommend_experiment(tmp_path / "tiny.toml", {})
    monkeypatch.setattr(recommend_evaluation, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(recommend_evaluation, "_told", SimpleQueue())
    evaluation = recommend_evaluation.Evaluation(experiment, ["sasrec"], tmp_path / "out")
    with pytest.raises(GraphCLError, match="a process died"):
        list(evaluation.run(2, lambda *_: None))
    again = recommend_evaluation.Evaluation(experiment, ["sasrec"], tmp_path / "out")
    assert [pair.seed for pair in again.missing] == [0]


def test_several_files_make_a_table_each_under_names_of_their_own(recommend, tmp_path):
    (tmp_path / "other.toml").write_text(TINY.replace('"tiny"', '"other"'))
    code, out = recommend("evaluate", "tiny.toml", "other.toml", "--method", "pop")
    assert code == 0
    assert out.index("tiny: ") < out.index("other: ")
    assert results(tmp_path)["methods"].keys() == results(tmp_path, "other")["methods"].keys()
    code, out = recommend("evaluate", "tiny.toml", "tiny.toml")
    assert code == 2
    assert "2 files have recommend.name = 'tiny'" in out


def test_an_interruption_keeps_what_was_finished(recommend, tmp_path, monkeypatch):
    train_and_test = recommend_evaluation.train_and_test

    def interrupted(experiment, split, pair, *rest):
        if pair.seed == 1:
            raise KeyboardInterrupt
        return train_and_test(experiment, split, pair, *rest)

    monkeypatch.setattr(recommend_evaluation, "train_and_test", interrupted)
    code, out = recommend("evaluate", "tiny.toml", *TWO)
    assert code == 130
    assert "sasrec 1 of 2 epochs" in out
    assert [one["seed"] for one in results(tmp_path)["trainings"]] == [None, 0]
    assert len(trainings(tmp_path)) == 2


@pytest.mark.parametrize("named", [True, False])
def test_a_method_that_the_data_do_not_suit_is_told_beside_the_others(
    recommend, tmp_path, monkeypatch, named
):
    train_and_test = recommend_evaluation.train_and_test

    def picky(experiment, split, pair, *rest):
        if pair.method != "pop":
            raise DataError("clicks: the interactions have no text")
        return train_and_test(experiment, split, pair, *rest)

    monkeypatch.setattr(recommend_evaluation, "train_and_test", picky)
    code, out = recommend("evaluate", "tiny.toml", *(TWO if named else ()))
    assert code == (1 if named else 0)
    assert "sasrec has no figures: clicks: the interactions have no text" in out
    assert list(results(tmp_path)["methods"]) == ["pop"]
    assert set(results(tmp_path)["failed"]) == ({"sasrec"} if named else {*RECOMMENDERS} - {"pop"})


def test_a_broken_result_is_refused_and_not_counted(recommend, tmp_path):
    recommend("evaluate", "tiny.toml", "--method", "pop")
    (name,) = trainings(tmp_path)
    (tmp_path / "runs" / "recommend" / "tiny" / name).write_text("{}")
    code, out = recommend("evaluate", "tiny.toml", "--method", "pop")
    assert code == 1
    assert f"{name}: holds no finished training: delete it" in out


def test_the_interval_of_a_mean_is_students(recommend):
    figure = Figure.of([1.0, 2.0, 3.0])
    assert figure.mean == 2
    assert figure.half_width == pytest.approx(4.302653 / 3**0.5)  # t of 2 degrees of freedom
    assert Figure.of([1.0]).half_width is None


def test_from_training_to_a_service_and_vectors(recommend, tmp_path):
    code, out = recommend("train", "tiny.toml", "--out", "model.safetensors", "--method", "gru4rec")
    assert code == 0, out
    assert re.search(r"Trained gru4rec on \d+ events of 80 users with 40 items, 80 held out,", out)
    assert "graphcl recommend serve --model model.safetensors" in out
    model = load_recommender(tmp_path / "model.safetensors")
    assert type(model) is RECOMMENDERS["gru4rec"]
    interactions = load_interactions(tmp_path / "clicks.npz")
    assert int(model.count.sum()) == len(interactions) - 80  # one event of each user chose
    items, scores = model.rank([3, 5], 4)
    with serving("model.safetensors", tmp_path) as address:
        asked = urllib.request.Request(
            f"{address}/rank",
            json.dumps({"history": [3, 5], "k": 4}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(asked) as answer:
            found = json.load(answer)["items"]
    assert [one["item"] for one in found] == items.tolist()
    assert [one["score"] for one in found] == pytest.approx(scores.tolist(), abs=1e-5)
    code, out = recommend("export", "--model", "model.safetensors", "--out", "vectors.npz")
    assert code == 0, out
    with np.load(tmp_path / "vectors.npz") as file:
        assert set(file.files) == {"vector", "item"}
        assert file["item"].tolist() == list(range(1, 41))
        assert file["vector"].shape == (40, 8)
        assert np.array_equal(file["vector"], model.item_vectors()[1:].detach().numpy())


def test_vectors_of_a_model_that_does_not_rank_by_them_are_not_exported(recommend, tmp_path):
    keys = ("recommend.method=slsrec", "slsrec.mode=candidates", "slsrec.epochs=1")
    sets = [part for key in keys for part in ("--set", key)]
    code, out = recommend("train", "tiny.toml", "--out", "m.safetensors", *sets)
    assert code == 0, out
    code, out = recommend("export", "--model", "m.safetensors", "--out", "v.npz")
    assert code == 2
    assert "no index of vectors ranks as it does" in " ".join(out.split())
    assert not (tmp_path / "v.npz").exists()


class serving:  # noqa: N801 - read as a verb
    """A service in a process of its own, at a port that is free, until the block ends."""

    def __init__(self, model, folder):
        command = [sys.executable, "-m", "simulations.cli", "recommend", "serve"]
        self.process = subprocess.Popen(
            [*command, "--model", model, "--port", "0"],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __enter__(self):
        said = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", said)
        assert found, said + self.process.stdout.read()
        return found[0]

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        said, _ = self.process.communicate(timeout=60)
        assert said == ""  # nothing of a request is logged, and Ctrl-C is no failure


def test_popularity_is_trained_without_epochs(recommend, tmp_path):
    code, out = recommend("train", "tiny.toml", "--set", "recommend.method=pop", "--out", "m.st")
    assert code == 0, out
    assert "NDCG" not in out
    assert type(load_recommender(tmp_path / "m.st")) is RECOMMENDERS["pop"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "tiny.toml"], "Missing option '--out'"),
        (["train", "tiny.toml", "--out", "tiny.toml"], "--out tiny.toml exists already"),
        (
            ["train", "tiny.toml", "--out", "no/m.st"],
            "there is no folder no; make it first",
        ),
        (
            ["train", "tiny.toml", "--out", "m.st", "--method", "svd"],
            "'svd' is unknown; choose",
        ),
        (["train", "none.toml", "--out", "m.st"], "none.toml: no such"),
        (
            ["train", "wrong.toml", "--out", "m.st"],
            "sasrec.epochs is 0, must be at least 1",
        ),
        (["evaluate", "tiny.toml", "--method", "svd"], "--method 'svd' is unknown; choose from"),
        (["evaluate", "tiny.toml", "--set", "sasrec.epoch=1"], "'sasrec.epochs'"),
        (["evaluate", "tiny.toml", "--set", "pop.epochs=1"], "pop.epochs: unknown key"),
        (["evaluate", "tiny.toml", "--set", "recommend.text=words"], "recommend.text: 'words'"),
        (["evaluate", "tiny.toml", "--set", "recommend.source=no.npz"], "no.npz: not found"),
        (["evaluate", "tiny.toml", "--set", "recommend.k_core=99"], "choose a smaller k"),
        (["evaluate", "tiny.toml", "--seeds", "0"], "'--seeds': 0 is not in the range"),
        (["serve", "--model", "none.st"], "none.st: no saved model"),
        (["serve", "--model", "clicks.npz"], "clicks.npz: no saved model"),
        (
            ["export", "--model", "none.st", "--out", "v.npz"],
            "none.st: no saved model",
        ),
    ],
)
def test_a_mistake_is_one_message_and_nothing_is_made(recommend, tmp_path, arguments, message):
    (tmp_path / "wrong.toml").write_text(TINY.replace("epochs = 2", "epochs = 0", 1))
    before = sorted(tmp_path.rglob("*"))
    code, out = recommend(*arguments)
    assert code != 0
    assert message in out
    assert "Traceback" not in out
    assert sorted(tmp_path.rglob("*")) == before


def test_a_port_that_is_taken_is_told(recommend):
    import socket

    recommend("train", "tiny.toml", "--set", "recommend.method=pop", "--out", "m.st")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, out = recommend("serve", "--model", "m.st", "--port", port)
    assert code == 2
    assert f"cannot listen at --host 127.0.0.1 --port {port}" in out


@pytest.mark.parametrize("command", ["train", "evaluate", "serve", "export"])
def test_help_shows_an_example(recommend, command):
    code, out = recommend(command, "--help")
    assert code == 0
    assert "For example:" in out
    assert f"graphcl recommend {command}" in out


def test_keys_are_listed_with_their_meaning(graphcl):
    code, out = graphcl("keys", "--recommend", "sasrec")
    assert code == 0
    assert re.search(r"sasrec.length +50 +Events that are read at most", out)
    assert "recommend.source" not in out
    assert all(meaning for _, _, meaning in describe_recommend_keys())
    assert graphcl("keys", "--recommend", "--probe")[0] == 2


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_files_that_come_with_it_are_valid(path):
    assert load_recommend_experiment(path).recommend.name == path.stem


def test_tables_with_names_of_their_own_are_read(data_root):
    experiment = load_recommend_experiment(CONFIGS / "ml100k.toml")
    interactions = load_data(experiment)
    assert interactions.num_items == 1682
    assert interactions.title[1] == "Toy Story"
    assert interactions.category_name[interactions.category[1]] == "Animation"
    train, val, test = divide(experiment, interactions)
    assert len(val) == len(test) == 943
    by_time = experiment.model_copy(
        update={"recommend": experiment.recommend.model_copy(update={"split": "time"})}
    )
    train, val, test = divide(by_time, interactions)
    assert train.time.max() < val.time.min() <= val.time.max() < test.time.min()
