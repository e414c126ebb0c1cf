"""`graphcl probe`: label-free training, linear evaluation, one table."""

import json
from pathlib import Path

import pytest

from graphcl.datasets import contextual_sbm, save_npz
from simulations.probe import METHODS, describe_probe_keys, load_probe

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "nodes").glob("*.toml"))


def test_probe_prints_a_table_and_writes_the_figures(graphcl, tmp_path) -> None:
    code, out = graphcl("probe", "small.toml")
    assert code == 0, out
    written = json.loads((tmp_path / "runs" / "probes" / "small-random.json").read_text())
    trained, untrained = written["trained"], written["untrained"]
    assert f"{100 * trained['mean']:.2f} ± {100 * trained['confidence']:.2f}" in out
    assert f"{100 * untrained['mean']:.2f}" in out
    (training,) = trained["test_accuracy"]
    assert len(training) == 10
    assert trained["mean"] > 0.8
    assert written["experiment"]["aspect"]["hidden_channels"] == 16
    assert "leaking" not in out


def test_probe_repeats_to_the_last_digit(graphcl, tmp_path) -> None:
    results = tmp_path / "runs" / "probes" / "small-random.json"
    graphcl("probe", "small.toml")
    first = results.read_text()
    graphcl("probe", "small.toml")
    assert results.read_text() == first


def test_several_trainings_are_those_of_the_seeds_that_follow(graphcl, tmp_path) -> None:
    """Accuracies are their means, and the table has the lowest and the highest of them."""
    results = tmp_path / "runs" / "probes" / "small-random.json"
    alone, settings = [], ("--set", "aspect.epochs=2", "--set", "probe.epochs=20")
    for seed in (3, 4):
        graphcl("probe", "small.toml", *settings, "--set", f"aspect.seed={seed}")
        alone.append(json.loads(results.read_text()))
    code, out = graphcl(
        "probe", "small.toml", *settings, "--set", "aspect.seed=3", "--set", "probe.seeds=2"
    )
    assert code == 0, out
    both = json.loads(results.read_text())
    for kind in ("trained", "untrained"):
        parts = [one[kind] for one in alone]
        assert both[kind]["test_accuracy"] == [part["test_accuracy"][0] for part in parts]
        assert both[kind]["mean"] == pytest.approx(sum(part["mean"] for part in parts) / 2)
    low, high = sorted(100 * one["trained"]["mean"] for one in alone)
    assert low < high
    assert f"{low:.1f}–{high:.1f}" in out  # noqa: RUF001


def test_leaking_protocol_is_shown_only_on_request_and_never_lower(graphcl, tmp_path) -> None:
    code, out = graphcl("probe", "small.toml", "--leaking")
    assert code == 0
    assert "leaking: epoch by test nodes" in out
    written = json.loads((tmp_path / "runs" / "probes" / "small-random.json").read_text())
    for kind in ("trained", "untrained"):
        assert written[kind]["leaking_mean"] >= written[kind]["mean"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["probe"], "name a probe file"),
        (["probe", "none.toml"], "none.toml: no such"),
        (["probe", "small.toml", "--set", "aspect.ordr=3"], "did you mean 'aspect.order'"),
        (["probe", "small.toml", "--set", "aspect.policy=both"], "aspect.policy"),
        (["probe", "small.toml", "--set", "probe.method=bgr"], "probe.method"),
        (["probe", "small.toml", "--set", "probe.source=absent.npz"], "absent.npz: not found"),
        (["probe", "small.toml", "--set", "probe.splits=geom"], "geom_"),
    ],
)
def test_a_mistake_is_one_message(graphcl, tmp_path, arguments, message) -> None:
    code, out = graphcl(*arguments)
    assert code != 0
    assert message in out
    assert "Traceback" not in out


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_probed_whole_and_in_batches(graphcl, tmp_path, method) -> None:
    means = []
    for batch in (0, 100):
        own = {"batch_nodes": batch, "epochs": 20, "learning_rate": 0.01}
        if method == "polygcl":  # its discriminator learns before its filters do
            own |= {"epochs": 100, "patience": 100, "hidden_channels": 32, "dropout": 0}
        keys = [f"probe.method={method}", *(f"{method}.{k}={v}" for k, v in own.items())]
        code, out = graphcl("probe", "small.toml", *(f"--set={key}" for key in keys))
        assert code == 0, out
        written = json.loads((tmp_path / "runs" / "probes" / "small-random.json").read_text())
        assert written["trained"]["mean"] > 0.7
        means.append(written["trained"]["test_accuracy"])
    assert means[0] != means[1]


def test_a_graph_without_edges_is_probed(graphcl, tmp_path) -> None:
    graph = contextual_sbm(90, 3, 8)
    graph.edge_index = graph.edge_index[:, :0]
    save_npz(graph, tmp_path / "alone.npz")
    settings = ("probe.source=alone.npz", "aspect.epochs=2")
    code, out = graphcl("probe", "small.toml", *(f"--set={key}" for key in settings))
    assert code == 0, out


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_files_of_the_repository_are_valid(path) -> None:
    assert load_probe(path).probe.name.replace("-", "_") == path.stem


def test_all_takes_every_file_of_the_folder(graphcl, tmp_path) -> None:
    small = (tmp_path / "small.toml").read_text()
    folder = tmp_path / "configs" / "nodes"
    folder.mkdir(parents=True)
    for name in ("one", "two"):
        text = small.replace('"small"', f'"{name}"').replace("epochs = 20\n", "epochs = 2\n")
        (folder / f"aspect_{name}.toml").write_text(text)
    code, out = graphcl("probe", "--all", "--set", "probe.epochs=20")
    assert code == 0, out
    assert sorted(path.stem for path in (tmp_path / "runs/probes").iterdir()) == [
        "one-random",
        "two-random",
    ]


def test_two_probes_of_one_name_are_refused(graphcl, tmp_path) -> None:
    (tmp_path / "again.toml").write_text((tmp_path / "small.toml").read_text())
    code, out = graphcl("probe", "small.toml", "again.toml")
    assert code == 2
    assert "2 probes are named small" in out


def test_a_stop_shows_and_keeps_what_was_finished(graphcl, tmp_path) -> None:
    settings = ("--set", "probe.epochs=20")
    text = (
        (tmp_path / "small.toml")
        .read_text()
        .replace('"small"', '"bad"')
        .replace("graph.npz", "absent.npz")
    )
    (tmp_path / "bad.toml").write_text(text)
    code, out = graphcl("probe", "small.toml", "bad.toml", *settings)
    assert code == 1
    assert "absent.npz: not found" in out
    assert "±" in out
    assert (tmp_path / "runs" / "probes" / "small-random.json").exists()


def test_keys_of_a_probe_file_have_meanings(graphcl) -> None:
    code, out = graphcl("keys", "aspect.", "--probe")
    assert code == 0
    for name in ("aspect.temperature", "aspect.drop_edges", "aspect.cutoff"):
        line = next(line for line in out.splitlines() if line.split()[:1] == [name])
        assert len(line.split()) > 4, line


def test_every_key_of_a_probe_file_says_what_it_means() -> None:
    assert [name for name, _, meaning in describe_probe_keys() if not meaning] == []
