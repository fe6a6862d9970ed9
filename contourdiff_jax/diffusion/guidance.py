# SPDX-License-Identifier: Apache-2.0
"""From network to denoiser: (z_t, t) -> x_0.

Behind it hide the parameterisation and classifier-free guidance.

Shapes: B batch, *S space, C channels (last).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from contourdiff_jax.diffusion import process
from contourdiff_jax.diffusion.schedules import Schedule


def denoiser(
    apply: Callable,
    params,
    schedule: Schedule,
    prediction: str,
    condition,
    *,
    guidance: float = 1.0,
    neighbour: float = 1.0,
) -> Callable:
    """denoise(z_t [B, *S, C], t scalar) -> estimate of x_0 [B, *S, C], not clipped.

    With guidance w != 1, output = null + w (conditional - null) (Ho & Salimans
    2022, arXiv 2207.12598, equation 6, where w is our w - 1). With a neighbour's v != 1,
    conditional = alone + v (shown - alone), where alone is not shown the neighbour, so that two
    conditions have a scale each (Brooks et al. 2023, arXiv 2211.09800, equation 3). Both are taken
    on the network's own prediction, and all that is needed goes through it in one batch.
    """
    nothing = jax.tree.map(jnp.zeros_like, condition)
    weighted = [(guidance * neighbour, condition), (1 - guidance, nothing)]
    if neighbour != 1.0:
        alone = {**condition, "neighbour": nothing["neighbour"]}
        weighted.append((guidance * (1 - neighbour), alone))
    weights, conditions = zip(*(pair for pair in weighted if pair[0]), strict=True)

    def repeated(a):
        return jnp.concatenate([a] * len(weights))

    def output(z_t, t):
        batch = jnp.full(z_t.shape[:1], t)
        if weights == (1.0,):
            return apply(params, z_t, batch, *conditions)
        every = jax.tree.map(lambda *cs: jnp.concatenate(cs), *conditions)
        answers = apply(params, repeated(z_t), repeated(batch), every)
        answers = jnp.split(answers, len(weights))
        return sum(weight * answer for weight, answer in zip(weights, answers, strict=True))

    def denoise(z_t, t):
        return process.to_x_0(schedule, prediction, output(z_t, t), z_t, t)

    return denoise
