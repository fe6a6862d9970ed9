# SPDX-License-Identifier: Apache-2.0
"""Judging translations by segmenters: train on them, test on real volumes of the target.

Two bounds say what a score is worth: segmenters that learn from the sources as they are, and from
real volumes of the target with labels. docs/scores.md defines the numbers.
"""

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from contourdiff_jax import config, figures, methods
from contourdiff_jax.data.layouts import pairs
from contourdiff_jax.data.layouts.scans import Scan
from contourdiff_jax.data.prepare import prepare
from contourdiff_jax.data.store import Store, open_store
from contourdiff_jax.errors import InputError
from contourdiff_jax.evaluation import records
from contourdiff_jax.evaluation.metrics import bootstrap
from contourdiff_jax.evaluation.records import Outcome
from contourdiff_jax.evaluation.segmentation import scores, testing, trained
from contourdiff_jax.evaluation.segmentation.trained import Trained
from contourdiff_jax.methods import segmentation
from contourdiff_jax.models import segmenter
from contourdiff_jax.runtime import disk, ownership
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training import checkpoint, loop, run
from contourdiff_jax.training.loop import Compiled
from contourdiff_jax.translation import sidecars
from contourdiff_jax.translation.sidecars import NOTICE
from contourdiff_jax.volumes import intensity, io
from contourdiff_jax.volumes.grid import Grid
from contourdiff_jax.volumes.intensity import Preset

GRID = "grid"  # the method of a segmenter that is always right on its grid
MADE = "a segmentation"  # by which the folder of one is known
PANELS = 8  # volumes that are drawn
MOST = 255  # classes, the background not counted
READ = [f"{of}_{it}" for of in ("train", "test", "lower", "upper") for it in ("images", "labels")]
# Least and most that numbers of a request may be.
BOUNDS = {
    **{"seeds": (1, 1000), "seed": (0, config.SEEDS - 1)},
    **{"images": (1, config.MOST), "batch": (1, config.WIDEST)},
}


Folder = str | Path


@dataclasses.dataclass(frozen=True)
class Request:
    """What segmenters are trained and tested on, and how; each field is a flag of the command."""

    train_images: Folder  # translated volumes
    train_labels: Folder  # label maps of what they were translated from
    test_images: Folder  # real volumes of the target
    test_labels: Folder  # their label maps
    out: Folder
    preset: str | None = None  # of the translations; by default what their sidecars say
    test_preset: str | None = None  # of the real volumes; by default the same
    lower_images: Folder | None = None  # to train on for the lower bound
    lower_labels: Folder | None = None  # by default those of the translations
    lower_preset: str | None = None
    upper_images: Folder | None = None  # to train on for the upper bound, real as those tested on
    upper_labels: Folder | None = None
    classes: list[int] | None = None  # labels to learn; by default all that there are
    axis: str = "axial"  # of the segmenters' grid, as are spacing and size; see `prepare`
    spacing: float | None = None
    size: int | None = None
    images: int | None = None  # that each network sees; by default EPOCHS times its slices
    batch: int = 8  # images of a step
    seeds: int = 3  # networks trained on each set
    seed: int = 0  # of the first of them, and of the bootstrap

    def check(self) -> None:
        """InputError for numbers that cannot be, and for flags that need others."""
        for name, (least, most) in BOUNDS.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise InputError(f"--{name}={value} must lie between {least:g} and {most:g}")
        if self.lower_images is not None and self.lower_preset is None:
            raise InputError("--lower_images needs --lower_preset, which says what they show")
        if self.upper_images is not None and self.upper_labels is None:
            raise InputError("--upper_images needs --upper_labels, their label maps")
        for name in ("lower_labels", "lower_preset", "upper_labels"):
            images = f"{name[:5]}_images"
            if getattr(self, name) is not None and getattr(self, images) is None:
                raise InputError(f"--{name} goes with --{images}")


@dataclasses.dataclass(frozen=True)
class TrainingSet:
    """What segmenters are trained on: two folders, and how the intensities are read."""

    method: str  # 'translation', 'lower' or 'upper'
    images: Folder
    labels: Folder
    preset: Preset
    flag: str  # by which the labels were given, without dashes


