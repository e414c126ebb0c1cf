"""`graphcl compare`: what counts as one setting, what is paired, and what the figures say."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from federation.experiment import Experiment
from federation.run_directory import RunDirectory
from graphcl.errors import ConfigError
from simulations.compare import compare, needed_pairs, read_runs
from simulations.settings import data_of, setting_of
from simulations.significance import holm, mean_of, paired_difference


@pytest.fixture
def made(tmp_path, tiny):
    """Return a maker of finished runs whose clients score what it is told."""

    def make(
        name: str, clients: list[float], overrides: dict | None = None, *, finished: bool = True
    ) -> Path:
        path = tmp_path / name
        keys = {"run.name": name, "run.directory": "", "run.rounds": 2, **(overrides or {})}
        run = RunDirectory(path)
        run.open(tiny(keys))
        # The second round is better on test and worse on validation: it must not be chosen.
        for number, gain, val in ((1, 0.0, 0.6), (2, 0.1, 0.5)):
            for partition, accuracy in enumerate(clients):
                line = {"kind": "client", "round": number, "partition": partition, "status": "ok"}
                run.record([line | {"test_examples": 10, "accuracy": accuracy + gain}])
            mean = math.fsum(clients) / len(clients) + gain
            line = {"kind": "round", "round": number, "ok": len(clients), "failed": 0}
            line |= {"bytes_up": 1_000_000, "bytes_down": 500_000, "seconds": 2.0}
            run.record([line | {"accuracy": mean, "val_accuracy": val}])
        if finished:
            run.summary.write_text(json.dumps({"digest": f"{name} {clients}"}))
        return path

    return make


def test_runs_that_differ_in_seed_and_name_alone_are_one_setting(made) -> None:
    runs = read_runs(
        [
            made("a0", [0.4, 0.6], {"run.seed": 0, "simulation.engine": "ray"}),
            made("b0", [0.5, 0.8], {"run.seed": 0, "train.epochs": 5}),
            made("a1", [0.6, 0.6], {"run.seed": 1}),
        ]
    )
    found = compare(runs)
    assert found.keys == ["train.epochs"]
    assert [list(s.runs) for s in found.settings] == [[0, 1], [0]]
    assert found.settings[0].values("accuracy") == [0.5, 0.6]
    assert found.settings[0].sent_bytes == 3_000_000
    assert found.settings[0].seconds == 4.0


def test_a_setting_is_all_that_decides_the_figures(tiny) -> None:
    base = setting_of(tiny())
    for key, value in {"run.seed": 9, "run.name": "x", "simulation.actors": 3}.items():
        assert setting_of(tiny({key: value})) == base
    for key, value in {"run.rounds": 9, "strategy.fraction": 0.5, "model.dropout": 0.1}.items():
        assert setting_of(tiny({key: value})) != base
    # Sums are rounded in another order.
    alone, batched = (
        {"model.encoders": "mlp", "model.dropout": 0.0, "simulation.batch_clients": n}
        for n in (0, 4)
    )
    assert setting_of(tiny(alone)) != setting_of(tiny(batched))
    assert setting_of(tiny({"simulation.cpus_per_client": 2})) != base
    forecasts = {
        "task.name": "forecast",
        "data.source": "confounded",
        "partition.scheme": "natural",
    }
    near, far = (setting_of(tiny({**forecasts, "forecast.horizon": h})) for h in (3, 12))
    assert data_of(near) != data_of(far)


def test_means_over_seeds_have_students_interval() -> None:
    values = [0.61, 0.64, 0.7, 0.58]
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    found = mean_of(values)
    assert found.mean == pytest.approx((low + high) / 2)
    assert found.half_width == pytest.approx((high - low) / 2)
    assert mean_of([0.5]).half_width is None


def test_the_signed_rank_test_is_exact() -> None:
    """Against all signs of the ranks, one by one."""
    differences = [0.3, -0.1, 0.45, 0.2, 0.7, -0.05, 0.6]
    ranks = stats.rankdata(np.abs(differences))
    observed = sum(r for r, d in zip(ranks, differences, strict=True) if d > 0)
    sums = [
        sum(r for r, sign in zip(ranks, signs, strict=True) if sign)
        for signs in itertools.product((0, 1), repeat=len(ranks))
    ]
    centre = ranks.sum() / 2
    extreme = np.mean([abs(s - centre) >= abs(observed - centre) for s in sums])
    others = [1.0] * len(differences)
    found = paired_difference([1.0 + d for d in differences], others)
    assert found.p_value == pytest.approx(extreme)
    assert found.mean.mean == pytest.approx(np.mean(differences))
    assert found.least_p_value == 2 / 2 ** len(differences)
    assert paired_difference(others, others).p_value == 1.0


def test_shares_that_differ_alike_tie() -> None:
    """0.3 - 0.2 and 0.2 - 0.1 are unlike as floats; ranks are of tenths."""
    tenths = [2, 9, 5, 5, 7, 4, 7, 8, 8, 2], [0, 7, 3, 6, 4, 4, 4, 9, 10, 0]
    found = paired_difference(*([n / 10 for n in side] for side in tenths))
    whole = paired_difference(*tenths)
    assert found.p_value == whole.p_value
    assert found.p_value == pytest.approx(
        stats.wilcoxon(np.subtract(*tenths), zero_method="wilcox").pvalue
    )


def test_holm_corrects_step_by_step_and_keeps_the_order() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert needed_pairs(1) == 6
    assert needed_pairs(4) == 8


def test_settings_are_paired_by_the_seeds_that_both_ran(made) -> None:
    ours, theirs = [], []
    for seed in range(7):
        ours.append(made(f"a{seed}", [0.4 + 0.03 * seed] * 2, {"run.seed": seed}))
        if seed != 3:
            score = 0.45 + 0.031 * seed
            theirs.append(made(f"b{seed}", [score] * 2, {"run.seed": seed, "train.epochs": 5}))
    [contrast] = compare(read_runs([*ours, *theirs])).contrasts
    assert (contrast.over, contrast.difference.mean.count) == ("seeds", 6)
    expected = np.mean([0.05 + 0.001 * seed for seed in range(7) if seed != 3])
    assert contrast.difference.mean.mean == pytest.approx(expected)
    assert contrast.p_value == pytest.approx(2 / 2**6)
    assert contrast.verdict == "better"
    assert (contrast.clients_better, contrast.clients) == (12, 12)
    [contrast] = compare(read_runs([*theirs, *ours])).contrasts
    assert contrast.verdict == "worse"


def test_a_single_seed_is_paired_over_its_clients(made) -> None:
    one = made("one", [0.5, 0.6, 0.7, 0.8, 0.4, 0.3])
    two = made("two", [0.6, 0.71, 0.82, 0.93, 0.54, 0.45], {"train.epochs": 5})
    [contrast] = compare(read_runs([one, two])).contrasts
    assert (contrast.over, contrast.difference.mean.count) == ("clients", 6)
    assert contrast.difference.mean.mean == pytest.approx(0.125)
    assert contrast.verdict == "better"
    # A third setting doubles the questions: six pairs no longer suffice.
    three = made("three", [0.5, 0.6, 0.7, 0.8, 0.4, 0.2], {"train.epochs": 7})
    found = compare(read_runs([one, two, three])).contrasts
    assert [c.verdict for c in found] == ["too few pairs"] * 2
    assert found[0].p_value == pytest.approx(2 * 2 / 2**6)


def test_a_compared_strategy_is_a_setting(made) -> None:
    main = made("main", [0.5] * 3, {"run.compare": "local"})
    made("main/compare/local", [0.4] * 3, {"run.name": "main", "strategy.name": "local"})
    found = compare(read_runs([main]))
    assert found.keys == ["strategy.name"]
    assert [s.setting["strategy.name"] for s in found.settings] == ["feddbp", "local"]
    assert found.contrasts[0].difference.mean.mean == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"data.csbm.nodes": 200}, r"data\.csbm\.nodes \(160, 200\)"),
        ({"partition.alpha": 0.5, "data.csbm.degree": 4.0}, r"data\.csbm\.degree.*partition\.alph"),
        ({"task.name": "pretrain"}, r"task\.name \('classify', 'pretrain'\)"),
        ({"run.seed": 4, "train.epochs": 5}, r"no run\.seed in common \(3; 4\)"),
        ({"run.seed": 4}, r"differ in no key but run\.seed"),
        ({}, r"results differ"),
    ],
)
def test_what_does_not_compare_is_refused_by_the_key(made, other, message) -> None:
    one, two = made("one", [0.5, 0.6]), made("two", [0.5, 0.7], other)
    with pytest.raises(ConfigError, match=message):
        compare(read_runs([one, two]))


def test_data_of_one_name_that_divide_differently_are_refused(made) -> None:
    one, two = made("one", [0.5]), made("two", [0.5], {"train.epochs": 5})
    for path, nodes in ((one, 10), (two, 11)):
        client = {"nodes": nodes, "edges": 3}
        client |= {"class_counts": [nodes, 0], "label_entropy": 0.0, "edge_homophily": None}
        report = {"clients": [client], "edges": 3, "cut_edges": 0, "cut_share": 0.0}
        (path / "partition.json").write_text(json.dumps(report))
    with pytest.raises(ConfigError, match="divides differently"):
        compare(read_runs([one, two]))


def test_a_run_that_is_not_finished_is_named_with_what_to_do(made) -> None:
    path = made("one", [0.5], finished=False)
    with pytest.raises(ConfigError, match=r"feddbp is not finished.*--resume"):
        read_runs([path])
    with pytest.raises(ConfigError, match="holds no config"):
        read_runs([path.parent / "nothing"])


def test_the_command_shows_writes_and_draws(made, graphcl, tmp_path) -> None:
    for seed in range(3):
        made(f"a{seed}", [0.5, 0.6 + 0.01 * seed], {"run.seed": seed})
        made(f"b{seed}", [0.5, 0.7 + 0.03 * seed], {"run.seed": seed, "train.epochs": 5})
    names = [f"{kind}{seed}" for kind in "ab" for seed in range(3)]
    code, out = graphcl("compare", *names, "--json", "c.json", "--plot", "c.png")
    assert code == 0, out
    assert "train.epochs" in out
    assert "too few pairs" in out
    assert "6 pairs could" in out
    written = json.loads((tmp_path / "c.json").read_text())
    assert [s["values"] for s in written["settings"]] == [{"train.epochs": 2}, {"train.epochs": 5}]
    scores = written["settings"][1]["scores"]["accuracy"]
    assert scores["by_seed"] == pytest.approx([0.6, 0.615, 0.63])
    assert scores["half_width"] == pytest.approx(mean_of([0.6, 0.615, 0.63]).half_width)
    assert written["contrasts"][0]["difference"]["mean"]["mean"] == pytest.approx(0.06)
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert graphcl("compare", "a0")[0] == 2


def test_an_experiment_reads_back_as_its_setting(made) -> None:
    """What is written and what is resolved must not differ, or no two runs would ever match."""
    [run] = read_runs([made("one", [0.5])])
    again = Experiment.from_flat(run.experiment.flat())
    assert setting_of(again) == setting_of(run.experiment)
