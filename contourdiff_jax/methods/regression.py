# SPDX-License-Identifier: Apache-2.0
"""Regression: the image that a U-Net finds in what it is shown, in one pass.

The network is that of diffusion without what is for noise: it sees its conditions alone, and no
timestep. Shown contours it is the control of ContourDiff: what of a score is diffusion's, and what
the contours'. An image that minimises a mean error is the mean of all that would fit, so that it
scores well pixel by pixel, and is smooth where what is shown leaves much open.

Shapes: B batch, *S space (H W or D H W), H rows, W columns, C or c channels, last.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from contourdiff_jax import config as configuration
from contourdiff_jax import models
from contourdiff_jax.contracts import (
    About,
    Averages,
    Example,
    Feed,
    Fixed,
    Memory,
    Metrics,
    Params,
    Player,
    Translator,
)
from contourdiff_jax.data import examples, volumetric
from contourdiff_jax.data.store import Store
from contourdiff_jax.methods import volumes
from contourdiff_jax.models import Model
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training import state
from contourdiff_jax.training.run import Run

NETWORK = "network"  # the one player
SAMPLES = 4  # slices of a picture of samples
WINDOW = 7  # pixels a side of those that SSIM compares, as where images are scored
RANGE = 2.0  # of images in [-1, 1]


@dataclasses.dataclass(frozen=True)
class Regression:
    """The method, see contracts.Method.

    Attributes:
      regression: section of the configuration.
      sampler: section to draw with, of which the batch counts, and of volumes the tiles.
      dims: of what is learnt: 2 for slices, 3 for volumes.
      depth_unit: see contracts.Translator.
      tile: sides of what is learnt from, see volumes.sides.
    """

    players: Mapping[str, Player]
    mesh: Mesh
    feed: Feed | None
    model: Model
    regression: ConfigDict
    conditions: tuple[str, ...]
    sampler: ConfigDict
    dims: int
    depth_unit: int
    tile: tuple[int, ...]
    fixed: Fixed = ()
    memory: Memory = ()
    start: Mapping[str, Params] | None = None

    def held_out(self, averages: Averages, fixed: Fixed, example: Example) -> Metrics:
        """See contracts.Method: the mean of `errors`."""
        del fixed
        count = len(example["x"])
        size = count if self.dims == 2 else math.gcd(count, len(self.feed.example["x"]))
        errors = [
            meshes.whole(self._errors(averages[NETWORK], part))
            for _, part in volumes.parts(self.mesh, example, size)
        ]
        return {"heldout_loss": float(np.concatenate(errors).mean())}

    @functools.cached_property
    def _errors(self) -> Callable:
        def of(params, example):
            return errors(self.regression, predicted(self.model, params, example), example)

        return jax.jit(of)

    def samples(self, averages: Averages, fixed: Fixed) -> np.ndarray:
        """See contracts.Method and examples.picture."""
        shown, count = self._shown
        seen = meshes.split(meshes.drawing(self.mesh, self.dims), shown["condition"])
        drawn = meshes.whole(self.translator(averages, fixed)(seen, None))
        if self.dims == 3:
            return volumes.picture(shown, drawn)
        return examples.picture(shown, drawn[:count])

    @functools.cached_property
    def _shown(self) -> tuple[Example, int]:
        return (volumes.shown(self.feed), 1) if self.dims == 3 else self.feed.shown(SAMPLES)

    def translator(self, averages: Averages, fixed: Fixed) -> Translator:
        """See contracts.Method."""
        del fixed
        return Translator(
            self.draw,
            averages[NETWORK],
            frozenset(self.conditions),
            self.sampler.batch,
            denoises=False,
            dims=self.dims,
            depth_unit=self.depth_unit,
        )

    @functools.cached_property
    def draw(self) -> Callable:
        """The network, compiled, see contracts.Translator; there is no noise in it.

        Tiles of a volume are blended as those of estimates are, once.
        """
        split = meshes.drawing(self.mesh, self.dims)

        def drawn(params, condition):
            first = next(iter(condition.values()))

            def denoiser(condition):
                return lambda z_t, t: self.model.apply(params, None, None, condition)

            space = first.shape[1:-1]
            denoiser = volumes.in_tiles(denoiser, space, self.tile, self.sampler, self.mesh)
            return denoiser(condition)(jnp.zeros((len(first), *space, 1)), None).clip(-1, 1)

        compiled = jax.jit(drawn, in_shardings=(None, split), out_shardings=split)
        return lambda params, seen, knots, beside: compiled(params, seen)


def build(
    ours: Run,
    *,
    store: Store | None = None,
    mesh: Mesh | None = None,
    sampler: ConfigDict | None = None,
) -> Regression:
    """The method of a run: see diffusion.build; of `sampler`, see Regression."""
    config = ours.config
    model = models.build(config.model, denoises=False)
    player = Player(
        model.init,
        loss(model, config.regression),
        state.optimiser(config.train),
        state.learning_rate(config.train),
    )
    players = {NETWORK: player}
    mesh = state.mesh_for(config.mesh, config.train, players) if mesh is None else mesh
    conditions = tuple(config.model.conditions)
    feed = None
    if store is not None:
        feed = volumetric.feed(config, store, ours.contours, conditions, mesh, masked=True)
    return Regression(
        players=players,
        mesh=mesh,
        feed=feed,
        model=model,
        regression=config.regression,
        conditions=conditions,
        sampler=sampler or config.sampler,
        dims=config.model.dims,
        depth_unit=configuration.depth_unit(config.model),
        tile=volumes.sides(config, ours.grid.size),
    )


# --------------------------------------------------------------------------------------------------
# What is learnt
# --------------------------------------------------------------------------------------------------


def loss(model: Model, config: ConfigDict) -> Callable:
    """The training loss, see contracts.Player: the mean of `errors`.

    Args:
      config: a `regression` section.
    """

    def training_loss(params, everyone, example, key, fixed, memory):
        del everyone, fixed
        prediction = predicted(model, params, example, key=key)
        return errors(config, prediction, example).mean(), ({}, memory)

    return training_loss


def predicted(model: Model, params: Params, example: Example, *, key=None):
    """The image [B, *S, 1] that the network finds in an example's conditions, not clipped."""
    return model.apply(params, None, None, example["condition"], key=key)


