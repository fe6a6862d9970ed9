# SPDX-License-Identifier: Apache-2.0
"""The command prepare: from files to a store, with its defaults, splits and reports."""

import dataclasses
import errno
import os
import re

import cv2
import numpy as np
import pytest
from absl import flags
from PIL import Image

from contourdiff_jax.commands import prepare as commands_prepare
from contourdiff_jax.contours import settings as contour_settings
from contourdiff_jax.data import prepare as data_prepare
from contourdiff_jax.data import store as stores
from contourdiff_jax.data.inspection import inspect
from contourdiff_jax.data.prepare import prepare
from contourdiff_jax.data.store import open_store
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk
from contourdiff_jax.volumes import io
from contourdiff_jax.volumes.grid import AXES, Grid
from contourdiff_jax.volumes.volume import Assumed

SHAPE = (30, 34, 6)
SPACING = (2.0, 2.0, 5.0)


def ball(shape=SHAPE, radius=25.0, spacing=SPACING):
    axes = ((np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True))
    return np.sqrt(sum(g**2 for g in np.meshgrid(*axes, indexing="ij"))) < radius


def save(folder, name, array, spacing=SPACING):
    path = folder / name
    io.save(path, array, np.diag([*spacing, 1.0]), array.dtype)
    return path


@pytest.fixture
def source(tmp_path):
    """A folder of five CT volumes, of which two are of one subject."""
    folder = tmp_path / "ct"
    generator = np.random.default_rng(0)
    for name in ("a_ct", "a", "b_ct", "c_ct", "d_ct"):
        noise = generator.normal(scale=10, size=SHAPE)
        hu = np.where(ball(), 40, -1000) + noise
        save(folder, f"{name}.nii.gz", hu.astype(np.int16))
    return folder


def run(*arguments):
    """The command as the command line calls it."""
    values = flags.FlagValues()
    commands_prepare.define_flags(values)
    values(["prepare", *map(str, arguments)])
    return commands_prepare.main(values)


def test_a_folder_becomes_a_store(source, tmp_path, capsys):
    status = run(f"--source={source}", f"--out={tmp_path}/store", "--preset=ct")
    store = open_store(tmp_path / "store")
    assert status == 0 and len(store) == 30
    # Voxels of 2 mm, a field of view of 34 of them, the next multiple of 32.
    assert store.grid == Grid("axial", 2.0, 64)
    assert store.subjects() == ["a", "b", "c", "d"]
    assert store.index["source"][0] == "a.nii.gz"
    assert store.index["sha256"][0] == disk.sha256(source / "a.nii.gz")
    np.testing.assert_allclose(store.index["position"][:3], [0, 5, 10])
    printed = capsys.readouterr()
    assert "30 slices of 5 volumes, subjects: 3 train, 1 val" in printed.out
    assert "axial, 64 x 64 px of 2 mm" in printed.out and not printed.err


def test_slices_hold_the_values_masks_and_labels_of_the_volumes(source, tmp_path):
    labels = tmp_path / "labels"
    for subject in "abcd":
        save(labels, f"{subject}_labels.nii.gz", (3 * ball(radius=15)).astype(np.uint8))
    prepare(source, tmp_path / "store", "ct", spacing=2, size=32, labels=labels)
    store = open_store(tmp_path / "store")
    volume = io.read(source / "a.nii.gz")
    fit = store.grid.fit(volume.array.shape, volume.affine)
    expected = np.maximum(fit.slices(volume.array, -1000), -1024)
    np.testing.assert_allclose(store.values(range(6)), expected, atol=0.1)
    expected = fit.slices(ball(), 0) >= 0.5
    assert (store.masks[:6] == expected).mean() > 0.98
    np.testing.assert_array_equal(store.labels[:6], fit.labels(3 * ball(radius=15)))


def test_mr_volumes_are_windowed_one_by_one(tmp_path):
    """Scanners scale MR as they like: the same head ten times as bright gives the same slices."""
    generator = np.random.default_rng(0)
    signal = (ball() * generator.uniform(50, 200, SHAPE)).astype(np.float32)
    save(tmp_path / "mr", "a_t1.nii.gz", signal)
    save(tmp_path / "mr", "b_t1.nii.gz", 10 * signal)
    prepare(tmp_path / "mr", tmp_path / "store", "mr")
    store = open_store(tmp_path / "store")
    np.testing.assert_allclose(store.values(range(6)), store.values(range(6, 12)), atol=1e-4)
    np.testing.assert_array_equal(store.masks[:6], store.masks[6:])
    low, high = store.index["window_low"], store.index["window_high"]
    assert low[0] == low[6] == 0 and high[6] == pytest.approx(10 * high[0], rel=1e-5)


