# SPDX-License-Identifier: Apache-2.0
"""Unpaired scores: how far the images of a translation lie from real images of other subjects.

KID first, because its expectation does not depend on how many images there are; FID falls with
them. They are called so with the released InceptionV3 alone; with other weights, with a segmenter
or with features of a file, they are kernel_NAME and frechet_NAME.

Shapes: [X, Y, Z] volumes; [n, H, W] uint8 images; [N, D] features.
"""

import dataclasses
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from contourdiff_jax.data import layouts
from contourdiff_jax.data.layouts.scans import Scan
from contourdiff_jax.errors import InputError
from contourdiff_jax.evaluation.cases import check_units
from contourdiff_jax.evaluation.metrics import distribution, samples
from contourdiff_jax.evaluation.metrics.samples import Sample
from contourdiff_jax.evaluation.scores import LEAST_BODY
from contourdiff_jax.runtime import processes
from contourdiff_jax.runtime.disk import check_is_file, open_file, reason
from contourdiff_jax.translation.sidecars import Settings, Sidecar
from contourdiff_jax.volumes.grid import AXES
from contourdiff_jax.volumes.intensity import Preset, Window
from contourdiff_jax.volumes.masks import body_mask
from contourdiff_jax.volumes.volume import Assumed, Volume

LEAST = 50  # images on a side; of fewer, no distance says anything
# Two samples of one distribution of 512 features have an FID of 13 with 200 images, 32 with 50.
LEAST_FRECHET = 200
MODES = ("pytorch-fid", "torch-fidelity", "clean-fid")
NETWORKS = ("inception", "segmenter")
REAL = "real"
FILE = {"translation": "translated", REAL: REAL}  # what a file of features calls them

Samples = dict[str, dict[str, Sample]]  # by view and method


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure by.

    Attributes:
      features: 'inception'; 'segmenter', the encoder of one that `segment` trained; or an .npz file
        of other features: arrays `translated` [N, D] and `real` [M, D] with the names of their
        subjects, `translated_subjects` and `real_subjects`.
      mode: how images are shown to InceptionV3, see metrics/features.py.
      weights: of the network: see weights.py, or a file of OUT/weights of `segment`.
      foreground: whether what lies outside the body becomes air.
      three_views: whether to slice along all three axes, and not just the model's.
      statistics: whether to keep means and covariances, as pytorch-fid reads them.
    """

    features: str
    mode: str = "clean-fid"
    weights: str | None = None
    foreground: bool = False
    three_views: bool = False
    statistics: bool = False


@dataclasses.dataclass(frozen=True)
class Unpaired:
    """Metrics of every method, with how they came about in words, and what could not be read.

    Attributes:
      methods: {method: {metric: {"value", "low", "high", "n"}}}; 'real' is the floor.
      data: for the record.
      samples: what they were computed from.
      failed: (path, reason).
    """

    methods: dict[str, dict]
    data: dict
    samples: Samples
    failed: list[tuple[Path, str]] = dataclasses.field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Writes `<method>_<view>.npz` with mean `mu` and covariance `sigma` of every sample."""
        folder.mkdir()
        for view, methods in self.samples.items():
            for method, sample in methods.items():
                mu, sigma = distribution.statistics(sample.features)
                np.savez(folder / f"{method}_{view}.npz", mu=mu, sigma=sigma)


def measure(
    options: Options,
    translated: dict[str, Scan],
    sidecars: dict[str, Sidecar | None],
    source: dict[str, Scan] | None,
    real,
    settings: Settings,
    grid: str = "source",
    seed: int = 0,
) -> Unpaired:
    """Distances of translations, and of their sources, from real volumes.

    Args:
      options: what to measure by. With features of a file nothing else is read.
      translated, sidecars: by name, of what is scored.
      source: by name, where they are given.
      real: folder of volumes; subjects that were translated are left out.
      settings: of the translation.
      grid: 'source' slices volumes on their own voxels, 'model' on the model's grid.
      seed: of all that is drawn.

    Raises InputError for too few images, and for weights or features that cannot be used.
    """
    if options.features not in NETWORKS:
        return _of_file(Path(options.features), seed)
    return _of_scans(options, translated, sidecars, source, real, settings, grid, seed)


# ----------------------------------------------------------------------------------------------
# Features
# ----------------------------------------------------------------------------------------------


