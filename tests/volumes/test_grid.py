# SPDX-License-Identifier: Apache-2.0
"""Slices keep the anatomy where it is, and the way back puts it there again."""

import itertools

import jax
import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from contourdiff_jax.errors import InputError
from contourdiff_jax.volumes import geometry, io
from contourdiff_jax.volumes import volume as volumes_volume
from contourdiff_jax.volumes.grid import AXES, Grid

SQUARES = [(512, 256), (256, 256), (320, 96), (333, 128), (100, 256), (97, 64), (1000, 96)]

SPACINGS = (1.0, 1.3, 2.5)
LANDMARKS = np.array([[9, 22, 6], [24, 12, 13], [30, 28, 9]])  # voxels of a [40, 36, 20] volume
SHAPE = (40, 36, 20)


def blobs(shape=SHAPE, centres=LANDMARKS, width=1.5):
    """[X, Y, Z] a volume of Gaussian blobs, each of its own brightness, in 0..1."""
    indices = np.indices(shape, np.float32)
    return sum(
        (1 - 0.2 * i)
        * np.exp(-sum((g - c) ** 2 for g, c in zip(indices, centre, strict=True)) / 2 / width**2)
        for i, centre in enumerate(centres)
    ).astype(np.float32)


def found(array, near, reach=4):
    """Centre of mass [3] of what is bright around the voxel `near`."""
    low = np.maximum(near - reach, 0)
    window = array[tuple(slice(a, b + reach + 1) for a, b in zip(low, near, strict=True))]
    return ndimage.center_of_mass(np.where(window > 0.5 * window.max(), window, 0)) + low


def test_rows_and_columns_are_seen_radiologically():
    """Radiologists see the patient from the feet, from the front and from the left, head up."""
    x, y, z = np.indices(SHAPE, np.float32)
    affine = np.eye(4)
    expected = {"axial": (z, y, x), "coronal": (y, z, x), "sagittal": (x, z, y)}
    for axis, (depth, rows, columns) in expected.items():
        fit = Grid(axis, 1.0, 60).fit(SHAPE, affine)
        slices = fit.slices(depth, -1.0)
        np.testing.assert_allclose(slices.max((1, 2)), np.arange(len(slices)), atol=1e-4)
        inside = fit.slices(np.ones(SHAPE), 0.0) > 0.99
        for coordinate, direction in ((rows, 1), (columns, 2)):
            steps = np.diff(fit.slices(coordinate, 0.0), axis=direction)
            both = np.delete(inside, 0, direction) & np.delete(inside, -1, direction)
            assert (steps[both] <= 0).all(), (axis, direction)


@pytest.mark.parametrize("slice_spacing", [0.0, 1.7])
@pytest.mark.parametrize("axis", AXES)
def test_landmarks_come_back_in_every_orientation(tmp_path, axis, slice_spacing):
    """All 48 axis orders and flips, straight and oblique: file -> slices -> file moves nothing.

    Half a voxel is the bound; the grid is a little coarser than the voxels and its size larger than
    the field of view. Its even slices are thinner than some voxels and thicker than others.
    """
    grid = Grid(axis, 1.4, 80, slice_spacing)
    array = blobs()
    oblique = nib.eulerangles.euler2mat(0.3, -0.2, 0.25)
    for order, flips, turn in itertools.product(
        itertools.permutations(range(3)),
        itertools.product((1, -1), repeat=3),
        (np.eye(3), oblique),
    ):
        affine = np.eye(4)
        affine[:3, :3] = turn @ (np.eye(3)[:, list(order)] * flips * SPACINGS)
        io.save(tmp_path / "a.nii", array, affine, np.float32, overwrite=True)
        source = io.read(tmp_path / "a.nii")
        fit = grid.fit(source.array.shape, source.affine)
        result = fit.volume(fit.slices(source.array, 0.0), 0.0)
        io.write(tmp_path / "b.nii", result, source, np.float32, overwrite=True)
        written = nib.load(tmp_path / "b.nii")
        np.testing.assert_allclose(written.affine, affine, atol=1e-5)
        back = written.get_fdata()
        for landmark in LANDMARKS:
            distance = np.abs(found(back, landmark) - landmark)
            assert distance.max() < 0.5, (axis, order, flips, distance)


