# SPDX-License-Identifier: Apache-2.0
"""Several processes that train one run together, and what they must agree on.

Each runs the same program on its own devices; jax.distributed makes them one machine. A process
that gave up alone would leave the others waiting for it, so what only one can notice, all are told.
"""

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from contourdiff_jax.errors import InputError

LONGEST = 2000  # bytes of what is told

Result = TypeVar("Result")


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT of the first of several processes that do this together; auto: as SLURM, Open "
        "MPI, Kubernetes or the TPU pod says",
        flag_values=values,
    )
    flags.DEFINE_integer("processes", None, "how many there are", lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "process", None, "which this is, from 0", lower_bound=0, flag_values=values
    )


@contextlib.contextmanager
def joined(values: flags.FlagValues) -> Iterator[None]:
    """Work in the processes that the flags name; before anything asks for a device.

    A process that fails ends at once, and so jax.distributed ends the others: its own way out waits
    for them, and they for the next step.
    """
    _join(values.coordinator, values.processes, values.process)
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        if isinstance(error, InputError):
            print(f"contourdiff: {error}", file=sys.stderr)
        else:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        if is_main():  # with it all end: those that know the reason too may say so first
            time.sleep(1)
        os._exit(2)


def _join(address: str | None, count: int | None, number: int | None) -> None:
    if (count is None) != (number is None) or (address is None and count is not None):
        raise InputError("--coordinator, --processes and --process belong together")
    if address is None:
        return
    if address != "auto" and (count is None or ":" not in address):
        raise InputError(
            f"--coordinator={address}: give HOST:PORT with --processes and --process, or auto"
        )
    if count is not None and number >= count:
        raise InputError(f"--process={number}: they are numbered from 0 to {count - 1}")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # for CPUs, which have no other
    try:
        jax.distributed.initialize(None if address == "auto" else address, count, number)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"--coordinator={address}: the processes did not meet: {reason}") from None


def is_main() -> bool:
    """Whether this process is the one that writes and speaks."""
    return jax.process_index() == 0


def told(answer: Callable[[], str]) -> str:
    """What the main process answers, in all of them; the others do not ask."""
    return _gathered(answer() if is_main() else "")[0]


def together(action: Callable[[], Result]) -> Result:
    """What `action` returns; where it raises InputError in one process, it does in all."""
    result, problem = None, ""
    try:
        result = action()
    except InputError as error:
        problem = str(error) or "failed"
    problems = [problem for problem in _gathered(problem) if problem]
    if problems:
        raise InputError(problems[0])
    return result


def _gathered(text: str) -> list[str]:
    """What each process says."""
    if jax.process_count() == 1:
        return [text]
    padded = np.zeros(LONGEST, np.uint8)
    said = text.encode()[:LONGEST]
    padded[: len(said)] = np.frombuffer(said, np.uint8)
    every = multihost_utils.process_allgather(padded)
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in every]
