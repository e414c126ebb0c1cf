"""What every task is scored by."""

from dataclasses import dataclass
from typing import Literal

from graphcl.recommend.evaluation import CUTOFFS


@dataclass(frozen=True)
class Score:
    """A figure of merit on a client's own test examples.

    Attributes:
        name: In the metrics of a client; files have underscores for its dashes.
        label: In words, as they stand inside a sentence.
        better: Which of two values is the better one.
        percent: Whether it is a share, which the report shows as a percentage.
        detail: Whether it is for the report alone, which has more room than the terminal.
        meaning: A sentence on what it is, where its label does not tell.
        weight: Name of the number of examples that it is a mean over, in the metrics of a client.
    """

    name: str
    label: str
    better: Literal["higher", "lower"]
    percent: bool = False
    detail: bool = False
    meaning: str = ""
    weight: str = "num-examples"

    @property
    def val_name(self) -> str:
        """The name of the same on validation examples."""
        return f"val-{self.name}"

    @property
    def key(self) -> str:
        """The name in ``metrics.jsonl``."""
        return self.name.replace("-", "_")

    @property
    def val_key(self) -> str:
        """The name of the same on validation examples in ``metrics.jsonl``."""
        return f"val_{self.key}"

    @property
    def title(self) -> str:
        """The label with a capital, as it begins a line."""
        return self.label[0].upper() + self.label[1:]

    def rank(self, value: float) -> float:
        """Return the value, turned such that more is better."""
        return value if self.better == "higher" else -value


_CLASSES = (
    Score("accuracy", "accuracy", "higher", percent=True),
    Score("accuracy-head", "head", "higher", percent=True, detail=True),
    Score("accuracy-prototype", "prototype", "higher", percent=True, detail=True),
    Score("roc-auc", "ROC AUC", "higher", percent=True),  # of two classes alone
    Score(
        "backdoor",
        "backdoor",
        "lower",
        percent=True,
        detail=True,
        meaning="Share of the drawn class's test examples that are taken for the target.",
        weight="backdoor-examples",
    ),
)

GROUPS = ("head", "tail")  # of items, by how often they are taken


def _lists(k: int, detail: bool) -> tuple[Score, ...]:
    return (
        Score(f"ndcg-{k}", f"NDCG@{k}", "higher", detail=detail),
        Score(f"hit-ratio-{k}", f"HR@{k}", "higher", detail=detail),
    )


HORIZONS = (3, 6, 12)  # steps ahead at which forecasts are scored one by one


def _errors(suffix: str, words: str) -> tuple[Score, ...]:
    return tuple(
        Score(f"{name.lower()}{suffix}", f"{name}{words}", "lower", detail=True)
        for name in ("MAE", "RMSE", "MAPE")
    )


# By task.name. The first is also scored on validation examples, where it chooses the best round;
# an evaluation always has it, and the others where they apply.
SCORES: dict[str, tuple[Score, ...]] = {
    "classify": _CLASSES,
    "images": _CLASSES,
    "pretrain": _CLASSES,
    "outages": (
        Score("mae", "MAE", "lower"),
        Score("rmse", "RMSE", "lower", detail=True),
        Score("total-error", "total error", "lower"),
        Score("morisita-horn", "Morisita-Horn", "higher"),
    ),
    "forecast": (
        # Of series in unlike units nothing else can be averaged.
        Score(
            "relative-mae",
            "relative MAE",
            "lower",
            meaning="A relative MAE is the MAE over that of expecting the last value to stay: what "
            "is below 1 does better.",
        ),
        *_errors("", ""),
        *(score for h in HORIZONS for score in _errors(f"-{h}", f" of step {h}")),
    ),
    "recommend": (
        Score(
            "ndcg-10",
            "NDCG@10",
            "higher",
            meaning="All items of a client's catalogue that a user has not taken compete with the "
            "one held out; one that the user had taken before counts as missed.",
        ),
        *_lists(10, detail=False)[1:],
        Score("mrr", "MRR", "higher"),
        *(score for k in CUTOFFS if k != 10 for score in _lists(k, detail=True)),
        *(
            Score(
                f"hit-ratio-10-{group}",
                f"HR@10 of the {group}",
                "higher",
                detail=True,
                weight=f"{group}-examples",
            )
            for group in GROUPS
        ),
    ),
}
