"""`graphcl probe --perturb`: the same perturbed graphs for every method, one table."""

import json

import numpy as np
import pytest

from graphcl.datasets import contextual_sbm, save_npz
from graphcl.errors import ConfigError
from graphcl.nodes import ASPECT, linear_probe
from graphcl.spectral import random_perturbation
from simulations.probe import ProbeExperiment, load_graph, load_probe
from simulations.robustness import parse_ratios, run_robustness

BOTH = ("--method", "aspect", "--method", "aspect_s", "--set", "aspect.epochs=3")
QUICK = (*BOTH, "--set", "aspect_s.warmup_steps=1", "--set", "probe.epochs=50")


@pytest.fixture
def experiment(tmp_path) -> ProbeExperiment:
    save_npz(contextual_sbm(200, 2, 16, homophily=0.9, signal=0.6), tmp_path / "graph.npz")
    return ProbeExperiment.model_validate(
        {
            "probe": {"source": str(tmp_path / "graph.npz"), "epochs": 150},
            "aspect": {"hidden_channels": 16, "epochs": 10, "learning_rate": 0.01},
        }
    )


def test_two_methods_stand_side_by_side_and_both_are_written(graphcl, tmp_path) -> None:
    code, out = graphcl(
        "probe", "small.toml", "--perturb", "0.1,0.5", "--perturb-seeds", "2", *QUICK
    )
    assert code == 0, out
    for method in ("aspect", "aspect_s"):
        path = tmp_path / "runs" / "probes" / f"small-{method}-perturbed.json"
        written = json.loads(path.read_text())
        assert written["experiment"]["probe"]["method"] == method
        assert [level["ratio"] for level in written["perturbed"]] == [0.1, 0.5]
        clean = written["clean"]["mean"]
        for level in written["perturbed"]:
            for kind in ("poisoned", "evaded"):
                figures = level[kind]
                assert np.shape(figures["test_accuracy"]) == (2, 10)
                assert figures["mean"] == pytest.approx(np.mean(figures["test_accuracy"]))
                row = next(
                    line
                    for line in out.splitlines()
                    if f"small-{method} " in line and f" {level['ratio']:.0%} " in line
                )
                assert f"{100 * figures['mean']:.2f} ±" in row
                assert f" {100 * (clean - figures['mean']):.2f} " in row


def test_each_question_is_asked_of_the_graphs_it_names(experiment) -> None:
    """Poisoned: trained and probed on the perturbed graph. Evaded: tested on it, no more."""
    found = run_robustness(experiment, [0.4], seeds=1)
    data, (train, val, test) = load_graph(experiment.probe)
    graph = random_perturbation(data, 0.4, seed=0)

    def fit(graph):
        return ASPECT(experiment.aspect).fit(graph)

    kwargs = {"epochs": 150, "patience": 200}
    clean = fit(data)
    expected = linear_probe(clean.embed(data), data.y, train, val, test, **kwargs)
    assert np.array_equal(found.clean[0].test_accuracy, expected.test_accuracy)
    z = fit(graph).embed(graph)
    expected = linear_probe(z, data.y, train, val, test, **kwargs)
    assert np.array_equal(found.perturbed[0].poisoned[0].test_accuracy, expected.test_accuracy)
    evaded = found.perturbed[0].evaded[0]
    assert np.array_equal(evaded.val_accuracy, found.clean[0].val_accuracy)
    assert np.array_equal(evaded.best_epoch, found.clean[0].best_epoch)
    # The test nodes' rows of the perturbed graph under clean training rows, split by split.
    for split in range(3):
        mixed = clean.embed(data)
        mixed[test[:, split]] = clean.embed(graph)[test[:, split]]
        masks = [mask[:, split] for mask in (train, val, test)]
        expected = linear_probe(mixed, data.y, *masks, **kwargs)
        assert evaded.test_accuracy[split] == expected.test_accuracy[0]


def test_every_training_meets_every_perturbed_graph(experiment) -> None:
    def run(**own):
        nested = experiment.model_dump()
        nested["aspect"] |= {"seed": own.pop("seed", 0)}
        nested["probe"] |= own
        nested["aspect_s"] = {}
        return run_robustness(ProbeExperiment.model_validate(nested), [0.4], seeds=2)

    both, alone = run(seeds=2), [run(seed=seed) for seed in (0, 1)]
    assert [len(both.clean), len(both.perturbed[0].poisoned)] == [2, 4]
    for kind in ("poisoned", "evaded"):
        expected = [probe for one in alone for probe in getattr(one.perturbed[0], kind)]
        for found, wanted in zip(getattr(both.perturbed[0], kind), expected, strict=True):
            assert np.array_equal(found.test_accuracy, wanted.test_accuracy)


def test_without_a_perturbation_nothing_is_lost(experiment) -> None:
    level = run_robustness(experiment, [0.0], seeds=1).perturbed[0]
    (clean,) = run_robustness(experiment, [], seeds=1).clean
    for probes in (level.poisoned, level.evaded):
        assert np.array_equal(probes[0].test_accuracy, clean.test_accuracy)


def test_a_strong_perturbation_costs_accuracy(experiment) -> None:
    mild, strong = run_robustness(experiment, [0.05, 1.0], seeds=1).perturbed
    assert strong.poisoned[0].mean < mild.poisoned[0].mean
    assert strong.evaded[0].mean < mild.evaded[0].mean


def test_aspect_s_takes_from_aspect_what_it_leaves_open(tmp_path) -> None:
    path = tmp_path / "p.toml"
    path.write_text("[aspect]\nepochs = 7\norder = 3\n[aspect_s]\norder = 4\nedge_budget = 0.2\n")
    config = load_probe(path).aspect_s
    assert (config.epochs, config.order, config.edge_budget) == (7, 4, 0.2)
    assert load_probe(path, {"aspect_s.epochs": 9}).aspect_s.epochs == 9
    with pytest.raises(ConfigError) as refused:
        load_probe(path, {"aspect.ordr": 3})
    assert "aspect.ordr" in str(refused.value)
    assert "aspect_s." not in str(refused.value)  # a mistake is told once


def test_several_methods_without_perturbation_do_not_overwrite_each_other(
    graphcl, tmp_path
) -> None:
    code, out = graphcl("probe", "small.toml", *QUICK)
    assert code == 0, out
    names = sorted(path.stem for path in (tmp_path / "runs/probes").iterdir())
    assert names == ["small-aspect-random", "small-aspect_s-random"]


@pytest.mark.parametrize("text", ["", "much", "0", "0.1,1.5", "0.1;0.2", "nan"])
def test_a_mistaken_share_is_one_message(graphcl, text) -> None:
    code, out = graphcl("probe", "small.toml", "--perturb", text)
    assert code == 2
    assert "write shares above 0 and up to 1" in out


def test_leaking_is_refused_where_it_has_no_column(graphcl) -> None:
    code, out = graphcl("probe", "small.toml", "--perturb", "0.1", "--leaking")
    assert code == 2
    assert "choose one" in out


def test_shares_are_read_in_order() -> None:
    assert parse_ratios("0.3, 0.1,1") == [0.3, 0.1, 1.0]
