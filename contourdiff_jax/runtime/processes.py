# SPDX-License-Identifier: Apache-2.0
"""Several processes that work together: how they meet, and how they come to agree.

Each runs the same program on its own devices; jax.distributed makes one machine of them. If one
process gave up, the others would wait for it in vain: what one of them finds wrong is therefore
passed on to all (`together`).

JAX takes a second to import, and a process on its own does not need it: functions import it.
"""

import contextlib
import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from contourdiff_jax.errors import InputError, tell

SILENCE = 5  # seconds after which it is said what is waited for
A_DAY = 24 * 3600  # seconds that a process which has finished waits for the others
Result = TypeVar("Result")


@contextlib.contextmanager
def joined(
    address: str | None = None,
    total: int | None = None,
    index: int | None = None,
    patience: int = 300,
) -> Iterator[None]:
    """Work as one of several processes; to be entered before anything asks for a device.

    A process that fails ends at once, without clean-up, and jax.distributed then ends the others.
    An orderly exit would wait for the others, which wait for this one at the next step.

    Args:
      address: HOST:PORT of the first process, or 'auto', as the cluster says; None: there is no
        other process.
      total: how many processes there are, unless the cluster says.
      index: which of them this is, from 0, likewise.
      patience: seconds to wait for the others.

    Raises:
      InputError: arguments that do not belong together; processes that did not meet.
    """
    _join(address, total, index, patience)
    try:
        yield
    except Exception as error:
        if count() == 1:
            raise
        status = tell(error)
        sys.stdout.flush()
        sys.stderr.flush()
        if is_main():  # the others end with it, so those that know the reason may print it first
            time.sleep(1)
        os._exit(status)


def _join(address: str | None, total: int | None, index: int | None, patience: int) -> None:
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

    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # the only one for CPUs
    try:
        with _waiting(f"{address} for {'the first process' if index else 'the others'}", patience):
            jax.distributed.initialize(
                None if address == "auto" else address,
                total,
                index,
                initialization_timeout=2 * patience,  # it would abort without saying why
                shutdown_timeout_seconds=A_DAY,
            )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"--coordinator={address}: the processes did not meet: {reason}") from None


@contextlib.contextmanager
def _waiting(where: str, patience: int) -> Iterator[None]:
    """Says after a while that the others are waited for, and ends the process when it is enough."""
    met = threading.Event()

    def watch():
        if not met.wait(min(SILENCE, patience)):
            print(f"contourdiff: waiting at {where}, at most {patience} s", file=sys.stderr)
            if not met.wait(patience - SILENCE):
                os._exit(
                    tell(f"waited at {where}, {patience} s in vain; is it started, and reached?")
                )

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        met.set()


def count() -> int:
    """The number of processes."""
    jax = sys.modules.get("jax")
    return jax.process_count() if jax and jax.distributed.is_initialized() else 1


def number() -> int:
    """The number of this process, from 0."""
    return sys.modules["jax"].process_index() if count() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that writes files and prints."""
    return number() == 0


def share(items: Sequence) -> Sequence:
    """The part of `items` that is this process's; the parts of all, in order, are the whole."""
    ends = np.linspace(0, len(items), count() + 1).round().astype(int)
    return items[ends[number()] : ends[number() + 1]]


def gathered(arrays: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The arrays of every process, in order of their numbers.

    Shapes may differ between processes; arrays of objects are not allowed.
    """
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
    """What `answer` returns in the main process, in every process; the others do not call it."""
    return str(gathered({"said": np.array(answer() if is_main() else "")})[0]["said"])


def together(action: Callable[[], Result]) -> Result:
    """What `action` returns; an InputError that it raises in one process is raised in all."""
    result, problem = None, ""
    try:
        result = action()
    except InputError as error:
        problem = str(error) or "failed"
    problems = [str(each["said"]) for each in gathered({"said": np.array(problem)})]
    if any(problems):
        raise InputError(next(filter(None, problems)))
    return result
