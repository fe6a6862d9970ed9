# SPDX-License-Identifier: Apache-2.0
"""A volume on another's voxels is where both headers say it is."""

import numpy as np
import pytest
import SimpleITK as sitk

from contourdiff_jax.volumes import overlay
from contourdiff_jax.volumes.geometry import NativeGrid
from contourdiff_jax.volumes.overlay import Overlay
from contourdiff_jax.volumes.volume import canonical

LPS = np.diag((-1.0, -1.0, 1.0, 1.0))


def affine(spacing, origin, turn=0.0):
    angle = np.radians(turn)
    cosine, sine = np.cos(angle), np.sin(angle)
    matrix = np.eye(4)
    matrix[:3, :3] = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]]) * spacing
    matrix[:3, 3] = origin
    return matrix


def volume(array, matrix, offsets=None):
    native = NativeGrid(array.shape, np.asarray(matrix, float), offsets=offsets)
    return canonical(np.asarray(array, np.float32), native, "volume", (), ())


def image(volume):
    made = sitk.GetImageFromArray(np.transpose(volume.array))
    matrix = LPS @ volume.affine
    sizes = np.linalg.norm(matrix[:3, :3], axis=0)
    made.SetSpacing(sizes.tolist())
    made.SetOrigin(matrix[:3, 3].tolist())
    made.SetDirection((matrix[:3, :3] / sizes).ravel().tolist())
    return made


@pytest.mark.parametrize(
    ("spacing", "origin", "turn"),
    [((1.5, 1.2, 3.0), (2, -3, 4), 0.0), ((0.9, 0.8, 2.5), (-4, 1, 0), 20.0)],
)
def test_it_is_simpleitk_s_resampling(rng, spacing, origin, turn):
    """Voxels of the other are smaller here: nothing is smoothed."""
    source = volume(rng.random((20, 22, 9)), affine((2.0, 1.8, 4.0), (0, 0, 0)))
    target = volume(np.zeros((24, 26, 10)), affine(spacing, origin, turn))
    ours = Overlay(source, target)(source.array, -1.0)
    method = sitk.ResampleImageFilter()
    method.SetReferenceImage(image(target))
    method.SetInterpolator(sitk.sitkLinear)
    method.SetDefaultPixelValue(-1.0)
    theirs = np.transpose(sitk.GetArrayFromImage(method.Execute(image(source))))
    assert (ours > -1).mean() > 0.4
    # At the very edge, half a voxel around the outermost centres, they round apart.
    differs = np.abs(ours - theirs) > 1e-4
    assert differs.mean() < 0.002


def test_the_same_voxels_stay_as_they_are(rng):
    source = volume(rng.random((6, 7, 5)), affine((1.0, 1.0, 3.0), (0, 0, 0)))
    near = volume(np.zeros((6, 7, 5)), affine((1.0, 1.0, 3.0), (0.01, 0, 0)))
    way = Overlay(source, near)
    assert way.is_identity and way.inside.all()
    assert way(source.array, 0) is source.array
    assert overlay.same_grid(source, near)
    moved = volume(np.zeros((6, 7, 5)), affine((1.0, 1.0, 3.0), (0.5, 0, 0)))
    assert not overlay.same_grid(source, moved)
    between = Overlay(source, moved)(source.array, 0)
    np.testing.assert_allclose(between[:-1], (source.array[1:] + source.array[:-1]) / 2, atol=1e-6)


def test_what_is_coarser_averages(rng):
    """Noise of a fine volume is not sampled but smoothed, and a level stays what it is."""
    source = volume(5 + rng.normal(size=(48, 48, 24)), affine((1, 1, 1), (0, 0, 0)))
    target = volume(np.zeros((10, 10, 5)), affine((4, 4, 4), (4, 4, 4)))
    coarse = Overlay(source, target)(source.array, 0)
    assert coarse.std() < 0.2 and coarse.mean() == pytest.approx(5, abs=0.05)


def test_uneven_slices_are_met_where_they_lie():
    heights = np.arange(30, dtype=float)
    source = volume(np.broadcast_to(heights, (4, 4, 30)).copy(), affine((2, 2, 1), (0, 0, 0)))
    offsets = np.array([0.0, 1.0, 2.5, 4.0])
    target = volume(np.zeros((4, 4, 4)), affine((2, 2, 5.0), (0, 0, 3.0)), offsets)
    found = Overlay(source, target)(source.array, -1)
    # They are 5 mm apart on the average, thicker than the source's: a slope stays a slope.
    np.testing.assert_allclose(found[1, 1], 3 + 5 * offsets, atol=0.2)


def test_a_motion_is_from_the_other_to_the_volume():
    array = np.zeros((16, 16, 4))
    array[10, 5] = 1
    source, target = (
        volume(a, affine((1, 1, 1), (0, 0, 0))) for a in (array, np.zeros_like(array))
    )
    motion = np.eye(4)
    motion[:3, 3] = (3, -2, 0)
    moved = Overlay(source, target, motion)(source.array, 0)
    assert moved[7, 7].min() == 1 and moved.sum() == 4
    assert not Overlay(source, target, motion).inside[14].any()
