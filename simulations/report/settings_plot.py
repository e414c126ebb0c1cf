"""A picture of settings side by side: mean and 95 % interval over seeds, a dot for every seed."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from federation.experiment import Scalar
from federation.scores import Score
from graphcl.errors import ConfigError
from simulations.report.drawing import INK, LOOKS, MUTED, STYLE
from simulations.settings import SettingRuns

_COLOURS = {"validation": LOOKS["fedavg"].light, "test": LOOKS["feddbp"].light}
_ROW = 0.42  # inches
_DECADES = 20  # the ratio from which the values of a key need a logarithmic scale


def plot_settings(
    settings: Sequence[SettingRuns], keys: Sequence[str], score: Score, path: Path
) -> None:
    """Draw settings as a PNG: along the values of one numeric key, else one row each.

    Args:
        settings: In the order of the rows.
        keys: In which they differ.
        score: What they are judged by.
        path: The file.

    Raises:
        ConfigError: If the file cannot be written.
    """
    numeric = len(keys) == 1 and all(_number(s.setting[keys[0]]) for s in settings)
    along = numeric and len(settings) > 1
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        height = 3.6 if along else 1.3 + _ROW * len(settings)
        figure = Figure(figsize=(7, height), layout="constrained")
        axes = figure.add_subplot()
        if along:
            _along(axes, settings, keys[0], score)
        else:
            _rows(axes, settings, keys, score)
        figure.legend(frameon=False, loc="outside upper right", ncols=2)
        try:
            figure.savefig(path, format="png", dpi=150, metadata={"Software": None})
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def _along(axes: Axes, settings: Sequence[SettingRuns], key: str, score: Score) -> None:
    """Draw lines with bands over the values of a key."""
    settings = sorted(settings, key=lambda s: float(s.setting[key]))
    places = [float(s.setting[key]) for s in settings]
    for part, name in _parts(score):
        means = [s.mean(name) for s in settings]
        centres = [m.mean for m in means]
        axes.plot(places, centres, color=_COLOURS[part], marker="o", ms=4, label=part)
        widths = [m.half_width or 0.0 for m in means]
        axes.fill_between(
            places,
            [c - w for c, w in zip(centres, widths, strict=True)],
            [c + w for c, w in zip(centres, widths, strict=True)],
            color=_COLOURS[part],
            alpha=0.15,
            linewidth=0,
        )
        for place, setting in zip(places, settings, strict=True):
            values = setting.values(name)
            axes.plot([place] * len(values), values, ".", color=_COLOURS[part], ms=3, alpha=0.6)
    if min(places) > 0 and max(places) > _DECADES * min(places):
        axes.set_xscale("log")
    axes.set_xlabel(key)
    axes.set_ylabel(score.label)
    axes.grid(axis="y")
    _shares(axes.yaxis, score)


def _rows(axes: Axes, settings: Sequence[SettingRuns], keys: Sequence[str], score: Score) -> None:
    """Draw one row per setting, the first on top."""
    for shift, (part, name) in zip((-0.13, 0.13), _parts(score), strict=True):
        places = [row + shift for row in range(len(settings))]
        means = [s.mean(name) for s in settings]
        axes.errorbar(
            [m.mean for m in means],
            places,
            xerr=[m.half_width or 0.0 for m in means],
            fmt="o",
            ms=4,
            capsize=2,
            color=_COLOURS[part],
            label=part,
        )
        for place, setting in zip(places, settings, strict=True):
            values = setting.values(name)
            axes.plot(values, [place] * len(values), "|", color=_COLOURS[part], ms=5, alpha=0.6)
    names = ["\n".join(_wrapped(s, keys)) or str(s.setting["strategy.name"]) for s in settings]
    axes.set_yticks(range(len(settings)), names)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_ylim(len(settings) - 0.5, -0.5)
    axes.set_xlabel(score.label, color=MUTED)
    axes.grid(axis="x")
    _shares(axes.xaxis, score)


def _wrapped(setting: SettingRuns, keys: Sequence[str]) -> list[str]:
    """Return the values of a setting, two keys by their last names to a line."""
    texts = [f"{key.rsplit('.', 1)[-1]} {setting.setting[key]}" for key in keys]
    if len(keys) == 1:
        texts = [str(setting.setting[keys[0]])]
    return [", ".join(texts[i : i + 2]) for i in range(0, len(texts), 2)]


def _parts(score: Score) -> tuple[tuple[str, str], tuple[str, str]]:
    return ("validation", score.val_key), ("test", score.key)


def _number(value: Scalar) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shares(axis: Axis, score: Score) -> None:
    if score.percent:
        axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g}%"))
