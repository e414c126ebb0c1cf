"""Set finished runs side by side: means over seeds, and paired differences to the first setting.

Runs that differ in ``run.seed`` alone are one setting. Two settings are compared on the seeds that
both ran, as a seed decides the partition, the first weights and the cohorts of either. With a
single seed in common they are compared on the clients of that seed. That tells whether the clients
fare differently in this one run, and not whether another seed would agree.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from federation.scores import Score
from graphcl.errors import ConfigError
from simulations.report.units import DASH, scored
from simulations.settings import (
    FinishedRun,
    SettingRuns,
    by_setting,
    data_of,
    finished_runs,
    varied,
)
from simulations.significance import LEVEL, Difference, Mean, holm, paired_difference

SWEEP_FILE = "sweep.json"
_NAMED = 3  # keys that a refusal names


@dataclass(frozen=True)
class Contrast:
    """A setting against the first one, in the score that the runs are judged by.

    Attributes:
        difference: This setting minus the first, paired.
        over: What the pairs are.
        p_value: Of the difference, corrected by Holm for the number of contrasts.
        clients_better: Clients, of all seeds in common, that do better than under the first.
        clients: How many clients of all seeds in common both could test.
        verdict: In words.
    """

    difference: Difference
    over: Literal["seeds", "clients"]
    p_value: float
    clients_better: int
    clients: int
    verdict: Literal["better", "worse", "not told apart", "too few pairs"]


@dataclass(frozen=True)
class Comparison:
    """Settings side by side.

    Attributes:
        keys: In which they differ.
        settings: Their runs; all others are compared with the first.
        contrasts: One for every setting but the first.
    """

    keys: list[str]
    settings: list[SettingRuns]
    contrasts: list[Contrast]

    @property
    def scores(self) -> tuple[Score, ...]:
        """The scores that all settings have."""
        first, *others = self.settings
        return tuple(score for score in first.scores if all(score in o.scores for o in others))


def read_runs(directories: Sequence[Path]) -> list[FinishedRun]:
    """Read run directories, and the finished trials of sweeps.

    Raises:
        ConfigError, FederationError: If one is neither, is not finished, or is damaged.
    """
    found = []
    for directory in directories:
        sweep = directory / SWEEP_FILE
        for folder in _trials(sweep) if sweep.exists() else [directory]:
            found.extend(finished_runs(folder))
    return found


def compare(runs: Sequence[FinishedRun]) -> Comparison:
    """Gather runs by setting and compare every other setting with the first.

    Raises:
        ConfigError: If they have nothing to compare: another task or other data, no seed in
            common, or one setting alone.
    """
    settings = by_setting(runs)
    first, *others = settings
    if not others:
        raise ConfigError(
            f"{next(iter(first.runs.values())).directory}: all runs are of one setting, they differ"
            " in no key but run.seed; name runs of another one too"
        )
    for other in others:
        _check_same_data(first, other)
    pairings = [_paired(first, other) for other in others]
    corrected = holm([difference.p_value for difference, _ in pairings])
    contrasts = [
        _contrast(first, other, difference, over, p_value, len(others))
        for other, (difference, over), p_value in zip(others, pairings, corrected, strict=True)
    ]
    return Comparison(varied([s.setting for s in settings]), settings, contrasts)


def comparison_table(comparison: Comparison) -> Table:
    """Return the comparison for the terminal."""
    score = comparison.scores[0]
    shown = [s for s in comparison.scores if s is score or not s.detail]
    table = Table(
        title=f"Test scores at the round with the best validation {score.label}",
        title_justify="left",
        box=SIMPLE,
        padding=(0, 1, 0, 0),
    )
    for key in comparison.keys:
        table.add_column(key)
    for name in (
        "seeds",
        *(s.label for s in shown),
        "difference",
        "pairs",
        "p (Holm)",
        "clients better",
        "MB",
        "seconds",
    ):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for setting, contrast in zip(comparison.settings, [None, *comparison.contrasts], strict=True):
        table.add_row(
            *(escape(str(setting.setting[key])) for key in comparison.keys),
            str(len(setting.runs)),
            *(interval(setting.mean(s.key), s) for s in shown),
            *_contrast_cells(contrast, score),
            f"{setting.sent_bytes / 1e6:.2f}",
            f"{setting.seconds:.1f}",
            contrast.verdict if contrast else "",
        )
    return table


def explain(comparison: Comparison) -> list[str]:
    """Return what a reader must know of the table, a sentence or two each."""
    score = comparison.scores[0]
    notes = [
        "± is half a 95 % interval of the mean over seeds, by Student's t; a lone seed has none.",
        f"Difference: {score.label} minus that of the first line, paired ({score.better} is "
        "better), with its 95 % t interval, not corrected for the number of lines. p: Wilcoxon's "
        "signed-rank test, two-sided, corrected by Holm's method for "
        f"{len(comparison.contrasts)} comparison{'s'[: len(comparison.contrasts) > 1]}.",
    ]
    if any(contrast.over == "clients" for contrast in comparison.contrasts):
        notes.append(
            "Paired over the clients of a single seed, each counting alike: that tells whether "
            "clients fare differently in this run, not whether another seed would agree. Run more "
            "seeds to learn that."
        )
    few = [c for c in comparison.contrasts if c.verdict == "too few pairs"]
    if few:
        fewest = min((c.difference for c in few), key=lambda difference: difference.mean.count)
        notes.append(
            f"Too few pairs: with {fewest.mean.count} the test cannot give less than "
            f"{fewest.least_p_value:.3g} before the correction, so that no difference would count "
            f"at {LEVEL:.2f}; "
            f"{needed_pairs(len(comparison.contrasts))} pairs could."
        )
    return notes


def needed_pairs(comparisons: int) -> int:
    """Return the least number of pairs with which one of so many comparisons can be significant."""
    count = 1
    while comparisons * 2.0 ** (1 - count) > LEVEL:
        count += 1
    return count


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write the comparison as JSON, with the score of every seed."""
    score = comparison.scores[0]
    content: dict[str, Any] = {
        "score": score.key,
        "better": score.better,
        "keys": comparison.keys,
        "settings": [
            {"values": {key: s.setting[key] for key in comparison.keys}, **setting_json(s)}
            for s in comparison.settings
        ],
        "contrasts": [asdict(contrast) for contrast in comparison.contrasts],
    }
    write_json(path, content)


