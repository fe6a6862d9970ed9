# SPDX-License-Identifier: Apache-2.0
"""Distances between samples of images, with intervals over subjects, and their floor.

A distance of few images is large by itself, FID more so than KID, and so both sides have equally
many images. The floor is the distance of real subjects from other real subjects, measured in the
same way.

Legend: N images, D features, S subjects, R resamples.
"""

import dataclasses

import numpy as np

from contourdiff_jax.evaluation.metrics import distribution

RESAMPLES = {"kernel": 1000, "frechet": 25}  # of subjects; a Fréchet distance takes long
MOST = 5000  # images on a side that an interval is computed from
SPLITS = 10  # of real subjects into halves
NORMAL = 1.96  # standard deviations on each side that hold 95% of a normal distribution


@dataclasses.dataclass(frozen=True)
class Sample:
    """Features [N, D] of images, and the subject of each, [N]."""

    features: np.ndarray
    subjects: np.ndarray

    def __len__(self) -> int:
        return len(self.features)

    def of(self, rows) -> "Sample":
        return Sample(self.features[rows], self.subjects[rows])

    def some(self, count: int, random: np.random.Generator) -> "Sample":
        """`count` images at random, in their order; all of them where there are no more."""
        if len(self) <= count:
            return self
        return self.of(np.sort(random.choice(len(self), count, replace=False)))


@dataclasses.dataclass(frozen=True)
class Distance:
    """A distance of a sample of n subjects, and its values [R] in resamples."""

    value: float
    others: np.ndarray
    n: int

    def entry(self) -> dict:
        """{"value", "low", "high", "n"}: 95% by the standard deviation over the resamples.

        Not by their percentiles: a resample holds fewer different images, and so lies farther off.
        """
        low = high = None
        if len(self.others) > 1:
            width = NORMAL * self.others.std(ddof=1)
            low, high = float(self.value - width), float(self.value + width)
        return {"value": self.value, "low": low, "high": high, "n": self.n}


def mean(distances: list[Distance]) -> Distance:
    """The mean distance of the same subjects seen along several axes, resample by resample."""
    values = [distance.value for distance in distances]
    others = np.mean([distance.others for distance in distances], axis=0)
    return Distance(float(np.mean(values)), others, distances[0].n)


def distances(sample: Sample, real: Sample, kinds, count: int, seed: int = 0) -> dict:
    """{kind: Distance} of `count` images of each side, resampled by subjects on both sides.

    With one subject on a side there are no resamples.
    """
    random = np.random.default_rng(seed)
    sides = [side.some(count, random) for side in (sample, real)]
    features = [side.features for side in sides]
    by_kind = {}
    for kind in kinds:
        measure = getattr(distribution, kind)
        others = _resampled(kind, [side.some(MOST, random) for side in sides], seed)
        by_kind[kind] = Distance(measure(*features), others, len(np.unique(sample.subjects)))
    return by_kind


def repeated(sample: Sample, real: Sample, kind: str, count: int, seed: int = 0) -> Distance:
    """The mean of SPLITS distances of `count` images drawn of each side."""
    random = np.random.default_rng(seed)
    measure = getattr(distribution, kind)
    values = [
        measure(*(side.some(count, random).features for side in (sample, real)))
        for _ in range(SPLITS)
    ]
    return Distance(float(np.mean(values)), np.array(values), len(np.unique(sample.subjects)))


# ----------------------------------------------------------------------------------------------
# The floor
# ----------------------------------------------------------------------------------------------


def halves(real: Sample, seed: int = 0) -> list[tuple[Sample, Sample]]:
    """SPLITS ways to part the subjects of a sample in two; none with one subject."""
    names = np.unique(real.subjects)
    if len(names) < 2:
        return []
    random = np.random.default_rng(seed)
    parted = []
    for _ in range(SPLITS):
        first = np.isin(real.subjects, random.permutation(names)[: len(names) // 2])
        parted.append((real.of(first), real.of(~first)))
    return parted


def floor(parted: list[tuple[Sample, Sample]], kinds, count: int, seed: int = 0) -> dict:
    """{kind: Distance} of halves of real subjects, `count` images of each."""
    random = np.random.default_rng(seed)
    n = len(np.unique(np.concatenate([side.subjects for side in parted[0]])))
    by_kind = {}
    for kind in kinds:
        measure = getattr(distribution, kind)
        values = [measure(*(side.some(count, random).features for side in pair)) for pair in parted]
        by_kind[kind] = Distance(float(np.mean(values)), np.array(values), n)
    return by_kind


# ----------------------------------------------------------------------------------------------
# Resampling
# ----------------------------------------------------------------------------------------------


def _resampled(kind: str, sides: list[Sample], seed: int) -> np.ndarray:
    """Distances [R] of resamples: subjects of both sides drawn with replacement.

    Equal seeds draw the same subjects in all views.
    """
    random = np.random.default_rng(seed)
    if min(len(np.unique(side.subjects)) for side in sides) < 2:
        return np.zeros(0)
    features = [side.features for side in sides]
    counts = [_counts(side.subjects, RESAMPLES[kind], random) for side in sides]
    if kind == "kernel":
        return distribution.kernels(*features, *counts)
    repeated = [
        [np.repeat(feature, count, axis=0) for count in drawn]
        for feature, drawn in zip(features, counts, strict=True)
    ]
    return np.array([distribution.frechet(*pair) for pair in zip(*repeated, strict=True)])


def _counts(subjects: np.ndarray, resamples: int, random: np.random.Generator) -> np.ndarray:
    """How often [R, N] each image is there when subjects are drawn with replacement."""
    names, owners = np.unique(subjects, return_inverse=True)
    drawn = random.multinomial(len(names), np.full(len(names), 1 / len(names)), resamples)
    return drawn[:, owners]
