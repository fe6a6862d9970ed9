# SPDX-License-Identifier: Apache-2.0
"""The training state and one optimiser step, for the players of any method (contracts.py).

Everything periodic or scheduled is counted in images seen, so that a change of batch size
changes nothing else.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from contourdiff_jax.contracts import Averages, Memory, Metrics, Params, Player
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import mesh as meshes

# Folded into the keys that the parameters of further players are made of.
PLAYERS = 2**31 - 1


class TrainState(NamedTuple):
    """All that training carries from step to step, and all that a checkpoint holds.

    The randomness of a step is fold_in(key, step), so it needs no more than the key of the run.
    """

    step: jax.Array  # scalar int32, optimiser steps done
    key: jax.Array  # raw data [2] uint32 of the run's key
    params: Mapping[str, Params]  # of each player
    ema: Mapping[str, Params]  # exponential moving average of params, of players that have one
    optimiser: Mapping[str, Any]  # optax states
    memory: Memory = ()  # what the method carries from step to step

    @property
    def averages(self) -> Averages:
        """What is drawn with: each player's average, or its parameters where no average is kept."""
        return {name: self.ema.get(name, params) for name, params in self.params.items()}


# --------------------------------------------------------------------------------------------------
# Optimisers
# --------------------------------------------------------------------------------------------------


def steps(config) -> int:
    """Optimiser steps of a `train` section: `images` rounded up to whole batches."""
    return -(-config.images // config.batch)


def learning_rate(config) -> optax.Schedule:
    """Linear warm-up, then to zero at the last step, or on at the peak: step -> learning rate.

    The way down is a cosine, or linear after a share of the steps at the peak, as in pix2pix and
    CycleGAN, where it goes down by epochs, to zero at the end of the last.
    """
    total, peak = steps(config), config.learning_rate
    warmup = min(config.warmup // config.batch, total // 2)
    if config.decay == "cosine":
        return optax.schedules.warmup_cosine_decay_schedule(
            init_value=0.0, peak_value=peak, warmup_steps=warmup, decay_steps=total
        )
    begin = total if config.decay == "none" else max(warmup, round(config.constant * total))

    def linear(step):
        left = 1.0 if begin == total else (total - step) / max(1, total - begin)
        risen = step / warmup if warmup else 1.0
        return peak * jnp.clip(jnp.minimum(risen, left), 0, 1)

    return linear


def optimiser(config) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019) of a `train` section, with clipped gradients.

    Without weight decay it is Adam (Kingma & Ba 2015, arXiv 1412.6980).
    """
    adam = optax.adamw(
        learning_rate(config),
        b1=config.beta_1,
        weight_decay=config.weight_decay,
        mask=_decayed,
    )
    return optax.chain(optax.clip_by_global_norm(config.clip), adam) if config.clip else adam


def _decayed(params):
    """Weight decay is for kernels; shrinking scales and biases only moves the mean."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


# --------------------------------------------------------------------------------------------------
# The state
# --------------------------------------------------------------------------------------------------


def init(players: Mapping[str, Player], key, memory: Memory = ()) -> TrainState:
    """The state before the first step.

    If this is compiled with out_shardings, no device ever holds it whole.
    """
    params_key, run_key = jax.random.split(key)
    params = {
        name: player.init(of_player(params_key, i))
        for i, (name, player) in enumerate(players.items())
    }
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key_data(run_key),
        params=params,
        ema={n: jax.tree.map(jnp.copy, params[n]) for n, p in players.items() if p.averaged},
        optimiser={name: player.optimiser.init(params[name]) for name, player in players.items()},
        memory=memory,
    )


def of_player(key, number: int):
    """The key that a player's parameters are made of; the first player's is the key itself."""
    return jax.random.fold_in(jax.random.fold_in(key, PLAYERS), number) if number else key


