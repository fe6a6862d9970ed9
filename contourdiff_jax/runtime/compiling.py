# SPDX-License-Identifier: Apache-2.0
"""Compiling: what XLA is told, and given back by it, so that a CPU's programs take less memory."""

import contextlib
import ctypes
import functools
import sys

import jax
from jax.sharding import Mesh

# XLA's options for a CPU. What a step of the published network holds besides its state falls with
# them from 2,246 to 1,575 MiB (experiments/017_speed).
FRUGAL = {
    # What is donated is written in place where it is read before. XLA sees that not by dependence
    # alone: without this it copies parameters and both moments of Adam in every step.
    "xla_cpu_copy_insertion_use_region_analysis": True,
    # The order in which the least is held (1), not the one in which the most could run at once.
    "xla_cpu_scheduler_type": 1,
}


def options(mesh: Mesh) -> dict | None:
    """For jax.jit and Lowered.compile: of FRUGAL what XLA knows, where programs are for a CPU."""
    if mesh.devices.flat[0].platform != "cpu":
        return None
    return {name: value for name, value in FRUGAL.items() if _is_known(name, value)}


@functools.cache
def _is_known(name: str, value) -> bool:
    """Whether this version of XLA takes an option: they come and go."""
    try:
        jax.jit(lambda x: x).lower(0).compile(compiler_options={name: value})
    except jax.errors.JaxRuntimeError:
        return False
    return True


def give_back() -> None:
    """Returns to the system what the compiler has freed: glibc keeps gigabytes of it otherwise."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # of another C library
            ctypes.CDLL(None).malloc_trim(0)
