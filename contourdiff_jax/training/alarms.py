# SPDX-License-Identifier: Apache-2.0
"""Alarms: what goes wrong with generators and critics, as numbers of held-out images.

    identity      how far drawn images are their sources again: 1 - |drawn - source| / |real -
                  source|, means of absolute differences in the source's body. 1: nothing is
                  translated; about 0: they are as far from their sources as real images are.
    reversed      whether greys are the wrong way round. With pairs, (1 - r) / 2 for the correlation
                  r of drawn and real images in the body. Without, d / (d + d'), of the distances
                  (Wasserstein's) from the greys of real images to those drawn, and to those drawn
                  and mirrored about the middle of the real ones. 0: as they should; 1: reversed.
    checkerboard  how much stronger a pattern of every second pixel is than in real images: the root
                  mean square of its amplitude, of means over 8 x 8 pixels, as share of the range.

Every number has a threshold, and `warnings` says what it means where it is exceeded. Thresholds are
chosen for what is plain to see, not for what a statistic can tell.

Shapes: N images, H rows, W columns; images in [-1, 1], -1 outside the body.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

BODY = -0.98  # what is above it is no air
BLOCK = 8  # pixels a side of those that a pattern is sought in
QUANTILES = (np.arange(100) + 0.5) / 100


class Alarm(NamedTuple):
    """What a number means where it is above its threshold."""

    threshold: float
    words: str


ALARMS = {
    "alarm_identity": Alarm(
        0.8, "drawn images are their sources over again; lower config.adversarial.identity"
    ),
    "alarm_reversed": Alarm(
        0.6, "greys are drawn the wrong way round; train again with another --config.seed"
    ),
    "alarm_checkerboard": Alarm(
        0.01, "every second pixel is lighter; train longer, or lower config.train.learning_rate"
    ),
}


def numbers(drawn, real, sources=None, *, paired: bool) -> dict[str, float]:
    """The numbers of images [N, H, W], by name; those that cannot be told are left out.

    Args:
      real: of what is drawn: the truth of each, or where not `paired` any others.
      sources: what they were drawn from, in the same order; None for contours.
    """
    found = {"alarm_checkerboard": checkerboard(drawn) - checkerboard(real)}
    if sources is not None:
        body = sources > BODY
        between = np.abs(real - sources)[body].mean() if body.any() else 0.0
        if between > 0:
            found["alarm_identity"] = 1 - np.abs(drawn - sources)[body].mean() / between
    if paired:
        body = real > BODY
        share = _unlike(drawn[body], real[body])
    else:
        share = _mirrored(drawn[sources > BODY], real[real > BODY])
    if share is not None:
        found["alarm_reversed"] = share
    return {name: float(value) for name, value in found.items()}


def _unlike(drawn, real) -> float | None:
    """(1 - r) / 2; None where one of them has no contrast."""
    if drawn.size < 2 or not drawn.std() * real.std() > 0:
        return None
    return (1 - np.corrcoef(drawn, real)[0, 1]) / 2


def _mirrored(drawn, real) -> float | None:
    """d / (d + d') of greys; None where there are none, or both fit."""
    if not drawn.size or not real.size:
        return None
    ours, theirs = (np.quantile(values, QUANTILES) for values in (drawn, real))
    mirrored = (theirs[0] + theirs[-1] - ours)[::-1]
    near, far = (np.abs(values - theirs).mean() for values in (ours, mirrored))
    return near / (near + far) if near + far > 0 else None


def checkerboard(images) -> float:
    """The amplitude of a pattern of every second row, column or both, as share of the range.

    A pattern of a period of 2 has the same sign in all of a block, so that it stays in the block's
    mean where noise and edges cancel out.
    """
    count, height, width = images.shape
    height, width = height // BLOCK * BLOCK, width // BLOCK * BLOCK
    images = np.asarray(images[:, :height, :width], np.float64)
    signs = (-1.0) ** np.arange(max(height, width))
    rows, columns = signs[:height, None], signs[None, :width]
    power = 0.0
    for pattern in (rows + 0 * columns, columns + 0 * rows, rows * columns):
        blocks = (images * pattern).reshape(count, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
        power += np.square(blocks.mean((2, 4))).mean()
    return float(np.sqrt(power)) / 2


def warnings(metrics: Mapping[str, object]) -> list[str]:
    """A line for every number among the metrics that is above its threshold.

    The name of a number may end with the domain that is drawn: alarm_identity_source.
    """
    lines = []
    for name, value in metrics.items():
        for alarm, (threshold, words) in ALARMS.items():
            if name.startswith(alarm) and value > threshold:
                lines.append(f"{name} {value:.2g} is above {threshold:g}: {words}")
    return lines
