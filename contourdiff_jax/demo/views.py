# SPDX-License-Identifier: Apache-2.0
"""Views: slices, contours and maps as pictures, all on the grid that the network sees.

Shapes: N slices, H rows, W columns; pictures [H, W, 3] uint8.
"""

import dataclasses

import numpy as np
from matplotlib import colormaps
from PIL import Image

from contourdiff_jax.contours import opencv
from contourdiff_jax.contours.settings import ContourSettings
from contourdiff_jax.contracts import CONTOUR
from contourdiff_jax.data.inspection import guesses
from contourdiff_jax.demo.offers import Made
from contourdiff_jax.figures import CONTOUR as LINE
from contourdiff_jax.translation.sidecars import Settings
from contourdiff_jax.translation.volume import SourceVolume
from contourdiff_jax.volumes import io
from contourdiff_jax.volumes.grid import Grid
from contourdiff_jax.volumes.intensity import Preset
from contourdiff_jax.volumes.volume import Assumed, Volume

SIDE = 512  # pixels of a picture at least
MAP = colormaps["inferno"]
TOP = 99.5  # percentile of a map that is brightest


@dataclasses.dataclass(frozen=True)
class Stack:
    """Slices of a volume, ready to be looked at.

    Attributes:
      greys: [N, H, W] uint8.
      positions: [N] mm along the slicing axis.
    """

    greys: np.ndarray
    positions: np.ndarray

    def at(self, position: float) -> np.ndarray:
        """The slice [H, W] that is nearest to a position in mm."""
        return self.greys[np.abs(self.positions - position).argmin()]


@dataclasses.dataclass(frozen=True)
class Seen:
    """What is kept of a source to look at; the volume itself is not.

    Attributes:
      stack: its slices.
      basis, body: [N, H, W] what its contours are computed from.
      settings: of contours, as they are without a change.
      target: of the translation.
      grid: of all that is looked at.
      free: whether thresholds can be moved: the network sees contours, of the grid's own pixels.
      said: warnings and notes about it, one line each.
    """

    stack: Stack
    basis: np.ndarray
    body: np.ndarray
    settings: ContourSettings
    target: Preset
    grid: Grid
    free: bool
    said: tuple[str, ...]

    @classmethod
    def of(cls, source: SourceVolume, settings: Settings) -> "Seen":
        contours, grid = settings.contours["source"], source.resampling.grid
        return cls(
            stack(source.volume, settings.source, grid),
            source.basis,
            source.body,
            contours,
            settings.target,
            grid,
            CONTOUR.name in source.seen and not contours.native,
            source.said,
        )

    def __len__(self) -> int:
        return len(self.basis)

    def edges(self, number: int, settings: ContourSettings) -> np.ndarray:
        """Contours [H, W] uint8 of a slice, with other thresholds than those of the source."""
        one = slice(number, number + 1)
        return opencv.of_basis(self.basis[one], self.body[one], settings)[0]


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What is kept of a translation to look at.

    Attributes:
      stack: its slices.
      spread: those of the map of where samples differ, if there were several.
      most: their deviation that is white, with its unit.
    """

    stack: Stack
    spread: Stack | None = None
    most: str = ""

    @classmethod
    def of(cls, made: Made, seen: Seen, assumed: Assumed) -> "Drawn":
        """Of the files of a translation, on the grid of its source."""
        assumed = dataclasses.replace(assumed, range=None)  # of the source's values alone
        drawn = stack(io.read(made.image, assumed=assumed), seen.target, seen.grid)
        if "std" not in made.maps:
            return cls(drawn)
        spread, top = deviations(io.read(made.maps["std"]), seen.grid)
        return cls(drawn, spread, f"{top:.3g}{' HU' * (seen.target.modality == 'ct')}")


def stack(volume: Volume, preset: Preset, grid: Grid) -> Stack:
    """A volume's slices on a grid: CT through a window of soft tissue, MR through its own."""
    ct = preset.modality == "ct"
    window = guesses.SOFT_TISSUE if ct else preset.window_of(volume)
    volume, resampling = grid.fit_volume(volume)
    slices = resampling.slices(volume.array, preset.air if ct else window.low)
    return Stack(_bytes(window.fraction(slices)), resampling.positions)


def deviations(volume: Volume, grid: Grid) -> tuple[Stack, float]:
    """A map's slices on a grid, and the value [native units] that is brightest."""
    volume, resampling = grid.fit_volume(volume)
    slices = resampling.slices(volume.array, 0)
    top = float(np.percentile(slices[slices > 0], TOP)) if (slices > 0).any() else 1.0
    return Stack(_bytes(np.clip(slices / top, 0, 1)), resampling.positions), top


def _bytes(fractions: np.ndarray) -> np.ndarray:
    return np.rint(255 * fractions).astype(np.uint8)


def picture(greys: np.ndarray, edges: np.ndarray | None = None) -> np.ndarray:
    """A slice [H, W] enlarged, with contours [H, W] over it where they are given."""
    shown = np.repeat(_enlarged(greys, Image.Resampling.BICUBIC)[..., None], 3, axis=-1)
    if edges is not None:
        over = _enlarged(edges, Image.Resampling.NEAREST) > 0
        shown[over] = np.uint8(255 * np.array(LINE))
    return shown


def heat(greys: np.ndarray) -> np.ndarray:
    """A slice [H, W] of a map, enlarged and in colours."""
    return _bytes(MAP(_enlarged(greys, Image.Resampling.BICUBIC))[..., :3])


def _enlarged(greys: np.ndarray, how: Image.Resampling) -> np.ndarray:
    times = -(-SIDE // max(greys.shape))
    height, width = (times * side for side in greys.shape)
    return np.asarray(Image.fromarray(greys).resize((width, height), how))
