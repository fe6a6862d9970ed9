# SPDX-License-Identifier: Apache-2.0
"""Memorisation: how near translations come to the slices that the model was trained on.

Every slice is compared with all training slices of a store and with their mirror images, which
training shows too. Slices of two heads resemble each other anyway, and so real slices that the
model has not seen are compared in the same way: those of the truth, which show the same anatomy,
or without one those of the subjects that the store holds out.

Shapes: N slices of P x P pixels, in the model's range.
"""

import csv
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from contourdiff_jax import figures
from contourdiff_jax.data import pseudonyms
from contourdiff_jax.data.layouts.scans import Scan
from contourdiff_jax.data.store import Store, open_store
from contourdiff_jax.errors import InputError
from contourdiff_jax.evaluation import records
from contourdiff_jax.evaluation.cases import Translations
from contourdiff_jax.evaluation.metrics import bootstrap, nearest
from contourdiff_jax.evaluation.metrics.nearest import Neighbours
from contourdiff_jax.evaluation.scores import LEAST_BODY
from contourdiff_jax.volumes import io
from contourdiff_jax.volumes.masks import body_mask

SIDE = 64  # pixels that slices are averaged to, where they have more
LOW = 0.05  # share of the real slices' ratios that are called low
SHOWN = 6  # pairs in the figure, of each method
# Of nearest.csv; the subject is its scan, where any has several.
COLUMNS = ("method", "subject", "slice", "distance", "ratio", "store_row", "mirrored")


@dataclasses.dataclass(frozen=True)
class Slices:
    """Slices that show a body.

    Attributes:
      pictures: [N, P, P].
      scans, subjects: [N] names of the scan and of the subject of each.
      numbers: [N] along the axis of its scan.
    """

    pictures: np.ndarray
    scans: np.ndarray
    subjects: np.ndarray
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)


class Side(NamedTuple):
    """Slices with their nearest neighbours among the training slices."""

    slices: Slices
    neighbours: Neighbours


