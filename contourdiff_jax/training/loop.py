# SPDX-License-Identifier: Apache-2.0
"""The training loop, for any method (contracts.py).

Called again with the same method and workdir, it resumes the run. SIGTERM, SIGHUP and Ctrl-C save
and stop.
"""

import contextlib
import dataclasses
import functools
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from contourdiff_jax.contracts import Fixed, Method, Metrics, Params
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import compiling, processes, signals
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training import alarms, checkpoint, memory, state
from contourdiff_jax.training.logs import Logs

TIMED = 8  # steps that are timed before it is printed how long a run will take
LONG = 2 * 86400  # seconds that hardly anyone waits for by intent


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A method's training, compiled.

    Attributes:
      init: key -> state.
      like: the state as ShapeDtypeStructs with shardings.
      step: (state, example, fixed) -> (state, metrics).
      step_bytes: memory of a step beside the state, on one device.
      operations: floating-point operations of a step, on all devices, as the compiler counts them;
        0 where it does not.
    """

    init: Callable[[jax.Array], state.TrainState]
    like: state.TrainState
    step: Callable[[state.TrainState, dict, Fixed], tuple[state.TrainState, Metrics]]
    step_bytes: int
    operations: float = 0.0


def _init(method: Method) -> Callable:
    """The state of a method's training before its first step, of a key."""
    return functools.partial(state.init, method.players, memory=method.memory)


def like(method: Method) -> state.TrainState:
    """The shapes of that state, and where on the method's mesh they lie; nothing is compiled."""
    return meshes.laid(method.mesh, jax.eval_shape(_init(method), jax.random.key(0)))


def compiled(method: Method, config) -> Compiled:
    """A method's training under a `train` section, compiled for the method's mesh.

    Raises InputError where its devices cannot hold a step, before that is compiled.
    """
    mesh, shapes = method.mesh, like(method)
    memory.check(method, shapes, config)
    sharding = meshes.shardings(mesh, shapes)
    placed = jax.tree.map(lambda array: array.sharding, method.fixed)
    step = jax.jit(
        state.step(config, method.players),
        donate_argnums=0,
        in_shardings=(sharding, meshes.batch(mesh), placed),
        out_shardings=(sharding, meshes.replicated(mesh)),
    )
    lowered = step.lower(shapes, method.feed.example, method.fixed)
    # Parts of a batch are counted once, whatever their number.
    operations = config.accumulate * (lowered.cost_analysis() or {}).get("flops", 0.0)
    executable = lowered.compile(compiler_options=compiling.options(mesh))
    compiling.give_back()
    return Compiled(
        init=jax.jit(
            _init(method), out_shardings=sharding, compiler_options=compiling.options(mesh)
        ),
        like=shapes,
        step=executable,
        step_bytes=getattr(executable.memory_analysis(), "temp_size_in_bytes", 0),
        operations=operations,
    )


