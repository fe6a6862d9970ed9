# SPDX-License-Identifier: Apache-2.0
"""How contours lie in the body, and how far those of two domains are apart: the gap.

A model that was trained on the contours of one domain is given those of another. Nothing pairs the
two domains, so that all there is to compare is how contours lie in the body:

  layers  how far in the second and the third contour lie behind the first, on rays from outside.
          They tell skin from skull and skull from brain: where the skin is not drawn, the skull is
          taken for it; where it is drawn twice, its second line is. Only distances between contours
          count: the border of a body mask lies a pixel further in or out in another modality.
  shells  how much contour runs along the body's outline, in shells of depth below it.

Each is a distance of distributions, divided by the distance of a subject of the target from the
others: at 1, the source is as unlike the target as the target's subjects are unlike each other. The
gap is the geometric mean of both. How well it ranks settings is measured in experiments/009_gap;
what it cannot see are contours that look right and follow the wrong border.

Shapes: N slices, H rows, W columns; S shells, L lengths. Lengths are counted in units of about 1/35
of the body's radius, whole pixels: 2.4 mm in a head.
"""

import cv2
import numpy as np
from scipy import ndimage
from scipy.spatial.distance import jensenshannon

STRUCTURAL_BIAS = "2 sum |s - t| / sum (s + t); s, t: mean body masks of source and target"
RADIUS = 35  # units to the body's radius
SHELLS = (3, 6, 10, 18)  # units below the outline, where one shell ends and the next begins
OUTSIDE = 2  # pixels around the body mask in which a contour is one of the body
RAYS = 128  # from a slice's centre
FARTHEST = RADIUS  # units; contours that are further behind the first, or missing, lie this far
LENGTHS = 2 ** np.arange(12)  # units that part pieces of contour by their length
LEAST_BODY = 0.02  # of a slice's pixels; a slice with less body in it is left out
PARTS = ("layers", "shells")


def structural_bias(source, target) -> float:
    """The distance of two domains' mean body masks, as a share of the mean body.

    B = 2 sum_x |s(x) - t(x)| / sum_x (s(x) + t(x)), with s(x) the share of the source's slices,
    and t(x) of the target's, that have body at pixel x. It is 0 where the bodies lie alike and 2
    where they never meet. ContourDiff (Chen et al., MELBA 2025:031) reports a number of this kind;
    its formula is not published, and ours is not to be compared with it.

    Args:
      source, target: body masks [N, H, W] of slices that show a body, on one grid.
    """
    s, t = (np.asarray(masks, bool).mean(0) for masks in (source, target))
    return float(2 * np.abs(s - t).sum() / (s + t).sum())


def unit(masks) -> int:
    """Pixels in a unit of length, from body masks [N, H, W]."""
    areas = np.count_nonzero(masks, axis=(1, 2))
    radius = np.sqrt(areas[areas > 0].mean() / np.pi) if areas.any() else 0
    return max(1, round(radius / RADIUS))


# --------------------------------------------------------------------------------------------------
# Measuring
# --------------------------------------------------------------------------------------------------


def frames(masks, unit: int) -> list[dict | None]:
    """What `measure` needs of each of the masks [N, H, W], None where there is no body.

    It does not depend on the contours, and so serves for all settings that are compared.
    """
    return [_frame(np.asarray(mask, bool), unit) for mask in masks]


