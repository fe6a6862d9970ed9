# SPDX-License-Identifier: Apache-2.0
"""Convolutions of volumes in our form (models/convolution.py) beside XLA's, on a CPU.

    python convolutions.py

For each shape [B, D, H, W, C] -> [B, D, H, W, O] of kernels of 3 x 3 x 3: billions of operations a
second of the convolution, of its gradient in the volume and of that in the kernel. Sides take
turns, of which the shortest counts, and what is counted are seconds of the processor, which others
on the machine disturb least; so it is to run on one core. `slices` is what the package computes:
one convolution of pictures with three times the features, shifted and summed, and for its kernel's
gradient parts of the slices; `whole` is that without parts. `three` sums three convolutions of
pictures instead, and `stacked` has three slices as the features of one. Writes convolutions.json.
"""

import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from contourdiff_jax.models import convolution

ROUNDS = 4
WHATS = ("value", "volume", "kernel")
# (B, D, H, W, C, O) of small networks: what enters, their stages, a decoder's, what leaves.
SHAPES = [
    *[(1, 32, 32, 32, 3, 16), (1, 32, 32, 32, 16, 16), (1, 16, 64, 64, 16, 16)],
    *[(2, 32, 32, 32, 32, 32), (1, 32, 32, 32, 48, 16), (1, 16, 16, 16, 32, 32)],
    *[(1, 16, 16, 16, 64, 64), (1, 8, 8, 8, 128, 128), (1, 32, 32, 32, 16, 1)],
]


def neighbours(x):
    """The slice before each, itself and the one after: three of [B D, H, W, C]."""
    padded = jnp.pad(x, ((0, 0), (1, 1), *((0, 0),) * 3))
    return [padded[:, i : i + x.shape[1]].reshape(-1, *x.shape[2:]) for i in range(3)]


def three(x, kernel):
    pairs = zip(neighbours(x), kernel, strict=True)
    return sum(convolution.convolve(*pair) for pair in pairs).reshape(*x.shape[:-1], -1)


def stacked(x, kernel):
    kernel = kernel.transpose(1, 2, 0, 3, 4).reshape(3, 3, -1, kernel.shape[-1])
    return convolution.convolve(jnp.concatenate(neighbours(x), -1), kernel).reshape(
        *x.shape[:-1], -1
    )


def whole(x, kernel):
    """As the package computes it, with gradients that know of no slices."""
    depth, outputs = x.shape[1], kernel.shape[-1]
    kernel = kernel.transpose(1, 2, 3, 0, 4).reshape(3, 3, kernel.shape[3], -1)
    parts = convolution.convolve(x.reshape(-1, *x.shape[2:]), kernel)
    parts = jnp.pad(parts.reshape(*x.shape[:-1], 3, outputs), ((0, 0), (1, 1), *((0, 0),) * 4))
    return sum(parts[:, i : i + depth, :, :, i] for i in range(3))


FORMS = {
    "xla": convolution._volume_by_xla,
    "slices": convolution.convolve_volume,
    "whole": whole,
    "three": three,
    "stacked": stacked,
}


def calls(form) -> dict:
    """{what: compiled function of (x, kernel, gradient)}."""
    return {
        "value": jax.jit(lambda x, kernel, gradient: form(x, kernel)),
        "volume": jax.jit(lambda x, kernel, g: jax.vjp(lambda x: form(x, kernel), x)[1](g)),
        "kernel": jax.jit(lambda x, kernel, g: jax.vjp(lambda k: form(x, k), kernel)[1](g)),
    }


def measure(shape) -> dict:
    *space, features, outputs = shape
    rng = np.random.default_rng(0)
    sizes = (*space, features), (3, 3, 3, features, outputs), (*space, outputs)
    given = [jnp.asarray(rng.normal(size=size), jnp.float32) for size in sizes]
    sides = {(name, what): f for name, form in FORMS.items() for what, f in calls(form).items()}
    seconds = {key: [] for key in sides}
    for turn in range(ROUNDS + 1):
        for key, function in sides.items():
            began = time.process_time()
            jax.block_until_ready(function(*given))
            if turn:  # the first compiles
                seconds[key].append(time.process_time() - began)
    work = 2e-9 * 27 * float(np.prod(shape))
    return {
        what: {name: round(work / min(seconds[name, what]), 1) for name in FORMS} for what in WHATS
    }


def main() -> None:
    speeds = {}
    for shape in SHAPES:
        speeds[str(shape)] = measure(shape)
        print(shape, speeds[str(shape)], flush=True)
    result = {"jax": jax.__version__, "billions_of_operations_per_second": speeds}
    Path(__file__).with_name("convolutions.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
