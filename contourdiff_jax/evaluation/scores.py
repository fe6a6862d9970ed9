# SPDX-License-Identifier: Apache-2.0
"""Scores: everything that is measured of one case, by slice, method and metric.

Shapes: [X, Y, Z] volumes, [N, H, W] slices, [H, W] one of them, all of values.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from contourdiff_jax.contours import agreement
from contourdiff_jax.errors import InputError
from contourdiff_jax.evaluation.cases import Case, Settings
from contourdiff_jax.evaluation.metrics import consistency, paired, regions, synthrad, uncertainty
from contourdiff_jax.volumes import masks
from contourdiff_jax.volumes.grid import AXES, planes_across
from contourdiff_jax.volumes.intensity import Preset

CHALLENGES = ("synthrad",)
GRIDS = ("source", "model")  # on which images can be compared
LEAST_BODY = 0.01  # of a slice's pixels; with less body in it, it has no score inside the body
TOLERANCE = 1  # pixels that contours may lie apart
AROUND = 5.0  # [mm] of a label's border, within which it stands out from what is around it
ROUNDING = 1e-6  # of a pixel
PLANES = 32  # that a volume is reformatted to in each direction, at most
Own = Callable[[np.ndarray, np.ndarray, np.ndarray], float | None]  # see folder.Request.metrics
WHOLE = ""  # number of the slice of what is measured of a whole volume


def challenge(case: Case, methods: dict[str, np.ndarray]) -> Iterator[tuple[str, dict[str, float]]]:
    """(method, {metric: value}) of SynthRAD's conventions, over the voxels of the body."""
    storage = case.settings.target.storage
    truth, mask = _as_filed(case.truth), _as_filed(case.mask)
    axis = case.resampling.axes[0]
    for method, values in methods.items():
        image = _as_filed(values)
        yield method, synthrad.scores(image, truth, mask, storage.low, storage.high, axis)


def _as_filed(array: np.ndarray) -> np.ndarray:
    """The array with its voxels in the order of the challenge's files, LPS."""
    return array[::-1, ::-1]


def challenge_description(settings: Settings) -> str:
    """How the challenge's scores are taken, in words that a report can print."""
    target, least = settings.target, synthrad.LEAST_SIDE
    low, high = target.storage.low, target.storage.high
    text = (
        f"as SynthRAD2025 scores volumes, on their own voxels inside the body mask: made {low:g} "
        f"outside; PSNR, SSIM and MS-SSIM clipped to {low:g} to {high:g}, data range "
        f"{high - low:g}; SSIM of 7 x 7 x 7 voxels, as in 2023; MS-SSIM of five scales, none where "
        f"a slice has a side below {least} px"
    )
    if target.modality == "ct":
        return (
            text + "; MAE in HU. The challenge's masks are those of its layout, or given by --masks"
        )
    return text + (
        "; 0 and 1 are the ends of the volume's percentile window. The challenge has CT as target "
        "alone, so that these numbers compare with each other and not with its own"
    )


def rows(
    case: Case,
    others: dict[str, np.ndarray],
    grid: str,
    real: list[dict],
    conventional: bool = False,
    shift: float = 0.0,
    own: Mapping[str, Own] | None = None,
) -> list[tuple]:
    """Rows (scan, slice, method, metric, value, seconds) of the translation and of other methods.

    Args:
      case: the translation with what it is compared with.
      others: target values [X, Y, Z] by method.
      grid: on which images are compared, one of GRIDS.
      real: `along_axis` of real volumes to compare coherence with.
      conventional: whether to add the scores of challenges.
      shift: mm to which truths are registered, see paired.shifted; 0: as they lie.
      own: metrics of the user's own of each slice, by name.

    Returns:
      The rows. The slice is WHOLE where a number is one of the whole volume, and what is not
      defined has no row.
    """
    methods = {"translation": case.translation} | others
    # What an image that is right would have: the truth's own contours and coherence.
    right = {} if case.truth is None else {"truth": case.truth}
    measured = []
    if case.truth is not None:
        measured += _images(case, methods, grid, shift, own or {})
    if case.source is not None:
        measured += _contours(case, methods | right)
    measured += _coherence(case, methods | right, real)
    if case.truth is not None:
        measured += _reformatted(case, methods)
        measured += _regions(case, methods)
        if conventional:
            measured += ((m, WHOLE, values) for m, values in challenge(case, methods))
    if case.deviation is not None:
        measured.append(("translation", WHOLE, uncertainty.scores(*ranked(case))))
    seconds = {"translation": case.seconds}
    return [
        (case.name, number, method, metric, value, seconds.get(method))
        for method, number, scores in measured
        for metric, value in scores.items()
        if value is not None
    ]


