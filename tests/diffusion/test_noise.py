# SPDX-License-Identifier: Apache-2.0
"""Noise along the slices of a volume: normal everywhere, local, and tied to the scanner."""

import jax
import numpy as np
import pytest

from contourdiff_jax.diffusion import noise

SHAPE = (64, 64, 1)


def along(positions, distance=12.0, seed=0, subject="head01", sample=0):
    """Noise [N, H, W] of a sampler's first step."""
    knots = noise.along(seed, subject, np.asarray(positions), distance, sample)
    return np.asarray(noise.drawn(knots, SHAPE)(0))[..., 0]


def correlation(a, b):
    return np.corrcoef(a.ravel(), b.ravel())[0, 1]


def test_keys_follow_seed_sample_subject_and_number():
    known = noise.keys(0, "head01", np.arange(6))
    np.testing.assert_array_equal(noise.keys(0, "head01", np.arange(6)), known)
    np.testing.assert_array_equal(noise.keys(0, "head01", np.arange(4, 6)), known[4:])
    assert len({tuple(key) for key in known}) == 6
    for seed, subject, sample in ((1, "head01", 0), (0, "head02", 0), (0, "head01", 1)):
        others = noise.keys(seed, subject, np.arange(6), sample)
        assert not (others == known).all(1).any()


def test_independent_slices_have_the_noise_of_their_own_key():
    """To the bit: the other knot weighs nothing."""
    drawn = noise.drawn(noise.independent(3, "head01", 5), SHAPE)(7)
    for key, picture in zip(noise.keys(3, "head01", np.arange(5)), drawn, strict=True):
        own = jax.random.fold_in(jax.random.wrap_key_data(key), 7)
        np.testing.assert_array_equal(picture, jax.random.normal(own, SHAPE))


def test_it_is_standard_normal_at_every_position():
    drawn = along(np.linspace(-30, 30, 101))
    # Of 4096 numbers: five standard errors of their mean and of their variance.
    assert np.abs(drawn.mean((1, 2))).max() < 5 / 64
    assert np.abs(drawn.var((1, 2)) - 1).max() < 5 * np.sqrt(2 / 4096)


def test_slices_between_two_knots_correlate_by_the_cosine_of_their_angle():
    positions = np.linspace(12, 24, 7)[:-1]
    drawn = along(positions)
    for i, j in ((0, 1), (0, 3), (0, 5), (2, 4), (1, 5)):
        angle = np.pi / 2 * (positions[j] - positions[i]) / 12
        assert correlation(drawn[i], drawn[j]) == pytest.approx(np.cos(angle), abs=0.05)


def test_it_is_local():
    """What is two knots away, or a knot exactly, has nothing in common."""
    assert abs(correlation(*along([3.0, 3.0 + 24.0]))) < 5 / 64
    assert abs(correlation(*along([0.0, 12.0]))) < 5 / 64


def test_it_is_continuous_across_a_knot():
    below, above = along([12 - 1e-3, 12 + 1e-3])
    assert correlation(below, above) > 0.999


def test_it_is_where_the_slice_lies_whatever_the_other_slices():
    """Thick and thin slices, a part of the volume, the other order: one field of noise."""
    thin, thick = along(np.arange(-9, 9, 1.5)), along(np.arange(-9, 9, 4.5))
    np.testing.assert_array_equal(thin[::3], thick)
    np.testing.assert_array_equal(along(np.arange(-9, 9, 1.5)[4:7]), thin[4:7])
    np.testing.assert_array_equal(along(np.arange(-9, 9, 1.5)[::-1]), thin[::-1])


def test_other_seeds_subjects_samples_and_steps_have_other_noise():
    first = along([5.0])[0]
    for other in ({"seed": 1}, {"subject": "head02"}, {"sample": 1}):
        assert abs(correlation(first, along([5.0], **other)[0])) < 5 / 64
    knots = noise.along(0, "head01", np.array([5.0]), 12.0)
    again, later = (np.asarray(noise.drawn(knots, SHAPE)(i))[0, ..., 0] for i in (0, 1))
    np.testing.assert_array_equal(again, first)
    assert abs(correlation(first, later)) < 5 / 64
