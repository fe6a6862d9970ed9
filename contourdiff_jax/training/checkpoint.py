# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with Orbax: asynchronous, atomic, restored onto any mesh.

A checkpoint has four items, so that translation reads the average alone:
    params, ema, optimiser   trees of arrays
    progress                 {'step', 'key'}
Each has the digests of its files beside them, written before the checkpoint gets its name. What
differs from them is not read: the checkpoint before is.
"""

import contextlib
import gc
import hashlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk, processes
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training.state import TrainState

# Orbax reports every file it touches, and a failure once for each of its
# threads, with tracebacks; what users need to know is said by the commands.
for name in ("absl", "asyncio"):
    logging.getLogger(name).setLevel(logging.CRITICAL)


ITEMS = ("params", "ema", "optimiser", "progress")
DIGESTS = "sha256.json"  # in an item's folder: {file: sha256} of the others
DAMAGED = "damaged"  # what the name of a checkpoint ends in that is set aside


class _Handler(ocp.StandardCheckpointHandler):
    """Writes and reads an item."""

    def finalize(self, directory) -> None:
        """Called once all processes have written, before the checkpoint gets its name."""
        super().finalize(directory)
        if processes.is_main():
            (Path(directory) / DIGESTS).write_text(json.dumps(_digests(Path(directory)), indent=1))


def manager(
    run: Path, keep: int | None = None, *, at_once: int | None = None
) -> ocp.CheckpointManager:
    """The manager of a run's checkpoints.

    Args:
      keep: how many of the latest stay, which is for who trains the run: what a process that was
        killed had begun to write is removed. Without it nothing is.
      at_once: bytes of an item that are on their way to the disk at once; all without it. They are
        copies.
    """
    limit = {} if at_once is None else {"save_concurrent_gb": at_once / 1e9}
    handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for item in ITEMS:
        handler = _Handler(**limit)
        for arguments in (ocp.args.StandardSave, ocp.args.StandardRestore):
            handlers.add(item, arguments, handler)
    return ocp.CheckpointManager(
        (Path(run) / "checkpoints").absolute(),
        handler_registry=handlers,
        options=ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, cleanup_tmp_directories=keep is not None
        ),
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


def check(checkpoints: ocp.CheckpointManager) -> None:
    """Raise InputError where writing has failed since; waits for nothing."""
    _attempt(checkpoints.check_for_errors, _unwritten(checkpoints))


def _unwritten(checkpoints: ocp.CheckpointManager) -> str:
    return f"{checkpoints.directory}: a checkpoint could not be written; those before it are intact"


def restore(checkpoints: ocp.CheckpointManager, run: Path, like: TrainState) -> TrainState:
    """The latest intact checkpoint, laid out as `like` (ShapeDtypeStructs with shardings).

    For who goes on with the run: later checkpoints, which are damaged, are set aside.
    """
    items = {
        "params": like.params,
        "ema": like.ema,
        "optimiser": like.optimiser,
        "progress": {"step": like.step, "key": like.key},
    }
    step, found = _restore(checkpoints, run, items)
    _set_aside(checkpoints, after=step)
    return TrainState(
        found["progress"]["step"],
        found["progress"]["key"],
        found["params"],
        found["ema"],
        found["optimiser"],
    )


def restore_ema(checkpoints: ocp.CheckpointManager, run: Path, like) -> tuple[int, dict]:
    """(step, averaged parameters) of the latest intact checkpoint."""
    step, found = _restore(checkpoints, run, {"ema": like})
    return step, found["ema"]


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


def _restore(checkpoints, run, items: dict) -> tuple[int, dict]:
    """(step, items) of the latest checkpoint whose items are intact, saying which are not."""
    steps = sorted(checkpoints.all_steps(), reverse=True)
    if not steps:
        raise InputError(f"{run}: holds no checkpoint yet; train it first")
    for step, before in zip(steps, [*steps[1:], None], strict=True):
        name = f"{run}/checkpoints/{step}"
        try:
            _verify(Path(checkpoints.directory) / str(step), name, items)
            return step, _read(checkpoints, step, name, items)
        except _Damaged as damage:
            if before is None:
                raise InputError(f"{damage}; restore it from a copy, or train again") from None
            if processes.is_main():
                print(f"warning: {damage}; going on from {before}", file=sys.stderr, flush=True)


class _Damaged(InputError):
    """A checkpoint that cannot be used, where one before may."""


def _verify(folder: Path, name: str, items) -> None:
    """Raise _Damaged, on all processes alike, where files of a checkpoint are not as written.

    Checkpoints of earlier versions have no digests: of these it is known only whether they can be
    read.
    """

    def damage() -> str:
        for item in items:
            if not (folder / item).is_dir():
                return f"{name}: incomplete, without {item}"
            if not (folder / item / DIGESTS).is_file():
                continue
            try:
                written = json.loads((folder / item / DIGESTS).read_text())
                found = _digests(folder / item)
            except (OSError, ValueError, InputError) as error:
                return f"{name}: damaged, {item}: {_reason(error)}"
            for file, digest in written.items():
                if found.get(file) != digest:
                    return f"{name}: damaged, {item}/{file} is not as it was written"
        return ""

    if problem := processes.told(damage):
        raise _Damaged(problem)


def _digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != DIGESTS)
    return {path.relative_to(folder).as_posix(): disk.sha256(path) for path in files}


def _read(checkpoints, step: int, name: str, items: dict) -> dict:
    unreadable = f"{name}: cannot be read"
    metadata = _attempt(lambda: checkpoints.item_metadata(step), unreadable, _Damaged)
    for item, like in items.items():
        _check(metadata.get(item), like, name)
    wanted = ocp.args.Composite(**{i: ocp.args.StandardRestore(like) for i, like in items.items()})
    return _attempt(lambda: checkpoints.restore(step, args=wanted), unreadable, _Damaged)


def _set_aside(checkpoints: ocp.CheckpointManager, *, after: int) -> None:
    """Rename the checkpoints after a step, so that training can write them anew."""
    later = [step for step in checkpoints.all_steps() if step > after]

    def rename() -> str:
        for step in later:
            folder = Path(checkpoints.directory) / str(step)
            aside = folder.with_name(f"{step}.{DAMAGED}")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
        return ""

    if later:
        processes.told(rename)
        checkpoints.reload()


def _attempt(action: Callable, problem: str, kind: type[InputError] = InputError):
    """What `action` returns; a failure becomes one of that kind: `problem` and the reason."""
    with quiet():
        try:
            return action()
        except Exception as error:
            failure = kind(f"{problem} ({_reason(error)})")
        raise failure


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """While writing goes on in the background: lets the one line that says it failed be seen.

    Orbax reads and writes in threads and coroutines that go on after the first failure. What they
    report then, with tracebacks, would bury that line, so they are waited for and not listened to.
    """
    report, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
    except InputError:
        time.sleep(0.2)
        gc.collect()
        raise
    finally:
        sys.unraisablehook = report


def _check(metadata, like, name: str) -> None:
    """Raise InputError where a checkpoint's arrays are not those of the network that wants it."""
    if metadata is None:
        raise _Damaged(f"{name}: incomplete")
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
        total.update(meshes.whole(leaf).tobytes())
    return total.hexdigest()


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return "no space left on the device" if "No space left" in text else text[:200]