def test_contours_of_native_pixels_are_kept(tmp_path, rng):
    """Those of every picture as it is, each resized; others are for training to take."""
    folder = tmp_path / "mr"
    folder.mkdir()
    pictures = rng.integers(0, 256, (6, 16, 16), np.uint8)
    pictures = np.kron(pictures, np.ones((1, 4, 4), np.uint8))
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"head{number % 2}-{number // 2}.png")
    out = tmp_path / "store"
    arguments = ("--preset=mr", "--pixel_spacing=1", "--spacing=2", "--size=32")
    assert run(f"--source={folder}", f"--out={out}", *arguments, "--contours=original") == 0
    store = open_store(out)
    assert store.contour_settings == contour_settings.preset("original", "mr")
    edges = [cv2.Canny(cv2.GaussianBlur(p, (3, 3), 0), 80, 150) for p in pictures]
    resized = [Image.fromarray(e).resize((32, 32), Image.Resampling.NEAREST) for e in edges]
    expected = np.stack([*resized[::2], *resized[1::2]]) > 0
    assert expected.any()
    np.testing.assert_array_equal(store.contours, expected)

    with pytest.raises(InputError, match="--contours=published: these are taken while training"):
        prepare(folder, tmp_path / "other", "mr", contours_file="published")


@pytest.mark.parametrize("axis", ["coronal", "sagittal"])
def test_other_axes(source, tmp_path, axis):
    result = prepare(source, tmp_path / "store", "ct", axis=axis, spacing=5)
    store = open_store(tmp_path / "store")
    assert result.grid == store.grid == Grid(axis, 5, 32)
    assert len(store) == 5 * {"coronal": 34, "sagittal": 30}[axis]


def test_slices_are_made_even(source, tmp_path, capsys):
    """Every 4 mm, of volumes whose own lie 5 mm apart and of one whose lie 2.5 mm apart."""
    thin = ball((30, 34, 12), spacing=(2, 2, 2.5))
    save(source, "thin_ct.nii.gz", np.where(thin, 40, -1000).astype(np.int16), (2.0, 2.0, 2.5))
    arguments = (f"--source={source}", f"--out={tmp_path}/store", "--preset=ct", "--size=32")
    assert run(*arguments, "--spacing=2", "--slice_spacing=4") == 0
    assert "axial, 32 x 32 px of 2 mm, every 4 mm" in capsys.readouterr().out
    store = open_store(tmp_path / "store")
    assert store.grid == Grid("axial", 2.0, 32, 4.0) and len(store) == 6 * 8
    for number in range(6):
        positions = store.index["position"][store.index["volume"] == number]
        np.testing.assert_allclose(np.diff(positions), 4)
        assert positions.mean() == pytest.approx(12.5 if number < 5 else 13.75)
    volume = io.read(source / "a.nii.gz")
    fit = store.grid.fit(volume.array.shape, volume.affine)
    expected = np.maximum(fit.slices(volume.array, -1000), -1024)
    np.testing.assert_allclose(store.values(range(8)), expected, atol=0.1)
    # Discs of a ball, wherever the slices of its volume lie.
    away = np.arange(8) * 4.0 - 14
    for first in (0, 40):
        areas = 4 * store.masks[range(first, first + 8)].sum((1, 2))
        np.testing.assert_allclose(areas, np.pi * (25**2 - away**2), rtol=0.15)  # of slices of 5 mm


def test_a_volume_with_a_gap_has_no_even_slices(source, tmp_path, monkeypatch):
    """It is left out by name, with the gap; the others are done."""
    read = io.read

    def with_gap(files, *arguments, **how):
        volume = read(files, *arguments, **how)
        if volume.path.name != "b_ct.nii.gz":
            return volume
        native = dataclasses.replace(volume.native, offsets=np.array([0, 0.8, 1.6, 2.4, 4.2, 5.0]))
        return dataclasses.replace(volume, native=native)

    monkeypatch.setattr(data_prepare.scans.io, "read", with_gap)
    result = prepare(source, tmp_path / "store", "ct", size=32, spacing=2, slice_spacing=4.0)
    [(path, why)] = result.failed
    assert path.name == "b_ct.nii.gz" and "b_ct.nii.gz: its slices have a gap of 9 mm" in why
    assert len(result.done) == 4
    assert not prepare(source, tmp_path / "uneven", "ct", size=32, spacing=2).failed