def segment(request: Request) -> Outcome:
    """Trains segmenters and tests them; writes metrics.json, rows.csv, seeds.csv and more.

    Raises InputError where nothing can be learnt or tested, and for a test subject that is among
    those that are trained on.
    """
    request.check()
    out, batch, seed = Path(request.out), request.batch, request.seed
    runs = Path(f"{os.path.abspath(out)}.runs")  # what is trained so far, until `out` is written
    ownership.check_apart("out", out, {it: getattr(request, it) for it in READ})
    ownership.check_is_free(out, MADE)
    mesh = meshes.make(config.default().mesh, batch=batch, least=meshes.LEARNT)
    meshes.check_batch(mesh, batch, "--batch")

    # Read: what there is to learn from and to test on, on one grid, and which labels.
    origin = _origin(request.train_images, request.preset)
    real = intensity.preset(request.test_preset) if request.test_preset else origin.preset
    sets = _training_sets(request, origin.preset, real)
    tests = pairs.by_name(request.test_images, real.modality)
    truths = pairs.by_name(request.test_labels, "labels")
    if tests.keys().isdisjoint(truths):
        names = f"{min(tests)}, .. and {min(truths)}, .."
        raise InputError(
            f"{request.test_images}: no name pairs with one of {request.test_labels}: {names}"
        )
    _check_apart(sets, tests, origin.training_subjects)

    with ownership.folder(out, MADE) as folder, tempfile.TemporaryDirectory(dir=folder) as scratch:
        grid = {name: getattr(request, name) for name in ("axis", "spacing", "size")}
        stores, grid, failed = _prepare(sets, Path(scratch), grid)
        segmenter.check_size(grid.size)
        present = {"test_labels": _labels_of_maps(truths[name] for name in tests.keys() & truths)}
        for training in sets:
            labels = _labels_of_store(stores[training.method])
            present[training.flag] = present.get(training.flag, labels) & labels
        labels = [0, *_common(present, request.classes)]

        # Train and test.
        numbers = range(seed, seed + request.seeds)
        networks = _trained(sets, stores, labels, request.images, batch, numbers, runs)
        (folder / "weights").mkdir()
        for network in networks:
            network.save(folder / "weights" / f"{network.name}.safetensors")
        results, untested = _test(tests, truths, real, networks, folder, mesh)
        failed += untested
        if not results:
            raise InputError(
                f"{request.test_images}: none of {len(tests)} volumes could be tested: "
                f"{untested[0][1]}"
            )

        # Summarise and write.
        subject_of = {name: scan.subject for name, scan in tests.items()}
        data = records.subjects(dict.fromkeys(score.scan for score in results), subject_of)
        data |= {"source preset": origin.source, "target preset": origin.preset.name}
        data |= _description(sets, stores, networks, batch, seed)
        data |= scores.by_seed(results, subject_of) | scores.undefined(results)
        rows = scores.over_seeds(results)
        methods = records.summarise(rows, seed, subject_of)
        command = records.command("segment", vars(request))
        metrics = records.content(command, data, methods, failed)
        records.write(folder, metrics, rows)
        scores.write(folder / "seeds.csv", results)
        # Their weights are in weights/ by now.
        shutil.copytree(runs, folder / "runs", ignore=lambda *_: ("checkpoints", run.LOCK))
    for network in networks:
        shutil.rmtree(runs / network.name, ignore_errors=True)
    with contextlib.suppress(OSError):  # it holds something else
        runs.rmdir()
    return Outcome(metrics, failed)


# ----------------------------------------------------------------------------------------------
# Reading
# ----------------------------------------------------------------------------------------------


class _Origin(NamedTuple):
    """Where translations come from."""

    preset: Preset  # of their intensities
    source: str | None  # name of the preset of what was translated, as far as sidecars say
    training_subjects: frozenset[str]  # digests of those of their model, likewise


def _origin(images, name: str | None) -> _Origin:
    """The origin of a folder of translations, by their sidecars and by the preset of that name."""
    modality = name and intensity.preset(name).modality
    scans = pairs.by_name(images, modality, translations=True)
    read = {scan.path: sidecars.read(scan) for scan in scans.values()}
    sidecars.check_one_model(read.items())
    beside = [sidecar for sidecar in read.values() if sidecar is not None]
    targets = {sidecar.settings.target.name for sidecar in beside}
    if name is None and len(targets) != 1:
        raise InputError(f"{images}: --preset must say what the intensities are; sidecars do not")
    if name is not None and targets - {name}:
        raise InputError(f"--preset={name}, but the sidecars say {min(targets - {name})}")
    sources = {sidecar.settings.source.name for sidecar in beside}
    return _Origin(
        intensity.preset(name or targets.pop()),
        sources.pop() if len(sources) == 1 else None,
        frozenset().union(*(sidecar.training_subjects for sidecar in beside)),
    )