def mesh_for(config, section, players: Mapping[str, Player], memory: Memory = ()) -> Mesh:
    """The mesh of a `mesh` section on which a `train` section's batches can be computed.

    Raises InputError where there is none.
    """
    shapes = jax.eval_shape(lambda key: init(players, key, memory), jax.random.key(0))
    at_once = max(1, section.batch // section.accumulate)
    made = meshes.make(config, batch=at_once, least=meshes.LEARNT, held=shapes)
    meshes.check_batch(made, section.batch, "config.train.batch")
    if section.batch % (section.accumulate * made.size):
        raise InputError(
            f"config.train.accumulate: a batch of {section.batch} on {made.size} devices "
            f"cannot be computed in {section.accumulate} equal parts"
        )
    return made


# --------------------------------------------------------------------------------------------------
# A step
# --------------------------------------------------------------------------------------------------


def ema_decay(config, images):
    """Decay of one step after `images` seen.

    With a half-life of h images it is 0.5^(batch / h); h is at most the share `ema_rampup` of the
    images seen, so that the random first parameters do not linger in the average (Karras et al.
    2024, arXiv 2312.02696, and EDM's ramp-up).
    """
    halflife = jnp.minimum(config.ema_halflife, images * config.ema_rampup)
    return 0.5 ** (config.batch / jnp.maximum(halflife, 1e-8))


def step(config, players: Mapping[str, Player]) -> Callable:
    """One optimiser step of each player, in turn: (state, example, fixed) -> (state, metrics).

    With config.accumulate = A, the batch is computed in A parts, one after the other, and their
    gradients are averaged. Where a loss or a gradient is not finite, the state stays as it was, its
    step counter included. With several players, the names of metrics begin with the player's.

    Args:
      config: a `train` section.
      players: see contracts.Player.
    """

    def update(name: str, state: TrainState, key, example, fixed):
        player = players[name]
        metrics, grads, memory = _gradients(
            player.loss, config.accumulate, state, name, example, key, fixed
        )
        params, before = state.params[name], state.optimiser[name]
        updates, optimiser_state = player.optimiser.update(grads, before, params)
        params = optax.apply_updates(params, updates)
        metrics |= {
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": player.learning_rate(state.step),
        }
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        after = state._replace(
            params={**state.params, name: params},
            optimiser={**state.optimiser, name: optimiser_state},
            memory=memory,
        )
        return after, metrics, finite

    def train_step(state: TrainState, example, fixed=()) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        after, every, finite = state, {}, True
        for name in players:
            after, metrics, good = update(name, after, key, example, fixed)
            prefix = f"{name}_" if len(players) > 1 else ""
            every |= {prefix + metric: value for metric, value in metrics.items()}
            finite &= good
        decay = ema_decay(config, (state.step + 1) * config.batch)
        ema = {
            name: jax.tree.map(
                lambda mean, p: decay * mean + (1 - decay) * p, average, after.params[name]
            )
            for name, average in state.ema.items()
        }
        after = after._replace(step=state.step + 1, ema=ema)
        return jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, state), every

    return train_step


def _gradients(loss: Callable, parts: int, state: TrainState, name: str, example, key, fixed):
    """(metrics, gradients, memory) of a player, with its batch computed in so many parts."""
    value_and_grad = jax.value_and_grad(loss, has_aux=True)
    params, others = state.params[name], state.params

    def of(example, key, memory):
        aux, grads = value_and_grad(params, others, example, key, fixed, memory)
        loss, (metrics, memory) = aux
        return ({"loss": loss, **metrics}, grads), memory

    if parts == 1:
        (metrics, grads), memory = of(example, key, state.memory)
        return metrics, grads, memory

    # Part k takes every A-th example, so that each device keeps its own: no data moves.
    split = jax.tree.map(lambda a: jnp.moveaxis(a.reshape(-1, parts, *a.shape[1:]), 1, 0), example)

    def add(carry, part):
        total, memory = carry
        index, example = part
        of_part, memory = of(example, jax.random.fold_in(key, index), memory)
        return (jax.tree.map(jnp.add, total, of_part), memory), None

    first = jax.tree.map(lambda a: a[0], split)
    shapes, _ = jax.eval_shape(of, first, key, state.memory)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (total, memory), _ = jax.lax.scan(add, (zeros, state.memory), (jnp.arange(parts), split))
    metrics, grads = jax.tree.map(lambda a: a / parts, total)
    return metrics, grads, memory
