# SPDX-License-Identifier: Apache-2.0
"""The training loop.

The same store, configuration and workdir again means: resume. SIGTERM saves and stops.
"""

import contextlib
import dataclasses
import functools
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from contourdiff_jax import models
from contourdiff_jax.contours import disturbance
from contourdiff_jax.data import batches
from contourdiff_jax.data.store import Store, open_store
from contourdiff_jax.diffusion import noise, process, schedules
from contourdiff_jax.errors import InputError
from contourdiff_jax.methods import distilled
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.runtime import processes
from contourdiff_jax.training import checkpoint, run, state
from contourdiff_jax.training.logs import Logs
from contourdiff_jax.translation import sampling

TIMED = 8  # steps from which the time that a run takes is told
HELD_OUT = 64  # slices of the held-out loss
BINS = 10  # of its timesteps
SAMPLES = 4  # slices of a sample grid


@dataclasses.dataclass(frozen=True)
class Setup:
    """What is fixed before the first step: network, loss, where arrays lie, the compiled step."""

    mesh: jax.sharding.Mesh
    model: models.Model
    schedule: schedules.Schedule
    init: Callable[[jax.Array], state.TrainState]
    like: state.TrainState  # ShapeDtypeStructs with shardings
    step: Callable[..., tuple[state.TrainState, dict]]  # (state, example), and a teacher's weights
    sampler: Callable  # see sampling.sampler
    step_bytes: int  # memory of a step beside the state, on one device


