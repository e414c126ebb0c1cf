"""Train and test recommenders with several seeds, keep what is finished, and summarise it."""

import hashlib
import json
import math
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from scipy.special import stdtrit

from graphcl.datasets import InteractionSplit
from graphcl.errors import DataError, GraphCLError
from graphcl.recommend import Recommender, SplitFigures, evaluate_split
from simulations.recommendations import (
    RecommendExperiment,
    divide,
    load_data,
    new_recommender,
    recommend_experiment,
    seeds_of,
)

OnEpoch = Callable[[int, dict[str, float]], None]
_LOOK = 0.5  # seconds between looks at what other processes tell of their epochs


class Pair(NamedTuple):
    """A method and a seed; None where the method draws nothing."""

    method: str
    seed: int | None

    def __str__(self) -> str:
        return self.method if self.seed is None else f"{self.method} seed {self.seed}"


class Measured(BaseModel):
    """What one training came to.

    Attributes:
        figures: On the test events.
        val_ndcg: The best NDCG@10 on validation events; None where nothing was validated.
        best_epoch: Where it was; 0 where there were no epochs.
        epochs: How many there were.
        seconds: Of training and test.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    figures: SplitFigures
    val_ndcg: float | None
    best_epoch: int
    epochs: int
    seconds: float


@dataclass(frozen=True)
class Figure:
    """A mean over seeds and half of its 95 % interval (Student's t), None for a single value."""

    mean: float
    half_width: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Figure":
        """Return the mean of one value per seed and how sure it is."""
        n = len(values)
        if n < 2:
            return cls(fmean(values), None)
        quantile = float(stdtrit(n - 1, 0.975))
        return cls(fmean(values), quantile * stdev(values) / math.sqrt(n))


@dataclass(frozen=True)
class Summary:
    """One method over its seeds.

    Attributes:
        metrics: By group of items, then by metric.
        val_ndcg: Best NDCG@10 on validation events, None where nothing was validated.
        seeds: How many.
        epochs: Mean number of epochs.
        seconds: Mean of training and test.
    """

    metrics: dict[str, dict[str, Figure]]
    val_ndcg: Figure | None
    seeds: int
    epochs: float
    seconds: float

    @classmethod
    def of(cls, found: Sequence[Measured]) -> "Summary":
        """Return the means over the seeds of a method."""
        metrics = {
            group: {
                metric: Figure.of([one.figures.metrics[group][metric] for one in found])
                for metric in values
            }
            for group, values in found[0].figures.metrics.items()
        }
        validated = [one.val_ndcg for one in found if one.val_ndcg is not None]
        return cls(
            metrics,
            Figure.of(validated) if validated else None,
            len(found),
            fmean(one.epochs for one in found),
            fmean(one.seconds for one in found),
        )


class Evaluation:
    """The trainings of one recommend file: those on disk already and those to be run.

    Each is kept as ``FOLDER/NAME/METHOD[-SEED]-KEY.json``, where KEY is a hash of the sequences as
    they were divided, of what else the method reads, of its settings and of the version: what
    changes none of them is not trained again.

    Args:
        experiment: The whole configuration.
        methods: Names of recommenders.
        folder: Where results are written.

    Attributes:
        split: What is trained, validated and tested on.
        found: What is finished.
        failed: Why a method has no figures.

    Raises:
        DataError: The interactions break a rule or cannot be divided.
        GraphCLError: A finished training's file is broken.
    """

    def __init__(self, experiment: RecommendExperiment, methods: Sequence[str], folder: Path):
        self.experiment, self.folder = experiment, folder
        self.split = divide(experiment, load_data(experiment))
        self.pairs = [
            Pair(name, seed)
            for name in dict.fromkeys(methods)
            for seed in seeds_of(experiment, name)
        ]
        self.found: dict[Pair, Measured] = {}
        self.failed: dict[str, GraphCLError] = {}
        for pair in self.pairs:
            if (path := self._path(pair)).exists():
                self.found[pair] = _read(path)

    @property
    def missing(self) -> list[Pair]:
        """What is yet to be run."""
        return [pair for pair in self.pairs if pair not in self.found]

    def run(
        self, jobs: int, on_epoch: Callable[[Pair, int, dict[str, float]], None]
    ) -> Generator[Pair, None, None]:
        """Run what is missing and yield each training that ended, well or not.

        Args:
            jobs: Processes that share the work; with 1 it is done here.
            on_epoch: Called after every epoch, of other processes within half a second.

        Raises:
            GraphCLError: A process died.
        """
        for pair, outcome in self._outcomes(jobs, on_epoch):
            if isinstance(outcome, Measured):
                _write(self._path(pair), outcome.model_dump_json(indent=1))
                self.found[pair] = outcome
            else:
                self.failed.setdefault(pair.method, outcome)
            yield pair

    def _outcomes(
        self, jobs: int, on_epoch: Callable[[Pair, int, dict[str, float]], None]
    ) -> Iterator[tuple[Pair, Measured | GraphCLError]]:
        if jobs > 1 and self.missing:
            yield from _in_processes(self.experiment, self.missing, jobs, on_epoch)
            return
        for pair in self.missing:
            yield pair, self._here(pair, partial(on_epoch, pair))

    def _here(self, pair: Pair, on_epoch: OnEpoch) -> Measured | GraphCLError:
        try:
            return train_and_test(self.experiment, self.split, pair, on_epoch)
        except GraphCLError as error:
            return error

    def summaries(self) -> dict[str, Summary]:
        """Return what is finished, by method."""
        by_method: dict[str, list[Measured]] = {}
        for pair in self.pairs:
            if pair in self.found:
                by_method.setdefault(pair.method, []).append(self.found[pair])
        return {name: Summary.of(found) for name, found in by_method.items()}

    def _path(self, pair: Pair) -> Path:
        model = new_recommender(self.experiment, *pair)
        told = [
            version("graphcl"),
            fingerprint(self.split, model),
            pair.method,
            asdict(model.config),
        ]
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
        parts = [pair.method, *([] if pair.seed is None else [str(pair.seed)]), digest]
        return self.folder / self.experiment.recommend.name / f"{'-'.join(parts)}.json"


def train_and_test(
    experiment: RecommendExperiment,
    split: InteractionSplit,
    pair: Pair,
    on_epoch: OnEpoch = lambda epoch, terms: None,
) -> Measured:
    """Train a recommender, its epoch chosen on validation events, and test it once.

    Raises:
        DataError: The interactions lack something that the recommender reads.
        GraphCLError: A loss or a score is not finite.
    """
    started = time.perf_counter()
    reached: list[float] = []

    def note(epoch: int, terms: dict[str, float]) -> None:
        reached.append(1 - terms["val"])
        on_epoch(epoch, terms)

    model = new_recommender(experiment, *pair).fit(split.train, split.val, note)
    figures = evaluate_split(model, split)
    best = max(reached, default=None)
    return Measured(
        figures=figures,
        val_ndcg=best,
        best_epoch=0 if best is None else 1 + reached.index(best),
        epochs=len(reached),
        seconds=time.perf_counter() - started,
    )


def fingerprint(split: InteractionSplit, model: Recommender) -> str:
    """Return a hash of all numbers in the parts of a split that a recommender reads."""
    digest = hashlib.sha256()
    read = {
        f"{name} {field}": getattr(part, field)
        for name, part in split._asdict().items()
        for field in ("num_users", "num_items", "user", "item", "time", "session")
    }
    try:
        read |= model.features(split.train)
    except DataError:
        read["features"] = None  # the training will say why
    for name, value in read.items():
        digest.update(name.encode())
        if isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype} {list(value.shape)}".encode())
            digest.update(value.contiguous().numpy().tobytes())
        else:
            digest.update(str(value).encode())
    return digest.hexdigest()


