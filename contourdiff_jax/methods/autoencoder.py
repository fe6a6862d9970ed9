# SPDX-License-Identifier: Apache-2.0
"""The autoencoder of latent diffusion (Rombach et al. 2022, arXiv 2112.10752, appendix G).

It learns to draw images again from latents, taught by their absolute error, by a critic of patches,
whose weight follows the gradients of both (Esser et al. 2021, arXiv 2012.09841, equation 7), and by
features of a frozen network, if there is one. A weak pull towards a normal distribution keeps the
latents together. What it cannot draw again no model of its latents can draw: `held_out` measures
that.

Shapes: B batch, H rows, W columns, f pixels a side of a latent, Z channels of latents.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from contourdiff_jax.contracts import (
    SOURCE,
    About,
    Averages,
    Example,
    Fixed,
    Memory,
    Metrics,
    Params,
    Player,
    Translator,
)
from contourdiff_jax.data import examples
from contourdiff_jax.data.feeds import Slices
from contourdiff_jax.data.store import Store
from contourdiff_jax.errors import InputError
from contourdiff_jax.methods import adversarial, regression
from contourdiff_jax.models import autoencoder as networks
from contourdiff_jax.models.autoencoder import LAST, Autoencoder
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training import state
from contourdiff_jax.training.run import Run

AUTOENCODER, CRITIC = "autoencoder", "critic"  # the players, in the order in which they learn
HEAVIEST = 1e4  # weight of the critic at most


class Perceptual(NamedTuple):
    """A frozen network by whose features images are compared.

    Attributes:
      stages: (params, images [B, H, W, 1]) -> features [B, h, w, c] at several resolutions.
    """

    params: Params
    stages: Callable[..., list[jax.Array]]


@dataclasses.dataclass(frozen=True)
class AutoencoderMethod:
    """The method, see contracts.Method.

    Attributes:
      network: see models/autoencoder.py.
      section: the `autoencoder` section.
      batch: slices drawn at once.
    """

    players: Mapping[str, Player]
    mesh: Mesh
    feed: Slices | None
    network: Autoencoder
    section: ConfigDict
    batch: int
    fixed: Fixed
    memory: Memory
    start: Mapping[str, Params] | None = None

    def held_out(self, averages: Averages, fixed: Fixed, example: Example) -> Metrics:
        """See contracts.Method: how well images are drawn again, in the body of each.

        The loss is their mean absolute error in [-1, 1]. PSNR and SSIM are the ceiling of what a
        model of the latents can score; these have the deviation `latent_std`.
        """
        del fixed
        found = self._quality(averages[AUTOENCODER], example)
        return {name: float(meshes.whole(values).mean()) for name, values in found.items()}

    @functools.cached_property
    def _quality(self) -> Callable:
        def of(params, example):
            images, body = example["x"], example["mask"]
            mean, drawn = self._again(params, images)
            inside = jnp.where(body > 0, drawn, images)
            squared = _in_body(jnp.square(inside - images), body)
            alike = regression.similarity(inside[..., 0], images[..., 0])[..., None]
            return {
                "heldout_loss": _in_body(jnp.abs(inside - images), body),
                "heldout_psnr": 10 * jnp.log10(regression.RANGE**2 / jnp.maximum(squared, 1e-10)),
                "heldout_ssim": _in_body(alike, body),
                "latent_std": mean.std(),
            }

        return jax.jit(of)

    def _again(self, params, images):
        """The means of the latents of images [B, H, W, 1], and the images again from these."""
        mean, _ = self.network.encode(params, networks.coloured(self.section, images))
        return mean, networks.grey(self.network.decode(params, mean)).clip(-1, 1)

    def samples(self, averages: Averages, fixed: Fixed) -> np.ndarray:
        """See contracts.Method: rows of the truth and what is drawn of it."""
        shown, count = self._looked_at
        images = meshes.split(meshes.batch(self.mesh), shown["x"])
        drawn = meshes.whole(self._compiled(averages[AUTOENCODER], images))
        return examples.picture(shown, drawn[:count])

    @functools.cached_property
    def _looked_at(self) -> tuple[Example, int]:
        return self.feed.shown(adversarial.SHOWN)

    @functools.cached_property
    def _compiled(self) -> Callable:
        split = meshes.batch(self.mesh)

        def drawn(params, images):
            return self._again(params, images)[1]

        return jax.jit(drawn, in_shardings=(None, split), out_shardings=split)

    def translator(self, averages: Averages, fixed: Fixed) -> Translator:
        """See contracts.Method: it draws the very image that it is shown."""
        del fixed

        def draw(params, seen, knots, beside=None):
            return self._compiled(params, seen[SOURCE.name][..., :1])

        sees = frozenset({SOURCE.name})
        return Translator(draw, averages[AUTOENCODER], sees, self.batch, denoises=False)


def _in_body(values, body):
    """Means [B] of [B, H, W, 1] in the body."""
    return (values * body).sum((1, 2, 3)) / jnp.maximum(body.sum((1, 2, 3)), 1)


def build(
    ours: Run,
    *,
    store: Store | None = None,
    mesh: Mesh | None = None,
    sampler: ConfigDict | None = None,
    perceptual: Perceptual | None = None,
) -> AutoencoderMethod:
    """The method of a run: see diffusion.build; of `sampler`, the batch alone counts.

    Args:
      perceptual: a network by whose features images are compared in training, too.

    Raises:
      InputError: such a network without a weight for it, or the reverse.
    """
    config, section = ours.config, ours.config.autoencoder
    if store is not None and bool(section.perceptual) != (perceptual is not None):
        raise InputError("--perceptual and config.autoencoder.perceptual: each needs the other")
    network = networks.build(section)
    critic = adversarial.critic(section.image_channels, config.adversarial)
    total = state.steps(config.train) * config.train.batch
    losses = Losses(
        network,
        critic.apply,
        section,
        config.adversarial.loss,
        alone=round(section.alone * total),
        stages=perceptual.stages if perceptual else None,
    )
    how = state.optimiser(config.train), state.learning_rate(config.train)
    players = {AUTOENCODER: Player(network.init, losses.of_autoencoder, *how)}
    if store is not None:  # a critic only teaches
        players[CRITIC] = Player(critic.init, losses.of_critic, *how, averaged=False)
    memory = {"images": jnp.zeros((), jnp.int32)}
    mesh = state.mesh_for(config.mesh, config.train, players, memory) if mesh is None else mesh
    feed = None
    if store is not None:
        feed = Slices.under(config, store, ours.contours, (), mesh, masked=True)
    return AutoencoderMethod(
        players=players,
        mesh=mesh,
        feed=feed,
        network=network,
        section=section,
        batch=(sampler or config.sampler).batch,
        fixed=meshes.put(meshes.replicated(mesh), perceptual.params) if perceptual else (),
        memory=memory,
    )


@dataclasses.dataclass(frozen=True)
class Losses:
    """The losses of both players, see contracts.Player.

    Memory counts the images seen, after so many of which the critic counts.

    Attributes:
      judge: of the critic, see critics.Critic.
      section: an `autoencoder` section.
      kind: of the critic's loss, see adversarial.judged.
      alone: images that are learnt from without the critic.
      stages: see Perceptual; its parameters are `fixed`.
    """

    network: Autoencoder
    judge: Callable
    section: ConfigDict
    kind: str
    alone: int
    stages: Callable | None

    def of_autoencoder(self, params, everyone, example, key, fixed, memory):
        """How far from the truth it draws, how far from a normal distribution its latents are."""
        images = networks.coloured(self.section, example["x"])
        latents, pull = self._sampled(params, images, key)
        error, metrics = self._error(params, latents, images, fixed)
        doubt = self._doubt(params, everyone[CRITIC], latents)
        weight = self._weight(params, everyone[CRITIC], latents, images, fixed)
        weight *= memory["images"] >= self.alone
        value = error + self.section.kl * pull + weight * doubt
        seen = {"images": memory["images"] + len(images)}
        return value, (metrics | {"kl": pull, "adversarial": doubt, "weight": weight}, seen)

    def of_critic(self, params, everyone, example, key, fixed, memory):
        """How badly it tells real images from those drawn again."""
        images = networks.coloured(self.section, example["x"])
        network = everyone[AUTOENCODER]
        drawn = self.network.decode(network, self._sampled(network, images, key)[0])
        value = adversarial.told_apart(self.kind, self.judge, params, images, drawn)
        return jnp.where(memory["images"] > self.alone, value, 0.0), ({}, memory)

    def _sampled(self, params, images, key):
        """Latents drawn for images, and KL(latents | normal) for each of an image's pixels."""
        mean, log_variance = self.network.encode(params, images)
        latents = networks.sampled(mean, log_variance, key)
        squares = jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance
        return latents, squares.sum() / 2 / images.size

    def _error(self, params, latents, images, fixed):
        """What does not depend on the critic."""
        drawn = self.network.decode(params, latents)
        metrics = {"l1": jnp.abs(drawn - images).mean()}
        if self.stages is None:
            return metrics["l1"], metrics
        metrics["perceptual"] = unlike(self.stages, fixed, drawn, images)
        return metrics["l1"] + self.section.perceptual * metrics["perceptual"], metrics

    def _doubt(self, params, critic, latents):
        drawn = self.network.decode(params, latents)
        return adversarial.doubt(self.kind, self.judge(critic, drawn))

    def _weight(self, params, critic, latents, images, fixed):
        """With which the critic changes the last kernel as much as the error does, or its share.

        Of the decoder only that kernel is differentiated: the rest is computed once for all.
        """

        def of_last(loss):
            gradient = jax.grad(lambda kernel: loss(_replaced(params, LAST, kernel)))
            return jnp.linalg.norm(gradient(_at(params, LAST)))

        params, latents = jax.lax.stop_gradient((params, latents))
        by_error = of_last(lambda params: self._error(params, latents, images, fixed)[0])
        by_critic = of_last(lambda params: self._doubt(params, critic, latents))
        ratio = (by_error / (by_critic + 1e-4)).clip(0, HEAVIEST)
        return self.section.adversarial * jax.lax.stop_gradient(ratio)


