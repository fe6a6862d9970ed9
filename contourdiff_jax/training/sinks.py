# SPDX-License-Identifier: Apache-2.0
"""Sinks: where the numbers and pictures of a training go beside stats.jsonl (docs/watching.md).

A sink is added by a function and a line in SINKS, and its name in `config.RULES`. One that fails
costs a warning and no training. Runs are marked, so that what is resumed goes on where it was.
"""

import importlib.util
import os
import sys
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk, forms

PROJECT = "contourdiff"  # what runs are listed under
MARK = "tracked.json"  # in the run's folder: {"id": by which others know it}


class Sink(NamedTuple):
    """One place.

    Attributes:
      numbers: (images seen, {name: value}) -> None.
      picture: (images seen, grey picture [H, W] uint8) -> None.
      close: waits for what is under way.
    """

    numbers: Callable[[int, Mapping[str, float]], None]
    picture: Callable[[int, np.ndarray], None]
    close: Callable[[], None]


def _tensorboard(run: Path) -> Sink:
    from tensorboardX import SummaryWriter

    board = SummaryWriter(str(run / "tensorboard"))

    def numbers(images: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            board.add_scalar(name, value, images)

    def picture(images: int, grey: np.ndarray) -> None:
        board.add_image("samples", grey, images, dataformats="HW")

    return Sink(numbers, picture, board.close)


def _wandb(run: Path) -> Sink:
    import wandb

    # Neither paths, names of machines, the command nor what it prints leave the place.
    settings = wandb.Settings(
        console="off",
        disable_git=True,
        disable_code=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
    )
    tracked = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        id=_mark(run),
        name=_name(run),
        dir=run,
        resume="allow",
        config=_config(run),
        settings=settings,
    )
    # Not by W&B's own step: it drops what a resumed run tells again.
    tracked.define_metric("*", step_metric="images")

    def numbers(images: int, values: Mapping[str, float]) -> None:
        tracked.log({"images": images, **values})

    def picture(images: int, grey: np.ndarray) -> None:
        tracked.log({"images": images, "samples": wandb.Image(Image.fromarray(grey))})

    return Sink(numbers, picture, tracked.finish)


def _trackio(run: Path) -> Sink:
    import trackio

    # It knows runs by their names.
    name = f"{_name(run)}-{_mark(run)[:8]}"
    tracked = trackio.init(PROJECT, name, config=_config(run), resume="allow", embed=False)

    def numbers(images: int, values: Mapping[str, float]) -> None:
        tracked.log(dict(values), step=images)

    def picture(images: int, grey: np.ndarray) -> None:
        tracked.log({"samples": trackio.Image(Image.fromarray(grey))}, step=images)

    return Sink(numbers, picture, tracked.finish)


class Package(NamedTuple):
    """What a sink takes to be installed: a module, and the extra that brings it."""

    open: Callable[[Path], Sink]
    module: str


# By name, which is that of the extra, too.
SINKS = {
    "tensorboard": Package(_tensorboard, "tensorboardX"),
    "wandb": Package(_wandb, "wandb"),
    "trackio": Package(_trackio, "trackio"),
}


def check(names: Iterable[str]) -> None:
    """Raise InputError for the first of these sinks whose package is not installed."""
    for name in names:
        if importlib.util.find_spec(SINKS[name].module) is None:
            raise InputError(
                f"config.train.log_to: {name} needs the package {SINKS[name].module}: "
                f"pip install '.[{name}]', or leave it out"
            )


class Sinks:
    """The sinks of a run, by name. What of one fails is said once, and it is left out from then."""

    def __init__(self, run: Path, names: Iterable[str]):
        self._run, self._open = run, {}
        for name in names:
            self._try(name, lambda name=name: self._open.update({name: SINKS[name].open(run)}))

    def numbers(self, images: int, values: Mapping[str, float]) -> None:
        for name, sink in [*self._open.items()]:
            self._try(name, lambda sink=sink: sink.numbers(images, values))

    def picture(self, images: int, grey: np.ndarray) -> None:
        for name, sink in [*self._open.items()]:
            self._try(name, lambda sink=sink: sink.picture(images, grey))

    def close(self) -> None:
        for name, sink in [*self._open.items()]:
            self._try(name, sink.close)

    def _try(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever a network may do
            self._open.pop(name, None)
            print(
                f"warning: {self._run}: {name}: {disk.reason(error):.200}; training goes on "
                f"without it, and stats.jsonl has everything",
                file=sys.stderr,
                flush=True,
            )


def _name(run: Path) -> str:
    return run.resolve().name


def _mark(run: Path) -> str:
    """By what others know a run, the same whenever it is resumed."""
    path = run / MARK
    if not path.exists():
        disk.write_json(path, {"id": uuid.uuid4().hex})
    return forms.read(path, {"id": str}, "remove it, to begin anew there")["id"]


def _config(run: Path) -> dict:
    """The configuration of a run, and nothing of its data."""
    return forms.read(run / "config.json", {"config": object}, "restore it from a copy")["config"]