# ----------------------------------------------------------------------------------------------
# Slices
# ----------------------------------------------------------------------------------------------


def _images(
    case: Case,
    methods: dict[str, np.ndarray],
    grid: str,
    shift: float,
    own: Mapping[str, Own],
) -> Iterator[tuple]:
    """(method, slice, {metric: value}) of the comparison with the truth."""
    target, spacing = case.settings.target, (case.settings.grid.spacing,) * 2
    cut, mask = case.slices, case.body
    if grid == "source":
        cut, mask = case.resampling.planes, case.resampling.planes(case.mask)
        spacing = case.resampling.plane_spacing
    truth, reach = cut(case.truth), tuple(int(shift / side + ROUNDING) for side in spacing)
    if shift and not any(reach):
        raise InputError(f"--shift={shift:g}: less than a pixel, {min(spacing):g} mm")
    for method, values in methods.items():
        for number, image in enumerate(cut(values)):
            yield method, number, _compare(image, truth[number], mask[number], target, reach)
            for name, metric in own.items():
                value = _own(name, metric(image, truth[number], mask[number] > 0), case)
                yield method, number, {name: value}


def _own(name: str, value, case: Case) -> float | None:
    """What a metric of the user's own gives; InputError where that is no number."""
    if value is None:
        return None
    if not np.isscalar(value) or not np.isfinite(value := float(value)):
        raise InputError(
            f"metrics: {name} gives {value!r} of {case.name}; let it give a finite number, or None"
        )
    return value


def _compare(image, truth, mask, target: Preset, reach: tuple[int, int]) -> dict[str, float]:
    """Paired scores of a slice [H, W] of values, with its place or up to `reach` pixels beside."""
    inside = mask if mask.mean() >= LEAST_BODY else None
    fractions = target.image.fraction(image), target.image.fraction(truth)
    scores = paired.scores(*fractions, 1.0, inside)
    if any(reach) and inside is not None:
        scores |= paired.shifted(*fractions, 1.0, inside, reach)
    if target.modality == "ct":
        # HU within what a scanner stores: some fill what they do not see with -3024.
        limits = (target.storage.low, target.storage.high)
        image, truth = (np.clip(np.asarray(v, np.float64), *limits) for v in (image, truth))
        error = np.abs(image - truth)
        scores["mae_hu"] = float(error.mean())
        if inside is not None:
            scores["mae_hu_mask"] = float(error[inside].mean())
    return scores


def _contours(case: Case, methods: dict[str, np.ndarray]) -> Iterator[tuple]:
    """(method, slice, {metric: value}) of the agreement with the source's contours.

    Both are taken on the model's grid, as the model's condition is.
    """
    shown = np.flatnonzero(case.body.mean((1, 2)) >= LEAST_BODY).tolist()
    for method, values in methods.items():
        drawn = case.contours(values)
        for number in shown:
            scores = agreement.contour_agreement(drawn[number], case.condition[number], TOLERANCE)
            yield method, number, scores


# ----------------------------------------------------------------------------------------------
# Volumes
# ----------------------------------------------------------------------------------------------


def along_axis(slices: np.ndarray, body: np.ndarray, gap: float, settings: Settings) -> dict:
    """`consistency.along_axis` of values [N, H, W] on the model's grid, `gap` mm apart."""
    gaps = np.full(len(slices) - 1, gap)
    image = settings.target.image.fraction(slices)
    return consistency.along_axis(image, body, gaps, (settings.grid.spacing,) * 2)