def _training_sets(request: Request, preset: Preset, real: Preset) -> list[TrainingSet]:
    """The translations, then those of the bounds that are asked for."""
    images, labels = request.train_images, request.train_labels
    sets = [TrainingSet("translation", images, labels, preset, "train_labels")]
    if request.lower_images is not None:
        flag = "train_labels" if request.lower_labels is None else "lower_labels"
        source = intensity.preset(request.lower_preset)
        labels = request.lower_labels or labels
        sets.append(TrainingSet("lower", request.lower_images, labels, source, flag))
    if request.upper_images is not None:
        labels = request.upper_labels
        sets.append(TrainingSet("upper", request.upper_images, labels, real, "upper_labels"))
    return sets


def _check_apart(
    sets: list[TrainingSet], tests: dict[str, Scan], training_subjects: frozenset[str]
) -> None:
    """InputError for a test subject that is among those that anything was trained on."""
    for training in sets:
        modality, ours = training.preset.modality, training.method == "translation"
        scans = pairs.by_name(training.images, modality, translations=ours).values()
        paths = {scan.subject: scan.path for scan in scans}
        for scan in tests.values():
            if scan.subject in paths:
                raise InputError(
                    f"{scan.path}: the subject {scan.subject!r} is trained on too, as "
                    f"{paths[scan.subject]}; leave it out of one"
                )
    for scan in tests.values():
        if scan.is_of(training_subjects):
            raise InputError(
                f"{scan.path}: the model of the translations was trained on the subject "
                f"{scan.subject!r}; leave it out"
            )


def _prepare(
    sets: list[TrainingSet], folder: Path, grid: dict
) -> tuple[dict[str, Store], Grid, list[tuple[Path, str]]]:
    """A store of each set by its method, the grid of them all, and what was left out.

    The first set decides what the grid that is asked for leaves open.
    """
    stores, failed = {}, []
    for training in sets:
        path = folder / training.method
        result = prepare(
            training.images,
            path,
            training.preset.name,
            labels=training.labels,
            labels_flag=training.flag,
            validation=0.0,
            translations=training.method == "translation",
            **grid,
        )
        failed += result.failed
        stores[training.method], grid = open_store(path), result.grid.to_dict()
    return stores, result.grid, failed


def _labels_of_store(store: Store) -> set[int]:
    """Labels that a segmenter can learn of a store."""
    return set(np.unique(store.labels[store.rows("train")]).tolist()) - {0}


def _labels_of_maps(scans: Iterable[Scan]) -> set[int]:
    """Labels of label maps; those that cannot be read are reported when their turn comes."""
    labels = set()
    for scan in scans:
        with io.failures(scan.path, []):
            labels |= set(np.unique(scan.read(labels=True).array).astype(int).tolist())
    return labels - {0}


def _common(present: dict[str, set[int]], classes: list[int] | None) -> list[int]:
    """The labels to learn, which all sets have; InputError for one that a set has not.

    Args:
      present: labels of each set, by the flag that it was given by.
      classes: None for all.
    """
    labels = sorted(set(classes) if classes is not None else set().union(*present.values()))
    common = sorted(set.intersection(*present.values()))
    for label in labels:
        lacking = [f"--{flag}" for flag, held in present.items() if label not in held]
        if lacking:
            numbers = ",".join(map(str, common))
            hint = f"--classes={numbers} are in all sets" if common else "the sets share no label"
            raise InputError(f"label {label}: in no volume of {' and '.join(lacking)}; {hint}")
    if not labels or labels[0] < 1 or len(labels) > MOST:
        raise InputError(f"--classes: from 1 to {MOST} labels above 0 can be learnt, not {labels}")
    return labels


# ----------------------------------------------------------------------------------------------
# Training and testing
# ----------------------------------------------------------------------------------------------


def _trained(
    sources: list[TrainingSet],
    stores: dict[str, Store],
    labels: list[int],
    images: int | None,
    batch: int,
    seeds: range,
    runs: Path,
) -> list[Trained]:
    """Networks of every source and seed, each trained in a run's folder of its own in `runs`.

    What an earlier call has finished is not trained again.
    """
    networks, compiled = [], {}
    runs.mkdir(parents=True, exist_ok=True)
    for source in sources:
        store = stores[source.method]
        shown = images or segmentation.EPOCHS * len(store.rows("train"))
        for seed in seeds:
            folder = runs / f"{source.method}_{seed}"
            before = run.load(folder) if run.exists(folder) else None
            settings = segmentation.configured(seed, shown, batch)
            ours = run.begin(settings, store, tuple(labels), before=before)
            params = _weights(ours, store, folder, compiled)
            networks.append(
                Trained(params, ours.labels, source.preset, ours.grid, source.method, seed, shown)
            )
    return networks


