# SPDX-License-Identifier: Apache-2.0
"""Guesses: what the values of a scan seem to show."""

import math

import numpy as np
from scipy import ndimage

from contourdiff_jax.data.inspection.findings import Guess
from contourdiff_jax.data.layouts import naming
from contourdiff_jax.data.layouts.scans import Scan
from contourdiff_jax.errors import InputError
from contourdiff_jax.volumes import filenames, intensity
from contourdiff_jax.volumes.intensity import Preset, Window
from contourdiff_jax.volumes.volume import Assumed, Volume

CLIPPED = 0.01  # more of the body than this outside the preset's range is worth a warning
SAMPLE = 1 << 22  # voxels that percentiles and guesses look at

# In HU: air, or -1024 where a scanner stores no less; soft tissue; fat; muscle and organs.
AIR = (-1100.0, -900.0)
TISSUE = (-200.0, 300.0)
FAT = (-150.0, -50.0)
ORGANS = (-20.0, 90.0)
BONE = 300.0
OFFSET = 1024  # that scanners add to HU, so that no value is negative
SOFT_TISSUE = Window(-200.0, 300.0)  # HU, through which CT is shown

# Pictures that lie on their side: slices that are looked at, pixels of a body in one and of a blur;
# the least correlation with its mirror image, and by how much more than with the other one.
SIDE_SLICES, SIDE_BODY, SIDE_BLUR, SIDE_ALIKE, SIDE_CLEAR = 6, 400, 2.0, 0.8, 0.1
LYING = "pictures seem to lie on their side; see the sheet of `contourdiff inspect`, give --rotate"

FEW_LEVELS = 8  # of grey: an image has more
MOST_LABELS = 256
PATCHES = 0.5  # of the voxels of a label map equal their neighbour; in images 0.4 at most


