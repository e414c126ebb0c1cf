"""What is made of data once: for the last two experiments, or brought in from another process."""

from federation.experiment import Experiment
from federation.learners.kept import Kept


def key_of(seed: int, **keys):
    experiment = Experiment.from_flat({"run.seed": seed, **keys})
    return experiment.data, experiment.partition, experiment.run.seed


def test_the_last_two_results_are_made_once():
    made = []
    kept = Kept(lambda data, partition, seed: made.append(seed) or [seed])
    first = kept(*key_of(1))
    assert kept(*key_of(1)) is first
    assert kept(*key_of(2)) == [2]
    assert kept(*key_of(1)) is first
    assert made == [1, 2]
    kept(*key_of(3))  # in place of the oldest
    kept(*key_of(1))
    assert made == [1, 2, 3, 1]


def test_another_table_is_another_result():
    kept = Kept(lambda data, partition, seed: partition.clients)
    assert kept(*key_of(0, **{"partition.clients": 3})) == 3
    assert kept(*key_of(0, **{"partition.clients": 4})) == 4


def test_what_is_brought_in_is_not_made():
    kept = Kept(lambda data, partition, seed: "made")
    kept.adopt("brought", *key_of(1))
    assert kept(*key_of(1)) == "brought"
    kept.adopt("anew", *key_of(1))
    assert kept(*key_of(1)) == "anew"
    kept.clear()
    assert kept(*key_of(1)) == "made"
