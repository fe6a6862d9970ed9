# SPDX-License-Identifier: Apache-2.0
"""Memorisation: how near translations come to the slices that the model was trained on.

Every slice is compared with all training slices of a store and their mirror images, which training
shows too. Real slices that the model has not seen are compared in the same way, for a slice is near
some other head's by itself: the truth where it is given, for it shows the same anatomy, else what
the store holds out.

Shapes: N slices of P x P pixels, in the model's range.
"""

import csv
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from contourdiff_jax import figures
from contourdiff_jax.data.layouts.scans import Scan
from contourdiff_jax.data.store import Store, open_store
from contourdiff_jax.errors import InputError
from contourdiff_jax.evaluation.metrics import bootstrap, nearest
from contourdiff_jax.evaluation.scores import LEAST_BODY
from contourdiff_jax.translation.sidecars import Settings, Sidecar
from contourdiff_jax.volumes import filenames
from contourdiff_jax.volumes.masks import body_mask

SIDE = 64  # pixels that slices are averaged to, where they have more
LOW = 0.05  # share of the real slices' ratios that are called low
SHOWN = 6  # pairs in the figure, of each method
COLUMNS = ("method", "subject", "slice", "distance", "ratio", "store_row", "mirrored")


@dataclasses.dataclass(frozen=True)
class Slices:
    """Those that show a body: [N, P, P], the subject of each and its number along the axis."""

    pictures: np.ndarray
    subjects: np.ndarray
    numbers: np.ndarray


@dataclasses.dataclass(frozen=True)
class Memorisation:
    """Metrics of every method, how they came about in words, and what could not be read.

    Attributes:
      methods: {method: {metric: {"value", "low", "high", "n"}}}.
      data: for the record.
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


def measure(
    path,
    translated: dict[str, Scan],
    sidecars: dict[str, Sidecar | None],
    truth: dict[str, Scan] | None,
    settings: Settings,
    seed: int = 0,
) -> Memorisation:
    """Distances of translations from the training slices of the store at `path`.

    Args:
      translated, sidecars: by name, of what is scored.
      truth: by name, where they are given.
      settings: of the translation.
      seed: of the bootstrap.

    Raises InputError for a store that the translations' model was not trained on.
    """
    store, failed = _opened(path, translated, sidecars, settings), []
    windows = {name: sidecar and sidecar.window for name, sidecar in sidecars.items()}
    ours = _of_scans(translated, windows, store, failed)
    if truth is not None:
        reference, usual = "truth", {n: scan for n, scan in truth.items() if n in translated}
        usual = _of_scans(usual, {}, store, failed)
    else:
        reference, usual = "real", _held_out(store)
    for name, slices in (("translated", ours), (reference, usual)):
        if not len(slices.numbers):
            why = f": {failed[-1][1]}" if failed else ""
            raise InputError(f"--memorisation: no slice of what is {name} shows a body{why}")

    seen = [_training(store, subject) for subject in store.subjects("train")]
    seen = [rows for rows in seen if rows.size]
    both = np.concatenate(
        [slices.pictures.reshape(len(slices.numbers), -1) for slices in (ours, usual)]
    )
    found = nearest.neighbours(both, _groups(store, seen))
    parts = np.split(np.arange(len(both)), [len(ours.numbers)])
    sides = {
        name: (slices, nearest.Neighbours(*(values[part] for values in found)))
        for name, slices, part in zip(("translation", reference), (ours, usual), parts, strict=True)
    }
    return Memorisation(
        _compared(sides, reference, len(seen) > 1, seed),
        _described(store, seen, ours.pictures.shape[1], reference),
        [row for name, side in sides.items() for row in _rows(name, *side, seen)],
        _figure(store, sides, seen),
        failed,
    )


# ----------------------------------------------------------------------------------------------
# Slices
# ----------------------------------------------------------------------------------------------


def _opened(path, translated: dict[str, Scan], sidecars: dict, settings: Settings) -> Store:
    """The store, after a look at whether it is the one that the model was trained on."""
    store = open_store(path)
    subjects = store.subjects("train")
    if not subjects:
        raise InputError(f"{path}: no training subjects, so nothing that could be remembered")
    if store.preset.name != settings.target.name:
        raise InputError(
            f"{path}: of preset {store.preset.name}, the translations are {settings.target.name}; "
            f"give the store that the run was trained on"
        )
    digests = {filenames.subject_digest(subject) for subject in subjects}
    for name, sidecar in sidecars.items():
        if sidecar is None:
            if translated[name].subject in subjects:
                raise InputError(
                    f"{translated[name].path}: the subject {translated[name].subject!r} is among "
                    f"the training subjects of {path}; leave it out"
                )
        elif sidecar.settings.grid != store.grid or sidecar.training_subjects != digests:
            raise InputError(
                f"{path}: not the store that {translated[name].path.name} comes from: it has "
                f"another grid, or other training subjects"
            )
    return store


def _of_scans(scans: dict[str, Scan], windows: dict, store: Store, failed: list) -> Slices:
    """The slices of volumes on the store's grid, through their windows or their own."""
    pictures, subjects, numbers = [], [], []
    for name, scan in tqdm(scans.items(), desc="nearest", unit="volume", disable=None):
        try:
            volume = scan.read().even()
            window = windows.get(name) or store.preset.window_of(volume)
        except InputError as error:
            failed.append((scan.path, str(error)))
            continue
        resampling = store.grid.fit(volume.array.shape, volume.affine)
        body = body_mask(volume.array, volume.affine, store.preset.modality)
        shown = np.flatnonzero(resampling.masks(body).mean((1, 2)) >= LEAST_BODY)
        values = store.preset.values(volume.array, window)
        slices = resampling.slices(values, store.preset.air)[shown]
        pictures.append(_small(store.preset.image.unit(slices)))
        subjects += [name] * len(shown)
        numbers.append(shown)
    side = min(SIDE, store.grid.size)
    empty = [np.empty((0, side, side), np.float32)], [np.empty(0, int)]
    return Slices(
        np.concatenate(pictures or empty[0]),
        np.array(subjects),
        np.concatenate(numbers or empty[1]),
    )