def sample(array: np.ndarray) -> np.ndarray:
    """The values of at most `SAMPLE` voxels of a volume [X, Y, Z], evenly spread."""
    step = -(-array.size // SAMPLE)
    # A step that shares a factor with a side would meet the same columns again and again.
    while any(math.gcd(step, side) > 1 for side in array.shape):
        step += 1
    return array.reshape(-1)[::step]


def called_by(scan: Scan) -> str | None:
    """'ct', 'mr' or 'labels', as the layout, else the file's name, else its folder's says."""
    for name in (scan.kind, filenames.stem(scan.path), scan.path.parent.name):
        if name and (family := naming.family(name)):
            return "labels" if family == "masks" else family
    return None


def guess(array: np.ndarray, dtype: np.dtype, called: str | None, assumed: Assumed) -> Guess:
    """What a volume [X, Y, Z] stored as `dtype` seems to show, by its values and its names."""
    values = sample(array)
    if levels := _labels(array, values):
        return Guess("labels", None, f"{levels} whole numbers" if levels > 1 else "one value")
    if assumed.range is not None and called != "mr":
        return Guess("ct", "ct", "--range gives its unit")
    air, tissue = _share(values, AIR), _share(values, TISSUE)
    if air > 0.01 and tissue > 0.01:
        return Guess("ct", "ct", f"{air:.0%} air, {tissue:.0%} soft tissue in HU")
    if called == "mr":
        return Guess("mr", "mr", "named so, and no HU")
    if dtype.kind in "iu" and dtype.itemsize == 1:
        return Guess("picture", "mr", "8 bits, no unit")
    if tissue > 0.5 and _share(values, FAT) > 0.02 and values.max() > BONE:
        return Guess("ct", "ct", f"{tissue:.0%} soft tissue in HU, no air")
    if _has_offset(values, strict=called != "ct"):
        return Guess("ct", "ct", f"HU + {OFFSET}", OFFSET)
    return Guess("mr", "mr", "neither HU nor labels")


def doubts(
    preset: Preset, assumed: Assumed, volume: Volume, window: Window, inside: np.ndarray
) -> list[str]:
    """Why the values of a volume can hardly be what a preset takes them for, one line each.

    Args:
      preset: of the volume.
      assumed: what pictures do not say themselves.
      volume: its values in native units.
      window: of the volume by its preset.
      inside: [X, Y, Z] bool, the body.
    """
    lines = []
    seems = guess(volume.array, volume.array.dtype, None, assumed)
    if seems.preset != preset.modality or seems.offset:
        looks = f"{seems.modality} ({seems.reason}); see `contourdiff inspect`"
        lines.append(f"taken for {preset.name}, but its values look like {looks}")
    if preset.percentiles is not None:  # MR is clipped at its own, by design
        return lines
    values = preset.values(volume.array[inside], window)
    outside = (values < preset.storage.low) | (values > preset.storage.high)
    if outside.sum() > CLIPPED * outside.size:
        storage = f"{preset.storage.low:g} to {preset.storage.high:g}"
        lines.append(f"{outside.mean():.1%} of the body lies outside {storage} and is clipped")
    return lines


def unseen(preset: Preset, volume: Volume, window: Window, inside: np.ndarray) -> list[str]:
    """What of a volume no model of its preset draws, a line; arguments as of `doubts`."""
    if preset.percentiles is not None:
        return []
    values, image = preset.values(volume.array[inside], window), preset.image
    share = float(np.mean((values < image.low) | (values > image.high)))
    wider = [it for it in intensity.PRESETS.values() if it.modality == preset.modality]
    widest = max(wider, key=lambda it: it.image.high)
    if share <= CLIPPED or widest is preset:
        return []
    return [
        f"{share:.1%} of the body lies outside {image.low:g} to {image.high:g} HU, which is all "
        f"that a model draws; --preset={widest.name} reaches {widest.image.high:g}"
    ]


def lies(array: np.ndarray, body: np.ndarray) -> bool:
    """Whether axial pictures [X, Y, Z] seem to lie on their side, by where their body [..] is.

    People are symmetric from left to right: where the mirror says from top to bottom, and clearly
    so, they are lying. Of 959 real series that stand, coronal and sagittal ones among them, none is
    taken for lying, all of 10 that lie are, and 283 of 479 axial ones that were laid down
    (experiments/027_mr_to_ct).
    """
    alike = []
    for number in np.flatnonzero(body.any((0, 1)))[:: -(-body.shape[2] // SIDE_SLICES)]:
        inside = body[:, :, number] > 0
        if inside.sum() < SIDE_BODY:
            continue
        box = tuple(
            slice(*(np.flatnonzero(inside.any(1 - axis))[[0, -1]] + (0, 1))) for axis in (0, 1)
        )
        shown = np.where(inside, array[:, :, number], 0.0)[box]
        shown = ndimage.gaussian_filter(shown, SIDE_BLUR)
        if shown.std():
            alike.append(
                [np.corrcoef(shown.ravel(), np.flip(shown, a).ravel())[0, 1] for a in (0, 1)]
            )
    across, down = np.mean(alike, 0) if alike else (0, 0)
    return bool(down > SIDE_ALIKE and down > across + SIDE_CLEAR)


def _share(values: np.ndarray, interval: tuple[float, float]) -> float:
    low, high = interval
    return float(np.mean((values >= low) & (values <= high)))


def _labels(array: np.ndarray, values: np.ndarray) -> int:
    """How many labels a label map [X, Y, Z] has; 0 where it is not one.

    Few whole numbers, and they lie in patches: 8-bit images have as few, but noise between them.
    """
    if values.min() < 0 or (values != np.rint(values)).any():
        return 0
    levels, counts = np.unique(values, return_counts=True)
    if levels.size > MOST_LABELS:
        return 0
    if levels.size > FEW_LEVELS:
        # In images too there are patches of nothing and of all that a window saturates.
        plain = levels[np.argsort(counts)[-2:]]
        planes = array[:, :, :: -(-array.shape[2] // 16)]
        if len(planes) == 1:  # a sagittal slice has neighbours along y alone
            planes = planes[0]
        varied = ~np.isin(planes, plain)
        alike = (planes[1:] == planes[:-1])[varied[1:] | varied[:-1]]
        if not alike.sum() > PATCHES * alike.size:
            return 0
    return levels.size


def _has_offset(values: np.ndarray, strict: bool) -> bool:
    """Whether values look like HU + 1024: none negative, some air, and a peak of soft tissue.

    The peak is narrow, and there is bone: this is how the strict test tells it from MR of 12 bits.
    """
    solid = values[values > AIR[1] + OFFSET] - OFFSET
    if values.min() < 0 or not 0 < solid.size < 0.99 * values.size:
        return False
    if not strict:
        return _share(solid, TISSUE) > 0.25
    return _share(solid, ORGANS) > 0.25 and 0 < np.mean(solid > BONE) < 0.3


def window_of(values: np.ndarray, guessed: Guess) -> Window | None:
    """Through which a scan is shown: CT's soft tissue, else what the preset makes of it."""
    if guessed.modality == "labels":
        return None
    if guessed.modality == "ct":
        return Window(SOFT_TISSUE.low + guessed.offset, SOFT_TISSUE.high + guessed.offset)
    try:
        return intensity.preset("mr").volume_window(values)
    except InputError:  # nearly constant
        return Window(float(values.min()), float(values.max()) + 1)
