# SPDX-License-Identifier: Apache-2.0
"""Scores as challenges take them, so that numbers can be put beside theirs.

Shapes: [X, Y, Z] volumes in closest-canonical RAS, of values.
"""

from collections.abc import Iterator

import numpy as np

from contourdiff_jax.cases import Case, Settings
from contourdiff_jax.metrics import synthrad

NAMES = ("synthrad",)


def scores(case: Case, methods: dict[str, np.ndarray]) -> Iterator[tuple[str, dict[str, float]]]:
    """(method, {metric: value}) of SynthRAD's conventions, over the voxels of the body."""
    storage = case.settings.target.storage
    truth, mask = _as_filed(case.truth), _as_filed(case.mask)
    axis = case.resampling.axes[0]
    for method, values in methods.items():
        image = _as_filed(values)
        yield method, synthrad.scores(image, truth, mask, storage.low, storage.high, axis)


def _as_filed(array: np.ndarray) -> np.ndarray:
    """In the order of voxels that the challenge's files have, LPS."""
    return array[::-1, ::-1]


def description(settings: Settings) -> str:
    """What was scored, in words that a report can print."""
    target, least = settings.target, synthrad.LEAST_SIDE
    low, high = target.storage.low, target.storage.high
    said = (
        f"as SynthRAD2025 scores volumes, on their own voxels inside the body mask: made {low:g} "
        f"outside; PSNR, SSIM and MS-SSIM clipped to {low:g} to {high:g}, data range "
        f"{high - low:g}; SSIM of 7 x 7 x 7 voxels, as in 2023; MS-SSIM of five scales, none where "
        f"a slice has a side below {least} px"
    )
    if target.modality == "ct":
        return said + "; MAE in HU. The challenge's masks are to be given by --masks"
    return said + (
        "; 0 and 1 are the ends of the volume's percentile window. The challenge has CT as target "
        "alone, so that these numbers compare with each other and not with its own"
    )
