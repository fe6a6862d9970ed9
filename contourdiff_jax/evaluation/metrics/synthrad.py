# SPDX-License-Identifier: Apache-2.0
"""Scores of a volume inside a mask as the SynthRAD challenges define them.

Definitions are those of the code that ranks SynthRAD2025 (github.com/SynthRAD2025/evaluation,
image_metrics.py at 17cac47), and of SynthRAD2023 for SSIM (SynthRAD2023/metrics at 3200007, whose
range ended at 3000 HU; here it is that of 2025). L is the width of the range; x and y are values
clipped to the range, less its lowest value, and 0 outside the mask:

    MAE      mean |image - truth| in the mask, of values that are not clipped
    PSNR     10 log10(L^2 / mean (x - y)^2), in the mask
    SSIM     mean over the mask of the map s(x, y), in windows of 7 x 7 x 7 voxels
    MS-SSIM  product over five scales j of the mean over the mask of max(s_j, 0)^w_j

Weights w are those of Wang et al. 2003 (Asilomar, "Multiscale structural similarity"), who take the
power of the mean, and luminance at the coarsest scale alone. A volume whose side is below 97 voxels
is continued by its border. Masked voxels within half a window of the border do not count.

Shapes: [X, Y, Z] volumes, in the order of voxels that the challenge's files have: which voxels a
coarser scale keeps depends on it.
"""

import numpy as np
from skimage.metrics import structural_similarity

from contourdiff_jax.evaluation.metrics import paired

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW = 7  # voxels
SIDE = (WINDOW - 1) * 2 ** (len(WEIGHTS) - 1) + 1  # 97: at the coarsest scale a window fits
# What five scales of the 11 x 11 window of the original take. Of smaller slices the coarsest scales
# would see little but their continued borders, so there is no MS-SSIM.
LEAST_SIDE = 161


def scores(image, truth, mask, low: float, high: float, axis: int) -> dict[str, float]:
    """`synthrad_mae`, `synthrad_psnr`, `synthrad_ssim` and `synthrad_ms_ssim` of a volume.

    Args:
      image, truth: [X, Y, Z] in one unit.
      mask: [X, Y, Z] bool with at least one voxel set.
      low, high: the range of the data, -1024 and 3071 HU in the challenge.
      axis: of the array, along which slices follow one another.

    Returns:
      A dict of floats: MAE in the unit, PSNR in dB, at most paired.PSNR_CAP. A score that the
      volume does not define is left out: SSIM where a side is shorter than its window, MS-SSIM
      where a side of a slice is below LEAST_SIDE, either where the mask touches nothing but the
      border.
    """
    image, truth = (np.asarray(values, np.float64) for values in (image, truth))
    x, y = (np.where(mask, np.clip(values, low, high) - low, 0) for values in (image, truth))
    values = {
        "synthrad_mae": float(np.abs(image - truth)[mask].mean()),
        "synthrad_psnr": paired.psnr(np.square(x - y)[mask].mean(), high - low),
    }
    if min(mask.shape) >= WINDOW and _inner(mask).any():
        values["synthrad_ssim"] = float(_map(x, y, high - low)[_inner(mask)].mean())
    if min(np.delete(mask.shape, axis)) >= LEAST_SIDE:
        value = _ms_ssim(*(_continued(array) for array in (x, y, mask)), high - low)
        values |= {} if value is None else {"synthrad_ms_ssim": value}
    return values


def _ms_ssim(x, y, mask, data_range: float) -> float | None:
    product = 1.0
    for weight in WEIGHTS:
        inside = _inner(mask)
        if not inside.any():
            return None
        # With C3 = C2 / 2, luminance x contrast x structure is SSIM: one power serves all three.
        similar = np.maximum(_map(x, y, data_range)[inside], 0) ** weight
        product *= min(float(similar.mean()), 1.0)
        x, y, mask = _halved(x), _halved(y), mask[::2, ::2, ::2]
    return product


def _map(x, y, data_range: float) -> np.ndarray:
    """SSIM of every window that lies within the volume."""
    options = {"win_size": WINDOW, "data_range": data_range, "full": True}
    return _inner(structural_similarity(x, y, **options)[1])


def _inner(array) -> np.ndarray:
    return array[(slice(WINDOW // 2, -(WINDOW // 2)),) * array.ndim]


def _continued(array) -> np.ndarray:
    """The array with each side at least SIDE long, repeating its border."""
    short = [max(SIDE - side, 0) for side in array.shape]
    return np.pad(array, [(n // 2, n - n // 2) for n in short], mode="edge")


def _halved(array) -> np.ndarray:
    """Every other voxel, averaged along each axis with the one before it; 0 before the first."""
    for axis in range(array.ndim):
        array = np.moveaxis(array, axis, 0)
        before = np.zeros_like(array[::2])
        before[1:] = array[1:-1:2]
        array = np.moveaxis((array[::2] + before) / 2, 0, axis)
    return array
