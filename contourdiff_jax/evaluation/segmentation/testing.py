# SPDX-License-Identifier: Apache-2.0
"""Testing of segmenters on a real volume: what they see of it, its scores and its picture.

Shapes: [X, Y, Z] volumes in closest-canonical RAS, [N, H, W] slices on the segmenters' grid.
"""

import dataclasses

import numpy as np
from matplotlib.figure import Figure

from contourdiff_jax import figures
from contourdiff_jax.data.feeds import numbered
from contourdiff_jax.data.layouts import pairs
from contourdiff_jax.data.layouts.scans import Scan
from contourdiff_jax.errors import InputError
from contourdiff_jax.evaluation.metrics import overlap
from contourdiff_jax.evaluation.segmentation.trained import images_of, label_map
from contourdiff_jax.volumes import geometry
from contourdiff_jax.volumes.grid import Grid, Resampling
from contourdiff_jax.volumes.intensity import Preset
from contourdiff_jax.volumes.masks import extent
from contourdiff_jax.volumes.volume import Volume

AVERAGED = ("dice", "assd", "hd95")  # over labels


@dataclasses.dataclass(frozen=True)
class TestVolume:
    """A test volume with its true labels."""

    name: str
    volume: Volume  # with even slices
    labels: list[int]  # of the classes, the background first
    truth: np.ndarray  # [X, Y, Z] those labels
    images: np.ndarray  # [N, H, W] in [-1, 1]
    resampling: Resampling

    def ceiling(self) -> np.ndarray:
        """The true labels through the grid and back: what a segmenter on it would do at best."""
        classes = numbered(self.resampling.labels(self.truth), self.labels)
        certain = np.eye(len(self.labels), dtype=np.float32)[classes]
        return label_map(certain, self.labels, self.resampling)

    def scores(self, predicted: np.ndarray) -> dict[str, float | None]:
        """`dice_4`, `assd_4`, `hd95_4`, .. of a label map [X, Y, Z], and their means over labels.

        None where a number is not defined: a mean too, where one of the labels has none. Labels
        that are in neither map are left out.
        """
        spacing = geometry.spacing(self.volume.affine)
        dices = overlap.dice(predicted, self.truth, self.labels[1:])
        scores = {f"dice_{label}": value for label, value in dices.items() if value is not None}
        seen = [label for label, value in dices.items() if value is not None]
        for label in seen:
            distances = overlap.distances(predicted == label, self.truth == label, spacing)
            scores |= {f"{metric}_{label}": value for metric, value in distances.items()}
        for metric in AVERAGED if seen else ():
            values = [scores[f"{metric}_{label}"] for label in seen]
            scores[metric] = None if None in values else float(np.mean(values))
        return scores

    def panel(self, predicted: dict[str, np.ndarray], title: str) -> Figure:
        """Slices with the true labels, and with predicted ones: {name: classes [N, H, W]}."""
        truth = numbered(self.resampling.labels(self.truth), self.labels)
        first, last = extent(truth > 0)
        rows = np.linspace(first, last, figures.PANEL_ROWS + 2)[1:-1]
        rows = np.unique(rows.round().astype(int))
        grey = (self.images[rows] + 1) / 2
        columns = {"image": grey} | {
            name: figures.labelled(grey, classes[rows])
            for name, classes in ({"true labels": truth} | predicted).items()
        }
        figure = figures.panel(title, columns, None, self.resampling.positions[rows])
        figures.legend(figure, self.labels[1:])
        return figure


def read(
    scan: Scan, truths: dict[str, Scan], preset: Preset, grid: Grid, labels: list[int]
) -> TestVolume:
    """A test volume with its label map, which is among `truths` by its name.

    Labels that are not among `labels` become background.
    """
    volume = scan.read().even()
    truth = pairs.partner(volume, scan, truths, "test_labels", labels=True)
    if (truth.array != np.rint(truth.array)).any():
        raise InputError(f"{truth.path}: labels of uneven slices; resample volume and labels first")
    kept = np.where(np.isin(truth.array, labels), truth.array, labels[0]).astype(np.uint16)
    images, resampling = images_of(volume, preset, grid)
    return TestVolume(scan.name, volume, labels, kept, images, resampling)
