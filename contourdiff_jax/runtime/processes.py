# SPDX-License-Identifier: Apache-2.0
"""Several processes that do one thing together, and what they must agree on.

Each runs the same program on its own devices; jax.distributed makes them one machine. A process
that gave up alone would leave the others waiting for it, so what only one can notice, all are told.

JAX is imported where it is needed: it takes a second, and flags and single processes do without.
"""

import contextlib
import io
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from absl import flags

from contourdiff_jax.errors import InputError

A_DAY = 24 * 3600  # seconds for which a process that is done waits for the others
Result = TypeVar("Result")


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
        if count() == 1:
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


def _join(address: str | None, total: int | None, index: int | None) -> None:
    if (total is None) != (index is None) or (address is None and total is not None):
        raise InputError("--coordinator, --processes and --process belong together")
    if address is None:
        return
    if address != "auto" and (total is None or ":" not in address):
        raise InputError(
            f"--coordinator={address}: give HOST:PORT with --processes and --process, or auto"
        )
    if total is not None and index >= total:
        raise InputError(f"--process={index}: they are numbered from 0 to {total - 1}")
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # for CPUs, which have no other
    try:
        jax.distributed.initialize(
            None if address == "auto" else address, total, index, shutdown_timeout_seconds=A_DAY
        )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"--coordinator={address}: the processes did not meet: {reason}") from None


def count() -> int:
    """How many processes there are."""
    jax = sys.modules.get("jax")
    return jax.process_count() if jax and jax.distributed.is_initialized() else 1


def number() -> int:
    """Which of them this is, from 0."""
    return sys.modules["jax"].process_index() if count() > 1 else 0


def is_main() -> bool:
    """Whether this process is the one that writes and speaks."""
    return number() == 0


def share(items: Sequence) -> Sequence:
    """This process's part of what all have; the parts follow one another in order of process."""
    ends = np.linspace(0, len(items), count() + 1).round().astype(int)
    return items[ends[number()] : ends[number() + 1]]


def gathered(arrays: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """What each process gives, of any shapes, in order of process; none of objects."""
    if count() == 1:
        return [arrays]
    from jax.experimental import multihost_utils

    file = io.BytesIO()
    np.savez(file, **arrays)
    ours = np.frombuffer(file.getvalue(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(ours)))
    padded = np.pad(ours, (0, sizes.max() - len(ours)))
    every = multihost_utils.process_allgather(padded)
    files = (io.BytesIO(bytes(row[:size])) for row, size in zip(every, sizes, strict=True))
    return [dict(np.load(file, allow_pickle=False)) for file in files]


def told(answer: Callable[[], str]) -> str:
    """What the main process answers, in all of them; the others do not ask."""
    return str(gathered({"said": np.array(answer() if is_main() else "")})[0]["said"])


def together(action: Callable[[], Result]) -> Result:
    """What `action` returns; where it raises InputError in one process, it does in all."""
    result, problem = None, ""
    try:
        result = action()
    except InputError as error:
        problem = str(error) or "failed"
    problems = [str(each["said"]) for each in gathered({"said": np.array(problem)})]
    if any(problems):
        raise InputError(next(filter(None, problems)))
    return result