def _of_file(path: Path, seed: int) -> Unpaired:
    check_is_file(path)
    try:
        with open_file(path) as stream, np.load(stream, allow_pickle=False) as file:
            read = {
                method: Sample(np.float64(file[key]), file[f"{key}_subjects"].astype(str))
                for method, key in FILE.items()
            }
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: not the features of two sets of images ({reason(error)}); see --features in "
            f"docs/scores.md"
        ) from None
    for method, sample in read.items():
        shape = sample.features.shape
        if len(shape) != 2 or shape[1:] != read[REAL].features.shape[1:]:
            raise InputError(f"{path}: {FILE[method]} has shape {shape}; both are [images, D]")
        if sample.subjects.shape != shape[:1] or not np.isfinite(sample.features).all():
            raise InputError(f"{path}: {FILE[method]} needs finite features, a subject to each")
    data = {"features": f"those in {path.name}, {read[REAL].features.shape[1]} to an image"}
    return _compared({"file": read}, (f"kernel_{path.stem}", f"frechet_{path.stem}"), data, seed)


@dataclasses.dataclass(frozen=True)
class _Encoder:
    """A network that makes features of images, and how it is to see them.

    Attributes:
      extract: images [n, H, W] uint8 each -> features [N, D].
      names: what the two distances are called.
      data: for the record.
      least: images on a side.
      options, settings, grid: as it needs them.
    """

    extract: Callable[[Iterator[np.ndarray]], np.ndarray]
    names: tuple[str, str]
    data: dict
    least: int
    options: Options
    settings: Settings
    grid: str


def _inception(options: Options, settings: Settings, grid: str, mesh) -> _Encoder:
    # Imported here: with JAX and the network they take a second, and the flags do not need them.
    from contourdiff_jax.evaluation import features
    from contourdiff_jax.interop import inception

    mode = features.mode(options.mode)
    params, file, digest = inception.load(options.weights)
    text = (
        f"InceptionV3 of 2015-12-05, 2048 to an image, as {options.mode} shows it images, grey as "
        "three equal channels"
    )
    names = ("kid", "fid")
    if digest != inception.SHA256:
        names = (f"kernel_{file}", f"frechet_{file}")
        text += "; not the released weights, so neither KID nor FID"

    def extract(stacks):
        return features.extract(stacks, mode, params, mesh)

    data = {"features": text, "weights": f"{file}, SHA-256 {digest}"}
    return _Encoder(extract, names, data, mode.kid_least or LEAST, options, settings, grid)


def _segmenter(options: Options, settings: Settings, mesh) -> _Encoder:
    """The encoder sees what it was trained on: slices on its own grid, of the body alone."""
    from contourdiff_jax.evaluation.segmentation import trained
    from contourdiff_jax.models import segmenter

    if options.weights is None:
        raise InputError("--features=segmenter needs --weights, a file that `segment` wrote")
    if options.three_views:
        raise InputError("--three_views: a segmenter has seen slices along one axis only")
    network, digest = trained.load(options.weights)
    if network.preset.name != settings.target.name:
        raise InputError(
            f"{options.weights}: a segmenter of {network.preset.name}, where the translations are "
            f"{settings.target.name}"
        )
    axis, spacing, size = dataclasses.astuple(network.grid)
    data = {
        "features": f"the mean over space of the lowest resolution of a segmenter "
        f"({network.method}, seed {network.seed}), {segmenter.FEATURES} to an image; neither KID "
        f"nor FID",
        "grid of the features": f"{axis}, {size} x {size} px of {spacing:g} mm",
        "weights": f"{Path(options.weights).stem}, SHA-256 {digest}",
    }
    return _Encoder(
        lambda stacks: network.features(stacks, mesh),
        ("kernel_segmenter", "frechet_segmenter"),
        data,
        LEAST,
        dataclasses.replace(options, foreground=True),
        dataclasses.replace(settings, grid=network.grid),
        "model",
    )


