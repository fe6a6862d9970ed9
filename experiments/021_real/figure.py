# SPDX-License-Identifier: Apache-2.0
"""The figure of the README: patients of lgg, whose images may be shown (TCGA-LGG, CC BY 3.0).

    python experiments/021_real/figure.py OUT

OUT is that of benchmark.py. A row is a tested patient, the middle one of its slices; columns are
FLAIR, its contours, T1 of these alone, T1 of these and the picture in which they are sought, and
the true T1.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
from matplotlib import pyplot

from contourdiff_jax.contours import opencv
from contourdiff_jax.contours.settings import preset

HERE = Path(__file__).parent
PATIENTS, TASK = 3, "flair_to_t1"
MODELS = ("contours_regression", "picture_regression")
COLUMNS = ("FLAIR", "its contours", "T1 of these", "T1 of these and FLAIR", "true T1")
SIDE = 128  # px of 2 mm


def picture(path: Path) -> np.ndarray:
    """[H, W] of 2 mm, brightness by its own 99.5th percentile."""
    grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).astype(np.float32)
    grey = np.clip(grey / np.percentile(grey, 99.5), 0, 1)
    height, width = (n // 2 for n in grey.shape)
    small = cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA)
    rows, columns = (max(0, SIDE - n) for n in small.shape)
    border = ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2))
    return np.pad(small, border)[:SIDE, :SIDE]


def main(out: Path) -> None:
    paths = sorted((out / "data/test/lgg/flair").glob("*.png"))
    by_patient = {}
    for path in paths:
        by_patient.setdefault(path.stem.rpartition("-")[0], []).append(path)
    shown = list(by_patient.values())[:: len(by_patient) // PATIENTS][:PATIENTS]
    figure, axes = pyplot.subplots(PATIENTS, len(COLUMNS), figsize=(10, 2.1 * PATIENTS))
    for row, slices in zip(axes, shown, strict=True):
        path = slices[len(slices) // 2]
        flair, truth = picture(path), picture(out / "data/test/lgg/t1" / path.name)
        made = [picture(out / "translated" / model / TASK / path.name) for model in MODELS]
        edges = opencv.contours(flair, flair > 0.02, preset("default", "mr"))
        columns = (flair, edges, *made, truth)
        for axis, image, title in zip(row, columns, COLUMNS, strict=True):
            axis.imshow(image[:, 8:-8], cmap="gray")
            axis.set_axis_off()
            if path.stem.startswith(next(iter(by_patient))):
                axis.set_title(title, fontsize=9)
    figure.tight_layout(pad=0.3)
    figure.savefig(HERE / "figure.png", dpi=90)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
