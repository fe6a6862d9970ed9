# SPDX-License-Identifier: Apache-2.0
"""A run: a folder that is enough to go on training, or to translate with.

config.json    the configuration, and what a translation needs to know of the training data
checkpoints/   see checkpoint.py
codec/         the run of the autoencoder whose latents are learnt, if any
base/          the run whose network a ControlNet shows contours, if any
prompt.npy     what the network attends to, if anything
stats.jsonl    see logs.py, as for samples/*.png, and sinks.py for what tensorboard, wandb and
               tracked.json are
"""

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from contourdiff_jax import config as configuration
from contourdiff_jax.contours import settings as contour_settings
from contourdiff_jax.contours.settings import ContourSettings
from contourdiff_jax.contracts import SOURCE
from contourdiff_jax.data import feeds, pseudonyms
from contourdiff_jax.data.store import Store, open_store, verify
from contourdiff_jax.errors import InputError
from contourdiff_jax.models import autoencoder
from contourdiff_jax.runtime import disk, forms, processes
from contourdiff_jax.volumes import intensity
from contourdiff_jax.volumes.grid import Grid
from contourdiff_jax.volumes.intensity import Preset, Window

MEASURES = ("population", "source_population", "slice_spacing")  # optional fields of a run
MEASURED = 256  # training slices that a population's mean and deviation are taken of
LONG = 5.0  # seconds; where reading a store takes longer, the time is printed
LOCK = ".lock"  # a file in the run's folder, locked by the process that trains it
SCHEMA = 1  # of config.json
EXPORTED = "contourdiff.json"  # the name of config.json beside a model exported to diffusers
RESTORE = "restore it from a copy"
FORM = {  # of config.json
    "config": object,
    "data": {
        "preset": str,
        "window": tuple[float, float],
        "grid": Grid,
        "contours": ContourSettings,
        "subjects": tuple[str, ...],
        "teacher?": str,
        "labels?": tuple[int, ...],
        "source_preset?": str | None,
        "paired?": bool,
        "source_window?": tuple[float, float],
        "codec?": {"autoencoder": object, "scale": float, "digest": str},
        "prompt?": {"text": str, "digest": str},
        "base?": str,
        **dict.fromkeys(("population?", "source_population?"), tuple[float, float]),
        "slice_spacing?": float,
    },
}


@dataclasses.dataclass(frozen=True)
class CodecOf:
    """What a run knows of the autoencoder whose latents it learns.

    Attributes:
      section: its `autoencoder` section.
      scale: by which latents are multiplied to be learnt.
      digest: of its weights.
    """

    section: ConfigDict
    scale: float
    digest: str

    @property
    def side(self) -> int:
        """Pixels a side of a latent."""
        return autoencoder.side(self.section)


class PromptOf(NamedTuple):
    """What a run knows of what its network attends to.

    Attributes:
      text: that was encoded, for people.
      digest: of the array.
    """

    text: str
    digest: str


