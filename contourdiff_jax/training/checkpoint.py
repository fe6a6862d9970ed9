# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with Orbax: asynchronous, atomic, restored onto any mesh.

A checkpoint has up to five items, so that translation reads the averages alone:
    params, ema, optimiser   a tree of arrays of each player
    progress                 {'step', 'key'}
    memory                   what the method carries from step to step, where it does
Where the best is kept, the held-out loss of a step lies within its checkpoint, so that neither can
be without the other.
Checkpoints of versions without players hold the trees of the one network, and are read as such.
Each item has the digests of its files, written before the checkpoint gets its name. A checkpoint
with files that differ from them is not read; the one before it is.
"""

import contextlib
import gc
import hashlib
import json
import logging
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from contourdiff_jax.contracts import Averages, Player
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk, forms, processes
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training.state import TrainState

# Orbax reports every file that it touches, and a failure once for each of its threads, with
# tracebacks; what users need to know is said by the commands.
for name in ("absl", "asyncio"):
    logging.getLogger(name).setLevel(logging.CRITICAL)


ITEMS = ("params", "ema", "optimiser", "progress", "memory")
OF_PLAYERS = ("params", "ema", "optimiser")
DIGESTS = "sha256.json"  # in an item's folder: {file: sha256} of the others
ABOUT = "_CHECKPOINT_METADATA"  # Orbax's file on a checkpoint as a whole
DAMAGED = "damaged"  # the suffix of a checkpoint that is set aside
LOSS = "heldout_loss"  # by which the best is chosen; a sealed field of RECORD
RECORD = "metrics/metrics"  # in a checkpoint, as Orbax names it
LAST, BEST = "last", "best"  # names of checkpoints


class _Handler(ocp.StandardCheckpointHandler):
    """Writes and reads an item."""

    def finalize(self, directory) -> None:
        """Called once all processes have written, before the checkpoint gets its name."""
        super().finalize(directory)
        if processes.is_main():
            (Path(directory) / DIGESTS).write_text(json.dumps(_digests(Path(directory)), indent=1))


class _Manager(ocp.CheckpointManager):
    """One that reads the held-out losses of checkpoints, those that are not damaged."""

    def metrics(self, step: int) -> dict | None:
        loss = _loss(Path(self.directory) / str(step))
        return None if loss is None else {LOSS: loss}


def manager(
    run: Path, keep: int | None = None, *, keep_best: bool = False, at_once: int | None = None
) -> ocp.CheckpointManager:
    """The manager of a run's checkpoints.

    Args:
      keep: how many of the latest stay, where the run is trained. What a process that was killed
        had begun to write is then removed; without `keep` nothing is.
      keep_best: whether the one with the least held-out loss stays beside them.
      at_once: bytes of an item that are copied to be written at a time; without it all are.
    """
    limit = {} if at_once is None else {"save_concurrent_gb": at_once / 1e9}
    handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for item in ITEMS:
        handler = _Handler(**limit)
        for arguments in (ocp.args.StandardSave, ocp.args.StandardRestore):
            handlers.add(item, arguments, handler)
    stay = {"max_to_keep": keep}
    if keep_best:
        latest = policies.LatestN(n=keep)
        best = policies.BestN(n=1, get_metric_fn=_merit, keep_checkpoints_without_metrics=False)
        stay = {"preservation_policy": policies.AnyPreservationPolicy([latest, best])}
    return _Manager(
        (Path(run) / "checkpoints").absolute(),
        handler_registry=handlers,
        options=ocp.CheckpointManagerOptions(
            **stay,
            best_fn=_merit if keep_best else None,
            create=True,
            cleanup_tmp_directories=keep is not None,
        ),
    )


def _merit(record: Mapping) -> float:
    return -record[LOSS]


def save(checkpoints: ocp.CheckpointManager, state: TrainState, loss: float | None = None) -> None:
    """Begin to write the state; returns once it is copied off the device. `finish` waits for it.

    Args:
      loss: of held-out examples, where it is known; it is kept where the best is.

    Raises InputError where this or the write before it failed, for a full disk, say.
    """
    step = int(state.step)
    if step in checkpoints.all_steps():
        return
    items = ocp.args.Composite(
        **{item: ocp.args.StandardSave(tree) for item, tree in _items(state).items()}
    )
    record = None if loss is None or not math.isfinite(loss) else forms.sealed({LOSS: loss})
    _attempt(lambda: checkpoints.save(step, args=items, metrics=record), _unwritten(checkpoints))


def _items(state: TrainState) -> dict:
    """What is kept of a state, by item; a tree without arrays is no item."""
    trees = {item: getattr(state, item) for item in (*OF_PLAYERS, "memory")}
    kept = {item: tree for item, tree in trees.items() if jax.tree.leaves(tree)}
    return kept | {"progress": {"step": state.step, "key": state.key}}


def save_averages(run: Path, averages: Averages) -> None:
    """Write the one checkpoint of a run that was not trained here, at step 0."""
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(averages))
    checkpoints = manager(run, at_once=2 * largest)
    items = ocp.args.Composite(ema=ocp.args.StandardSave(averages))
    _attempt(lambda: checkpoints.save(0, args=items), _unwritten(checkpoints))
    finish(checkpoints)
    checkpoints.close()


def finish(checkpoints: ocp.CheckpointManager) -> None:
    """Wait for writing to end; raises InputError where it failed."""
    _attempt(checkpoints.wait_until_finished, _unwritten(checkpoints))


def check(checkpoints: ocp.CheckpointManager) -> None:
    """Raise InputError where writing has failed by now; waits for nothing."""
    _attempt(checkpoints.check_for_errors, _unwritten(checkpoints))


def _unwritten(checkpoints: ocp.CheckpointManager) -> str:
    return f"{checkpoints.directory}: a checkpoint could not be written; those before it are intact"


def restore(checkpoints: ocp.CheckpointManager, run: Path, like: TrainState) -> TrainState:
    """The latest intact checkpoint, laid out as `like` (ShapeDtypeStructs with shardings).

    For training that goes on from there: later checkpoints, which are damaged, are set aside.
    """
    step, items = _restore(checkpoints, run, _items(like))
    _set_aside(checkpoints, after=step)
    progress = items.pop("progress")
    return like._replace(**progress, **items)


def averages(
    run: Path, players: Mapping[str, Player], mesh: Mesh, which: str | int = LAST
) -> tuple[int, Averages]:
    """(step, what each player draws with) of a checkpoint, on a mesh: of the latest intact one.

    That is its average, or where none is kept its parameters.

    Args:
      which: "last"; "best", with the least held-out loss; or the step of another.
    """
    _check_any(steps(run), run)
    only = None if which == LAST else chosen(run, which)
    shapes = {n: jax.eval_shape(player.init, jax.random.key(0)) for n, player in players.items()}
    like = meshes.laid(mesh, shapes)
    averaged = {name: like[name] for name, player in players.items() if player.averaged}
    trees = {"ema": averaged, "params": like}
    checkpoints = manager(run)
    wanted = {item: trees[item] for item in drawn_with(players)}
    step, trees = _restore(checkpoints, run, wanted, only)
    checkpoints.close()
    return step, {**trees.get("params", {}), **trees.get("ema", {})}


def drawn_with(players: Mapping[str, Player]) -> list[str]:
    """The items of a checkpoint that `averages` reads."""
    averaged = [player.averaged for player in players.values()]
    return ["ema"] * any(averaged) + ["params"] * (not all(averaged))


def steps(run: Path) -> list[int]:
    """The steps after which a run has checkpoints, rising; no folder is made for them."""
    names = (path.name for path in (Path(run) / "checkpoints").glob("*"))
    return sorted(int(name) for name in names if name.isdigit())


def losses(run: Path) -> dict[int, float]:
    """The held-out losses that a run's checkpoints have, by step."""
    found = {step: _loss(Path(run) / "checkpoints" / str(step)) for step in steps(run)}
    return {step: loss for step, loss in found.items() if loss is not None}


