# SPDX-License-Identifier: Apache-2.0
"""Noise schedules: how much signal is left at each of T timesteps.

Notation of DDPM (Ho et al. 2020, arXiv 2006.11239): beta_t the variance added in step t,
alpha_bar_t the product of (1 - beta) up to t, so that (equation 4)
    q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I).
Timesteps are counted from 0 to T - 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from contourdiff_jax.errors import InputError


class Schedule(NamedTuple):
    """alpha_bar, sqrt(alpha_bar), sqrt(1 - alpha_bar): [T] float32, rounded once from float64."""

    alpha_bar: jax.Array
    signal: jax.Array
    noise: jax.Array

    @property
    def steps(self) -> int:
        return self.alpha_bar.shape[0]


def from_betas(betas: np.ndarray) -> Schedule:
    """betas [T] -> Schedule. Products are taken in float64: 1 - alpha_bar is tiny at first."""
    alpha_bar = np.cumprod(1.0 - np.asarray(betas, np.float64))
    return Schedule(
        *(jnp.asarray(a, jnp.float32) for a in (alpha_bar, alpha_bar**0.5, (1 - alpha_bar) ** 0.5))
    )


def linear(steps: int, first: float = 1e-4, last: float = 0.02) -> Schedule:
    """beta rising linearly (Ho et al. 2020, section 4).

    What ContourDiff was published with, at 1000 steps.
    """
    return from_betas(np.linspace(first, last, steps, dtype=np.float64))


def cosine(steps: int, offset: float = 0.008, largest: float = 0.999) -> Schedule:
    """alpha_bar(u) = cos^2((u + s) / (1 + s) pi / 2).

    Nichol & Dhariwal 2021, arXiv 2102.09672, equation 17.
    """
    u = np.arange(steps + 1, dtype=np.float64) / steps
    alpha_bar = np.cos((u + offset) / (1 + offset) * np.pi / 2) ** 2
    return from_betas(np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], largest))


def build(config) -> Schedule:
    """The schedule of a `diffusion` section (see config.py)."""
    if config.steps < 2:
        raise InputError(
            f"config.diffusion.steps: {config.steps} is too few, at least 2 are needed"
        )
    schedules = {"linear": linear, "cosine": cosine}
    if config.schedule not in schedules:
        raise InputError(
            f"config.diffusion.schedule: {config.schedule!r} is not one of {', '.join(schedules)}"
        )
    return schedules[config.schedule](config.steps)
