# SPDX-License-Identifier: Apache-2.0
"""A store is whole or absent, keeps what it was given, and is checked when it is opened."""

import csv
import errno
import json
import os
import tracemalloc

import numpy as np
import pytest

from contourdiff_jax.contours import settings as contour_settings
from contourdiff_jax.data.store import COLUMNS, SCHEMA, StoreWriter, open_store, verify
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime.ownership import MARK
from contourdiff_jax.volumes import intensity
from contourdiff_jax.volumes.grid import Grid
from contourdiff_jax.volumes.intensity import Window

CT = intensity.preset("ct")
GRID = Grid("axial", 1.5, 16)
NATIVE = contour_settings.preset("original", "ct")
SPLITS = {"anna": "train", "bert": "val", "carl": "train"}
WINDOWS = {"anna": Window(0, 100), "bert": Window(5, 900), "carl": Window(20, 300)}


def arrays(count, seed):
    """Values, masks and labels [N, H, W] of a volume of that many slices."""
    generator = np.random.default_rng(seed)
    shape = (count, GRID.size, GRID.size)
    values = generator.uniform(-1024, 3071, shape).astype(np.float32)
    return values, values > 0, generator.integers(0, 300, shape)


def add(writer, subject, count, seed, labels=False, settings=None, **sources):
    values, masks, label_maps = arrays(count, seed)
    writer.add(
        subject,
        values,
        masks,
        labels=label_maps if labels else None,
        basis=None if settings is None else values > 1000,
        positions=np.arange(count) * 3 - 10.5,
        window=WINDOWS[subject],
        source=f"{subject}_ct.nii.gz",
        sha256=f"{seed:064x}",
        **sources,
    )


def write_store(path, *, labels=False, settings=None, overwrite=False):
    """Three subjects; one has two volumes."""
    keeps = {"labels": labels, "contours": settings}
    with StoreWriter(path, CT, GRID, **keeps, overwrite=overwrite) as writer:
        for seed, (subject, count) in enumerate(
            (("anna", 3), ("anna", 1), ("bert", 4), ("carl", 2))
        ):
            add(writer, subject, count, seed, labels, settings)
        writer.finish(SPLITS)
    return path


@pytest.mark.parametrize("settings", [None, NATIVE])
@pytest.mark.parametrize("labels", [False, True])
def test_what_is_written_is_read(tmp_path, labels, settings):
    store = open_store(write_store(tmp_path / "store", labels=labels, settings=settings))
    assert len(store) == 10 and store.grid == GRID and store.preset is CT
    expected = [arrays(count, seed) for seed, count in enumerate((3, 1, 4, 2))]
    values, masks, label_maps = (np.concatenate(kind) for kind in zip(*expected, strict=True))
    step = (CT.storage.high - CT.storage.low) / 65535
    np.testing.assert_allclose(store.values(np.arange(10)), values, atol=0.51 * step)
    np.testing.assert_array_equal(store.masks, masks)
    assert store.masks.dtype == np.uint8 and store.slices.dtype == np.uint16
    if labels:
        np.testing.assert_array_equal(store.labels, label_maps)
    else:
        assert store.labels is None and not (tmp_path / "store" / "labels.npy").exists()
    assert store.contour_settings == settings
    if settings:
        np.testing.assert_array_equal(store.contours, values > 1000)
        assert store.contours.dtype == np.uint8
    else:
        assert store.contours is None and not (tmp_path / "store" / "contours.npy").exists()


def test_stores_without_a_word_of_contours_or_sources_have_none(tmp_path):
    """As those of earlier versions."""
    path = write_store(tmp_path / "store")
    dataset = json.loads((path / "dataset.json").read_text())
    del dataset["contours"], dataset["source_preset"], dataset["digest"]
    (path / "dataset.json").write_text(json.dumps(dataset))
    store = open_store(path)
    assert store.contours is store.sources is store.source_masks is store.source_preset is None


