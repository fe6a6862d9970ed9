# SPDX-License-Identifier: Apache-2.0
"""What X-rays make of water and bone whose errors are known."""

import dataclasses

import numpy as np
import pytest

from contourdiff_jax.data.phantoms import xrays
from contourdiff_jax.data.phantoms.xrays import Beam

SIDE, SPACING = 64, (3.0, 3.0, 5.0)
X, Y = ((np.arange(SIDE) - (SIDE - 1) / 2) * 3.0 for _ in range(2))
RADIUS = np.hypot(X[:, None], Y)
BRIGHT = 1e15  # photons without noise
NOISY = Beam(photons=3e7, hardening=0)


@pytest.fixture(autouse=True)
def one_dose(monkeypatch):
    monkeypatch.setattr(xrays, "SCANS", 0)


def disc(*rings, planes=1):
    """[SIDE, SIDE, planes] HU: water of 80 mm in air, with (from, to, HU) rings in it."""
    image = np.where(RADIUS < 80, 0.0, -1000.0)
    for low, high, hu in rings:
        image[(low <= RADIUS) & (high > RADIUS)] = hu
    return np.repeat(image[..., None], planes, 2).astype(np.float32)


def errors(image, beam, spacing=SPACING, seed=0):
    return xrays.errors(image, spacing, np.random.default_rng(seed), beam)


def test_readings_projected_back_are_the_picture(monkeypatch):
    """Of readings that say twice what there is, the error is the picture itself, in water."""
    monkeypatch.setattr(xrays, "_misread", lambda water, bone, *_: water)
    image = disc((0, 20, 60.0), (40, 50, -60.0))
    found = errors(image, Beam(BRIGHT, 0))[..., 0]
    for low, high, hu in ((0, 14, 1060), (26, 34, 1000), (43, 47, 940), (56, 72, 1000)):
        # To a hundredth of the water that the rays pass.
        assert found[(low <= RADIUS) & (high > RADIUS)].mean() == pytest.approx(hu, abs=12), low
    assert np.abs(found[RADIUS > 88]).mean() < 10


def test_water_alone_hardens_no_beam():
    """The scanner's table of water takes it out."""
    assert np.abs(errors(disc(), Beam(BRIGHT, 1))).max() < 0.5


def test_brain_is_brighter_under_the_skull_and_the_scalp_darkest_behind_it():
    found = errors(disc((68, 75, 1000.0)), Beam(BRIGHT, 1))[..., 0]
    under, deep = (
        found[(low <= RADIUS) & (high > RADIUS)].mean() for low, high in ((56, 62), (0, 30))
    )
    assert 3 < under - deep < 20
    half = errors(disc((68, 75, 1000.0)), Beam(BRIGHT, 0.5))[..., 0]
    np.testing.assert_allclose(half, found / 2, atol=0.1)


def test_there_is_a_dark_band_between_two_bones_and_none_beside_it():
    image = disc()
    for x in (-39, 39):
        image[np.hypot(X[:, None] - x, Y) < 12] = 1200
    found = errors(image, Beam(BRIGHT, 1))[..., 0]
    between = found[np.abs(X) < 18][:, np.abs(Y) < 5].mean()
    beside = found[np.abs(X) < 18][:, np.abs(np.abs(Y) - 45) < 8].mean()
    assert between < beside - 10


def test_noise_falls_with_dose_and_thickness_and_neighbours_share_it():
    """As the root of both (Brooks and Di Chiro, Med. Phys. 3:237, 1976)."""
    water = disc(planes=12)
    inside = RADIUS < 60

    def spread(beam, spacing=SPACING):
        return errors(water, beam, spacing)[inside].std()

    usual = spread(NOISY)
    assert spread(dataclasses.replace(NOISY, photons=4 * NOISY.photons)) == pytest.approx(
        usual / 2, rel=0.05
    )
    assert spread(NOISY, (3.0, 3.0, 20.0)) == pytest.approx(usual / 2, rel=0.05)
    # Of pixels as fine as the point spread.
    fine = errors(water, NOISY, (1.0, 1.0, 5.0))[inside]
    field = np.zeros((SIDE, SIDE, 12), np.float32)
    field[inside] = fine
    both = inside[1:] & inside[:-1]
    assert np.corrcoef(field[1:][both].ravel(), field[:-1][both].ravel())[0, 1] > 0.3
    # But no two slices do.
    assert abs(np.corrcoef(fine[:, 0], fine[:, 1])[0, 1]) < 0.1


def test_scatter_darkens_the_middle_and_gains_draw_rings():
    scattered = errors(disc(), Beam(BRIGHT, 1, scatter=0.01))[..., 0]
    assert scattered[RADIUS < 20].mean() < scattered[(RADIUS > 60) & (RADIUS < 75)].mean() - 20
    rings = errors(disc(), Beam(BRIGHT, 0, gain=0.002))[..., 0]
    assert rings[RADIUS < 70].std() > 2
    np.testing.assert_allclose(rings, np.rot90(rings), atol=0.1 * rings.std())


def test_scans_differ_in_dose(monkeypatch):
    monkeypatch.setattr(xrays, "SCANS", 0.5)
    found = [errors(disc(), NOISY, seed=seed)[RADIUS < 60].std() for seed in range(6)]
    assert max(found) > 1.3 * min(found)