def _of_scans(
    options, translated, sidecars, source, real, settings: Settings, grid: str, seed: int
) -> Unpaired:
    from contourdiff_jax.runtime import mesh as meshes

    mesh = meshes.local()
    if options.features == "segmenter":
        encoder = _segmenter(options, settings, mesh)
    else:
        encoder = _inception(options, settings, grid, mesh)
    options, settings, grid = encoder.options, encoder.settings, encoder.grid
    target = settings.target
    scored = {scan.subject for scan in translated.values()}
    assumed = Assumed(settings.assumed.spacing)
    held = layouts.find(real, modality=target.modality, assumed=assumed)
    others = held.scans
    left_out = sorted({scan.subject for scan in others} & scored)
    groups = {
        "translation": [
            (scan, target, sidecars[name] and sidecars[name].window)
            for name, scan in translated.items()
        ],
        "source": [
            (scan, settings.source, None)
            for name, scan in (source or {}).items()
            if name in translated
        ],
        REAL: [(scan, target, None) for scan in others if scan.subject not in scored],
    }
    if not groups[REAL]:
        raise InputError(f"{real}: no volume of a subject that was not translated")
    failed, sets = list(held.failed), defaultdict(dict)
    for method, group in groups.items():
        if not group:  # of sources
            continue
        whose, bad = [], []
        stacks = _stacks(processes.share(group), method, options, settings, grid, whose, bad)
        found, whose, bad = _of_all(encoder.extract(stacks), whose, bad)
        failed += bad
        if not whose:
            why = failed[-1][1] if failed else "none shows a body"
            raise InputError(f"--features: no image of the method {method!r}: {why}")
        for view in dict.fromkeys(view for view, _ in whose):
            rows = [row for row, (shown, _) in enumerate(whose) if shown == view]
            sets[view][method] = Sample(found[rows], np.array([whose[row][1] for row in rows]))
    data = _described(options, grid, target) | encoder.data
    if left_out:
        data["real volumes left out of the distances"] = left_out
    return _compared(dict(sets), encoder.names, data, seed, encoder.least, failed)


def _of_all(found: np.ndarray, whose: list, failed: list) -> tuple[np.ndarray, list, list]:
    """The same of all processes, which have taken a part of the volumes each."""
    ours = {"found": found, "whose": np.array(whose, str).reshape(-1, 2)}
    ours |= {"failed": np.array([(str(path), why) for path, why in failed], str).reshape(-1, 2)}
    every = processes.gathered(ours)
    pairs = [tuple(pair) for each in every for pair in each["whose"].tolist()]
    bad = [(Path(path), why) for each in every for path, why in each["failed"].tolist()]
    return np.concatenate([each["found"] for each in every]), pairs, bad


def _stacks(
    group: list[tuple[Scan, Preset, Window | None]],
    method: str,
    options: Options,
    settings: Settings,
    grid: str,
    whose: list[tuple[str, str]],
    failed: list[tuple[Path, str]],
) -> Iterator[np.ndarray]:
    """Images [n, H, W] of a group's volumes, one volume after the other.

    As they are read, `whose` gets the view and the subject of each image, and `failed` what cannot
    be.
    """
    views = tuple(AXES) if options.three_views else (settings.grid.axis,)
    for scan, preset, window in tqdm(group, desc=method, unit="volume", disable=None):
        try:
            volume = scan.read().even()
            window = window or preset.window_of(volume)
            if volume.span is None:
                check_units(volume, preset)
        except InputError as error:
            failed.append((scan.path, str(error)))
            continue
        body = None
        if options.foreground:
            body = body_mask(volume.array, volume.affine, preset.modality)
        for view in views:
            across = dataclasses.replace(settings.grid, axis=view)
            resampling = across.fit(volume.array.shape, volume.affine)
            images = _images(volume, preset, window, body, resampling, grid)
            whose += [(view, scan.subject)] * len(images)
            yield images


def _images(volume: Volume, preset: Preset, window: Window, body, resampling, grid: str):
    """Images [n, H, W] of 8 bits; of a body, where one is given, those that show some of it."""
    values = preset.values(volume.array, window)
    if body is not None:
        values = np.where(body, values, np.float32(preset.air))
    if grid == "source":
        planes = resampling.planes(values)
    else:
        planes = resampling.slices(values, preset.air)
    # Pictures of 8 bits are shown as they are, all else through the preset's window.
    images = np.uint8(np.rint(255 * preset.shown(volume, window).fraction(planes)))
    if body is None:
        return images
    shown = resampling.planes(body) if grid == "source" else resampling.masks(body)
    return images[shown.mean((1, 2)) >= LEAST_BODY]


