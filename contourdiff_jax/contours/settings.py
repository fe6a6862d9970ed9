# SPDX-License-Identifier: Apache-2.0
"""Settings: how contours are taken, and the presets that have a name.

ContourDiff (Chen et al. 2024, arXiv 2403.10786, section 3.1) takes Canny edges (Canny 1986) of an
8-bit image. With one wide window a CT shows little inside the skull. Two remedies: the edges of
several windows united, and a curve that gives each tissue a grey of its own, as the look-up table
of a viewer does (DICOM PS3.3, section C.11.2, VOI LUT). The air outside the body mask is made
uniform first, so that a head holder leaves no edge.

A curve that rises and falls has a trap: where bone meets air, the mixture of both in one voxel has
the HU of fat, and the curve draws a line of fat that is not there. So greys are made of the finest
voxels there are, the volume's own, before any are averaged, and lines too thin to be tissue are
taken out (`thin`).

For networks that were trained by the original's code (mazurowski-lab/ContourDiff, preprocess.py and
transform.py) there are its own contours too, byte for byte: those of the whole picture at its own
pixels, which are then brought to the model's by nearest neighbour.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path

from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import forms
from contourdiff_jax.volumes.intensity import Window

MOST = 1e9  # below it lie all values and thresholds, and above -MOST
WIDEST = 1000  # pixels or mm that `apart` and `thin` may be
BLURS = (1, 3, 5, 7, 9)  # widths of a Gaussian whose weights 8 bits hold, as OpenCV computes it

# What contours are computed from once a volume is on the grid; a store names its arrays so.
SLICES = "slices"  # values on the grid
PICTURES = "pictures"  # 8-bit pictures on the grid that are made of the volume's own voxels
CONTOURS = "contours"  # the contours themselves, which are those of the volume's own voxels


@dataclasses.dataclass(frozen=True)
class ContourSettings:
    """How contours are taken.

    Attributes:
      low, high: Canny's hysteresis thresholds, on the L1 norm of the 3x3 Sobel gradient of an
        8-bit image.
      windows: (low, high) in the preset's units; each is stretched to 8 bits and searched
        for edges.
      curve: (value, grey) points, values rising, greys in [0, 1]; straight lines between them turn
        values into one more 8-bit image to search.
      blur: width in pixels of the Gaussian kernel that precedes Canny, one of BLURS; 1 for none.
      apart: edges of a later image are left out within this many pixels of those of an earlier one:
        where a window saturates, it draws the same border again a little to the side.
      thin: what is brighter than both its sides and narrower than this many mm is left out of the
        curve's greys, which are then made of the volume's own voxels; 0 for nothing, and greys of
        what the grid's pixels hold.
      native: contours are taken at the volume's own pixels, with no regard to the body, and brought
        to the grid by nearest neighbour. Without a window or curve they are those of the picture
        as it is: its own 8 bits, or what the model's window makes of deeper ones.
      clean: (object, hole) areas in native pixels: all becomes black first but what Otsu's
        threshold parts from the dark, less a pixel at its border, objects and holes smaller than
        these.
    """

    low: float
    high: float
    windows: tuple[tuple[float, float], ...] = ()
    curve: tuple[tuple[float, float], ...] = ()
    blur: int = 3
    apart: int = 0
    thin: float = 0.0
    native: bool = False
    clean: tuple[int, int] | tuple[()] = ()

    def __post_init__(self):
        # Lists come from JSON and ConfigDict; tuples compare and hash.
        for name in ("windows", "curve"):
            pairs = tuple(tuple(map(float, pair)) for pair in getattr(self, name))
            object.__setattr__(self, name, pairs)
            for pair in pairs:
                if len(pair) != 2:
                    raise InputError(f"contours.{name}: {pair} is not a pair of numbers")
        if not self.windows and not self.curve and not self.native:
            raise InputError("contours.windows: one (low, high) window or a curve is needed")
        for window in self.windows:
            if not -MOST < window[0] < window[1] < MOST:
                raise InputError(f"contours.windows: {window} must be (low, high) with low < high")
        values, greys = ([pair[i] for pair in self.curve] for i in range(2))
        rising = all(a < b for a, b in itertools.pairwise([-MOST, *values, MOST]))
        if len(self.curve) == 1 or not rising:
            raise InputError(f"contours.curve: the values {values} must be two or more and rise")
        if any(not 0 <= grey <= 1 for grey in greys):
            raise InputError(f"contours.curve: the greys {greys} must lie between 0 and 1")
        if not 0 <= self.low <= self.high < MOST:
            raise InputError(
                f"contours: the thresholds low={self.low} and high={self.high} "
                f"must satisfy 0 <= low <= high < {MOST:g}"
            )
        if not isinstance(self.blur, int) or self.blur not in BLURS:
            raise InputError(f"contours.blur: {self.blur} is none of {', '.join(map(str, BLURS))}")
        for name, unit in (("apart", "pixels"), ("thin", "mm")):
            if not 0 <= getattr(self, name) <= WIDEST:
                value = f"{getattr(self, name)} must be 0 to {WIDEST} {unit}"
                raise InputError(f"contours.{name}: {value}")
        if self.thin and (self.windows or self.native or not self.curve):
            raise InputError("contours.thin: it is of a curve alone, without windows or native")
        object.__setattr__(self, "clean", tuple(self.clean))
        if self.clean and (
            len(self.clean) != 2 or any(not 0 <= area < MOST for area in self.clean)
        ):
            raise InputError(f"contours.clean: {self.clean} is not a pair of areas in pixels")
        if self.clean and not self.native:
            raise InputError("contours.clean: it is of native pixels; set contours.native too")

    @property
    def suits_any(self) -> bool:
        """Whether they suit every modality, since they name no values."""
        return not self.windows and not self.curve

    @property
    def basis(self) -> str:
        """What contours are computed from on the grid: SLICES, PICTURES or CONTOURS."""
        if self.native:
            return CONTOURS
        return PICTURES if self.thin else SLICES

    @property
    def of_voxels(self) -> bool:
        """Whether they need the volume's own voxels, so that a store has to keep their basis."""
        return self.basis != SLICES

    def served_by(self, kept: "ContourSettings | None") -> bool:
        """Whether a store that was prepared with the settings `kept` has the basis of these."""
        if not self.of_voxels or self == kept:
            return True
        # One picture serves for all thresholds.
        return (
            kept is not None
            and self.basis == PICTURES
            and ((self.curve, self.thin) == (kept.curve, kept.thin))
        )

    def through(self, window: Window) -> "ContourSettings":
        """The same settings, with this window where they have neither window nor curve."""
        windows = ((window.low, window.high),)
        return dataclasses.replace(self, windows=windows) if self.suits_any else self

    @property
    def curves(self) -> list[tuple[tuple[float, float], ...]]:
        """What turns values into greys: the windows, as curves of two points, and the curve."""
        ramps = [((low, 0.0), (high, 1.0)) for low, high in self.windows]
        return ramps + [self.curve] * bool(self.curve)

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping) -> "ContourSettings":
        """Raises InputError for fields that are not the settings' own, or of another type."""
        return forms.checked(fields, cls, "contours")


