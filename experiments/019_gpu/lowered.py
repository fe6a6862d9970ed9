# SPDX-License-Identifier: Apache-2.0
"""A train step compiled for an H200, without one: what XLA makes of it, read.

    python lowered.py

wants JAX's CUDA plugin (`pip install --no-deps jax-cuda13-plugin jax-cuda13-pjrt`, versions as
jax's) and ptxas, and no device: JAX is told what the device would be (jax.experimental.topologies).
Nothing is timed and no algorithm is searched for. The published network's step is lowered only; a
small one's, of two resolutions without attention, is compiled, as it is and with the gradients of
kernels left in cuDNN's order. Writes lowered.json.
"""

import collections
import json
import math
import os
import re
import sys

os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}

import jax
import numpy as np
import published
import results
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

sys.path.append(str(results.HERE.parent))
import setups

from contourdiff_jax import models
from contourdiff_jax.models import convolution
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training import loop, state

H200 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000
  l2_cache_size: 62914560
  clock_rate_ghz: 1.98
  device_memory_size: 150754820096
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H200"
"""
SMALL = {"channels": (32, 64), "attention": (False, False), "layers": 1, "middle_attention": False}
BYTES = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1, "u8": 1}


def mesh() -> Mesh:
    described = topologies.get_topology_desc(
        platform="cuda", topology_name="h200", topology="1x1x1", target_config=H200
    )
    devices = np.array(described.devices).reshape(1, 1)
    return Mesh(devices, meshes.AXES, axis_types=(AxisType.Auto,) * 2)


def lowered(size: int, **model):
    """(the step's program for that device, bytes of the state)."""
    config = published.settings(False, 16, **model)
    ours = setups.run_of(config, size)
    store = setups.SimpleNamespace(grid=ours.grid, sources=(), source_preset=ours.preset)
    method = setups.built(ours, store=store)
    shapes = loop.like(method)
    lying = meshes.shardings(method.mesh, shapes)
    step = jax.jit(
        state.step(config.train, method.players),
        donate_argnums=0,
        in_shardings=(lying, meshes.batch(method.mesh), ()),
        out_shardings=(lying, meshes.replicated(method.mesh)),
    )
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    return step.trace(shapes, method.feed.example, ()).lower(lowering_platforms=("cuda",)), held


def written(text: str) -> dict:
    """Of a program as it is lowered: convolutions and products by the types of their operands."""
    found = collections.Counter()
    for line in text.splitlines():
        kind = re.search(r"stablehlo\.(convolution|dot_general|custom_call)\b", line)
        types = re.findall(r"tensor<(?:\d+x)*(\w+)>", line)
        if kind and kind[1] == "custom_call":
            found[re.search(r"@(\w+)", line)[1]] += 1
        elif kind:
            found[f"{kind[1]} {types[-3]} {types[-2]} -> {types[-1]}"] += 1
    return dict(sorted(found.items()))


def compiled(text: str) -> dict:
    """Of a compiled program: how convolutions have their axes, and what is only moved."""
    found = {"convolutions": dict(collections.Counter(re.findall(r"dim_labels=(\w+->\w+)", text)))}
    for kind in ("copy", "transpose"):
        arrays = re.findall(rf"= (\w+)\[([\d,]*)\]\S* {kind}\(", text)
        sizes = [BYTES[of] * math.prod(map(int, filter(None, n.split(",")))) for of, n in arrays]
        wide = sum(size for size, (of, _) in zip(sizes, arrays, strict=True) if of == "f32")
        found[kind] = {"count": len(sizes), "bytes": sum(sizes), "of_them_float32": wide}
    found["all_reduce"] = text.count("all-reduce")
    return found


def main() -> None:
    there = mesh()
    meshes.make = lambda *_, **__: there
    result = {"jax": jax.__version__}
    program, _ = lowered(256)
    result["published, lowered"] = written(program.as_text())
    for name, form in (
        ("small, compiled", convolution._gradients_on_cuda),
        ("small, kernels left in cuDNN's order", convolution._gradients_by_xla),
    ):
        convolution._gradients_on_cuda = form
        models._built.cache_clear()
        program, held = lowered(16, **SMALL)
        executable = program.compile()
        kept = executable.memory_analysis().alias_size_in_bytes
        result[name] = compiled(executable.as_text()) | {"state": held, "donated": kept}
        (results.HERE / "lowered.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