def unlike(stages: Callable, params: Params, drawn, images):
    """How unlike images [B, H, W, C] are by a network's features, each of length 1.

    The mean squared distance at each resolution, summed, as in LPIPS without its learnt weights
    (Zhang et al. 2018, arXiv 1801.03924, section 3). Gradients go through the network.
    """

    def features(images):
        found = stages(params, networks.grey(images))
        norms = (jax.lax.rsqrt(jnp.square(f).sum(-1, keepdims=True) + 1e-10) for f in found)
        return [f * norm for f, norm in zip(found, norms, strict=True)]

    pairs = zip(features(drawn), features(images), strict=True)
    return sum(jnp.square(a - b).sum(-1).mean() for a, b in pairs)


def _at(tree, path: tuple):
    return functools.reduce(lambda branch, name: branch[name], path, tree)


def _replaced(tree, path: tuple, leaf):
    """The tree with another leaf at that path."""
    first, *rest = path
    return tree | {first: _replaced(tree[first], rest, leaf) if rest else leaf}


def _training(config: ConfigDict) -> dict[str, str]:
    section = config.autoencoder
    critic = (
        f"after {section.alone:.0%} of the training a critic of patches, {section.adversarial:g}"
    )
    return {"loss": f"L1, {section.kl:g} times KL, and {critic} of the error's gradient"}


ABOUT = About(
    kind="An autoencoder",
    how="for latent diffusion, after Rombach et al. (arXiv 2112.10752)",
    network=lambda config: networks.described(config.autoencoder),
    training=_training,
    fails="What its latents leave out, fine texture above all, no model of them can draw.",
    measured={
        "heldout_ssim": "SSIM of held-out images drawn again, in the body",
        "heldout_psnr": "PSNR of held-out images drawn again, in the body, in dB",
        "latent_std": "standard deviation of latents",
    },
)
