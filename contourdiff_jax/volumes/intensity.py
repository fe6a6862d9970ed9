# SPDX-License-Identifier: Apache-2.0
"""Intensities: what the numbers of a modality mean, and the ways to the model's range and back.

    native units --(a volume's own window)--> values --(storage)--> uint16 in a store
                                              values --(image)----> [-1, 1] in the model

For CT, values are HU as they are in the file. MR has no unit, so values are fractions of the
volume's own percentile window: 0 = low, 1 = high, one window for the whole volume, because windows
of single slices would flicker. Functions work on arrays of any shape.
"""

import dataclasses

import numpy as np

from contourdiff_jax.errors import InputError

# Interpolation undershoots beside bright edges, by up to a fifth of the window's top in resampled
# brains, but in few voxels: where the 1st percentile is not below zero by more than this share of
# the top, a negative minimum is such an undershoot. In z-scored volumes it is far lower.
UNDERSHOOT = 0.05

# Values whose contrast is less than this share of them are alike: float32 holds little else there
# than rounding, and no histogram of it can be made.
FLAT = 2.0**-14

# A smaller contrast than the first is none of an image, nor are values beyond the second: float32
# holds no squares of them.
FAINTEST, BRIGHTEST = 1e-12, 1e12


@dataclasses.dataclass(frozen=True)
class Window:
    """An interval of intensities, low < high; InputError for one that float32 cannot tell apart."""

    low: float
    high: float

    def __post_init__(self):
        if not 1e-30 < self.high - self.low < 1e30:
            raise InputError(
                f"no intensity window: {self.low} to {self.high} must be finite and rise"
            )

    def unit(self, x):
        """low..high -> [-1, 1], clipped; float32, of NumPy's arrays and JAX's."""
        return 2 * self.fraction(x) - 1

    def inverse(self, y):
        """[-1, 1] -> low..high, not clipped; float32."""
        return self.absolute((_float32(y) + 1) / 2)

    def fraction(self, x):
        """low..high -> [0, 1], clipped; float32."""
        return self.relative(x).clip(0, 1)

    def relative(self, x):
        """low..high -> 0..1, not clipped; float32."""
        return (_float32(x) - np.float32(self.low)) / np.float32(self.high - self.low)

    def absolute(self, x):
        """0..1 -> low..high, not clipped; float32."""
        return np.float32(self.low) + np.float32(self.high - self.low) * _float32(x)


def _float32(x):
    """An array of NumPy's or JAX's as float32; NumPy's of anything else."""
    return x.astype(np.float32) if hasattr(x, "__array_namespace__") else np.asarray(x, np.float32)


IDENTITY = Window(0.0, 1.0)


def is_flat(low: float, high: float) -> bool:
    """Whether values from `low` to `high` are one value, but for rounding."""
    return high - low <= max(FLAT * max(abs(low), abs(high)), FAINTEST)


@dataclasses.dataclass(frozen=True)
class Preset:
    """All that is fixed about the intensities of a modality."""

    name: str
    modality: str
    storage: Window  # range of values kept in a store's uint16
    image: Window  # range of values mapped to the model's [-1, 1]
    air: float  # value of what lies outside the field of view
    dtype: np.dtype  # of written volumes
    percentiles: tuple[float, float] | None  # of a volume's own window; None: native units stay

    def volume_window(self, array) -> Window:
        """The window of a whole volume in native units; the identity where values are native units.

        MAISI's MR window starts at the 0th percentile, the minimum (Guo et al., arXiv 2409.11169).
        Resampled magnitude images dip below zero in a few voxels beside bright edges, and one of
        them would lift all air to grey: where they are few the window starts at 0. Where negative
        values are common (a z-scored volume) they are meant, and the minimum stands.

        Raises InputError for a volume whose window would be empty.
        """
        if self.percentiles is None:
            return IDENTITY
        low, first, high = np.percentile(array, (self.percentiles[0], 1, self.percentiles[1]))
        if low < 0 and first >= -UNDERSHOOT * high:
            low = 0.0
        if not low < high:
            raise InputError(
                f"constant volume: percentiles {self.percentiles[0]:g} and {self.percentiles[1]:g} "
                f"are both {high:g}, so there is no intensity window"
            )
        return Window(float(low), float(high))

    def window_of(self, volume) -> Window:
        """`volume_window` of a volumes.Volume; an InputError names its file."""
        try:
            return self.volume_window(volume.array)
        except InputError as error:
            raise InputError(f"{volume.path}: {error}") from error

    def shown(self, volume, window: Window) -> Window:
        """Values that are black and white where a volumes.Volume with that window becomes 8 bits.

        A picture of 8 bits stays what it is; anything deeper is shown as to the model.
        """
        if volume.span is None:
            return self.image
        return Window(*(float(value) for value in self.values(volume.span, window)))

    def described(self, window: Window = IDENTITY) -> str:
        """Its name, and of CT the HU that the model sees, where volumes have that window."""
        if self.modality != "ct":
            return self.name
        low, high = (float(self.native(end, window)) for end in (self.image.low, self.image.high))
        return f"{self.name} of {low:g} to {high:g} HU"

    def values(self, array, window: Window):
        """Native units -> values, float32, not clipped."""
        return window.relative(array)

    def native(self, values, window: Window):
        """Values -> native units, float32, not clipped: the inverse of `values`."""
        return window.absolute(values)

    def encode(self, values):
        """Values -> uint16 as kept in a store, clipped to `storage`."""
        raw = self.storage.fraction(values)
        raw *= 65535
        return np.rint(raw, out=raw).astype(np.uint16)

    def decode(self, raw):
        """uint16 of a store -> values, float32."""
        return self.storage.absolute(np.asarray(raw, np.float32) / 65535)

    def decode_on_device(self, raw):
        """`decode` in a jitted function: one multiplication less, so the last bit may differ."""
        low, high = self.storage.low, self.storage.high
        return low + (high - low) / 65535 * raw.astype(np.float32)

    def in_body(self, values, body):
        """Values and the body's mask of one shape -> the model's [-1, 1]; outside the body is air.

        Head holders and background noise have no contour, and translations have neither.
        """
        xp = values.__array_namespace__()
        return self.image.unit(xp.where(body > 0, values, np.float32(self.air)))


# Stored are the 12 bits that CT scanners deliver; the model sees MAISI's (-1000, 1000) HU.
CT = Preset(
    name="ct",
    modality="ct",
    storage=Window(-1024.0, 3071.0),
    image=Window(-1000.0, 1000.0),
    air=-1000.0,
    dtype=np.dtype(np.int16),
    percentiles=None,
)
PRESETS = {
    "ct": CT,
    # A third of the skull lies beyond 1000 HU. Air stays the model's -1.
    "ct_wide": dataclasses.replace(CT, name="ct_wide", image=Window(-1000.0, 3071.0)),
    "mr": Preset(
        name="mr",
        modality="mr",
        storage=Window(0.0, 1.0),
        image=Window(0.0, 1.0),
        air=0.0,
        dtype=np.dtype(np.float32),
        percentiles=(0.0, 99.5),
    ),
}


def preset(name: str) -> Preset:
    """The preset of that name; InputError naming the known ones."""
    if name not in PRESETS:
        raise InputError(f"no intensity preset {name!r}; known: {', '.join(sorted(PRESETS))}")
    return PRESETS[name]
