# SPDX-License-Identifier: Apache-2.0
"""Stores: a folder of prepared slices that training reads at random.

    STORE/dataset.json   schema version, modality, preset, grid, version of the tool, the sha256 of
                         every other file, in a paired store how well the pairs fit
                         (sources.py), and a digest of all that
    STORE/index.csv      one line a slice: subject, volume, slice, position, split, source, sha256,
                         window_low, window_high
    STORE/slices.npy     [N, H, W] uint16, values through the preset's storage window
    STORE/masks.npy      [N, H, W] uint8, 1 inside the body
    STORE/sources.npy    [N, H, W] uint16, in a paired store: the same slices of the source, through
                         the storage window of a preset of its own
    STORE/source_masks.npy   [N, H, W] uint8, likewise: 1 inside the body there
    STORE/labels.npy     [N, H, W] uint16, if the volumes have label maps
    STORE/contours.npy   [N, H, W] uint8, 1 on a contour, if they are taken at native pixels
    STORE/pictures.npy   [N, H, W] uint8, pictures in which contours are sought, if they are made of
                         the volumes' own voxels; other contours are sought in slices.npy

`volume` counts the volumes from 0, `slice` the slices of one volume from 0, of which some may be
missing where their source is, `position` is in mm
along the slicing axis, `source` is the file's name without its folder, the window is the volume's
own in native units. Nothing else of a file's header is kept. Splits are 'train', 'val' and 'test',
by subject. The folder is written under a temporary name and renamed when it is whole.
"""

import contextlib
import csv
import dataclasses
import threading
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

import contourdiff_jax
from contourdiff_jax.contours import opencv
from contourdiff_jax.contours.settings import ContourSettings
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk, forms, ownership
from contourdiff_jax.volumes import intensity
from contourdiff_jax.volumes.grid import Grid
from contourdiff_jax.volumes.intensity import Preset, Window
from contourdiff_jax.volumes.volume import UNKNOWN, Assumed

SCHEMA = 1
MADE = "a store"  # by which the folder of one is known
SPLITS = ("train", "val", "test")
PREPARE = "prepare the store again"

# The type of every column of the index, in the order of the file.
COLUMNS = {
    "subject": str,
    "volume": int,
    "slice": int,
    "position": float,
    "split": str,
    "source": str,
    "sha256": str,
    "window_low": float,
    "window_high": float,
}
FORM = {  # of dataset.json
    "preset": str,
    "grid": Grid,
    "labels": bool,
    "contours?": ContourSettings | None,
    "source_preset?": str | None,
    "sha256?": dict[str, str],
    "assumed?": Assumed,  # of pictures
    "pairs?": {  # see sources.Pairs and sources.Fit
        "assumed?": Assumed,
        **{"overlap": float, "shift": float, "register": str | None},
        **{"fits": tuple[dict[str, object], ...], "left_out?": int},
    },
}
ARRAYS = {
    "slices": np.uint16,
    "masks": np.uint8,
    "sources": np.uint16,
    "source_masks": np.uint8,
    "labels": np.uint16,
    "contours": np.uint8,
    "pictures": np.uint8,
}


class Stack:
    """Slices [N, ..] in a file, read when they are indexed as those of an array are.

    They are not mapped into memory: the system ends a process that reads where a mapped file has
    been cut short.
    """

    def __init__(self, path: Path, mapped: np.memmap, remedy: str = "prepare again"):
        self.path, self.shape, self.dtype = path, mapped.shape, mapped.dtype
        self._remedy = remedy
        self._start, self._lock = mapped.offset, threading.Lock()
        self._file = path.open("rb", buffering=0)
        weakref.finalize(self, self._file.close)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows) -> np.ndarray:
        """The slices with those numbers; InputError where the file has no more what it had."""
        numbers = np.arange(len(self))[rows]
        found = np.empty((*np.shape(numbers), *self.shape[1:]), self.dtype)
        for number, into in zip(np.ravel(numbers), found.reshape(-1, *self.shape[1:]), strict=True):
            with disk.reading(self.path), self._lock:
                self._file.seek(self._start + int(number) * into.nbytes)
                if self._file.readinto(into) < into.nbytes:
                    raise InputError(f"{self.path}: cut short since it was opened; {self._remedy}")
        return found


