# SPDX-License-Identifier: Apache-2.0
"""Scores translated volumes against their truth and against the contours that they were made from.

Volumes of --translated, --truth, --source and --masks belong together when their names agree up to
the modality (head01_ct, head01_mr). With --truth, images are compared in the target's intensity
window scaled to [0, 1], slice by slice, over the image and inside the body; with --source, the
contours of the translation are compared with those of the source. With --real, volumes of the
target domain to learn from, two baselines are scored as well: the source with its histogram
matched, and the mean image. A volume that cannot be scored is reported and skipped.

Example:
  contourdiff evaluate --translated=translated --out=scores \\
    --truth=data/test_mr --source=data/test_ct --real=data/train_mr

Shapes: [X, Y, Z] volumes in closest-canonical RAS, [N, H, W] slices. "Values" are numbers in the
units of a preset: HU, or the fraction of an MR volume's percentile window.
"""

import csv
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import sys
import uuid
from collections import defaultdict
from pathlib import Path

import numpy as np
from absl import flags
from skimage.exposure import match_histograms
from tqdm import tqdm

import contourdiff_jax
from contourdiff_jax import panels
from contourdiff_jax.data import contours, intensity, volumes
from contourdiff_jax.data.contours import ContourSettings
from contourdiff_jax.data.grid import AXES, Grid, Resampling
from contourdiff_jax.data.intensity import Preset, Window
from contourdiff_jax.data.masks import body_mask
from contourdiff_jax.errors import InputError
from contourdiff_jax.metrics import bootstrap, paired, structure

SCHEMA = 1  # of metrics.json
SIDECAR_SCHEMA = 1
NOTICE = "Synthetic images, not for diagnosis."
COLUMNS = ("subject", "slice", "method", "metric", "value", "seconds")
LEAST_BODY = 0.01  # of a slice's pixels; with less body in it, it has no score inside the body
TOLERANCE = 1  # pixels that contours may lie apart
PANELS = 8  # subjects that are drawn
LEVELS = 128  # of the mean image, from the lowest to the highest slice that shows the body
QUANTILES = 10_001  # by which a volume's histogram is known


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The content of metrics.json, and the files that could not be scored with the reason."""

    metrics: dict
    failed: list[tuple[Path, str]]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all translated volumes of a folder have in common."""

    source: Preset | None
    target: Preset
    grid: Grid
    contours: dict[str, ContourSettings]  # of 'source' and 'target'


@dataclasses.dataclass(frozen=True)
class Case:
    """One subject: values [X, Y, Z] on the translation's own grid, None where not given."""

    subject: str
    translation: np.ndarray
    truth: np.ndarray | None
    source: np.ndarray | None
    mask: np.ndarray  # bool
    resampling: Resampling
    seconds: float | None  # that a slice took to translate


