# SPDX-License-Identifier: Apache-2.0
"""What methods with a critic have in common: its losses, and drawing in one pass.

A critic tells real images from drawn ones, and generators learn to draw what it takes for real
(Goodfellow et al. 2014, arXiv 1406.2661).

Shapes: B batch, H rows, W columns, C or c channels, last.
"""

from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from contourdiff_jax.contracts import CONDITIONS, Params
from contourdiff_jax.models import critics
from contourdiff_jax.models.critics import Critic
from contourdiff_jax.models.generators import Generator
from contourdiff_jax.runtime import mesh as meshes

HELD_OUT, SAMPLES = "held out", "samples"  # subjects of the randomness of what is looked at
SHOWN = 4  # slices of a picture of samples


def critic(inputs: int, config) -> Critic:
    """The critic of images of so many channels, of an `adversarial` section."""
    return critics.build(
        inputs, layers=config.critic_layers, width=config.critic_width, norm=config.norm
    )


def judged(kind: str, logits, *, real: bool):
    """The loss of logits that should say that images are real, or drawn; the mean over patches.

    Args:
      kind: vanilla, the cross entropy (Goodfellow et al. 2014); least_squares (Mao et al. 2017,
        arXiv 1611.04076); or hinge (Lim & Ye 2017, arXiv 1705.02894).
    """
    if kind == "vanilla":
        return jax.nn.softplus(-logits if real else logits).mean()
    if kind == "hinge":
        return jax.nn.relu(1 + (-logits if real else logits)).mean()
    return jnp.square(logits - (1.0 if real else 0.0)).mean()


def doubt(kind: str, logits):
    """The generator's loss: how little what it draws, of these logits, is taken for real.

    It is a critic's of real images, which does not saturate; of hinge, where the critic's ends, it
    goes on.
    """
    return -logits.mean() if kind == "hinge" else judged(kind, logits, real=True)


def told_apart(kind: str, apply: Callable, params: Params, real, drawn):
    """The loss of a critic, halved, so that it learns at half the generator's speed."""
    of_real = judged(kind, apply(params, real), real=True)
    of_drawn = judged(kind, apply(params, drawn), real=False)
    return (of_real + of_drawn) / 2


def seen(names: Iterable[str], condition: Mapping):
    """The values [B, H, W, C] of conditions {name: [B, H, W, c]}; none of them is ever missing."""
    return jnp.concatenate([condition[n][..., : CONDITIONS[n].channels] for n in names], -1)


# How a network goes wrong that a critic teaches, see contracts.About.
FAILS = (
    "A critic rewards what looks real, not what is there: structures may be drawn that the source "
    "does not have, and real ones, lesions above all, left out."
)


def drawing(generator: Generator, names: tuple[str, ...], mesh: Mesh, *, random: bool) -> Callable:
    """A generator, compiled, see contracts.Translator; slices are not coupled.

    Every image is drawn alone, so that neither the others of a batch nor their number change it.

    Args:
      random: whether to keep dropout on. Its randomness is that of an image's first knot.
    """

    def alone(params, image, key_data):
        key = jax.random.wrap_key_data(key_data) if random else None
        return generator.apply(params, image[None], key=key)[0]

    def draw(params, condition, knots):
        images = seen(names, condition)
        return jax.vmap(alone, in_axes=(None, 0, 0))(params, images, knots.keys[:, 0])

    split = meshes.batch(mesh)
    compiled = jax.jit(draw, in_shardings=(None, split, split), out_shardings=split)
    return lambda params, seen, knots, beside=None: compiled(params, seen, knots)
