# SPDX-License-Identifier: Apache-2.0
"""Judging translations by segmenters: train on them, test on real volumes of the target.

Two bounds say what a score is worth: segmenters that learn from the sources as they are, and from
real volumes of the target with labels. docs/scores.md defines the numbers.
"""

import contextlib
import dataclasses
import shlex
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

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
from contourdiff_jax.evaluation.segmentation import scores, testing, trained
from contourdiff_jax.evaluation.segmentation.trained import Trained
from contourdiff_jax.methods import segmentation
from contourdiff_jax.models import segmenter
from contourdiff_jax.runtime import disk
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training import checkpoint, loop, run
from contourdiff_jax.training.loop import Compiled
from contourdiff_jax.translation import sidecars
from contourdiff_jax.translation.sidecars import NOTICE
from contourdiff_jax.volumes import filenames, intensity, io
from contourdiff_jax.volumes.grid import Grid
from contourdiff_jax.volumes.intensity import Preset

GRID = "grid"  # the method of a segmenter that is always right on its grid
PANELS = 8  # subjects that are drawn
MOST = 255  # classes, the background not counted


@dataclasses.dataclass(frozen=True)
class Source:
    """What segmenters are trained on: two folders, and how the intensities are read."""

    method: str  # 'translation', 'lower' or 'upper'
    images: str | Path
    labels: str | Path
    preset: Preset
    flag: str  # by which the labels were given


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """The content of metrics.json, and the files that could not be used with the reason."""

    metrics: dict
    failed: list[tuple[Path, str]]


def segment(
    train_images,
    train_labels,
    test_images,
    test_labels,
    out,
    *,
    preset: str | None = None,
    test_preset: str | None = None,
    lower_images=None,
    lower_labels=None,
    lower_preset: str | None = None,
    upper_images=None,
    upper_labels=None,
    classes: list[int] | None = None,
    axis: str = "axial",
    spacing: float | None = None,
    size: int | None = None,
    images: int | None = None,
    batch: int = 8,
    seeds: int = 3,
    seed: int = 0,
) -> Segmentation:
    """Trains segmenters and tests them; writes metrics.json, rows.csv, seeds.csv and more.

    Args:
      train_images: folder of translated volumes.
      train_labels: folder of the label maps of what they were translated from.
      test_images, test_labels: real volumes of the target, and their label maps.
      out: folder to write.
      preset: of the translations' intensities; default: what their sidecars say.
      test_preset: of the real volumes, those of `upper_images` too; default: the same.
      lower_images, lower_labels, lower_preset: to train on for the lower bound; the labels are
        those of the translations by default.
      upper_images, upper_labels: to train on for the upper bound.
      classes: labels to learn; default: all that there are.
      axis, spacing, size: of the segmenters' grid, as in `prepare`.
      images: that each network is trained on, repeats counted; default: EPOCHS times its slices.
      batch: images of a step.
      seeds: networks trained on each source.
      seed: of the first of them, and of the bootstrap.

    Raises InputError where nothing can be learnt or tested, and for a test subject that is among
    those that are trained on.
    """
    given = {name: value for name, value in locals().items() if value is not None}
    out = Path(out)
    runs = out.with_name(f"{out.name}.runs")  # what is trained so far, until `out` is written
    disk.check_is_free(out)
    for name, value, least in (("seeds", seeds, 1), ("seed", seed, 0), ("images", images, 1)):
        if value is not None and value < least:
            raise InputError(f"--{name}={value} must be at least {least}")
    mesh = meshes.make(config.default().mesh, batch=batch, least=meshes.LEARNT)
    meshes.check_batch(mesh, batch, "--batch")

    # Read: what there is to learn from and to test on, on one grid, and which labels.
    told = _told(train_images, preset)
    real = intensity.preset(test_preset) if test_preset else told.preset
    sources = [Source("translation", train_images, train_labels, told.preset, "--train_labels")]
    if lower_images is not None:
        if lower_preset is None:
            raise InputError("--lower_images needs --lower_preset, which says what they show")
        flag = "--train_labels" if lower_labels is None else "--lower_labels"
        kind = intensity.preset(lower_preset)
        sources.append(Source("lower", lower_images, lower_labels or train_labels, kind, flag))
    if upper_images is not None:
        if upper_labels is None:
            raise InputError("--upper_images needs --upper_labels, their label maps")
        sources.append(Source("upper", upper_images, upper_labels, real, "--upper_labels"))
    tests = pairs.by_name(test_images, real.modality)
    truths = pairs.by_name(test_labels)
    if tests.keys().isdisjoint(truths):
        names = f"{min(tests)}, .. and {min(truths)}, .."
        raise InputError(f"{test_images}: no name pairs with one of {test_labels}: {names}")
    _check_apart(sources, tests, told.learnt)

    with disk.folder(out) as folder, tempfile.TemporaryDirectory(dir=folder) as scratch:
        wanted = {"axis": axis, "spacing": spacing, "size": size}
        stores, grid, failed = _prepared(sources, Path(scratch), wanted)
        segmenter.check_size(grid.size)
        present = {"--test_labels": _labels_among(truths[name] for name in tests.keys() & truths)}
        for source in sources:
            there = _labels_of(stores[source.method])
            present[source.flag] = present.get(source.flag, there) & there
        labels = [0, *_common(present, classes)]

        # Train and test.
        numbers = range(seed, seed + seeds)
        networks = _trained(sources, stores, labels, images, batch, numbers, runs)
        (folder / "weights").mkdir()
        for network in networks:
            network.save(folder / "weights" / f"{_called(network)}.safetensors")
        found, bad = _tested(tests, truths, real, networks, folder, mesh)
        failed += bad
        if not found:
            raise InputError(
                f"{test_images}: none of {len(tests)} volumes could be tested: {bad[0][1]}"
            )

        # Summarise and write.
        whose = {name: scan.subject for name, scan in tests.items()}
        data = records.subjects(dict.fromkeys(score.subject for score in found), whose)
        data |= {"source preset": told.source, "target preset": told.preset.name}
        data |= _described(sources, stores, networks, batch, seed)
        data |= scores.by_seed(found) | scores.undefined(found)
        data |= {"failed": [reason for _, reason in failed]} if failed else {}
        rows = scores.over_seeds(found)
        metrics = {
            "schema": records.SCHEMA,
            "notice": NOTICE,
            "command": _command(given),
            "versions": records.versions(),
            "data": data,
            "methods": records.summarise(rows, seed, whose),
        }
        records.write(folder, metrics, rows)
        scores.write(folder / "seeds.csv", found)
        # Their weights are in weights/ by now.
        shutil.copytree(runs, folder / "runs", ignore=lambda *_: ("checkpoints", run.LOCK))
    shutil.rmtree(runs)
    return Segmentation(metrics, failed)