def _described(options: Options, grid: str, target: Preset) -> dict:
    low, high = target.image.low, target.image.high
    outside = (
        f"made air outside the body, which the same rule finds in each volume; not cropped; slices "
        f"with at least {LEAST_BODY:.0%} of it"
        if options.foreground
        else "whole slices, all of them"
    )
    return {
        "images of the distances": f"{outside}; "
        + ("on the volumes' own voxels" if grid == "source" else "on the model's grid")
        + (f"; {', '.join(AXES)}, and the mean of the three" if options.three_views else "")
        + f"; 8 bits from preset values {low:g} to {high:g} on both sides, 8-bit pictures as they "
        "are",
    }


# ----------------------------------------------------------------------------------------------
# Comparing
# ----------------------------------------------------------------------------------------------


def _compared(
    sets: Samples, names: tuple[str, str], data: dict, seed: int, least: int = LEAST, failed=()
) -> Unpaired:
    """Every method against REAL, and REAL against itself, with equally many images each."""
    sizes = {
        f"{method}, {view}": len(sample)
        for view, compared in sets.items()
        for method, sample in compared.items()
    }
    few = min(sizes, key=sizes.get)
    count = sizes[few]
    if count < least:
        raise InputError(
            f"{few}: {count} images, where distances take at least {least} on each side; give more "
            f"subjects, or leave --features out"
        )
    kernel, frechet = names
    kinds = ["kernel"] + ["frechet"] * (count >= LEAST_FRECHET)
    parted = {view: samples.halves(compared[REAL], seed) for view, compared in sets.items()}
    half = min([count] + [len(side) for ways in parted.values() for way in ways for side in way])
    floored = half < count and half >= LEAST_FRECHET
    at_half = f"{frechet}_at_{half}" if half < count else frechet

    methods = defaultdict(dict)
    for method in next(iter(sets.values())):
        if method == REAL:
            continue
        pairs = {view: (compared[method], compared[REAL]) for view, compared in sets.items()}
        found = {v: samples.distances(*pair, kinds, count, seed) for v, pair in pairs.items()}
        for kind, name in zip(kinds, names, strict=False):
            of_views = {view: distances[kind] for view, distances in found.items()}
            methods[method] |= _entries(name, of_views)
        if floored:
            drawn = {v: samples.repeated(*p, "frechet", half, seed) for v, p in pairs.items()}
            methods[method] |= _entries(at_half, drawn)
    if all(parted.values()) and half > 1:
        kinds = ["kernel"] + ["frechet"] * (half >= LEAST_FRECHET)
        found = {view: samples.floor(ways, kinds, half, seed) for view, ways in parted.items()}
        for kind, name in zip(kinds, (kernel, at_half), strict=False):
            of_views = {view: distances[kind] for view, distances in found.items()}
            methods[REAL] |= _entries(name, of_views)
    data |= {"number of images": f"{count} on each side, drawn at random where there were more"}
    data |= _explained(kernel, frechet, count, half if REAL in methods else None)
    return Unpaired(dict(methods), data, sets, list(failed))


def _entries(name: str, views: dict[str, samples.Distance]) -> dict:
    """The mean over views under the name, and each of several under its own."""
    entries = {name: samples.mean(list(views.values())).entry()}
    if len(views) > 1:
        entries |= {f"{name}_{view}": distance.entry() for view, distance in views.items()}
    return entries


def _explained(kernel: str, frechet: str, count: int, half: int | None) -> dict:
    resamples = samples.RESAMPLES
    data = {
        kernel: f"unbiased, kernel (x.y/D + 1)^3, {distribution.SUBSETS} subsets of "
        f"{min(count, distribution.SUBSET)} images, seed {distribution.SEED}",
        frechet: f"of {count} images; it falls with their number, so compare it at the same number"
        if count >= LEAST_FRECHET
        else f"left out: of fewer than {LEAST_FRECHET} images it says how few they are",
        "interval of distances": f"value +- {samples.NORMAL} standard deviations over "
        f"{resamples['kernel']} ({kernel}) and {resamples['frechet']} ({frechet}) resamples of the "
        "subjects of both sides",
        "floor": "none: it takes two real subjects"
        if half is None
        else f"the row {REAL!r}: halves of the real subjects against each other, {half} images of "
        f"each, {samples.SPLITS} ways; no method can be expected below it",
    }
    return data