CODEC, BASE, PROMPT = "codec", "base", "prompt.npy"  # the parts of a run, in its folder
RUNS = (CODEC, BASE)  # those that are runs themselves


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run was made with.

    Attributes:
      config: the configuration, complete.
      preset: of the training data.
      window: median window of the training volumes in their native units, by which values of a
        percentile preset are brought back to such units.
      grid: of the store.
      contours: how contours are taken of the training data.
      subjects: the pseudonym of each training subject.
      teacher: digest of the weights of the network that taught this one, if any.
      labels: of a segmenter's classes, in order, the background's 0 first.
      source_preset: of the sources that were learnt from, if any.
      paired: whether each of these was learnt from beside its own target.
      source_window: as `window`, of a source that can be translated to as well.
      population: mean and standard deviation of the training images' bodies in the model's range;
        None of CT, whose values mean something, and where it is not known.
      source_population: as `population`, of a source that can be translated to as well.
      slice_spacing: usual mm from slice to slice of the training volumes, if known.
      backward: whether this is the run as it translates to what was learnt as the source.
      codec: of the latents that are learnt in place of pixels, if any.
      prompt: of what the network attends to, if anything.
      base: digest of the weights of the network that a ControlNet shows contours, if any.
      parts: where its parts are: {name in the run's folder: path}.
      build: what builds its method, where that is none of the package's, see methods.build.
    """

    config: ConfigDict
    preset: Preset
    window: Window
    grid: Grid
    contours: ContourSettings
    subjects: tuple[str, ...]
    teacher: str = ""
    labels: tuple[int, ...] = ()
    source_preset: Preset | None = None
    paired: bool = False
    source_window: Window | None = None
    population: tuple[float, float] | None = None
    source_population: tuple[float, float] | None = None
    slice_spacing: float | None = None
    backward: bool = False
    codec: CodecOf | None = None
    prompt: PromptOf | None = None
    base: str = ""
    parts: Mapping[str, Path] = dataclasses.field(default_factory=dict, compare=False)
    build: Callable | None = dataclasses.field(default=None, compare=False)

    @property
    def marks(self) -> dict[str, str]:
        """What tells its parts from others, beside its own weights, by their names."""
        codec = self.codec and f"{self.codec.digest} {self.codec.scale!r}"
        marks = {CODEC: codec, PROMPT: self.prompt and self.prompt.digest, BASE: self.base}
        return {name: mark for name, mark in marks.items() if mark}

    @property
    def learnt_from(self) -> tuple[str, ...]:
        """The pseudonyms of all subjects that it, its codec or its base has learnt from."""
        runs = [load(path) for name, path in self.parts.items() if name in RUNS]
        return tuple(sorted({*self.subjects, *(s for each in runs for s in each.subjects)}))

    def reversed(self) -> "Run":
        """The run as it translates the other way; for those with a `source_window`."""
        return dataclasses.replace(
            self,
            preset=self.source_preset,
            window=self.source_window,
            contours=contour_settings.PRESETS["default"][self.source_preset.modality],
            source_preset=self.preset,
            source_window=self.window,
            population=self.source_population,
            source_population=self.population,
            backward=not self.backward,
        )

    def to_dict(self) -> dict:
        sources = {}
        if self.source_preset is not None:
            sources = {"source_preset": self.source_preset.name, "paired": self.paired}
        if self.source_window is not None:
            sources["source_window"] = [self.source_window.low, self.source_window.high]
        for name in MEASURES:
            if getattr(self, name) is not None:
                sources[name] = getattr(self, name)
        parts = {"base": self.base} if self.base else {}
        if self.codec is not None:
            fields = {"autoencoder": self.codec.section.to_dict(), "scale": self.codec.scale}
            parts["codec"] = fields | {"digest": self.codec.digest}
        if self.prompt is not None:
            parts["prompt"] = self.prompt._asdict()
        return {
            "schema": SCHEMA,
            "config": self.config.to_dict(),
            "data": {
                "preset": self.preset.name,
                "window": [self.window.low, self.window.high],
                "grid": self.grid.to_dict(),
                "contours": self.contours.to_dict(),
                "subjects": list(self.subjects),
                "teacher": self.teacher,
                **({"labels": list(self.labels)} if self.labels else {}),
                **sources,
                **parts,
            },
        }

    def save(self, folder: Path, name: str = "config.json") -> None:
        """Write config.json, whole or not at all."""
        disk.write_json(Path(folder) / name, forms.sealed(self.to_dict()))


def begin(
    config: ConfigDict,
    store: Store,
    labels: tuple[int, ...] = (),
    *,
    source: Store | None = None,
    before: Run | None = None,
    **parts,
) -> Run:
    """The run of a configuration on a store.

    Args:
      labels: of a segmenter's classes, in order, the background's 0 first.
      source: a store of the source, where it is learnt from without pairs.
      before: the run where it is there already, and is taken as it is.
      parts: fields of the run that say of which parts it is made: codec, prompt, base, parts.

    Raises:
      InputError: the store has no training subjects, is not on the grid that the configuration
        names or lacks what its contours need; contours that cannot be had; a source on another
        grid.
    """
    stores = [store] if source is None else [store, source]
    for each in stores:
        if not each.subjects("train"):
            raise InputError(
                f"{each.path}: no training subjects; give it some with `prepare --split`"
            )
    if source is not None and source.grid != store.grid:
        theirs, ours = (
            f"{g.axis}, {g.size} px of {g.spacing:g} mm{g.every}" for g in (source.grid, store.grid)
        )
        raise InputError(
            f"{source.path}: prepared on another grid ({theirs}) than {store.path} ({ours}); "
            f"prepare it again on that"
        )
    subjects = sorted({name for each in stores for name in each.subjects("train")})
    for field, wanted in config.grid.items():
        actual = getattr(store.grid, field)
        if wanted and wanted != actual:
            raise InputError(
                f"{store.path}: prepared with {field} {actual}, but config.grid.{field} is "
                f"{wanted}; `prepare --{field}={wanted}` again or change the configuration"
            )
    sees_source = SOURCE.name in config.model.conditions
    paired = source is None and sees_source and store.source_preset is not None
    source_preset = source.preset if source else store.source_preset if paired else None
    if config.method in configuration.OF_ITSELF:
        source_preset = store.preset
    if before is not None and before.subjects:
        scheme = pseudonyms.scheme_of(before.subjects)
    else:
        scheme = pseudonyms.scheme(
            digest for each in stores for digest in each.index["sha256"].tolist()
        )
    return Run(
        config,
        store.preset,
        store.median_window(),
        store.grid,
        # A segmenter sees none: any will do.
        contour_settings.PRESETS["default"][store.preset.modality]
        if labels
        else _contours(config, store, before is not None),
        pseudonyms.made(subjects, scheme),
        labels=labels,
        # To others a paired store is that of its target.
        source_preset=source_preset,
        paired=paired,
        source_window=source.median_window() if source else None,
        **({} if labels else _measured(store, source, before)),
        **parts,
    )


def _measured(store: Store, source: Store | None, before: Run | None) -> dict:
    """MEASURES of the stores that a run learns from; of one that is there already, its own."""
    if before is not None:
        return {name: getattr(before, name) for name in MEASURES}
    return {
        "population": _population(store),
        "source_population": None if source is None else _population(source),
        "slice_spacing": _slice_spacing(store),
    }


def _population(store: Store) -> tuple[float, float] | None:
    """Mean and standard deviation of the bodies in a store's training slices; None of CT."""
    if store.preset.modality == "ct":
        return None
    rows = feeds.spread(store.rows("train"), MEASURED)[:, None]
    inside = [store.preset.image.unit(store.values(row))[store.masks[row] > 0] for row in rows]
    values = np.concatenate(inside).astype(np.float64)
    return (float(values.mean()), float(values.std())) if values.size else None


def _slice_spacing(store: Store) -> float | None:
    """The median mm from slice to slice of a store's training volumes; None of single slices."""
    rows = store.rows("train")
    volumes, positions = store.index["volume"][rows], store.index["position"][rows]
    steps = np.abs(np.diff(positions))[volumes[1:] == volumes[:-1]]
    return float(np.median(steps)) if len(steps) else None


def _contours(config: ConfigDict, store: Store, begun: bool) -> ContourSettings:
    """The settings of the preset, with what config.contours sets in place of its own."""
    fields = config.contours.to_dict()
    name = fields.pop("preset")
    preset = contour_settings.preset(name, store.preset.modality)
    replaced = {field: value for field, value in fields.items() if value is not None}
    try:
        settings = ContourSettings.from_dict(preset.to_dict() | replaced)
    except InputError as error:
        raise InputError(f"config.{error}") from None
    if config.contours.apart and len(settings.curves) < 2 and not begun:
        raise InputError(
            "config.contours.apart: has no effect unless there are several windows, or one and a "
            "curve"
        )
    if not settings.served_by(store.contour_settings):
        raise InputError(
            f"{store.path}: prepared without the contours of config.contours, which need the "
            f"volumes' own pixels; `prepare --contours={'FILE' if replaced else name}` again"
        )
    if settings.native and any(config.disturbance.values()):
        raise InputError(
            "config.disturbance: contours of native pixels come from the store as they are; "
            "set all of it to 0"
        )
    return settings


def load(folder: Path) -> Run:
    """Read a run's config.json.

    Raises:
      InputError: missing, unreadable, of another schema version or with unknown fields.
    """
    if not exists(folder):
        raise InputError(
            f"{folder}: not a run, it has no config.json; name a folder made by train or import"
        )
    paths = {name: Path(folder) / name for name in (CODEC, BASE, PROMPT)}
    parts = {name: path for name, path in paths.items() if path.exists()}
    return dataclasses.replace(read(Path(folder) / "config.json"), parts=parts)


def exists(folder: Path) -> bool:
    """Whether a folder is that of a run, one that has only just begun too."""
    return (Path(folder) / "config.json").exists()


def read(path: Path) -> Run:
    """Read a file that `Run.save` wrote; raises InputError as `load` does."""
    fields = forms.read(path, FORM, RESTORE, SCHEMA)
    with forms.naming(path, RESTORE):
        data = fields["data"]
        source = data.get("source_preset")
        ours = Run(
            configuration.from_dict(configuration.of_before(fields["config"])),
            intensity.preset(data["preset"]),
            Window(*data["window"]),
            data["grid"],
            data["contours"],
            pseudonyms.checked(data["subjects"]),
            data.get("teacher", ""),  # runs of earlier versions do not say
            data.get("labels", ()),
            None if source is None else intensity.preset(source),
            data.get("paired", False),
            Window(*data["source_window"]) if "source_window" in data else None,
            codec=_codec(data["codec"]) if "codec" in data else None,
            prompt=PromptOf(**data["prompt"]) if "prompt" in data else None,
            base=data.get("base", ""),
            **{name: data[name] for name in MEASURES if name in data},
        )
        # A segmenter's network is not that of the configuration.
        size, side = None if ours.labels else ours.grid.size, ours.codec.side if ours.codec else 1
        configuration.check(ours.config, size=size, side=side)
        return ours


def _codec(fields: dict) -> CodecOf:
    config = configuration.from_dict({"autoencoder": fields["autoencoder"]})
    configuration.check_values("autoencoder", config.autoencoder)
    return CodecOf(config.autoencoder, fields["scale"], fields["digest"])


def opened(path: Path, verified: bool) -> Store:
    """The store, compared with its digests if it is to be `verified`."""
    store = open_store(path)
    if not verified:
        return store
    began = time.perf_counter()
    known = verify(store)
    seconds = time.perf_counter() - began
    if processes.is_main() and not known:
        print(f"note: {path}: of an earlier version, without digests; not verified")
    if processes.is_main() and seconds > LONG:
        print(f"{path}: verified in {seconds:.0f} s; --noverify trusts it")
    return store


@contextlib.contextmanager
def claimed(workdir: Path, ours: Run) -> Iterator[Callable[[], None]]:
    """Makes the run's folder, or checks that it holds this run, and locks it meanwhile.

    Yields a function that raises InputError once the folder is no longer where it was.
    """
    with contextlib.ExitStack() as held:
        if processes.is_main():
            processes.together(lambda: _take(workdir, ours, held))
        else:
            processes.together(lambda: None)
        processes.together(lambda: _check_seen(workdir))
        opened = {}
        yield lambda: _check_kept(workdir, ours, opened, held) if processes.is_main() else None


def _take(workdir: Path, ours: Run, held: contextlib.ExitStack) -> None:
    """Make or check the run's folder, and lock it until `held` is closed."""
    begun = exists(workdir)
    theirs = _checked(workdir, ours) if begun else None
    with disk.writing(workdir):
        if not begun and workdir.exists() and not all(map(_is_left, workdir.iterdir())):
            raise InputError(f"{workdir}: not empty and not a run; choose another --workdir")
        workdir.mkdir(parents=True, exist_ok=True)
        if not held.enter_context(disk.claim(workdir / LOCK)):
            raise InputError(f"{workdir}: another process trains this run; wait for it, or stop it")
        disk.sweep(workdir)
        if not begun or ours.config.train != theirs.config.train:
            ours.save(workdir)


# Fields in which a run may go on otherwise than it began: how long it learns, and what is written
# meanwhile.
FREE = tuple(
    f"train.{name}"
    for name in (
        *("images", "log", "evaluate", "sample", "checkpoint", "minutes", "keep", "keep_best"),
        "log_to",
    )
)


def _checked(workdir: Path, ours: Run) -> Run:
    """The run that the folder holds; InputError where it is another than ours."""
    theirs = load(workdir)
    different = configuration.differences(ours.config, theirs.config)
    different = [name for name in different if name not in FREE]
    if ours.contours == theirs.contours:  # the same may be said in other words
        different = [name for name in different if not name.startswith("contours.")]
    if different:
        raise InputError(
            f"{workdir}: holds a run with another {', '.join(different)}; choose another "
            f"--workdir, or the same configuration to resume"
        )
    if ours.to_dict()["data"] != theirs.to_dict()["data"]:
        raise InputError(
            f"{workdir}: holds a run on other data, or of another teacher; choose another --workdir"
        )
    return theirs


def _check_kept(workdir: Path, ours: Run, opened: dict, held: contextlib.ExitStack) -> None:
    """Raise InputError where a folder of the run is not the one that the first call has `opened`.

    While it is open, no other folder can have its number. A config.json that is gone is written
    again: without it, what is saved is no run.
    """
    for folder in (workdir, workdir / "checkpoints") if hasattr(os, "O_DIRECTORY") else ():
        try:
            if folder not in opened:
                opened[folder] = os.open(folder, os.O_DIRECTORY)
                held.callback(os.close, opened[folder])
            same = os.path.samestat(os.fstat(opened[folder]), os.stat(folder))
        except OSError:
            same = False
        if not same:
            raise InputError(
                f"{folder}: moved, removed or replaced while it was trained; put it back, and the "
                "same command resumes from what it holds"
            )
    if not exists(workdir):
        with disk.writing(workdir):
            ours.save(workdir)
        print(f"{workdir}: config.json was gone, and is written again", file=sys.stderr)


def _is_left(path: Path) -> bool:
    """Whether a process that was killed at once left it."""
    return path.name == LOCK or disk.is_partial(path)


def _check_seen(workdir: Path) -> None:
    if not exists(workdir):
        raise InputError(
            f"{workdir}: not seen by process {processes.number()}; all of them need the same "
            f"folder, on a file system that they share"
        )
