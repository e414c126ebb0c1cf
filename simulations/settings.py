"""Finished runs, gathered by setting: those of one setting differ in nothing but their seed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from federation.experiment import COUNTED, Experiment, Scalar, load_experiment
from federation.partition import PartitionReport
from federation.scores import SCORES, Score
from graphcl.errors import ConfigError
from simulations.report.reading import RoundLine, StrategyRun, read_run
from simulations.significance import Mean, mean_of

# What changes no figure of a run: names and places, other runs beside it, and what carries it.
_FREE = ("run.seed", "run.directory", "run.name", "run.compare", "data.root")
_DATA = ("task.", "data.", "partition.", "forecast.horizon")

Setting = Mapping[str, Scalar]


def setting_of(experiment: Experiment) -> Setting:
    """Return the keys that decide an experiment's figures, its seed apart."""
    return {
        key: value
        for key, value in experiment.flat().items()
        if key in COUNTED or (key not in _FREE and not key.startswith("simulation."))
    }


def data_of(setting: Setting) -> Setting:
    """Return the keys that say what is learned, and on which data."""
    return {key: value for key, value in setting.items() if key.startswith(_DATA)}


def varied(settings: Sequence[Setting]) -> list[str]:
    """Return the keys that are not the same in all settings, in the order of the schema."""
    first, *others = settings
    return [key for key, value in first.items() if any(o[key] != value for o in others)]


@dataclass(frozen=True)
class FinishedRun:
    """One strategy's finished run.

    Attributes:
        directory: Where it lies.
        experiment: Its resolved configuration.
        run: What it did.
        best: The round with the best validation score.
        partition: How its data were divided; None where the run did not record it.
    """

    directory: Path
    experiment: Experiment
    run: StrategyRun
    best: RoundLine
    partition: PartitionReport | None

    @property
    def seed(self) -> int:
        """Its seed."""
        return self.experiment.run.seed


@dataclass(frozen=True)
class SettingRuns:
    """The runs of one setting.

    Attributes:
        setting: The keys that decide their figures.
        runs: By seed, ascending.
    """

    setting: Setting
    runs: Mapping[int, FinishedRun]

    @cached_property
    def scores(self) -> tuple[Score, ...]:
        """The scores of the task that all runs have, the one they are judged by first."""
        known = SCORES[str(self.setting["task.name"])]
        bests = [run.best.scores for run in self.runs.values()]
        return tuple(score for score in known if all(score.key in best for best in bests))

    def values(self, key: str) -> list[float]:
        """Return a score, or ``val_`` and a score, at every run's best round, by seed."""
        return [run.best.scores[key] for run in self.runs.values()]

    def mean(self, key: str) -> Mean:
        """Return the same over the seeds."""
        return mean_of(self.values(key))

    @property
    def sent_bytes(self) -> float:
        """Bytes up and down in training, mean over the seeds."""
        runs = [run.run for run in self.runs.values()]
        return sum(run.bytes_up + run.bytes_down for run in runs) / len(runs)

    @property
    def seconds(self) -> float:
        """Time of all rounds, mean over the seeds."""
        return sum(run.run.seconds for run in self.runs.values()) / len(self.runs)


def finished_runs(directory: Path) -> list[FinishedRun]:
    """Read a run directory: its strategy, then those compared in it.

    Raises:
        ConfigError: If it is none, or a run in it is not finished or was never evaluated.
        FederationError: If a file is damaged.
    """
    if not (directory / "config.toml").exists():
        raise ConfigError(f"{directory}: no run directory: it holds no config.toml")
    reading = read_run(directory)
    waiting = [run.name for run in reading.runs if not run.finished]
    waiting += [absent.name for absent in reading.absent if absent.status == "not finished"]
    if waiting:
        raise ConfigError(
            f"{directory}: {', '.join(waiting)} is not finished; go on with it by "
            f"graphcl run --resume {directory}"
        )
    found = []
    for run in reading.runs:
        main = run.name == reading.experiment.strategy.name
        folder = directory if main else directory / "compare" / run.name
        if run.best is None:
            raise ConfigError(f"{folder}: no round was evaluated: there is nothing to compare")
        experiment = load_experiment(folder / "config.toml")
        found.append(FinishedRun(folder, experiment, run, run.best, reading.partition))
    return found


def by_setting(runs: Iterable[FinishedRun]) -> list[SettingRuns]:
    """Gather runs by setting, in the order in which the settings come.

    A run that is given twice, or was repeated with the same result, counts once.

    Raises:
        ConfigError: If two runs of a setting and seed have different results.
    """
    gathered: dict[tuple[tuple[str, Scalar], ...], dict[int, FinishedRun]] = {}
    for run in runs:
        of_setting = gathered.setdefault(tuple(setting_of(run.experiment).items()), {})
        same = of_setting.setdefault(run.seed, run)
        if same.run.digest != run.run.digest:
            raise ConfigError(
                f"{same.directory} and {run.directory} are one experiment with one seed, and their "
                f"results differ (digests {same.run.digest} and {run.run.digest}); their "
                "environment.json may tell why: leave one out"
            )
    return [SettingRuns(dict(key), dict(sorted(of.items()))) for key, of in gathered.items()]
