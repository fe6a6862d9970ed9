# SPDX-License-Identifier: Apache-2.0
"""Scores of an image against its truth: MAE, PSNR and SSIM, over the image and inside a mask.

Legend: H rows, W columns. SSIM is that of Wang et al. 2004 (IEEE TIP 13(4):600-612) with
scikit-image's defaults: a uniform 7 x 7 window, sample covariance, K1 = 0.01 and K2 = 0.03. The
range of the data is the caller's to state, never guessed from the images: a range taken from them
moves PSNR and SSIM with every outlier (Dohmen et al., arXiv 2408.06075).
"""

import itertools

import numpy as np
from skimage.metrics import structural_similarity

SSIM_WINDOW = 7
PSNR_CAP = 100.0  # dB


def scores(image, truth, data_range, mask=None):
    """`mae`, `psnr`, `ssim` of an image, and with a mask `mae_mask`, `psnr_mask`, `ssim_mask` too.

    Args:
      image: [H, W], at least 7 x 7.
      truth: [H, W] in the same units.
      data_range: width of the interval the values lie in, e.g. 1 for images scaled to [0, 1].
      mask: [H, W] bool with at least one pixel set, or None.

    Returns:
      A dict of floats. MAE is in the units of the images; PSNR is in dB and inside the mask comes
      from the mean squared error there. SSIM over the image leaves out a border of half a window,
      as scikit-image does; inside the mask it is the mean of the SSIM map there.

    Raises:
      ValueError: shapes that differ or are smaller than the window, or an empty mask.
    """
    image, truth = np.asarray(image, np.float64), np.asarray(truth, np.float64)
    if image.shape != truth.shape:
        raise ValueError(f"image {image.shape} and truth {truth.shape} differ in shape")
    error = image - truth
    ssim, ssim_map = structural_similarity(
        image, truth, win_size=SSIM_WINDOW, data_range=data_range, full=True
    )
    values = {
        "mae": float(np.abs(error).mean()),
        "psnr": psnr(np.square(error).mean(), data_range),
        "ssim": float(ssim),
    }
    if mask is not None:
        mask = np.asarray(mask, bool)
        if mask.shape != image.shape or not mask.any():
            raise ValueError(f"mask {mask.shape} is empty or not of image shape {image.shape}")
        values |= {
            "mae_mask": float(np.abs(error[mask]).mean()),
            "psnr_mask": psnr(np.square(error[mask]).mean(), data_range),
            "ssim_mask": float(ssim_map[mask].mean()),
        }
    return values


def shifted(image, truth, data_range, mask, reach: tuple[int, int]) -> dict[str, float]:
    """The scores inside a mask where an image fits its truth best, of all places near its own.

    A truth that is registered to a few pixels is missed by an image that is right. So the image is
    moved by whole pixels, up to `reach` either way along the two axes, its border continued; of the
    places that with the highest SSIM counts, for all three scores.

    Args:
      image, truth, data_range, mask: as for `scores`, mask not None.

    Returns:
      `ssim_shifted`, `psnr_shifted` and `mae_shifted`.
    """
    image = np.asarray(image, np.float64)
    padded = np.pad(image, [(pixels, pixels) for pixels in reach], mode="edge")
    height, width = image.shape
    rows, columns = (range(2 * pixels + 1) for pixels in reach)
    at_each = (
        scores(padded[row : row + height, column : column + width], truth, data_range, mask)
        for row, column in itertools.product(rows, columns)
    )
    best = max(at_each, key=lambda values: values["ssim_mask"])
    return {f"{name}_shifted": best[f"{name}_mask"] for name in ("ssim", "psnr", "mae")}


def psnr(mean_squared_error, data_range):
    """Peak signal-to-noise ratio in dB, 10 log10(data_range^2 / MSE), at most `PSNR_CAP`.

    Two equal images have an infinite ratio, which no average survives and JSON cannot hold. The
    cap, an error of a hundred-thousandth of the range, is below what 16-bit storage tells apart.
    """
    floor = data_range**2 * 10 ** (-PSNR_CAP / 10)
    return float(10 * np.log10(data_range**2 / max(mean_squared_error, floor)))
