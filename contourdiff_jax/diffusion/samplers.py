# SPDX-License-Identifier: Apache-2.0
"""Samplers: from noise z_T to an image z_0, given a denoiser.

One function each, one signature for all:

    sampler(denoise, schedule, z_T, noise, steps, *, clip=True, ...) -> z_0

Shapes: z [B, *S, C]. `denoise(z_t, t)` estimates x_0 and does not clip
(guidance.py); `noise(i)` gives the random array of step i, shaped like z:
all of a sampler's randomness, so the caller decides what it is keyed by.
Every sampler is a pure lax.scan over `steps` of the schedule's T timesteps.

With a_t = sqrt(alpha_bar_t), s_t = sqrt(1 - alpha_bar_t); r is the timestep
after t on the way down. After the last timestep comes clean data: a = 1, s = 0.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from contourdiff_jax.diffusion.schedules import Schedule
from contourdiff_jax.errors import InputError


def timesteps(total: int, steps: int) -> np.ndarray:
    """`steps` timesteps from T - 1 downwards, evenly spaced.

    "Trailing" spacing (Lin et al. 2023, arXiv 2305.08891, table 2): it starts at the noisiest
    timestep, which the published "leading" spacing misses.
    """
    if not 1 <= steps <= total:
        raise InputError(f"sampler steps: {steps} must lie between 1 and the schedule's {total}")
    return np.round(np.arange(total, 0, -total / steps)).astype(np.int32)[:steps] - 1


def _levels(schedule: Schedule, steps: int) -> dict[str, jax.Array]:
    """What a scan needs at each step: t, and alpha_bar at t and at r, as arrays [steps]."""
    t = timesteps(schedule.steps, steps)
    alpha_bar = schedule.alpha_bar[t]
    return {
        "i": jnp.arange(steps),
        "t": jnp.asarray(t),
        "alpha_bar_t": alpha_bar,
        "alpha_bar_r": jnp.append(alpha_bar[1:], 1.0),
        "signal_t": schedule.signal[t],
        "noise_t": schedule.noise[t],
    }


def _estimate(denoise, z_t, level, clip: bool):
    """x_0 hat, kept in the range of data: errors at high noise would leave it and stay out."""
    x_0 = denoise(z_t, level["t"])
    return jnp.clip(x_0, -1, 1) if clip else x_0


def ddpm(denoise, schedule: Schedule, z_T, noise: Callable, steps: int, *, clip: bool = True):
    """Ancestral sampling (Ho et al. 2020, algorithm 2) over strided timesteps.

    q(z_r | z_t, x_0) is Gaussian (equations 6 and 7); the posterior's variance is
    beta-tilde, "fixed small".
    """

    def step(z_t, level):
        x_0 = _estimate(denoise, z_t, level, clip)
        alpha = level["alpha_bar_t"] / level["alpha_bar_r"]  # of the stride from r to t
        beta = 1 - alpha
        mean = (
            jnp.sqrt(level["alpha_bar_r"]) * beta * x_0
            + jnp.sqrt(alpha) * (1 - level["alpha_bar_r"]) * z_t
        ) / (1 - level["alpha_bar_t"])
        variance = beta * (1 - level["alpha_bar_r"]) / (1 - level["alpha_bar_t"])
        return mean + jnp.sqrt(variance) * noise(level["i"]), None

    return jax.lax.scan(step, z_T, _levels(schedule, steps))[0]


def ddim(
    denoise,
    schedule: Schedule,
    z_T,
    noise: Callable,
    steps: int,
    *,
    clip: bool = True,
    eta: float = 0.0,
):
    """DDIM (Song et al. 2021, arXiv 2010.02502, equations 12 and 16): deterministic at eta = 0.

    eps is derived from the clipped x_0, so that z_r lies on the line between the two.
    """

    def step(z_t, level):
        x_0 = _estimate(denoise, z_t, level, clip)
        eps = (z_t - level["signal_t"] * x_0) / level["noise_t"]
        alpha = level["alpha_bar_t"] / level["alpha_bar_r"]
        sigma = eta * jnp.sqrt(
            (1 - level["alpha_bar_r"]) / (1 - level["alpha_bar_t"]) * (1 - alpha)
        )
        direction = jnp.sqrt(jnp.maximum(1 - level["alpha_bar_r"] - sigma**2, 0))
        z_r = jnp.sqrt(level["alpha_bar_r"]) * x_0 + direction * eps
        return (z_r + sigma * noise(level["i"]) if eta else z_r), None

    return jax.lax.scan(step, z_T, _levels(schedule, steps))[0]


def dpmpp_2m(denoise, schedule: Schedule, z_T, noise: Callable, steps: int, *, clip: bool = True):
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2).

    Second order, deterministic. lambda = log(a / s) is the half log-SNR, h its increase over a
    step. The first step has no history and the last ends at lambda = infinity: both are first
    order, where they equal DDIM.
    """
    del noise  # deterministic
    levels = _levels(schedule, steps)
    half_log_snr = jnp.log(levels["signal_t"]) - jnp.log(levels["noise_t"])
    h = jnp.append(jnp.diff(half_log_snr), jnp.inf)
    h_before = jnp.insert(h[:-1], 0, 1.0)
    first_order = (levels["i"] == 0) | (levels["i"] == steps - 1)
    # 1 / (2 r) with r = h_before / h, the weight of the step before.
    levels["slope"] = jnp.where(first_order, 0.0, jnp.where(jnp.isinf(h), 0.0, h) / (2 * h_before))
    levels["decay"] = jnp.exp(-h)

    def step(carry, level):
        z_t, before = carry
        x_0 = _estimate(denoise, z_t, level, clip)
        d = (1 + level["slope"]) * x_0 - level["slope"] * before
        a_r = jnp.sqrt(level["alpha_bar_r"])
        s_r = jnp.sqrt(1 - level["alpha_bar_r"])
        # sigma_r / sigma_t z_t - a_r (exp(-h) - 1) D
        z_r = s_r / level["noise_t"] * z_t - a_r * (level["decay"] - 1) * d
        return (z_r, x_0), None

    return jax.lax.scan(step, (z_T, jnp.zeros_like(z_T)), levels)[0][0]


SAMPLERS = {"ddpm": ddpm, "ddim": ddim, "dpmpp_2m": dpmpp_2m}


def build(config) -> Callable:
    """The sampler of a `sampler` section, options bound: (denoise, schedule, z_T, noise) -> z_0."""
    if config.name not in SAMPLERS:
        raise InputError(
            f"config.sampler.name: {config.name!r} is not one of {', '.join(SAMPLERS)}"
        )
    if config.eta and config.name != "ddim":
        raise InputError(f"config.sampler.eta: only ddim has it, not {config.name}; set it to 0")
    options = {"eta": config.eta} if config.name == "ddim" else {}
    return functools.partial(SAMPLERS[config.name], steps=config.steps, clip=config.clip, **options)
