# SPDX-License-Identifier: Apache-2.0
"""The training state and one optimiser step.

Everything periodic or scheduled is counted in images seen, so that a change of batch size
changes nothing else.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from contourdiff_jax.errors import InputError

PERIODIC = ("log", "evaluate", "sample", "checkpoint")  # fields of a `train` section


class TrainState(NamedTuple):
    """All that training carries from step to step, and all that a checkpoint holds.

    The randomness of a step is fold_in(key, step), so it needs no more than the key of the run.
    """

    step: jax.Array  # scalar int32, optimiser steps done
    key: jax.Array  # raw data [2] uint32 of the run's key
    params: Any
    ema: Any  # exponential moving average of params, what is sampled with
    optimiser: Any  # optax state


def check(config) -> None:
    """Raise InputError for a `train` section with a number that cannot be."""
    for name in ("images", "batch", "clip", "ema_halflife", "keep"):
        if not config[name] > 0:
            raise InputError(f"config.train.{name}: {config[name]} must be above 0")
    for name in ("learning_rate", "warmup", "weight_decay", "ema_rampup", "resident", *PERIODIC):
        if not config[name] >= 0:
            raise InputError(f"config.train.{name}: {config[name]} must not be negative")
    for name in ("condition_dropout", "neighbour"):
        if not 0 <= config[name] <= 1:
            raise InputError(f"config.train.{name}: {config[name]} must lie between 0 and 1")


def steps(config) -> int:
    """Optimiser steps of a `train` section: `images` rounded up to whole batches."""
    return -(-config.images // config.batch)


def learning_rate(config) -> optax.Schedule:
    """Linear warm-up, then a cosine to zero at the last step: step -> learning rate."""
    return optax.schedules.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=min(config.warmup // config.batch, steps(config) // 2),
        decay_steps=steps(config),
    )


def optimiser(config) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019) of a `train` section.

    With warm-up, cosine decay to zero and clipping.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(learning_rate(config), weight_decay=config.weight_decay, mask=_decayed),
    )


def _decayed(params):
    """Weight decay is for kernels; shrinking scales and biases only moves the mean."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def init(config, model_init: Callable, key) -> TrainState:
    """The state before the first step.

    Jit it with out_shardings and no device ever holds it whole.
    """
    params_key, run_key = jax.random.split(key)
    params = model_init(params_key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key_data(run_key),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        optimiser=optimiser(config).init(params),
    )


def ema_decay(config, images):
    """Decay of one step after `images` seen.

    Half-life h in images: decay = 0.5^(batch / h), with h at most `ema_rampup` of the images seen,
    so that the random first parameters do not linger in the average (Karras et al. 2024, arXiv
    2312.02696, and EDM's ramp-up).
    """
    halflife = jnp.minimum(config.ema_halflife, images * config.ema_rampup)
    return 0.5 ** (config.batch / jnp.maximum(halflife, 1e-8))


def step(config, loss: Callable) -> Callable:
    """One optimiser step: (state, example, *fixed) -> (state, metrics).

    Args:
      config: a `train` section.
      loss: (params, example, key, *fixed) -> (loss, metrics); see diffusion/process.py.

    With config.accumulate = A, the batch is computed in A parts one after the other and their
    gradients averaged. Where loss or gradient is not finite, the state stays as it was, its step
    counter included.
    """
    transform = optimiser(config)
    value_and_grad = jax.value_and_grad(loss, has_aux=True)

    def gradients(params, example, key, *fixed):
        if config.accumulate == 1:
            (_, metrics), grads = value_and_grad(params, example, key, *fixed)
            return metrics, grads

        # Part k takes every A-th example, so that each device keeps its own: no data moves.
        parts = jax.tree.map(
            lambda a: jnp.moveaxis(a.reshape(-1, config.accumulate, *a.shape[1:]), 1, 0), example
        )

        def add(total, part):
            index, example = part
            key_of_part = jax.random.fold_in(key, index)
            (_, metrics), grads = value_and_grad(params, example, key_of_part, *fixed)
            return jax.tree.map(jnp.add, total, (metrics, grads)), None

        shapes = jax.eval_shape(
            lambda: value_and_grad(params, jax.tree.map(lambda a: a[0], parts), key, *fixed)
        )
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0][1], shapes[1]))
        total, _ = jax.lax.scan(add, zeros, (jnp.arange(config.accumulate), parts))
        return jax.tree.map(lambda a: a / config.accumulate, total)

    def train_step(state: TrainState, example, *fixed):
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        metrics, grads = gradients(state.params, example, key, *fixed)
        updates, optimiser_state = transform.update(grads, state.optimiser, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = ema_decay(config, (state.step + 1) * config.batch)
        ema = jax.tree.map(lambda average, p: decay * average + (1 - decay) * p, state.ema, params)
        after = TrainState(state.step + 1, state.key, params, ema, optimiser_state)

        metrics |= {
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": learning_rate(config)(state.step),
        }
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        return jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, state), metrics

    return train_step