def _frame(mask: np.ndarray, unit: int) -> dict | None:
    if mask.mean() < LEAST_BODY:
        return None
    # Where the picture ends the body ends too.
    padded = np.pad(mask, 1)
    inside, outside = (
        cv2.distanceTransform(m.view(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
        for m in (padded, ~padded)
    )
    depth = inside - outside
    body = depth >= -OUTSIDE
    reach = int(np.hypot(*mask.shape))
    y, x = np.argwhere(mask).mean(0)
    angles = 2 * np.pi * np.arange(RAYS)[:, None] / RAYS
    radii = np.arange(reach, -1, -1)
    rays = np.rint([y + radii * np.sin(angles), x + radii * np.cos(angles)]).astype(int) + 1
    return {
        "unit": unit,
        "body": body,
        "shell": np.digitize(depth / unit, SHELLS),
        "inward": _direction(cv2.GaussianBlur(depth, (0, 0), 1.5)),
        # [2, RAYS, reach + 1] pixels from outside in, of a picture with a border of one pixel.
        "rays": np.clip(rays, 0, np.array(mask.shape)[:, None, None] + 1),
    }


def measure(contours, frames: list[dict | None]) -> dict[str, np.ndarray]:
    """Counts of contours [N, H, W] of 0 and 1; those of several subjects add up.

    Returns:
      body: [S] pixels of the body in every shell.
      contour: [S] those of them on a contour.
      along: [S] the same, each weighted by the squared cosine of the angle between the contour and
        the outline.
      layers: [2, FARTHEST + 1] rays by the units that their second, and their third contour lies
        behind the first.
      pieces: [L] contour pixels by the length of the connected piece that they are in.
      empty: [1] sum over the body of the distance to the nearest contour, in units.
    """
    shells = len(SHELLS) + 1
    counts = {
        "body": np.zeros(shells),
        "contour": np.zeros(shells),
        "along": np.zeros(shells),
        "layers": np.zeros((2, FARTHEST + 1)),
        "pieces": np.zeros(len(LENGTHS) + 1),
        "empty": np.zeros(1),
    }
    for contour, frame in zip(contours, frames, strict=True):
        if frame is None:
            continue
        body, shell = frame["body"], frame["shell"]
        edge = (np.asarray(contour) > 0) & body
        along = np.cos(_normal(edge) - frame["inward"]) ** 2
        counts["body"] += np.bincount(shell[body], minlength=shells)
        counts["contour"] += np.bincount(shell[edge], minlength=shells)
        counts["along"] += np.bincount(shell[edge], along[edge], minlength=shells)
        for behind, histogram in zip(_behind(edge, frame), counts["layers"], strict=True):
            histogram += np.bincount(behind, minlength=FARTHEST + 1)
        _, _, pieces, _ = cv2.connectedComponentsWithStats(edge.view(np.uint8), connectivity=8)
        pixels = pieces[1:, cv2.CC_STAT_AREA]
        length = np.digitize(pixels / frame["unit"], LENGTHS)
        counts["pieces"] += np.bincount(length, pixels, minlength=len(LENGTHS) + 1)
        counts["empty"] += _nearest(edge)[body].sum() / frame["unit"]
    return counts


def _direction(image: np.ndarray) -> np.ndarray:
    """Angle [H, W] of an image's gradient."""
    return np.arctan2(*(cv2.Sobel(image, cv2.CV_32F, *order) for order in ((0, 1), (1, 0))))


def _normal(edge: np.ndarray) -> np.ndarray:
    """Angle [H, W] across the contours: of the first axis of the structure tensor."""
    soft = cv2.GaussianBlur(edge.astype(np.float32), (0, 0), 1)
    x, y = (cv2.Sobel(soft, cv2.CV_32F, *order) for order in ((1, 0), (0, 1)))
    xx, yy, xy = (cv2.GaussianBlur(product, (0, 0), 1.5) for product in (x * x, y * y, x * y))
    return np.arctan2(2 * xy, xx - yy) / 2


def _behind(edge: np.ndarray, frame: dict) -> np.ndarray:
    """[2, RAYS] units from the first contour of every ray to the second, and to the third."""
    met = _along(np.pad(edge, 1), *frame["rays"])
    met[:, 1:] &= ~met[:, :-1]  # where a contour begins
    order = met.cumsum(1)
    missing = 2 * met.shape[1] + 2 * FARTHEST * frame["unit"]
    first, *others = (
        np.where(order[:, -1] >= k, (order >= k).argmax(1), missing) for k in (1, 2, 3)
    )
    units = np.rint((others - np.where(first == missing, 0, first)) / (2 * frame["unit"]))
    return np.minimum(units, FARTHEST).astype(int)


def _along(edge: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Contours along rays of n pixels, [RAYS, 2 n - 1] bool: the pixels, and what is between two.

    A ray slips through between two pixels that meet at a corner, if it is not looked at there.
    """
    met = np.empty((len(rows), 2 * rows.shape[1] - 1), bool)
    met[:, ::2] = edge[rows, columns]
    met[:, 1::2] = edge[rows[:, :-1], columns[:, 1:]] & edge[rows[:, 1:], columns[:, :-1]]
    met[:, 1::2] |= met[:, :-1:2] & met[:, 2::2]
    return met


def _nearest(edge: np.ndarray) -> np.ndarray:
    """Distance [H, W] in pixels to the nearest contour; where there is none, the diagonal."""
    if not edge.any():
        return np.full(edge.shape, np.hypot(*edge.shape))
    return cv2.distanceTransform((~edge).view(np.uint8), cv2.DIST_L2, 5)


# --------------------------------------------------------------------------------------------------
# Comparing
# --------------------------------------------------------------------------------------------------


def total(subjects: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The counts of several subjects together."""
    return {name: sum(counts[name] for counts in subjects) for name in subjects[0]}


def statistics(counts: dict[str, np.ndarray], width: float) -> dict[str, float]:
    """The counts as numbers to read, where a unit is `width` wide, in mm for example.

    Returns:
      density: share of the body that is contour; density_1, ..: the same in every shell, from
      outside in; along: how much of the contours runs along the outline, 0.5 where they run
      anywhere; second, third: median distance of the second and third contour behind the first;
      hole: mean distance to the nearest contour; piece: length of the connected piece that half of
      the contour pixels exceed, to a factor of two.
    """
    body, contour = counts["body"].sum(), max(counts["contour"].sum(), 1)
    shells = counts["contour"] / np.maximum(counts["body"], 1)
    second, third = (_median(histogram) for histogram in counts["layers"])
    values = {
        "density": counts["contour"].sum() / body,
        **{f"density_{k}": density for k, density in enumerate(shells, 1)},
        "along": counts["along"].sum() / contour,
        "second": second * width,
        "third": third * width,
        "hole": counts["empty"][0] / body * width,
        "piece": LENGTHS[max(_median(counts["pieces"]) - 1, 0)] * width,
    }
    return {name: float(value) for name, value in values.items()}


def _median(histogram: np.ndarray) -> int:
    """The bin that the median is in."""
    return int(np.searchsorted(histogram.cumsum(), histogram.sum() / 2))


def differences(some: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> dict[str, float]:
    """How unlike the counts of two groups of subjects are, by part: 0 where they are equal.

    layers: Jensen-Shannon distance of the two histograms, smoothed by a unit, and averaged over the
    second and third contour. shells: mean over the shells of the absolute difference of the
    density of contour along the outline.
    """
    both = (some, others)
    layers = [ndimage.gaussian_filter1d(c["layers"], 1, axis=1, mode="nearest") for c in both]
    shells = (some["body"] > 0) & (others["body"] > 0)
    along = [counts["along"][shells] / counts["body"][shells] for counts in both]
    return {
        "layers": float(jensenshannon(*layers, axis=1).mean()),
        "shells": float(np.abs(along[0] - along[1]).mean()),
    }


def yardstick(target: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """How unlike a subject of the target, of two or more, is to the others on average, by part."""
    unlike = [
        differences(subject, total(target[:i] + target[i + 1 :]))
        for i, subject in enumerate(target)
    ]
    return {part: float(np.mean([subject[part] for subject in unlike])) for part in PARTS}


def gap(
    source: dict[str, np.ndarray], target: dict[str, np.ndarray], yardstick: dict[str, float]
) -> dict[str, float]:
    """The gap of a source's counts to the target's, and its parts, in units of the yardstick."""
    unlike = differences(source, target)
    parts = {part: unlike[part] / yardstick[part] for part in PARTS}
    return {"gap": float(np.sqrt(parts["layers"] * parts["shells"])), **parts}
