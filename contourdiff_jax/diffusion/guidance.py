# SPDX-License-Identifier: Apache-2.0
"""From network to denoiser: (z_t, t) -> x_0, whatever the network predicts, with guidance.

Shapes: B batch, *S space, C channels (last).
"""

import itertools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from contourdiff_jax.diffusion import process
from contourdiff_jax.diffusion.schedules import Schedule


def denoiser(
    apply: Callable,
    params,
    schedule: Schedule,
    prediction: str,
    seen: Mapping,
    *,
    scales: Mapping[str, float] | None = None,
) -> Callable:
    """denoise(z_t [B, *S, C], t scalar) -> estimate of x_0 [B, *S, C], not clipped.

    With one condition of scale w, output = null + w (conditional - null) (Ho & Salimans 2022, arXiv
    2207.12598, equation 6, where w is our w - 1). Of several each has a scale of its own, and those
    before it are given: with e_k the answer to the first k conditions, the others missing,

        output = e_0 + sum_k w_k (e_k - e_k-1)      (Brooks et al. 2023, arXiv 2211.09800, eq. 3)

    The sum is of the network's own predictions, which it computes in one batch.

    Args:
      apply: of the network, see models.Model.
      prediction: what the network predicts, see process.target.
      seen: {name: [B, *S, c]}, conditions; zero where they are missing.
      scales: of conditions by name, in the order in which they are added; those without have 1.
    """
    weights, shown = zip(*_terms(seen, scales or {}), strict=True)

    def repeated(a):
        return jnp.concatenate([a] * len(weights))

    def output(z_t, t):
        batch = jnp.full(z_t.shape[:1], t)
        if weights == (1.0,):
            return apply(params, z_t, batch, *shown)
        every = jax.tree.map(lambda *cs: jnp.concatenate(cs), *shown)
        answers = apply(params, repeated(z_t), repeated(batch), every)
        answers = jnp.split(answers, len(weights))
        return sum(weight * answer for weight, answer in zip(weights, answers, strict=True))

    def denoise(z_t, t):
        return process.to_x_0(schedule, prediction, output(z_t, t), z_t, t)

    return denoise


def _terms(seen: Mapping, scales: Mapping[str, float]) -> list[tuple[float, Mapping]]:
    """What the network is shown, and the weights of its answers; all conditions come first."""
    names = [name for name in scales if name in seen]
    nothing = jax.tree.map(jnp.zeros_like, seen)
    ends = [1.0, *(scales[name] for name in names), 0.0]
    terms = []
    for count, (scale, following) in enumerate(itertools.pairwise(ends)):
        missing = {name: nothing[name] for name in names[count:]}
        terms.append((scale - following, {**seen, **missing}))
    return [(weight, shown) for weight, shown in (terms[-1], *terms[:-1]) if weight]