def test_the_default_grid_covers_every_volume(tmp_path):
    """The spacing is the median's, so that one odd scan does not decide for all."""
    for name, spacing in (("a", 0.488), ("b", 0.488), ("c", 1.0)):
        hu = np.where(ball((40, 64, 4), 10, (spacing, spacing, 3)), 40, -1000).astype(np.int16)
        save(tmp_path / "ct", f"{name}.nii.gz", hu, (spacing, spacing, 3.0))
    result = prepare(tmp_path / "ct", tmp_path / "store", "ct")
    assert result.grid == Grid("axial", 0.49, 160)  # 64 mm are 131 px
    assert not result.cropped


def test_cropping_is_said(source, tmp_path, capsys):
    arguments = (f"--source={source}", "--preset=ct", "--spacing=1", "--size=32")
    assert run(*arguments, f"--out={tmp_path}/store") == 0
    said = re.search(r"in 5 of 5 volumes the body .* \((\d+)% of the body", capsys.readouterr().err)
    middle = ball()[7:23, 9:25]  # 16 voxels are the 32 mm of the grid
    assert int(said[1]) == pytest.approx(100 * middle.sum() / ball().sum(), abs=2)


def test_a_crop_of_air_alone_is_not_said(source, tmp_path, capsys):
    """The body is 50 mm wide, the field of view 60 mm."""
    arguments = (f"--source={source}", "--preset=ct", "--spacing=1.625", "--size=32")
    assert run(*arguments, f"--out={tmp_path}/store") == 0
    assert capsys.readouterr().err == ""


def test_a_body_that_is_not_on_the_grid_is_left_out(source, tmp_path):
    """It would be a volume of air to learn from."""
    away = np.pad(ball(), ((90, 0), (90, 0), (0, 0)))
    save(source, "away_ct.nii.gz", np.where(away, 40, -1000).astype(np.int16))
    [(path, why)] = prepare(source, tmp_path / "store", "ct", size=32, spacing=2.0).failed
    assert path.name == "away_ct.nii.gz" and "nothing of the body lies on the grid" in why


@pytest.mark.parametrize("spacing", [3.203125, 0.4883, 0.9766])
def test_a_grid_that_prepare_chose_crops_nothing(tmp_path, spacing):
    """Its spacing is rounded, so a fraction of a pixel may not fit in."""
    array = np.random.default_rng(0).integers(1, 400, (384, 384, 1)).astype(np.float32)
    save(tmp_path / "mr", "p1.nii.gz", array, (spacing, spacing, 6.0))
    result = prepare(tmp_path / "mr", tmp_path / "store", "mr")
    assert result.grid.size == 384 and not result.cropped
    # Nor does the same grid if it is given: what is lost would be told as 0%.
    given = {"spacing": result.grid.spacing, "size": result.grid.size}
    assert not prepare(tmp_path / "mr", tmp_path / "given", "mr", **given).cropped


HU_OF_HEAD = np.where(ball(radius=23), 40, np.where(ball(), 900, -1000))
SIGNAL = np.where(ball(radius=20), 700, np.where(ball(), 300, 0))


@pytest.mark.parametrize(
    ("array", "preset", "doubt"),
    [
        (HU_OF_HEAD, "ct", None),
        (SIGNAL, "mr", None),
        (HU_OF_HEAD + 1024, "ct", r"taken for ct, but its values look like ct \(HU \+ 1024\)"),
        (SIGNAL, "ct", "taken for ct, but its values look like mr"),
        (HU_OF_HEAD, "mr", "taken for mr, but its values look like ct"),
        (
            np.where(ball(radius=9), 9000, HU_OF_HEAD),
            "ct",
            "of the body lies outside -1024 to 3071 and is clipped",
        ),
    ],
)
def test_values_that_are_not_what_the_preset_says_are_told(tmp_path, capsys, array, preset, doubt):
    """In the words of translate, once for all volumes alike."""
    for name, seed in (("a", 1), ("b", 2)):
        noise = np.random.default_rng(seed).normal(scale=10, size=SHAPE)
        noisy = array + np.where(array <= 24, np.abs(noise), noise)  # no scanner's is below air
        save(tmp_path / "in", f"{name}.nii.gz", noisy.astype(np.float32))
    assert run(f"--source={tmp_path}/in", f"--preset={preset}", f"--out={tmp_path}/store") == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (doubt is not None)
    if doubt is not None:
        assert re.match(rf"warning: {tmp_path}/in/a.nii.gz: .*{doubt}", lines[0])
        assert lines[0].endswith(" (and 1 more like it)")


