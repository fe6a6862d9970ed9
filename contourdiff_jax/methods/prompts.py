# SPDX-License-Identifier: Apache-2.0
"""Prompts: what a run's network attends to beside the image, one array for all that it draws.

A prompt is what a text encoder made of words, once, when the run was made: [2, M, W], first of no
words and then of the prompt. So nothing of text is needed to train or translate with it. A missing
prompt is that of no words (Ho & Salimans 2022, arXiv 2207.12598).

Shapes: B batch, *S space, C channels (last), M tokens, W width.
"""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from contourdiff_jax.contracts import PROMPT, Fixed
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk
from contourdiff_jax.training.run import PromptOf

FIXED = "prompt"  # its name among what is fixed


def shown(fixed: Fixed, shape: tuple[int, ...]) -> dict:
    """The condition of a network that attends to a prompt, given to images [B, *S, C]; else none.

    It has a channel, which says that it is given, so that it is hidden as other conditions are.
    """
    return {PROMPT.name: jnp.ones((*shape[:-1], 1))} if FIXED in fixed else {}


def context(fixed: Fixed, condition: Mapping):
    """What is attended to, [B, M, W], by whether it is given; None for a network without."""
    if PROMPT.name not in condition:
        return None
    given = condition[PROMPT.name]
    given = given.reshape(len(given), -1)[:, :1, None]  # the same at all pixels
    nothing, prompt = fixed[FIXED]
    return nothing[None] + given * (prompt - nothing)[None]


def read(path: Path, known: PromptOf, width: int) -> np.ndarray:
    """The array of a run; InputError where it is not the one that the run has learnt with."""
    array = load(path)
    if digest(array) != known.digest:
        raise InputError(f"{path}: another prompt than the run has learnt with; restore it")
    if array.shape[-1] != width:
        raise InputError(
            f"{path}: of width {array.shape[-1]}, where config.model.context is {width}"
        )
    return array


def load(path: Path) -> np.ndarray:
    """An array [2, M, W] float32 of a file; InputError for anything else."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: no array that can be read ({disk.reason(error)})") from None
    wanted = array.ndim == 3 and len(array) == 2 and array.size and array.dtype == np.float32
    if not wanted or not np.isfinite(array).all():
        raise InputError(
            f"{path}: {array.dtype} {list(array.shape)}, where finite float32 [2, tokens, width] "
            f"belong: of no words, and of the prompt"
        )
    return array


def digest(array: np.ndarray) -> str:
    """Of its shape and values."""
    return hashlib.sha256(f"{array.shape}".encode() + array.tobytes()).hexdigest()


def write(path: Path, array: np.ndarray) -> None:
    """Write the array of a run, whole or not at all."""
    stream = io.BytesIO()
    np.save(stream, array)
    disk.write(path, stream.getvalue())
