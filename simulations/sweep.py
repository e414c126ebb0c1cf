"""Plan a sweep: every setting of some ranges with every seed, each a run directory of its own.

A trial's directory is named by a hash of all keys that decide its figures. The same sweep finds
its finished trials again, and so does another sweep in the same folder that has trials in common.
"""

import hashlib
import itertools
import json
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from federation.experiment import COUNTED, Experiment, Scalar, load_experiment
from federation.learners import clients_of
from graphcl.errors import ConfigError
from graphcl.training import numpy_rng
from simulations import terminal
from simulations.run import lay_out, partition_text
from simulations.settings import setting_of

# What a sweep decides itself, or what changes no figure.
_OWN = {
    "run.seed": "use --seeds",
    "run.name": "it changes no figure",
    "run.directory": "every trial has a directory of its own",
    "run.compare": "a trial is one strategy: give strategy.name a range",
}
# What does not decide how data are divided, so that one division serves several trials.
_UNDIVIDED = ("run.", "train.", "strategy.", "privacy.", "faults.", "simulation.")

Ranges = Mapping[str, Sequence[Scalar]]


@dataclass(frozen=True)
class Trial:
    """One experiment of a sweep.

    Attributes:
        values: The values of the ranged keys.
        experiment: The whole experiment, on the local carrier.
        directory: Its run directory.
    """

    values: Mapping[str, Scalar]
    experiment: Experiment
    directory: Path

    @property
    def finished(self) -> bool:
        """Whether it came to its end."""
        return (self.directory / "summary.json").exists()


def parse_ranges(texts: Sequence[str], known: Iterable[tuple[str, object, str]]) -> Ranges:
    """Read ``KEY=A,B,C`` as ``--range`` takes it: TOML scalars, or bare words.

    Raises:
        ConfigError: One has no key or no value, names a value or a key twice, or a key that a
            sweep decides itself.
    """
    known = list(known)
    found: dict[str, list[Scalar]] = {}
    for text in texts:
        key, _, values = (part.strip() for part in text.partition("="))
        if not key or not values:
            raise ConfigError(
                f"--range {text}: write KEY=A,B,..., e.g. --range train.learning_rate=0.01,0.1"
            )
        if key in COUNTED:
            raise ConfigError(f"--range {text}: it rounds, no more; set it for all by --set")
        if key in _OWN or key.startswith("simulation."):
            raise ConfigError(f"--range {text}: not a range: {_OWN.get(key, 'it moves no figure')}")
        if key in found:
            raise ConfigError(f"--range {text}: '{key}' has a range already; join the two")
        found[key] = _values(key, values, known)
        if len(set(found[key])) < len(found[key]):
            raise ConfigError(f"--range {text}: a value is named twice")
    return found


def settings_of(ranges: Ranges, samples: int | None, seed: int) -> Iterator[dict[str, Scalar]]:
    """Yield the settings of a grid: all, or so many drawn at random, none twice.

    More samples under the same seed begin with those of fewer.
    """
    total = math.prod(len(values) for values in ranges.values())
    if samples is None or samples >= total:
        combinations = itertools.product(*ranges.values())
        yield from (dict(zip(ranges, values, strict=True)) for values in combinations)
        return
    rng = numpy_rng(seed, "sweep")
    drawn: set[tuple[int, ...]] = set()
    while len(drawn) < samples:
        places = tuple(int(rng.integers(len(values))) for values in ranges.values())
        if places not in drawn:
            drawn.add(places)
            yield {k: v[i] for (k, v), i in zip(ranges.items(), places, strict=True)}


def plan_sweep(
    config: Path,
    overrides: Mapping[str, Scalar],
    ranges: Ranges,
    seeds: int,
    samples: int | None,
    out: Path | None = None,
) -> list[Trial]:
    """Return all trials of a sweep, setting by setting; nothing is written or started.

    Args:
        config: The experiment file.
        overrides: Keys that all trials share.
        ranges: Values of the keys that differ.
        seeds: Number of seeds, counted up from ``run.seed``.
        samples: Number of settings to draw from the grid; None = all.
        out: The sweep's folder; None = ``runs/NAME-sweep``.

    Raises:
        ConfigError: If any trial's experiment does not validate; the message names its setting.
    """
    fixed = {**overrides, "run.compare": "", "simulation.engine": "local"}
    first = load_experiment(config, fixed | {key: values[0] for key, values in ranges.items()})
    folder = (out or Path("runs") / f"{first.run.name}-sweep") / "trials"
    trials = []
    names: dict[str, dict[str, Scalar]] = {}
    for values in settings_of(ranges, samples, first.run.seed):
        try:
            experiment = load_experiment(config, fixed | values)
        except ConfigError as error:
            named = ", ".join(f"{key}={value}" for key, value in values.items())
            raise ConfigError(f"the setting {named}: {error}") from None
        if experiment.run.directory:
            raise ConfigError("run.directory: is for `flwr run`; name a sweep's folder by --out")
        resolved = experiment.flat()
        shown = {key: resolved[key] for key in values}
        name = _hash(experiment)
        if name in names:
            first_named, named = (
                ", ".join(f"{key}={value}" for key, value in one.items())
                for one in (names[name], values)
            )
            raise ConfigError(f"the settings {first_named} and {named} are one: leave one out")
        names[name] = values
        for seed in range(first.run.seed, first.run.seed + seeds):
            directory = folder / f"{name}-{seed}"
            trials.append(Trial(shown, experiment.override({"run.seed": seed}), directory))
    return trials


def lay_out_trials(trials: Sequence[Trial]) -> None:
    """Check every unfinished trial against its data, then write what they start from.

    Raises:
        ConfigError, DataError, PartitionError: If one does not fit; then nothing was written.
    """
    waiting = [trial for trial in trials if not trial.finished]
    divisions: dict[str, str] = {}
    checked: set[tuple[str, str]] = set()
    for trial in waiting:
        key = _division(trial.experiment)
        # Strategies ask different things of data that are divided alike.
        if (case := (key, trial.experiment.strategy.name)) not in checked:
            divisions[key] = partition_text(clients_of(trial.experiment))
            checked.add(case)
    for trial in waiting:
        try:
            lay_out(trial.directory, trial.experiment, divisions[_division(trial.experiment)])
        except OSError as error:
            raise ConfigError(f"{trial.directory}: cannot hold a run: {error.strerror}") from None


def _values(key: str, text: str, known: list[tuple[str, object, str]]) -> list[Scalar]:
    """Read a list of TOML scalars; where it is none, or a text is bare, split it at the commas."""
    try:
        values = tomllib.loads(f"values = [{text}]")["values"]
    except tomllib.TOMLDecodeError:
        values = []
    holds_text = any(key == name and isinstance(default, str) for name, default, _ in known)
    kinds = (str,) if holds_text else (bool, int, float, str)
    if values and all(isinstance(value, kinds) for value in values):
        return list(values)
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise ConfigError(f"--range {key}={text}: a value is missing between commas")
    return [terminal.parse_settings([f"{key}={part}"], known)[key] for part in parts]


def _hash(experiment: Experiment) -> str:
    text = json.dumps(setting_of(experiment), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _division(experiment: Experiment) -> str:
    """Return the keys that may decide how the data are divided."""
    flat = experiment.flat()
    seed = flat["run.seed"]
    return json.dumps([seed, {k: v for k, v in flat.items() if not k.startswith(_UNDIVIDED)}])
