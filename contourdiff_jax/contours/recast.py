# SPDX-License-Identifier: Apache-2.0
"""Recast pictures: a slice as another modality, of other contrast, noise and sharpness, shows it.

A network that learns to draw the target from recast pictures of the target itself can be shown the
picture in which another domain's contours are sought (settings.py): both have their tissues in the
target's order of greys, with differences that the network has learnt not to trust. So it sees more
of a source than its contours, and still no pair. The idea is that of training on random contrasts
(Billot et al. 2023, SynthSeg, arXiv 2107.09559), kept to curves that never fall: where
they might, the picture was of less use (experiments/021_real).

Shapes: B images, D slices of a patch of a volume, H rows, W columns.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from contourdiff_jax.contours.disturbance import KINDS
from contourdiff_jax.contours.settings import ContourSettings
from contourdiff_jax.errors import InputError

RISES = 6  # straight pieces of a curve from grey to grey, evenly wide
REACH = 4  # px of a blur's kernel, either way
SHARPEST = 0.05  # px, standard deviation of a blur that changes nothing
GRAIN = 0.2, 1.2  # px, standard deviations of the blur of noise: neighbours share it


class Recasting(NamedTuple):
    """What turns the greys of B images into those of another contrast."""

    rises: jax.Array  # [B, RISES] of the curve's pieces; their sum is 1
    blur: jax.Array  # [B] px, standard deviation
    noise: jax.Array  # [B, H, W], added to the greys

    def __call__(self, greys, masks):
        """Greys [B, H, W] in [0, 1] inside masks [B, H, W] -> the condition's, in [-1, 1]."""
        curved = sum(
            self.rises[:, k, None, None] * jnp.clip(greys * RISES - k, 0, 1) for k in range(RISES)
        )
        return shown(jax.vmap(_blurred)(curved, self.blur) + self.noise, masks)


def shown(greys, masks):
    """Greys [B, H, W] in [0, 1] -> the condition's values in [-1, 1], black outside the masks."""
    return 2 * greys.clip(0, 1) * (masks > 0) - 1


def draw(keys, config, size: tuple[int, ...]) -> Recasting:
    """One for each of the keys [B], under a `recast` section (see config.py).

    Args:
      size: (H, W) of an image, or (D, H, W) of a patch: then noise is [B, D, H, W], each slice's
        own, as strong in all of them.
    """
    return Recasting(*jax.vmap(functools.partial(_one, config=config, size=size))(keys))


def _one(key, config, size):
    key = jax.random.fold_in(key, len(KINDS))  # beside those of disturbances
    of_rises, of_blur, of_noise, of_grain, of_amount = jax.random.split(key, 5)
    rises = jax.random.gamma(of_rises, config.evenness, (RISES,)) + 1e-6
    blur = jax.random.uniform(of_blur, minval=SHARPEST, maxval=config.blur + SHARPEST)
    noise = _blurred(
        jax.random.normal(of_noise, size),
        jax.random.uniform(of_grain, minval=GRAIN[0], maxval=GRAIN[1]),
    )
    amount = config.noise * jax.random.uniform(of_amount)
    return rises / rises.sum(), blur, amount * noise / noise.std()


def _blurred(image, deviation):
    """Images [.., H, W], blurred by a Gaussian; black beyond their borders."""
    at = jnp.arange(-REACH, REACH + 1)
    kernel = jnp.exp(-jnp.square(at / deviation) / 2)
    kernel /= kernel.sum()
    for axis in (image.ndim - 2, image.ndim - 1):
        length, border = image.shape[axis], [(0, 0)] * image.ndim
        border[axis] = (REACH, REACH)
        padded = jnp.pad(image, border)
        image = sum(
            weight * jax.lax.slice_in_dim(padded, i, i + length, axis=axis)
            for i, weight in enumerate(kernel)
        )
    return image


def check(settings: ContourSettings, name: str) -> None:
    """Raise InputError for contours that are not sought in one picture.

    Args:
      name: whose contours they are.
    """
    if settings.native or len(settings.curves) != 1:
        sought = "native pixels" if settings.native else f"{len(settings.curves)} pictures"
        raise InputError(
            f"{name}: its contours are sought in {sought}, and the network is to see one picture; "
            f"take contours of one window or one curve, as the default"
        )
