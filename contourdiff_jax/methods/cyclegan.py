# SPDX-License-Identifier: Apache-2.0
"""CycleGAN: two generators, there and back, and two critics, learnt from images without pairs.

Zhu et al. (arXiv 1703.10593), as their code has it (junyanz/pytorch-CycleGAN-and-pix2pix): what is
drawn should pass for real, come back as it was, and stay as it is where it is drawn of its own
domain already. Both generators learn in one step, and both critics in the next, with halved losses
and of images that are drawn now or, half of them, in steps before.

A run translates both ways: from its source to its target or, built `backward`, back.

Shapes: B batch, H rows, W columns, P images of a pool.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

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
from contourdiff_jax.data.feeds import Slices, Unpaired
from contourdiff_jax.data.store import Store
from contourdiff_jax.diffusion import noise
from contourdiff_jax.methods import adversarial
from contourdiff_jax.models import generators
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training import alarms, state
from contourdiff_jax.training.run import Run

GENERATORS, CRITICS = "generators", "critics"  # the players, in the order in which they learn
# The two domains. A generator is called by what it draws, a critic by what it judges.
TARGET, ORIGIN = "target", "source"
OTHER = 2**62  # beyond all seeds of runs, so that the source has an order of its own
ACROSS = {TARGET: ORIGIN, ORIGIN: TARGET}


@dataclasses.dataclass(frozen=True)
class CycleGAN:
    """The method, see contracts.Method.

    Attributes:
      draws: the domain that it draws, of the other's images.
      batch: slices drawn at once.
      draw: a compiled generator, see adversarial.drawing.
    """

    players: Mapping[str, Player]
    mesh: Mesh
    feed: Unpaired | None
    memory: Memory
    draws: str
    batch: int
    draw: Callable
    fixed: Fixed = ()
    start: Mapping[str, Params] | None = None

    def held_out(self, averages: Averages, fixed: Fixed, example: Example) -> Metrics:
        """See contracts.Method: the error of what comes back, and the numbers of alarms.py.

        There are no pairs to compare with, so that no number says how good a translation is. The
        names of alarms end with the domain that is drawn.
        """
        real = {TARGET: example["x"], ORIGIN: example["source"]}
        drawn = {side: self._drawn(averages, side, real[ACROSS[side]]) for side in ACROSS}
        errors, numbers = [], {}
        images = {side: meshes.whole(image)[..., 0] for side, image in real.items()}
        for side, other in ACROSS.items():
            back = meshes.whole(self._drawn(averages, side, drawn[other]))[..., 0]
            errors.append(np.abs(back - images[side]).mean())
            now = meshes.whole(drawn[side])[..., 0]
            measured = alarms.numbers(now, images[side], images[other], paired=False)
            numbers |= {f"{name}_{side}": value for name, value in measured.items()}
        return {"heldout_loss": float(np.mean(errors))} | numbers

    def _drawn(self, averages: Averages, side: str, images) -> jax.Array:
        """Images [B, H, W, 1] of a domain, of those of the other, over the mesh."""
        knots = noise.independent(0, adversarial.HELD_OUT, len(images))
        knots = meshes.split(meshes.batch(self.mesh), knots)
        return self.draw(averages[GENERATORS][side], {SOURCE.name: images}, knots)

    def samples(self, averages: Averages, fixed: Fixed) -> np.ndarray:
        """See contracts.Method: rows of source | drawn target | target | drawn source."""
        shown, count = self._shown
        columns = []
        for side, image in ((TARGET, shown["source"]), (ORIGIN, shown["x"])):
            over = meshes.split(meshes.batch(self.mesh), image)
            columns += [image, meshes.whole(self._drawn(averages, side, over))]
        rows = np.concatenate([column[:count, ..., 0] for column in columns], axis=2)
        return examples.grey(np.concatenate(rows))

    @functools.cached_property
    def _shown(self) -> tuple[Example, int]:
        return self.feed.shown(adversarial.SHOWN)

    def translator(self, averages: Averages, fixed: Fixed) -> Translator:
        """See contracts.Method."""
        del fixed
        params = averages[GENERATORS][self.draws]
        sees = frozenset((SOURCE.name,))
        return Translator(self.draw, params, sees, self.batch, denoises=False)


def build(
    ours: Run,
    *,
    store: Store | None = None,
    source: Store | None = None,
    mesh: Mesh | None = None,
    sampler: ConfigDict | None = None,
) -> CycleGAN:
    """The method of a run: see diffusion.build; of `sampler`, the batch alone counts.

    Args:
      store, source: of the target and of the source, to learn from.
    """
    config, section = ours.config, ours.config.adversarial
    generator = generators.resnet(1, blocks=section.blocks, width=section.width, norm=section.norm)
    critic = adversarial.critic(1, section)
    losses = Losses(generator.apply, critic.apply, section)
    how = state.optimiser(config.train), state.learning_rate(config.train)
    players = {
        GENERATORS: Player(_both(generator.init), losses.of_generators, *how),
        CRITICS: Player(_both(critic.init), losses.of_critics, *how, averaged=False),
    }
    memory = begun(config.train.batch, section.pool, ours.grid.size)
    mesh = state.mesh_for(config.mesh, config.train, players, memory) if mesh is None else mesh
    feed = None
    if store is not None:

        def slices(of: Store, seed: int) -> Slices:
            return Slices.under(config, of, ours.contours, (), mesh, seed=seed)

        feed = Unpaired(slices(store, config.seed), slices(source, OTHER + config.seed))
    return CycleGAN(
        players=players,
        mesh=mesh,
        feed=feed,
        memory=memory,
        draws=ORIGIN if ours.backward else TARGET,
        batch=(sampler or config.sampler).batch,
        draw=adversarial.drawing(generator, (SOURCE.name,), mesh, random=False),
    )


def _both(init: Callable) -> Callable:
    """The parameters of two networks of one kind."""

    def of_both(key):
        return {side: init(k) for side, k in zip(ACROSS, jax.random.split(key), strict=True)}

    return of_both


# --------------------------------------------------------------------------------------------------
# What is learnt
# --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Losses:
    """The losses of both players, see contracts.Player (arXiv 1703.10593, section 3).

    The images drawn in a step reach the critics by the memory: those that the generators learnt
    from, drawn before they did.

    Attributes:
      draw: of a generator, see generators.Generator.
      judge: of a critic, see critics.Critic.
      config: an `adversarial` section.
    """

    draw: Callable
    judge: Callable
    config: ConfigDict

    def of_generators(self, params, everyone, example, key, fixed, memory):
        """What the critics doubt, what does not come back, and what should have stayed."""
        real = {TARGET: example["x"], ORIGIN: example["source"]}
        drawn = {side: self.draw(params[side], real[ACROSS[side]]) for side in ACROSS}
        doubt = cycle = identity = 0.0
        for side, other in ACROSS.items():
            logits = self.judge(everyone[CRITICS][side], drawn[side])
            doubt += adversarial.doubt(self.config.loss, logits)
            back = self.draw(params[side], drawn[other])
            cycle += jnp.abs(back - real[side]).mean()
            if self.config.identity:
                kept = self.draw(params[side], real[side])
                identity += jnp.abs(kept - real[side]).mean()
        value = doubt + self.config.cycle * (cycle + self.config.identity * identity)
        metrics = {"adversarial": doubt, "cycle": cycle, "identity": identity}
        return value, (metrics, {**memory, "drawn": drawn})

    def of_critics(self, params, everyone, example, key, fixed, memory):
        """How badly they tell real images from drawn ones, the pool's among them."""
        real = {TARGET: example["x"], ORIGIN: example["source"]}
        value, shown, pools = 0.0, memory["drawn"], {}
        if self.config.pool:
            for number, side in enumerate(ACROSS):
                shown_now, pools[side] = exchanged(
                    jax.random.fold_in(key, number), memory["pool"][side], shown[side]
                )
                shown = {**shown, side: shown_now}
        for side in ACROSS:
            value += adversarial.told_apart(
                self.config.loss, self.judge, params[side], real[side], shown[side]
            )
        return value, ({}, {**memory, **({"pool": pools} if pools else {})})


