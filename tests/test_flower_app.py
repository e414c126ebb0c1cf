"""The project as a Flower app: what ``flwr run .`` reads from pyproject.toml."""

import tomllib
from pathlib import Path

import pytest
from flwr.common.config import flatten_dict, parse_config_args

from federation.experiment import Experiment, known_keys, load_experiment

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.toml"))
APP = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"]


def test_it_lists_every_key_with_its_default() -> None:
    # Flower refuses to override a key that is not listed there.
    assert flatten_dict(APP["config"]) == Experiment().flat()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_an_experiment_file_is_a_run_config(path: Path) -> None:
    overrides = parse_config_args([str(path)])
    assert set(overrides) <= set(known_keys())
    merged = {**flatten_dict(APP["config"]), **overrides}
    assert Experiment.from_flat(merged) == load_experiment(path)


def test_its_components_are_the_apps() -> None:
    from federation import client_app, server_app

    assert APP["components"] == {
        "serverapp": f"{server_app.__name__}:app",
        "clientapp": f"{client_app.__name__}:app",
    }
