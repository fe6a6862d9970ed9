# SPDX-License-Identifier: Apache-2.0
"""Single convolutions in our forms beside XLA's (contourdiff_jax/models/convolution.py), on a CPU.

    python forms.py

For each shape [B, H, W, C] -> [B, H, W, O] of kernels of 1 x 1 and 3 x 3 pixels: billions of
operations a second of the convolution, of its gradient in the picture and of that in the kernel,
medians of turns that alternate. Writes forms.json.
"""

import functools
import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from contourdiff_jax.models import convolution

ROUNDS = 15
# (B, H, W, C, O) of networks that double their features as pictures halve, and how often one sees
# as many features in, beside each threshold.
ONE = [(2, 128, 128, 256, 128), (2, 64, 64, 384, 128), (2, 32, 32, 512, 256), (8, 64, 64, 64, 32)]
THREE = [
    *[(2, 128, 128, 32, 16), (2, 64, 64, 16, 16), (2, 64, 64, 32, 32)],  # few features out
    *[(1, 256, 256, 128, 128), (2, 128, 128, 128, 128), (2, 128, 128, 256, 128)],  # many
    *[(4, 96, 96, 128, 128), (2, 64, 64, 256, 256), (8, 64, 64, 128, 128), (2, 32, 32, 768, 256)],
    *[(2, 16, 16, 512, 512), (8, 16, 16, 128, 128)],
    *[(2, 96, 96, 128, 64), (4, 8, 8, 128, 128)],  # neither
    *[(2, 8, 8, 1024, 512), (2, 8, 8, 512, 512), (2, 4, 4, 1024, 512), (2, 4, 4, 512, 512)],
    *[(8, 8, 8, 512, 512), (2, 8, 8, 256, 256)],
]


def one_by_xla(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def one(x, kernel):
    return x @ kernel[0, 0]


def calls(form, x, kernel, gradient) -> dict:
    """{what: a call that ends when it is computed}."""
    whats = {
        "value": jax.jit(form),
        "picture": jax.jit(lambda x, kernel: jax.vjp(lambda x: form(x, kernel), x)[1](gradient)),
        "kernel": jax.jit(lambda x, kernel: jax.vjp(lambda k: form(x, k), kernel)[1](gradient)),
    }
    return {
        w: functools.partial(lambda f: jax.block_until_ready(f(x, kernel)), f)
        for w, f in whats.items()
    }


def measure(shape, width: int, forms) -> dict:
    batch, rows, columns, features, out = shape
    rng = np.random.default_rng(0)
    sizes = (shape[:4], (width, width, features, out), (*shape[:3], out))
    given = [jnp.asarray(rng.normal(size=size), jnp.float32) for size in sizes]
    sides = {name: calls(form, *given) for name, form in forms.items()}
    work = 2e-9 * batch * rows * columns * width**2 * features * out
    seconds = {(name, what): [] for name, made in sides.items() for what in made}
    for turn in range(ROUNDS + 2):
        for name, what in seconds:
            began = time.perf_counter()
            sides[name][what]()
            if turn > 1:  # the first compiles
                seconds[name, what].append(time.perf_counter() - began)
    speeds = {key: round(work / statistics.median(found)) for key, found in seconds.items()}
    return {w: {name: speeds[name, w] for name in sides} for w in ("value", "picture", "kernel")}


def main() -> None:
    three = {"xla": convolution._by_xla, "ours": convolution.convolve}
    result = {"jax": jax.__version__, "billions_of_operations_per_second": {}}
    for width, forms, shapes in ((1, {"xla": one_by_xla, "ours": one}, ONE), (3, three, THREE)):
        for shape in shapes:
            found = measure(shape, width, forms)
            result["billions_of_operations_per_second"][f"{width}x{width} {shape}"] = found
            print(width, shape, found, flush=True)
    Path(__file__).with_name("forms.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