# ----------------------------------------------------------------------------------------------
# Reading
# ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Told:
    """What is said of the translations.

    Attributes:
      preset: of their intensities.
      source: name of the preset of what was translated, as far as sidecars say.
      learnt: digests of the subjects that their model was trained on, likewise.
    """

    preset: Preset
    source: str | None
    learnt: frozenset[str]


def _told(images, name: str | None) -> _Told:
    """What is said of a folder of translations: by sidecars, and the preset of that name."""
    scans = pairs.by_name(images, name and intensity.preset(name).modality)
    beside = [sidecar for sidecar in map(sidecars.read, scans.values()) if sidecar is not None]
    known = {sidecar.settings.target.name for sidecar in beside}
    if name is None and len(known) != 1:
        raise InputError(f"{images}: --preset must say what the intensities are; sidecars do not")
    if name is not None and known - {name}:
        raise InputError(f"--preset={name}, but the sidecars say {min(known - {name})}")
    origins = {sidecar.settings.source.name for sidecar in beside}
    return _Told(
        intensity.preset(name or known.pop()),
        origins.pop() if len(origins) == 1 else None,
        frozenset().union(*(sidecar.training_subjects for sidecar in beside)),
    )


def _check_apart(sources: list[Source], tests: dict[str, Scan], learnt: frozenset[str]) -> None:
    """InputError for a test subject that is among those that anything was trained on."""
    for source in sources:
        scans = pairs.by_name(source.images, source.preset.modality).values()
        trained_on = {scan.subject: scan.path for scan in scans}
        for scan in tests.values():
            if scan.subject in trained_on:
                raise InputError(
                    f"{scan.path}: the subject {scan.subject!r} is trained on too, as "
                    f"{trained_on[scan.subject]}; leave it out of one"
                )
    for scan in tests.values():
        if filenames.subject_digest(scan.subject) in learnt:
            raise InputError(
                f"{scan.path}: the model of the translations was trained on the subject "
                f"{scan.subject!r}; leave it out"
            )


