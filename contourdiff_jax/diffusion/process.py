# SPDX-License-Identifier: Apache-2.0
"""The forward process, what the network predicts, and its error.

Shapes: B batch, *S space, C channels (last); t [B] or a scalar, integers in [0, T).

With a_t = sqrt(alpha_bar_t) and s_t = sqrt(1 - alpha_bar_t) (Schedule.signal, Schedule.noise),
    z_t = a_t x_0 + s_t eps                        (Ho et al. 2020, equation 4)
    v_t = a_t eps - s_t x_0                        (Salimans & Ho 2022, appendix D)
so that x_0 = a_t z_t - s_t v_t and eps = s_t z_t + a_t v_t.
"""

import jax
import jax.numpy as jnp

from contourdiff_jax.diffusion.schedules import Schedule


def at(values, t, like):
    """values [T] at t, shaped to broadcast against `like` [B, *S, C]."""
    return values[t].reshape(jnp.shape(t) + (1,) * (like.ndim - jnp.ndim(t)))


def diffuse(schedule: Schedule, x_0, eps, t):
    """z_t = a_t x_0 + s_t eps."""
    return at(schedule.signal, t, x_0) * x_0 + at(schedule.noise, t, x_0) * eps


def target(schedule: Schedule, prediction: str, x_0, eps, t):
    """What the network should answer at z_t."""
    if prediction == "eps":
        return eps
    if prediction == "x0":
        return x_0
    return at(schedule.signal, t, x_0) * eps - at(schedule.noise, t, x_0) * x_0


def to_x_0(schedule: Schedule, prediction: str, output, z_t, t):
    """The network's answer at z_t -> its estimate of x_0."""
    a, s = at(schedule.signal, t, z_t), at(schedule.noise, t, z_t)
    if prediction == "eps":
        return (z_t - s * output) / a
    if prediction == "x0":
        return output
    return a * z_t - s * output


def weight(schedule: Schedule, prediction: str, weighting: str, gamma: float, t):
    """Weight [B] of the squared error, relative to the error of the predicted quantity.

    'x0' weights the error in x_0 alike at all timesteps: most of it arises where there is much
    noise, and there the contours decide what is drawn. 'min_snr' weights it by min(SNR, gamma)
    (Hang et al. 2023, arXiv 2303.09556, section 3.4). The same error measured in eps is SNR times
    larger and in v SNR + 1 times, hence the divisors.
    """
    if weighting == "none":
        return jnp.ones(t.shape, jnp.float32)
    snr = schedule.alpha_bar[t] / (1 - schedule.alpha_bar[t])
    divisor = {"eps": snr, "x0": jnp.ones_like(snr), "v": snr + 1}[prediction]
    return (1.0 if weighting == "x0" else jnp.minimum(snr, gamma)) / divisor


def timesteps(key, batch: int, learnt, exponent: float = 1.0):
    """t [B] = learnt[n u^exponent] of timesteps [n], rising; u uniform, spread over the batch.

    One random number shifts an even grid, so that each u by itself is uniform and the mean loss
    varies far less (Kingma et al. 2021, arXiv 2107.00630, appendix I.1). Exponents below 1 favour
    noisy timesteps.
    """
    offset = jax.random.uniform(key)
    u = jnp.mod(offset + jnp.arange(batch, dtype=jnp.float32) / batch, 1.0)
    count = len(learnt)
    return learnt[jnp.minimum((u**exponent * count).astype(jnp.int32), count - 1)]


def drop(key, condition, probability: float):
    """Conditions {name: [B, *S, c]}, each missing in an example with this probability.

    A missing one is zero everywhere, see contracts.Condition.
    """

    def dropped(key, value):
        keep = jax.random.bernoulli(key, 1 - probability, value.shape[:1])
        return value * keep.reshape(-1, *(1,) * (value.ndim - 1))

    keys = jax.random.split(key, len(condition))
    return {
        name: dropped(k, value)
        for k, (name, value) in zip(keys, sorted(condition.items()), strict=True)
    }


def drop_for_scales(key, condition, probability: float):
    """Conditions {name: [B, *S, c]} that are missing in an example with this probability.

    Of several, each is missing alone with it, and all are, so that what a scale for each of them
    asks for is learnt (Brooks et al. 2023, arXiv 2211.09800, section 3.2.1).
    """
    (batch,) = {len(value) for value in condition.values()}
    u = jax.random.uniform(key, (batch,))
    dropped = {}
    for number, (name, value) in enumerate(sorted(condition.items()), start=1):
        missing = u < probability
        if len(condition) > 1:
            missing |= (u >= number * probability) & (u < (number + 1) * probability)
        dropped[name] = value * ~missing.reshape(-1, *(1,) * (value.ndim - 1))
    return dropped


def errors(apply, schedule: Schedule, config, params, example, t, eps, *, key=None):
    """Mean squared error [B] of the prediction at z_t; the quantity is config.prediction."""
    x_0 = example["x"]
    output = apply(params, diffuse(schedule, x_0, eps, t), t, example["condition"], key=key)
    difference = output - target(schedule, config.prediction, x_0, eps, t)
    return jnp.square(difference).mean(tuple(range(1, difference.ndim)))
