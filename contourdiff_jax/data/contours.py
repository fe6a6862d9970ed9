# SPDX-License-Identifier: Apache-2.0
"""Contours: all that crosses from the source modality to the target.

Shapes: H rows, W columns of the model grid; values are in the preset's units (CT in HU, MR as fraction of its
volume's window). Contours are computed at the resolution of the model and never resized.

ContourDiff (Chen et al. 2024, arXiv 2403.10786, section 3.1) takes Canny edges (Canny 1986) of an 8-bit image. With
one wide window a CT shows little inside the skull, so here the edges of several windows are united; and the air
outside the body mask is made uniform first, so that a head holder leaves none.
"""

import dataclasses
from collections.abc import Mapping

import cv2
import numpy as np

from contourdiff_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class ContourSettings:
    """How contours are taken.

    Attributes:
      windows: (low, high) in the preset's units; each is stretched to 8 bits and searched for edges.
      low, high: Canny's hysteresis thresholds, on the L1 norm of the 3x3 Sobel gradient of that 8-bit image.
      blur: width in pixels of the Gaussian kernel that precedes Canny, odd; 1 for none.
      apart: edges of a later window are left out within this many pixels of those of an earlier one: where
        a window saturates, it draws the same border again a little to the side.
    """

    windows: tuple[tuple[float, float], ...]
    low: float
    high: float
    blur: int = 3
    apart: int = 0

    def __post_init__(self):
        # Lists come from JSON and ConfigDict; tuples compare and hash.
        object.__setattr__(self, "windows", tuple(tuple(map(float, w)) for w in self.windows))
        if not self.windows:
            raise InputError("contours.windows: at least one (low, high) window is needed")
        for window in self.windows:
            if len(window) != 2 or not window[0] < window[1]:
                raise InputError(
                    f"contours.windows: {window} is not a pair (low, high) with low < high"
                )
        if not 0 <= self.low <= self.high:
            raise InputError(
                f"contours: the thresholds low={self.low} and high={self.high} must satisfy 0 <= low <= high"
            )
        if self.blur < 1 or self.blur % 2 == 0:
            raise InputError(f"contours.blur: {self.blur} is not an odd number of pixels")
        if self.apart < 0:
            raise InputError(f"contours.apart: {self.apart} is negative")

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping) -> "ContourSettings":
        """Raises InputError for fields that are not the settings' own."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown, missing = set(fields) - known, {"windows", "low", "high"} - set(fields)
        if unknown or missing:
            problem = f"unknown {sorted(unknown)}" if unknown else f"missing {sorted(missing)}"
            raise InputError(f"contours: {problem}; the fields are {', '.join(sorted(known))}")
        return cls(**fields)


DEFAULTS = {
    # Bone, soft tissue and fluid: chosen on rendered heads, see experiments/.
    "ct": ContourSettings(windows=((-500, 1500), (-150, 250), (-20, 80)), low=60, high=120),
    "mr": ContourSettings(windows=((0, 1),), low=20, high=50),
}
# One wide window and the thresholds of the published command line.
PUBLISHED = {
    "ct": ContourSettings(windows=((-1000, 1000),), low=80, high=150),
    "mr": ContourSettings(windows=((0, 1),), low=80, high=150),
}


def contours(values: np.ndarray, mask: np.ndarray, settings: ContourSettings) -> np.ndarray:
    """Edges of one slice.

    Args:
      values: [H, W] float, in the preset's units.
      mask: [H, W] bool, the body; what lies outside becomes the lower end of each window.

    Returns:
      [H, W] uint8, 1 on a contour and 0 elsewhere.
    """
    mask = np.asarray(mask, bool)
    united = np.zeros(values.shape, np.uint8)
    for low, high in settings.windows:
        grey = np.clip((values - low) * (255 / (high - low)), 0, 255)
        grey = np.where(mask, np.round(grey), 0).astype(np.uint8)
        if settings.blur > 1:
            grey = cv2.GaussianBlur(grey, (settings.blur, settings.blur), 0)
        edges = cv2.Canny(grey, settings.low, settings.high, apertureSize=3, L2gradient=False) > 0
        if settings.apart:
            reach = 2 * settings.apart + 1
            edges &= cv2.dilate(united, np.ones((reach, reach), np.uint8)) == 0
        united |= edges.astype(np.uint8)
    return united


def stack(values: np.ndarray, masks: np.ndarray, settings: ContourSettings) -> np.ndarray:
    """`contours` of each slice: [N, H, W] values and masks -> [N, H, W] uint8."""
    return np.stack([contours(v, m, settings) for v, m in zip(values, masks, strict=True)])
