# SPDX-License-Identifier: Apache-2.0
"""Agreement of two contour images: did the anatomy stay where the condition said it is?

Precision, recall and F-measure of boundaries that may lie a few pixels apart: Martin, Fowlkes and
Malik 2004 (IEEE TPAMI 26(5):530-549), in the form without one-to-one matching of Csurka, Larlus and
Perronnin 2013 (BMVC, "What is a good evaluation measure for semantic segmentation?").
Legend: H rows, W columns.
"""

import numpy as np
from scipy import ndimage


def contour_agreement(contour, reference, tolerance=1):
    """`contour_precision`, `contour_recall` and `contour_f1` of a contour image.

    Args:
      contour: [H, W], contour where not zero.
      reference: [H, W], the same for the contours it should show.
      tolerance: pixels two contours may lie apart and still agree, in chessboard distance
        (diagonal neighbours are 1 apart).

    Returns:
      A dict of floats in [0, 1]: the share of `contour` near `reference` (precision), the share of
      `reference` near `contour` (recall) and their harmonic mean. Where both are empty they agree
      and all three are 1; where only one is empty all three are 0.
    """
    contour, reference = np.asarray(contour) != 0, np.asarray(reference) != 0
    if contour.shape != reference.shape:
        raise ValueError(f"contours {contour.shape} and {reference.shape} differ in shape")
    if contour.any() and reference.any():
        precision = float(_near(reference, tolerance)[contour].mean())
        recall = float(_near(contour, tolerance)[reference].mean())
    else:
        precision = recall = float(contour.any() == reference.any())
    # F1 = 2PR / (P + R), 0 where nothing at all agrees
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {"contour_precision": precision, "contour_recall": recall, "contour_f1": f1}


def _near(contour, tolerance):
    """[H, W] bool: the pixels within `tolerance` of the contour, a dilation by a square."""
    return ndimage.maximum_filter(contour, size=2 * tolerance + 1, mode="constant")
