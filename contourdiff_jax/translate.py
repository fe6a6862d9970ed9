# SPDX-License-Identifier: Apache-2.0
"""Translate volumes of another modality from their contours alone, each onto its own grid.

--source is a volume or a folder in any layout that `contourdiff inspect` knows. Translations come
back in the format of their source, or as --format says: nifti, dicom (a derived series), bids (a
derivative) or nnunet (with the source's labels, ready to train on). Volumes already translated with
the same settings are kept, so an interrupted command is continued by repeating it, and several may
work on one folder.

Slices are translated each for itself; --coherence, --coupling or --scgd let those of a volume know
of one another. --samples draws each several times and writes maps of where they differ.

Example:
    contourdiff translate --run=runs/mr --source=data/test_ct --preset=ct --out=translated
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
from absl import flags
from ml_collections import ConfigDict
from tqdm import tqdm

from contourdiff_jax import (
    checkpoint,
    claims,
    cost,
    layouts,
    models,
    outputs,
    run,
    sampling,
    selection,
    sidecars,
    spread,
    translate_volume,
)
from contourdiff_jax import config as configuration
from contourdiff_jax import mesh as meshes
from contourdiff_jax.data import batches, contours, intensity, pairs, volumes
from contourdiff_jax.data.contours import ContourSettings
from contourdiff_jax.data.volumes import UNKNOWN, Assumed
from contourdiff_jax.diffusion import few_steps, samplers, schedules
from contourdiff_jax.errors import InputError
from contourdiff_jax.layouts import scans
from contourdiff_jax.layouts.scans import Scan
from contourdiff_jax.translate_volume import Plan

# Fields of the `sampler` section that are of whole volumes, and what their flags do.
TOGETHER = {
    "coherence": "mm along the slicing axis over which slices share noise; 0 for none",
    "coupling": "share of a slice's neighbours in it, at every step",
    "scgd": "show each slice the translation of the one before",
    "neighbour_guidance": "of scgd: how far the slice before is followed, 1 as published",
    "candidates": "of scgd: drawn where a chain of slices begins",
    "candidate": "of scgd: which of them is kept, lowest_mean or best_contours",
    "anchor": "of scgd: slices after which a new chain begins; 0 for never",
    "middle": "of scgd: begin chains in their middle and go both ways",
    "samples": "of each slice",
    "keep": f"which of the samples is kept: {', '.join(selection.NAMES)}",
    "tiles": "least overlap of tiles, for volumes larger than the grid, as a share; 0 crops them",
}
DEFINE = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("run", None, "folder of a trained run", flag_values=values)
    flags.DEFINE_string(
        "source", None, "volume or folder of volumes to translate", flag_values=values
    )
    flags.DEFINE_string("out", None, "folder for the translated volumes", flag_values=values)
    flags.DEFINE_string("preset", None, "modality of the source: ct or mr", flag_values=values)
    flags.DEFINE_string(
        "contours",
        None,
        f"contours of the source: a JSON file, or {', '.join(contours.PRESETS)}",
        flag_values=values,
    )
    flags.DEFINE_string("masks", None, "folder with body masks of the source", flag_values=values)
    flags.DEFINE_enum(
        "format", "same", list(outputs.FORMATS), "format of the translations", flag_values=values
    )
    flags.DEFINE_string(
        "kind", None, "what the target shows, as in names of BIDS: T1w, ct", flag_values=values
    )
    flags.DEFINE_string(
        "labels", None, "folder with label maps of the source, for nnunet", flag_values=values
    )
    flags.DEFINE_string(
        "sampler", None, "ddim, ddpm or dpmpp_2m; the run's by default", flag_values=values
    )
    flags.DEFINE_integer("steps", None, "sampling steps; the run's by default", flag_values=values)
    flags.DEFINE_float(
        "guidance", None, "classifier-free guidance; the run's by default", flag_values=values
    )
    flags.DEFINE_integer("seed", 0, "seed of the noise", lower_bound=0, flag_values=values)
    flags.DEFINE_integer(
        "batch_size", None, "slices at once; the run's by default", flag_values=values
    )
    defaults = configuration.default().sampler
    for name, text in TOGETHER.items():
        define = DEFINE[type(defaults[name])]
        define(name, None, f"{text}; the run's by default", flag_values=values)
    flags.DEFINE_bool(
        "maps",
        None,
        "write maps of mean, deviation and structure not asked for; where there are several "
        "samples by default",
        flag_values=values,
    )
    flags.DEFINE_integer("devices", None, "devices to use; all by default", flag_values=values)
    flags.DEFINE_bool(
        "overwrite", False, "replace translations made with other settings", flag_values=values
    )
    scans.define_flags(values)


def main(values: flags.FlagValues) -> int:
    for name in ("run", "source", "out", "preset"):
        if values[name].value is None:
            raise InputError(f"--{name} is required; see `contourdiff translate --help`")
    result = translate(
        values.run,
        values.source,
        values.out,
        preset=values.preset,
        contours_file=values.contours,
        body_masks=values.masks,
        **scans.from_flags(values),
        form=values.format,
        kind=values.kind,
        labels=values.labels,
        sampler_name=values.sampler,
        steps=values.steps,
        guidance_scale=values.guidance,
        seed=values.seed,
        batch_size=values.batch_size,
        together={name: values[name].value for name in TOGETHER},
        maps=values.maps,
        devices=values.devices,
        overwrite=values.overwrite,
    )
    return 1 if result.failed else 0


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
    if config.sampler.guidance != 1 and not config.train.condition_dropout:
        raise InputError(
            f"{run_folder}: trained without condition dropout, so guidance must be 1; train with "
            f"--config.train.condition_dropout=0.1"
        )
    sampling.check(config.sampler, tuple(config.model.conditions))
    visited = samplers.timesteps(config.sampler, config.diffusion.steps)
    few_steps.check_visited(trained.config, visited, str(run_folder))
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
        maps=spread.MAPS if (config.sampler.samples > 1 if maps is None else maps) else (),
    )
    targets = _targets(found.scans, place)
    mask_scans = None if body_masks is None else pairs.by_name(body_masks)
    model = models.build(config.model, batches.CONDITIONS)
    weights = jax.eval_shape(model.init, jax.random.key(0))
    wanted = ConfigDict({"data": devices or -1, "fsdp": 1})
    mesh = meshes.make(wanted, batch=config.sampler.batch, held=weights)
    meshes.check_batch(mesh, config.sampler.batch, "--batch_size")

    step, ema = checkpoint.load_average(Path(run_folder), model.init, meshes.replicated(mesh))
    drawn = functools.partial(
        sampling.draw,
        sampling.sampler(
            config, model, schedules.build(config.diffusion), mesh, tile=trained.grid.size
        ),
        ema,
        meshes.batch(mesh),
        config.sampler.batch,
    )
    plan = Plan(
        trained=trained,
        sampler=config.sampler,
        preset=source_preset,
        contours=settings,
        masks=mask_scans,
        drawn=drawn,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(ema)),
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
            "digest": checkpoint.digest(ema),
        },
        "sampler": config.sampler.to_dict(),
        "seed": seed,
        "training_subjects_sha256": list(trained.subjects),
        "versions": _versions(),
        "config": config.to_dict(),
    }

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {volumes.reason(error)}") from error
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
            elif not held.enter_context(claims.claim(place.claim(target))):
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
            read.append((job, translate_volume.read(plan, job.scan)))
        except InputError as error:
            result.failed.append((job.scan.path, str(error)))
    if not read:
        return
    drawn = translate_volume.samples(plan, [source for _, source in read])
    for (job, source), samples in zip(read, drawn, strict=True):
        try:
            array, maps = translate_volume.finished(plan, source, samples)
            seconds = round((time.perf_counter() - began) / len(read), 3)
            done = {"slices": len(source.contours), "seconds": seconds}
            done["cost"] = cost.fields(plan.parameters)
            job.target.write(array, source.volume, job.fields | done, maps)
            result.done.append(job.target.files[0])
            result.failed.extend(source.volume.failed)
        except InputError as error:
            result.failed.append((job.scan.path, str(error)))


def _contour_settings(given, trained: run.Run, source: intensity.Preset) -> ContourSettings:
    """Settings for the source: of the file or preset named, else of training or its default."""
    if given is not None:
        return contours.named(given, source.modality)
    # Within a modality what training saw is right; across, the modality's own.
    same = source.modality == trained.preset.modality or trained.contours.suits_any
    return trained.contours if same else contours.preset("default", source.modality)


def _identity(scan: Scan) -> dict:
    return {
        "subject": scan.subject,
        "source": {"name": scan.source, "sha256": scan.sha256},
    }


def _versions() -> dict[str, str]:
    names = ("contourdiff-jax", "jax", "flax", "numpy", "opencv-python-headless")
    return {name: importlib.metadata.version(name) for name in names}
