# SPDX-License-Identifier: Apache-2.0
"""Unpaired scores: how far the images of a translation lie from real images of other subjects.

KID stands first: its expectation does not depend on the number of images, whereas FID falls with
it. The two have these names with the released InceptionV3 alone; with other weights, a segmenter
or the features of a file they are kernel_NAME and frechet_NAME.

Shapes: [X, Y, Z] volumes; [n, H, W] uint8 images; [N, D] features.
"""

import dataclasses
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from contourdiff_jax.data.layouts.scans import Scan
from contourdiff_jax.errors import InputError
from contourdiff_jax.evaluation.cases import Translations, check_units
from contourdiff_jax.evaluation.metrics import distribution, samples
from contourdiff_jax.evaluation.metrics.samples import Sample
from contourdiff_jax.evaluation.scores import LEAST_BODY
from contourdiff_jax.runtime import processes
from contourdiff_jax.runtime.disk import check_is_file, open_file, reason
from contourdiff_jax.translation.sidecars import Settings
from contourdiff_jax.volumes import io
from contourdiff_jax.volumes.grid import AXES, Grid
from contourdiff_jax.volumes.intensity import Preset, Window
from contourdiff_jax.volumes.masks import body_mask
from contourdiff_jax.volumes.volume import Volume

LEAST = 50  # images on a side; of fewer, no distance says anything
# Two samples of one distribution of 512 features have an FID of 13 with 200 images, 32 with 50.
LEAST_FRECHET = 200
# Features that unpack to more bytes than the first, and to so many times their file, are none.
UNPACKED, PACKED = 1 << 30, 100
MODES = ("pytorch-fid", "torch-fidelity", "clean-fid")
MODE = "clean-fid"  # by default
# Options that a network takes; features of a file take none of them.
NETWORKS = {
    "inception": ("mode", "weights", "foreground", "three_views"),
    "segmenter": ("weights",),
}
REAL = "real"  # the method of real volumes
FILE = {"translation": "translated", REAL: REAL}  # the arrays of a file of features

Samples = dict[str, dict[str, Sample]]  # by view and method


@dataclasses.dataclass(frozen=True)
class Options:
    """What distances are measured by.

    Attributes:
      features: 'inception'; 'segmenter', the encoder of one that `segment` trained; or an .npz file
        of other features: arrays `translated` [N, D] and `real` [M, D] with the names of their
        subjects, `translated_subjects` and `real_subjects`.
      mode: how images are shown to InceptionV3, see features.py; MODE by default.
      weights: of the network: see interop/inception.py, or a file of OUT/weights of `segment`.
      foreground: whether what lies outside the body becomes air.
      three_views: whether to slice along all three axes, and not just the model's.
      statistics: whether to keep means and covariances, as pytorch-fid reads them.
    """

    features: str
    mode: str | None = None
    weights: str | None = None
    foreground: bool = False
    three_views: bool = False
    statistics: bool = False

    def check(self) -> None:
        """InputError for unknown features, and for an option that these do not take."""
        if self.features not in NETWORKS and not self.features.endswith(".npz"):
            known = ", ".join(NETWORKS)
            raise InputError(f"--features={self.features}: known are {known}, or an .npz file")
        for name in NETWORKS["inception"]:
            if getattr(self, name) and name not in NETWORKS.get(self.features, ()):
                raise InputError(f"--{name} is not for --features={self.features}")

    def flags(self) -> dict[str, object]:
        """The flags of the command line that say the same."""
        mode = (self.mode or MODE) if self.features == "inception" else None
        options = vars(self) | {"mode": mode}
        return {name: value for name, value in options.items() if value}


