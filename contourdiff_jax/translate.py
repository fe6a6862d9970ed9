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
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags
from ml_collections import ConfigDict
from tqdm import tqdm

from contourdiff_jax import (
    checkpoint,
    claims,
    layouts,
    models,
    outputs,
    run,
    selection,
    sidecars,
    translate_volume,
    uncertainty,
)
from contourdiff_jax import mesh as meshes
from contourdiff_jax.data import batches, contours, intensity, masks, pairs, volumes
from contourdiff_jax.data.contours import ContourSettings
from contourdiff_jax.data.grid import KEPT_WHOLE
from contourdiff_jax.data.volumes import UNKNOWN, Assumed
from contourdiff_jax.diffusion import schedules, tiles
from contourdiff_jax.errors import InputError
from contourdiff_jax.inspection import guesses
from contourdiff_jax.layouts import scans
from contourdiff_jax.layouts.scans import Scan
from contourdiff_jax.translate_volume import Source

CLIPPED = 0.01  # more of the body than this outside the preset's range is worth a warning

# Fields of the `sampler` section that are of whole volumes; flags have their names.
TOGETHER = (
    *("coherence", "coupling", "scgd", "candidates", "candidate", "anchor", "middle"),
    *("samples", "keep", "tiles"),
)


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
    flags.DEFINE_float(
        "coherence",
        None,
        "mm along the slicing axis over which slices share noise; the run's by default",
        flag_values=values,
    )
    flags.DEFINE_float(
        "coupling",
        None,
        "share of the neighbours in a slice at every step; the run's by default",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "scgd",
        None,
        "show each slice the translation of the one before; the run's by default",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "candidates",
        None,
        "of scgd: drawn where a chain of slices begins; the run's by default",
        flag_values=values,
    )
    flags.DEFINE_string(
        "candidate",
        None,
        "of scgd: which of them is kept, lowest_mean or best_contours; the run's by default",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "anchor",
        None,
        "of scgd: slices after which a chain begins, 0 for never; the run's by default",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "middle",
        None,
        "of scgd: begin in the middle and go both ways; the run's by default",
        flag_values=values,
    )
    flags.DEFINE_integer("samples", None, "of each slice; the run's by default", flag_values=values)
    flags.DEFINE_string(
        "keep",
        None,
        f"which of the samples is kept, {', '.join(selection.NAMES)}; the run's by default",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "maps",
        None,
        "write maps of mean, deviation and structure not asked for; where there are several "
        "samples by default",
        flag_values=values,
    )
    flags.DEFINE_float(
        "tiles",
        None,
        "volumes larger than the grid in tiles that overlap by this share, 0 crops them; the "
        "run's by default",
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


class _Plan(NamedTuple):
    """How every volume of a folder is translated."""

    trained: run.Run
    sampler: ConfigDict  # the section
    preset: intensity.Preset  # of the source, as are the contours
    contours: ContourSettings
    masks: dict[str, Scan] | None
    drawn: Callable  # (condition, knots, beside) -> pictures
    seed: int
    maps: bool


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
    translate_volume.check(config.sampler, tuple(config.model.conditions))
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
        maps=uncertainty.MAPS if (config.sampler.samples > 1 if maps is None else maps) else (),
    )
    targets = _targets(found.scans, place)
    mask_scans = None if body_masks is None else pairs.by_name(body_masks)
    mesh = meshes.make(ConfigDict({"data": devices or -1, "fsdp": 1}))
    meshes.check_batch(mesh, config.sampler.batch, "--batch_size")

    model = models.build(config.model, batches.CONDITIONS)
    step, ema = checkpoint.load_average(Path(run_folder), model.init, meshes.replicated(mesh))
    drawn = functools.partial(
        translate_volume.draw,
        translate_volume.sampler(
            config, model, schedules.build(config.diffusion), mesh, tile=trained.grid.size
        ),
        ema,
        meshes.batch(mesh),
        config.sampler.batch,
    )
    plan = _Plan(
        trained=trained,
        sampler=config.sampler,
        preset=source_preset,
        contours=settings,
        masks=mask_scans,
        drawn=drawn,
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

    together = config.sampler.batch if config.sampler.scgd else 1
    waiting = targets
    for _ in range(2):  # what another process had before, it may have given up since
        left = []
        progress = tqdm(waiting, unit=" volumes", disable=None)
        for first in range(0, len(waiting), together):
            group = waiting[first : first + together]
            with contextlib.ExitStack() as claims_held:
                jobs = []
                for scan, target in group:
                    try:
                        fields = common | _identity(scan)
                        if target.is_done(fields, overwrite):
                            result.kept.append(target.files[0])
                        elif not claims_held.enter_context(claims.claim(place.claim(target))):
                            left.append((scan, target))
                        elif target.is_done(fields, overwrite):  # since
                            result.kept.append(target.files[0])
                        else:
                            jobs.append(_Job(scan, target, fields))
                    except InputError as error:
                        result.failed.append((scan.path, str(error)))
                _translate_together(plan, jobs, result)
            progress.update(len(group))
        progress.close()
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


def _translate_together(plan: _Plan, jobs: list[_Job], result: Result) -> None:
    """Translates volumes that advance together, and says in `result` how it went."""
    began = time.perf_counter()
    read = []
    for job in jobs:
        try:
            read.append((job, _read(plan, job.scan)))
        except InputError as error:
            result.failed.append((job.scan.path, str(error)))
    if not read:
        return
    for (job, source), samples in zip(read, _samples(plan, [s for _, s in read]), strict=True):
        try:
            array, maps = _finished(plan, source, samples)
            seconds = round((time.perf_counter() - began) / len(read), 3)
            done = {"slices": len(source.contours), "seconds": seconds}
            job.target.write(array, source.volume, job.fields | done, maps)
            result.done.append(job.target.files[0])
            result.failed.extend(source.volume.failed)
        except InputError as error:
            result.failed.append((job.scan.path, str(error)))


def _read(plan: _Plan, scan: Scan) -> Source:
    """A scan as it goes into the sampler."""
    volume = scan.read()
    window = plan.preset.window_of(volume)
    volume, resampling = plan.trained.grid.fit_volume(volume)
    if resampling.kept < KEPT_WHOLE and plan.sampler.tiles:
        grid = plan.trained.grid
        side = tiles.side(resampling.needed, grid.size, plan.sampler.tiles)
        _, resampling = dataclasses.replace(grid, size=side).fit_volume(volume)
    elif resampling.kept < KEPT_WHOLE:
        _say(
            f"warning: {scan.path} is larger than the run's grid: {resampling.kept:.0%} of its "
            f"field of view is translated, the rest is air; --tiles translates all of it"
        )
    for note in volume.notes:
        _say(f"note: {scan.path}: {note}")
    mask = pairs.companion(volume, scan, plan.masks, "masks")
    if mask is None:
        mask = masks.body_mask(volume.array, volume.affine, plan.preset.modality)
    _check_intensities(plan.preset, scan, volume, window, mask > 0)
    body = resampling.masks(mask > 0)
    edges = contours.on_grid(
        plan.preset.values(volume.array, window),
        body,
        resampling,
        plan.preset,
        plan.contours,
        plan.preset.shown(volume, window),
    )
    return Source(scan, volume, resampling, edges, body)


def _check_intensities(preset, scan: Scan, volume, window, inside) -> None:
    """Says of a volume whose values can hardly be what its preset takes them for."""
    guess = guesses.guess(volume.array, volume.array.dtype, None, scan.assumed)
    if guess.preset != preset.name or guess.offset:
        _say(
            f"warning: {scan.path}: taken for {preset.name}, but its values look like "
            f"{guess.modality} ({guess.reason}); see `contourdiff inspect`"
        )
    values = preset.values(volume.array[inside], window)
    outside = np.mean((values < preset.storage.low) | (values > preset.storage.high))
    if outside > CLIPPED:
        _say(
            f"warning: {scan.path}: {outside:.1%} of the body lies outside {preset.storage.low:g} "
            f"to {preset.storage.high:g} and is clipped"
        )


def _samples(plan: _Plan, sources: list[Source]) -> Iterable[np.ndarray]:
    """Samples [K, N, H, W] in [-1, 1] of each source."""
    how = plan.drawn, plan.sampler, plan.trained.config.model.conditions, plan.seed
    if plan.sampler.scgd:
        return translate_volume.chained(*how, sources, functools.partial(_edges, plan))
    return [translate_volume.at_once(*how, source) for source in sources]


def _finished(plan: _Plan, source: Source, samples) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """-> (the translation [X, Y, Z] in native units, its maps likewise)."""
    target, window = plan.trained.preset, plan.trained.window
    # Where there is neither a body nor a contour there is air, and nothing to guess.
    samples[:, ~(source.body | (source.contours > 0)).any((1, 2))] = -1
    found = None
    if plan.maps or plan.sampler.keep == "best_contours":
        found = np.stack([_edges(plan, sample, source.body) for sample in samples])
    kept = selection.chosen(plan.sampler.keep, samples, found, source.contours)
    translated = source.resampling.volume(target.image.inverse(kept), target.air)
    maps = {}
    if plan.maps:
        maps = uncertainty.maps(samples, found, source.contours, source.resampling, target, window)
    return target.native(translated, window), maps


def _edges(plan: _Plan, pictures, body) -> np.ndarray:
    return uncertainty.edges(pictures, body, plan.trained.preset, plan.trained.contours)


def _say(text: str) -> None:
    """A line above the progress bar."""
    tqdm.write(text, file=sys.stderr)


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
