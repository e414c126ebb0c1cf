"""The report says what is protected and what is not, and how much it cost."""

from federation.experiment import load_experiment
from federation.privacy.accountant import epsilon
from federation.run_directory import RunDirectory

NOISED = {
    "privacy.clip": 1.0,
    "privacy.noise_multiplier": 2.0,
    "strategy.feddbp.global_weight": "count",
    "strategy.feddbp.personal": "off",
}


def changed(directory, keys):
    """Change a run's configuration, and note that its rounds went out."""
    config = directory / "config.toml"
    config.write_text(load_experiment(config, keys).to_toml())
    for server_round in range(1, 5):
        RunDirectory(directory).releasing(server_round)
    return directory


def test_noise_is_told_with_its_epsilon_and_its_limits(make_run, report):
    page = report(changed(make_run(), NOISED))
    told = f"ε = {epsilon(2.0, 4, 1e-5):.3g} at δ = 1e-05 for the client that released most often"
    assert told in page.text
    assert "ε takes the encoder as given" in page.text
    assert "as they are" in page.text


def test_seeded_noise_is_not_sold_as_protection(make_run, report):
    page = report(changed(make_run(), {**NOISED, "privacy.noise": "seed"}))
    assert "this run protects nothing" in page.text
    assert "for the client that released most often" not in page.text


def test_exact_prototypes_are_called_so(make_run, report):
    page = report(changed(make_run(), {"privacy.min_support": 3}))
    assert "fewer than 3 samples do not leave it" in page.text
    assert "There is no ε without noise" in page.text
    assert "Fisher information" in page.text


def test_masks_are_told_with_what_they_leave_open(make_run, report):
    page = report(changed(make_run(), {"privacy.masking": True, "privacy.min_support": 3}))
    assert "The server learns the sum of all clients' weighted prototypes" in page.text
    assert "fewer than 3 samples do not leave it" in page.text
    for limit in (
        "of a class that a single client holds, the sum is this client's prototype",
        "colludes with all clients but one",
        "public keys of its own",
        "A client that lies about its prototypes cannot be found out",
        "There is no ε without noise",
        "its number of training samples, its training loss and its scores",
    ):
        assert limit in page.text
    assert "Which classes a client holds" not in page.text
    assert "which channels its head relies on" not in page.text


def test_masks_and_noise_are_both_told(make_run, report):
    page = report(changed(make_run(), {**NOISED, "privacy.masking": True}))
    assert "The server learns the sum of all clients' weighted prototypes" in page.text
    assert "for the client that released most often" in page.text


def test_every_strategy_has_its_own_words(family):
    assert "Data, models and prototypes stay on their client." in family.text
    assert "Prototypes are exact means" in family.text
