# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with Orbax: asynchronous, atomic, restored onto any mesh.

A checkpoint has four items, so that translation reads the average alone:
    params, ema, optimiser   trees of arrays
    progress                 {'step', 'key'}
"""

import hashlib
import logging
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from contourdiff_jax.errors import InputError
from contourdiff_jax.state import TrainState

# Orbax reports every file it touches; what users need to know is said by the commands.
logging.getLogger("absl").setLevel(logging.ERROR)

ITEMS = ("params", "ema", "optimiser", "progress")


def manager(run: Path, keep: int | None = None) -> ocp.CheckpointManager:
    """The manager of a run's checkpoints; `keep` is how many of the latest stay (None: all)."""
    return ocp.CheckpointManager(
        (Path(run) / "checkpoints").absolute(),
        item_handlers={name: ocp.StandardCheckpointHandler() for name in ITEMS},
        options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
    )


def save(checkpoints: ocp.CheckpointManager, state: TrainState) -> None:
    """Begin to write the state; returns once it is copied off the device. Writing is waited for by `finish`."""
    step = int(state.step)
    if step in checkpoints.all_steps():
        return
    checkpoints.save(
        step,
        args=ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            ema=ocp.args.StandardSave(state.ema),
            optimiser=ocp.args.StandardSave(state.optimiser),
            progress=ocp.args.StandardSave({"step": state.step, "key": state.key}),
        ),
    )


def finish(checkpoints: ocp.CheckpointManager, run: Path) -> None:
    """Wait for writing to end; raises InputError where it failed, a full disk for one."""
    try:
        checkpoints.wait_until_finished()
    except Exception as error:
        raise InputError(
            f"{run}: the checkpoint could not be written ({_reason(error)}); the one before it is intact"
        ) from error


def restore(checkpoints: ocp.CheckpointManager, run: Path, like: TrainState) -> TrainState:
    """The latest checkpoint, laid out as `like` (ShapeDtypeStructs with shardings)."""
    items = {
        "params": like.params,
        "ema": like.ema,
        "optimiser": like.optimiser,
        "progress": {"step": like.step, "key": like.key},
    }
    found = _restore(checkpoints, run, items)
    return TrainState(
        found["progress"]["step"],
        found["progress"]["key"],
        found["params"],
        found["ema"],
        found["optimiser"],
    )


def restore_ema(checkpoints: ocp.CheckpointManager, run: Path, like) -> tuple[int, dict]:
    """(step, averaged parameters) of the latest checkpoint."""
    return latest_step(checkpoints, run), _restore(checkpoints, run, {"ema": like})["ema"]


def latest_step(checkpoints: ocp.CheckpointManager, run: Path) -> int:
    step = checkpoints.latest_step()
    if step is None:
        raise InputError(f"{run}: holds no checkpoint yet; train it first")
    return step


def _restore(checkpoints, run, items: dict):
    step = latest_step(checkpoints, run)
    for name, like in items.items():
        _check(checkpoints.item_metadata(step)[name], like, f"{run}/checkpoints/{step}")
    arguments = {name: ocp.args.StandardRestore(like) for name, like in items.items()}
    try:
        return checkpoints.restore(step, args=ocp.args.Composite(**arguments))
    except Exception as error:
        raise InputError(
            f"{run}/checkpoints/{step}: cannot be read ({_reason(error)}); remove it to go on from the one before"
        ) from error


def _check(metadata, like, name: str) -> None:
    """Raise InputError where a checkpoint's arrays are not those of the network it is wanted for."""
    if metadata is None:
        raise InputError(f"{name}: incomplete; remove it to go on from the checkpoint before")
    stored, wanted = (_shapes(tree) for tree in (metadata, like))
    for path in sorted(stored.keys() | wanted.keys()):
        if stored.get(path) != wanted.get(path):
            raise InputError(
                f"{name}: of another architecture: {path} is {stored.get(path, 'absent')} there and "
                f"{wanted.get(path, 'absent')} in the configuration's network"
            )


def _shapes(tree) -> dict[str, tuple]:
    leaves = jax.tree_util.tree_leaves_with_path(getattr(tree, "tree", tree))

    def name(key):
        return str(next(getattr(key, a) for a in ("key", "idx", "name") if hasattr(key, a)))

    return {".".join(name(k) for k in path): tuple(leaf.shape) for path, leaf in leaves}


def digest(params) -> str:
    """sha256 over names and bytes of a tree of arrays: what a translation says it was made with."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        total.update(jax.tree_util.keystr(path).encode())
        total.update(np.asarray(leaf).tobytes())
    return total.hexdigest()


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