def test_a_paired_store_has_sources_with_a_preset_of_their_own(tmp_path):
    mr, path = intensity.preset("mr"), tmp_path / "store"
    values, masks, _ = arrays(3, 0)
    sources = (values + 1024) / 4095
    with StoreWriter(path, CT, GRID, source_preset=mr) as writer:
        add(writer, "anna", 3, 0, sources=sources, source_masks=~masks)
        add(writer, "anna", 3, 0, sources=1 - sources, source_masks=masks)
        writer.finish(SPLITS)
    store = open_store(path)
    assert store.source_preset is mr and verify(store)
    seen = store.source_images(np.arange(6))
    expected = np.concatenate([np.where(~masks, sources, 0), np.where(masks, 1 - sources, 0)])
    np.testing.assert_allclose(seen, 2 * expected - 1, atol=2e-5)
    assert store.sources.dtype == np.uint16 and store.source_masks.dtype == np.uint8
    for name in ("sources", "source_masks"):
        array = np.load(path / f"{name}.npy")
        array[0, 0, 0] ^= 1
        os.rename(path / f"{name}.npy", tmp_path / "kept")
        np.save(path / f"{name}.npy", array)
        with pytest.raises(InputError, match=rf"{name}\.npy: damaged"):
            verify(open_store(path))
        (path / f"{name}.npy").unlink()
        with pytest.raises(InputError, match=rf"{name}\.npy: missing"):
            open_store(path)
        os.rename(tmp_path / "kept", path / f"{name}.npy")


def test_the_index_says_where_every_slice_is_from(tmp_path):
    index = open_store(write_store(tmp_path / "store")).index
    assert list(index) == list(COLUMNS)
    assert index["subject"].tolist() == ["anna"] * 4 + ["bert"] * 4 + ["carl"] * 2
    assert index["volume"].tolist() == [0] * 3 + [1] + [2] * 4 + [3] * 2
    assert index["slice"].tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 0, 1]
    assert index["position"][:3].tolist() == [-10.5, -7.5, -4.5]
    assert index["source"][4] == "bert_ct.nii.gz" and index["sha256"][4] == f"{2:064x}"
    assert (index["window_low"][4], index["window_high"][4]) == (5, 900)


def test_splits_are_by_subject(tmp_path):
    store = open_store(write_store(tmp_path / "store"))
    assert store.rows("train").tolist() == [0, 1, 2, 3, 8, 9]
    assert store.rows("val").tolist() == [4, 5, 6, 7] and store.rows("test").size == 0
    assert store.subjects() == ["anna", "bert", "carl"]
    assert store.subjects("train") == ["anna", "carl"] and store.subjects("test") == []
    with pytest.raises(InputError, match="known: train, val, test"):
        store.rows("validation")


def test_the_median_window_is_over_training_volumes(tmp_path):
    """Volumes, not slices: a long volume has one voice; and validation has none."""
    window = open_store(write_store(tmp_path / "store")).median_window()
    assert (window.low, window.high) == (0, 100)  # of anna, anna and carl


def test_without_training_slices_there_is_no_median_window(tmp_path):
    with StoreWriter(tmp_path / "store", CT, GRID) as writer:
        add(writer, "bert", 2, 0)
        writer.finish(SPLITS)
    with pytest.raises(InputError, match="'train'"):
        open_store(tmp_path / "store").median_window()


def test_slices_are_read_when_they_are_asked_for(tmp_path):
    """As from an array; from a store that is removed or replaced meanwhile, too, but not cut."""
    path = write_store(tmp_path / "store")
    store, array = open_store(path), np.load(path / "slices.npy")
    for rows in (3, -1, slice(2, 7, 2), np.array([[4, 1], [0, 4]]), array[:, 0, 0] > 0, []):
        np.testing.assert_array_equal(store.slices[rows], array[rows])
    with pytest.raises(IndexError):
        store.slices[10]
    (path / "masks.npy").unlink()
    assert store.masks[9].shape == (16, 16)
    with (path / "slices.npy").open("r+b") as file:
        file.truncate(3000)
    with pytest.raises(InputError, match=r"slices\.npy: cut short since it was opened"):
        store.values([9])


