# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with Orbax: asynchronous, atomic, restored onto any mesh.

A checkpoint has four items, so that translation reads the average alone:
    params, ema, optimiser   trees of arrays
    progress                 {'step', 'key'}
"""

import gc
import hashlib
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from contourdiff_jax.errors import InputError
from contourdiff_jax.state import TrainState

# Orbax reports every file it touches, and a failure once for each of its
# threads, with tracebacks; what users need to know is said by the commands.
for name in ("absl", "asyncio"):
    logging.getLogger(name).setLevel(logging.CRITICAL)

ITEMS = ("params", "ema", "optimiser", "progress")


def manager(
    run: Path, keep: int | None = None, *, at_once: int | None = None
) -> ocp.CheckpointManager:
    """The manager of a run's checkpoints.

    Args:
      keep: how many of the latest stay; all without it.
      at_once: bytes of an item that are on their way to the disk at once; all without it. They are
        copies.
    """
    limit = {} if at_once is None else {"save_concurrent_gb": at_once / 1e9}
    return ocp.CheckpointManager(
        (Path(run) / "checkpoints").absolute(),
        item_handlers={name: ocp.StandardCheckpointHandler(**limit) for name in ITEMS},
        options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
    )


def save(checkpoints: ocp.CheckpointManager, state: TrainState) -> None:
    """Begin to write the state; returns once it is copied off the device.

    Writing is waited for by `finish`. Raises InputError where this or the write before it failed,
    a full disk for one.
    """
    step = int(state.step)
    if step in checkpoints.all_steps():
        return
    items = ocp.args.Composite(
        params=ocp.args.StandardSave(state.params),
        ema=ocp.args.StandardSave(state.ema),
        optimiser=ocp.args.StandardSave(state.optimiser),
        progress=ocp.args.StandardSave({"step": state.step, "key": state.key}),
    )
    _attempt(lambda: checkpoints.save(step, args=items), _unwritten(checkpoints))


def save_average(run: Path, params) -> None:
    """Write the one checkpoint of a run that was not trained here: an average, at step 0."""
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(params))
    checkpoints = manager(run, at_once=2 * largest)
    items = ocp.args.Composite(ema=ocp.args.StandardSave(params))
    _attempt(lambda: checkpoints.save(0, args=items), _unwritten(checkpoints))
    finish(checkpoints)
    checkpoints.close()


def finish(checkpoints: ocp.CheckpointManager) -> None:
    """Wait for writing to end; raises InputError where it failed."""
    _attempt(checkpoints.wait_until_finished, _unwritten(checkpoints))


def _unwritten(checkpoints: ocp.CheckpointManager) -> str:
    return f"{checkpoints.directory}: a checkpoint could not be written; those before it are intact"


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


def load_average(run: Path, init: Callable, sharding) -> tuple[int, dict]:
    """(step, averaged parameters) of a run's latest checkpoint, every array laid out alike.

    Args:
      init: of the run's network, see models.Model.
    """
    like = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        jax.eval_shape(init, jax.random.key(0)),
    )
    checkpoints = manager(run)
    found = restore_ema(checkpoints, run, like)
    checkpoints.close()
    return found


def exists(run: Path) -> bool:
    """Whether a run has a checkpoint; looks without making a folder for them."""
    return any(path.name.isdigit() for path in (Path(run) / "checkpoints").glob("*"))


def latest_step(checkpoints: ocp.CheckpointManager, run: Path) -> int:
    step = checkpoints.latest_step()
    if step is None:
        raise InputError(f"{run}: holds no checkpoint yet; train it first")
    return step


def _restore(checkpoints, run, items: dict):
    step = latest_step(checkpoints, run)
    name = f"{run}/checkpoints/{step}"
    damaged = f"{name}: cannot be read; remove it to go on from the one before"
    metadata = _attempt(lambda: checkpoints.item_metadata(step), damaged)
    for item, like in items.items():
        _check(metadata.get(item), like, name)
    arguments = {item: ocp.args.StandardRestore(like) for item, like in items.items()}
    return _attempt(
        lambda: checkpoints.restore(step, args=ocp.args.Composite(**arguments)), damaged
    )


def _attempt(action: Callable, problem: str):
    """What `action` returns; any failure becomes an InputError that says `problem` and the reason.

    Orbax reads and writes in threads and coroutines that go on after the first failure. What they
    report then, with tracebacks, would bury that line, so they are waited for and not listened to.
    """
    report, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        try:
            return action()
        except Exception as error:
            failure = InputError(f"{problem} ({_reason(error)})")
        time.sleep(0.2)
        gc.collect()
        raise failure
    finally:
        sys.unraisablehook = report


def _check(metadata, like, name: str) -> None:
    """Raise InputError where a checkpoint's arrays are not those of the network that wants it."""
    if metadata is None:
        raise InputError(f"{name}: incomplete; remove it to go on from the checkpoint before")
    stored, wanted = (_shapes(tree) for tree in (metadata, like))
    for path in sorted(stored.keys() | wanted.keys()):
        if stored.get(path) != wanted.get(path):
            raise InputError(
                f"{name}: of another architecture: {path} is {stored.get(path, 'absent')} there "
                f"and {wanted.get(path, 'absent')} in the configuration's network"
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
    text = " ".join(str(error).split()) or type(error).__name__
    return "no space left on the device" if "No space left" in text else text[:200]
