"""Run the trials of a sweep on Ray Tune, each in a worker process, so many at once.

Tune places the trials and survives their failures. What a trial has done is in its run directory
alone, so that an interrupted sweep goes on from there and Tune's own state is thrown away.
"""

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray

# First of all that imports Ray here: it turns off the reports on its use.
from simulations.carriers.ray import connect, fitting_actors, start_here  # isort: skip
from ray import tune

from graphcl.errors import GraphCLError
from simulations.run import execute
from simulations.sweep import Trial

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # run directories hold the metrics
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C stops the sweep at once: trials resume
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # data.source may be a relative path
    "RAY_AIR_NEW_OUTPUT": "0",  # which prints in spite of verbose=0
}


def run_trials(
    trials: Sequence[Trial],
    out: Path,
    jobs: int,
    address: str,
    on_end: Callable[[], None] = lambda: None,
) -> dict[Path, str]:
    """Run trials that were laid out; finished ones must not be among them.

    Args:
        trials: At least one.
        out: The sweep's folder.
        jobs: How many at once; 0 = as many as fit.
        address: Of the Ray cluster to join, which must see ``out`` under the same path; empty =
            start one here.
        on_end: Called whenever a trial has finished or failed.

    Returns:
        Why trials failed, by directory.

    Raises:
        FederationError: If no cluster answers, or no trial fits into it.
    """
    os.environ.update(_ENVIRONMENT)
    simulation = trials[0].experiment.simulation
    resources = {"cpu": simulation.cpus_per_client, "gpu": simulation.gpus_per_client}
    storage = out.resolve() / ".tune"
    try:
        if address:
            connect(address)
        else:
            start_here(max(os.cpu_count() or 1, jobs * simulation.cpus_per_client))
        fitting = fitting_actors(trials[0].experiment)
        for name in ("ray", "ray.tune"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # failures are told once, at the end
        directories = [str(trial.directory.resolve()) for trial in trials]
        tuner = tune.Tuner(
            tune.with_resources(_run, resources),
            param_space={"directory": tune.grid_search(directories)},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=min(jobs or fitting, fitting), reuse_actors=True
            ),
            run_config=tune.RunConfig(
                name="sweep", storage_path=str(storage), verbose=0, callbacks=[_Ends(on_end)]
            ),
        )
        results = tuner.fit()
        reasons = {r.config["directory"]: _reason(r.error) for r in results if r.error}
    finally:
        ray.shutdown()
        shutil.rmtree(storage, ignore_errors=True)
    return {
        trial.directory: reasons[directory]
        for trial, directory in zip(trials, directories, strict=True)
        if directory in reasons
    }


class _Ends(tune.Callback):
    """Tells of every trial that ends."""

    def __init__(self, on_end: Callable[[], None]):
        self._on_end = on_end

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune stores its callbacks, and a progress bar cannot be stored

    def on_trial_complete(self, *_: Any, **__: Any) -> None:
        self._on_end()

    def on_trial_error(self, *_: Any, **__: Any) -> None:
        self._on_end()


def _run(config: dict[str, str]) -> None:
    """Run one trial, or what is left of it, in a worker process."""
    execute(Path(config["directory"]))


def _reason(error: BaseException) -> str:
    """Return what ended a trial, without Ray's tracebacks around it."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, GraphCLError):
        return str(cause)
    if isinstance(error, ray.exceptions.RayActorError):
        return "its process died; where memory is short, run fewer at once with --jobs"
    return str(error).strip().splitlines()[-1]
