# SPDX-License-Identifier: Apache-2.0
"""Structural bias: how differently the bodies of two domains lie in the picture."""

import numpy as np

FORMULA = "2 sum |s - t| / sum (s + t); s, t: mean body masks of source and target"


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