@dataclasses.dataclass(frozen=True)
class Store:
    """An opened store."""

    path: Path
    slices: Stack  # [N, H, W] uint16
    masks: Stack  # [N, H, W] uint8, 0 or 1
    sources: Stack | None  # [N, H, W] uint16, of a paired store
    source_masks: Stack | None  # [N, H, W] uint8, 0 or 1
    labels: Stack | None  # [N, H, W] uint16
    contours: Stack | None  # [N, H, W] uint8, 0 or 1
    pictures: Stack | None  # [N, H, W] uint8
    contour_settings: ContourSettings | None  # those whose basis was kept
    index: dict[str, np.ndarray]  # column name -> [N]
    dataset: dict  # what dataset.json holds, by FORM
    preset: Preset
    source_preset: Preset | None  # of sources
    grid: Grid

    def __len__(self) -> int:
        return len(self.slices)

    def rows(self, split: str) -> np.ndarray:
        """Numbers [n] of the slices of a split, in the order of the store."""
        if split not in SPLITS:
            raise InputError(f"no split {split!r}; known: {', '.join(SPLITS)}")
        return np.flatnonzero(self.index["split"] == split)

    def subjects(self, split: str | None = None) -> list[str]:
        """Names of the subjects of a split, or of all, sorted."""
        names = self.index["subject"]
        return sorted({str(name) for name in (names if split is None else names[self.rows(split)])})

    def values(self, rows) -> np.ndarray:
        """Values [n, H, W] float32 of the slices with those numbers."""
        return self.preset.decode(self.slices[rows])

    def source_images(self, rows) -> np.ndarray:
        """The source's [n, H, W] in the model's [-1, 1], air outside its body; of paired stores."""
        values = self.source_preset.decode(self.sources[rows])
        return self.source_preset.in_body(values, self.source_masks[rows])

    def kept(self, settings: ContourSettings) -> Stack | None:
        """What was kept of the volumes' own voxels for these settings, [N, H, W] uint8, if any.

        They must be settings that are `served_by` those of the store.
        """
        return getattr(self, settings.basis) if settings.of_voxels else None

    def greys_of(self, rows, settings: ContourSettings) -> np.ndarray:
        """The picture [n, H, W] in [0, 1] in which contours of settings with one are sought."""
        kept = self.kept(settings)
        return opencv.picture(self.values(rows) if kept is None else kept[rows], settings)

    def contours_of(self, rows, settings: ContourSettings) -> np.ndarray:
        """Contours [n, H, W] uint8 of the slices with those numbers, see `kept`."""
        kept = self.kept(settings)
        basis = self.values(rows) if kept is None else kept[rows]
        return opencv.of_basis(basis, self.masks[rows], settings)

    def median_window(self) -> Window:
        """Median over the training volumes of their windows in native units.

        It gives translated volumes, which have no window of their own, plausible units.
        """
        rows = self.rows("train")
        if not rows.size:
            raise InputError(f"{self.path}: no slice belongs to the split 'train'")
        _, first = np.unique(self.index["volume"][rows], return_index=True)
        low, high = (
            float(np.median(self.index[column][rows[first]]))
            for column in ("window_low", "window_high")
        )
        with forms.naming(self.path / "index.csv", PREPARE):
            return Window(low, high)


# --------------------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------------------


def open_store(path: str | Path) -> Store:
    """Opens a store and checks that its parts agree; InputError where they do not."""
    path = Path(path)
    file = path / "dataset.json"
    if not file.is_file():
        raise InputError(f"{path}: not a store (it has no dataset.json); make one with `prepare`")
    ownership.check_finished(path, PREPARE)
    dataset = forms.read(file, FORM, PREPARE, SCHEMA)
    with forms.naming(file, PREPARE):
        preset = intensity.preset(dataset["preset"])
        source = dataset.get("source_preset")
        source_preset = None if source is None else intensity.preset(source)
    grid, settings = dataset["grid"], dataset.get("contours")
    index = _read_index(path / "index.csv")
    count = len(index["subject"])
    arrays = dict.fromkeys(ARRAYS)
    for name in _names(dataset["labels"], settings, source_preset):
        arrays[name] = _open_stack(path / f"{name}.npy", (count, grid.size, grid.size))
    return Store(
        path=path,
        contour_settings=settings,
        index=index,
        dataset=dataset,
        preset=preset,
        source_preset=source_preset,
        grid=grid,
        **arrays,
    )


