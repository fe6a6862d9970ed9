# SPDX-License-Identifier: Apache-2.0
"""Augmentation: parameters are drawn first and applied afterwards, so that each can be replayed.

Contours are taken from the augmented slice, at full sharpness, not warped along with it, unless
they can only be had from native pixels.
Shapes: H rows, W columns.
"""

from typing import NamedTuple

import cv2
import numpy as np


class Transform(NamedTuple):
    """An affine map of the plane about the image's centre: flip, scale, rotate, then shift."""

    flip: bool  # left and right exchanged
    scale: tuple[float, float]  # along columns and rows, > 1 enlarges
    rotation: float  # degrees, anticlockwise on screen
    shift: tuple[float, float]  # along columns and rows, as fraction of the image's width

    def matrix(self, height: int, width: int) -> np.ndarray:
        """[2, 3] map of (column, row) pixel coordinates, from input to output."""
        centre = np.array([width - 1, height - 1]) / 2
        angle = np.deg2rad(self.rotation)
        rotate = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        linear = rotate @ np.diag(self.scale) @ np.diag([-1.0 if self.flip else 1.0, 1.0])
        offset = centre - linear @ centre + np.array(self.shift) * width
        return np.column_stack([linear, offset])


def draw(rng: np.random.Generator, config) -> Transform:
    """Draw one transform under an `augment` section (see config.py)."""
    flip = bool(rng.random() < config.flip)
    moved = bool(rng.random() < config.probability)
    scale = np.exp(rng.uniform(-1, 1, 2) * np.log1p(config.scale)) * np.exp(
        rng.uniform(-1, 1) * np.log1p(config.zoom)
    )
    rotation = rng.uniform(-1, 1) * config.rotation
    shift = rng.uniform(-1, 1, 2) * config.shift
    if not moved:
        return Transform(flip, (1.0, 1.0), 0.0, (0.0, 0.0))
    return Transform(
        flip,
        (float(scale[0]), float(scale[1])),
        float(rotation),
        (float(shift[0]), float(shift[1])),
    )


def apply(transform: Transform, values: np.ndarray, mask: np.ndarray, air: float):
    """Warp values [H, W] float32 (linear) and mask [H, W] uint8 (nearest).

    What flows in from outside is `air` in the values and 0 in the mask.
    """
    height, width = values.shape
    matrix = transform.matrix(height, width)
    warp = {"borderMode": cv2.BORDER_CONSTANT, "dsize": (width, height)}
    return (
        cv2.warpAffine(values, matrix, flags=cv2.INTER_LINEAR, borderValue=air, **warp),
        cv2.warpAffine(mask, matrix, flags=cv2.INTER_NEAREST, borderValue=0, **warp),
    )


def apply_to_contours(transform: Transform, edges: np.ndarray) -> np.ndarray:
    """Warp contours [H, W] uint8 of 0 and 1; nothing flows in from outside.

    Interpolation is linear and what keeps more than 50 of 255 is a contour, as in the original
    (transform.py): lines a pixel wide do not break.
    """
    height, width = edges.shape
    matrix = transform.matrix(height, width)
    warped = cv2.warpAffine(255 * edges, matrix, dsize=(width, height), flags=cv2.INTER_LINEAR)
    return (warped > 50).astype(np.uint8)
