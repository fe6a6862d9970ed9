# SPDX-License-Identifier: Apache-2.0
"""Translating every volume of a folder, each onto its own grid.

    request -> run, scans, destinations -> claim -> read -> draw -> write, volume by volume

Volumes already translated with the same settings are kept, so that an interrupted translation is
continued by repeating it, and several processes may work on one folder.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from contourdiff_jax import config as configuration
from contourdiff_jax import methods, models
from contourdiff_jax.contours import recast
from contourdiff_jax.contours import settings as contour_settings
from contourdiff_jax.contracts import CONTOUR, PICTURE, SOURCE, Averages, Method, Translator
from contourdiff_jax.data import layouts
from contourdiff_jax.data.layouts import pairs, scans
from contourdiff_jax.data.layouts.scans import Scan
from contourdiff_jax.errors import InputError
from contourdiff_jax.interop import sharing
from contourdiff_jax.runtime import compiling, disk, ownership
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training import checkpoint, run
from contourdiff_jax.training.run import Run
from contourdiff_jax.translation import samples, sampling, sidecars, volume
from contourdiff_jax.translation.finishing import Finishing
from contourdiff_jax.translation.outputs import Destination, OutputFolder
from contourdiff_jax.translation.sidecars import Settings
from contourdiff_jax.translation.volume import Plan
from contourdiff_jax.volumes import intensity, io
from contourdiff_jax.volumes.volume import UNKNOWN, Assumed


@dataclasses.dataclass(frozen=True)
class Request:
    """What is translated, with what, and to where.

    Attributes:
      run: folder of the run to translate with, or a shared one, see interop/sharing.py.
      source: a volume, or a folder of volumes.
      out: folder for the translations.
      preset: intensities of the source, 'ct', 'ct_wide' or 'mr'.
      layout, select, assumed: how the source is understood, see `layouts.find`.
      contours: settings for the source: a JSON file, or the name of a contour preset; default:
        those of training where they suit the source's modality, else that modality's own.
      masks: folder with a body mask of every scan; default: the layout's, else they are computed.
      format: of the translations, one of outputs.FORMATS.
      kind: what the target shows, as BIDS and nnU-Net call it ('T1w'); default: its preset's name.
      labels: folder with label maps of the source, for nnU-Net; default: the layout's.
      sampler: fields of the run's `sampler` section (config.py) that are to be others, by name.
      direction: of a run that translates both ways, 'forward' to its target or 'backward' to its
        source; default: the one that suits the preset.
      checkpoint: which of the run's: "last", "best" or a step.
      seed: of the noise.
      normalise: whether a volume's body gets the mean and the deviation of those learnt from, see
        translation/finishing.py.
      contrast: limit of the automatic contrast enhancement, likewise; 0: none.
      maps: whether to write maps of the samples; default: if there are several.
      devices: how many to use; default: all.
      overwrite: whether to replace translations that were made with other settings.
      method: what builds the run's method where it is none of the package's, see methods.train.
    """

    run: str | Path
    source: str | Path
    out: str | Path
    preset: str
    layout: str = "auto"
    select: str | None = None
    assumed: Assumed = UNKNOWN
    contours: str | Path | None = None
    masks: str | Path | None = None
    format: str = "same"
    kind: str | None = None
    labels: str | Path | None = None
    sampler: Mapping[str, object] = dataclasses.field(default_factory=dict)
    direction: str | None = None
    checkpoint: str | int = checkpoint.LAST
    seed: int = 0
    normalise: bool = False
    contrast: float = 0.0
    maps: bool | None = None
    devices: int | None = None
    overwrite: bool = False
    method: Callable[..., Method] | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of the volumes."""

    done: list[Path]  # translated now
    kept: list[Path]  # translated before
    failed: list[tuple[Path, str]]  # and why
    left: list[Path] = dataclasses.field(default_factory=list)  # to another process, at work on it


