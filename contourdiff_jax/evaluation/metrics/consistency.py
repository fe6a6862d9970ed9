# SPDX-License-Identifier: Apache-2.0
"""Coherence of a volume along its slicing axis: does what was drawn slice by slice fit together?

Anatomy goes on from slice to slice; what is drawn anew for each slice does not, and flickers. How
much of it a right volume has depends on the anatomy, the spacing and the sharpness, so numbers that
need no truth are to be read beside those of real volumes with the same gaps between slices.
SIMOS (arXiv 2509.22049) measures the consistency of slices too; these are not its numbers.

Legend: N slices, H rows, W columns; x_k slice k, m_k its body, g_k the gap [mm] between slices k
and k + 1. All images are in one unit. A number that the slices do not define is None: one slice has
no difference, two have no flicker, and slices without a body have nothing.
"""

import numpy as np
from scipy import ndimage

from contourdiff_jax.evaluation.metrics import paired


def along_axis(slices, masks, gaps, spacing):
    """How slices follow one another, and how sharp they are, without a truth.

        slice_difference  mean of |x_{k+1} - x_k| / g_k inside both bodies, per mm
        gradient_ratio    slice_difference / mean of |difference of neighbouring pixels| / spacing
        flicker           mean of |x_{k-1} - 2 x_k + x_{k+1}| inside the three bodies
        gradient_energy   mean of (difference of neighbouring pixels / spacing)^2, per mm^2
        level_step        sqrt(sum_k n_k d_k^2 / sum_k n_k), d_k the median of x_{k+1} - x_k over
                          the n_k pixels inside both bodies

    Flicker is twice the distance of a slice from the straight line between its neighbours, which is
    what it means where gaps are uneven. Noise of standard deviation s that is drawn anew for each
    slice adds sqrt(6) s to the second difference; what is linear along the axis adds nothing.
    The median d_k sees most pixels stay the same tissue, and so a change of the whole slice's
    intensity, not the structures that come and go. The energy of the gradients within slices falls
    with a blur, as of images that are a mean of what could be, and rises with noise.

    Args:
      slices: [N, H, W]; masks: [N, H, W] bool, the body.
      gaps: [N - 1], mm between neighbouring slices.
      spacing: (rows, columns), mm.

    Returns:
      A dict of floats or None.
    """
    slices, masks = np.asarray(slices, np.float32), np.asarray(masks, bool)
    both = masks[1:] & masks[:-1]
    steps = [
        (after - before)[mask]
        for before, after, mask in zip(slices[:-1], slices[1:], both, strict=True)
    ]
    through = _mean(np.abs(step) / gap for step, gap in zip(steps, gaps, strict=True))
    gradients = [
        part
        for image, mask in zip(slices, masks, strict=True)
        for part in _gradients(image, mask, spacing)
    ]
    within = _mean(gradients)
    return {
        "slice_difference": through,
        "gradient_ratio": through / within if through is not None and within else None,
        "gradient_energy": _mean(map(np.square, gradients)),
        "flicker": _flicker(slices, masks, gaps),
        "level_step": _level(steps, centred=False),
    }


def of_error(slices, truth, masks, gaps):
    """How the error e = x - truth goes along the axis: anatomy drops out, flicker and drift stay.

        error_flicker  flicker of e; an error that is smooth along the axis has little
        error_drift    sqrt(sum_k n_k (l_k - l)^2 / sum_k n_k), l_k the median of e over the n_k
                       pixels of the body in slice k, and l the mean of l_k weighted by n_k

    Arguments and result as of `along_axis`; truth: [N, H, W].
    """
    error = np.asarray(slices, np.float32) - np.asarray(truth, np.float32)
    masks = np.asarray(masks, bool)
    levels = [image[mask] for image, mask in zip(error, masks, strict=True)]
    shown = sum(level.size > 0 for level in levels)
    return {
        "error_flicker": _flicker(error, masks, gaps),
        "error_drift": _level(levels, centred=True) if shown > 1 else None,
    }


def reformatted(planes, truth, masks, spacing):
    """Errors in planes that cut across the slices, each the mean over the planes.

    Args:
      planes, truth: [n, R, C] of values in [0, 1]; masks: [n, R, C] bool, none of them empty.
      spacing: (rows, columns), mm. MAE and PSNR are of these voxels; SSIM, whose window is square,
        is of planes interpolated linearly to square pixels of the finer spacing.

    Returns:
      `mae_mask`, `psnr_mask`, `ssim_mask`; a dict of floats. SSIM is None for planes that are
      narrower than its window.
    """
    planes, truth = (np.asarray(array, np.float32) for array in (planes, truth))
    errors = [np.abs(p - t)[m] for p, t, m in zip(planes, truth, masks, strict=True)]
    values = {
        "mae_mask": float(np.mean([error.mean() for error in errors])),
        "psnr_mask": float(np.mean([paired.psnr(np.square(e).mean(), 1.0) for e in errors])),
        "ssim_mask": None,
    }
    square = [1, *(size / min(spacing) for size in spacing)]
    how = {"mode": "nearest", "grid_mode": True}
    planes, truth = (ndimage.zoom(array, square, order=1, **how) for array in (planes, truth))
    if min(planes.shape[1:]) >= paired.SSIM_WINDOW:
        masks = ndimage.zoom(np.asarray(masks, np.uint8), square, order=0, **how) > 0
        scores = [
            paired.scores(plane, true, 1.0, mask)["ssim_mask"]
            for plane, true, mask in zip(planes, truth, masks, strict=True)
        ]
        values["ssim_mask"] = float(np.mean(scores))
    return values


def _flicker(slices, masks, gaps):
    """Mean of twice the distance of a slice from the line between its neighbours, in the bodies."""
    inside = masks[:-2] & masks[1:-1] & masks[2:]
    share = np.divide(gaps[:-1], np.add(gaps[:-1], gaps[1:]))  # of the way from k - 1 to k + 1
    return _mean(
        2 * np.abs(slices[k] - (1 - s) * slices[k - 1] - s * slices[k + 1])[mask]
        for k, (s, mask) in enumerate(zip(share.tolist(), inside, strict=True), start=1)
    )


def _gradients(image, mask, spacing):
    """|Difference| per mm of neighbouring rows, then columns, of a slice [H, W], in the body."""
    down = np.abs(image[1:] - image[:-1])[mask[1:] & mask[:-1]]
    across = np.abs(image[:, 1:] - image[:, :-1])[mask[:, 1:] & mask[:, :-1]]
    return down / spacing[0], across / spacing[1]


def _mean(parts):
    """Mean over all elements of an iterable of arrays, None where there is none."""
    total = count = 0
    for part in parts:
        total += part.sum(dtype=np.float64)
        count += part.size
    return float(total / count) if count else None


def _level(parts, *, centred):
    """Root mean square of the medians of arrays, or their standard deviation if `centred`.

    Each counts by its size: the median of a few pixels at the end of a body says little.
    """
    parts = [part for part in parts if part.size]
    if not parts:
        return None
    medians = np.array([np.median(part) for part in parts], np.float64)
    sizes = [part.size for part in parts]
    centre = np.average(medians, weights=sizes) if centred else 0.0
    return float(np.sqrt(np.average(np.square(medians - centre), weights=sizes)))
