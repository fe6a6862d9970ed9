# SPDX-License-Identifier: Apache-2.0
"""The anatomy of phantoms: heads that differ, and all that belongs into a head in its place."""

import itertools

import numpy as np
import pytest

from contourdiff_jax.data.phantoms import anatomy

AIR, BRAIN, FLUID, BONE, SOFT, LESION = range(6)
VOXEL = np.array((3.6, 3.6, 6.0))  # mm
SHAPE = (64, 64, 24)


@pytest.fixture(scope="module")
def heads():
    """Labels [X, Y, Z] of six heads."""
    axes = [
        (np.arange(2 * n) - n + 0.5) * size / 2 + (4 if axis else 0)
        for axis, (n, size) in enumerate(zip(SHAPE, VOXEL, strict=True))
    ]
    rngs = [np.random.default_rng(seed) for seed in range(6)]
    maps = [anatomy.tissue_map(anatomy.draw_head(rng), axes) for rng in rngs]
    return [anatomy.majority_labels(parts, (2, 2, 2)) for parts in maps]


def dice(a, b):
    return 2 * np.sum(a & b) / (np.sum(a) + np.sum(b))


def test_a_voxel_has_the_label_that_fills_most_of_it():
    parts = np.full((2, 4, 2), anatomy.Part.GREY, np.uint8)
    parts[:, :2, 0] = anatomy.Part.CORTICAL_BONE
    parts[0, 0, 1] = anatomy.Part.MARROW  # five eighths of the first voxel are bone, of two kinds
    assert anatomy.majority_labels(parts, (2, 2, 2)).tolist() == [[[BONE], [BRAIN]]]


def test_no_two_heads_are_alike(heads):
    """Brains overlap, since all are heads, but neither their outlines nor their sulci coincide."""
    for a, b in itertools.combinations(heads, 2):
        inside = [np.isin(labels, (BRAIN, FLUID, LESION)) for labels in (a, b)]
        assert 0.6 < dice(*inside) < 0.97
        assert dice(a == FLUID, b == FLUID) < 0.6


def test_the_anatomy_does_not_depend_on_its_sampling():
    """Every other sample of a grid shows what a grid of those samples alone shows."""
    head = anatomy.draw_head(np.random.default_rng(5))
    axes = [
        np.arange(-110.0, 111.0, 5.0),
        np.arange(-110.0, 111.0, 5.0),
        np.arange(-60.0, 61.0, 6.0),
    ]
    fine = anatomy.tissue_map(head, axes)
    coarse = anatomy.tissue_map(head, [axis[::2] for axis in axes])
    # Rounding may move a sample across a border.
    assert np.mean(fine[::2, ::2, ::2] != coarse) < 1e-3


def test_tissues_fill_sane_shares_of_the_head(heads):
    """1.0 to 1.9 litres inside the skull, 5 to 40% of it fluid, the most in shrunken brains."""
    voxel = VOXEL.prod() / 1e6  # litres
    for labels in heads:
        volume = np.bincount(labels.ravel(), minlength=6) * voxel
        intracranial = volume[BRAIN] + volume[FLUID] + volume[LESION]
        assert 1.0 < intracranial < 1.9
        assert 0.05 < volume[FLUID] / intracranial < 0.4
        assert 0.1 < volume[BONE] / volume[BONE : BONE + 2].sum() < 0.7
        assert volume[LESION] < 0.03 * intracranial


def test_the_skull_encloses_the_brain(heads):
    """In a slice through the vault a way from the brain to the air crosses bone on every side."""
    for head in heads:
        labels = head[:, :, 14]
        x, y = np.argwhere(labels == BRAIN).mean(axis=0).astype(int)
        for ray in (labels[x:, y], labels[x::-1, y], labels[x, y:], labels[x, y::-1]):
            ray = ray[: np.flatnonzero(np.isin(ray, (BRAIN, FLUID)))[-1] + 6]
            assert BONE in ray
            assert not np.any(ray[: np.flatnonzero(ray == BONE)[0]] == AIR)


def test_fluid_lies_in_ventricles_and_sulci(heads):
    """There is fluid deep in the brain, and more of it near its surface."""
    for labels in heads:
        x, y, _ = np.argwhere(labels == BRAIN).mean(axis=0).astype(int)
        centre = labels[x - 8 : x + 8, y - 12 : y + 12, 11:16]
        assert np.sum(centre == FLUID) > 20
        assert np.sum(labels == FLUID) > 3 * np.sum(centre == FLUID)
