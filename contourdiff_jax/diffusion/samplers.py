# SPDX-License-Identifier: Apache-2.0
"""Samplers: from noise z_T to an image z_0, given a denoiser.

One function each, one signature for all:

    sampler(denoise, schedule, z_T, noise, t, *, clip=True, ...) -> z_0

Shapes: z [B, *S, C]; t [n] integers, the timesteps to visit, falling. `denoise(z_t, t)` estimates
x_0 and does not clip (guidance.py); `noise(i)` gives the random array of step i, shaped like z:
all of a sampler's randomness, so the caller decides what it is keyed by. Every sampler is a pure
lax.scan over t. All follow the schedulers of diffusers, step for step.

With a_t = sqrt(alpha_bar_t), s_t = sqrt(1 - alpha_bar_t); r is the timestep
after t on the way down. After the last timestep comes clean data: a = 1, s = 0; DDIM of Stable
Diffusion ends at the level of the first timestep.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from contourdiff_jax.diffusion.schedules import Schedule

SPACINGS = ("trailing", "leading", "linspace")
NO_SIGNAL = 2.0**-12  # for DPM-Solver++, which takes its logarithm: as in diffusers


def timesteps(config, total: int) -> np.ndarray:
    """The timesteps [n] that the sampler of a `sampler` section visits out of T, falling.

    They are evenly spaced (Lin et al. 2023, arXiv 2305.08891, table 2): "trailing" starts at the
    noisiest, T - 1; "leading", as published, ends at `offset`; "linspace" does both, ending at 0.
    DPM-Solver++ leaves out the end of the latter two and leads to clean data from the step before.
    """
    left_out = int(config.name == "dpmpp_2m" and config.spacing != "trailing")
    count = config.steps + left_out
    if config.spacing == "trailing":
        t = np.round(np.arange(total, 0, -total / count))[:count] - 1
    elif config.spacing == "leading":
        t = np.arange(count)[::-1] * (total // count) + config.offset
    else:
        t = np.round(np.linspace(0, total - 1, count))[::-1]
    return t[: config.steps].astype(np.int32)


def _levels(
    schedule: Schedule, t: np.ndarray, r: np.ndarray | None = None, *, end=1.0
) -> dict[str, jax.Array]:
    """What a scan needs at each step: t, and alpha_bar at t and at r, as arrays [n].

    r is negative where a step leads out of the schedule, and alpha_bar is `end` there.
    """
    r = np.append(t[1:], -1) if r is None else r
    return {
        "i": jnp.arange(len(t)),
        "t": jnp.asarray(t),
        "alpha_bar_t": schedule.alpha_bar[t],
        "alpha_bar_r": jnp.where(r < 0, end, schedule.alpha_bar[r]),
        "signal_t": schedule.signal[t],
        "noise_t": schedule.noise[t],
    }


def _in_range(x_0, clip: bool):
    """x_0 hat in the range of data: errors at high noise would leave it and stay out."""
    return jnp.clip(x_0, -1, 1) if clip else x_0


def ddpm(denoise, schedule: Schedule, z_T, noise: Callable, t, *, clip: bool = True):
    """Ancestral sampling (Ho et al. 2020, algorithm 2) over strided timesteps.

    q(z_r | z_t, x_0) is Gaussian (equations 6 and 7); the posterior's variance is
    beta-tilde, "fixed small".
    """

    def step(z_t, level):
        x_0 = _in_range(denoise(z_t, level["t"]), clip)
        alpha = level["alpha_bar_t"] / level["alpha_bar_r"]  # of the stride from r to t
        beta = 1 - alpha
        mean = (
            jnp.sqrt(level["alpha_bar_r"]) * beta * x_0
            + jnp.sqrt(alpha) * (1 - level["alpha_bar_r"]) * z_t
        ) / (1 - level["alpha_bar_t"])
        variance = beta * (1 - level["alpha_bar_r"]) / (1 - level["alpha_bar_t"])
        return mean + jnp.sqrt(variance) * noise(level["i"]), None

    return jax.lax.scan(step, z_T, _levels(schedule, t))[0]


def ddim(
    denoise,
    schedule: Schedule,
    z_T,
    noise: Callable,
    t,
    *,
    clip: bool = True,
    eta: float = 0.0,
    clipped_eps: bool = True,
    fixed_stride: bool = False,
    ends_clean: bool = True,
):
    """DDIM (Song et al. 2021, arXiv 2010.02502, equations 12 and 16): deterministic at eta = 0.

    eps is derived from the clipped x_0, so that z_r lies on the line between the two, or else from
    the estimate before clipping, where it is the network's own.

    A step leads to the next timestep of t, or with `fixed_stride` to t - T // n, as in diffusers.
    That is the same for "trailing" where n divides T and for "leading" with offsets below T // n.
    The last leads to clean data, or without `ends_clean` to alpha_bar_0 (set_alpha_to_one: false).
    """
    r = t - schedule.steps // len(t) if fixed_stride else None

    def step(z_t, level):
        estimate = denoise(z_t, level["t"])
        x_0 = _in_range(estimate, clip)
        eps = (z_t - level["signal_t"] * (x_0 if clipped_eps else estimate)) / level["noise_t"]
        alpha = level["alpha_bar_t"] / level["alpha_bar_r"]
        left = 1 - level["alpha_bar_r"]
        variance = eta**2 * left / (1 - level["alpha_bar_t"]) * (1 - alpha)
        # Without signal at t and with eta = 1 these are equal, or less by rounding.
        direction = jnp.sqrt(jnp.maximum(left - variance, 0))
        z_r = jnp.sqrt(level["alpha_bar_r"]) * x_0 + direction * eps
        return (z_r + jnp.sqrt(variance) * noise(level["i"]) if eta else z_r), None

    end = 1.0 if ends_clean else schedule.alpha_bar[0]
    return jax.lax.scan(step, z_T, _levels(schedule, t, r, end=end))[0]


def dpmpp_2m(denoise, schedule: Schedule, z_T, noise: Callable, t, *, clip: bool = True):
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2).

    Second order (midpoint), deterministic. lambda = log(a / s) is the half log-SNR, h its increase
    over a step. The first step has no history and the last ends at lambda = infinity: both are
    first order, where they equal DDIM.

    Where no signal is left, lambda is that of NO_SIGNAL. In diffusers x_0 is too: it follows from v
    with NO_SIGNAL z_T added.
    """
    del noise  # deterministic
    levels = _levels(schedule, t)
    signal = jnp.where(levels["signal_t"] == 0, NO_SIGNAL, levels["signal_t"])
    half_log_snr = jnp.log(signal) - jnp.log(levels["noise_t"])
    h = jnp.append(jnp.diff(half_log_snr), jnp.inf)
    h_before = jnp.insert(h[:-1], 0, 1.0)
    first_order = (levels["i"] == 0) | (levels["i"] == len(t) - 1)
    # 1 / (2 r) with r = h_before / h, the weight of the step before.
    levels["slope"] = jnp.where(first_order, 0.0, jnp.where(jnp.isinf(h), 0.0, h) / (2 * h_before))
    levels["decay"] = jnp.exp(-h)
    # Of the next step as that step has them: 1 - alpha_bar would lose digits.
    levels["signal_r"] = jnp.append(levels["signal_t"][1:], 1.0)
    levels["noise_r"] = jnp.append(levels["noise_t"][1:], 0.0)

    def step(carry, level):
        z_t, before = carry
        x_0 = _in_range(denoise(z_t, level["t"]), clip)
        d = (1 + level["slope"]) * x_0 - level["slope"] * before
        # sigma_r / sigma_t z_t - a_r (exp(-h) - 1) D
        shrunk = level["noise_r"] / level["noise_t"] * z_t
        return (shrunk - level["signal_r"] * (level["decay"] - 1) * d, x_0), None

    return jax.lax.scan(step, (z_T, jnp.zeros_like(z_T)), levels)[0][0]


SAMPLERS = {"ddpm": ddpm, "ddim": ddim, "dpmpp_2m": dpmpp_2m}


def build(config, t: np.ndarray) -> Callable:
    """The sampler of a `sampler` section: (denoise, schedule, z_T, noise) -> z_0.

    Args:
      t: timesteps [n] to visit, falling.
    """
    options = {"t": t, "clip": config.clip}
    if config.name == "ddim":
        own = ("eta", "clipped_eps", "fixed_stride", "ends_clean")
        options |= {name: config[name] for name in own}
    return functools.partial(SAMPLERS[config.name], **options)