def verify(store: Store) -> bool:
    """Whether a store's files are known to be as they were prepared, by reading all of them.

    False is for stores of earlier versions, which have no digests.

    Raises:
      InputError: a file that differs, a flipped bit for one.
    """
    digests = store.dataset.get("sha256")
    for name, digest in (digests or {}).items():
        if disk.sha256(store.path / name) != digest:
            raise InputError(
                f"{store.path / name}: damaged, not as it was prepared; restore the store from a "
                "copy, or prepare it again"
            )
    return digests is not None


def _names(labels: bool, contours: ContourSettings | None, source: Preset | None) -> list[str]:
    """Names of the arrays that a store has."""
    has = {"slices": True, "masks": True, "labels": labels}
    has |= dict.fromkeys(("sources", "source_masks"), source is not None)
    if contours is not None:
        has[contours.basis] = True
    return [name for name in ARRAYS if has.get(name)]


def _read_index(file: Path) -> dict[str, np.ndarray]:
    try:
        with file.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
            reader = csv.DictReader(stream)
            rows = list(reader)
        if reader.fieldnames != list(COLUMNS):
            raise InputError(f"{file}: the columns must be {', '.join(COLUMNS)}; prepare again")
        index = {
            name: np.array([kind(row[name]) for row in rows], kind)
            for name, kind in COLUMNS.items()
        }
        if not all(np.isfinite(column).all() for column in index.values() if column.dtype == float):
            raise ValueError("a number in it is not finite")
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{file}: cannot be read: {disk.reason(error)}; prepare the store again"
        ) from error
    unknown = sorted(set(index["split"].tolist()) - set(SPLITS))
    if unknown:
        raise InputError(f"{file}: unknown split {unknown[0]!r}; known: {', '.join(SPLITS)}")
    return index