def evaluate(
    translated,
    out,
    *,
    truth=None,
    real=None,
    source=None,
    masks=None,
    preset: str | None = None,
    source_preset: str | None = None,
    grid: str = "source",
    seed: int = 0,
    overwrite: bool = False,
) -> Evaluation:
    """Scores a folder of translated volumes: metrics.json, rows.csv and panels/*.png in `out`.

    Args:
      translated: folder made by `contourdiff translate`, or by another tool.
      out: folder to write.
      truth: folder with the true target volumes on the translations' own grids.
      real: folder with target volumes of other subjects, for the baselines.
      source: folder with the volumes that were translated.
      masks: folder with body masks; else they are computed from the source, or from the truth.
      preset, source_preset: the target's and the source's, for translations without sidecars.
      grid: 'source' compares at the volumes' own resolution, 'model' on the model's grid.
      seed: of the bootstrap.
      overwrite: replace an evaluation of that name.

    Raises InputError when nothing can be scored, or when a subject to be scored was trained on.
    """
    out = Path(out)
    if truth is None and source is None:
        raise InputError("nothing to compare with: give --truth, --source or both")
    if grid not in ("source", "model"):
        raise InputError(f"--grid={grid}: known are source, model")
    _check_free(out, overwrite)
    paths = _by_subject(translated)
    partners = {
        name: _by_subject(folder)
        for name, folder in (("truth", truth), ("source", source), ("masks", masks))
        if folder is not None
    }
    sidecars, failed = _read_sidecars(paths)
    settings = _settings(paths, sidecars, preset, source_preset, source is not None)
    baselines, left_out = None, []
    if real is not None:
        baselines, left_out, unread = _learn(real, set(sidecars), settings)
        failed += unread

    arguments = {
        **{"translated": translated, "truth": truth, "real": real, "source": source},
        **{"masks": masks, "preset": preset, "source_preset": source_preset},
        **{"grid": grid, "seed": seed, "out": out},
    }
    partial = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    rows, scored = [], []
    try:
        (partial / "panels").mkdir(parents=True)
        for subject in tqdm(sidecars, desc="evaluate", unit="volume", disable=None):
            try:
                case = _load(paths[subject], sidecars[subject], partners, settings)
                candidates = _candidates(case, baselines, settings)
                rows += _score(case, candidates, settings, grid)
            except InputError as error:
                failed.append((paths[subject], str(error)))
                continue
            scored.append(case.subject)
            if len(scored) <= PANELS:
                _draw(partial / "panels" / f"{subject}.png", case, settings)
        if not scored:
            raise InputError(
                f"{translated}: none of {len(paths)} volumes could be scored: {failed[0][1]}"
            )
        metrics = {
            "schema": SCHEMA,
            "notice": NOTICE,
            "command": _command(arguments),
            "versions": _versions(),
            "data": {
                "subjects": scored,
                "slices": len({row[:2] for row in rows}),
                **_describe(settings, grid, seed, truth, source, masks, baselines),
                **({"real volumes left out": left_out} if left_out else {}),
                **({"failed": [reason for _, reason in failed]} if failed else {}),
            },
            "methods": _summarise(rows, seed),
        }
        _write(partial, metrics, rows)
        _replace(partial, out, overwrite)
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {volumes.reason(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Evaluation(metrics, failed)


# ----------------------------------------------------------------------------------------------
# Reading
# ----------------------------------------------------------------------------------------------


def _by_subject(folder) -> dict[str, Path]:
    """Volumes of a folder by their subject, sorted."""
    files = {}
    for path in volumes.find(folder):
        subject = volumes.subject_of(path)
        if subject in files:
            raise InputError(
                f"{path}: {files[subject].name} belongs to the subject {subject!r} too; keep one"
            )
        files[subject] = path
    return dict(sorted(files.items()))


def _read_sidecars(paths: dict[str, Path]) -> tuple[dict[str, dict | None], list]:
    """Sidecars by subject, None where there is none, and the failures.

    Raises InputError for a subject that the model was trained on.
    """
    sidecars, failed = {}, []
    for subject, path in paths.items():
        try:
            sidecars[subject] = _read_sidecar(path)
        except InputError as error:
            failed.append((path, str(error)))
            continue
        digest = hashlib.sha256(subject.encode()).hexdigest()
        if digest in (sidecars[subject] or {}).get("training_subjects_sha256", ()):
            raise InputError(f"{path}: the subject {subject!r} was used for training; leave it out")
    if not sidecars:
        raise InputError(failed[0][1])
    return sidecars, failed


def _read_sidecar(path: Path) -> dict | None:
    """What `translate` wrote beside a volume, with its parts as the objects they stand for."""
    file = path.with_name(f"{volumes.stem(path)}.json")
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read as JSON: {volumes.reason(error)}") from error
    if not isinstance(fields, dict) or fields.get("schema") != SIDECAR_SCHEMA:
        raise InputError(f"{file}: not a sidecar of schema {SIDECAR_SCHEMA}; translate again")
    try:
        low, high = map(float, fields["window"])
        if not low < high:
            raise ValueError(f"window {low} to {high}")
        return {
            "settings": Settings(
                source=intensity.preset(fields["preset"]["source"]),
                target=intensity.preset(fields["preset"]["target"]),
                grid=Grid(**fields["grid"]),
                contours={
                    name: ContourSettings.from_dict(fields["contours"][name])
                    for name in ("source", "target")
                },
            ),
            "window": Window(low, high),
            "seconds": fields["seconds"] / fields["slices"],
            "training_subjects_sha256": set(fields.get("training_subjects_sha256", ())),
        }
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(
            f"{file}: a damaged sidecar ({type(error).__name__}: {error}); translate again"
        ) from error


def _settings(paths, sidecars, preset, source_preset, needs_source: bool) -> Settings:
    """The settings that all sidecars agree on; where there are none, what the presets imply."""
    first = next(iter(sidecars))
    if any(sidecar is None for sidecar in sidecars.values()):
        lacking = next(subject for subject, sidecar in sidecars.items() if sidecar is None)
        if any(sidecars.values()):
            raise InputError(f"{paths[lacking]}: no sidecar, where other volumes have theirs")
        if preset is None or (needs_source and source_preset is None):
            raise InputError(
                f"{paths[lacking]}: no sidecar beside it, so --preset and, for --source, "
                f"--source_preset must say what the intensities are"
            )
        target = intensity.preset(preset)
        source = None if source_preset is None else intensity.preset(source_preset)
        sides = {"source": source or target, "target": target}
        return Settings(
            source,
            target,
            _own_grid(paths[first]),
            {name: contours.DEFAULTS[side.name] for name, side in sides.items()},
        )
    settings = sidecars[first]["settings"]
    for subject, sidecar in sidecars.items():
        if sidecar["settings"] != settings:
            raise InputError(
                f"{paths[subject]}: made with another preset, grid or other contours than "
                f"{paths[first].name}; score one translation at a time"
            )
    for flag, given, known in (
        ("preset", preset, settings.target),
        ("source_preset", source_preset, settings.source),
    ):
        if given not in (None, known.name):
            raise InputError(f"--{flag}={given}, but the sidecars say {known.name}")
    return settings


def _own_grid(path: Path) -> Grid:
    """A grid of axial slices that covers the volume at its own finest spacing."""
    shape, affine = volumes.geometry(path)
    sizes, plane = volumes.spacing(affine), list(AXES["axial"][1:])
    spacing = sizes[plane].min()
    size = np.ceil(np.round((np.array(shape) * sizes)[plane].max() / spacing, 3))
    return Grid("axial", float(spacing), int(size))


def _load(path: Path, sidecar: dict | None, partners, settings: Settings) -> Case:
    """A subject's volumes, all on one grid."""
    subject = volumes.subject_of(path)
    volume = volumes.read(path)
    read = {name: _partner(volume, files, subject, name) for name, files in partners.items()}
    truth, source = read.get("truth"), read.get("source")
    if "masks" in read:
        mask = read["masks"].array > 0
        if not mask.any():
            raise InputError(f"{read['masks'].path}: an empty mask")
    elif source is not None:
        mask = body_mask(source.array, source.affine, settings.source.modality)
    else:
        mask = body_mask(truth.array, truth.affine, settings.target.modality)
    resampling = settings.grid.fit(volume.array.shape, volume.affine)
    height, width = _planes(mask, settings.grid).shape[1:]
    if min(height, width) < paired.SSIM_WINDOW:
        raise InputError(
            f"{path}: {settings.grid.axis} slices of {height} x {width} pixels; "
            f"at least {paired.SSIM_WINDOW} x {paired.SSIM_WINDOW} are needed"
        )
    return Case(
        subject=subject,
        translation=_values(volume, settings.target, sidecar and sidecar["window"]),
        truth=None if truth is None else _values(truth, settings.target),
        source=None if source is None else _values(source, settings.source),
        mask=mask,
        resampling=resampling,
        seconds=sidecar and sidecar["seconds"],
    )


def _partner(volume, files: dict[str, Path], subject: str, name: str) -> volumes.Volume:
    """The subject's volume from another folder, which must lie on the same grid."""
    if subject not in files:
        raise InputError(f"{volume.path}: no volume of the subject {subject!r} in --{name}")
    other = volumes.read(files[subject], labels=name == "masks")
    # A tenth of a voxel at the far corner: more than headers lose by rounding, less than one sees.
    corners = np.array([[0, 0, 0, 1], [*volume.array.shape, 1]]).T
    shift = np.linalg.norm((volume.affine - other.affine)[:3] @ corners, axis=0).max()
    if other.array.shape != volume.array.shape or shift > volumes.spacing(volume.affine).min() / 10:
        raise InputError(
            f"{volume.path}: {other.path} lies on another grid; resample one onto the other's"
        )
    return other


def _values(volume: volumes.Volume, preset: Preset, window: Window | None = None) -> np.ndarray:
    """Values of a volume through a window, its own one by default."""
    try:
        return preset.values(volume.array, window or preset.volume_window(volume.array))
    except InputError as error:
        raise InputError(f"{volume.path}: {error}") from error


# ----------------------------------------------------------------------------------------------
# Baselines
# ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Baselines:
    """What the real volumes of the target domain tell without any model.

    Attributes:
      histogram: values inside the body, the same number from each volume.
      mean: [LEVELS, H, W] mean image on the model's grid, from the bottom of the body to its top.
      count: volumes seen.
    """

    histogram: np.ndarray
    mean: np.ndarray
    count: int


def _learn(real, scored: set[str], settings: Settings) -> tuple[Baselines, list[str], list]:
    """Baselines of the real volumes, the subjects left out as they are scored, the failures."""
    histograms, total, left_out, failed = [], 0, [], []
    for path in tqdm(volumes.find(real), desc="baselines", unit="volume", disable=None):
        if volumes.subject_of(path) in scored:
            left_out.append(volumes.subject_of(path))
            continue
        try:
            volume = volumes.read(path)
            values = _values(volume, settings.target)
        except InputError as error:
            failed.append((path, str(error)))
            continue
        mask = body_mask(volume.array, volume.affine, settings.target.modality)
        resampling = settings.grid.fit(values.shape, volume.affine)
        histograms.append(np.quantile(values[mask], np.linspace(0, 1, QUANTILES)))
        first, last = _extent(resampling.slices(mask, 0))
        slices = resampling.slices(values, settings.target.air)
        total = total + _between(slices, np.linspace(first, last, LEVELS))
    if not histograms:
        raise InputError(f"{real}: no volume of a subject that is not scored, so no baselines")
    return (
        Baselines(np.concatenate(histograms), total / len(histograms), len(histograms)),
        left_out,
        failed,
    )


def _extent(mask: np.ndarray) -> tuple[int, int]:
    """First and last slice of a mask [N, H, W] that shows the body; all slices where none does."""
    found = np.flatnonzero((mask > 0.5).any((1, 2)))
    return (found[0], found[-1]) if found.size else (0, len(mask) - 1)


def _between(slices: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Slices [K, H, W] at fractional numbers `where` [K] of slices [N, H, W], linearly."""
    below = np.floor(where).astype(int)
    above = np.minimum(below + 1, len(slices) - 1)
    weight = (where - below)[:, None, None].astype(np.float32)
    return (1 - weight) * slices[below] + weight * slices[above]


def _mean_image(case: Case, mean: np.ndarray, air: float) -> np.ndarray:
    """The mean image [X, Y, Z], stretched along the axis to the body's extent; air beyond it."""
    first, last = _extent(case.resampling.slices(case.mask, 0))
    number = np.arange(len(case.resampling.positions))
    level = (number - first) / max(last - first, 1) * (LEVELS - 1)
    slices = _between(mean, np.clip(level, 0, LEVELS - 1))
    slices[(number < first) | (number > last)] = air
    return case.resampling.volume(slices, air)


def _candidates(case: Case, baselines: Baselines | None, settings: Settings) -> dict:
    """Values [X, Y, Z] in the target's units of every method."""
    target = settings.target
    candidates = {"translation": case.translation}
    if case.source is not None:
        # Copying: the source's greys as they are shown, read as the target's.
        unit = settings.source.image.unit(case.source)
        candidates["source"] = target.image.inverse(unit)
    if baselines is not None:
        if case.source is not None:
            # Inside the body: how much air surrounds it says something of the scan, not of tissues.
            matched = np.full_like(case.source, target.air)
            matched[case.mask] = match_histograms(case.source[case.mask], baselines.histogram)
            candidates["histogram"] = matched
        candidates["mean"] = _mean_image(case, baselines.mean, target.air)
    return candidates


# ----------------------------------------------------------------------------------------------
# Scoring
# ----------------------------------------------------------------------------------------------


def _planes(array: np.ndarray, grid: Grid) -> np.ndarray:
    """Volume [X, Y, Z] -> slices [N, H, W] of its own voxels, turned as on the model's grid."""
    return np.flip(np.transpose(array, AXES[grid.axis]), (1, 2))


def _score(case: Case, candidates: dict, settings: Settings, grid: str) -> list[tuple]:
    """Rows (subject, slice, method, metric, value, seconds) of a subject."""
    rows = []

    def add(number, method, scores):
        seconds = case.seconds if method == "translation" else None
        for metric, value in scores.items():
            rows.append((case.subject, number, method, metric, value, seconds))

    if case.truth is not None:

        def cut(array, fill):
            if grid == "model":
                return case.resampling.slices(array, fill)
            return _planes(array, settings.grid)

        truth, mask = cut(case.truth, settings.target.air), cut(case.mask, 0) > 0.5
        for method, values in candidates.items():
            for number, image in enumerate(cut(values, settings.target.air)):
                add(number, method, _compare(image, truth[number], mask[number], settings.target))
    if case.source is not None:
        # Contours on the model's grid, where the condition was made.
        mask, condition = _condition(case, settings)
        shown = np.flatnonzero(mask.mean((1, 2)) >= LEAST_BODY)
        ceiling = {} if case.truth is None else {"truth": case.truth}
        for method, values in (candidates | ceiling).items():
            slices = case.resampling.slices(values, settings.target.air)
            for number in shown:
                found = contours.contours(slices[number], mask[number], settings.contours["target"])
                agreement = structure.contour_agreement(found, condition[number], TOLERANCE)
                add(int(number), method, agreement)
    return rows


def _condition(case: Case, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Body mask and source contours [N, H, W] on the model's grid: what the model was given."""
    mask = case.resampling.slices(case.mask, 0) > 0.5
    slices = case.resampling.slices(case.source, settings.source.air)
    return mask, contours.stack(slices, mask, settings.contours["source"])


def _compare(image, truth, mask, target: Preset) -> dict[str, float]:
    """Paired scores of a slice [H, W] of values."""
    inside = mask if mask.mean() >= LEAST_BODY else None
    scores = paired.scores(target.image.fraction(image), target.image.fraction(truth), 1.0, inside)
    if target.modality == "ct":
        # HU within what a scanner stores: some fill what they do not see with -3024.
        error = np.abs(_hounsfield(image, target) - _hounsfield(truth, target))
        scores["mae_hu"] = float(error.mean())
        if inside is not None:
            scores["mae_hu_mask"] = float(error[inside].mean())
    return scores


def _hounsfield(values, preset: Preset):
    return np.clip(np.asarray(values, np.float64), preset.storage.low, preset.storage.high)


def _summarise(rows: list[tuple], seed: int) -> dict:
    """{method: {metric: interval}}: means over subjects of the means over their slices."""
    values = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for subject, _, method, metric, value, _ in rows:
        values[method][metric][subject].append(value)
    return {
        method: {
            metric: bootstrap.interval([np.mean(v) for _, v in sorted(subjects.items())], seed)
            for metric, subjects in metrics.items()
        }
        for method, metrics in values.items()
    }


# ----------------------------------------------------------------------------------------------
# Writing
# ----------------------------------------------------------------------------------------------


def _draw(path: Path, case: Case, settings: Settings) -> None:
    """The subject's panel: slices on the model's grid, spread over the body."""
    target, cut = settings.target, case.resampling.slices
    columns = {"translation": target.image.fraction(cut(case.translation, target.air))}
    if case.source is not None:
        source = settings.source
        shown = source.image.fraction(cut(case.source, source.air))
        columns = {"source": shown, "contours": _condition(case, settings)[1]} | columns
    error = None
    if case.truth is not None:
        columns["truth"] = target.image.fraction(cut(case.truth, target.air))
        error = np.abs(columns["translation"] - columns["truth"])
    first, last = _extent(cut(case.mask, 0))
    numbers = np.unique(np.linspace(first, last, panels.ROWS + 2).round().astype(int)[1:-1])
    panels.draw(
        path,
        f"{case.subject} · {settings.grid.axis} · {NOTICE}",
        {name: slices[numbers] for name, slices in columns.items()},
        None if error is None else error[numbers],
        case.resampling.positions[numbers],
    )


def _describe(settings: Settings, grid: str, seed, truth, source, masks, baselines) -> dict:
    """What was compared, and how, in words that a report can print."""
    axis, spacing, size = dataclasses.astuple(settings.grid)
    image = settings.target.image
    data = {
        "source preset": settings.source and settings.source.name,
        "target preset": settings.target.name,
        "model grid": f"{axis}, {size} x {size} px of {spacing:g} mm",
        "body mask": "given"
        if masks is not None
        else f"computed from the {'source' if source is not None else 'truth'}",
        "slices scored inside the body": f"those that show at least {LEAST_BODY:.0%} of it",
        "interval": f"{bootstrap.LEVEL:.0%} percentile bootstrap of the mean over subjects, "
        f"{bootstrap.RESAMPLES} resamples, seed {seed}",
    }
    if truth is not None:
        data |= {
            "grid of the comparison": "the source's own"
            if grid == "source"
            else "the model's: truth, source and translation resampled to it",
            "intensities": f"preset values {image.low:g} to {image.high:g} scaled to [0, 1]; "
            "truth through its own volume's window, translation through the run's",
            "ssim": f"uniform window of {paired.SSIM_WINDOW} x {paired.SSIM_WINDOW}, "
            "sample covariance, data range 1",
            "psnr": f"data range 1, at most {paired.PSNR_CAP:g} dB",
        }
    if source is not None:
        data |= {
            "contours": f"on the model's grid, within {TOLERANCE} px of those of the source",
            "contour settings": {name: used.to_dict() for name, used in settings.contours.items()},
        }
    if baselines is not None:
        data["real volumes of the baselines"] = baselines.count
    return data


def _command(arguments: dict) -> str:
    given = [f"--{name}={value}" for name, value in arguments.items() if value is not None]
    return shlex.join(["contourdiff", "evaluate", *given])


def _versions() -> dict[str, str]:
    packages = ("numpy", "scipy", "scikit-image", "nibabel", "opencv-python-headless")
    return {
        "contourdiff-jax": contourdiff_jax.__version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def _write(folder: Path, metrics: dict, rows: list[tuple]) -> None:
    text = json.dumps(metrics, indent=2, allow_nan=False) + "\n"
    (folder / "metrics.json").write_text(text, encoding="utf-8")
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for *row, value, seconds in rows:
            writer.writerow([*row, f"{value:.7g}", "" if seconds is None else f"{seconds:.4g}"])


def _check_free(out: Path, overwrite: bool) -> None:
    """InputError where nothing may be written: only an evaluation is ever replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / "metrics.json").is_file():
        raise InputError(f"{out}: exists and is not an evaluation; give another --out")
    if not overwrite:
        raise InputError(f"{out}: exists already; pass --overwrite to replace it")


def _replace(partial: Path, out: Path, overwrite: bool) -> None:
    """Gives the finished folder its name."""
    _check_free(out, overwrite)
    old = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    if out.exists():
        os.rename(out, old)
    os.rename(partial, out)
    shutil.rmtree(old, ignore_errors=True)


def table(methods: dict) -> str:
    """Metrics down, methods across, each with its interval."""
    names = list(methods)
    rows = [["", *names]]
    for metric in dict.fromkeys(metric for metrics in methods.values() for metric in metrics):
        entries = [methods[name].get(metric) for name in names]
        rows.append([metric, *("" if e is None else bootstrap.text(e) for e in entries)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


# ----------------------------------------------------------------------------------------------
# Command line
# ----------------------------------------------------------------------------------------------


def define_flags(values: flags.FlagValues) -> None:
    """The flags of `contourdiff evaluate`."""
    for name, text in (
        ("translated", "Folder of translated volumes with their sidecars."),
        ("truth", "Folder of the true target volumes."),
        ("real", "Folder of target volumes of other subjects, for the baselines."),
        ("source", "Folder of the volumes that were translated."),
        ("masks", "Folder of body masks; by default they are computed."),
        ("out", "Folder to write."),
    ):
        flags.DEFINE_string(name, None, text, flag_values=values)
    presets = sorted(intensity.PRESETS)
    flags.DEFINE_enum(
        "preset", None, presets, "Target intensities, without sidecars.", flag_values=values
    )
    flags.DEFINE_enum(
        "source_preset", None, presets, "Source intensities, without sidecars.", flag_values=values
    )
    flags.DEFINE_enum(
        "grid", "source", ["source", "model"], "Where images are compared.", flag_values=values
    )
    flags.DEFINE_integer("seed", 0, "Seed of the bootstrap.", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "Replace an evaluation.", flag_values=values)


def main(values: flags.FlagValues) -> int:
    """Runs the command; 0 if every volume was scored, 1 if some were not."""
    for name in ("translated", "out"):
        if values[name].value is None:
            raise InputError(f"--{name} is required, see `contourdiff evaluate --help`")
    result = evaluate(
        values.translated,
        values.out,
        truth=values.truth,
        real=values.real,
        source=values.source,
        masks=values.masks,
        preset=values.preset,
        source_preset=values.source_preset,
        grid=values.grid,
        seed=values.seed,
        overwrite=values.overwrite,
    )
    print(table(result.metrics["methods"]))
    print(f"{values.out}: {len(result.metrics['data']['subjects'])} subjects scored")
    for _, reason in result.failed:
        print(f"left out: {reason}", file=sys.stderr)
    return 1 if result.failed else 0
