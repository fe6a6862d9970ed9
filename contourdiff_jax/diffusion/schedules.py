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


class Schedule(NamedTuple):
    """alpha_bar, sqrt(alpha_bar), sqrt(1 - alpha_bar): [T], rounded once from float64 to float32.

    With jax.enable_x64 they are not rounded.
    """

    alpha_bar: jax.Array
    signal: jax.Array
    noise: jax.Array

    @property
    def steps(self) -> int:
        return self.alpha_bar.shape[0]


def from_betas(betas: np.ndarray) -> Schedule:
    """betas [T] -> Schedule. Products are taken in float64: 1 - alpha_bar is tiny at first."""
    alpha_bar = np.cumprod(1.0 - np.asarray(betas, np.float64))
    return Schedule(*(jnp.asarray(a) for a in (alpha_bar, alpha_bar**0.5, (1 - alpha_bar) ** 0.5)))


def linear(steps: int, first: float = 1e-4, last: float = 0.02) -> np.ndarray:
    """betas [T] rising linearly (Ho et al. 2020, section 4), ContourDiff's as published."""
    return np.linspace(first, last, steps, dtype=np.float64)


def scaled_linear(steps: int, first: float = 1e-4, last: float = 0.02) -> np.ndarray:
    """betas [T] whose square roots rise linearly.

    From the code of latent diffusion (Rombach et al. 2022, arXiv 2112.10752).
    """
    return np.linspace(first**0.5, last**0.5, steps, dtype=np.float64) ** 2


def cosine(steps: int, offset: float = 0.008, largest: float = 0.999) -> np.ndarray:
    """betas [T] of alpha_bar(u) = cos^2((u + s) / (1 + s) pi / 2).

    Nichol & Dhariwal 2021, arXiv 2102.09672, equation 17; "squaredcos_cap_v2" of diffusers.
    """
    u = np.arange(steps + 1, dtype=np.float64) / steps
    alpha_bar = np.cos((u + offset) / (1 + offset) * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], largest)


def zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """betas [T] changed so that nothing is left of the image at the last timestep.

    sqrt(alpha_bar) is shifted and stretched to end at 0 and begin where it did (Lin et al. 2023,
    arXiv 2305.08891, algorithm 1). Sampling then starts from what training ended with.
    """
    signal = np.cumprod(1.0 - betas) ** 0.5
    signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    alpha_bar = signal**2
    return 1 - np.append(alpha_bar[0], alpha_bar[1:] / alpha_bar[:-1])


def build(config) -> Schedule:
    """The schedule of a `diffusion` section (see config.py)."""
    ends = (config.beta_first, config.beta_last)
    schedules = {
        "linear": lambda steps: linear(steps, *ends),
        "scaled_linear": lambda steps: scaled_linear(steps, *ends),
        "cosine": cosine,
    }
    betas = schedules[config.schedule](config.steps)
    if config.zero_terminal_snr:
        betas = zero_terminal_snr(betas)
    return from_betas(betas)
