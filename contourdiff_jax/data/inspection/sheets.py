# SPDX-License-Identifier: Apache-2.0
"""Sheets: the middle slices of many scans on one picture."""

import math

import numpy as np

from contourdiff_jax.data.inspection.findings import PROBLEM, Inspected, Inspection, count
from contourdiff_jax.data.inspection.guesses import sample
from contourdiff_jax.data.layouts.scans import Scan
from contourdiff_jax.errors import printable
from contourdiff_jax.volumes import geometry
from contourdiff_jax.volumes.grid import AXES, Grid
from contourdiff_jax.volumes.intensity import Window
from contourdiff_jax.volumes.volume import Volume

SHOWN = 48  # scans on a sheet
SIDE = 192  # [px] of a picture on it


def view(scan: Scan, volume: Volume, window: Window | None) -> np.ndarray:
    """The middle slices, seen radiologically, side by side at one scale: uint8 [SIDE, W, 3].

    Axial, coronal and sagittal; of pictures, and where there is one slice only, just that. Of a
    label map, whose labels may lie anywhere, the slices that show most of them.
    """
    axes = list(AXES)
    if scan.is_picture or min(volume.array.shape) == 1:
        normal = (
            volume.native.orientation[2, 0] if scan.is_picture else np.argmin(volume.array.shape)
        )
        axes = [name for name in AXES if AXES[name][0] == normal]
    volume = volume.even()
    array, affine = volume.array, volume.affine
    sides = sorted({side for name in axes for side in AXES[name][1:]})
    scale = (geometry.spacing(affine) * array.shape)[sides].max() / SIDE
    levels = np.unique(sample(array)) if window is None else None
    parts = []
    for name in axes:
        depth = AXES[name][0]
        resampling = Grid(name, float(scale), SIDE).fit(array.shape, affine)
        if window is None:
            most = np.count_nonzero(array, axis=AXES[name][1:]).argmax()
            seen = _coloured(resampling.labels(array.take([most], depth))[0], levels)
        else:
            middle = array.take([array.shape[depth] // 2], depth)
            grey = window.fraction(resampling.slices(middle, window.low)[0])
            seen = np.repeat(np.rint(255 * grey)[..., None], 3, axis=2).astype(np.uint8)
        parts += [seen, np.full((SIDE, 3, 3), 255, np.uint8)]
    return np.concatenate(parts[:-1], axis=1)


def _coloured(labels: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Labels [H, W] in colours, uint8 [H, W, 3]; 0 is black."""
    from matplotlib import colormaps

    colours = (255 * np.array(colormaps["tab20"].colors)).astype(np.uint8)
    ranks = np.searchsorted(levels, labels)
    return np.where(labels[..., None] > 0, colours[ranks % len(colours)], np.uint8(0))


def sheet(inspection: Inspection):
    """Figure of all scans that have a view, each with its name, modality and window."""
    from matplotlib.figure import Figure

    from contourdiff_jax import figures

    viewed = [inspected for inspected in inspection.scans if inspected.view is not None]
    parts = 3 if any(inspected.view.shape[1] > SIDE for inspected in viewed) else 1
    across = min(3 if parts > 1 else 6, len(viewed))
    down = math.ceil(len(viewed) / across)
    width = min(figures.WIDTH / across, 1.8 * (1 + parts))  # inches of a scan; one alone is larger
    size = max(width * across, 6), (width / parts + 0.36) * down + 0.4
    figure = Figure(size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03)
    for axis, inspected in zip(
        figure.subplots(down, across, squeeze=False).flat,
        viewed + [None] * (down * across - len(viewed)),
        strict=True,
    ):
        axis.set_axis_off()
        if inspected is not None:
            axis.imshow(inspected.view)
            axis.set_xlim(-0.5, parts * (SIDE + 3) - 3.5)  # one scale for all scans
            colour = "firebrick" if inspected.lines(PROBLEM) else "black"
            caption = _caption(inspected, 24 * parts)
            axis.set_title(caption, fontsize=7, loc="left", color=colour)
    left_out = len(inspection.scans) - len(viewed)
    more = f" ({left_out} scans are not shown)" if left_out else ""
    figure.suptitle(f"{inspection.summary}{more}", fontsize=9)
    return figure


def _caption(inspected: Inspected, width: int) -> str:
    """Two lines: the name, and what is seen of it."""
    title = printable(inspected.title)
    if len(title) > width:
        title = f"{title[: width // 2 - 2]}...{title[2 - width // 2 :]}"
    parts = [inspected.guess.modality]
    if window := inspected.window:
        parts.append(f"{window.low:.4g} to {window.high:.4g}")
    if problems := inspected.lines(PROBLEM):
        parts.append(count(problems, "problem"))
    return f"{title}\n{', '.join(parts)}"