def _weights(ours: run.Run, store: Store, folder: Path, compiled: dict[int, Compiled]) -> dict:
    """The averaged weights of a run, on the host; what is compiled once serves for all seeds."""
    method = methods.build(ours, store=store)
    shown = ours.config.train.images
    if shown not in compiled:
        compiled[shown] = loop.compiled(method, ours.config.train)
    if not methods.continued(ours, method, folder, compiled=compiled[shown], name=folder.name):
        raise InputError(f"{folder}: stopped; the same command goes on from there")
    _, averages = checkpoint.averages(folder, method.players, method.mesh)
    return jax.device_get(averages[segmentation.NETWORK])


def _test(
    tests: dict[str, Scan],
    truths: dict[str, Scan],
    preset: Preset,
    networks: list[Trained],
    folder: Path,
    mesh,
) -> tuple[list[scores.Score], list[tuple[Path, str]]]:
    """Scores of all test volumes, and those that could not be tested with the reason.

    Label maps go to `folder`/predictions, pictures to `folder`/panels.
    """
    labels, grid = list(networks[0].labels), networks[0].grid
    dtype = np.uint8 if labels[-1] <= np.iinfo(np.uint8).max else np.uint16
    results, failed, drawn = [], [], 0
    (folder / "panels").mkdir()
    for network in networks:
        (folder / "predictions" / network.name).mkdir(parents=True)
    for name, scan in tqdm(tests.items(), desc="test", unit="volume", disable=None):
        with io.failures(scan.path, failed):
            case, tested, pictures = testing.read(scan, truths, preset, grid, labels), [], {}
            for network in networks:
                probabilities = network.probabilities(case.images, mesh)
                label_map = trained.label_map(probabilities, labels, case.resampling)
                path = folder / "predictions" / network.name / f"{scan.stem}.nii.gz"
                io.write(path, label_map, case.volume, dtype)
                measured = case.scores(label_map)
                tested.append(scores.Score(name, network.method, network.seed, measured))
                pictures.setdefault(network.method, probabilities.argmax(-1))
            tested.append(scores.Score(name, GRID, None, case.scores(case.ceiling())))
            if drawn < PANELS:
                picture = figures.png(case.panel(pictures, f"{name} · {NOTICE}"))
                disk.write(folder / "panels" / f"{name}.png", picture)
                drawn += 1
            results += tested
    return results, failed


# ----------------------------------------------------------------------------------------------
# The record
# ----------------------------------------------------------------------------------------------


def _description(
    sets: list[TrainingSet],
    stores: dict[str, Store],
    networks: list[Trained],
    batch: int,
    seed: int,
) -> dict:
    """What was done, in words that a report can print."""
    first = networks[0]
    return {
        "labels": list(first.labels[1:]),
        "trained on": {
            training.method: f"{len(stores[training.method].subjects('train'))} subjects, "
            f"{len(stores[training.method].rows('train'))} slices, preset {training.preset.name}, "
            f"{next(n.images for n in networks if n.method == training.method)} images"
            for training in sets
        },
        "segmenter": "MONAI's UNet, channels "
        f"{', '.join(map(str, segmenter.CHANNELS))}, two convolutions in a residual unit, instance "
        f"normalisation; Dice and cross entropy, AdamW, batches of {batch}, weights averaged",
        "grid": f"{first.grid.axis}, {first.grid.size} x {first.grid.size} px of "
        f"{first.grid.spacing:g} mm; outside the body, which is found in each volume by one rule, "
        "all is air; label maps are put back on the test volume's own voxels",
        "dice": "2 |A and B| / (|A| + |B|) of voxels; of a label that is in one map only, 0",
        "assd, hd95": "mm between centres of voxels on the surfaces of a label: the mean of both "
        "directions, and the larger of their 95th percentiles; none where a label is not found",
        "mean over labels": "dice, assd and hd95; none where a label has none",
        "seeds": f"{len({network.seed for network in networks})}; a subject's number is the mean "
        "over them, where all have one",
        "interval": bootstrap.description(seed),
    }