@dataclasses.dataclass(frozen=True)
class Unpaired:
    """Distances of every method.

    Attributes:
      methods: {method: {metric: {"value", "low", "high", "n"}}}; 'real' is the floor.
      data: how they were measured, for the record.
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
    options: Options, translations: Translations, real, grid: str = "source", seed: int = 0
) -> Unpaired:
    """Distances of translations, and of their sources, from real volumes.

    Args:
      options: with features of a file nothing else is read.
      translations: their sources are measured too, where they are among the partners.
      real: folder of volumes; subjects that were translated are left out.
      grid: 'source' slices volumes on their own voxels, 'model' on the model's grid.
      seed: of all that is drawn.

    Raises InputError for too few images, and for weights or features that cannot be used.
    """
    if options.features not in NETWORKS:
        return _compare(*_of_file(Path(options.features)), seed)
    return _of_scans(options, translations, real, grid, seed)


def _of_file(path: Path) -> tuple[Samples, tuple[str, str], dict]:
    """Features of a file, what the two distances are called, and data for the record."""
    check_is_file(path)
    try:
        with open_file(path) as stream, np.load(stream, allow_pickle=False) as file:
            unpacked = sum(member.file_size for member in file.zip.infolist())
            if unpacked > max(UNPACKED, PACKED * path.stat().st_size):
                raise ValueError(f"they unpack to {unpacked:,} bytes")
            read = {
                method: Sample(np.float64(file[key]), file[f"{key}_subjects"].astype(str))
                for method, key in FILE.items()
            }
    except (OSError, MemoryError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
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
    return {"file": read}, (f"kernel_{path.stem}", f"frechet_{path.stem}"), data


# ----------------------------------------------------------------------------------------------
# Images
# ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Slicing:
    """How volumes become images of 8 bits.

    Attributes:
      grid: on which they are cut.
      own_voxels: whether they are cut on their own voxels instead, across the views' axes.
      foreground: whether what lies outside the body becomes air, and slices without one go.
      views: axes along which volumes are sliced.
    """

    grid: Grid
    own_voxels: bool
    foreground: bool
    views: tuple[str, ...]

    def images(
        self, volume: Volume, preset: Preset, window: Window
    ) -> Iterator[tuple[str, np.ndarray]]:
        """(view, images [n, H, W] uint8) of a volume."""
        values = preset.values(volume.array, window)
        body = None
        if self.foreground:
            body = body_mask(volume.array, volume.affine, preset.modality)
            values = np.where(body, values, np.float32(preset.air))
        for view in self.views:
            grid = self.grid
            if view != grid.axis:  # across other axes all planes of the volume are looked at
                grid = dataclasses.replace(grid, axis=view, slice_spacing=0.0)
            resampling = grid.fit(volume.array.shape, volume.affine)
            if self.own_voxels:
                planes = resampling.planes(values)
            else:
                planes = resampling.slices(values, preset.air)
            # Pictures of 8 bits are shown as they are, all else through the preset's window.
            images = np.uint8(np.rint(255 * preset.shown(volume, window).fraction(planes)))
            if body is not None:
                inside = resampling.planes(body) if self.own_voxels else resampling.masks(body)
                images = images[inside.mean((1, 2)) >= LEAST_BODY]
            yield view, images

    def description(self, target: Preset) -> dict:
        """How images were made, for the record."""
        outside = (
            f"made air outside the body, which the same rule finds in each volume; not cropped; "
            f"slices with at least {LEAST_BODY:.0%} of it"
            if self.foreground
            else "whole slices, all of them"
        )
        where = "on the volumes' own voxels" if self.own_voxels else "on the model's grid"
        views = f"; {', '.join(AXES)}, and the mean of the three" if len(self.views) > 1 else ""
        return {
            "images of the distances": f"{outside}; {where}{views}; 8 bits from preset values "
            f"{target.image.low:g} to {target.image.high:g} on both sides, 8-bit pictures as they "
            "are",
        }


@dataclasses.dataclass(frozen=True)
class _Stacks:
    """The images [n, H, W] of volumes, one after the other, read as they are needed.

    Attributes:
      group: (scan, preset, window or None for its own) of each volume.
      title: of the progress bar.
      slicing: of the volumes.
      owners: view and subject of each image that was read so far.
      failed: (path, reason) of volumes that could not be read so far.
    """

    group: list[tuple[Scan, Preset, Window | None]]
    title: str
    slicing: _Slicing
    owners: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    failed: list[tuple[Path, str]] = dataclasses.field(default_factory=list)

    def __iter__(self) -> Iterator[np.ndarray]:
        for scan, preset, window in tqdm(self.group, desc=self.title, unit="volume", disable=None):
            views = []
            with io.failures(scan.path, self.failed):
                volume = scan.read().even()
                if volume.span is None:
                    check_units(volume, preset)
                window = window or preset.window_of(volume)
                views = list(self.slicing.images(volume, preset, window))
            for view, images in views:
                self.owners.extend([(view, scan.subject)] * len(images))
                yield images


# ----------------------------------------------------------------------------------------------
# Features
# ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Encoder:
    """A network that makes features of images, and what it is shown.

    Attributes:
      extract: images [n, H, W] uint8 each -> features [N, D].
      names: of the two distances.
      data: for the record.
      slicing: of volumes.
      least: images that a side must have.
    """

    extract: Callable[[Iterable[np.ndarray]], np.ndarray]
    names: tuple[str, str]
    data: dict
    slicing: _Slicing
    least: int


def _inception(options: Options, settings: Settings, grid: str, mesh) -> _Encoder:
    # Imported here: with JAX and the network they take a second, and the flags do not need them.
    from contourdiff_jax.evaluation import features
    from contourdiff_jax.interop import inception

    name = options.mode or MODE
    mode = features.mode(name)
    params, file, digest = inception.load(options.weights)
    text = (
        f"InceptionV3 of 2015-12-05, 2048 to an image, as {name} shows it images, grey as three "
        "equal channels"
    )
    names = ("kid", "fid")
    if digest != inception.SHA256:
        names = (f"kernel_{file}", f"frechet_{file}")
        text += "; not the released weights, so neither KID nor FID"

    def extract(stacks):
        return features.extract(stacks, mode, params, mesh)

    data = {"features": text, "weights": f"{file}, SHA-256 {digest}"}
    views = tuple(AXES) if options.three_views else (settings.grid.axis,)
    slicing = _Slicing(settings.grid, grid == "source", options.foreground, views)
    return _Encoder(extract, names, data, slicing, mode.kid_least or LEAST)


def _segmenter(options: Options, settings: Settings, mesh) -> _Encoder:
    """The encoder sees what it was trained on: slices on its own grid, of the body alone."""
    from contourdiff_jax.evaluation.segmentation import trained
    from contourdiff_jax.models import segmenter

    if options.weights is None:
        raise InputError("--features=segmenter needs --weights, a file that `segment` wrote")
    network, digest = trained.load(options.weights)
    if network.preset.name != settings.target.name:
        raise InputError(
            f"{options.weights}: a segmenter of {network.preset.name}, where the translations are "
            f"{settings.target.name}"
        )
    grid = network.grid
    data = {
        "features": f"the mean over space of the lowest resolution of a segmenter "
        f"({network.method}, seed {network.seed}), {segmenter.FEATURES} to an image; neither KID "
        f"nor FID",
        "grid of the features": f"{grid.axis}, {grid.size} x {grid.size} px of {grid.spacing:g} mm"
        f"{grid.every}",
        "weights": f"{Path(options.weights).stem}, SHA-256 {digest}",
    }
    return _Encoder(
        lambda stacks: network.features(stacks, mesh),
        ("kernel_segmenter", "frechet_segmenter"),
        data,
        _Slicing(grid, own_voxels=False, foreground=True, views=(grid.axis,)),
        LEAST,
    )


def _of_scans(options: Options, translations: Translations, real, grid: str, seed: int) -> Unpaired:
    from contourdiff_jax.runtime import mesh as meshes

    settings, mesh = translations.settings, meshes.local()
    if options.features == "segmenter":
        encoder = _segmenter(options, settings, mesh)
    else:
        encoder = _inception(options, settings, grid, mesh)
    target, subjects = settings.target, translations.subjects
    content = translations.real(real)
    groups = {
        "translation": [
            (scan, target, sidecar and sidecar.window)
            for scan, sidecar in zip(
                translations.scans.values(), translations.sidecars.values(), strict=True
            )
        ],
        "source": [
            (scan, settings.source, None)
            for name, scan in translations.partners.get("source", {}).items()
            if name in translations.scans
        ],
        REAL: [(scan, target, None) for scan in content.scans if scan.subject not in subjects],
    }
    if not groups[REAL]:
        raise InputError(f"{real}: no volume of a subject that was not translated")
    failed, by_view = list(content.failed), defaultdict(dict)
    for method, group in groups.items():
        if not group:  # of sources
            continue
        stacks = _Stacks(processes.share(group), method, encoder.slicing)
        features, owners, unread = _gathered(encoder.extract(stacks), stacks)
        failed += unread
        if not owners:
            why = failed[-1][1] if failed else "none shows a body"
            raise InputError(f"--features: no image of the method {method!r}: {why}")
        for view in dict.fromkeys(view for view, _ in owners):
            rows = [row for row, (other, _) in enumerate(owners) if other == view]
            by_view[view][method] = Sample(
                features[rows], np.array([owners[row][1] for row in rows])
            )
    data = encoder.slicing.description(target) | encoder.data
    left_out = sorted({scan.subject for scan in content.scans} & subjects)
    if left_out:
        data["real volumes left out of the distances"] = left_out
    return _compare(dict(by_view), encoder.names, data, seed, encoder.least, failed)


def _gathered(features: np.ndarray, stacks: _Stacks) -> tuple[np.ndarray, list, list]:
    """Features, owners and failures of all processes, which have taken a part of the group each."""
    failed = [(str(path), why) for path, why in stacks.failed]
    every = processes.gathered(
        {
            "features": features,
            "owners": np.array(stacks.owners, str).reshape(-1, 2),
            "failed": np.array(failed, str).reshape(-1, 2),
        }
    )
    return (
        np.concatenate([part["features"] for part in every]),
        [tuple(owner) for part in every for owner in part["owners"].tolist()],
        [(Path(path), why) for part in every for path, why in part["failed"].tolist()],
    )


# ----------------------------------------------------------------------------------------------
# Comparing
# ----------------------------------------------------------------------------------------------


def _compare(
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
        measured = {v: samples.distances(*pair, kinds, count, seed) for v, pair in pairs.items()}
        for kind, name in zip(kinds, names, strict=False):
            of_views = {view: distances[kind] for view, distances in measured.items()}
            methods[method] |= _entries(name, of_views)
        if floored:
            drawn = {v: samples.repeated(*p, "frechet", half, seed) for v, p in pairs.items()}
            methods[method] |= _entries(at_half, drawn)
    if all(parted.values()) and half > 1:
        kinds = ["kernel"] + ["frechet"] * (half >= LEAST_FRECHET)
        floors = {view: samples.floor(ways, kinds, half, seed) for view, ways in parted.items()}
        for kind, name in zip(kinds, (kernel, at_half), strict=False):
            of_views = {view: distances[kind] for view, distances in floors.items()}
            methods[REAL] |= _entries(name, of_views)
    data |= {"number of images": f"{count} on each side, drawn at random where there were more"}
    data |= _description(kernel, frechet, count, half if REAL in methods else None)
    return Unpaired(dict(methods), data, sets, list(failed))


def _entries(name: str, views: dict[str, samples.Distance]) -> dict:
    """The mean over views under the name, and each of several under its own."""
    entries = {name: samples.mean(list(views.values())).entry()}
    if len(views) > 1:
        entries |= {f"{name}_{view}": distance.entry() for view, distance in views.items()}
    return entries


def _description(kernel: str, frechet: str, count: int, half: int | None) -> dict:
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