def test_writing_takes_memory_for_one_volume_only(tmp_path):
    """The number of slices is not known in advance and does not matter."""
    grid = Grid("axial", 1.0, 128)
    values = np.zeros((8, 128, 128), np.float32)

    def peak(count):
        tracemalloc.start()
        with StoreWriter(tmp_path / f"{count}", CT, grid) as writer:
            for _ in range(count):
                about = {"positions": range(8), "window": WINDOWS["anna"]}
                writer.add("anna", values, values > 0, source="a", sha256="0", **about)
            writer.finish(SPLITS)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(30) < peak(3) + values.nbytes


def test_any_number_of_slices_fits_the_header(tmp_path):
    """The .npy header is rewritten in place when the count is known; plain numpy must read it."""
    for count in (1, 1234):
        with StoreWriter(tmp_path / f"{count}", CT, GRID) as writer:
            add(writer, "anna", count, 0)
            writer.finish(SPLITS)
        assert np.load(tmp_path / f"{count}" / "slices.npy").shape == (count, 16, 16)
        assert len(open_store(tmp_path / f"{count}")) == count


# --------------------------------------------------------------------------------------------------
# Whole or absent
# --------------------------------------------------------------------------------------------------


def test_an_error_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError), StoreWriter(tmp_path / "store", CT, GRID) as writer:
        add(writer, "anna", 3, 0)
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_an_unfinished_store_leaves_nothing_behind(tmp_path):
    with StoreWriter(tmp_path / "store", CT, GRID) as writer:
        add(writer, "anna", 3, 0)
    assert not list(tmp_path.iterdir())


def test_until_it_is_finished_there_is_no_store(tmp_path):
    with StoreWriter(tmp_path / "store", CT, GRID) as writer:
        add(writer, "anna", 3, 0)
        assert not (tmp_path / "store").exists()
        writer.finish(SPLITS)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


class FullDisk:
    """A file on which nothing fits."""

    def __init__(self, file):
        self._file = file

    def write(self, _):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __getattr__(self, name):
        return getattr(self._file, name)


