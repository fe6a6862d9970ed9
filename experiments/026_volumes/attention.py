# SPDX-License-Identifier: Apache-2.0
"""What self-attention over volumes costs, pooled and not (model.pool): time and memory.

    python attention.py

A block of attention (models/blocks.py) of 64 features in heads of 32 over n x n x n positions,
alone: forward, and with the gradient in its parameters and its input. Memory is what the compiled
program needs beside what it is given and gives; time is seconds of the processor, the shortest of
three, on one core. What would need more than MOST of memory is compiled and not run. Writes
attention.json and attention.png.
"""

import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
from flax import nnx

from contourdiff_jax import models
from contourdiff_jax.models import blocks

HERE = Path(__file__).parent
SIDES, POOLS = (8, 16, 24, 32), (1, 2, 4)
FEATURES, HEAD_WIDTH = 64, 32
MOST = 3 << 30  # bytes
ROUNDS = 3


def programs(pool: int, side: int) -> dict:
    """{what: (compiled program, arguments)}."""

    def create():
        return blocks.AttentionBlock(
            FEATURES,
            head_width=HEAD_WIDTH,
            pool=(pool,) * 3,
            groups=8,
            epsilon=1e-5,
            dtype=jnp.float32,
            rngs=nnx.Rngs(0),
        )

    init, bind = models.functional(create)
    given = (
        init(jax.random.key(0)),
        jax.random.normal(jax.random.key(1), (1, *(side,) * 3, FEATURES)),
    )
    forward = lambda params, x: bind(params)(x)  # noqa: E731
    loss = lambda params, x: jnp.square(forward(params, x)).sum()  # noqa: E731
    functions = {"forward": forward, "backward": jax.grad(loss, argnums=(0, 1))}
    return {name: (jax.jit(f).lower(*given).compile(), given) for name, f in functions.items()}


def measure(pool: int, side: int) -> dict:
    found = {}
    for name, (program, given) in programs(pool, side).items():
        memory = program.memory_analysis().temp_size_in_bytes
        found[name] = {"MiB": round(memory / 2**20, 1), "seconds": None}
        if memory > MOST:
            continue
        seconds = []
        for _ in range(ROUNDS + 1):
            began = time.process_time()
            jax.block_until_ready(program(*given))
            seconds.append(time.process_time() - began)
        found[name]["seconds"] = round(min(seconds[1:]), 4)
    return found


def draw(measured: dict, path: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for axis, (what, title) in zip(
        axes, (("MiB", "memory (MiB)"), ("seconds", "time (s)")), strict=True
    ):
        for pool in POOLS:
            points = [(s, measured[f"{s}, pool {pool}"]["backward"][what]) for s in SIDES]
            points = [(s, value) for s, value in points if value is not None]
            axis.plot(*zip(*points, strict=True), marker="o", label=f"pool {pool}")
        axis.set(yscale="log", xticks=SIDES, xlabel="positions a side", title=title)
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    measured = {}
    for side in SIDES:
        for pool in POOLS:
            measured[f"{side}, pool {pool}"] = measure(pool, side)
            print(side, pool, measured[f"{side}, pool {pool}"], flush=True)
    result = {"jax": jax.__version__, "features": FEATURES, "positions_a_side": measured}
    (HERE / "attention.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(measured, HERE / "attention.png")


if __name__ == "__main__":
    main()