def train(
    method: Method,
    program: Compiled,
    config,
    workdir: Path,
    *,
    seed: int,
    start: Mapping[str, Params] | None = None,
    name: str | None = None,
    check: Callable[[], None] = lambda: None,
) -> bool:
    """Train until `config.images` have been seen; returns whether that was reached.

    Args:
      program: of the method, under the same `train` section.
      config: that section.
      workdir: folder of the run, with its config.json; where it has checkpoints, it is resumed.
      seed: of all randomness.
      start: parameters of players to begin with; those of other players are random.
      name: of the progress bar; without a name, it is also printed what is trained and how fast.
      check: raises InputError where the workdir is not where it was; asked before it is written to.

    Raises:
      InputError: a loss that is not finite; a disk that is full; a workdir that is gone.
    """
    batch, total = config.batch, state.steps(config)
    feed, is_main = method.feed, processes.is_main()
    verbose = is_main and name is None

    # ------------------------------------------------------------------------------------------
    # The state: 1. a checkpoint in the workdir, else 2. the weights of `start`, else 3. fresh
    # ------------------------------------------------------------------------------------------
    checkpoints = checkpoint.manager(workdir, config.keep, keep_best=config.keep_best)
    check()
    if checkpoint.exists(workdir):
        current = checkpoint.restore(checkpoints, workdir, program.like)
    else:
        current = program.init(jax.random.key(seed))
        for tree in (current.params, current.ema) if start else ():
            tree |= {p: jax.tree.map(jnp.copy, start[p]) for p in start.keys() & tree.keys()}
    compiling.give_back()
    first = int(current.step)
    if first >= total:
        checkpoints.close()
        if verbose:
            print(f"{workdir}: trained on {first * batch:,} images already; nothing left to do")
        return True

    # ------------------------------------------------------------------------------------------
    # Examples, logs, and what is printed
    # ------------------------------------------------------------------------------------------
    examples, held_out = feed.training(first, total), feed.held_out()
    if verbose:
        print(_summary(method, program, config, first), flush=True)
    logs = Logs(workdir, first, config.log_to) if is_main else None
    clock = _Clock(config.minutes)
    pace = _Pace(first, total, batch, logs.seconds if logs else 0.0)
    bar = tqdm(
        total=total * batch,
        initial=first * batch,
        desc=name,
        unit=" images",
        disable=None if is_main else True,
        smoothing=0.05,
    )
    pending = None
    # A resumed run knows the least loss from the checkpoint that has it.
    least = _agreed(min(checkpoint.losses(workdir).values(), default=math.inf))
    if config.keep_best and held_out is None and verbose:
        print(f"{workdir}: the store holds no subjects out, so that no checkpoint is the best")

    def due(step: int, every: int, late: bool = False) -> bool:
        return _due(step, max(1, every // batch) if every else 0, total) or (late and every > 0)

    def read(step: int, metrics: Metrics) -> None:
        """Read the metrics of a step, which is waited for: the next is under way by then."""
        scalars = {name: float(value) for name, value in jax.device_get(metrics).items()}
        decisive = [
            value for name, value in scalars.items() if name.endswith(("loss", "grad_norm"))
        ]
        if not all(map(math.isfinite, decisive)):
            checkpoint.save(checkpoints, current)
            checkpoint.finish(checkpoints)
            raise InputError(
                f"{workdir}: the loss of step {step} is not finite; saved without that step. "
                f"Lower config.train.learning_rate or look at its images: {feed.named(step)}"
            )
        if (early := pace.note(step)) and verbose:
            print(early, flush=True)
        if logs and due(step, config.log):
            check()
            logs.write_scalars(step, step * batch, scalars | pace.scalars(step))
            logs.flush()
            checkpoint.check(checkpoints)
            losses = {name: value for name, value in scalars.items() if name.endswith("loss")}
            shown = {name: f"{value:.4f}" for name, value in losses.items()}
            bar.set_postfix(shown, refresh=False)
            if bar.disable and verbose:
                listed = "  ".join(f"{name} {value}" for name, value in shown.items())
                print(pace.line(step, listed), flush=True)

    # ------------------------------------------------------------------------------------------
    # The loop
    # ------------------------------------------------------------------------------------------
    closing = contextlib.closing(logs) if logs else contextlib.nullcontext()
    with checkpoint.quiet(), signals.noted() as asked, bar, closing:
        for step in range(first + 1, total + 1):
            example = next(examples)
            with jax.transfer_guard("disallow"):
                current, metrics = program.step(current, example, method.fixed)
            if pending:
                read(*pending)
            pending = (step, metrics)
            bar.update(batch)

            late, loss = due(step, config.log) and clock.is_due(), None
            if due(step, config.evaluate, late) and held_out is not None:
                losses = method.held_out(current.averages, method.fixed, held_out)
                if config.keep_best and checkpoint.LOSS in losses:
                    loss = _agreed(losses[checkpoint.LOSS])
                if logs:
                    logs.write_scalars(step, step * batch, losses)
                    for line in alarms.warnings(losses):
                        bar.write(f"warning: {workdir}: {line}", file=sys.stderr)
            if due(step, config.sample, late):
                picture = method.samples(current.averages, method.fixed)
                if logs and picture is not None:
                    check()
                    logs.write_image(step * batch, picture)
            # Asked once a step: a notice while saving is for the next.
            stopping = bool(asked) or multihost_utils.reached_preemption_sync_point(step)
            is_best = loss is not None and loss < least
            if due(step, config.checkpoint, late) or stopping or is_best:
                read(*pending)
                pending = None
                check()
                if logs:
                    logs.store()  # a run that resumes from here does not write them again
                checkpoint.save(checkpoints, current, loss)
                least = loss if is_best else least
            if stopping:
                break
        if pending:
            read(*pending)
        checkpoint.finish(checkpoints)
        checkpoints.close()

    # ------------------------------------------------------------------------------------------
    # The end
    # ------------------------------------------------------------------------------------------
    if stopping and step < total and verbose:
        print(f"{workdir}: stopped and saved at {step * batch:,} images; the same command resumes")
    return step == total


def images_per_second(
    method: Method, program: Compiled, config, *, seed: int, steps: int = 4
) -> float:
    """Training speed on this machine: the median of a few steps, input included."""
    current = program.init(jax.random.key(seed))
    examples = method.feed.training(0, steps + 1)
    seconds = []
    for _ in range(steps + 1):
        began = time.perf_counter()
        current, _ = program.step(current, next(examples), method.fixed)
        jax.block_until_ready(current)
        seconds.append(time.perf_counter() - began)
    return config.batch / float(np.median(seconds[1:]))


def _agreed(number: float) -> float:
    """A number as the main process has it, so that all decide alike which step is the best."""
    return float(processes.told(lambda: repr(float(number))))


def _due(step: int, every: int, total: int) -> bool:
    """Whether something is due after `step`: every so many steps, unless 0, and at the end."""
    return step == total or (every > 0 and step % every == 0)


class _Clock:
    """Says that so many minutes have passed since it last said so, to all processes alike."""

    def __init__(self, minutes: float):
        self.minutes, self.since = minutes, time.monotonic()

    def is_due(self) -> bool:
        passed = self.minutes and time.monotonic() - self.since >= 60 * self.minutes
        due = bool(self.minutes and processes.told(lambda: "yes" if passed else ""))
        if due:
            self.since = time.monotonic()
        return due


def duration(seconds: float) -> str:
    """A time as people say it: 40 s, 12 minutes, 3.5 hours, 17 days."""
    units = {"days": 86400, "hours": 3600, "minutes": 60, "s": 1}
    unit = next((unit for unit, size in units.items() if seconds >= 2 * size), "s")
    amount = seconds / units[unit]
    return f"{amount:.1f} {unit}" if amount < 10 and unit != "s" else f"{amount:.0f} {unit}"


class _Pace:
    """How fast training goes, and how long it will take.

    Args:
      first, total: number of steps done before, and in all.
      batch: images of a step.
      before: seconds that training took up to `first`.
    """

    def __init__(self, first: int, total: int, batch: int, before: float):
        self.first, self.total, self.batch, self.before = first, total, batch, before
        self.began = self.compiled = time.perf_counter()

    def note(self, step: int) -> str:
        """How long a run will take, said once, early: after the first step, some are timed."""
        if step == self.first + 1:
            self.compiled = time.perf_counter()
        if step != self.first + 1 + TIMED:
            return ""
        speed = TIMED * self.batch / (time.perf_counter() - self.compiled)
        left = (self.total - step) * self.batch / speed
        advice = ""
        if left > LONG:
            hour = int(3600 * speed) // self.batch * self.batch
            advice = (
                f". Ctrl-C saves what is learnt; an hour here is --images={hour}, or --minutes=60, "
                f"which choose settings for that"
            )
        return f"about {duration(left)} to go at {speed:.1f} images/s{advice}"

    def scalars(self, step: int) -> dict[str, float]:
        """What is recorded of it in stats.jsonl."""
        seconds = time.perf_counter() - self.began
        speed = (step - self.first) * self.batch / seconds
        return {"seconds": self.before + seconds, "images_per_second": speed}

    def line(self, step: int, losses: str) -> str:
        """What is printed where there is no progress bar."""
        speed = self.scalars(step)["images_per_second"]
        return (
            f"{step * self.batch:>10,} images  {losses}  {speed:.1f} images/s  "
            f"{duration((self.total - step) * self.batch / speed)} left"
        )


def _summary(method: Method, program: Compiled, config, first: int) -> str:
    """What is trained, on which devices, with which examples and how many."""
    players = program.like.params
    parts = players if len(players) > 1 else next(iter(players.values()))
    sizes = {
        name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(part))
        for name, part in parts.items()
    }
    listed = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
    held = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(program.like)
    )
    counted = f"; {program.operations / 1e9:,.1f} GFLOP a step" if program.operations else ""
    return (
        f"{sum(sizes.values()):,} parameters ({listed}) on {method.mesh.size} "
        f"{jax.devices()[0].device_kind} device(s): {held / 2**20:,.0f} MiB of state and "
        f"{program.step_bytes / 2**20:,.0f} MiB a step on each{counted}\n"
        f"{method.feed.summary}; {config.images:,} images in batches of {config.batch}"
        + (f", resuming after {first * config.batch:,}" if first else "")
    )