@pytest.mark.parametrize("slice_spacing", [0.0, 1.5])
def test_slices_of_every_orientation_show_the_same_picture(tmp_path, slice_spacing):
    """How a file is stored must not show: all 48 give the same slices of the same patient."""
    array = blobs((30, 32, 34), np.array([[8, 20, 12], [20, 10, 25]]), width=2)
    for axis in AXES:
        grid = Grid(axis, 1.0, 48, slice_spacing)
        reference = grid.fit(array.shape, np.eye(4)).slices(array, 0.0)
        for order, flips in itertools.product(
            itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)
        ):
            to_file = nib.orientations.ornt_transform(
                np.array([[0, 1], [1, 1], [2, 1]]),
                np.stack([order, flips], 1),
            )
            stored = nib.orientations.apply_orientation(array, to_file)
            affine = nib.orientations.inv_ornt_aff(to_file, array.shape)
            io.save(tmp_path / "a.nii", stored, affine, np.float32, overwrite=True)
            volume = io.read(tmp_path / "a.nii")
            slices = grid.fit(volume.array.shape, volume.affine).slices(volume.array, 0.0)
            np.testing.assert_array_equal(slices, reference)


def test_equal_grids_change_nothing():
    """At the volume's own spacing and size the matrices are the identity, both ways."""
    array = np.random.default_rng(0).normal(size=(24, 24, 5)).astype(np.float32)
    fit = Grid("axial", 0.7, 24).fit(array.shape, np.diag([0.7, 0.7, 3, 1]))
    slices = fit.slices(array, 0.0)
    np.testing.assert_allclose(slices[2], array[::-1, ::-1, 2].T, atol=1e-6)
    np.testing.assert_allclose(fit.volume(slices, 0.0), array, atol=1e-6)
    assert fit.kept_of(np.ones(array.shape, bool)) == pytest.approx(1)