@pytest.mark.parametrize(("preset", "told"), [("ct", True), ("ct_wide", False)])
def test_bone_that_no_model_of_the_preset_draws_is_told(tmp_path, capsys, preset, told):
    skull = ball(radius=25.0) & ~ball(radius=20.0)
    save(tmp_path / "in", "a.nii.gz", np.where(skull, 1500, HU_OF_HEAD).astype(np.int16))
    assert run(f"--source={tmp_path}/in", f"--preset={preset}", f"--out={tmp_path}/store") == 0
    out, err = capsys.readouterr()
    assert ("lies outside -1000 to 1000 HU, which is all that a model draws" in err) == told
    assert ("--preset=ct_wide reaches 3071" in err) == told
    assert f"; {preset} of -1000 to {1000 if told else 3071} HU" in out


@pytest.mark.parametrize(("span", "refused"), [((), True), (("--range=-1000,1000",), False)])
def test_pictures_of_8_bits_are_no_ct_unless_a_range_says_so(tmp_path, capsys, span, refused):
    (tmp_path / "in").mkdir()
    noise = np.random.default_rng(0).normal(scale=20, size=SHAPE)
    grey = np.clip((HU_OF_HEAD + noise + 1000) / 2000 * 255, 0, 255).astype(np.uint8)
    for k in range(grey.shape[2]):
        Image.fromarray(grey[:, :, k]).save(tmp_path / "in" / f"p1-{k:02}.png")
    arguments = (f"--source={tmp_path}/in", "--preset=ct", f"--out={tmp_path}/store")
    if refused:
        with pytest.raises(InputError, match=r"--range=LOW,HIGH, or --range=brain .*preset=mr$"):
            run(*arguments, "--pixel_spacing=2", *span)
    else:
        assert run(*arguments, "--pixel_spacing=2", *span) == 0
    assert (tmp_path / "store").exists() != refused and not capsys.readouterr().err


def test_pictures_on_their_side_are_told_and_give_the_store_of_upright_ones(tmp_path, capsys):
    """A head is longer than wide, and its sides are alike; its masks and labels lie as it does."""
    rng, (x, y) = np.random.default_rng(0), np.mgrid[-1:1:60j, -1:1:60j]
    head = np.where((x / 0.7) ** 2 + y**2 < 0.9, 120 + 60 * y, 0)
    grey = np.uint8(head + rng.integers(0, 9, (6, 60, 60)))  # [slice, column, row]
    for place, turn in (("upright", 0), ("lying", 1)):
        for folder, stack in (("in", grey), ("masks", np.uint8(grey > 20))):
            (tmp_path / place / folder).mkdir(parents=True)
            for k, picture in enumerate(stack):
                turned = np.ascontiguousarray(np.rot90(picture.T, turn))
                Image.fromarray(turned).save(tmp_path / place / folder / f"p1-{k:02}.png")
    for place, *turn in (("upright",), ("lying",), ("lying", "--rotate=90")):
        inside, out = tmp_path / place, tmp_path / f"store{len(turn)}{place}"
        given = (f"--source={inside}/in", f"--masks={inside}/masks", "--pixel_spacing=2")
        assert run(*given, *turn, "--preset=mr", "--size=64", "--spacing=2", f"--out={out}") == 0
        assert ("lie on their side" in capsys.readouterr().out) == (out.name == "store0lying")
    expected, found = (open_store(tmp_path / name) for name in ("store0upright", "store1lying"))
    for name in ("slices", "masks"):
        np.testing.assert_array_equal(getattr(found, name)[:], getattr(expected, name)[:])
    assert found.dataset["assumed"] == Assumed(2.0, rotate=90)


