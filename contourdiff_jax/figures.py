# SPDX-License-Identifier: Apache-2.0
"""Figures: slices with their contours, views across slices, scores, sparsification, training.

Shapes: n slices shown, H rows, W columns. A score is a row of rows.csv: a dict of subject, slice,
method, metric, value and seconds. A statistic is a line of stats.jsonl.
"""

import io
import math
import warnings
from collections import defaultdict

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import (
    EngFormatter,
    LogLocator,
    NullFormatter,
    PercentFormatter,
    StrMethodFormatter,
)

# The object interface throughout: pyplot's global figures would outlive their file.

DPI = 120
WIDTH = 11.0  # inches at most, so that a page does not shrink the letters
COLOURS = colormaps["tab10"].colors
PANEL_ROWS = 5  # slices of a panel
CELL = 1.9  # inches a picture of a panel is wide
VIEW = 2.5  # inches a reformatted picture is wide
ERROR_TOP = 0.5  # absolute error that saturates, as a fraction of the intensity window
CONTOUR = (1.0, 0.8, 0.2)  # red, green and blue of a line over a picture
LABEL = 0.5  # opacity of a label over a picture
IMAGES = "images seen"


def png(figure: Figure) -> bytes:
    """The figure as a PNG file; equal figures make equal files."""
    stream = io.BytesIO()
    for text in figure.findobj(Text):  # names of subjects are no formulas
        text.set_parse_math(False)
    with warnings.catch_warnings():
        # A name in letters that the font lacks is shown as boxes.
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        figure.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})  # no version
    return stream.getvalue()


def cells(down: int, across: int, size: tuple[float, float], pad: float = 0.02, **ratios):
    """A figure of `size` inches and its axes [down, across], for pictures side by side."""
    figure = Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=pad, h_pad=pad)
    axes = figure.subplots(down, across, squeeze=False, **ratios)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    return figure, axes


