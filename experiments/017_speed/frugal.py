# SPDX-License-Identifier: Apache-2.0
"""What XLA's options for a CPU (runtime/compiling.py) change: memory of a train step, and its time.

    python frugal.py published --rounds=3                a network of measure.py; takes PyTorch
    python frugal.py 32,128 [--size=32] [--rounds=60]    any channels

Steps of both ways are compiled in one process and run in turn, so that a busy machine slows both.
Prints MiB beside the state, and the median of the paired ratios of time.
"""

import argparse
import sys
import time
from pathlib import Path

import jax
import numpy as np

sys.path += [str(Path(__file__).resolve().parents[1])]

import setups

from contourdiff_jax import config as configuration
from contourdiff_jax.runtime import compiling


def network(name: str, size: int):
    """(The configuration of a network, its pixels), by its name or its channels."""
    if name[0].isdigit():
        channels = tuple(map(int, name.split(",")))
        config, shallow = configuration.default(), {"layers": 1, "groups": 32}
        config.model.update(channels=channels, attention=(False,) * len(channels), **shallow)
        config.train.update(batch=2, images=1_000_000)
    else:
        import measure

        config, size = measure.settings(name), measure.networks()[name][1]
    config.mesh.data = 1
    return config, size


def step_of(config, size: int, options: dict):
    """(a call of a step, its MiB beside the state), compiled with these options."""
    compiling.options = lambda mesh: options or None
    method, compiled = setups.training(config, size)
    rng = np.random.default_rng(0)
    given = jax.tree.map(
        lambda a: jax.device_put(rng.uniform(-1, 1, a.shape).astype(a.dtype), a.sharding),
        method.feed.example,
    )
    state = compiled.init(jax.random.key(0))

    def call():
        nonlocal state
        state, metrics = compiled.step(state, given, method.fixed)
        jax.block_until_ready((state, metrics))

    call()
    return call, compiled.step_bytes / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", help="its name, or its channels")
    parser.add_argument("--size", type=int, default=32, help="pixels, with channels")
    parser.add_argument("--rounds", type=int, default=60)
    given = parser.parse_args()
    config, size = network(given.network, given.size)
    calls, seconds = {}, {}
    for name, options in (("plain", {}), ("frugal", compiling.FRUGAL)):
        calls[name], mib = step_of(config, size, options)
        seconds[name] = []
        print(f"{name}: {mib:.0f} MiB", flush=True)
    for number in range(given.rounds):
        for name in list(calls)[:: 1 if number % 2 else -1]:
            began = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - began)
    ratio = np.median(np.divide(seconds["frugal"], seconds["plain"]))
    print(f"frugal takes {ratio:.3f} of the time of plain")


if __name__ == "__main__":
    main()