def test_volumes_say_themselves_how_they_lie(source, tmp_path):
    with pytest.raises(InputError, match=r"^--rotate: it is of pictures"):
        run(f"--source={source}", f"--out={tmp_path}/store", "--preset=ct", "--rotate=90")


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_single_slices_across_any_axis_give_no_warning_of_numpy(tmp_path, axis, dtype):
    """Warnings are errors here. Seen from its side a slice is half a pixel wide, and no body."""
    shape = np.where(np.arange(3) == axis, 1, (30, 34, 32))
    array = np.where(ball((30, 34, 32), 25, (2, 2, 2)), 150, 10).take([16], axis)
    array = (array + np.random.default_rng(0).integers(0, 99, shape)).astype(dtype)
    save(tmp_path / "in", "a.nii.gz", array, (2.0, 2.0, 2.0))
    for name, (across, *_) in AXES.items():
        arguments = tmp_path / "in", tmp_path / f"store_{name}", "mr"
        if across == axis:
            result = prepare(*arguments, axis=name)
            assert not result.failed and not result.doubtful
        else:
            with pytest.raises(InputError, match="nothing of the body"):
                prepare(*arguments, axis=name)
    assert inspect([tmp_path / "in"], views=1).scans


def test_given_masks_are_used(source, tmp_path):
    for subject in "abcd":
        save(tmp_path / "masks", f"{subject}_mask.nii.gz", ball(radius=10).astype(np.uint8))
    prepare(source, tmp_path / "store", "ct", masks=tmp_path / "masks", spacing=2, size=64)
    store = open_store(tmp_path / "store")
    fit = store.grid.fit(SHAPE, np.diag([*SPACING, 1]))
    np.testing.assert_array_equal(store.masks[:6], fit.slices(ball(radius=10), 0) >= 0.5)


# --------------------------------------------------------------------------------------------------
# Splits
# --------------------------------------------------------------------------------------------------


def test_volumes_of_one_subject_share_their_split(source, tmp_path):
    prepare(source, tmp_path / "store", "ct", validation=0.5)
    index = open_store(tmp_path / "store").index
    assert len(set(index["volume"][index["subject"] == "a"])) == 2
    for subject in "abcd":
        assert len(set(index["split"][index["subject"] == subject])) == 1


def test_splits_from_a_file(source, tmp_path):
    lines = ["subject,split,comment", "a,test,", "b,train,good", "c,val,", "d, train ,"]
    (tmp_path / "split.csv").write_text("\ufeff" + "\r\n".join(lines))  # as Excel saves it
    prepare(source, tmp_path / "store", "ct", split=tmp_path / "split.csv")
    store = open_store(tmp_path / "store")
    found = {split: store.subjects(split) for split in ("train", "val", "test")}
    assert found == {"train": ["b", "d"], "val": ["c"], "test": ["a"]}


def test_a_fraction_for_validation_that_would_do_nothing_is_refused(source, tmp_path):
    """Where it is said who is for validation, or there are too few to spare any."""
    (tmp_path / "split.csv").write_text("subject,split\na,train\nb,train\nc,val\nd,test\n")
    told = {"split": tmp_path / "split.csv"}
    with pytest.raises(InputError, match="--split says who is for validation"):
        prepare(source, tmp_path / "store", "ct", validation=0.5, **told)
    (source / "d_ct.nii.gz").unlink()
    with pytest.raises(InputError, match="fewer than 4 subjects to train on none"):
        prepare(source, tmp_path / "store", "ct", validation=0.5)
    both = tmp_path / "both"
    both.mkdir()
    source.rename(both / "trainA")
    (both / "valA").mkdir()
    (both / "trainA" / "c_ct.nii.gz").rename(both / "valA" / "c_ct.nii.gz")
    with pytest.raises(InputError, match=r"the layout of .* says who is for val"):
        prepare(both, tmp_path / "store", "ct", validation=0.5)
    assert not (tmp_path / "store").exists()
    prepare(both, tmp_path / "store", "ct", validation=0)  # asks for no more than there is
    assert open_store(tmp_path / "store").subjects("val") == ["c"]