def _loss(folder: Path) -> float | None:
    """The held-out loss of a checkpoint; None where there is none, or its record is damaged."""
    path = folder / RECORD
    try:
        return forms.read(path, {LOSS: float}, "")[LOSS] if path.exists() else None
    except InputError:
        return None


def chosen(run: Path, which: str | int) -> int:
    """The step of a checkpoint: of the "last", the "best", or that step.

    Raises InputError where the run has no such checkpoint.
    """
    kept = steps(run)
    _check_any(kept, run)
    if which == LAST:
        return kept[-1]
    listed = ", ".join(map(str, kept))
    if which == BEST:
        if found := losses(run):
            return max(found, key=lambda step: (-found[step], step))
        raise InputError(
            f"{run}: no checkpoint is known as the best: train with --config.train.keep_best=True "
            f"on a store that holds subjects out, or take --checkpoint={LAST} or one of {listed}"
        )
    if str(which).isdecimal() and int(which) in kept:
        return int(which)
    raise InputError(f"--checkpoint={which}: take {LAST}, {BEST}, or of {run} one of {listed}")


def exists(run: Path) -> bool:
    """Whether a run has a checkpoint, as the main process sees it: all must decide alike."""
    return bool(processes.told(lambda: "yes" if steps(run) else ""))


def _restore(checkpoints, run, items: dict, only: int | None = None) -> tuple[int, dict]:
    """(step, items) of the latest intact checkpoint; warns of damaged ones after it.

    Args:
      only: the step of the one that is wanted, and no other.
    """
    steps = sorted(checkpoints.all_steps(), reverse=True) if only is None else [only]
    _check_any(steps, run)
    for step, before in zip(steps, [*steps[1:], None], strict=True):
        name = f"{run}/checkpoints/{step}"
        try:
            folder = Path(checkpoints.directory) / str(step)
            _verify(folder, name, items)
            trees = _read(checkpoints, step, name, items)
            lacking = [item for item in items if not (folder / item / DIGESTS).is_file()]
            if lacking and processes.is_main():
                print(
                    f"warning: {name}/{lacking[0]}: without its {DIGESTS}, so that damage is not "
                    "noticed; restore that from a copy",
                    file=sys.stderr,
                )
            return step, trees
        except _Damaged as damage:
            if before is None:
                raise InputError(f"{damage}; restore it from a copy, or train again") from None
            if processes.is_main():
                print(f"warning: {damage}; going on from {before}", file=sys.stderr, flush=True)