@dataclasses.dataclass(frozen=True)
class Memorisation:
    """How near every method comes.

    Attributes:
      methods: {method: {metric: {"value", "low", "high", "n"}}}.
      data: how it was measured, for the record.
      rows: of nearest.csv.
      figure: the slices that come nearest, beside what they are near to.
      failed: (path, reason).
    """

    methods: dict[str, dict]
    data: dict
    rows: list[tuple]
    figure: Figure
    failed: list[tuple[Path, str]]

    def save(self, folder: Path) -> None:
        """Writes nearest.csv and nearest.png."""
        with (folder / "nearest.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerows([COLUMNS, *self.rows])
        (folder / "nearest.png").write_bytes(figures.png(self.figure))


def measure(path, translations: Translations, seed: int = 0) -> Memorisation:
    """Distances of translations from the training slices of the store at `path`.

    Args:
      translations: compared with their truths, where these are among the partners.
      seed: of the bootstrap.

    Raises InputError for a store that the translations' model was not trained on.
    """
    store, failed = _open_store(path, translations), []
    windows = {name: sidecar and sidecar.window for name, sidecar in translations.sidecars.items()}
    subject_of = {name: scan.subject for name, scan in translations.scans.items()}
    ours = _of_scans(translations.scans, windows, subject_of, store, failed)
    if "truth" in translations.partners:
        truths = translations.partners["truth"].items()
        truths = {name: scan for name, scan in truths if name in subject_of}
        reference, unseen = "truth", _of_scans(truths, {}, subject_of, store, failed)
    else:
        reference, unseen = "real", _held_out(store)
    for name, slices in (("translated", ours), (reference, unseen)):
        if not len(slices):
            why = f": {failed[-1][1]}" if failed else ""
            raise InputError(f"--memorisation: no slice of what is {name} shows a body{why}")

    training = [_training(store, subject) for subject in store.subjects("train")]
    training = [rows for rows in training if rows.size]
    both = np.concatenate([slices.pictures.reshape(len(slices), -1) for slices in (ours, unseen)])
    of_both = nearest.neighbours(both, _groups(store, training))
    of_each = zip(*(np.split(values, [len(ours)]) for values in of_both), strict=True)
    sides = {
        method: Side(slices, Neighbours(*values))
        for method, slices, values in zip(
            ("translation", reference), (ours, unseen), of_each, strict=True
        )
    }
    return Memorisation(
        _compare(sides["translation"], sides[reference], reference, len(training) > 1, seed),
        _description(store, training, ours.pictures.shape[1], reference),
        [row for method, side in sides.items() for row in _rows(method, side, training)],
        _figure(store, sides, training),
        failed,
    )


# ----------------------------------------------------------------------------------------------
# Slices
# ----------------------------------------------------------------------------------------------


def _open_store(path, translations: Translations) -> Store:
    """The store; InputError for one that the model was not trained on."""
    store = open_store(path)
    subjects = store.subjects("train")
    if not subjects:
        raise InputError(f"{path}: no training subjects, so nothing that could be remembered")
    target = translations.settings.target.name
    if store.preset.name != target:
        raise InputError(
            f"{path}: of preset {store.preset.name}, the translations are {target}; give the store "
            f"that the run was trained on"
        )
    for name, sidecar in translations.sidecars.items():
        scan = translations.scans[name]
        if sidecar is None:
            if scan.is_of(pseudonyms.made(subjects)):
                raise InputError(
                    f"{scan.path}: the subject {scan.subject!r} is among the training subjects of "
                    f"{path}; leave it out"
                )
            continue
        scheme = pseudonyms.scheme_of(sidecar.training_subjects)
        learnt = set(pseudonyms.made(subjects, scheme))
        if sidecar.settings.grid != store.grid or sidecar.training_subjects != learnt:
            raise InputError(
                f"{path}: not the store that {scan.path.name} comes from: it has another grid, or "
                f"other training subjects"
            )
    return store


def _of_scans(
    scans: dict[str, Scan], windows: dict, subject_of: dict, store: Store, failed: list
) -> Slices:
    """The slices of volumes on the store's grid.

    Args:
      scans, windows, subject_of: by name; volumes without a window are shown through their own.
      store: with its grid and preset.
      failed: gets (path, reason) of what cannot be read.
    """
    pictures, owners, numbers = [], [], []
    for name, scan in tqdm(scans.items(), desc="nearest", unit="volume", disable=None):
        with io.failures(scan.path, failed):
            volume = scan.read().even()
            window = windows.get(name) or store.preset.window_of(volume)
            resampling = store.grid.fit(volume.array.shape, volume.affine)
            body = body_mask(volume.array, volume.affine, store.preset.modality)
            shown = np.flatnonzero(resampling.masks(body).mean((1, 2)) >= LEAST_BODY)
            values = store.preset.values(volume.array, window)
            slices = resampling.slices(values, store.preset.air)[shown]
            pictures.append(_small(store.preset.image.unit(slices)))
            owners += [(name, subject_of[name])] * len(shown)
            numbers.append(shown)
    side = min(SIDE, store.grid.size)
    return Slices(
        np.concatenate([np.empty((0, side, side), np.float32), *pictures]),
        *np.array(owners, str).reshape(-1, 2).T,
        np.concatenate([np.empty(0, int), *numbers]),
    )


def _held_out(store: Store) -> Slices:
    """The slices of a store that training leaves out."""
    rows = np.concatenate([_with_body(store, store.rows(split)) for split in ("val", "test")])
    if not rows.size:
        raise InputError(
            f"{store.path}: holds no subject out to compare with; give --truth, or "
            "`prepare --validation`"
        )
    subjects, numbers = (store.index[name][rows] for name in ("subject", "slice"))
    return Slices(_pictures(store, rows), subjects, subjects, numbers)


def _training(store: Store, subject: str) -> np.ndarray:
    """Numbers of a training subject's slices."""
    rows = store.rows("train")
    return _with_body(store, rows[store.index["subject"][rows] == subject])


def _with_body(store: Store, rows: np.ndarray) -> np.ndarray:
    """Those of the slices that show a body."""
    return np.array([row for row in rows if store.masks[row].mean() >= LEAST_BODY], int)


def _groups(store: Store, training: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Each subject's slices and their mirror images, [2M, D]."""
    for rows in tqdm(training, desc="training slices", unit="subject", disable=None):
        pictures = _pictures(store, rows)
        yield np.concatenate([pictures, pictures[:, :, ::-1]]).reshape(2 * len(rows), -1)


def _pictures(store: Store, rows) -> np.ndarray:
    return _small(store.preset.image.unit(store.values(rows)))


def _small(pictures: np.ndarray) -> np.ndarray:
    """Pictures [N, H, W] averaged to at most SIDE x SIDE pixels."""
    if pictures.shape[1] <= SIDE:
        return pictures
    size = (SIDE, SIDE)
    small = [cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in pictures]
    return np.array(small, np.float32).reshape(-1, *size)


# ----------------------------------------------------------------------------------------------
# Comparing
# ----------------------------------------------------------------------------------------------


def _compare(ours: Side, unseen: Side, reference: str, ratios: bool, seed: int) -> dict[str, dict]:
    """The metrics of both sides; `ratios` where there are several training subjects."""
    kinds = {"memory_distance": "distance"} | ({"memory_ratio": "ratio"} if ratios else {})
    methods = {
        method: {
            metric: _mean(getattr(side.neighbours, kind), side.slices, seed)
            for metric, kind in kinds.items()
        }
        for method, side in (("translation", ours), (reference, unseen))
    }
    translation = methods["translation"]
    for metric, kind in zip(("memory_closer", "memory_closer_ratio"), kinds.values(), strict=False):
        sides = ((getattr(s.neighbours, kind), s.slices.subjects) for s in (ours, unseen))
        translation[metric] = nearest.nearer(*next(sides), *next(sides), seed)
    if ratios:
        low = ours.neighbours.ratio < np.quantile(unseen.neighbours.ratio, LOW)
        translation["memory_low_ratios"] = _mean(low, ours.slices, seed)
    return methods


def _mean(values: np.ndarray, slices: Slices, seed: int) -> dict:
    """The mean over subjects of a number for each slice, with its interval."""
    scans = {scan: values[slices.scans == scan] for scan in np.unique(slices.scans)}
    means = records.subject_means(scans, dict(zip(slices.scans, slices.subjects, strict=True)))
    return bootstrap.interval(list(means.values()), seed)


def _description(store: Store, training: list, side: int, reference: str) -> dict:
    whose = "the truth" if reference == "truth" else "the subjects that the store holds out"
    return {
        "memorisation": f"{sum(map(len, training))} training slices of {len(training)} subjects "
        f"and their mirror images; root mean square difference in the model's range, -1 to 1, of "
        f"slices averaged to {side} x {side} px; slices with at least {LEAST_BODY:.0%} of body; "
        f"real slices that were not seen: of {whose}"
    }


def _rows(method: str, side: Side, training: list) -> Iterator[tuple]:
    slices, neighbours = side
    of_each = zip(slices.scans, slices.numbers, *neighbours[:3], neighbours.ratio, strict=True)
    for scan, number, distance, group, other, ratio in of_each:
        rows = training[group]
        row, mirrored = rows[other % len(rows)], int(other >= len(rows))
        yield method, scan, number, f"{distance:.6g}", f"{ratio:.6g}", row, mirrored


# ----------------------------------------------------------------------------------------------
# Figure
# ----------------------------------------------------------------------------------------------


def _figure(store: Store, sides: dict[str, Side], training: list) -> Figure:
    """For each method the lowest ratio of each of some subjects: the slice, and what is nearest."""
    chosen = {method: _lowest(side) for method, side in sides.items()}
    across = max(map(len, chosen.values()))
    size = (figures.CELL * across + 0.4, 2 * len(sides) * (figures.CELL + 0.2))
    figure, axes = figures.cells(2 * len(sides), across, size)
    for pair, (method, (slices, neighbours)) in zip(
        axes.reshape(-1, 2, across), sides.items(), strict=True
    ):
        for line, title in zip(pair, (method, "nearest in training"), strict=True):
            line[0].set_ylabel(title, fontsize=9)
        for column, number in enumerate(chosen[method]):
            rows, other = training[neighbours.group[number]], neighbours.number[number]
            twin = _pictures(store, rows[[other % len(rows)]])[0]
            twin = twin[:, ::-1] if other >= len(rows) else twin
            for axis, picture in zip(pair[:, column], (slices.pictures[number], twin), strict=True):
                axis.imshow(picture, cmap="gray", vmin=-1, vmax=1)
            title = f"{slices.scans[number]}, slice {slices.numbers[number]}"
            pair[0, column].set_title(title, fontsize=8)
            distance, ratio = neighbours.distance[number], neighbours.ratio[number]
            text = f"distance {distance:.3f}, ratio {ratio:.2f}"
            pair[1, column].set_title(text, fontsize=8)
    return figure


def _lowest(side: Side) -> list[int]:
    """The slice of lowest ratio of each of the SHOWN subjects that have the lowest."""
    chosen = {}
    for number in np.lexsort((side.neighbours.distance, side.neighbours.ratio)):
        chosen.setdefault(side.slices.subjects[number], number)
    return list(chosen.values())[:SHOWN]