@pytest.mark.parametrize(
    ("flag", "match"),
    [("--pixel_spacing=1", "--pixel_spacing: it is of pic"), ("--range=0,9", "--range: it is of")],
)
def test_what_pictures_do_not_say_is_not_said_of_others(source, tmp_path, flag, match):
    with pytest.raises(InputError, match=match):
        run(f"--source={source}", f"--out={tmp_path / 'store'}", "--preset=ct", flag)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("subject,split\na,train\nb,train\nc,train\n", "no line for the subject 'd'"),
        (
            "subject,split\na,train\nb,train\nc,train\nd,val\ne,val\n",
            "no volume of the subject 'e'",
        ),
        ("subject,split\na,training\n", "unknown split 'training'"),
        ("subject,split\na,train\na,val\n", "'a' is in two splits"),
        ("subject,split\na\n", "unknown split ''"),
        ("name,split\na,train\n", "columns subject,split"),
        ("", "columns subject,split"),
    ],
)
def test_wrong_split_files_are_refused(source, tmp_path, text, match):
    (tmp_path / "split.csv").write_text(text)
    with pytest.raises(InputError, match=match):
        prepare(source, tmp_path / "store", "ct", split=tmp_path / "split.csv")
    assert not (tmp_path / "store").exists()


# --------------------------------------------------------------------------------------------------
# What goes wrong
# --------------------------------------------------------------------------------------------------


def test_a_bad_file_is_reported_and_the_rest_is_done(source, tmp_path, capsys):
    (source / "bad.nii.gz").write_bytes(b"no image")
    status = run(f"--source={source}", f"--out={tmp_path}/store", "--preset=ct")
    assert status == 1
    assert open_store(tmp_path / "store").subjects() == ["a", "b", "c", "d"]
    assert f"left out: {source}/bad.nii.gz: " in capsys.readouterr().err


def test_without_a_usable_volume_there_is_no_store(tmp_path):
    (tmp_path / "ct").mkdir()
    for name in "ab":
        (tmp_path / "ct" / f"{name}.nii.gz").write_bytes(b"no image")
    with pytest.raises(InputError, match="none of 2 volumes can be used"):
        prepare(tmp_path / "ct", tmp_path / "store", "ct")
    assert [path.name for path in tmp_path.iterdir()] == ["ct"]


def test_mr_volumes_without_contrast_are_left_out_by_name(tmp_path):
    flat = np.zeros(SHAPE, np.float32)
    flat[0, 0, 0] = 1
    save(tmp_path / "mr", "flat.nii.gz", flat)
    save(tmp_path / "mr", "good.nii.gz", ball().astype(np.float32))
    result = prepare(tmp_path / "mr", tmp_path / "store", "mr")
    ((path, reason),) = result.failed
    assert path.name == "flat.nii.gz" and reason.startswith(f"{path}: constant volume")


def test_what_memory_does_not_hold_is_left_out_by_name(source, tmp_path, monkeypatch):
    """Reading it is the least: masks and slices are made of it."""
    found = data_prepare.body_mask

    def mask(array, *given):
        if array.max() > 3000:
            raise MemoryError("Unable to allocate 63.5 TiB")
        return found(array, *given)

    save(source, "e_ct.nii.gz", np.where(ball(), 3001, -1000).astype(np.int16))
    monkeypatch.setattr(data_prepare, "body_mask", mask)
    result = prepare(source, tmp_path / "store", "ct")
    ((path, reason),) = result.failed
    assert path.name == "e_ct.nii.gz"
    assert reason == f"{path}: not enough memory for a volume of this size"
    assert len(result.done) == 5


@pytest.mark.parametrize("factor", [1e-3, 1e-7, 1e3])
def test_a_header_in_other_units_is_left_out_and_no_grid_is_made_of_it(source, tmp_path, factor):
    for name in ("e_ct", "f_ct", "g_ct", "h_ct", "i_ct", "j_ct"):
        sizes = np.array(SPACING) * factor
        save(source, f"{name}.nii.gz", np.where(ball(), 40, -1000).astype(np.int16), sizes)
    result = prepare(source, tmp_path / "store", "ct")
    assert result.grid == Grid("axial", 2.0, 64) and len(result.done) == 5
    assert {path.name[0] for path, _ in result.failed} == set("efghij")


@pytest.mark.parametrize("what", ["labels", "masks"])
def test_missing_and_misplaced_partners_fail_their_volume_only(source, tmp_path, what):
    array = ball().astype(np.uint8)
    for subject in "ab":
        save(tmp_path / what, f"{subject}_seg.nii.gz", array)
    save(tmp_path / what, "c_seg.nii.gz", array, (2.0, 2.0, 4.0))
    result = prepare(source, tmp_path / "store", "ct", **{what: tmp_path / what})
    reasons = {path.name: reason for path, reason in result.failed}
    assert set(reasons) == {"c_ct.nii.gz", "d_ct.nii.gz"}
    assert "another grid" in reasons["c_ct.nii.gz"]
    assert "of the subject 'd'" in reasons["d_ct.nii.gz"]
    save(tmp_path / what, "a_seg.nii", array)
    with pytest.raises(InputError, match="'a' too"):
        prepare(source, tmp_path / "other", "ct", **{what: tmp_path / what})