def translate(request: Request, held: Callable[..., "Network"] | None = None) -> Result:
    """Translate a volume, or every volume of a folder: same names, with sidecars beside.

    Args:
      held: in place of `network`, for who keeps one that it made before.

    Raises:
      InputError: nothing could be translated. Volumes that failed among others are in the result.
    """
    request = dataclasses.replace(request, run=sharing.at(request.run))
    read = ("run", "source", "masks", "labels")
    ownership.check_apart("out", request.out, {name: getattr(request, name) for name in read})
    trained, config, settings = asked(request)
    content = layouts.find(
        request.source,
        layout=request.layout,
        select=request.select,
        modality=settings.source.modality,
        assumed=request.assumed,
    )
    scans.check_assumed(content.scans, request.assumed)
    folder = _output_folder(trained, request, config.sampler)
    folder.described()
    jobs = _jobs(content.scans, folder)
    drawing = (held or network)(trained, config.sampler, request)
    plan = planned(trained, config.sampler, settings, request, drawing)
    work = _Work(
        plan=plan,
        folder=folder,
        common={
            "schema": sidecars.SCHEMA,
            "notice": sidecars.NOTICE,
            **settings.to_dict(),
            "window": [trained.window.low, trained.window.high],
            "checkpoint": {
                "step": drawing.step,
                "images": drawing.step * config.train.batch,
                "digest": checkpoint.digest(drawing.averages, trained.marks),
            },
            "sampler": config.sampler.to_dict(),
            "finishing": plan.finishing.to_dict(),
            "method": config.method,
            "sees": configuration.of_source(plan.sees),
            "training": sidecars.KINDS[trained.paired],
            "seed": request.seed,
            "training_subjects": list(trained.learnt_from),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
            "config": config.to_dict(),
        },
        overwrite=request.overwrite,
        result=Result([], [], list(content.failed)),
    )

    with disk.writing(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
    disk.sweep(folder.path)
    for note in [*content.notes, *_doubts(plan)]:
        print(f"note: {note}")
    work.do(jobs)
    _check_any(work.result, request, len(jobs))
    folder.finish(request.source)
    _tell(work.result, folder.path)
    return work.result


# --------------------------------------------------------------------------------------------------
# What a request means
# --------------------------------------------------------------------------------------------------


PACKAGES = ("contourdiff-jax", "jax", "flax", "numpy", "opencv-python-headless")  # on record
OF_STEPS = ("coupling", "scgd", "tiles")  # fields of the sampler that change its steps
OF_VOLUMES = ("tiles",)  # those that change more where volumes are drawn
# Values with which a field asks for nothing, so that it may be given where it counts for nothing.
OFF = {
    **{"fixed_stride": False, "ends_clean": True, "eta": 0.0, "tiles": 0.0, "control": 1.0},
    **{"guidance": 1.0, "source_guidance": 1.0, "prompt_guidance": 1.0},
    **{"coherence": 0.0, "coupling": 0.0, "samples": 1, "keep": "first"},
    **{"scgd": False, "anchor": 0, "middle": False},
}


def asked(request: Request) -> tuple[Run, ConfigDict, Settings]:
    """The run as it translates, its configuration, and what all translations have in common."""
    trained = dataclasses.replace(run.load(Path(request.run)), build=request.method)
    trained = _directed(trained, request)
    return trained, _configured(trained, request.sampler), _settings(trained, request)


def _configured(trained: Run, sampler: Mapping[str, object]) -> ConfigDict:
    """The run's configuration with other fields in its `sampler` section."""
    fields = trained.config.to_dict()
    config = configuration.from_dict(fields | {"sampler": fields["sampler"] | dict(sampler)})
    configuration.check_values("sampler", config.sampler, "--")
    asked = (f"sampler.{field}" for field, value in sampler.items() if OFF.get(field) != value)
    configuration.check_idle(config, asked, "--")
    configuration.check_sampler(config, "--")
    return config


def _directed(trained: Run, request: Request) -> Run:
    """The run as it translates in the direction that is asked for."""
    if trained.source_window is None:
        if request.direction is not None:
            raise InputError(f"--direction: {request.run} translates one way alone; leave it out")
        return trained
    ways = {"forward": trained, "backward": trained.reversed()}
    fitting = [name for name, way in ways.items() if way.source_preset.name == request.preset]
    if request.direction is None and len(fitting) > 1:
        raise InputError(
            f"--direction: both sides of {request.run} are {request.preset}; say forward, to the "
            f"images of its `train --store`, or backward, to those of its `train --source_store`"
        )
    if request.direction is None and not fitting:
        known = " or ".join(sorted({way.source_preset.name for way in ways.values()}))
        raise InputError(f"--preset={request.preset}: {request.run} translates {known}")
    return ways[request.direction or fitting[0]]


def _settings(trained: Run, request: Request) -> Settings:
    """What all translations have in common."""
    source = intensity.preset(request.preset)
    contours = trained.contours
    if request.contours is not None:
        contours = contour_settings.named(request.contours, source.modality)
    elif source.modality != trained.preset.modality and not contours.suits_any:
        contours = contour_settings.preset("default", source.modality)
    return Settings(
        source=source,
        target=trained.preset,
        grid=trained.grid,
        contours={"source": contours, "target": trained.contours},
        assumed=request.assumed,
    )


def _output_folder(trained: Run, request: Request, sampler) -> OutputFolder:
    """Where translations go; InputError for what the format has no use for."""
    target = trained.preset
    if request.format == "bids" and request.kind is None:
        raise InputError(
            f"--format=bids needs --kind, the BIDS suffix of what the {target.modality} shows: "
            f"T1w, T2w, ct, ..."
        )
    # nnU-Net knows CT by this name alone.
    named = request.format == "bids" or (request.format == "nnunet" and target.modality != "ct")
    if request.kind is not None and not named:
        raise InputError(
            f"--kind: {target.modality} as --format={request.format} has no such name; leave it out"
        )
    if request.labels is not None and request.format != "nnunet":
        raise InputError("--labels: only --format=nnunet writes label maps; leave it out")
    return OutputFolder(
        path=Path(request.out),
        format=request.format,
        preset=target,
        window=trained.window,
        kind=request.kind or target.modality,
        labels=None
        if request.labels is None
        else pairs.by_name(request.labels, "labels", request.assumed.of_companions),
        maps=samples.MAPS if _maps(request, sampler) else (),
    )


def _maps(request: Request, sampler) -> bool:
    return sampler.samples > 1 if request.maps is None else request.maps


class _Job(NamedTuple):
    """A volume to be translated, and where its translation goes."""

    scan: Scan
    destination: Destination


def _jobs(sources: Sequence[Scan], folder: OutputFolder) -> list[_Job]:
    """A job for each scan.

    Raises InputError where a translation would be written over a source, or over another.
    """
    files = {path.resolve() for scan in sources for path in scan.files}
    folders = {path.parent for path in files}
    jobs, owners = [], {}
    for scan in sources:
        destination = folder.destination(scan)
        for path in map(Path.resolve, destination.files):
            if path in files or path.parent in folders:
                raise InputError(f"{folder.path}: holds the source itself; choose another --out")
        owner = owners.setdefault(destination.sidecar, scan)
        if owner is not scan:
            raise InputError(
                f"{scan.path}: {owner.path.name} would have the same sidecar; keep one of them"
            )
        jobs.append(_Job(scan, destination))
    return jobs


class Network(NamedTuple):
    """What a run draws with: weights on devices, and what is compiled of them.

    It serves all requests that are alike in run, direction, devices and, but for the number of
    samples and which is kept, in the sampler.
    """

    translator: Translator
    mesh: Mesh
    step: int  # of training
    averages: Averages
    parameters: int  # of all networks that are held


def network(trained: Run, sampler: ConfigDict, request: Request) -> Network:
    """What draws the volumes of a request."""
    held = methods.networks(trained)
    mesh = _mesh(trained, sampler, request.devices, held)
    method = methods.build(trained, mesh=mesh, sampler=sampler)
    folder, which = Path(request.run), request.checkpoint
    step, averages = checkpoint.averages(folder, method.players, mesh, which)
    translator = method.translator(averages, method.fixed)
    return Network(translator, mesh, step, averages, models.count(held))


def planned(
    trained: Run, sampler: ConfigDict, settings: Settings, request: Request, drawing: Network
) -> Plan:
    """How volumes are translated; InputError where the method cannot draw as it is asked to."""
    finishing = _finishing(trained, request)
    masks = None
    if request.masks is not None:
        masks = pairs.by_name(request.masks, "masks", request.assumed.of_companions)
    translator, mesh = drawing.translator, drawing.mesh
    for field in OF_STEPS:
        more = translator.dims == 3 and field in OF_VOLUMES
        if sampler[field] and not translator.denoises and not more:
            name = trained.config.method
            raise InputError(f"--{field}: it changes the steps of a sampler, and {name} takes none")
    if request.maps and not translator.denoises:
        raise InputError(
            f"--maps: of samples that differ, and {trained.config.method} draws one; leave it out"
        )
    if PICTURE.name in translator.sees:
        recast.check(settings.contours["source"], "--contours")
    plan = Plan(
        settings=settings,
        window=trained.window,
        masks=masks,
        sampler=sampler,
        sees=translator.sees,
        draw=functools.partial(sampling.draw, translator, meshes.drawing(mesh, translator.dims)),
        seed=request.seed,
        maps=_maps(request, sampler),
        unit=translator.unit,
        dims=translator.dims,
        depth_unit=translator.depth_unit,
        slice_spacing=trained.slice_spacing,
        finishing=finishing,
        parameters=drawing.parameters,
    )
    _check_seen(trained, plan, request)
    return plan


def _finishing(trained: Run, request: Request) -> Finishing:
    """What is done to translations; InputError for what cannot be done to those of a run."""
    for name in ("normalise", "contrast"):
        if getattr(request, name) and trained.preset.modality == "ct":
            raise InputError(f"--{name}: HU mean what they say and stay as they are; leave it out")
    if not 0 <= request.contrast <= 1:
        raise InputError(f"--contrast: {request.contrast} must lie between 0 and 1")
    if request.normalise and trained.population is None:
        raise InputError(
            f"--normalise: {request.run} does not know the mean and the deviation of what it "
            f"learnt from; train anew, or leave it out"
        )
    return Finishing(request.contrast, trained.population if request.normalise else None)


def _doubts(plan: Plan) -> list[str]:
    """What may be wrong with what is seen, one line each."""
    source, target = plan.settings.source, plan.settings.target
    if PICTURE.name in plan.sees and source.modality == target.modality:
        return [
            f"the run sees a picture with its tissues in the order of the target's greys; a "
            f"{source.modality} of another contrast needs --contours with a curve that has them so"
        ]
    return []


def _check_seen(trained: Run, plan: Plan, request: Request) -> None:
    """Raise InputError where a method cannot see of the source what it learnt to see."""
    source, known = plan.settings.source, trained.source_preset
    if not plan.sees:
        raise InputError(
            f"{request.run}: sees nothing of a source; it is the base of a ControlNet, see "
            f"`contourdiff train --base`"
        )
    if SOURCE.name in plan.sees and known is not source:
        learnt = "no source" if known is None else known.name
        raise InputError(
            f"{request.run}: sees the image of the source and learnt from {learnt}, not from "
            f"--preset={source.name}; take a run that learnt from it, or one that sees contours"
        )
    compared = plan.maps or plan.sampler.keep in samples.OF_CONTOURS
    if request.contours is not None and CONTOUR.name not in plan.sees and not compared:
        raise InputError("--contours: the run does not see the source's contours; leave it out")


def _mesh(trained: Run, sampler, devices: int | None, held) -> Mesh:
    """Devices that share a batch of slices or tiles, each with the network; all by default."""
    batch = sampler.batch
    if trained.config.model.dims == 3 and not sampler.tiles:
        if devices not in (None, 1):
            raise InputError(
                "--devices: a volume in one piece is drawn on one; leave it out, or give --tiles"
            )
        devices = 1
    wanted = ConfigDict({"data": -1 if devices is None else devices, "fsdp": 1})
    mesh = meshes.make(wanted, batch=batch, held=held)
    meshes.check_batch(mesh, batch, "--batch")
    return mesh


# --------------------------------------------------------------------------------------------------
# The work
# --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Work:
    """The translation of a folder's volumes."""

    plan: Plan
    folder: OutputFolder
    common: dict  # fields of all sidecars
    overwrite: bool
    result: Result  # so far

    def do(self, jobs: list[_Job]) -> None:
        """Do all jobs but those that other processes do."""
        sampler = self.plan.sampler
        advancing = sampler.batch if sampler.scgd else 1  # volumes that are drawn together
        for _ in range(2):  # the second time, what another process had claimed and given up
            waiting = []
            with tqdm(total=len(jobs), unit=" volumes", disable=None) as progress:
                for first in range(0, len(jobs), advancing):
                    group = jobs[first : first + advancing]
                    with contextlib.ExitStack() as claims:
                        ours, theirs = self._claim(group, claims)
                        self._translate(ours)
                    waiting += theirs
                    progress.update(len(group))
            jobs = waiting
            if not jobs:
                break
        self.result.left.extend(job.destination.files[0] for job in jobs)

    def _claim(self, jobs: Sequence[_Job], claims: contextlib.ExitStack):
        """(jobs claimed until `claims` is closed, jobs that other processes have claimed).

        What is done or cannot be done is in neither, but in the result.
        """
        ours, theirs = [], []
        for job in jobs:
            with self._failures([job]):
                destination, fields = job.destination, self._fields(job.scan)
                done, file = destination.is_done(fields), self.folder.claim(destination)
                if not done and not claims.enter_context(disk.claim(file)):
                    theirs.append(job)
                elif done or destination.is_done(fields):  # by a process that had just claimed it
                    self.result.kept.append(destination.files[0])
                else:
                    destination.check(fields, self.overwrite)
                    ours.append(job)
        return ours, theirs

    def _fields(self, scan: Scan) -> dict:
        """What the sidecar of a scan's translation says before that is made."""
        source = {"name": scan.source, "sha256": scan.sha256}
        return self.common | {"subject": scan.subject, "source": source}

    def _translate(self, jobs: list[_Job]) -> None:
        """Read, draw and write volumes that are drawn together."""
        began = time.perf_counter()
        readable = []
        for job in jobs:
            with self._failures([job]):
                readable.append((job, volume.read(self.plan, job.scan)))
        if not readable:
            return
        drawn = []
        with self._failures([job for job, _ in readable]):
            drawn = volume.draw(self.plan, [source for _, source in readable])
            if not self.result.done:  # the first is compiled for
                compiling.give_back()
        for (job, source), of_source in zip(readable, drawn, strict=False):  # or none
            with self._failures([job]):
                array, maps = volume.finish(self.plan, source, of_source)
                seconds = round((time.perf_counter() - began) / len(readable), 3)
                made = {"slices": len(source.contours), "seconds": seconds}
                made["cost"] = sidecars.cost(self.plan.parameters)
                job.destination.write(array, source.volume, self._fields(job.scan) | made, maps)
                self.result.done.append(job.destination.files[0])
                self.result.failed.extend(source.volume.failed)

    @contextlib.contextmanager
    def _failures(self, jobs: Sequence[_Job]) -> Iterator[None]:
        """Makes what fails within because of files the failure of these jobs."""
        try:
            yield
        except Exception as error:
            for job in jobs:
                with io.failures(job.scan.path, self.result.failed):
                    raise error


def _check_any(result: Result, request: Request, count: int) -> None:
    """Raise InputError where none of so many volumes could be translated."""
    if result.done or result.kept or result.left:
        return
    out = Path(request.out)
    if not any(out.iterdir()):
        out.rmdir()
    raise InputError(
        f"{request.source}: none of {count} volumes could be translated; "
        f"the first: {result.failed[0][1]}"
    )


def _tell(result: Result, out: Path) -> None:
    for _, reason in result.failed:
        print(f"not translated: {reason}", file=sys.stderr)
    elsewhere = f", {len(result.left)} left to another process" if result.left else ""
    print(
        f"{out}: {len(result.done)} translated, {len(result.kept)} kept from before, "
        f"{len(result.failed)} failed{elsewhere}"
    )
