# SPDX-License-Identifier: Apache-2.0
"""Several processes that train one run together, and what they must agree on.

Each runs the same program on its own devices; jax.distributed makes them one machine. A process
that gave up alone would leave the others waiting for it, so what only one can notice, all are told.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from contourdiff_jax.errors import InputError

LONGEST = 2000  # bytes of what is told

Result = TypeVar("Result")


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
