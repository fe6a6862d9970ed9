# SPDX-License-Identifier: Apache-2.0
"""A train step of networks of volumes on a CPU, with our convolutions and with XLA's own.

    python step.py

Of configs/volumes_small.py and configs/enhanced_3d_small.py, on a batch of patches of 32 x 64 x 64
of noise: the gradient of a squared error and AdamW, and what is drawn in one pass. Seconds are of
the processor, the shortest of three, on one core; memory is what the compiled step needs beside the
parameters. Writes step.json.
"""

import json
import runpy
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from contourdiff_jax import models
from contourdiff_jax.models import convolution
from contourdiff_jax.training import state

HERE = Path(__file__).parent
CONFIGS = ("volumes_small", "enhanced_3d_small")
FORMS = {"ours": convolution.convolve_volume, "xla": convolution._volume_by_xla}
SPACE = (32, 64, 64)
ROUNDS = 3


def shortest(function, *given) -> float:
    seconds = []
    for _ in range(ROUNDS + 1):
        began = time.process_time()
        jax.block_until_ready(function(*given))
        seconds.append(time.process_time() - began)
    return min(seconds[1:])


def measure(config) -> dict:
    model, batch = models.build(config.model), config.train.batch
    params = jax.jit(model.init)(jax.random.key(0))
    image, seen = (jnp.zeros((batch, *SPACE, c)) for c in (1, 2))
    given = image, jnp.full(batch, 500), {"contour": seen}
    optimiser = state.optimiser(config.train)
    moments = jax.jit(optimiser.init)(params)

    def step(params, moments, given):
        loss = lambda params: jnp.square(model.apply(params, *given) - 1).mean()  # noqa: E731
        value, gradient = jax.value_and_grad(loss)(params)
        updates, moments = optimiser.update(gradient, moments, params)
        return optax.apply_updates(params, updates), moments, value

    compiled = jax.jit(step).lower(params, moments, given).compile()
    seconds = shortest(compiled, params, moments, given)
    return {
        "parameters": models.count(params),
        "step": round(seconds, 2),
        "patches_per_second": round(batch / seconds, 2),
        "forward": round(shortest(jax.jit(model.apply), params, *given), 2),
        "MiB": round(compiled.memory_analysis().temp_size_in_bytes / 2**20),
    }


def main() -> None:
    result = {"jax": jax.__version__, "patch": SPACE}
    for name in CONFIGS:
        config = runpy.run_path(str(HERE.parents[1] / f"configs/{name}.py"))["get_config"]()
        for form, function in FORMS.items():
            convolution.convolve_volume = function
            models._built.cache_clear()
            result[f"{name}, {form}"] = measure(config)
            print(name, form, result[f"{name}, {form}"], flush=True)
    (HERE / "step.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