# --------------------------------------------------------------------------------------------------
# The pool (Shrivastava et al. 2017, arXiv 1612.07828, section 2.3)
# --------------------------------------------------------------------------------------------------


def begun(batch: int, pool: int, size: int) -> Memory:
    """What the first step finds: nothing drawn, and a pool of so many images that is empty."""

    def images(count: int) -> np.ndarray:
        return np.zeros((count, size, size, 1), np.float32)

    memory = {"drawn": {side: images(batch) for side in ACROSS}}
    if pool:
        memory["pool"] = {side: {"images": images(pool), "filled": np.int32(0)} for side in ACROSS}
    return memory


def exchanged(key, pool, images):
    """(images to show a critic [B, H, W, 1], the pool after them) of those that are drawn now.

    One image after the other: while there is room it is kept and shown. Then, with a probability of
    one half, one of the pool is shown in its place and it takes that one's place; or it is shown
    and not kept.
    """
    size = len(pool["images"])

    def one(pool, each):
        image, key = each
        kept, filled = pool["images"], pool["filled"]
        key_swap, key_place = jax.random.split(key)
        full = filled >= size
        place = jnp.where(full, jax.random.randint(key_place, (), 0, size), filled)
        swapped = jax.random.uniform(key_swap) > 0.5
        before = kept[place]
        shown = jnp.where(full & swapped, before, image)
        after = kept.at[place].set(jnp.where(full & ~swapped, before, image))
        return {"images": after, "filled": jnp.minimum(filled + 1, size)}, shown

    pool, shown = jax.lax.scan(one, pool, (images, jax.random.split(key, len(images))))
    return shown, pool


def _network(config: ConfigDict) -> str:
    section = config.adversarial
    return f"ResNet, {section.blocks} blocks, width {section.width}, {section.norm} norms"


def _training(config: ConfigDict) -> dict[str, str]:
    section = config.adversarial
    return {
        "loss": f"{section.loss.replace('_', ' ')} of critics, {section.cycle:g} times L1 of what "
        f"comes back, {section.cycle * section.identity:g} times that of what should stay",
        "pool": f"{section.pool} images",
    }


ABOUT = About(
    kind="A network",
    how="or the reverse, taught by critics, after CycleGAN (Zhu et al., arXiv 1703.10593)",
    network=_network,
    training=_training,
    fails=adversarial.FAILS,
)
