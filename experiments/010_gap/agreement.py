# SPDX-License-Identifier: Apache-2.0
"""Do contours that look past contrast agree better across modalities? Measured without training.

    python agreement.py FOLD [FOLD ..]

FOLD is a folder of the ablation (OUT/fold0) or has its heads/test_ct and heads/test_mr. Contours
of the CT and of the T1 of the same head are taken in one way; the share of them that lies within a
pixel of the other's (F-measure) is compared with what the same contours have with those of another
head: chance. Thresholds are set so that as many pixels are contour in every way. Prints a table and
writes agreement.json beside this file.
"""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
from scipy import ndimage

from contourdiff_jax.contours import opencv
from contourdiff_jax.contours import settings as contour_settings
from contourdiff_jax.contours.agreement import contour_agreement
from contourdiff_jax.evaluation.metrics.bootstrap import interval
from contourdiff_jax.volumes import intensity, io, masks
from contourdiff_jax.volumes.grid import Grid

GRID = Grid("axial", 2.4, 96)
DENSITY = 0.2  # of the body's pixels, about what the default has
WINDOW = 6.0  # pixels, the Gaussian over which contrast is measured
WAVELENGTHS = (4.0, 8.0)  # pixels, of the band-pass filters
EVERY = 3  # of the slices
LEAST_BODY = 0.1  # of a slice


def curve(grey, mask):
    """The grey itself."""
    return grey


def local_contrast(grey, mask):
    """Less the mean and over the standard deviation of what is around, inside the body."""
    inside = mask.astype(float)
    weight = np.maximum(ndimage.gaussian_filter(inside, WINDOW), 1e-3)
    mean = ndimage.gaussian_filter(grey * inside, WINDOW) / weight
    square = ndimage.gaussian_filter(np.square(grey) * inside, WINDOW) / weight
    deviation = np.sqrt(np.maximum(square - np.square(mean), 0))
    return np.clip(0.5 + (grey - mean) / (6 * (deviation + 0.02)), 0, 1) * inside


def local_phase(grey, mask):
    """The phase of the monogenic signal (Felsberg and Sommer 2001, IEEE TSP 49(12)).

    It is that of an edge wherever there is one, whatever the contrast; what is below the noise is
    drawn to the middle. Log-Gabor band-pass filters (Kovesi 1999), mean of the wavelengths.
    """
    frequency = [np.fft.fftfreq(n)[(...,) + (None,) * (1 - i)] for i, n in enumerate(grey.shape)]
    radius = np.hypot(*frequency)
    radius[0, 0] = 1.0
    riesz = (1j * frequency[0] - frequency[1]) / radius
    spectrum, total = np.fft.fft2(grey * mask), 0.0
    for wavelength in WAVELENGTHS:
        band = np.exp(-(np.log(radius * wavelength) ** 2) / (2 * np.log(0.55) ** 2))
        band[0, 0] = 0.0
        even = np.fft.ifft2(spectrum * band).real
        odd = np.abs(np.fft.ifft2(spectrum * band * riesz))
        energy = np.hypot(even, odd)
        total = total + np.arctan2(even, odd) / np.pi * energy / (energy + 0.01)
    return np.clip(0.5 + total / len(WAVELENGTHS), 0, 1) * mask


SOFT = (-100.0, 200.0)  # HU
WAYS = {  # name: (way, window of the CT; None: the default's curve)
    "default": (curve, None),
    "local contrast": (local_contrast, None),
    "local phase": (local_phase, None),
    "soft tissue window": (curve, SOFT),
    "local contrast, soft tissue window": (local_contrast, SOFT),
    "local phase, soft tissue window": (local_phase, SOFT),
}


def head(path: Path, name: str, soft=None) -> list[tuple[np.ndarray, np.ndarray]]:
    """(grey [H, W] in [0, 1], mask [H, W]) of slices of a volume on the grid."""
    preset = intensity.preset(name)
    volume = io.read(path)
    window = preset.window_of(volume)
    volume, resampling = GRID.fit_volume(volume)
    body = resampling.masks(masks.body_mask(volume.array, volume.affine, preset.modality) > 0)
    values = preset.values(volume.array, window)
    if soft:
        greys = np.clip((resampling.slices(values, preset.air) - soft[0]) / np.ptp(soft), 0, 1)
    elif name == "ct":
        greys = opencv.pictures(values, resampling, contour_settings.CT) / 255
    else:
        greys = np.clip(resampling.slices(values, preset.air), 0, 1)
    return list(zip(greys, body, strict=True))[::EVERY]


def edges(way, slices) -> list[np.ndarray]:
    """Contours of slices, with one threshold for them all so that DENSITY is met."""
    pictures = [np.uint8(255 * way(grey, mask)) for grey, mask in slices]
    pictures = [cv2.GaussianBlur(picture, (3, 3), 0) for picture in pictures]
    near = [ndimage.binary_dilation(mask, iterations=2) for _, mask in slices]
    area = sum(mask.sum() for mask in near)

    def drawn(high):
        every = (cv2.Canny(picture, 0.4 * high, high) > 0 for picture in pictures)
        return [edge & mask for edge, mask in zip(every, near, strict=True)]

    highs = np.arange(10, 1000, 5)
    low, high = 0, len(highs) - 1
    while low < high:  # the density falls as the threshold rises
        middle = (low + high) // 2
        dense = sum(edge.sum() for edge in drawn(highs[middle])) > DENSITY * area
        low, high = (middle + 1, high) if dense else (low, middle)
    return drawn(highs[low])


def agreement(ours, theirs, shown) -> float:
    both = zip(ours, theirs, shown, strict=False)  # another head may have fewer slices
    scores = [contour_agreement(a, b)["contour_f1"] for a, b, s in both if s]
    return float(np.mean(scores))


def main(folds: list[Path]) -> None:
    paths = sorted(path for fold in folds for path in (fold / "heads/test_ct").iterdir())
    cts = {window: [head(path, "ct", window) for path in paths] for window in (None, SOFT)}
    mr = [head(Path(str(path).replace("_ct", "_mr")), "mr") for path in paths]
    result = {"density": DENSITY, "heads": [path.name for path in paths], "ways": {}}
    for name, (way, window) in WAYS.items():
        ct = cts[window]
        of_ct, of_mr = ([edges(way, slices) for slices in every] for every in (ct, mr))
        own, other = [], []
        for k, slices in enumerate(ct):
            shown = [mask.mean() > LEAST_BODY for _, mask in slices]
            own.append(agreement(of_ct[k], of_mr[k], shown))
            other.append(agreement(of_ct[k], of_mr[(k + 1) % len(ct)], shown))
        own, other = np.array(own), np.array(other)
        result["ways"][name] = {
            "f1": interval(own),
            "f1 with another head": interval(other),
            "above chance": interval((own - other) / (1 - other)),
        }
        print(name, json.dumps(result["ways"][name]))
    (Path(__file__).parent / "agreement.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main([Path(fold) for fold in sys.argv[1:]])