def panel(
    title: str,
    columns: dict[str, np.ndarray],
    error: np.ndarray | None,
    positions: np.ndarray,
) -> Figure:
    """One subject's slices side by side, for the eye to check what the numbers say.

    Args:
      title: of the figure.
      columns: pictures [n, H, W], or in colours [n, H, W, 3], in [0, 1] by their title; the grey
        scale is 0 to 1 in all of them.
      error: [n, H, W] absolute error, a last column in colours with its bar; None leaves it out.
      positions: [n] in mm along the slicing axis.
    """
    across = len(columns) + (error is not None)
    size = (CELL * across + 0.9, CELL * len(positions) + 0.6)
    figure, axes = cells(len(positions), across, size)
    for column, (name, slices) in enumerate(columns.items()):
        axes[0, column].set_title(name, fontsize=10)
        for row, picture in enumerate(slices):
            axes[row, column].imshow(picture, cmap="gray", vmin=0, vmax=1)
    if error is not None:
        axes[0, -1].set_title("absolute error", fontsize=10)
        for row, picture in enumerate(error):
            shown = axes[row, -1].imshow(picture, cmap="inferno", vmin=0, vmax=ERROR_TOP)
        _error_bar(figure, shown, axes[:, -1])
    for row, position in enumerate(positions):
        axes[row, 0].set_ylabel(f"{position:.1f} mm", fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def contact_sheet(rows: list[tuple[str, np.ndarray, np.ndarray]]) -> Figure:
    """Slices with their contours over them, a row for each (title, pictures, contours).

    Pictures are [n, H, W] in [0, 1], contours [n, H, W] of 0 and 1.
    """
    across = len(rows[0][1])
    size = (CELL * across + 0.4, CELL * len(rows) + 0.1)
    figure, axes = cells(len(rows), across, size, pad=0.01)
    for line, (title, pictures, contours) in zip(axes, rows, strict=True):
        line[0].set_ylabel(title, fontsize=9)
        for axis, picture, contour in zip(line, pictures, contours, strict=True):
            seen = np.repeat(0.6 * picture[..., None], 3, axis=-1)  # darker, for lines to stand out
            seen[contour > 0] = CONTOUR
            axis.imshow(seen, interpolation="nearest")
    return figure


def labelled(pictures: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Pictures [n, H, W] in [0, 1] with classes [n, H, W] over them in colours: [n, H, W, 3].

    The background, 0, stays grey.
    """
    grey = np.repeat(pictures[..., None], 3, axis=-1)
    colours = np.array(COLOURS)[(classes.astype(int) - 1) % len(COLOURS)]
    return np.where(classes[..., None] > 0, (1 - LABEL) * grey + LABEL * colours, grey)


def legend(figure: Figure, labels: list[int]) -> None:
    """The colours of `labelled` below a panel: of classes 1, 2, .., which are those labels."""
    patches = [
        Patch(color=COLOURS[number % len(COLOURS)], alpha=0.7, label=f"label {label}")
        for number, label in enumerate(labels)
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=8, fontsize=8, frameon=False)


def views(title: str, rows: list[tuple]) -> Figure:
    """One subject reformatted across its slices, where slices that do not fit together show.

    Args:
      title: of the figure.
      rows: (name, {title: [H, W] in [0, 1]}, absolute error [H, W] or None, height of a pixel over
        its width) for each plane.
    """
    shapes = [next(iter(pictures.values())).shape for _, pictures, _, _ in rows]
    heights = [h * aspect / w for (h, w), (*_, aspect) in zip(shapes, rows, strict=True)]
    across = len(rows[0][1]) + (rows[0][2] is not None)
    size = (VIEW * across + 0.9, VIEW * sum(heights) + 0.8)
    figure, axes = cells(len(rows), across, size, height_ratios=heights)
    for column, name in enumerate(rows[0][1]):
        axes[0, column].set_title(name, fontsize=10)
    for line, (name, pictures, error, aspect) in zip(axes, rows, strict=True):
        how = {"aspect": aspect, "interpolation": "nearest"}
        for axis, picture in zip(line, pictures.values(), strict=False):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1, **how)
        if error is not None:
            shown = line[-1].imshow(error, cmap="inferno", vmin=0, vmax=ERROR_TOP, **how)
        line[0].set_ylabel(name, fontsize=8)
    if error is not None:
        axes[0, -1].set_title("absolute error", fontsize=10)
        _error_bar(figure, shown, axes[:, -1])
    figure.suptitle(title, fontsize=10)
    return figure


def _error_bar(figure: Figure, shown, axes) -> None:
    bar = figure.colorbar(shown, ax=axes, shrink=0.6, extend="max")
    bar.set_label("fraction of the intensity window", fontsize=8)
    bar.ax.tick_params(labelsize=8)


# ----------------------------------------------------------------------------------------------
# Scores
# ----------------------------------------------------------------------------------------------


def subjects(scores: list[dict], titles: dict[str, str]) -> Figure | None:
    """Strip plot: an axis for each metric of `titles`, methods across, a point a subject."""
    values = defaultdict(list)
    for score in scores:
        values[score["metric"], score["method"], score["subject"]].append(score["value"])
    metrics = [metric for metric in titles if any(key[0] == metric for key in values)]
    if not metrics:
        return None
    names = list(dict.fromkeys(key[2] for key in values if key[0] in metrics))
    across = min(4, len(metrics))
    down = math.ceil(len(metrics) / across)
    figure = Figure(figsize=(WIDTH / 4 * across, 3.2 * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).flat
    for axis in axes[len(metrics) :]:
        axis.set_axis_off()
    for axis, metric in zip(axes, metrics, strict=False):
        methods = list(dict.fromkeys(key[1] for key in values if key[0] == metric))
        means = np.array(
            [[np.mean(values.get((metric, m, s), np.nan)) for m in methods] for s in names]
        )
        # A small sideways offset for each subject, so that equal scores stay visible.
        offset = 0.25 * (np.arange(len(names)) - (len(names) - 1) / 2) / len(names)
        places = np.arange(len(methods)) + offset[:, None]
        axis.plot(places.T, means.T, color="0.8", linewidth=0.8, zorder=1)
        for column, method in enumerate(methods):
            colour = _colour(scores, method)
            axis.scatter(places[:, column], means[:, column], s=22, color=colour, zorder=2)
        axis.set_xticks(range(len(methods)), methods, rotation=35, ha="right")
        axis.set_title(titles[metric], fontsize=10)
        _tidy(axis)
    return figure


def slices(scores: list[dict], titles: dict[str, str]) -> Figure | None:
    """One metric against another of every slice: by method, and by the seconds that a slice took.

    Args:
      scores: rows.
      titles: of the two metrics, across and up.
    """
    points = defaultdict(dict)
    for score in scores:
        if score["metric"] in titles:
            key = (score["method"], score["subject"], score["slice"])
            points[key] |= {score["metric"]: score["value"], "seconds": score["seconds"]}
    points = {key: p for key, p in points.items() if titles.keys() <= p.keys()}
    if not points:
        return None
    timed = [p for p in points.values() if math.isfinite(p["seconds"])]
    by_time = len({p["seconds"] for p in timed}) > 1
    figure = Figure(figsize=(WIDTH if by_time else 6.5, 4.4), layout="constrained")
    axes = figure.subplots(1, 1 + by_time, squeeze=False, sharex=True, sharey=True)[0]
    for method in dict.fromkeys(key[0] for key in points):
        of_method = [p for key, p in points.items() if key[0] == method]
        axes[0].scatter(
            *_columns(of_method, *titles),
            **{"s": 12, "alpha": 0.6, "linewidths": 0, "label": method},
            color=_colour(scores, method),
        )
    axes[0].legend(fontsize=9)
    axes[0].set_title("by method", fontsize=10)
    across, up = titles.values()
    axes[0].set_ylabel(up)
    if by_time:
        *places, seconds = _columns(timed, *titles, "seconds")
        shown = axes[1].scatter(*places, c=seconds, s=12, linewidths=0, cmap="viridis")
        axes[1].set_title("by the time to translate", fontsize=10)
        figure.colorbar(shown, ax=axes[1], label="seconds per slice")
    for axis in axes:
        axis.set_xlabel(across)
        _tidy(axis)
    return figure


def sparsification(removed: np.ndarray, curves: np.ndarray) -> Figure:
    """Error left without the voxels of the largest standard deviation, beside the oracle's.

    Args:
      removed: [F] fractions of the voxels left out.
      curves: [n, 2, F] of n subjects: by standard deviation, and of the oracle.
    """
    figure = Figure(figsize=(6.5, 4.4), layout="constrained")
    axis = figure.subplots()
    for index, name in enumerate(("by standard deviation", "by the error itself")):
        colour = COLOURS[index]
        axis.plot(removed, curves[:, index].T, color=colour, linewidth=0.8, alpha=0.4)
        axis.plot(removed, curves[:, index].mean(0), color=colour, linewidth=2, label=name)
    axis.axhline(1, color="0.5", linestyle="--", linewidth=1, label="by lot")
    axis.set(xlabel="voxels left out", ylabel="error left, of the whole", xlim=(0, 1))
    axis.set_ylim(bottom=0)
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    axis.legend(fontsize=9)
    _tidy(axis)
    return figure


def _colour(scores: list[dict], method: str):
    """One colour for a method in all figures of an evaluation."""
    methods = list(dict.fromkeys(score["method"] for score in scores))
    return COLOURS[methods.index(method) % len(COLOURS)]


# ----------------------------------------------------------------------------------------------
# Training
# ----------------------------------------------------------------------------------------------


def curves(stats: list[dict]) -> Figure | None:
    """Loss, held-out loss by timestep and learning rate, as far as they were recorded."""
    draws = [
        draw
        for draw, names in (
            (_losses, ("loss", "heldout_loss")),
            (_timesteps, ("heldout_loss_t",)),
            (_learning_rate, ("learning_rate",)),
        )
        if any(name in line for line in stats for name in names)
    ]
    if not draws:
        return None
    figure = Figure(figsize=(WIDTH / 3 * len(draws), 3.2), layout="constrained")
    for draw, axis in zip(draws, figure.subplots(1, len(draws), squeeze=False)[0], strict=True):
        draw(axis, stats)
        if axis.get_yscale() == "log":
            # Losses span a decade or two: name 1, 2 and 5 of each, as plain numbers.
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.yaxis.set_minor_formatter(NullFormatter())
        if axis.get_xlabel() == IMAGES:
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        _tidy(axis)
    return figure


def _losses(axis, stats: list[dict]) -> None:
    losses = dict.fromkeys(name for line in stats for name in line if name.endswith("loss"))
    for name in losses:
        lines = [line for line in stats if name in line]
        label, style = name.removesuffix("_loss"), {"linewidth": 1}  # of a player
        if name == "loss":
            label = "training"
        elif name == "heldout_loss":
            label, style = "held out", {"marker": "o", "markersize": 4}
        axis.plot(*_columns(lines, "images", name), label=label, **style)
    axis.set(yscale="log", xlabel=IMAGES, title="loss")
    axis.legend(fontsize=9)


def _timesteps(axis, stats: list[dict]) -> None:
    """Held-out loss in equal bins of t, of up to six times of training: later is darker."""
    lines = [line for line in stats if "heldout_loss_t" in line]
    shown = np.unique(np.linspace(0, len(lines) - 1, 6).round().astype(int))
    for order, index in enumerate(shown):
        losses = lines[index]["heldout_loss_t"]
        middle = (np.arange(len(losses)) + 0.5) / len(losses)
        colour = colormaps["viridis_r"]((order + 1) / len(shown))
        label = f"{lines[index]['images']:,} images"
        axis.plot(middle, losses, marker="o", markersize=3, color=colour, label=label)
    axis.set(yscale="log", xlabel="t / T", title="held-out loss by timestep")
    axis.legend(fontsize=8)


def _learning_rate(axis, stats: list[dict]) -> None:
    lines = [line for line in stats if "learning_rate" in line]
    axis.plot(*_columns(lines, "images", "learning_rate"), linewidth=1)
    axis.set(xlabel=IMAGES, title="learning rate")
    axis.set_ylim(bottom=0)


def _columns(points: list[dict], *names: str) -> list[list[float]]:
    return [[point[name] for point in points] for name in names]


def _tidy(axis) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.3)
    axis.set_axisbelow(True)
