# SPDX-License-Identifier: Apache-2.0
"""Baselines: images that need no model, made of the source and of real target volumes.

    source      the source's greys as they are shown, read as the target's
    histogram   the source with the histogram of the real volumes
    curve       likewise, of the picture in which the source's contours are sought, where a curve
                makes it: greys in the target's order, by a table of no more than a dozen points
    mean        the mean of the real volumes, stretched to where the body lies

Shapes: [X, Y, Z] volumes, [N, H, W] slices and [K, H, W] levels on the model's grid, all values.
"""

import dataclasses
from pathlib import Path

import numpy as np
from skimage.exposure import match_histograms
from tqdm import tqdm

from contourdiff_jax.data.layouts import scans
from contourdiff_jax.errors import InputError
from contourdiff_jax.evaluation import cases, scores
from contourdiff_jax.evaluation.cases import Case, Translations
from contourdiff_jax.volumes import io, masks

LEVELS = 128  # of the mean image, from the lowest to the highest slice that shows the body
QUANTILES = 10_001  # by which a volume's histogram is known
SAME_GAP = 0.1  # by which distances between slices may differ where their coherence is compared


@dataclasses.dataclass(frozen=True)
class Baselines:
    """What real volumes of the target domain look like.

    Attributes:
      histogram: values inside the body, the same number from each volume.
      mean: [LEVELS, H, W] mean image on the model's grid, from the bottom of the body to its top.
      coherence: (subject, mm between its slices, `consistency.along_axis`) of each volume.
      count: volumes, those left out not counted.
      left_out: subjects of volumes that were left out, because they are scored themselves.
      failed: (path, reason) of volumes that could not be read.
    """

    histogram: np.ndarray
    mean: np.ndarray
    coherence: list[tuple[str, float, dict]]
    count: int
    left_out: list[str]
    failed: list[tuple[Path, str]]


def learn(real, translations: Translations) -> Baselines:
    """Baselines from the real volumes of a folder.

    Args:
      real: the folder.
      translations: whose subjects are left out, because they are scored themselves.

    Raises InputError where no volume is left.
    """
    histograms, total, coherence, left_out = [], 0, [], []
    settings, scored = translations.settings, translations.subjects
    target, content = settings.target, translations.real(real)
    failed = list(content.failed)
    for scan in tqdm(content.scans, desc="baselines", unit="volume", disable=None):
        if scan.subject in scored:
            left_out.append(scan.subject)
            continue
        with io.failures(scan.path, failed):
            volume = scan.read().even()
            scans.check_unit(scan, volume, target, "real_", as_greys=False)
            values = cases.values_of(volume, target)
            mask = masks.body_mask(volume.array, volume.affine, target.modality)
            resampling = settings.grid.fit(values.shape, volume.affine)
            histogram = np.quantile(values[mask], np.linspace(0, 1, QUANTILES))
            slices, body = resampling.slices(values, target.air), resampling.masks(mask)
            along = scores.along_axis(slices, body, resampling.gap, settings)
            total = total + _between(slices, np.linspace(*masks.extent(body), LEVELS))
            histograms.append(histogram)
            coherence.append((scan.subject, resampling.gap, along))
    if not histograms:
        why = "no volume of a subject that is not scored, so no baselines"
        raise InputError(failed[0][1] if failed else f"{real}: {why}")
    count = len(histograms)
    histogram, mean = np.concatenate(histograms), total / count
    return Baselines(histogram, mean, coherence, count, left_out, failed)


def methods(case: Case, baselines: Baselines | None) -> dict[str, np.ndarray]:
    """{method: target values [X, Y, Z]} of the baselines that a case and real volumes allow."""
    images, target = {}, case.settings.target
    if case.source is not None:
        images["source"] = target.image.inverse(case.settings.source.image.unit(case.source))
    if case.source is not None and baselines is not None:
        images["histogram"] = _matched(case, case.source, baselines)
        if curve := case.settings.contours["source"].curve:
            greys = np.interp(case.source, *zip(*curve, strict=True))
            images["curve"] = _matched(case, greys, baselines)
    if baselines is not None:
        images["mean"] = _stretched(case, baselines.mean)
    return images


def _matched(case: Case, greys: np.ndarray, baselines: Baselines) -> np.ndarray:
    """Greys [X, Y, Z] with the histogram of the real volumes inside the body, air outside."""
    # How much air surrounds a body says something of the scan, not of tissues.
    matched = np.full_like(case.source, case.settings.target.air)
    matched[case.mask] = match_histograms(greys[case.mask], baselines.histogram)
    return matched


def alike(case: Case, baselines: Baselines | None) -> list[tuple[str, float, dict]]:
    """The coherence of those real volumes whose slices lie as far apart as the case's.

    Neighbours at another distance differ by another amount.
    """
    real = baselines.coherence if baselines is not None else []
    return [entry for entry in real if abs(entry[1] - case.gap) <= SAME_GAP * case.gap]


def _stretched(case: Case, mean: np.ndarray) -> np.ndarray:
    """The mean image [X, Y, Z], stretched along the axis to the body's extent; air beyond it."""
    air = case.settings.target.air
    first, last = masks.extent(case.body)
    number = np.arange(len(case.body))
    level = (number - first) / max(last - first, 1) * (LEVELS - 1)
    slices = _between(mean, np.clip(level, 0, LEVELS - 1))
    slices[(number < first) | (number > last)] = air
    return case.resampling.volume(slices, air)


def _between(slices: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Slices [K, H, W], interpolated linearly at fractional numbers [K] of slices [N, H, W]."""
    below = np.floor(numbers).astype(int)
    above = np.minimum(below + 1, len(slices) - 1)
    weight = (numbers - below)[:, None, None].astype(np.float32)
    return (1 - weight) * slices[below] + weight * slices[above]
