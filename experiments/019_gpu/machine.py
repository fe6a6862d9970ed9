# SPDX-License-Identifier: Apache-2.0
"""The device, the versions, and what a product of matrices and a copy reach on it.

python machine.py [--small] RESULT WORK
"""

import importlib.metadata
import os
import platform

import jax
import jax.numpy as jnp
import results
from jax.extend import backend

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "torch", "triton")


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> None:
    step = results.arguments(__doc__)
    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    result = {
        "device": device.device_kind,
        "platform": device.platform,
        "driver": backend.get_backend().platform_version,
        "devices": jax.device_count(),
        "GiB": results.rounded(stats.get("bytes_limit", 0) / results.GIB),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
    }
    results.keep(step.result, result)
    side, elements = (512, 1 << 20) if step.small else (8192, 1 << 29)
    # Not of zeros, whose product is faster than that of numbers.
    matrix = jax.random.normal(jax.random.key(0), (side, side), jnp.bfloat16)
    product = jax.jit(jnp.matmul)
    took = results.seconds(lambda: product(matrix, matrix).block_until_ready(), 10)
    result["measured_tflops"] = results.rounded(2e-12 * side**3 / took)
    vector, added = jnp.ones(elements, jnp.float32), jax.jit(lambda a: a + 1)
    took = results.seconds(lambda: added(vector).block_until_ready(), 10)
    result["measured_gigabytes_per_second"] = results.rounded(2e-9 * vector.nbytes / took)
    known = results.peak(device.device_kind)
    result["peak_tflops"] = known.operations / 1e12 if known else "unknown"
    result["peak_gigabytes_per_second"] = known.bytes / 1e9 if known else "unknown"
    results.keep(step.result, result)


if __name__ == "__main__":
    main()