def _prepared(
    sources: list[Source], folder: Path, wanted: dict
) -> tuple[dict[str, Store], Grid, list[tuple[Path, str]]]:
    """A store of each source by its method, the grid of them all, and what was left out.

    The grid is the one wanted; what that leaves open, the first source decides.
    """
    stores, grid, failed = {}, None, []
    for source in sources:
        path = folder / source.method
        wanted = wanted if grid is None else dataclasses.asdict(grid)
        try:
            result = prepare(
                source.images,
                path,
                source.preset.name,
                labels=source.labels,
                validation=0.0,
                **wanted,
            )
        except InputError as error:
            raise InputError(str(error).replace("--labels", source.flag)) from None
        failed += [(path, text.replace("--labels", source.flag)) for path, text in result.failed]
        stores[source.method], grid = open_store(path), result.grid
    return stores, grid, failed


def _labels_of(store: Store) -> set[int]:
    """Labels that a segmenter can learn of a store."""
    return set(np.unique(store.labels[store.rows("train")]).tolist()) - {0}


def _labels_among(scans: Iterable[Scan]) -> set[int]:
    """Labels of label maps; those that cannot be read are reported when their turn comes."""
    found = set()
    for scan in scans:
        with contextlib.suppress(InputError):
            found |= set(np.unique(scan.read(labels=True).array).astype(int).tolist())
    return found - {0}


def _common(present: dict[str, set[int]], wanted: list[int] | None) -> list[int]:
    """The labels to learn, which all sets have; InputError for one that a set has not.

    Args:
      present: labels of each set, by the flag that it was given by.
      wanted: None for all.
    """
    labels = sorted(set(wanted) if wanted is not None else set().union(*present.values()))
    common = sorted(set.intersection(*present.values()))
    for label in labels:
        lacking = [flag for flag, there in present.items() if label not in there]
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
    sources: list[Source],
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
            ours = run.begin(segmentation.configured(seed, shown, batch), store, tuple(labels))
            params = _weights(ours, store, runs / f"{source.method}_{seed}", compiled)
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
    inits = {player: method.players[player].init for player in method.players}
    _, averages = checkpoint.averages(folder, inits, method.mesh)
    return jax.device_get(averages[segmentation.NETWORK])


def _tested(
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
    found, failed, drawn = [], [], 0
    (folder / "panels").mkdir()
    for network in networks:
        (folder / "predictions" / _called(network)).mkdir(parents=True)
    for name, scan in tqdm(tests.items(), desc="test", unit="volume", disable=None):
        try:
            case = testing.read(scan, truths, preset, grid, labels)
        except InputError as error:
            failed.append((scan.path, str(error)))
            continue
        pictures = {}
        for network in networks:
            probabilities = network.probabilities(case.images, mesh)
            labelled = trained.label_map(probabilities, labels, case.resampling)
            path = folder / "predictions" / _called(network) / f"{scan.stem}.nii.gz"
            io.write(path, labelled, case.volume, dtype)
            reached = case.scores(labelled)
            found.append(scores.Score(name, network.method, network.seed, reached))
            pictures.setdefault(network.method, probabilities.argmax(-1))
        found.append(scores.Score(name, GRID, None, case.scores(case.ceiling())))
        if drawn < PANELS:
            picture = figures.png(case.panel(pictures, f"{name} · {NOTICE}"))
            (folder / "panels" / f"{name}.png").write_bytes(picture)
            drawn += 1
    return found, failed


def _called(network: Trained) -> str:
    """The name of what belongs to a network."""
    return f"{network.method}_{network.seed}"


# ----------------------------------------------------------------------------------------------
# What is said of it
# ----------------------------------------------------------------------------------------------


def _described(
    sources: list[Source],
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
            source.method: f"{len(stores[source.method].subjects('train'))} subjects, "
            f"{len(stores[source.method].rows('train'))} slices, preset {source.preset.name}, "
            f"{next(n.images for n in networks if n.method == source.method)} images"
            for source in sources
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
        "interval": f"{bootstrap.LEVEL:.0%} percentile bootstrap of the mean over subjects, "
        f"{bootstrap.RESAMPLES} resamples, seed {seed}",
    }


def _command(given: dict) -> str:
    """The command line of the arguments that were given."""
    words = ["contourdiff", "segment"]
    for name, value in given.items():
        text = ",".join(map(str, value)) if isinstance(value, list) else value
        words.append(f"--{name}={text}")
    return shlex.join(words)