@pytest.mark.parametrize("suffix", [".nii.gz", ".png"])
def test_three_bad_files_of_a_hundred_are_listed_and_the_others_done(tmp_path, capsys, suffix):
    """Volumes, and slices of ten volumes of which three lose one."""
    folder, rng = tmp_path / "scans", np.random.default_rng(0)
    folder.mkdir()
    grey = rng.integers(0, 200, (100, 24, 24), np.uint8)
    for number, picture in enumerate(grey):
        if suffix == ".png":
            Image.fromarray(picture).save(folder / f"head{number // 10}-{number % 10:02d}.png")
        else:
            save(folder, f"head{number:02d}.nii.gz", picture[..., None].astype(np.float32))
    files = sorted(folder.iterdir())
    bad = [files[12], files[55], files[98]]
    for path, content in zip(bad, (b"", b"no image", files[0].read_bytes()[:60]), strict=True):
        path.write_bytes(content)
    out = tmp_path / "store"
    assert run(f"--source={folder}", f"--out={out}", "--preset=mr", "--size=32") == 1
    assert len(open_store(out)) == 97
    listed = [line for line in capsys.readouterr().err.splitlines() if "left out: " in line]
    assert sorted(line.split("left out: ")[1].split(": ")[0] for line in listed) == [
        str(path) for path in sorted(bad)
    ]


def test_a_full_disk_leaves_no_store(source, tmp_path, monkeypatch):
    """The index comes last: all arrays are written when it does not fit any more."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(stores.disk, "write_json", full)
    with pytest.raises(InputError, match="store: cannot be written: no space left"):
        prepare(source, tmp_path / "store", "ct")
    assert [path.name for path in tmp_path.iterdir()] == ["ct"]


def test_stores_are_not_overwritten_unasked(source, tmp_path):
    """Said at once, not after an hour of reading volumes."""
    prepare(source, tmp_path / "store", "ct")
    with pytest.raises(InputError, match="pass --overwrite"):
        prepare(source, tmp_path / "store", "ct", size=128)
    prepare(source, tmp_path / "store", "ct", size=128, overwrite=True)
    assert open_store(tmp_path / "store").grid.size == 128


@pytest.mark.parametrize("name", ["source", "out", "preset"])
def test_required_flags_are_asked_for(tmp_path, name):
    given = {"source": tmp_path, "out": tmp_path / "store", "preset": "ct"}
    del given[name]
    with pytest.raises(InputError, match=f"--{name} is required"):
        run(*(f"--{key}={value}" for key, value in given.items()))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"preset": "pet"}, "known: ct, ct_wide, mr"),
        ({"axis": "oblique"}, "known"),
        ({"spacing": -1}, "spacing must lie between"),
        ({"size": 0}, "size must be 1 to"),
        ({"validation": 1.5}, "validation"),
        ({"source": "none"}, "no such"),
        ({"labels": "none"}, "no such"),
        ({"split": "none"}, "cannot be read"),
    ],
)
def test_wrong_settings_are_refused(source, tmp_path, settings, match):
    arguments = {"source": source, "out": tmp_path / "store", "preset": "ct"} | settings
    with pytest.raises(InputError, match=match):
        prepare(**arguments)
    assert not (tmp_path / "store").exists()


def test_real_volumes_become_a_store(data_root, tmp_path):
    """Three MR weightings of one patient, each on its own grid, one subject."""
    folder = data_root / "nifti" / "open_ms" / "longitudinal_raw" / "patient01"
    (tmp_path / "mr").mkdir()
    for name in ("T1W", "T2W", "FLAIR"):
        (tmp_path / "mr" / f"p1_{name}.nii.gz").symlink_to(folder / f"study1_{name}.nii.gz")
    result = prepare(tmp_path / "mr", tmp_path / "store", "mr", spacing=1.8, size=128)
    store = open_store(tmp_path / "store")
    assert store.subjects() == ["p1"] and len(store) == 36 + 39 + 36 and not result.cropped
    assert 0.2 < store.masks[:].mean() < 0.5
    middle = store.values([20])[0][store.masks[20] > 0]
    assert 0.05 < np.median(middle) < 0.9
