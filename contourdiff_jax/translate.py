# SPDX-License-Identifier: Apache-2.0
"""Translate volumes of another modality from their contours alone, each onto its own grid.

--source is a volume or a folder in any layout that `contourdiff inspect` knows. Translations come
back in the format of their source, or as --format says: nifti, dicom (a derived series), bids (a
derivative) or nnunet (with the source's labels, ready to train on). Volumes already translated with
the same settings are kept, so an interrupted command is continued by repeating it.

Example:
    contourdiff translate --run=runs/mr --source=data/test_ct --preset=ct --out=translated
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from tqdm import tqdm

from contourdiff_jax import checkpoint, layouts, models, outputs, run, sidecars
from contourdiff_jax import mesh as meshes
from contourdiff_jax.data import batches, contours, intensity, masks, pairs, volumes
from contourdiff_jax.data.contours import ContourSettings
from contourdiff_jax.data.grid import KEPT_WHOLE
from contourdiff_jax.data.volumes import UNKNOWN, Assumed
from contourdiff_jax.diffusion import guidance, samplers, schedules
from contourdiff_jax.errors import InputError
from contourdiff_jax.layouts import scans
from contourdiff_jax.layouts.scans import Scan


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
        devices=values.devices,
        overwrite=values.overwrite,
    )
    return 1 if result.failed else 0


@dataclasses.dataclass(frozen=True)
class Result:
    """Paths translated now, kept from before, and failed with the reason."""

    done: list[Path]
    kept: list[Path]
    failed: list[tuple[Path, str]]


# ----------------------------------------------------------------------------------------------
# Sampling
# ----------------------------------------------------------------------------------------------


def sampler(config, model: models.Model, schedule: schedules.Schedule, mesh) -> Callable:
    """The compiled sampler of a run's `config`.

    (params, condition {name: [B, *S, c]}, keys [B, 2]) -> x [B, *S, 1].
    All randomness of a slice comes from its own key, so neither its neighbours in the batch nor
    the number of devices change it.
    """
    draw_from = samplers.build(config.sampler, schedule.steps)

    def sample(params, condition, key_data):
        shape = (*next(iter(condition.values())).shape[1:-1], 1)
        slice_keys = jax.random.wrap_key_data(key_data)

        def noise(i):
            return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, i), shape))(
                slice_keys
            )

        denoise = guidance.denoiser(
            model.apply,
            params,
            schedule,
            config.diffusion.prediction,
            condition,
            guidance=config.sampler.guidance,
        )
        z_0 = draw_from(denoise, schedule, noise(config.sampler.steps), noise)
        return z_0.clip(-1, 1)

    return jax.jit(
        sample,
        in_shardings=(None, meshes.batch(mesh), meshes.batch(mesh)),
        out_shardings=meshes.batch(mesh),
    )


def keys(seed: int, subject: str, slices: np.ndarray) -> np.ndarray:
    """Key data [n, 2] uint32 of slices of a subject: fold_in of seed, subject and slice number."""
    name = int.from_bytes(hashlib.sha256(subject.encode()).digest()[:4], "big")
    subject_key = jax.random.fold_in(jax.random.key(seed), np.uint32(name))
    folded = jax.vmap(jax.random.fold_in, (None, 0))(subject_key, np.asarray(slices, np.uint32))
    return np.asarray(jax.random.key_data(folded))


# ----------------------------------------------------------------------------------------------
# Volumes
# ----------------------------------------------------------------------------------------------


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
    ):
        if value is not None:
            config.sampler[field] = value
    if config.sampler.guidance != 1 and not config.train.condition_dropout:
        raise InputError(
            f"{run_folder}: trained without condition dropout, so guidance must be 1; train with "
            f"--config.train.condition_dropout=0.1"
        )
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
    )
    targets = _targets(found.scans, place)
    mask_scans = None if body_masks is None else pairs.by_name(body_masks)
    mesh = meshes.make(ConfigDict({"data": devices or -1, "fsdp": 1}))
    meshes.check_batch(mesh, config.sampler.batch, "--batch_size")

    model = models.build(config.model, batches.CONDITIONS)
    step, ema = checkpoint.load_average(Path(run_folder), model.init, meshes.replicated(mesh))
    draw = functools.partial(
        _draw,
        sampler(config, model, schedules.build(config.diffusion), mesh),
        ema,
        meshes.batch(mesh),
        config.sampler.batch,
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
    for scan, target in tqdm(targets, unit=" volumes", disable=None):
        try:
            sidecar = common | _identity(scan)
            if target.is_done(sidecar, overwrite):
                result.kept.append(target.files[0])
                continue
            began = time.perf_counter()
            volume, array, count = _translate_scan(
                scan, source_preset, settings, trained, mask_scans, draw, seed
            )
            sidecar |= {"slices": count, "seconds": round(time.perf_counter() - began, 3)}
            target.write(array, volume, sidecar)
            result.done.append(target.files[0])
            result.failed.extend(volume.failed)
        except InputError as error:
            result.failed.append((scan.path, str(error)))
    if not result.done and not result.kept:
        if not any(out.iterdir()):
            out.rmdir()
        raise InputError(
            f"{source}: none of {len(targets)} volumes could be translated; "
            f"the first: {result.failed[0][1]}"
        )
    place.finish(source)
    for _, reason in result.failed:
        print(f"not translated: {reason}", file=sys.stderr)
    print(
        f"{out}: {len(result.done)} translated, {len(result.kept)} kept from before, "
        f"{len(result.failed)} failed"
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


def _translate_scan(scan, source_preset, settings, trained, mask_scans, draw, seed):
    """-> (the scan's volume, its translation [X, Y, Z] in native units, number of slices)."""
    volume = scan.read()
    window = source_preset.window_of(volume)
    volume, resampling = trained.grid.fit_volume(volume)
    if resampling.kept < KEPT_WHOLE:
        _say(
            f"warning: {scan.path} is larger than the run's grid: {resampling.kept:.0%} of its "
            f"field of view is translated, the rest is air"
        )
    for note in volume.notes:
        _say(f"note: {scan.path}: {note}")
    mask = pairs.companion(volume, scan, mask_scans, "masks")
    if mask is None:
        mask = masks.body_mask(volume.array, volume.affine, source_preset.modality)
    edges = contours.on_grid(
        source_preset.values(volume.array, window),
        resampling.masks(mask > 0),
        resampling,
        source_preset,
        settings,
        source_preset.shown(volume, window),
    )
    contour = batches.given(edges)
    # Slices are translated independently of one another: each without its neighbour.
    absent = dict.fromkeys(trained.config.model.conditions, np.zeros_like(contour))
    unit = draw(absent | {"contour": contour}, keys(seed, scan.name, np.arange(len(edges))))

    target = trained.preset
    translated = resampling.volume(target.image.inverse(unit), target.air)
    return volume, target.native(translated, trained.window), len(edges)


def _say(text: str) -> None:
    """A line above the progress bar."""
    tqdm.write(text, file=sys.stderr)


def _draw(sample, params, sharding, batch: int, condition: dict, slice_keys) -> np.ndarray:
    """Samples [N, H, W] of a volume's conditions {name: [N, H, W, c]} and keys [N, 2].

    Every volume starts a new batch, padded to full size: what a slice becomes depends on nothing
    else.
    """
    count = len(slice_keys)
    drawn = []
    for first in range(0, count, batch):
        part = np.minimum(np.arange(first, first + batch), count - 1)
        example = meshes.put(sharding, {name: c[part] for name, c in condition.items()})
        drawn.append(np.asarray(sample(params, example, meshes.put(sharding, slice_keys[part]))))
    return np.concatenate(drawn)[:count, ..., 0]


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