def setting_json(setting: SettingRuns, folder: Path | None = None) -> dict[str, Any]:
    """Return the figures of a setting as JSON holds them.

    Args:
        setting: The setting.
        folder: What the paths of its runs are relative to; None = as they were given.
    """
    first = setting.scores[0]
    keys = [first.val_key, *(score.key for score in setting.scores)]
    return {
        "runs": {
            str(seed): str(run.directory.relative_to(folder) if folder else run.directory)
            for seed, run in setting.runs.items()
        },
        "scores": {k: {"by_seed": setting.values(k), **asdict(setting.mean(k))} for k in keys},
        "bytes": setting.sent_bytes,
        "seconds": setting.seconds,
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON.

    Raises:
        ConfigError: If the file cannot be written.
    """
    try:
        path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def interval(mean: Mean, score: Score) -> str:
    """Return a mean of a score with its interval."""
    if mean.half_width is None:
        return scored(mean.mean, score)
    return f"{scored(mean.mean, score)} ± {scored(mean.half_width, score)}"


def _trials(sweep: Path) -> list[Path]:
    """Return the folders of a sweep's finished trials."""
    try:
        content = json.loads(sweep.read_text(encoding="utf-8"))
        names = [n for setting in content["settings"] for n in setting.get("runs", {}).values()]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"{sweep}: damaged; run graphcl sweep again to write it anew") from None
    if not names:
        raise ConfigError(f"{sweep}: no trial is finished; go on with graphcl sweep")
    return [sweep.parent / name for name in names]


