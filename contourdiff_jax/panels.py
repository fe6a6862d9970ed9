# SPDX-License-Identifier: Apache-2.0
"""Panels: one subject's slices side by side, for the eye to check what the numbers say.

Legend: n slices shown, H rows, W columns.
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

ROWS = 5  # slices of a panel
CELL = 1.9  # inches a picture is wide
ERROR_TOP = 0.5  # absolute error that saturates, as a fraction of the intensity window


def draw(
    path: Path,
    title: str,
    columns: dict[str, np.ndarray],
    error: np.ndarray | None,
    positions: np.ndarray,
) -> None:
    """Writes a PNG with a row for each slice and a column for each kind of picture.

    Args:
      path: the file to write.
      title: of the figure.
      columns: pictures [n, H, W] in [0, 1] by their title; the grey scale is 0 to 1 in all of them.
      error: [n, H, W] absolute error, a last column in colours with its bar; None leaves it out.
      positions: [n] in mm along the slicing axis.
    """
    across = len(columns) + (error is not None)
    # The object interface: pyplot's global figures would outlive their file.
    size = (CELL * across + 0.9, CELL * len(positions) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02)
    axes = figure.subplots(len(positions), across, squeeze=False)
    for column, (name, slices) in enumerate(columns.items()):
        axes[0, column].set_title(name, fontsize=10)
        for row, picture in enumerate(slices):
            axes[row, column].imshow(picture, cmap="gray", vmin=0, vmax=1)
    if error is not None:
        axes[0, -1].set_title("absolute error", fontsize=10)
        for row, picture in enumerate(error):
            shown = axes[row, -1].imshow(picture, cmap="inferno", vmin=0, vmax=ERROR_TOP)
        bar = figure.colorbar(shown, ax=axes[:, -1], shrink=0.6, extend="max")
        bar.set_label("fraction of the intensity window", fontsize=8)
        bar.ax.tick_params(labelsize=8)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for row, position in enumerate(positions):
        axes[row, 0].set_ylabel(f"{position:.1f} mm", fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)