def _open_stack(file: Path, shape: tuple[int, int, int]) -> Stack:
    try:
        stack = Stack(file, np.load(file, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"{file}: missing or damaged ({disk.reason(error)}); prepare again"
        ) from error
    dtype = np.dtype(ARRAYS[file.stem])
    if stack.shape != shape or stack.dtype != dtype:
        raise InputError(
            f"{file}: holds {stack.dtype} {stack.shape}, but index and grid say {dtype} {shape}; "
            "prepare again"
        )
    return stack


# --------------------------------------------------------------------------------------------------
# Writing
# --------------------------------------------------------------------------------------------------


class StoreWriter:
    """Writes a store volume by volume, in memory that does not grow with the slices.

    with StoreWriter(path, preset, grid) as writer:
        writer.add(...)
        writer.finish(splits)

    Without `finish`, or after an error, nothing is left behind.
    """

    def __init__(
        self,
        path,
        preset: Preset,
        grid: Grid,
        *,
        labels: bool = False,
        contours: ContourSettings | None = None,
        source_preset: Preset | None = None,
        assumed: Assumed = UNKNOWN,
        overwrite: bool = False,
    ):
        self.path = Path(path)
        self.preset = preset
        self.grid = grid
        self.source_preset = source_preset
        self._names = _names(labels, contours, source_preset)
        self._contours = contours
        self._assumed = assumed
        self._overwrite = overwrite
        self._files = {}
        self._rows = []  # the index, without its splits
        self._volumes = 0

    def __enter__(self) -> "StoreWriter":
        with contextlib.ExitStack() as left, disk.writing(self.path):
            ownership.check_is_free(self.path, MADE, self._overwrite)
            self._partial = left.enter_context(disk.part(self.path.resolve()))
            self._partial.mkdir()
            left.callback(self._close)
            for name in self._names:
                self._files[name] = (self._partial / f"{name}.npy").open("wb")
                self._write_header(name)
            self._left = left.pop_all()
        return self

    def __exit__(self, *_) -> None:
        self._left.close()

    def _close(self) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):  # on a full disk the buffer cannot be written either
                file.close()

    def __len__(self) -> int:
        """Slices added so far."""
        return len(self._rows)

    @property
    def subjects(self) -> list[str]:
        """Names of the subjects added so far, sorted."""
        return sorted({row["subject"] for row in self._rows})

    def add(
        self,
        subject: str,
        values: np.ndarray,
        masks: np.ndarray,
        *,
        positions: Iterable[float],
        window: Window,
        source: str,
        sha256: str,
        labels: np.ndarray | None = None,
        basis: np.ndarray | None = None,
        sources: np.ndarray | None = None,
        source_masks: np.ndarray | None = None,
        numbers: Iterable[int] | None = None,
    ) -> None:
        """Appends the slices of one volume.

        Args:
          subject: whose volume it is; its split follows the subject.
          values: [N, H, W] float32 in the preset's units.
          masks: [N, H, W] bool.
          positions: [N] mm along the slicing axis.
          window: the volume's window in native units.
          source: the file's name.
          sha256: of the file.
          labels: [N, H, W] whole numbers, in a store with labels.
          basis: [N, H, W] what contours are computed from (opencv.basis), in a store with that.
          sources: [N, H, W] float32 in the source preset's units, in a paired store.
          source_masks: [N, H, W] bool, likewise.
          numbers: [N] of the slices in the volume, where some are left out.
        """
        arrays = {
            "slices": self.preset.encode(values),
            "masks": masks,
            "labels": labels,
            "source_masks": source_masks,
        }
        if self.source_preset is not None:
            arrays["sources"] = self.source_preset.encode(sources)
        if self._contours is not None:
            arrays[self._contours.basis] = basis
        for name in self._names:
            array = np.ascontiguousarray(arrays[name], ARRAYS[name])
            if array.shape != (len(values), self.grid.size, self.grid.size):
                raise ValueError(f"{name} of shape {array.shape} on a grid of {self.grid.size} px")
            with disk.writing(self.path):
                self._files[name].write(array.data)
        numbers = range(len(values)) if numbers is None else numbers
        for number, position in zip(numbers, positions, strict=True):
            self._rows.append(
                {
                    "subject": subject,
                    "volume": self._volumes,
                    "slice": int(number),
                    "position": round(float(position), 4),
                    "source": source,
                    "sha256": sha256,
                    "window_low": window.low,
                    "window_high": window.high,
                }
            )
        self._volumes += 1

    def finish(self, splits: Mapping[str, str], pairs: Mapping | None = None) -> None:
        """Completes the store, and gives it its name.

        Args:
          splits: of every subject.
          pairs: what dataset.json is to say of a paired store's pairs.
        """
        with disk.writing(self.path):
            for name in self._names:
                self._write_header(name)
                self._files[name].close()
            # A file name that is not valid UTF-8 travels as it is.
            with (self._partial / "index.csv").open(
                "w", newline="", encoding="utf-8", errors="surrogateescape"
            ) as stream:
                writer = csv.DictWriter(stream, list(COLUMNS))
                writer.writeheader()
                writer.writerows({**row, "split": splits[row["subject"]]} for row in self._rows)
            disk.write_json(self._partial / "dataset.json", forms.sealed(self._dataset(pairs)))
            ownership.settle(self._partial, self.path, MADE, self._overwrite)

    def _dataset(self, pairs: Mapping | None) -> dict:
        told = {} if pairs is None else {"pairs": pairs}
        if self._assumed != UNKNOWN:
            told["assumed"] = self._assumed.to_dict()
        return told | {
            "schema": SCHEMA,
            "modality": self.preset.modality,
            "preset": self.preset.name,
            "grid": self.grid.to_dict(),
            "labels": "labels" in self._names,
            "contours": None if self._contours is None else self._contours.to_dict(),
            "source_preset": None if self.source_preset is None else self.source_preset.name,
            "version": contourdiff_jax.__version__,
            "sha256": {path.name: disk.sha256(path) for path in sorted(self._partial.iterdir())},
        }

    def _write_header(self, name: str) -> None:
        """Writes the .npy header for the rows so far; numpy leaves room in it for them to grow."""
        header = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(ARRAYS[name])),
            "fortran_order": False,
            "shape": (len(self._rows), self.grid.size, self.grid.size),
        }
        self._files[name].seek(0)
        np.lib.format.write_array_header_1_0(self._files[name], header)
