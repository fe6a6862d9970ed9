# SPDX-License-Identifier: Apache-2.0
"""How near our train step comes to what the device can do.

    python roofline.py NETWORK [--peak=TFLOP/S] [--profile=DIR]

Operations are those of the network as written, forward and backward, so that their share of the
peak is model-flops utilisation; bytes are those that the compiled step accesses, as XLA counts
them. Peak and bandwidth are measured, as the speed of a large product of matrices in the network's
dtype and of a sum in place; --peak is what the maker says, for the utilisation that others give.
The roofline is the longer of the times that operations and bytes take at those speeds (Williams et
al. 2009); it is no bound where caches hold what a step reads again, as on a CPU.
--profile keeps a trace of three steps, for xprof or Perfetto. Each network has its entry in
roofline.json, by device.
"""

import argparse
import json
import os
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import measure

from contourdiff_jax.runtime import mesh as meshes

ROUNDS = 15
ON_GPU = {"side": 16_384, "elements": 1 << 29}
ON_CPU = {"side": 4_096, "elements": 1 << 26}


def seconds(call) -> float:
    """Median of a call that ends when the device is done; the first two are not counted."""
    times = []
    for _ in range(ROUNDS + 2):
        began = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


def device(dtype: str) -> dict:
    """What it can do: operations and bytes a second."""
    sizes = ON_GPU if measure.gpu() else ON_CPU
    matrix = jnp.ones((sizes["side"],) * 2, dtype)
    vector = jnp.ones(sizes["elements"], "float32")
    product, added = jax.jit(jnp.matmul), jax.jit(lambda a: a + 1, donate_argnums=0)

    def moved():  # in place: new memory is slow to get on a CPU
        nonlocal vector
        vector = added(vector)
        return vector

    return {
        "operations": 2 * sizes["side"] ** 3 / seconds(lambda: product(matrix, matrix)),
        "bytes": 2 * vector.nbytes / seconds(moved),
    }


def operations(config, size: int) -> float:
    """Of a train step, as 016_cost counts them."""
    sys.path.append(str(measure.HERE.parent / "016_cost"))
    import cost

    return 1e9 * config.train.batch * cost.operations(config, size)["train"]


def roofline(name: str, peak: float | None, profile: str | None) -> dict:
    config, (_, size, batch) = measure.settings(name), measure.networks()[name]
    sys.path.append(str(measure.HERE.parent))
    import setups

    can = device(config.model.dtype)
    method, compiled = setups.training(config, size)
    work, moved = operations(config, size), compiled.step.cost_analysis()["bytes accessed"]
    moved *= method.mesh.size  # counted for one device
    example = meshes.put(meshes.batch(method.mesh), measure.example(name))
    state = compiled.init(jax.random.key(0))

    def step():
        nonlocal state
        state, metrics = compiled.step(state, example, method.fixed)
        return metrics

    took = seconds(step)
    if profile:
        with jax.profiler.trace(profile):
            for _ in range(3):
                jax.block_until_ready(step())
    bound = max(work / can["operations"], moved / can["bytes"])
    found = {
        "pixels": size,
        "batch": batch,
        "dtype": config.model.dtype,
        "measured_peak_tflops": can["operations"] / 1e12,
        "measured_gigabytes_per_second": can["bytes"] / 1e9,
        "step_milliseconds": 1e3 * took,
        "step_tflop": work / 1e12,
        "step_gigabytes": moved / 1e9,
        "operations_per_byte": work / moved,
        "balance_operations_per_byte": can["operations"] / can["bytes"],
        "utilisation_of_measured_peak": work / took / can["operations"],
        "roofline_over_step": bound / took,
    }
    if peak:
        found["model_flops_utilisation"] = work / took / (peak * 1e12)
    return {key: v if isinstance(v, int | str) else float(f"{v:.3g}") for key, v in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=list(measure.networks()))
    parser.add_argument("--peak", type=float, help="what the device's maker says [TFLOP/s]")
    parser.add_argument("--profile", help="folder for a trace")
    given = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))  # as the commands do
    path = measure.HERE / "roofline.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    entry = roofline(given.network, given.peak, given.profile)
    result.setdefault(measure.machine(), {})[given.network] = entry
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(entry, indent=1))


if __name__ == "__main__":
    main()