def errors(config: ConfigDict, prediction, example: Example):
    """Error [B] of predictions [B, *S, 1], the mean of the pixels in the body of each image.

    It is the absolute or the squared error, or in part 1 - SSIM, as Zhao et al. 2017 (IEEE TCI
    3(1):47-57, arXiv 1511.08861) mix them; that of a volume slice by slice, as it is scored. Pixels
    outside the body, which are air, count config.outside as much, or there would be anything in
    their place.

    Args:
      config: a `regression` section.
      example: with a mask, see data/examples.py.
    """
    truth, body = example["x"], example["mask"]
    difference = prediction - truth
    error = jnp.abs(difference) if config.loss == "l1" else jnp.square(difference)
    value = _mean(error, body, config.outside)
    if config.ssim:
        # What lies outside has no part in it.
        inside = jnp.where(body > 0, prediction, truth)
        unlike = 1 - similarity(inside[..., 0], truth[..., 0])
        value = (1 - config.ssim) * value + config.ssim * _mean(unlike[..., None], body)
    return value


def _mean(values, body, outside: float = 0.0):
    """Means [B] of the pixels of [B, *S, 1] in the body, and with that weight of those outside.

    It is 0 where there is no body and no weight outside. Counts are exact, as sums of weights in
    float32 are not.
    """
    space, total, count = tuple(range(1, values.ndim)), 0.0, 0.0
    for part, weight in ((body, 1.0), (1 - body, outside)):
        total += weight * (part * values).sum(space)
        count += weight * part.sum(space)
    return total / jnp.maximum(count, 1)


def similarity(image, truth):
    """SSIM [.., H, W] of images in [-1, 1] around each pixel (Wang et al. 2004, IEEE TIP 13(4)).

    As scikit-image computes it by default: means over 7 x 7 pixels, mirrored at the borders, and
    covariances of samples.
    """

    def means(a):
        margin = WINDOW // 2
        outer, ones = a.ndim - 2, (1,) * a.ndim
        a = jnp.pad(a, [(0, 0)] * outer + [(margin, margin)] * 2, mode="symmetric")
        for axis in (outer, outer + 1):
            window = tuple(WINDOW if i == axis else 1 for i in range(a.ndim))
            a = jax.lax.reduce_window(a, 0.0, jax.lax.add, window, ones, "VALID")
        return a / WINDOW**2

    mean_i, mean_t = means(image), means(truth)
    unbiased = WINDOW**2 / (WINDOW**2 - 1)
    variances = unbiased * (means(image**2) + means(truth**2) - mean_i**2 - mean_t**2)
    covariance = unbiased * (means(image * truth) - mean_i * mean_t)
    c_1, c_2 = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2
    return ((2 * mean_i * mean_t + c_1) * (2 * covariance + c_2)) / (
        (mean_i**2 + mean_t**2 + c_1) * (variances + c_2)
    )


def _training(config: ConfigDict) -> dict[str, str]:
    loss, ssim, outside = (config.regression[name] for name in ("loss", "ssim", "outside"))
    structure = f", with a share of {ssim:g} for 1 - SSIM" if ssim else ""
    words = f"{loss.upper()} in the body{structure}; outside it counts {outside:g} of that"
    return {**volumes.training(config), "loss": words}


ABOUT = About(
    kind="A U-Net",
    how="in one pass, by regression",
    network=lambda config: models.described(config.model),
    training=_training,
    fails="It draws the middle of all images that fit what it sees: where that leaves much open, "
    "they are smooth, without texture and noise.",
)