def _check_same_data(first: SettingRuns, other: SettingRuns) -> None:
    """Raise if two settings learn another task or from other data."""
    one, two = (next(iter(s.runs.values())).directory for s in (first, other))
    ours, theirs = data_of(first.setting), data_of(other.setting)
    differ = varied([ours, theirs])
    if differ:
        named = ", ".join(f"{key} ({ours[key]!r}, {theirs[key]!r})" for key in differ[:_NAMED])
        more = f" and {len(differ) - _NAMED} more" if len(differ) > _NAMED else ""
        raise ConfigError(
            f"{one} and {two} do not compare: they differ in {named}{more}; compare runs of one "
            "task on the same data and partition"
        )
    for seed in first.runs.keys() & other.runs.keys():
        run, partner = first.runs[seed], other.runs[seed]
        if run.partition and partner.partition and run.partition != partner.partition:
            raise ConfigError(
                f"{run.directory} and {partner.directory} do not compare: data.source has the same "
                "name in both and divides differently (partition.json)"
            )


def _paired(
    first: SettingRuns, other: SettingRuns
) -> tuple[Difference, Literal["seeds", "clients"]]:
    """Return the difference of the score that counts, over what can be paired."""
    seeds = sorted(first.runs.keys() & other.runs.keys())
    if not seeds:
        run, partner = (next(iter(s.runs.values())) for s in (first, other))
        raise ConfigError(
            f"{run.directory} and {partner.directory} do not compare: their settings have no "
            f"run.seed in common ({_listed(first)}; {_listed(other)}); run both with the same seeds"
        )
    key = first.scores[0].key
    if len(seeds) > 1:
        sides = [[s.runs[seed].best.scores[key] for seed in seeds] for s in (other, first)]
        return paired_difference(*sides), "seeds"
    pairs = _client_pairs(first, other, seeds)
    if not pairs:
        raise ConfigError(
            f"{other.runs[seeds[0]].directory}: no client was tested in both this run and "
            f"{first.runs[seeds[0]].directory}"
        )
    return paired_difference([o for o, _ in pairs], [f for _, f in pairs]), "clients"


def _client_pairs(
    first: SettingRuns, other: SettingRuns, seeds: Sequence[int]
) -> list[tuple[float, float]]:
    """Return every client's score in the other setting and in the first, over these seeds."""
    pairs = []
    for seed in seeds:
        ours, theirs = other.runs[seed].run.client_scores, first.runs[seed].run.client_scores
        pairs += [(ours[client], theirs[client]) for client in sorted(ours.keys() & theirs.keys())]
    return pairs


def _contrast(
    first: SettingRuns,
    other: SettingRuns,
    difference: Difference,
    over: Literal["seeds", "clients"],
    p_value: float,
    comparisons: int,
) -> Contrast:
    rank = first.scores[0].rank
    pairs = _client_pairs(first, other, sorted(first.runs.keys() & other.runs.keys()))
    verdict: Literal["better", "worse", "not told apart", "too few pairs"]
    if comparisons * difference.least_p_value > LEVEL:
        verdict = "too few pairs"
    elif p_value > LEVEL:
        verdict = "not told apart"
    else:
        verdict = "better" if rank(difference.mean.mean) > 0 else "worse"
    better = sum(rank(ours) > rank(theirs) for ours, theirs in pairs)
    return Contrast(difference, over, p_value, better, len(pairs), verdict)


def _contrast_cells(contrast: Contrast | None, score: Score) -> tuple[str, str, str, str]:
    if contrast is None:
        return (DASH,) * 4
    mean = contrast.difference.mean
    sign = "+" if mean.mean > 0 else ""
    return (
        sign + interval(mean, score),
        f"{mean.count} {contrast.over}",
        f"{contrast.p_value:.3g}",
        f"{contrast.clients_better} of {contrast.clients}",
    )


def _listed(setting: SettingRuns) -> str:
    return ", ".join(map(str, setting.runs))
