"""What an evaluation of recommenders found, in words, as a table, and as files."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from simulations.recommend_evaluation import Evaluation, Figure, Summary

_SPLITS = {
    "leave-one-out": (
        "each user's last event is the test and the last but one validates, where there are three"
    ),
    "time": "the events between two times validate, those after the second are the test",
}


def protocol(evaluation: Evaluation) -> list[str]:
    """Return, in a few lines, how the figures came about."""
    split, found = evaluation.split, next(iter(evaluation.found.values())).figures
    counts = ", ".join(f"{count} on {group}" for group, count in found.events.items())
    return [
        f"{evaluation.experiment.recommend.name}: {sum(map(len, split))} events of "
        f"{split.train.num_users} users with {split.train.num_items} items; "
        f"{_SPLITS[evaluation.experiment.recommend.split]}.",
        "Full ranking: every item competes, no sampled negatives; items of the history are masked,"
        f" so that a test item that is in it is a miss ({found.repeats} of {found.events['all']}).",
        f"Test events: {counts} items. Head: the fifth of the items seen in training that is seen "
        "most; tail: the others seen there; cold: not seen there.",
        "The epoch is chosen by NDCG@10 on validation events, the test is taken once; in %, mean "
        "and half of the 95 % interval (Student's t) over seeds.",
        *(
            ["slsrec is told the time of the event that it is asked for, the others read no times."]
            if "slsrec" in evaluation.summaries() and split.train.time is not None
            else []
        ),
    ]


def columns(summaries: dict[str, Summary]) -> list[str]:
    """Return the head of the table."""
    metrics = next(iter(summaries.values())).metrics["all"]
    return ["items", "method", *metrics]


def rows(summaries: dict[str, Summary]) -> list[list[str]]:
    """Return the table, a row for each group of items and method."""
    groups = next(iter(summaries.values())).metrics
    return [
        [group, name, *map(_percent, one.metrics[group].values())]
        for group in groups
        for name, one in summaries.items()
    ]


def costs(summaries: dict[str, Summary]) -> str:
    """Return what the trainings took, mean over the seeds."""
    return "; ".join(
        f"{name} {one.seeds} of {one.epochs:.0f} epochs and {one.seconds:.0f} s"
        for name, one in summaries.items()
    )


def write_evaluation(evaluation: Evaluation) -> list[Path]:
    """Write what is finished as JSON and as Markdown; return the files."""
    folder, name = evaluation.folder, evaluation.experiment.recommend.name
    folder.mkdir(parents=True, exist_ok=True)
    texts = {".json": _json(evaluation), ".md": _markdown(evaluation)}
    paths = [folder / f"{name}{suffix}" for suffix in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        path.write_text(text + "\n", encoding="utf-8")
    return paths


def _json(evaluation: Evaluation) -> str:
    content: dict[str, Any] = {
        "experiment": evaluation.experiment.model_dump(),
        "protocol": protocol(evaluation),
        "methods": {name: asdict(one) for name, one in evaluation.summaries().items()},
        "trainings": [
            {**pair._asdict(), **found.model_dump()} for pair, found in evaluation.found.items()
        ],
        "failed": {name: str(error) for name, error in evaluation.failed.items()},
    }
    return json.dumps(content, indent=1)


def _markdown(evaluation: Evaluation) -> str:
    summaries = evaluation.summaries()
    head = columns(summaries)
    table = [head, ["---"] * len(head), *rows(summaries)]
    lines = [f"| {' | '.join(row)} |" for row in table]
    return "\n".join(
        [
            f"# {evaluation.experiment.recommend.name}",
            "",
            *protocol(evaluation),
            "",
            *lines,
            "",
            f"Trainings: {costs(summaries)}.",
        ]
    )


def _percent(figure: Figure) -> str:
    half = "" if figure.half_width is None else f" ± {100 * figure.half_width:.2f}"
    return f"{100 * figure.mean:.2f}{half}"
