# SPDX-License-Identifier: Apache-2.0
"""ContourDiff: images of one domain by diffusion, given the contours of the same slice.

Chen et al. (arXiv 2403.10786): a denoising diffusion model (Ho et al. 2020, arXiv 2006.11239) of
the target's images, shown their contours at every timestep. Contours of any other domain then give
images of the target.

Shapes: B batch, *S space, D slices, H rows, W columns, C or c channels, last.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from contourdiff_jax import config as configuration
from contourdiff_jax import models
from contourdiff_jax.contracts import (
    CONTOUR,
    NEIGHBOUR,
    PICTURE,
    PROMPT,
    SOURCE,
    About,
    Averages,
    Codec,
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
from contourdiff_jax.diffusion import coupling, guidance, noise, process, samplers, schedules
from contourdiff_jax.diffusion.schedules import Schedule
from contourdiff_jax.errors import InputError
from contourdiff_jax.methods import codecs, parts, prompts, volumes
from contourdiff_jax.methods.parts import NETWORK
from contourdiff_jax.models import Model
from contourdiff_jax.runtime import compiling
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training import state
from contourdiff_jax.training.run import Run

BINS = 10  # of the held-out loss, by timestep
SAMPLES = 4  # slices of a picture of samples
CODEC = 2**31 - 1  # folded into a step's key for the randomness of latents


class Network(NamedTuple):
    """A network as the method asks for it.

    Attributes:
      init: key -> params.
      bound: fixed -> apply, see models.Model, for conditions in the codec's space.
      base: the network of a run that is only read, if any.
    """

    init: Callable[..., Params]
    bound: Callable[[Fixed], Callable]
    base: Model | None = None


def network_of(model: Model) -> Network:
    """A model that attends to the run's prompt, if it has one."""

    def bound(fixed):
        def apply(params, z_t, t, condition, *, key=None):
            context = prompts.context(fixed, condition)
            return model.apply(params, z_t, t, condition, key=key, context=context)

        return apply if prompts.FIXED in fixed else model.apply

    return Network(model.init, bound)


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """The method, see contracts.Method.

    Attributes:
      diffusion: section of the configuration.
      sampler: section to draw with.
      seed: of the noise of the pictures of samples.
      dims: of what is learnt: 2 for slices, 3 for volumes.
      depth_unit: see contracts.Translator.
      learnt: timesteps [n] that the network is trained on, rising.
      draw: the compiled sampler, see `drawing`.
      codec: of the space that is learnt in.
      parts: reads what is not learnt, see parts.read; with it a teacher's parameters.
      begun: makes `start`.
    """

    players: Mapping[str, Player]
    mesh: Mesh
    feed: Feed | None
    network: Network
    schedule: Schedule
    diffusion: ConfigDict
    sampler: ConfigDict
    seed: int
    dims: int
    depth_unit: int
    conditions: tuple[str, ...]
    learnt: np.ndarray
    draw: Callable
    codec: Codec
    parts: Callable[[], Fixed]
    memory: Memory = ()
    begun: Callable[[], Mapping[str, Params]] | None = None

    @property
    def start(self) -> Mapping[str, Params] | None:
        """See contracts.Method; made anew whenever it is asked for, and not kept."""
        return self.begun() if self.begun else None

    @functools.cached_property
    def fixed(self) -> Fixed:
        """See contracts.Method; read when it is asked for."""
        return self.parts()

    def held_out(self, averages: Averages, fixed: Fixed, example: Example) -> Metrics:
        """See contracts.Method: the mean squared error of the prediction, in all and by timestep.

        Each image is seen at one timestep; the images are spread evenly over all that are learnt.
        """
        count, steps = len(example["x"]), self.schedule.steps
        levels = (np.arange(count) + 0.5) / count
        learnt = self.learnt.astype(np.int32)
        t = learnt[np.minimum((levels * len(learnt)).astype(np.int32), len(learnt) - 1)]
        t = np.random.default_rng(0).permutation(t)
        side, channels = self.codec.side, self.codec.channels
        sides = (n // side for n in example["x"].shape[1:-1])
        eps = np.random.default_rng(1).standard_normal((count, *sides, channels))
        split = functools.partial(meshes.split, meshes.batch(self.mesh))
        # Latents in parts: what encodes them may be far larger than what learns them. Volumes too.
        whole = self.codec.bounded and self.dims == 2
        size = count if whole else math.gcd(count, len(self.feed.example["x"]))
        errors = []
        for rows, part in volumes.parts(self.mesh, example, size):
            part = self._encoded(fixed, part)
            drawn = split((t[rows], eps[rows].astype(np.float32)))
            errors.append(meshes.whole(self._errors(averages[NETWORK], fixed, part, *drawn)))
        error = np.concatenate(errors)
        bins = t * BINS // steps
        by_bin = [float(error[bins == b].mean()) for b in range(BINS) if (bins == b).any()]
        return {"heldout_loss": float(error.mean()), "heldout_loss_t": by_bin}

    @functools.cached_property
    def _encoded(self) -> Callable:
        """(fixed, example) -> the example in the codec's space, always the same."""
        return jax.jit(functools.partial(encoded, self.codec))

    @functools.cached_property
    def _errors(self) -> Callable:
        def errors(params, fixed, *example):
            apply = self.network.bound(fixed)
            return process.errors(apply, self.schedule, self.diffusion, params, *example)

        return jax.jit(errors)

    def samples(self, averages: Averages, fixed: Fixed) -> np.ndarray:
        """See contracts.Method: rows of truth | contour, source, picture: what is seen | sample."""
        shown, count = self._shown
        split = functools.partial(meshes.split, meshes.drawing(self.mesh, self.dims))
        knots = noise.independent(self.seed, "samples", shown["x"].shape[self.dims - 2])
        seen = split(shown["condition"])
        drawn = meshes.whole(self.translator(averages, fixed)(seen, split(knots)))
        if self.dims == 3:
            return volumes.picture(shown, drawn)
        return examples.picture(shown, drawn[:count])

    @functools.cached_property
    def _shown(self) -> tuple[Example, int]:
        return (volumes.shown(self.feed), 1) if self.dims == 3 else self.feed.shown(SAMPLES)

    def translator(self, averages: Averages, fixed: Fixed) -> Translator:
        """See contracts.Method."""
        sees, batch = frozenset(self.conditions), self.sampler.batch
        units = {"unit": self.codec.side, "depth_unit": self.depth_unit}
        weights = averages[NETWORK], fixed
        return Translator(self.draw, weights, sees, batch, denoises=True, dims=self.dims, **units)


def build(
    ours: Run,
    *,
    store: Store | None = None,
    mesh: Mesh | None = None,
    sampler: ConfigDict | None = None,
    teach: Callable | None = None,
    network: Network | None = None,
) -> Diffusion:
    """The method of a run.

    Args:
      store: to learn from; without it the method can only draw.
      mesh: the devices to use; without it those that fit the configuration's batches.
      sampler: section to draw with in place of the run's own.
      teach: see `loss`.
      network: in place of the U-Net of the configuration.

    Raises:
      InputError: timesteps to visit that a run of few steps has not learnt; latents that are
        clipped; a context without a prompt, or the reverse.
    """
    config = ours.config
    sampler = sampler or config.sampler
    space = codecs.of(ours)
    if sampler.clip and not space.bounded:
        raise InputError("config.sampler.clip: latents have no bounds; set it to False")
    if bool(config.model.context) != (ours.prompt is not None):
        raise InputError(
            "config.model.context: for a network that attends to a prompt, which a run has from "
            "the one that it begins with, by --init"
        )
    network = network or network_of(
        models.build(config.model, channels=space.channels, side=space.side)
    )
    schedule = schedules.build(config.diffusion)
    visited = samplers.timesteps(sampler, schedule.steps)
    learnt = check_visited(config, visited)
    player = Player(
        network.init,
        loss(
            network.bound,
            schedule,
            config.diffusion,
            learnt=learnt,
            teach=teach,
            condition_dropout=config.train.condition_dropout,
            codec=space,
        ),
        state.optimiser(config.train),
        state.learning_rate(config.train),
    )
    players = {NETWORK: player}
    mesh = state.mesh_for(config.mesh, config.train, players) if mesh is None else mesh
    conditions = tuple(config.model.conditions)
    feed = None
    if store is not None:
        feed = volumetric.feed(config, store, ours.contours, conditions, mesh)
    return Diffusion(
        players=players,
        mesh=mesh,
        feed=feed,
        network=network,
        schedule=schedule,
        diffusion=config.diffusion,
        sampler=sampler,
        seed=config.seed,
        dims=config.model.dims,
        depth_unit=configuration.depth_unit(config.model),
        conditions=conditions,
        learnt=learnt,
        draw=drawing(
            network.bound,
            schedule,
            config.diffusion.prediction,
            sampler,
            visited,
            mesh,
            volumes.sides(config, ours.grid.size // space.side),
            codec=space,
        ),
        codec=space,
        parts=functools.partial(parts.read, ours, mesh, base=network.base),
    )


# --------------------------------------------------------------------------------------------------
# What is learnt
# --------------------------------------------------------------------------------------------------


def loss(
    bound: Callable,
    schedule: Schedule,
    config,
    *,
    learnt=None,
    teach: Callable | None = None,
    condition_dropout: float = 0.0,
    codec: Codec = codecs.PIXELS,
) -> Callable:
    """The training loss, see contracts.Player: the weighted mean of `process.errors`.

    With `teach`, the network learns to find in z_t not the x_0 and eps that it was made of, but
    those that a teacher finds.

    Args:
      bound: see Network.
      config: a `diffusion` section (see config.py).
      learnt: timesteps [n] to draw t from, rising; all T without it.
      teach: (fixed, z_t, t, condition) -> (x_0, eps), see distilled.teaching.
      condition_dropout: probability with which an example loses conditions, see process.drop.
      codec: of the space that is learnt in.
    """
    learnt = jnp.arange(schedule.steps) if learnt is None else jnp.asarray(learnt)

    def training_loss(params, everyone, example, key, fixed, memory):
        del everyone
        key_t, key_eps, key_drop, key_network = jax.random.split(key, 4)
        example = encoded(codec, fixed, example, jax.random.fold_in(key, CODEC))
        x_0 = example["x"]
        t = process.timesteps(key_t, x_0.shape[0], learnt, config.time_exponent)
        eps = jax.random.normal(key_eps, x_0.shape, x_0.dtype)
        if condition_dropout:
            # Of contours as ever, so that runs go on as they began.
            scaled = {SOURCE.name, PROMPT.name} & example["condition"].keys()
            drop = process.drop_for_scales if scaled else process.drop
            seen = drop(key_drop, example["condition"], condition_dropout)
            example = example | {"condition": seen}
        if teach:
            z_t = process.diffuse(schedule, x_0, eps, t)
            x_0, eps = teach(fixed, z_t, t, example["condition"])
            example = example | {"x": x_0}
        apply = bound(fixed)
        squared = process.errors(apply, schedule, config, params, example, t, eps, key=key_network)
        weights = process.weight(schedule, config.prediction, config.weighting, config.gamma, t)
        value = (weights * squared).mean()
        return value, ({}, memory)

    return training_loss


def encoded(codec: Codec, fixed: Fixed, example: Example, key=None) -> Example:
    """An example in a codec's space; without a key the same whenever it is asked for."""
    x, known = codec.learnt(fixed, example["x"], key), example.get("seen", {})
    seen = {**codec.seen(fixed, example["condition"]), **known, **prompts.shown(fixed, x.shape)}
    return example | {"x": x, "condition": seen}


def timesteps(config) -> np.ndarray:
    """The timesteps [n] that a network of this configuration learns, rising.

    A network that is only asked at n timesteps need not learn the others (Fast-DDPM, Jiang et al.
    2024, arXiv 2405.14802).
    """
    if config.diffusion.timesteps == "all" and not config.distillation.substeps:
        return np.arange(config.diffusion.steps)
    return np.sort(samplers.timesteps(config.sampler, config.diffusion.steps))


def check_visited(config, visited: np.ndarray, who: str = "the run") -> np.ndarray:
    """The timesteps that a network of this configuration learns; InputError where [n] are others.

    Args:
      who: whose network it is, for the message.
    """
    known = timesteps(config)
    if not np.isin(visited, known).all():
        raise InputError(
            f"{who}: learnt the timesteps of {config.sampler.name} with {len(known)} steps alone, "
            f"and is asked at others; take --steps={len(known)}, or train with "
            f"--config.diffusion.timesteps=all"
        )
    return known


# --------------------------------------------------------------------------------------------------
# How it draws
# --------------------------------------------------------------------------------------------------


def drawing(
    bound: Callable,
    schedule: Schedule,
    prediction: str,
    config,
    visited: np.ndarray,
    mesh: Mesh,
    tile: tuple[int, ...] = (0, 0),
    codec: Codec = codecs.PIXELS,
) -> Callable:
    """The compiled sampler of a `sampler` section.

    It is ((params, fixed), condition {name: [B, *S, c]}, knots, beside) -> x [B, *S, 1], where
    `fixed` is what the codec needs. All randomness of a
    slice comes from its own knots, so that neither the others in the batch nor the number of
    devices change it. `beside` [B, 2] are the neighbours that estimates are coupled with, and B may
    then be a multiple of the batch; or it is None. Of a volume B is 1, and the knots are those of
    its D slices: neither tiles nor slices that follow change the noise of one.

    Args:
      bound: see Network.
      prediction: what the network predicts.
      config: a `sampler` section.
      visited: timesteps [n] to visit, falling.
      tile: sides of what the network has learnt, in elements of the codec's space, three of
        volumes; larger pictures are drawn in tiles of that. 0: the whole of it.
    """
    draw_from, of_volumes = samplers.build(config, visited), len(tile) == 3
    scales = {  # in the order of Brooks et al. 2023, equation 3: first the image
        SOURCE.name: config.source_guidance,
        PICTURE.name: config.guidance,
        CONTOUR.name: config.guidance,
        NEIGHBOUR.name: config.guidance * (config.neighbour_guidance if config.scgd else 1.0),
        PROMPT.name: config.prompt_guidance,
    }

    def sample(weights, condition, knots, beside):
        params, fixed = weights
        count = len(knots.keys) if beside is None else len(beside)
        # Of all slices of a volume at once, an autoencoder would keep too much.
        parted = count > config.batch and not codec.bounded
        seen, show = (
            codecs.in_parts(of, config.batch) if parted else of for of in (codec.seen, codec.drawn)
        )
        condition = seen(fixed, condition) if condition else {}
        nothing = (count, *tile[1:]) if of_volumes else tile
        space = next((of.shape[1:-1] for of in condition.values()), nothing)
        count, drawn = (1, noise.of_volume) if of_volumes else (count, noise.drawn)
        draws = drawn(knots, (*space[-2:], codec.channels))
        condition = {**condition, **prompts.shown(fixed, (count, *space, codec.channels))}
        denoiser = functools.partial(
            guidance.denoiser, bound(fixed), params, schedule, prediction, scales=scales
        )
        denoiser = volumes.in_tiles(denoiser, space, tile, config, mesh)
        if beside is None:
            denoise = denoiser(condition)
        else:
            denoise = coupling.in_parts(denoiser, condition, config.batch)
            denoise = coupling.coupled(denoise, beside, config.coupling)
        drawn = draw_from(denoise, schedule, draws(config.steps), draws)
        return show(fixed, drawn).clip(-1, 1)

    split = meshes.drawing(mesh, len(tile))
    return jax.jit(
        sample,
        in_shardings=(None, split, split, split),
        out_shardings=split,
        compiler_options=compiling.options(mesh),
    )


def _training(config: ConfigDict) -> dict[str, str]:
    diffusion, sampler = config.diffusion, config.sampler
    steps = f"{sampler.steps} step{'s' * (sampler.steps != 1)} by default"
    return {
        **volumes.training(config),
        "diffusion": f"{diffusion.steps} steps, {diffusion.schedule} schedule, predicts "
        f"{diffusion.prediction}",
        "sampler": f"{sampler.name}, {steps}",
    }


ABOUT = About(
    kind="A diffusion model",
    how="after ContourDiff (Chen et al., arXiv 2403.10786)",
    network=lambda config: models.described(config.model),
    training=_training,
)