def test_a_full_disk_is_one_line_and_nothing_half_written(tmp_path):
    with (
        pytest.raises(InputError, match="store: cannot be written: no space left") as caught,
        StoreWriter(tmp_path / "store", CT, GRID) as writer,
    ):
        add(writer, "anna", 3, 0)
        writer._files["masks"] = FullDisk(writer._files["masks"])
        add(writer, "bert", 3, 1)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_store_is_replaced_only_when_asked_and_only_when_whole(tmp_path):
    path = write_store(tmp_path / "store")
    with pytest.raises(InputError, match="pass --overwrite"):
        write_store(path, labels=True)
    with pytest.raises(RuntimeError), StoreWriter(path, CT, GRID, overwrite=True):
        raise RuntimeError
    assert open_store(path).labels is None
    write_store(path, labels=True, overwrite=True)
    assert open_store(path).labels is not None
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_no_other_folder_is_ever_replaced(tmp_path):
    """--out=home --overwrite must not delete a home."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    with pytest.raises(InputError, match="not a store"):
        write_store(tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "thesis.tex").exists()
    (tmp_path / "empty").mkdir()
    assert len(open_store(write_store(tmp_path / "empty"))) == 10


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "store"):
        with pytest.raises(InputError, match="file"):
            write_store(path)


# --------------------------------------------------------------------------------------------------
# Opening
# --------------------------------------------------------------------------------------------------


def edit_dataset(path, **fields):
    file = path / "dataset.json"
    dataset = json.loads(file.read_text()) | fields
    del dataset["digest"]
    file.write_text(json.dumps(dataset))


def edit_index(path, change):
    with (path / "index.csv").open(newline="") as stream:
        rows = list(csv.reader(stream))
    change(rows)
    with (path / "index.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)


BREAKAGES = {
    "replaced in part": (
        lambda path: (path / MARK).write_text('{"files": {}, "unfinished": true}'),
        "replaced in part",
    ),
    "another schema": (lambda path: edit_dataset(path, schema=SCHEMA + 1), "schema"),
    "not JSON": (lambda path: (path / "dataset.json").write_text("{"), "cannot be read"),
    "not an object": (lambda path: (path / "dataset.json").write_text("[]"), "schema"),
    "no grid": (lambda path: edit_dataset(path, grid=None), "grid: None, where an object"),
    "unknown preset": (lambda path: edit_dataset(path, preset="pet"), "known: ct, ct_wide, mr"),
    "another size": (
        lambda path: edit_dataset(path, grid={"axis": "axial", "spacing": 1.5, "size": 32}),
        "index and grid say",
    ),
    "labels promised": (lambda path: edit_dataset(path, labels=True), "missing or damaged"),
    "contours promised": (
        lambda path: edit_dataset(path, contours=NATIVE.to_dict()),
        "contours.npy.*missing or damaged",
    ),
    "unknown contours": (
        lambda path: edit_dataset(path, contours={"low": 1}),
        "contours.high: missing",
    ),
    "no slices": (lambda path: (path / "slices.npy").unlink(), "missing or damaged"),
    "no masks": (lambda path: (path / "masks.npy").unlink(), "missing or damaged"),
    "truncated": (
        lambda path: (path / "slices.npy").write_bytes((path / "slices.npy").read_bytes()[:-9]),
        "missing or damaged",
    ),
    "empty array": (lambda path: (path / "slices.npy").write_bytes(b""), "missing or damaged"),
    "another type": (
        lambda path: np.save(path / "masks.npy", np.zeros((10, 16, 16))),
        "holds float64",
    ),
    "no index": (lambda path: (path / "index.csv").unlink(), "cannot be read"),
    "a line missing": (lambda path: edit_index(path, lambda rows: rows.pop()), "index and grid"),
    "a column missing": (lambda path: edit_index(path, lambda rows: rows[0].pop()), "columns"),
    "not a number": (
        lambda path: edit_index(path, lambda rows: rows[2].__setitem__(1, "one")),
        "cannot be read",
    ),
    "no finite number": (
        lambda path: edit_index(path, lambda rows: rows[2].__setitem__(7, "nan")),
        "a number in it is not finite",
    ),
    "a short line": (lambda path: edit_index(path, lambda rows: rows[2].pop()), "cannot be read"),
    "unknown split": (
        lambda path: edit_index(path, lambda rows: rows[2].__setitem__(4, "training")),
        "unknown split 'training'",
    ),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_broken_stores_are_refused_in_one_line(tmp_path, name):
    path = write_store(tmp_path / "store")
    breakage, match = BREAKAGES[name]
    breakage(path)
    with pytest.raises(InputError, match=match) as caught:
        open_store(path)
    assert "\n" not in str(caught.value)


def test_what_is_not_a_store_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match="not a store"):
            open_store(path)


@pytest.mark.parametrize("name", ["slices.npy", "masks.npy", "labels.npy", "index.csv"])
def test_a_flipped_bit_is_found_by_verifying(tmp_path, name):
    """The last bit of the last value: a store that opens, and would be trained on."""
    path = write_store(tmp_path / "store", labels=True)
    assert verify(open_store(path))
    content = bytearray((path / name).read_bytes())
    content[-3 if name.endswith("csv") else -1] ^= 1
    (path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{path / name}: damaged.*prepare it again"):
        verify(open_store(path))


def test_stores_without_digests_are_not_verified(tmp_path):
    """As those of earlier versions: they open, and it is known that nothing is known."""
    path = write_store(tmp_path / "store")
    dataset = json.loads((path / "dataset.json").read_text())
    del dataset["sha256"], dataset["digest"]
    (path / "dataset.json").write_text(json.dumps(dataset))
    assert not verify(open_store(path))
