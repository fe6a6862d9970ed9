# SPDX-License-Identifier: Apache-2.0
"""A known motion is found, between modalities, in space and in plane."""

import dataclasses

import numpy as np
import pytest

from contourdiff_jax.data import registration
from contourdiff_jax.data.phantoms.heads import Heads
from contourdiff_jax.volumes.geometry import NativeGrid
from contourdiff_jax.volumes.volume import canonical


@pytest.fixture(scope="module")
def head():
    pictures, affine = Heads(4, 48, slices=20, thickness=6).render("phantom001", ("mr", "ct"))
    return {
        kind: canonical(array.astype(np.float32), NativeGrid(array.shape, affine), kind, (), ())
        for kind, array in pictures.items()
    }


def moved(volume, degrees, shift):
    """The volume with a header that says that it was turned about the axis and moved."""
    angle = np.radians(degrees)
    motion = np.eye(4)
    motion[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    motion[:3, 3] = shift
    return dataclasses.replace(volume, affine=motion @ volume.affine), motion


def test_a_head_that_lies_elsewhere_is_found(head):
    moving, motion = moved(head["ct"], 6.0, (7.0, -4.0, 5.0))
    found = registration.rigid(head["mr"], moving, np.zeros(3))
    corners = np.array([[-60, -60, -40, 1], [60, 60, 40, 1], [60, -60, 0, 1]]).T
    error = np.linalg.norm((found.matrix @ corners - motion @ corners)[:3], axis=0)
    assert error.max() < 2.5  # mm, on voxels of 4.8 x 4.8 x 6 mm
    assert found.turned == pytest.approx(6, abs=1.0)
    again = registration.rigid(head["mr"], moving, np.zeros(3))
    np.testing.assert_array_equal(again.matrix, found.matrix)


def test_a_far_start_leads_to_it_where_nothing_overlaps(head):
    moving, _ = moved(head["ct"], 0.0, (0.0, 900.0, 0.0))
    assert registration.rigid(head["mr"], moving, np.zeros(3)) is None
    found = registration.rigid(head["mr"], moving, np.array([0.0, 890.0, 0.0]))
    assert found.moved == pytest.approx(900, abs=2)


def test_a_single_slice_is_moved_in_plane(head):
    one = {
        kind: dataclasses.replace(volume, array=volume.array[:, :, 10:11])
        for kind, volume in head.items()
    }
    moving, motion = moved(one["ct"], -4.0, (-6.0, 5.0, 0.0))
    found = registration.rigid(one["mr"], moving, np.zeros(3))
    corners = np.array([[-60, -60, 0, 1], [60, 60, 0, 1]]).T
    assert np.abs(found.matrix @ corners - motion @ corners).max() < 4.0  # of 2304 pixels of 4.8 mm
    np.testing.assert_array_equal(found.matrix[2], [0, 0, 1, 0])