@pytest.mark.parametrize("size", [16, 32, 64, 128, 192])
def test_resampling_agrees_with_jax_and_pillow(size):
    """Where the grid covers exactly the field of view, it is the antialiased linear resize."""
    picture = np.random.default_rng(1).normal(size=(64, 64)).astype(np.float32)
    volume = picture.T[::-1, ::-1, None]
    slices = Grid("axial", 64 / size, size).fit(volume.shape, np.eye(4)).slices(volume, 0.0)
    by_jax = jax.image.resize(picture, (size, size), "linear", antialias=True)
    np.testing.assert_allclose(slices[0], by_jax, atol=2e-5)
    by_pillow = Image.fromarray(picture).resize((size, size), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(slices[0], by_pillow, atol=2e-5)


def test_shrinking_averages_instead_of_skipping():
    """A fine checkerboard becomes grey, not a coarse checkerboard (Moiré)."""
    volume = np.indices((64, 64, 1)).sum(0) % 2
    slices = Grid("axial", 4.0, 16).fit(volume.shape, np.eye(4)).slices(volume, 0.5)
    np.testing.assert_allclose(slices, 0.5, atol=0.02)


def test_nothing_is_stretched():
    """A circle in mm is a circle on the grid, whatever the field of view and the voxels."""
    shape, sizes = (60, 90, 2), (1.5, 0.5, 2.0)
    x, y = ((np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape[:2], sizes[:2], strict=True))
    disc = np.hypot(*np.meshgrid(x, y, indexing="ij"))[..., None] < 18
    volume = np.repeat(disc, 2, 2)
    slices = Grid("axial", 1.0, 96).fit(shape, np.diag([*sizes, 1])).slices(volume, 0.0)
    rows, columns = slices[0].sum(0).max(), slices[0].sum(1).max()
    assert rows == pytest.approx(36, abs=1) and columns == pytest.approx(36, abs=1)


@pytest.mark.parametrize("axis", AXES)
def test_outside_is_filled(axis):
    """Beyond the field of view lies the fill value; a pixel half outside is half filled."""
    array = np.full((20, 21, 22), 5, np.float32)
    fit = Grid(axis, 1.0, 40).fit(array.shape, np.eye(4))
    slices = fit.slices(array, -1000.0)
    inside = (slices == 5).mean()
    assert slices[:, 0].max() == slices[:, :, 0].max() == -1000
    assert 0.2 < inside < 0.4
    odd = Grid("axial", 1.0, 8).fit((5, 8, 1), np.eye(4)).slices(np.ones((5, 8, 1)), 0.0)
    np.testing.assert_allclose(odd[0, 0], [0, 0.5, 1, 1, 1, 1, 0.5, 0], atol=1e-6)


def test_what_is_cropped_is_filled_on_the_way_back():
    array = np.random.default_rng(2).normal(size=(40, 30, 3)).astype(np.float32)
    fit = Grid("axial", 1.0, 20).fit(array.shape, np.eye(4))
    mask = np.zeros(array.shape, bool)
    assert fit.kept_of(mask) == 1 and fit.kept_of(~mask) == pytest.approx(20 * 20 / (40 * 30))
    mask[12:28, 8:22] = True
    assert fit.kept_of(mask) == 1
    back = fit.volume(fit.slices(array, 0.0), 9.0)
    np.testing.assert_allclose(back[10:30, 5:25], array[10:30, 5:25], atol=1e-6)
    back[10:30, 5:25] = 9
    np.testing.assert_array_equal(back, 9)


@pytest.mark.parametrize(("spacing", "size"), [(2.4, 44), (1.4, 70), (2.0, 24)])
def test_what_is_put_back_and_cut_again_is_what_was_drawn(rng, spacing, size):
    """Where a grid is coarser than the volume, the way there and back blurs nothing."""
    drawn = ndimage.gaussian_filter(rng.normal(size=(3, size, size)), (0, 1, 1)).astype(np.float32)
    fit = Grid("axial", spacing, size).fit((96, 90, 3), np.diag([1.0, 1.1, 3.0, 1.0]))
    again = fit.slices(fit.volume(drawn, 0.0), 0.0)
    inside = fit.masks(np.ones((96, 90, 3)))
    inside = ndimage.binary_erosion(inside, np.ones((1, 5, 5)))
    error = (again - drawn)[inside].std() / drawn[inside].std()
    assert error < 0.04
    # And the volume itself is nearer to one that the slices were cut from.
    volume = blobs((96, 90, 3), np.array([[30, 40, 1], [60, 50, 1]]), width=2.5)
    back = fit.volume(fit.slices(volume, 0.0), 0.0)
    linear = fit.interpolated(fit.slices(volume, 0.0), 0.0)
    assert np.square(back - volume).mean() < 0.5 * np.square(linear - volume).mean()


def test_no_value_is_put_back_that_was_not_drawn():
    drawn = np.zeros((2, 24, 24), np.float32)
    drawn[0, 8:16, 8:16], drawn[1] = 1, 0.5
    fit = Grid("axial", 2.4, 24).fit((58, 58, 2), np.eye(4))
    volume = fit.volume(drawn, 0.0)
    assert volume.min() == 0 and volume[..., 0].max() == 1 and volume[..., 1].max() == 0.5
    assert fit.volume(drawn - 1, -1.0).min() == -1


def test_constant_volumes_stay_constant_inside():
    """Weights sum to one: no border darkens, at whatever ratio of spacings."""
    array = np.full((37, 41, 3), 7, np.float32)
    for spacing in (0.4, 1.0, 1.7, 3.1):
        fit = Grid("axial", spacing, 16).fit(array.shape, np.diag([1.1, 0.9, 2, 1]))
        slices = fit.slices(array, 7.0)
        np.testing.assert_allclose(slices, 7, rtol=1e-5)
        np.testing.assert_allclose(fit.volume(slices, 7.0), 7, rtol=1e-5)


def test_a_part_of_the_volume_gives_its_slices():
    """Translation works through a volume in chunks; they must not differ from the whole."""
    array = blobs()
    for axis, (depth, *_) in AXES.items():
        fit = Grid(axis, 1.3, 32).fit(SHAPE, np.diag([*SPACINGS, 1]))
        whole = fit.slices(array, 0.0)
        part = fit.slices(np.take(array, range(3, 11), depth), 0.0)
        np.testing.assert_allclose(part, whole[3:11], atol=1e-6)
        back = fit.volume(part, 0.0)
        expected = np.take(fit.volume(whole, 0.0), range(3, 11), depth)
        np.testing.assert_allclose(back, expected, atol=1e-6)


def test_positions_are_millimetres_along_the_axis():
    """Each slice's centre, by nibabel, in increasing order; also of an oblique volume."""
    affine = np.eye(4)
    affine[:3, :3] = nib.eulerangles.euler2mat(0.3, -0.2, 0.25) * SPACINGS
    affine[:3, 3] = -20, 30, 500
    for axis, (depth, *_) in AXES.items():
        positions = Grid(axis, 1.0, 32).fit(SHAPE, affine).positions
        assert positions.shape == (SHAPE[depth],) and (np.diff(positions) > 0).all()
        index = (np.array(SHAPE) - 1) / 2
        index[depth] = 4
        assert positions[4] == pytest.approx(nib.affines.apply_affine(affine, index)[depth])


def test_labels_stay_labels():
    """No interpolated in-between labels: between 1 and 5 lies no 3."""
    array = np.zeros((32, 32, 4), np.float32)
    array[4:28, 4:16, 1:3] = 1
    array[4:28, 16:28, 1:3] = 5
    for spacing in (0.7, 1.0, 2.0):
        grid = Grid("axial", spacing, int(32 / spacing))
        labels = grid.fit(array.shape, np.eye(4)).labels(array)
        assert labels.dtype == np.uint16
        assert sorted(np.unique(labels)) == [0, 1, 5]
        assert not labels[[0, 3]].any()
        for label in (1, 5):
            area = (labels[1] == label).sum() * spacing**2
            assert area == pytest.approx(24 * 12, rel=0.1)


def test_labels_follow_the_image():
    """A label map of a threshold is the threshold of the image: both lie on one grid."""
    array = blobs(width=6)
    for axis in AXES:
        fit = Grid(axis, 1.2, 48).fit(SHAPE, np.diag([*SPACINGS, 1]))
        labels = fit.labels(array > 0.5) > 0
        image = fit.slices(array, 0.0) > 0.5
        overlap = 2 * (labels & image).sum() / (labels.sum() + image.sum())
        assert overlap > 0.95, axis


def test_impossible_grids_are_refused():
    for arguments in (
        ("oblique", 1.0, 8),
        ("axial", 0.0, 8),
        ("axial", np.nan, 8),
        ("axial", 1.0, 0),
        ("axial", 1.0, 8, -1.0),
        ("axial", 1.0, 8, np.nan),
    ):
        with pytest.raises(InputError):
            Grid(*arguments)


def test_a_mask_covers_a_pixel_that_it_fills_by_more_than_half():
    """One rule wherever a mask meets the grid: in stores, in translation, in scores."""
    mask = np.zeros((2, 2, 3), bool)
    mask[0, :, 0] = True  # two of the four voxels of a pixel, then three, then none
    mask[:, :, 1] = [[True, True], [True, False]]
    masks = Grid("axial", spacing=2.0, size=1).fit(mask.shape, np.eye(4)).masks(mask)
    assert masks.dtype == bool and masks.ravel().tolist() == [False, True, False]


def test_uneven_slices_keep_their_places_or_become_even():
    """Along the axis of acquisition nothing is interpolated, across it they are made even."""
    offsets = np.array([0, 1, 2, 4.0])
    native = geometry.NativeGrid((40, 36, 4), np.diag((1, 1, 3, 1.0)), offsets=offsets * 3 / 4)
    array = np.arange(40 * 36 * 4, dtype=np.float32).reshape(40, 36, 4)
    volume = volumes_volume.Volume(array, native.affine, "uneven", native)
    same, resampling = Grid("axial", 1.0, 48).fit_volume(volume)
    assert same is volume
    np.testing.assert_allclose(resampling.positions, offsets * 9 / 4)
    even, resampling = Grid("coronal", 1.0, 48).fit_volume(volume)
    assert even.array.shape == (40, 36, 5) and len(resampling.positions) == 36


# ----------------------------------------------------------------------------------------------
# Even slices
# ----------------------------------------------------------------------------------------------

UNEVEN = np.array([0, 1, 2, 3.2, 4, 5.1, 6.3, 7.4, 8, 9]) * 3.0  # mm


def stack(places, plane=(24, 24)):
    """A volume of 1 mm pixels whose slices lie at these places [mm]; every voxel tells its own."""
    n = len(places)
    step = (places[-1] - places[0]) / (n - 1)
    native = geometry.NativeGrid(
        (*plane, n), np.diag((1, 1, step, 1.0)), offsets=(places - places[0]) / step
    )
    array = np.broadcast_to(np.float32(places), native.shape).copy()
    return volumes_volume.Volume(array, native.affine, "stack.nii", native)


@pytest.mark.parametrize("gap", [3.0, 3.0001])
def test_even_slices_of_that_spacing_stay_as_they_are_to_the_bit(rng, gap):
    """Headers round: what lies off by less than a hundredth of a slice does not."""
    array = rng.normal(size=(30, 26, 9)).astype(np.float32)
    affine = np.diag((0.8, 0.9, gap, 1))
    plain, even = (Grid("axial", 1.3, 24, every).fit(array.shape, affine) for every in (0.0, 3.0))
    slices = plain.slices(array, 0.0)
    np.testing.assert_array_equal(even.slices(array, 0.0), slices)
    np.testing.assert_array_equal(even.volume(slices, 0.0), plain.volume(slices, 0.0))
    np.testing.assert_array_equal(even.positions, plain.positions)


@pytest.mark.parametrize("every", [1.3, 3.0, 4.0, 7.5])
def test_even_slices_show_what_lies_where_they_do(every):
    """Of slices that lie unevenly, thinner ones between them and thicker ones that average."""
    volume = stack(UNEVEN)
    same, fit = Grid("axial", 1.0, 24, every).fit_volume(volume)
    assert same is volume and fit.gap == every
    np.testing.assert_allclose(np.diff(fit.positions), every)
    count, step = len(UNEVEN), UNEVEN[-1] / (len(UNEVEN) - 1)
    assert len(fit.positions) == np.ceil(count * step / every)
    assert fit.positions.mean() == pytest.approx(UNEVEN[[0, -1]].mean())
    shown = fit.slices(volume.array, 0.0)[:, 12, 12]
    inner = (fit.positions >= UNEVEN[0] + every) & (fit.positions <= UNEVEN[-1] - every)
    np.testing.assert_allclose(shown[inner], fit.positions[inner], atol=0.1)
    assert shown.min() >= UNEVEN[0] and shown.max() <= UNEVEN[-1]
    back = fit.volume(
        np.float32(np.broadcast_to(fit.positions[:, None, None], (len(shown), 24, 24))), 0
    )
    inner = slice(*np.searchsorted(UNEVEN, (2 * every, UNEVEN[-1] - 2 * every)))
    np.testing.assert_allclose(back[12, 12, inner], UNEVEN[inner], atol=0.15 * every)


def test_between_two_slices_lies_their_mean_and_over_two_of_them_too():
    """By hand: slices 4 mm apart every 2 mm, and slices 2 mm apart every 4."""
    array = np.broadcast_to(np.float32([0, 8, 4, 2]), (4, 4, 4))
    thin = Grid("axial", 1.0, 4, 2.0).fit(array.shape, np.diag((1, 1, 4.0, 1)))
    np.testing.assert_allclose(thin.positions, np.arange(-1, 14, 2))
    np.testing.assert_allclose(thin.slices(array, 0.0)[:, 2, 2], [0, 2, 6, 7, 5, 3.5, 2.5, 2])
    thick = Grid("axial", 1.0, 4, 4.0).fit(array.shape, np.diag((1, 1, 2.0, 1)))
    np.testing.assert_allclose(thick.positions, [1, 5])
    # Triangles 4 mm wide either way: 0.75, 0.75, 0.25 of slices at 1, 1 and 3 mm from the centre.
    np.testing.assert_allclose(
        thick.slices(array, 0.0)[:, 2, 2],
        [(0.75 * 8 + 0.25 * 4) / 1.75, (0.25 * 8 + 0.75 * 4 + 0.75 * 2) / 1.75],
        rtol=1e-6,
    )
    np.testing.assert_allclose(thick.interpolated(thick.slices(array, 0.0), 0.0)[2, 2, 0], 4)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("every", [0.6, 2.0, 2.9])
def test_a_smooth_volume_comes_back_from_even_slices(axis, every):
    volume = blobs(width=4)
    fit = Grid(axis, 1.0, 56, every).fit(SHAPE, np.diag([*SPACINGS, 1]))
    slices = fit.slices(volume, 0.0)
    back = fit.volume(slices, 0.0)
    assert np.abs(back - volume).max() < 0.06
    # What is put back and cut again is what was drawn, as within slices.
    again = fit.slices(back, 0.0)
    assert np.abs(again - slices)[2:-2].max() < 0.04


def test_the_ends_of_a_volume_are_not_darkened(rng):
    """Even slices reach beyond them: a body that ends with the scan would be in air by half."""
    array = np.full((16, 16, 5), 7, np.float32)
    for every in (0.7, 2.0, 3.3, 20.0):
        fit = Grid("axial", 1.0, 16, every).fit(array.shape, np.diag((1, 1, 2.5, 1)))
        slices = fit.slices(array, -9.0)
        assert len(slices) == len(fit.positions) == np.ceil(12.5 / every)
        np.testing.assert_allclose(slices, 7, rtol=1e-6)
        assert fit.masks(np.ones(array.shape)).all()
        assert fit.kept_of(np.ones(array.shape, bool)) == pytest.approx(1)
        for back in (fit.volume(slices, -9.0), fit.interpolated(slices, -9.0)):
            np.testing.assert_allclose(back, 7, rtol=1e-6)


def test_labels_and_what_is_nearest_follow_even_slices():
    array = np.zeros((8, 8, 6), np.uint16)
    array[:, :, 2:] = 5
    array[:, :, 3:] = 9
    fit = Grid("axial", 1.0, 8, 4.0).fit(array.shape, np.diag((1, 1, 2.0, 1)))
    # Slices at 1, 5 and 9 mm, of planes at 0, 2, 4, .. mm: 0 0 | 5 9 | 9 9.
    assert [np.unique(s).tolist() for s in fit.labels(array)] == [[0], [9], [9]]
    thin = Grid("axial", 1.0, 8, 1.0).fit(array.shape, np.diag((1, 1, 2.0, 1)))
    for labels in (thin.labels(array), thin.nearest(thin.planes(array))):
        assert labels.dtype == np.uint16
        assert labels[:, 4, 4].tolist() == [0] * 4 + [5] * 2 + [9] * 6
    volume = stack(UNEVEN)
    _, fit = Grid("axial", 1.0, 24, 1.0).fit_volume(volume)
    nearest = fit.nearest(fit.planes(volume.array))[:, 12, 12]
    expected = UNEVEN[np.abs(UNEVEN - fit.positions[:, None]).argmin(1)]
    np.testing.assert_allclose(nearest, expected, atol=1e-5)


def test_nothing_is_made_up_in_a_gap():
    volume = stack(np.array([0, 3, 6, 9, 16.5, 19.5]))
    with pytest.raises(InputError, match=r"stack\.nii: .* gap of 7\.5 mm") as error:
        Grid("axial", 1.0, 24, 3.0).fit_volume(volume)
    assert "\n" not in str(error.value)
    Grid("axial", 1.0, 24).fit_volume(volume)  # slices are where they are
    with pytest.raises(InputError, match=r"gap of 7\.5 mm"):
        Grid("sagittal", 1.0, 24, 3.0).fit_volume(volume)  # across them, it would be filled, too
    thin_and_thick = stack(np.array([0, 4, 8, 12, 19, 26, 33.0]))  # as scanners take heads
    assert len(Grid("axial", 1.0, 24, 4.0).fit_volume(thin_and_thick)[1].positions) > 7
    with pytest.raises(InputError, match="slice spacing of"):
        Grid("axial", 1.0, 24, 1e-4).fit((4, 4, 4), np.eye(4))


def test_a_single_slice_stays_one():
    fit = Grid("axial", 1.0, 8, 2.0).fit((8, 8, 1), np.diag((1, 1, 5.0, 1)))
    assert fit.slices(np.ones((8, 8, 1)), 0.0).shape == (1, 8, 8) and len(fit.positions) == 1


def test_a_grid_without_a_slice_spacing_is_written_as_before():
    assert Grid("axial", 1.0, 8).to_dict() == {"axis": "axial", "spacing": 1.0, "size": 8}
    grid = Grid("axial", 1.0, 8, 3.0)
    assert Grid(**grid.to_dict()) == grid and grid.every == ", every 3 mm"


# ----------------------------------------------------------------------------------------------
# Nearest neighbours
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pixels", "size"), SQUARES)
@pytest.mark.parametrize("spacing", [1.0, 0.7, 0.46875, 1 / 3])
def test_over_a_whole_plane_the_nearest_are_those_of_pil(rng, pixels, size, spacing):
    """At half the size every centre lies between two pixels. Headers round their sizes."""
    planes = rng.integers(0, 256, (2, pixels, pixels), np.uint8)
    resized = [Image.fromarray(p).resize((size, size), Image.Resampling.NEAREST) for p in planes]
    affine = np.diag((*np.float32((spacing, spacing)), 3, 1))
    fit = Grid("axial", spacing * pixels / size, size).fit((pixels, pixels, 2), affine)
    nearest = fit.nearest(planes)
    assert nearest.dtype == np.uint8
    np.testing.assert_array_equal(nearest, np.stack(resized))


@pytest.mark.parametrize("axis", AXES)
def test_the_nearest_lie_where_the_slices_do(axis):
    """Blocks of four voxels keep their place, whatever is cropped or filled around them."""
    array = np.kron(np.arange(1, 1001).reshape(10, 10, 10), np.ones((4, 4, 4))).astype(np.float32)
    for size in (12, 40, 64):
        fit = Grid(axis, 1.0, size).fit(array.shape, np.eye(4))
        np.testing.assert_array_equal(fit.nearest(fit.planes(array)), fit.slices(array, 0.0))


def test_outside_the_field_of_view_there_is_nothing_near():
    fit = Grid("axial", 1.0, 16).fit((8, 10, 1), np.eye(4))
    nearest = fit.nearest(np.ones((1, 10, 8), np.uint8))[0]
    assert nearest[3:13, 4:12].all() and nearest.sum() == 80