def _in_processes(
    experiment: RecommendExperiment,
    pairs: Sequence[Pair],
    jobs: int,
    on_epoch: Callable[[Pair, int, dict[str, float]], None],
) -> Iterator[tuple[Pair, Measured | GraphCLError]]:
    # Never forked from here: after torch has computed, a fork can hang.  On Linux a server that has
    # computed nothing imports torch once and forks; elsewhere each process imports it.
    method = "forkserver" if sys.platform == "linux" else "spawn"
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload([__name__])
    others, nested = multiprocessing.active_children(), experiment.model_dump()
    told = context.SimpleQueue()
    with ProcessPoolExecutor(min(jobs, len(pairs)), context, _begin_process, (told,)) as pool:
        asked = {pool.submit(_alone, nested, pair): pair for pair in pairs}
        try:
            while asked:
                ended, _ = wait(asked, _LOOK, FIRST_COMPLETED)
                while not told.empty():
                    on_epoch(*told.get())
                # What succeeded comes first: a process that died ends all.
                for done in sorted(ended, key=lambda one: one.exception() is not None):
                    yield asked.pop(done), _outcome(done)
        except BaseException:
            # Left alone, the processes would finish what they are at before this one may end.
            for process in multiprocessing.active_children():
                if process not in others:
                    process.terminate()
            raise


def _outcome(done: Future[Measured]) -> Measured | GraphCLError:
    try:
        return done.result()
    except GraphCLError as error:
        return error
    except BrokenProcessPool:
        raise GraphCLError(
            "a process died, as where memory is short; what was finished is kept: run the same "
            "command again with fewer --jobs"
        ) from None


_told: Any = None  # of another process: where it tells of its epochs


def _begin_process(told: Any) -> None:
    global _told
    _told = told
    # Ctrl-C reaches all processes of a terminal; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _alone(nested: dict[str, Any], pair: Pair) -> Measured:
    experiment = recommend_experiment(nested, "the experiment")
    split = divide(experiment, load_data(experiment))
    return train_and_test(experiment, split, pair, lambda *epoch: _told.put((pair, *epoch)))


def _read(path: Path) -> Measured:
    try:
        return Measured.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise GraphCLError(
            f"{path}: holds no finished training: delete it, and it is run again ({error})"
        ) from None


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)
