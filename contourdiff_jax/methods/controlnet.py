# SPDX-License-Identifier: Apache-2.0
"""ControlNet: a network that has learnt a domain without contours is shown them, by a branch.

Zhang, Rao & Agrawala 2023 (arXiv 2302.05543). The network is that of a run of diffusion that sees
no conditions, its *base*, and learns no more; the branch begins as a copy of its encoder. Of the
source it sees the contours, in pixels, whatever space the base draws in.

Shapes: B batch, *S space of the codec, C or c channels, last.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from contourdiff_jax import config as configuration
from contourdiff_jax import models
from contourdiff_jax.contracts import CONTOUR
from contourdiff_jax.data.store import Store
from contourdiff_jax.errors import InputError
from contourdiff_jax.methods import codecs, diffusion, parts, prompts
from contourdiff_jax.methods.diffusion import Diffusion, Network
from contourdiff_jax.methods.distilled import TRAINING
from contourdiff_jax.methods.parts import NETWORK
from contourdiff_jax.models import controlnet, patches
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training import checkpoint, run
from contourdiff_jax.training.run import Run

ABOUT = diffusion.ABOUT._replace(
    kind="A ControlNet",
    how="beside a diffusion model that sees none (Zhang et al., arXiv 2302.05543)",
)


def build(
    ours: Run,
    *,
    store: Store | None = None,
    mesh: Mesh | None = None,
    sampler: ConfigDict | None = None,
) -> Diffusion:
    """The method of a run: see diffusion.build.

    Raises:
      InputError: layers of the branch that do not lead from pixels to the codec's space.
    """
    sampler = sampler or ours.config.sampler
    network = network_of(ours, sampler.control)
    method = diffusion.build(ours, store=store, mesh=mesh, sampler=sampler, network=network)

    def begun():
        key, base = jax.random.key(ours.config.seed), method.fixed["base"]
        shapes = jax.eval_shape(begin, key, base)
        return {
            NETWORK: jax.jit(begin, out_shardings=meshes.shardings(method.mesh, shapes))(key, base)
        }

    def begin(key, base):
        return controlnet.from_base(network.init(key), base)

    return dataclasses.replace(method, begun=begun)


def base_section(config: ConfigDict) -> ConfigDict:
    """The `model` section of the base of a run: the same, but that it sees nothing."""
    section = ConfigDict(config.model)
    section.conditions = ()
    return section


def network_of(ours: Run, control: float = 1.0) -> Network:
    """The branch of a run beside its base.

    Args:
      control: by which what the branch adds is multiplied.
    """
    space, section = codecs.of(ours), ours.config.controlnet
    wide = 2 ** (len(section.channels) - 1)
    if wide != space.side:
        raise InputError(
            f"config.controlnet.channels: {len(section.channels)} layers lead from {wide} px to "
            f"one, and an element of what the base draws stands for {space.side} px"
        )
    of_base = base_section(ours.config)
    base = models.build(of_base, channels=space.channels, side=space.side)
    branch = controlnet.build(
        of_base,
        channels=space.channels,
        hint=section.image_channels,
        hint_channels=tuple(section.channels),
    )

    def bound(fixed):
        def apply(params, z_t, t, condition, *, key=None):
            context = prompts.context(fixed, condition)
            hint = patches.unfold(condition[CONTOUR.name][..., :-1], space.side)
            hint = jnp.repeat(hint, section.image_channels, -1)
            added = branch.apply(params, z_t, t, hint, context, scale=control)
            seen = {"key": key, "context": context, "residuals": added}
            return base.apply(fixed["base"], z_t, t, {}, **seen)

        return apply

    return Network(branch.init, bound, base)


def chosen(config: ConfigDict, base: Path) -> str:
    """The digest of the weights of the base of a run that begins.

    Raises:
      InputError: a run that cannot be the base of one of that configuration.
    """
    theirs = run.load(base)
    if theirs.config.method != "diffusion" or theirs.config.model.conditions:
        raise InputError(
            f"{base}: a base is a run of diffusion that sees no conditions; train one with "
            f'--config.model.conditions="()"'
        )
    if theirs.config.model.patch > 1:
        raise InputError(f"{base}: config.model.patch above 1, and a branch sees pixel by pixel")
    free = {"model.conditions", "model.dtype", *(f"diffusion.{field}" for field in TRAINING)}
    for name in configuration.differences(config, theirs.config):
        if name.startswith(("model.", "diffusion.")) and name not in free:
            raise InputError(f"{base}: a base with another config.{name}; it must be the same")
    space = codecs.of(theirs)
    network = models.build(theirs.config.model, channels=space.channels, side=space.side)
    return checkpoint.digest({NETWORK: parts.weights(base, network, meshes.local(1))})
