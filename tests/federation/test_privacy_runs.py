"""Whole federations under ``[privacy]``: what crosses the wire, what is refused, what is told."""

import pytest

from federation.privacy.accountant import epsilon
from federation.records import to_arrays, to_tensors
from federation.run_directory import RunDirectory
from graphcl.errors import ConfigError
from simulations.carriers.local import LocalGrid

COUNTED = {"strategy.feddbp.global_weight": "count", "strategy.feddbp.personal": "off"}
NOISED = {"privacy.clip": 1.0, "privacy.noise_multiplier": 1.0, **COUNTED}
SEEDED = {**NOISED, "privacy.noise": "seed"}


def uploads(grid) -> dict:
    return {
        key: to_tensors(reply.content.array_records["prototypes"])
        for key, reply in grid.replies.items()
        if key[0] == "train"
    }


@pytest.mark.parametrize("strategy", ["fedproto", "feddbp"])
def test_noised_prototypes_federate_and_the_summary_tells_epsilon(
    strategy, tiny, staged, tmp_path, summary_of, lines_of
):
    grid = staged(tiny(strategy, tmp_path, **NOISED))
    grid.serve()
    assert {frozenset(found) for found in uploads(grid).values()} == {
        frozenset({"classes", "values", "support"})
    }
    assert [line["failed"] for line in lines_of(tmp_path, kind="round")] == [0, 0]
    summary = summary_of(tmp_path)
    assert summary["epsilon"] == epsilon(1.0, 2, 1e-5)
    assert summary["delta"] == 1e-5


@pytest.mark.parametrize("strategy", ["fedproto", "feddbp"])
def test_a_federation_goes_on_where_nothing_may_leave(
    strategy, tiny, staged, tmp_path, summary_of, lines_of
):
    grid = staged(tiny(strategy, tmp_path, **{"privacy.min_support": 1000}))
    grid.serve()
    assert all(not found["classes"].numel() for found in uploads(grid).values())
    assert [line["failed"] for line in lines_of(tmp_path, kind="round")] == [0, 0]
    assert "epsilon" not in summary_of(tmp_path)


def test_classes_below_the_support_do_not_leave(tiny, staged, tmp_path):
    whole, least = staged(tiny("fedproto", tmp_path / "a")), 4
    whole.serve()
    withheld = staged(tiny("fedproto", tmp_path / "b", **{"privacy.min_support": least}))
    withheld.serve()
    before, after = uploads(whole), uploads(withheld)
    for client in range(3):
        key = ("train", 1, client)
        enough = before[key]["support"] >= least
        assert after[key]["classes"].tolist() == before[key]["classes"][enough].tolist()
    assert sum(map(len, (f["classes"] for f in after.values()))) < sum(
        map(len, (f["classes"] for f in before.values()))
    )


def test_seeded_noise_repeats_a_run_and_system_noise_does_not(tiny, tmp_path, summary_of):
    digests = {}
    for name, keys in (("a", SEEDED), ("b", SEEDED), ("c", NOISED), ("d", NOISED)):
        LocalGrid(tiny("fedproto", tmp_path / name, **keys)).serve()
        digests[name] = summary_of(tmp_path / name)["digest"]
    assert digests["a"] == digests["b"]
    assert len({digests["a"], digests["c"], digests["d"]}) == 3


def test_a_round_that_is_repeated_after_a_kill_is_released_twice(
    tiny, tmp_path, killed_and_resumed, summary_of
):
    killed_and_resumed(tiny("fedproto", tmp_path, **NOISED), 2)
    assert RunDirectory(tmp_path).releases() == [1, 2, 2]
    assert summary_of(tmp_path)["most_releases"] == 3
    assert summary_of(tmp_path)["epsilon"] == epsilon(1.0, 3, 1e-5)


def test_more_samples_than_there_are_cannot_be_claimed(tiny, staged, tmp_path, lines_of):
    grid = staged(tiny("fedproto", tmp_path, **{"privacy.min_support": 2, "run.min_success": 0.1}))

    def boast(content):
        record = content.array_records["prototypes"]
        tensors = to_tensors(record)
        content["prototypes"] = to_arrays({**tensors, "support": tensors["support"] + 1000})

    grid.tamper["train", 1, 0] = boast
    grid.serve()
    [line] = lines_of(tmp_path, kind="client", round=1, partition=0)
    assert "the classes claim" in line["reason"]


@pytest.mark.parametrize(
    ("strategy", "keys", "message"),
    [
        ("fedavg", {"privacy.min_support": 2}, "'fedavg' sends other things"),
        ("fedproto", {"privacy.clip": 1.0, "run.compare": "pooled"}, "'pooled' sends other"),
        ("fedproto", {"privacy.noise_multiplier": 1.0}, r"set privacy\.clip"),
        ("feddbp", {**NOISED, "strategy.feddbp.personal": "soft"}, "Fisher information would"),
        ("feddbp", {**NOISED, "strategy.feddbp.global_weight": "fisher"}, "Fisher information"),
        ("fedproto", {"privacy.min_support": 0}, r"privacy\.min_support"),
        ("fedproto", {"privacy.clip": -1.0}, r"privacy\.clip"),
        ("fedproto", {"privacy.delta": 0.0}, r"privacy\.delta"),
    ],
)
def test_what_would_leave_undefended_is_refused(tiny, strategy, keys, message):
    with pytest.raises(ConfigError, match=message):
        tiny(strategy, **keys)


def test_local_training_may_be_compared(tiny):
    assert tiny("fedproto", **NOISED, **{"run.compare": "local, feddbp"})
    assert tiny("local", **NOISED)