def setup(config, size: int) -> Setup:
    """Check the configuration against images of size x size px, and compile.

    Raises:
      InputError: a setting that cannot work, named.
    """
    if config.seed < 0:
        raise InputError(f"config.seed: {config.seed} must not be negative")
    state.check(config.train)
    disturbance.check(config.disturbance)
    distilled.check(config)
    if config.train.accumulate < 1:
        raise InputError(f"config.train.accumulate: {config.train.accumulate} must be at least 1")
    models.check_size(config.model, size)
    model = models.build(config.model, batches.CONDITIONS)
    init = functools.partial(state.init, config.train, model.init)
    shapes = jax.eval_shape(init, jax.random.key(0))
    at_once = max(1, config.train.batch // config.train.accumulate)
    mesh = meshes.make(config.mesh, batch=at_once, least=meshes.LEARNT, held=shapes)
    meshes.check_batch(mesh, config.train.batch, "config.train.batch")
    if config.train.batch % (config.train.accumulate * mesh.size):
        raise InputError(
            f"config.train.accumulate: a batch of {config.train.batch} on {mesh.size} devices "
            f"cannot be computed in {config.train.accumulate} equal parts"
        )
    schedule = schedules.build(config.diffusion)
    taught = config.distillation.substeps > 0
    loss = process.loss(
        model.apply,
        schedule,
        config.diffusion,
        learnt=distilled.learnt(config),
        teach=distilled.teacher(model.apply, schedule, config) if taught else None,
        condition_dropout=config.train.condition_dropout,
    )
    sampler = sampling.sampler(config, model, schedule, mesh)

    sharding = meshes.state(mesh, shapes)
    like = jax.tree.map(
        lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, sharding
    )
    step = jax.jit(
        state.step(config.train, loss),
        donate_argnums=0,
        in_shardings=(sharding, meshes.batch(mesh), *([sharding.ema] if taught else [])),
        out_shardings=(sharding, meshes.replicated(mesh)),
    )
    given = (like, _example_shapes(config, size), *([like.ema] if taught else []))
    compiled = step.lower(*given).compile()
    memory = compiled.memory_analysis()
    return Setup(
        mesh=mesh,
        model=model,
        schedule=schedule,
        init=jax.jit(init, out_shardings=sharding),
        like=like,
        step=compiled,
        sampler=sampler,
        step_bytes=getattr(memory, "temp_size_in_bytes", 0),
    )


def train(
    config,
    store: str | Path,
    workdir: str | Path,
    *,
    init: str | Path | None = None,
    teacher: str | Path | None = None,
    verified: bool = True,
) -> bool:
    """Train until `config.train.images` have been seen; returns whether that was reached.

    Args:
      config: see config.py.
      store: folder made by `prepare`; its 'train' split is learnt, its 'val' split held out.
      workdir: folder of the run; one that holds a run of the same configuration is resumed. All
        processes must see the same.
      init: a run whose averaged weights to begin with.
      teacher: likewise, and to learn from; see `distillation` in config.py. To be given again where
        the run is resumed.
      verified: whether to read the whole store first, and compare it with its digests.

    Raises:
      InputError: anything of these that cannot be used; a loss that is not finite.
    """
    if bool(teacher) != (config.distillation.substeps > 0):
        raise InputError("--teacher and --config.distillation.substeps: each needs the other")
    if teacher and init:
        raise InputError("--init: a network begins with the weights of its teacher; leave it out")
    store, workdir = processes.together(lambda: run.opened(Path(store), verified)), Path(workdir)
    ours = run.begin(config, store)
    plan = setup(config, store.grid.size)
    resumed = bool(processes.told(lambda: "yes" if checkpoint.exists(workdir) else ""))
    weights, taught_by = None, ()
    if teacher:
        weights = _taught_by(Path(teacher), ours, plan)
        taught_by = (weights,)
        ours = dataclasses.replace(ours, teacher=checkpoint.digest(weights))
    elif init and not resumed:
        weights = _weights(Path(init), plan)
    with run.claimed(workdir, ours):
        return _train(ours, plan, store, workdir, resumed, weights, taught_by)


def _train(
    ours: run.Run,
    plan: Setup,
    store: Store,
    workdir: Path,
    resumed: bool,
    weights,
    taught_by: tuple,
) -> bool:
    """See train; `weights` to begin with, or None; those of the teacher, if there is one."""
    config = ours.config
    batch, total = config.train.batch, state.steps(config.train)
    is_main = processes.is_main()

    # ------------------------------------------------------------------------------------------
    # The state: 1. a checkpoint in the workdir, else 2. the weights of --init, else 3. fresh
    # ------------------------------------------------------------------------------------------
    checkpoints = checkpoint.manager(workdir, config.train.keep)
    if resumed:
        current = checkpoint.restore(checkpoints, workdir, plan.like)
    else:
        current = plan.init(jax.random.key(config.seed))
        if weights is not None:
            begun = {name: jax.tree.map(jnp.copy, weights) for name in ("params", "ema")}
            current = current._replace(**begun)
    start = int(current.step)
    if start >= total:
        checkpoints.close()
        if is_main:
            print(f"{workdir}: trained on {start * batch:,} images already; nothing left to do")
        return True

    # ------------------------------------------------------------------------------------------
    # Input, held-out examples, logs
    # ------------------------------------------------------------------------------------------
    examples = batches.training(store, ours.contours, config, plan.mesh, start=start, stop=total)
    observe = _observer(ours, store, plan)
    logs = Logs(workdir, start) if is_main else None
    if is_main:
        print(_summary(plan, ours, store, start), flush=True)
    bar = tqdm(
        total=total * batch,
        initial=start * batch,
        unit=" images",
        disable=None if is_main else True,
        smoothing=0.05,
    )
    stop = _StopRequest()
    before = logs.seconds if logs else 0.0
    began, pending = time.perf_counter(), None
    compiled = began

    # ------------------------------------------------------------------------------------------
    # The loop. Metrics of a step are read once the next one is on its way.
    # ------------------------------------------------------------------------------------------
    def due(step: int, every: int) -> bool:
        return _due(step, max(1, every // batch) if every else 0, total)

    def tell_time(step: int) -> None:
        """Says early how long it will take: the first step compiles, the next few are timed."""
        nonlocal compiled
        if step == start + 1:
            compiled = time.perf_counter()
        elif step == start + 1 + TIMED and is_main:
            speed = TIMED * batch / (time.perf_counter() - compiled)
            left = _duration((total - step) * batch / speed)
            print(f"about {left} to go at {speed:.1f} images/s", flush=True)

    def read(step: int, metrics: dict) -> None:
        scalars = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not all(math.isfinite(value) for value in scalars.values()):
            checkpoint.save(checkpoints, current)
            checkpoint.finish(checkpoints)
            raise InputError(
                f"{workdir}: the loss of step {step} is not finite; saved without that step. "
                f"Lower config.train.learning_rate or look at its images: "
                f"{_named(config, store, step)}"
            )
        tell_time(step)
        if logs and due(step, config.train.log):
            seconds = time.perf_counter() - began
            speed = (step - start) * batch / seconds
            times = {"seconds": before + seconds, "images_per_second": speed}
            logs.write_scalars(step, step * batch, scalars | times)
            logs.flush()
            checkpoint.check(checkpoints)
            bar.set_postfix(loss=f"{scalars['loss']:.4f}", refresh=False)
            if bar.disable and is_main:
                left = (total - step) * batch / speed
                print(
                    f"{step * batch:>10,} images  loss {scalars['loss']:.4f}  {speed:.1f} "
                    f"images/s  {_duration(left)} left",
                    flush=True,
                )

    closing = contextlib.closing(logs) if logs else contextlib.nullcontext()
    with checkpoint.quiet(), stop, bar, closing:
        for step in range(start + 1, total + 1):
            example = next(examples)
            with jax.transfer_guard("disallow"):
                current, metrics = plan.step(current, example, *taught_by)
            if pending:
                read(*pending)
            pending = (step, metrics)
            bar.update(batch)

            if due(step, config.train.evaluate) and observe.held_out:
                losses = observe.held_out(current.ema)
                if logs:
                    logs.write_scalars(step, step * batch, losses)
            if due(step, config.train.sample):
                picture = observe.samples(current.ema)
                if logs:
                    logs.write_image(step * batch, picture)
            stopping = stop.at(step)  # asked once: a notice that comes while saving is for later
            if due(step, config.train.checkpoint) or stopping:
                read(*pending)
                pending = None
                if logs:
                    logs.store()  # what a killed run had not written, it does not write again
                checkpoint.save(checkpoints, current)
            if stopping:
                break
        if pending:
            read(*pending)

    # ------------------------------------------------------------------------------------------
    # The end
    # ------------------------------------------------------------------------------------------
    checkpoint.finish(checkpoints)
    checkpoints.close()
    if stopping and step < total:
        if is_main:
            print(
                f"{workdir}: stopped and saved at {step * batch:,} images; the same command resumes"
            )
        return False
    return True


def images_per_second(config, store: str | Path, *, steps: int = 4) -> float:
    """Measure training speed on this machine: the median of a few steps, input included."""
    store = open_store(store)
    plan = setup(config, store.grid.size)
    settings = run.begin(config, store).contours
    current = plan.init(jax.random.key(config.seed))
    examples = batches.training(store, settings, config, plan.mesh, start=0, stop=steps + 1)
    seconds = []
    for _ in range(steps + 1):
        began = time.perf_counter()
        current, _ = plan.step(current, next(examples))
        jax.block_until_ready(current)
        seconds.append(time.perf_counter() - began)
    return config.train.batch / float(np.median(seconds[1:]))


def _due(step: int, every: int, total: int) -> bool:
    """Whether something is to happen after `step`: every so many steps and at the end.

    Where `every` is 0, only at the end.
    """
    return step == total or (every > 0 and step % every == 0)


class _StopRequest:
    """Notes a SIGTERM, the notice a cluster gives before it takes a machine back.

    Of several processes any may be given it; jax.distributed listens and lets all agree on a step.
    """

    def __init__(self):
        self._noted = False

    def __enter__(self):
        self._before = None
        if processes.count() == 1:
            with contextlib.suppress(ValueError):  # not in the main thread: signals cannot be had
                self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_):
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, *_):
        self._noted = True

    def at(self, step: int) -> bool:
        """Whether to stop after this step; to be asked once after each."""
        return self._noted or multihost_utils.reached_preemption_sync_point(step)


def _taught_by(source: Path, ours: run.Run, plan: Setup):
    """The averaged weights of a run that can teach ours."""
    theirs = run.load(source)
    distilled.check_teacher(ours.config, theirs.config, str(source))
    if (theirs.grid, theirs.contours) != (ours.grid, ours.contours):
        raise InputError(f"{source}: a teacher of another grid or other contours than the store's")
    return _weights(source, plan)


def _weights(source: Path, plan: Setup):
    """The averaged weights of another run."""
    run.load(source)
    checkpoints = checkpoint.manager(source)
    _, weights = checkpoint.restore_ema(checkpoints, source, plan.like.ema)
    checkpoints.close()
    return weights


@dataclasses.dataclass(frozen=True)
class _Observer:
    """What is looked at while training: never learnt from, always the same slices and noise."""

    held_out: Callable[[Any], dict] | None
    samples: Callable[[Any], np.ndarray]


def _observer(ours: run.Run, store: Store, plan: Setup) -> _Observer:
    config = ours.config
    held = store.rows("val")
    sampled = _spread(held if len(held) else store.rows("train"), SAMPLES)

    def examples(rows):
        return batches.examples(store, rows, ours.contours, config.model.conditions)

    # Samples are drawn in one fixed batch that any mesh divides.
    size = SAMPLES * plan.mesh.size
    shown = examples(np.resize(sampled, size))
    knots = noise.independent(config.seed, "samples", size)
    split = functools.partial(meshes.split, meshes.batch(plan.mesh))
    condition = split(shown["condition"])

    def samples(ema) -> np.ndarray:
        drawn = meshes.whole(plan.sampler(ema, condition, split(knots), None))
        drawn = drawn[: len(sampled), ..., 0]
        columns = [
            shown["x"][: len(sampled), ..., 0],
            2 * shown["condition"]["contour"][: len(sampled), ..., 0] - 1,
            drawn,
        ]
        rows = np.concatenate(columns, axis=2)  # truth | contour | sample
        return np.uint8(np.round((np.concatenate(rows) + 1) * 127.5))

    if not len(held):
        return _Observer(None, samples)

    # Each slice is seen at one timestep, the slices spread evenly over all that are learnt.
    count = max(1, HELD_OUT // plan.mesh.size) * plan.mesh.size
    chosen = np.resize(_spread(held, HELD_OUT), count)
    example = split(examples(chosen))
    levels = (np.arange(count) + 0.5) / count
    learnt = distilled.learnt(config).astype(np.int32)
    t = learnt[np.minimum((levels * len(learnt)).astype(np.int32), len(learnt) - 1)]
    t = np.random.default_rng(0).permutation(t)
    bins = t * BINS // plan.schedule.steps
    eps = np.random.default_rng(1).standard_normal(example["x"].shape).astype(np.float32)
    errors = jax.jit(
        functools.partial(process.errors, plan.model.apply, plan.schedule, config.diffusion)
    )
    fixed = (split(t), split(eps))

    def held_out(ema) -> dict:
        error = meshes.whole(errors(ema, example, *fixed))
        by_bin = [float(error[bins == b].mean()) for b in range(BINS) if (bins == b).any()]
        return {"heldout_loss": float(error.mean()), "heldout_loss_t": by_bin}

    return _Observer(held_out, samples)


def _named(config, store: Store, step: int) -> str:
    """The slices that a step was trained on, by subject."""
    numbers = store.rows("train")
    choice = batches.choose(config, store.index["volume"][numbers], step - 1)
    slices = {}
    for row in numbers[choice.rows[:, 0]]:
        name = str(store.index["subject"][row])
        slices.setdefault(name, []).append(str(store.index["slice"][row]))
    return "; ".join(f"{name} slice {', '.join(them)}" for name, them in sorted(slices.items()))


def _spread(rows: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the rows, evenly spread, ends avoided."""
    count = min(count, len(rows))
    return rows[((np.arange(count) + 0.5) * len(rows) / count).astype(int)]


def _summary(plan: Setup, ours: run.Run, store: Store, start: int) -> str:
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(plan.like.params)]
    held = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(plan.like)
    )
    slices, subjects = len(store.rows("train")), len(ours.subjects)
    config = ours.config.train
    return (
        f"{sum(sizes):,} parameters on {plan.mesh.size} {jax.devices()[0].device_kind} "
        f"device(s): {held / 2**20:,.0f} MiB of state and {plan.step_bytes / 2**20:,.0f} MiB "
        f"a step on each\n"
        f"{slices:,} slices of {subjects} subjects, {ours.grid.size} px of {ours.grid.spacing:g} "
        f"mm; {config.images:,} images in batches of {config.batch}"
        + (f", resuming after {start * config.batch:,}" if start else "")
    )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def _example_shapes(config, size: int) -> dict:
    batch = config.train.batch
    return {
        "x": jax.ShapeDtypeStruct((batch, size, size, 1), jnp.float32),
        "condition": {
            name: jax.ShapeDtypeStruct((batch, size, size, channels), jnp.float32)
            for name, channels in batches.CONDITIONS.items()
            if name in config.model.conditions
        },
    }
