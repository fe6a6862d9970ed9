# SPDX-License-Identifier: Apache-2.0
"""The device mesh and what lies where on it: the one file that knows about sharding.

Two axes. 'data' splits the batch; 'fsdp' splits the batch too and, with it,
every large parameter and what the optimiser and the average keep of it (fully
sharded data parallelism, Rajbhandari et al. 2020, arXiv 1910.02054). The same
lines serve one CPU, one GPU and a pod: the compiler inserts the communication.
"""

import math
import os

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import processes

AXES = ("data", "fsdp")
# Elements up to which a parameter is kept whole: splitting it would cost more than it saves.
SMALL = 4096
# Bytes that the cores of a CPU may hold in all, each having a copy of what it works with.
SPARED = 2**30
# Images of a training step that are worth a core: for fewer it costs more to bring the gradients
# together than is won (experiments/017_speed).
LEARNT = 2


def check_devices() -> None:
    """InputError where JAX has no device of the kind that it is told to use."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError):
        raise InputError(
            f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}: JAX finds no such device here; "
            "unset it, or install JAX for that device"
        ) from None


def make(config, *, batch: int | None = None, least: int = 1, held=()) -> Mesh:
    """The mesh of a `mesh` section (see config.py): data x fsdp devices.

    Either may be -1 for the rest. A mesh smaller than the machine takes the first devices; with
    several processes, all must be in it.

    The devices of a CPU are its cores (cli.py), which have its memory in common: there -1 for data
    takes as many as can share a `batch`, `least` images or more each, and may each hold what `held`
    does, a tree of arrays.
    """
    check_devices()
    available = jax.device_count()
    shape = [config.data, config.fsdp]
    if shape.count(-1) == 2 or any(n < 1 and n != -1 for n in shape):
        raise InputError(
            f"config.mesh: data={config.data}, fsdp={config.fsdp} must be positive; one may be -1"
        )
    if -1 in shape:
        rest = max(1, available // math.prod(n for n in shape if n != -1))
        if shape[0] == -1 and batch and jax.default_backend() == "cpu" and processes.count() == 1:
            rest = _cores(rest, batch // shape[1], least, held)
        shape[shape.index(-1)] = rest
    total = math.prod(shape)
    if total > available or (jax.process_count() > 1 and total < available):
        raise InputError(
            f"config.mesh: data={config.data} times fsdp={config.fsdp} asks for {total} devices, "
            f"there are {available}"
        )
    # Auto: the compiler propagates shardings. With explicit axes, gathers such as alpha_bar[t]
    # would need annotations.
    return jax.make_mesh(
        tuple(shape),
        AXES,
        axis_types=(AxisType.Auto,) * len(AXES),
        devices=jax.devices()[:total],
    )


def _cores(most: int, batch: int, least: int, held) -> int:
    """How many of the cores of a CPU work on a batch together."""
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(held))
    shares = (n for n in range(2, most + 1) if batch % n == 0 and batch >= n * least)
    return max((n for n in shares if n * size <= SPARED), default=1)


def local(count: int | None = None) -> Mesh:
    """The devices of this process, or so many of them, for what it does alone."""
    check_devices()
    devices = jax.local_devices()[:count]
    axes = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh((len(devices), 1), AXES, axis_types=axes, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch(mesh: Mesh) -> NamedSharding:
    """Leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def drawing(mesh: Mesh, dims: int) -> NamedSharding:
    """Of what is drawn at once: slices, over all devices; or one volume, which each has whole."""
    return batch(mesh) if dims == 2 else replicated(mesh)


def shardings(mesh: Mesh, tree):
    """Shardings for a tree of arrays: of every large one, the largest axis that 'fsdp' divides."""
    parts = mesh.shape["fsdp"]

    def sharding(leaf):
        divisible = [i for i, n in enumerate(leaf.shape) if n % parts == 0]
        if parts == 1 or math.prod(leaf.shape) <= SMALL or not divisible:
            return replicated(mesh)
        largest = max(divisible, key=lambda i: leaf.shape[i])
        return NamedSharding(mesh, PartitionSpec(*(None,) * largest, "fsdp"))

    return jax.tree.map(sharding, tree)


def laid(mesh: Mesh, shapes):
    """A tree of ShapeDtypeStructs with the shardings of `shardings`."""
    return jax.tree.map(
        lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where),
        shapes,
        shardings(mesh, shapes),
    )


def check_batch(mesh: Mesh, size: int, name: str) -> None:
    """Raise InputError for a batch that the mesh does not divide."""
    if size < 1 or size % mesh.size:
        nearest = max(1, round(size / mesh.size)) * mesh.size
        raise InputError(
            f"{name}: {size} images cannot be divided over {mesh.size} devices; try {nearest}"
        )


def put(sharding: NamedSharding, tree):
    """Host arrays, this process's part of them, -> global arrays laid out by `sharding`."""
    return jax.tree.map(
        lambda a: jax.make_array_from_process_local_data(sharding, np.ascontiguousarray(a)), tree
    )


def split(sharding: NamedSharding, tree):
    """Host arrays that every process has whole -> global arrays laid out by `sharding`."""

    def laid(a):
        return jax.make_array_from_callback(a.shape, sharding, lambda index: a[index])

    return jax.tree.map(laid, jax.tree.map(np.asarray, tree))


def whole(array) -> np.ndarray:
    """A global array on the host of every process; one that is there already is left as it is."""
    if getattr(array, "is_fully_addressable", True):
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)
