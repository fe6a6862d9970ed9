# SPDX-License-Identifier: Apache-2.0
"""pix2pix: a U-Net that learns from pairs to draw what a critic takes for real.

Isola et al. (arXiv 1611.07004), as their code has it (junyanz/pytorch-CycleGAN-and-pix2pix): the
critic sees the pair and learns first, its loss is halved, and the mean absolute error keeps the
generator at the truth. Dropout is the only noise, and stays on while drawing. What is seen is the
source of a paired store or, without pairs, the image's own contours.

Shapes: B batch, H rows, W columns, C or c channels, last.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from contourdiff_jax.contracts import (
    CONDITIONS,
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
from contourdiff_jax.diffusion import noise
from contourdiff_jax.methods import adversarial
from contourdiff_jax.models import generators
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training import alarms, state
from contourdiff_jax.training.run import Run

CRITIC, GENERATOR = "critic", "generator"  # the players, in the order in which they learn


@dataclasses.dataclass(frozen=True)
class Pix2Pix:
    """The method, see contracts.Method.

    Attributes:
      conditions: names of what is seen.
      batch: slices drawn at once.
      seed: of dropout in pictures of samples.
      draw: the compiled generator, see adversarial.drawing.
    """

    players: Mapping[str, Player]
    mesh: Mesh
    feed: Slices | None
    conditions: tuple[str, ...]
    batch: int
    seed: int
    draw: Callable
    fixed: Fixed = ()
    memory: Memory = ()
    start: Mapping[str, Params] | None = None

    def held_out(self, averages: Averages, fixed: Fixed, example: Example) -> Metrics:
        """See contracts.Method: the mean absolute error, and the numbers of training/alarms.py."""
        drawn, truth = self._drawn(averages, example["condition"]), meshes.whole(example["x"])
        sources = None
        if SOURCE.name in self.conditions:
            sources = meshes.whole(example["condition"][SOURCE.name])[..., 0]
        numbers = alarms.numbers(drawn[..., 0], truth[..., 0], sources, paired=True)
        return {"heldout_loss": float(np.abs(drawn - truth).mean())} | numbers

    def _drawn(self, averages: Averages, condition) -> np.ndarray:
        """What is drawn of conditions over the mesh, on the host."""
        count = len(next(iter(condition.values())))
        knots = noise.independent(self.seed, adversarial.HELD_OUT, count)
        split = meshes.split(meshes.batch(self.mesh), knots)
        return meshes.whole(self.translator(averages, ())(condition, split))

    def samples(self, averages: Averages, fixed: Fixed) -> np.ndarray:
        """See contracts.Method and examples.picture."""
        shown, count = self._shown
        seen = meshes.split(meshes.batch(self.mesh), shown["condition"])
        return examples.picture(shown, self._drawn(averages, seen)[:count])

    @functools.cached_property
    def _shown(self) -> tuple[Example, int]:
        return self.feed.shown(adversarial.SHOWN)

    def translator(self, averages: Averages, fixed: Fixed) -> Translator:
        """See contracts.Method."""
        del fixed
        sees = frozenset(self.conditions)
        return Translator(self.draw, averages[GENERATOR], sees, self.batch, denoises=False)


def build(
    ours: Run,
    *,
    store: Store | None = None,
    mesh: Mesh | None = None,
    sampler: ConfigDict | None = None,
) -> Pix2Pix:
    """The method of a run: see diffusion.build; of `sampler`, the batch alone counts."""
    config, conditions = ours.config, tuple(ours.config.model.conditions)
    section, inputs = config.adversarial, sum(CONDITIONS[name].channels for name in conditions)
    generator = generators.unet(
        inputs,
        levels=section.levels,
        width=section.width,
        norm=section.norm,
        dropout=section.dropout,
    )
    critic = adversarial.critic(inputs + 1, section)
    losses = Losses(generator.apply, critic.apply, conditions, section)
    how = state.optimiser(config.train), state.learning_rate(config.train)
    players = {
        CRITIC: Player(critic.init, losses.of_critic, *how, averaged=False),
        GENERATOR: Player(generator.init, losses.of_generator, *how),
    }
    mesh = state.mesh_for(config.mesh, config.train, players) if mesh is None else mesh
    feed = None
    if store is not None:
        feed = Slices.under(config, store, ours.contours, conditions, mesh)
    return Pix2Pix(
        players=players,
        mesh=mesh,
        feed=feed,
        conditions=conditions,
        batch=(sampler or config.sampler).batch,
        seed=config.seed,
        draw=adversarial.drawing(generator, conditions, mesh, random=section.dropout > 0),
    )


@dataclasses.dataclass(frozen=True)
class Losses:
    """The losses of both players, see contracts.Player (arXiv 1611.07004, section 3.1).

    Attributes:
      draw: of the generator, see generators.Generator.
      judge: of the critic, see critics.Critic.
      conditions: names of what is seen.
      config: an `adversarial` section.
    """

    draw: Callable
    judge: Callable
    conditions: tuple[str, ...]
    config: ConfigDict

    def of_critic(self, params, everyone, example, key, fixed, memory):
        """How badly it tells real pairs from drawn ones."""
        seen, drawn = self._drawn(everyone[GENERATOR], example, key)
        pairs = (jnp.concatenate([seen, image], -1) for image in (example["x"], drawn))
        value = adversarial.told_apart(self.config.loss, self.judge, params, *pairs)
        return value, ({}, memory)

    def of_generator(self, params, everyone, example, key, fixed, memory):
        """How far from the truth it draws, and how little the critic takes for real."""
        seen, drawn = self._drawn(params, example, key)
        logits = self.judge(everyone[CRITIC], jnp.concatenate([seen, drawn], -1))
        doubt = adversarial.doubt(self.config.loss, logits)
        error = jnp.abs(drawn - example["x"]).mean()
        value = doubt + self.config.l1 * error
        return value, ({"adversarial": doubt, "l1": error}, memory)

    def _drawn(self, params, example, key):
        """What is seen [B, H, W, C] of an example and the image [B, H, W, 1] that it gives."""
        seen = adversarial.seen(self.conditions, example["condition"])
        return seen, self.draw(params, seen, key=key if self.config.dropout else None)


def _network(config: ConfigDict) -> str:
    section = config.adversarial
    return f"U-Net, {section.levels} levels, width {section.width}, {section.norm} norms"


def _training(config: ConfigDict) -> dict[str, str]:
    loss, l1 = (config.adversarial[name] for name in ("loss", "l1"))
    return {"loss": f"{loss.replace('_', ' ')} of a critic, and {l1:g} times L1"}


ABOUT = About(
    kind="A U-Net",
    how="taught by a critic, after pix2pix (Isola et al., arXiv 1611.07004)",
    network=_network,
    training=_training,
    fails=adversarial.FAILS,
)
