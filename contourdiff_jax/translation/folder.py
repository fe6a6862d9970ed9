# SPDX-License-Identifier: Apache-2.0
"""Translating every volume of a folder, each onto its own grid.

Volumes already translated with the same settings are kept, so that an interrupted translation is
continued by repeating it, and several processes may work on one folder.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from contourdiff_jax import config as configuration
from contourdiff_jax import methods, models
from contourdiff_jax.contours import settings as contour_settings
from contourdiff_jax.contours.settings import ContourSettings
from contourdiff_jax.data import layouts
from contourdiff_jax.data.layouts import pairs
from contourdiff_jax.data.layouts.scans import Scan
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training import checkpoint, run
from contourdiff_jax.translation import outputs, sampling, sidecars, volume
from contourdiff_jax.translation import samples as selection
from contourdiff_jax.translation.volume import Plan
from contourdiff_jax.volumes import intensity
from contourdiff_jax.volumes.volume import UNKNOWN, Assumed


@dataclasses.dataclass(frozen=True)
class Result:
    """Paths translated now, kept from before, failed with the reason, and left to others.

    The latter are being translated by another process.
    """

    done: list[Path]
    kept: list[Path]
    failed: list[tuple[Path, str]]
    left: list[Path] = dataclasses.field(default_factory=list)


class _Job(NamedTuple):
    """A volume to be translated, and what its sidecar says beforehand."""

    scan: Scan
    target: outputs.Target
    fields: dict


def translate(
    run_folder: str | Path,
    source: str | Path,
    out: str | Path,
    *,
    preset: str,
    contours_file: str | Path | None = None,
    body_masks: str | Path | None = None,
    layout: str = "auto",
    select: str | None = None,
    assumed: Assumed = UNKNOWN,
    form: str = "same",
    kind: str | None = None,
    labels: str | Path | None = None,
    sampler_name: str | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    together: Mapping[str, object] | None = None,
    maps: bool | None = None,
    devices: int | None = None,
    overwrite: bool = False,
) -> Result:
    """Translate a volume, or every volume of a folder, into `out`: same names, sidecars beside.

    Args:
      run_folder: a run made by `train`.
      preset: modality of the source, 'ct' or 'mr'.
      contours_file: JSON of ContourSettings for the source, or the name of a contour preset.
      body_masks: folder with a mask for each scan; the layout's or computed without it.
      layout, select, assumed: how the source is understood, see `layouts.find`.
      form: format of the translations, one of outputs.FORMATS.
      kind: what the target shows, in names of BIDS and nnU-Net; the target's preset without it.
      labels: folder with label maps of the source, for nnU-Net; the layout's without it.
      devices: how many to use; all without it.
      sampler_name, steps, guidance_scale, batch_size: the run's `sampler` section without them.
      together: other fields of that section, those of TOGETHER; None leaves the run's.
      maps: whether to write maps beside; without it, where there are several samples.

    Raises:
      InputError: nothing could be translated. Volumes that failed among others are in the result.
    """
    out = Path(out)
    trained = run.load(run_folder)
    config = trained.config.copy_and_resolve_references()
    for field, value in (
        ("name", sampler_name),
        ("steps", steps),
        ("guidance", guidance_scale),
        ("batch", batch_size),
        *(together or {}).items(),
    ):
        if value is not None:
            config.sampler[field] = value
    configuration.check_sampler(config, "--")
    source_preset = intensity.preset(preset)
    settings = _contour_settings(contours_file, trained, source_preset)
    found = layouts.find(
        source, layout=layout, select=select, modality=source_preset.modality, assumed=assumed
    )
    if form == "bids" and kind is None:
        raise InputError(
            f"--format=bids needs --kind, the BIDS suffix of what the {trained.preset.name} shows: "
            f"T1w, T2w, ct, ..."
        )
    place = outputs.Output(
        folder=out,
        format=form,
        preset=trained.preset,
        window=trained.window,
        kind=kind or trained.preset.name,
        labels=None if labels is None else pairs.by_name(labels),
        maps=selection.MAPS if (config.sampler.samples > 1 if maps is None else maps) else (),
    )
    targets = _targets(found.scans, place)
    mask_scans = None if body_masks is None else pairs.by_name(body_masks)
    method = methods.build(
        trained, mesh=_mesh(trained, config.sampler.batch, devices), sampler=config.sampler
    )
    inits = {name: player.init for name, player in method.players.items()}
    step, averages = checkpoint.averages(Path(run_folder), inits, method.mesh)
    translator = method.translator(averages, method.fixed)
    plan = Plan(
        trained=trained,
        sampler=config.sampler,
        preset=source_preset,
        contours=settings,
        masks=mask_scans,
        drawn=functools.partial(sampling.draw, translator, meshes.batch(method.mesh)),
        parameters=sum(leaf.size for leaf in jax.tree.leaves(averages)),
        seed=seed,
        maps=bool(place.maps),
    )
    common = {
        "schema": sidecars.SCHEMA,
        "notice": sidecars.NOTICE,
        "preset": {"source": source_preset.name, "target": trained.preset.name},
        "assumed": dataclasses.asdict(assumed),
        "window": [trained.window.low, trained.window.high],
        "grid": dataclasses.asdict(trained.grid),
        "contours": {"source": settings.to_dict(), "target": trained.contours.to_dict()},
        "checkpoint": {
            "step": step,
            "images": step * config.train.batch,
            "digest": checkpoint.digest(averages),
        },
        "sampler": config.sampler.to_dict(),
        "seed": seed,
        "training_subjects_sha256": list(trained.subjects),
        "versions": _versions(),
        "config": config.to_dict(),
    }

    with disk.writing(out):
        out.mkdir(parents=True, exist_ok=True)
    for note in found.notes:
        print(f"note: {note}")
    result = Result([], [], list(found.failed))

    advancing = config.sampler.batch if config.sampler.scgd else 1  # volumes at once
    waiting = targets
    for _ in range(2):  # what another process had claimed, it may have given up since
        left = []
        with tqdm(total=len(waiting), unit=" volumes", disable=None) as progress:
            for first in range(0, len(waiting), advancing):
                group = waiting[first : first + advancing]
                with contextlib.ExitStack() as held:
                    jobs = _claimed(group, common, place, overwrite, held, result, left)
                    _translate_together(plan, jobs, result)
                progress.update(len(group))
        waiting = left
    result.left.extend(target.files[0] for _, target in waiting)
    if not result.done + result.kept + result.left:
        if not any(out.iterdir()):
            out.rmdir()
        raise InputError(
            f"{source}: none of {len(targets)} volumes could be translated; "
            f"the first: {result.failed[0][1]}"
        )
    place.finish(source)
    for _, reason in result.failed:
        print(f"not translated: {reason}", file=sys.stderr)
    elsewhere = f", {len(result.left)} left to another process" if result.left else ""
    print(
        f"{out}: {len(result.done)} translated, {len(result.kept)} kept from before, "
        f"{len(result.failed)} failed{elsewhere}"
    )
    return result


def _mesh(trained: run.Run, batch: int, devices: int | None) -> Mesh:
    """Devices that share a batch of slices, each with the network; all by default."""
    weights = jax.eval_shape(models.build(trained.config.model).init, jax.random.key(0))
    wanted = ConfigDict({"data": devices or -1, "fsdp": 1})
    mesh = meshes.make(wanted, batch=batch, held=weights)
    meshes.check_batch(mesh, batch, "--batch_size")
    return mesh


def _targets(found: list[Scan], place: outputs.Output) -> list[tuple[Scan, outputs.Target]]:
    """Where every scan's translation goes.

    Raises InputError where one would be written over a source, or over another.
    """
    sources = {path.resolve() for scan in found for path in scan.files}
    targets, owners = [], {}
    for scan in found:
        target = place.target(scan)
        for path in target.files:
            if path.resolve() in sources or path.resolve().parent in {s.parent for s in sources}:
                raise InputError(f"{place.folder}: holds the source itself; choose another --out")
        other = owners.setdefault(target.sidecar, scan)
        if other is not scan:
            raise InputError(
                f"{scan.path}: {other.path.name} would have the same sidecar; keep one of them"
            )
        targets.append((scan, target))
    return targets


def _claimed(group, common, place, overwrite, held, result: Result, left: list) -> list[_Job]:
    """The volumes of a group that are to be translated, claimed until `held` is closed.

    What is done is noted in `result`; what another process has claimed goes to `left`.
    """
    jobs = []
    for scan, target in group:
        try:
            fields = common | _identity(scan)
            if target.is_done(fields, overwrite):
                result.kept.append(target.files[0])
            elif not held.enter_context(disk.claim(place.claim(target))):
                left.append((scan, target))
            elif target.is_done(fields, overwrite):  # since it was claimed by another
                result.kept.append(target.files[0])
            else:
                jobs.append(_Job(scan, target, fields))
        except InputError as error:
            result.failed.append((scan.path, str(error)))
    return jobs


def _translate_together(plan: Plan, jobs: list[_Job], result: Result) -> None:
    """Translates volumes that advance together, and says in `result` how it went."""
    began = time.perf_counter()
    read = []
    for job in jobs:
        try:
            read.append((job, volume.read(plan, job.scan)))
        except InputError as error:
            result.failed.append((job.scan.path, str(error)))
    if not read:
        return
    drawn = volume.samples(plan, [source for _, source in read])
    for (job, source), samples in zip(read, drawn, strict=True):
        try:
            array, maps = volume.finished(plan, source, samples)
            seconds = round((time.perf_counter() - began) / len(read), 3)
            done = {"slices": len(source.contours), "seconds": seconds}
            done["cost"] = sidecars.cost(plan.parameters)
            job.target.write(array, source.volume, job.fields | done, maps)
            result.done.append(job.target.files[0])
            result.failed.extend(source.volume.failed)
        except InputError as error:
            result.failed.append((job.scan.path, str(error)))


def _contour_settings(given, trained: run.Run, source: intensity.Preset) -> ContourSettings:
    """Settings for the source: of the file or preset named, else of training or its default."""
    if given is not None:
        return contour_settings.named(given, source.modality)
    # Within a modality what training saw is right; across, the modality's own.
    same = source.modality == trained.preset.modality or trained.contours.suits_any
    return trained.contours if same else contour_settings.preset("default", source.modality)


def _identity(scan: Scan) -> dict:
    return {
        "subject": scan.subject,
        "source": {"name": scan.source, "sha256": scan.sha256},
    }


def _versions() -> dict[str, str]:
    names = ("contourdiff-jax", "jax", "flax", "numpy", "opencv-python-headless")
    return {name: importlib.metadata.version(name) for name in names}