def _check_any(steps: list[int], run: Path) -> None:
    if not steps:
        raise InputError(f"{run}: holds no checkpoint yet; train it first")


class _Damaged(InputError):
    """A checkpoint that cannot be used; an earlier one may be."""


def _verify(folder: Path, name: str, items) -> None:
    """Raise _Damaged, in all processes alike, where files of a checkpoint are not as written.

    A checkpoint without digests, as of earlier versions, is used with a warning: it shows damage
    only when it is read.
    """

    def damage() -> str:
        for item in items:
            if not (folder / item).is_dir():
                return f"{name}: incomplete, without {item}"
            if not (folder / item / DIGESTS).is_file():
                continue
            try:
                written = forms.read(folder / item / DIGESTS, dict[str, str], "")
                actual = _digests(folder / item)
            except (OSError, InputError) as error:
                return f"{name}: damaged, {item}: {disk.reason(error)[:200]}"
            for file, digest in written.items():
                if actual.get(file) != digest:
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
    item = next(item for item in OF_PLAYERS if item in items)
    (player, *others) = items[item]
    if without_players := not others and player not in _tree(metadata.get(item)):
        items = {i: like[player] if i in OF_PLAYERS else like for i, like in items.items()}
    for item, like in items.items():
        check_shapes(metadata.get(item), like, name)
    wanted = ocp.args.Composite(**{i: ocp.args.StandardRestore(like) for i, like in items.items()})
    restored = _attempt(lambda: checkpoints.restore(step, args=wanted), unreadable, _Damaged)
    if not without_players:
        return {item: restored[item] for item in items}
    return {i: {player: restored[i]} if i in OF_PLAYERS else restored[i] for i in items}


def _tree(metadata):
    """The shapes of an item's arrays, from a checkpoint's metadata."""
    return getattr(metadata, "tree", metadata) or {}


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
            failure = kind(f"{problem} ({disk.reason(error)[:200]})")
        raise failure


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps threads of Orbax from burying the one line that says that reading or writing failed.

    They go on after the first failure, and report what follows from it with tracebacks. So they are
    waited for, and their reports are dropped.
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


def check_shapes(metadata, like, name: str) -> None:
    """Raise InputError where arrays, or a checkpoint's, have other shapes than the network's."""
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
    leaves = jax.tree_util.tree_leaves_with_path(_tree(tree))

    def name(key):
        return str(next(getattr(key, a) for a in ("key", "idx", "name") if hasattr(key, a)))

    return {".".join(name(k) for k in path): tuple(leaf.shape) for path, leaf in leaves}


def digest(averages: Averages, marks: Mapping[str, str] | None = None) -> str:
    """sha256 over names and bytes of players' weights, by which sidecars name a model.

    The name of an only player does not count, so that a network has the same digest wherever it is
    kept. `marks` are those of parts that it draws with, see Run.marks.
    """
    total = hashlib.sha256()
    for mark in sorted((marks or {}).items()):
        total.update(" ".join(mark).encode())
    params = averages if len(averages) > 1 else next(iter(averages.values()))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        total.update(jax.tree_util.keystr(path).encode())
        total.update(meshes.whole(leaf).tobytes())
    return total.hexdigest()
