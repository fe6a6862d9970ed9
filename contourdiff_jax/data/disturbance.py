# SPDX-License-Identifier: Apache-2.0
"""Disturbances of the contours that a model is trained with, the image staying as it is.

Contours of another modality differ from those of the training images: they are missing here, to
many there, a little to the side, at other thresholds. A model that met such contours in training
knows how far to believe them. Which of this helps, and which does harm, is measured in
experiments/010_gap; what does not help is off by default. Parameters are drawn from keys first and
applied afterwards.

Shapes: B images, H rows, W columns.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from contourdiff_jax.data import augment
from contourdiff_jax.errors import InputError

KNOTS = 6  # of a change of contrast, evenly spread from black to white
CELL = 16  # px between the points of a displacement
PIECE = 8  # px, side of the squares in which contours go missing
FIELDS = ("thresholds", "contrast", "noise", "displacement", "doubled", "missing")


class Disturbance(NamedTuple):
    """What disturbs the contours of B images; None where a kind is off."""

    factor: jax.Array | None  # [B], of both thresholds
    contrast: jax.Array | None  # [B, KNOTS], added to the greys at the knots
    noise: jax.Array | None  # [B, H, W], added to the greys
    displacement: jax.Array | None  # [B, 2, H, W] px along columns and rows
    doubled: jax.Array | None  # [B] uint8, 1 where contours in both places are drawn
    present: jax.Array | None  # [B, H, W] uint8, 0 where contours are missing

    def displaced(self, greys, masks):
        """Greys [B, K, H, W] and masks [B, H, W], pixels taken from a little to the side."""
        if self.displacement is None:
            return greys, masks
        height, width = masks.shape[-2:]
        rows, columns = jnp.mgrid[:height, :width].astype(jnp.float32)[:, None]
        columns, rows = columns + self.displacement[:, 0], rows + self.displacement[:, 1]
        columns, rows = jnp.clip(columns, 0, width - 1), jnp.clip(rows, 0, height - 1)
        masks = augment.nearest(masks[:, None], columns, rows)[:, 0]
        return augment.linear(greys, columns, rows, 0.0), masks

    def grey(self, grey):
        """Greys [B, H, W] in [0, 1] with another contrast and noise."""
        if self.contrast is not None:
            change = jnp.zeros_like(grey)
            for k in range(KNOTS):  # hat functions, straight lines between the knots
                hat = jnp.maximum(1 - jnp.abs(grey * (KNOTS - 1) - k), 0)
                change += self.contrast[:, k, None, None] * hat
            grey += change
        if self.noise is not None:
            grey += self.noise
        return jnp.clip(grey, 0, 1)

    def thresholds(self, thresholds):
        """Thresholds [B]."""
        return thresholds if self.factor is None else thresholds * self.factor

    def kept(self, edges):
        """Contours [B, H, W] uint8 without those that are missing."""
        return edges if self.present is None else edges * self.present


def check(config) -> None:
    """Raise InputError for a `disturbance` section with a number that cannot be."""
    for name in FIELDS:
        if not 0 <= config[name] < math.inf:
            raise InputError(f"config.disturbance.{name}: {config[name]} must not be negative")
    for name in ("doubled", "missing"):
        if config[name] > 1:
            raise InputError(f"config.disturbance.{name}: {config[name]} must not be above 1")
    if config.doubled and not config.displacement:
        raise InputError(
            "config.disturbance.doubled: contours are doubled where they are displaced; "
            "set config.disturbance.displacement too"
        )


def draw(keys, config, size: tuple[int, int]) -> Disturbance | None:
    """One disturbance for each of the keys [B], under a `disturbance` section (see config.py).

    How much of a kind an image gets is uniform between nothing and the section's number. Returns
    None where all kinds are off.
    """
    if not any(config[name] for name in FIELDS):
        return None

    def uniform(name, shape=()):
        purpose = FIELDS.index(name)
        return jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, purpose), shape))(
            keys
        )

    def normal(name, shape):
        purpose = FIELDS.index(name)
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, purpose), shape))(
            keys
        )

    drawn = dict.fromkeys(Disturbance._fields)
    amounts = jax.vmap(
        lambda key: jax.random.uniform(jax.random.fold_in(key, len(FIELDS)), (len(FIELDS),))
    )(keys)
    amount = {name: amounts[:, i] * config[name] for i, name in enumerate(FIELDS)}
    if config.thresholds:
        drawn["factor"] = jnp.exp((2 * uniform("thresholds") - 1) * jnp.log1p(config.thresholds))
    if config.contrast:
        change = 2 * uniform("contrast", (KNOTS,)) - 1
        drawn["contrast"] = amount["contrast"][:, None] * change
    if config.noise:
        drawn["noise"] = amount["noise"][:, None, None] * normal("noise", size)
    if config.displacement:
        coarse = normal("displacement", (2, *(-(-n // CELL) + 1 for n in size)))
        smooth = jax.image.resize(coarse, (*coarse.shape[:2], *size), "linear")
        drawn["displacement"] = amount["displacement"][:, None, None, None] * smooth
    if config.doubled:
        drawn["doubled"] = (uniform("doubled") < config.doubled).astype(jnp.uint8)
    if config.missing:
        drawn["present"] = _present(uniform("missing", _squares(size)), amount["missing"], size)
    return Disturbance(**drawn)


def _squares(size) -> tuple[int, int]:
    """Squares that cover a picture wherever in one of them it begins."""
    return tuple(-(-n // PIECE) + 1 for n in size)


def _present(u, share, size):
    """0 in a share [B] of the squares with numbers u [B, rows, columns]; [B, H, W] uint8."""
    kept = (u >= share[:, None, None]).astype(jnp.uint8)
    pixels = kept.repeat(PIECE, 1).repeat(PIECE, 2)
    # The last square's own number says where the picture begins: no grid to get used to.
    start = (u[:, -1, -1] * PIECE * PIECE).astype(jnp.int32)
    cut = jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (at // PIECE, at % PIECE), size))
    return cut(pixels, start)