def _held_out(store: Store) -> Slices:
    """The slices of a store that training leaves out."""
    rows = np.concatenate([_shown(store, store.rows(split)) for split in ("val", "test")])
    if not rows.size:
        raise InputError(
            f"{store.path}: holds no subject out to compare with; give --truth, or prepare with "
            f"--validation"
        )
    columns = (store.index[name][rows] for name in ("subject", "slice"))
    return Slices(_pictures(store, rows), *columns)


def _training(store: Store, subject: str) -> np.ndarray:
    """Numbers of a training subject's slices."""
    rows = store.rows("train")
    return _shown(store, rows[store.index["subject"][rows] == subject])


def _shown(store: Store, rows: np.ndarray) -> np.ndarray:
    """Those of the slices that show a body."""
    return np.array([row for row in rows if store.masks[row].mean() >= LEAST_BODY], int)


def _groups(store: Store, seen: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Each subject's slices and their mirror images, [2M, D]."""
    for rows in tqdm(seen, desc="training slices", unit="subject", disable=None):
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


def _compared(sides: dict, reference: str, several: bool, seed: int) -> dict[str, dict]:
    """The metrics of both sides; ratios where there are several training subjects."""
    kinds = {"memory_distance": "distance"} | ({"memory_ratio": "ratio"} if several else {})
    methods = {}
    for method, (slices, found) in sides.items():
        methods[method] = {
            metric: _mean(getattr(found, kind), slices.subjects, seed)
            for metric, kind in kinds.items()
        }
    (ours, found), (usual, known) = sides["translation"], sides[reference]
    for metric, kind in zip(("memory_closer", "memory_closer_ratio"), kinds.values(), strict=False):
        compared = (getattr(found, kind), ours.subjects, getattr(known, kind), usual.subjects)
        methods["translation"][metric] = nearest.nearer(*compared, seed)
    if several:
        low = found.ratio < np.quantile(known.ratio, LOW)
        methods["translation"]["memory_low_ratios"] = _mean(low, ours.subjects, seed)
    return methods


def _mean(values: np.ndarray, subjects: np.ndarray, seed: int) -> dict:
    means = [values[subjects == subject].mean() for subject in np.unique(subjects)]
    return bootstrap.interval(means, seed)


def _described(store: Store, seen: list, side: int, reference: str) -> dict:
    whose = "the truth" if reference == "truth" else "the subjects that the store holds out"
    return {
        "memorisation": f"{sum(map(len, seen))} training slices of {len(seen)} subjects and their "
        f"mirror images; root mean square difference in the model's range, -1 to 1, of slices "
        f"averaged to {side} x {side} px; slices with at least {LEAST_BODY:.0%} of body; "
        f"real slices that were not seen: of {whose}"
    }


def _rows(method: str, slices: Slices, found: nearest.Neighbours, seen: list) -> Iterator[tuple]:
    of_each = zip(slices.subjects, slices.numbers, *found[:3], found.ratio, strict=True)
    for subject, number, distance, group, other, ratio in of_each:
        row, mirrored = seen[group][other % len(seen[group])], int(other >= len(seen[group]))
        yield method, subject, number, f"{distance:.6g}", f"{ratio:.6g}", row, mirrored


# ----------------------------------------------------------------------------------------------
# Showing
# ----------------------------------------------------------------------------------------------


def _figure(store: Store, sides: dict, seen: list) -> Figure:
    """For each method the lowest ratio of each of some subjects: the slice, and what is nearest."""
    chosen = {method: _lowest(*side) for method, side in sides.items()}
    across = max(map(len, chosen.values()))
    size = (figures.CELL * across + 0.4, 2 * len(sides) * (figures.CELL + 0.2))
    figure = Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02)
    axes = figure.subplots(2 * len(sides), across, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for pair, (method, (slices, found)) in zip(
        axes.reshape(-1, 2, across), sides.items(), strict=True
    ):
        for line, title in zip(pair, (method, "nearest in training"), strict=True):
            line[0].set_ylabel(title, fontsize=9)
        for column, number in enumerate(chosen[method]):
            rows = seen[found.group[number]]
            twin = _pictures(store, rows[[found.number[number] % len(rows)]])[0]
            twin = twin[:, ::-1] if found.number[number] >= len(rows) else twin
            for axis, picture in zip(pair[:, column], (slices.pictures[number], twin), strict=True):
                axis.imshow(picture, cmap="gray", vmin=-1, vmax=1)
            title = f"{slices.subjects[number]}, slice {slices.numbers[number]}"
            pair[0, column].set_title(title, fontsize=8)
            text = f"distance {found.distance[number]:.3f}, ratio {found.ratio[number]:.2f}"
            pair[1, column].set_title(text, fontsize=8)
    return figure


def _lowest(slices: Slices, found: nearest.Neighbours) -> list[int]:
    """The slice of lowest ratio of each of the SHOWN subjects that have the lowest."""
    chosen = {}
    for number in np.lexsort((found.distance, found.ratio)):
        chosen.setdefault(slices.subjects[number], number)
    return list(chosen.values())[:SHOWN]