def reformatted_axes(settings: Settings) -> list[str]:
    """The axes but that of the slices: planes across them cut through all slices."""
    return [axis for axis in AXES if axis != settings.grid.axis]


def _coherence(case: Case, methods: dict[str, np.ndarray], real: list[dict]) -> Iterator[tuple]:
    """(method, WHOLE, {metric: value}) along the slicing axis.

    On the model's grid: finer voxels carry noise of the scanner, which differs from slice to slice
    in volumes that are perfectly coherent.
    """
    image, gaps = case.settings.target.image, np.full(len(case.body) - 1, case.gap)
    slices = {method: case.slices(values) for method, values in methods.items()}
    by_method = {
        method: along_axis(cut, case.body, case.gap, case.settings)
        for method, cut in slices.items()
    }
    right = by_method.get("truth", {})
    for method, values in by_method.items():
        scores = dict(values)
        for metric, value in values.items():
            if value is not None and right.get(metric) is not None and method != "truth":
                scores[f"{metric}_excess"] = value - right[metric]
            usual = [other[metric] for other in real if other[metric] is not None]
            if value is not None and any(usual):
                scores[f"{metric}_to_real"] = value / float(np.mean(usual))
        if right and method != "truth":
            pair = (image.fraction(slices[name]) for name in (method, "truth"))
            scores |= consistency.of_error(*pair, case.body, gaps)
        yield method, WHOLE, scores


def _reformatted(case: Case, methods: dict[str, np.ndarray]) -> Iterator[tuple]:
    """(method, WHOLE, {metric: value}) in planes across the other axes, on the volume's voxels."""
    image = case.settings.target.image
    if len(case.body) == 1:
        return
    for axis in reformatted_axes(case.settings):
        mask = planes_across(axis, case.mask)
        shown = np.flatnonzero(mask.mean((1, 2)) >= LEAST_BODY)
        if not shown.size:
            continue
        shown = shown[np.unique(np.linspace(0, shown.size - 1, PLANES).round().astype(int))]
        truth = image.fraction(planes_across(axis, case.truth)[shown])
        spacing = case.spacing[list(AXES[axis][1:])]
        for method, values in methods.items():
            planes = image.fraction(planes_across(axis, values)[shown])
            scores = consistency.reformatted(planes, truth, mask[shown], spacing)
            yield method, WHOLE, {f"{name}_{axis}": value for name, value in scores.items()}


def _regions(case: Case, methods: dict[str, np.ndarray]) -> Iterator[tuple]:
    """(method, WHOLE, {metric: value}) inside the body and inside each label, on the voxels."""
    image = case.settings.target.image
    parts, borders = {"body": case.mask}, {}
    if case.labels is not None:
        numbers = np.unique(case.labels)
        for number in numbers[numbers > 0]:
            name = f"label_{number:g}"
            parts[name] = case.labels == number
            borders[name] = parts[name], _around(case, parts[name])
    truth = image.fraction(case.truth)
    for method, values in methods.items():
        shown = image.fraction(values)
        scores = regions.scores(shown, truth, parts, 1.0) | regions.contrasts(shown, borders)
        yield method, WHOLE, scores
    yield "truth", WHOLE, regions.contrasts(truth, borders)


def _around(case: Case, inside: np.ndarray) -> np.ndarray:
    """The voxels within AROUND mm of a label that have the most frequent of the other labels there.

    A mixture would hide contrasts: that of a lesion with the brain behind that with a ventricle.
    """
    near = masks.dilate(inside, AROUND, case.spacing) & ~inside & (case.labels > 0)
    numbers, counts = np.unique(case.labels[near], return_counts=True)
    return near & (case.labels == numbers[counts.argmax()]) if numbers.size else near


def ranked(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Standard deviations and absolute errors of the translation's voxels inside the body."""
    image = case.settings.target.image
    error = np.abs(image.fraction(case.translation) - image.fraction(case.truth))
    return case.deviation[case.mask], error[case.mask]