MR = ContourSettings(windows=((0, 1),), low=20, high=50)
# Greys in the order of T1: air, bone, fluid, muscle, grey and white matter, fat. So every border is
# drawn once and where MR has it; measured in experiments/010_gap.
CT_CURVE = (
    *((-200, 0), (-150, 1), (-50, 1)),
    *((0, 0.2), (30, 0.55), (38, 0.5), (60, 0.4), (120, 0.35)),
    (1100, 0),
)
CT = ContourSettings(curve=CT_CURVE, thin=3.0, low=20, high=50)

# The original's command line; and its --remove_artifact.
ORIGINAL = ContourSettings(low=80, high=150, native=True)
CLEANED = dataclasses.replace(ORIGINAL, clean=(8000, 3000))

# name -> modality -> settings
PRESETS = {
    "default": {"ct": CT, "mr": MR},
    # Fluid and brain, fat, bone.
    "united": {
        "ct": ContourSettings(windows=((-20, 60), (-300, 0), (60, 1500)), low=60, high=120),
        "mr": MR,
    },
    # One wide window and the thresholds of the published command line.
    "published": {
        "ct": ContourSettings(windows=((-1000, 1000),), low=80, high=150),
        "mr": ContourSettings(windows=((0, 1),), low=80, high=150),
    },
    "original": {"ct": ORIGINAL, "mr": ORIGINAL},
    "original_cleaned": {"ct": CLEANED, "mr": CLEANED},
}


def preset(name: str, modality: str) -> ContourSettings:
    """The settings of that name for a modality; raises InputError for an unknown name."""
    if name not in PRESETS:
        raise InputError(f"no contour preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name][modality]


def named(given: str | Path, modality: str) -> ContourSettings:
    """The settings of a preset's name, or of a JSON file."""
    if str(given) in PRESETS:
        return preset(str(given), modality)
    remedy = f"give settings as `contours` writes them, or one of {', '.join(PRESETS)}"
    return forms.read(Path(given), ContourSettings, remedy)
