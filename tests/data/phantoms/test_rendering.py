# SPDX-License-Identifier: Apache-2.0
"""The renderers, on label maps made by hand: known tissues in, known intensities out."""

import numpy as np
import pytest

from contourdiff_jax.data.phantoms import rendering, xrays
from contourdiff_jax.data.phantoms.rendering import (
    FLAIR,
    PD_WEIGHTED,
    T1_WEIGHTED,
    T2_WEIGHTED,
    TISSUES,
    Tissue,
    Weighting,
)
from contourdiff_jax.errors import InputError

# Labels as a segmentation tool might number them, with gaps, and with one tissue under two labels.
TABLE = {
    0: TISSUES["air"],
    2: TISSUES["white matter"],
    41: TISSUES["white matter"],
    3: TISSUES["grey matter"],
    24: TISSUES["fluid"],
    515: TISSUES["cortical bone"],
}
SPACING = (1.0, 1.0, 3.0)
QUIET_CT = {"beam": None, "jitter": 0, "holder": False}
QUIET_MR = {"noise": 0, "jitter": 0, "bias_field": 0}


def rng():
    return np.random.default_rng(3)


@pytest.fixture
def blocks():
    """One block of 20 x 40 x 6 voxels for each label, side by side along x: [120, 40, 6]."""
    return np.repeat(np.array(list(TABLE), np.int16), 20)[:, None, None] * np.ones(
        (1, 40, 6), np.int16
    )


def interiors(image):
    """The middle of each block, away from the blur at its borders."""
    return [image[first + 5 : first + 15, 5:-5] for first in range(0, 120, 20)]


def test_ct_of_a_hand_made_label_map_has_the_table_s_hu(blocks):
    """Texture has mean zero, so that the mean over a tissue is the table's number."""
    image = rendering.render_ct(blocks, SPACING, rng(), tissues=TABLE, **QUIET_CT)
    assert image.dtype == np.int16 and image.shape == blocks.shape
    for tissue, block in zip(TABLE.values(), interiors(image), strict=True):
        # Smoothed texture has about a dozen voxels per independent value.
        allowed = 0.5 + 4 * tissue.texture / np.sqrt(block.size / 12)
        assert abs(block.mean() - tissue.hu) < allowed, tissue.name


def test_grey_and_white_matter_of_ct_are_as_near_as_in_patients(blocks):
    """4 to 7 HU apart in every picture."""
    found = []
    for seed in range(20):
        options = {"tissues": TABLE, "beam": None, "holder": False}
        image = rendering.render_ct(blocks, SPACING, np.random.default_rng(seed), **options)
        _, white, _, grey, *_ = (block.mean() for block in interiors(image))
        found.append(grey - white)
    assert 4 - 0.3 < min(found) < max(found) < 7 + 0.3 and np.ptp(found) > 1


def test_a_beam_adds_its_noise(blocks):
    """Cone-beam CT much more of it than CT; without a beam there is none."""
    options = {"tissues": TABLE, "jitter": 0, "holder": False}
    clean, usual, cone = (
        rendering.render_ct(blocks, SPACING, rng(), beam=beam, **options).astype(int)
        for beam in (None, xrays.CLINICAL, xrays.CONE_BEAM)
    )
    usual, cone = (interiors(picture - clean)[1].std() for picture in (usual, cone))
    assert 1 < usual < cone / 2


def test_mr_of_pure_tissue_is_the_spin_echo_signal(blocks):
    """Without noise, field and jitter a block is GAIN times the equation, but for 2% texture."""
    for weighting in (T1_WEIGHTED, T2_WEIGHTED, PD_WEIGHTED, FLAIR):
        image = rendering.render_mr(
            blocks, SPACING, rng(), tissues=TABLE, weighting=weighting, **QUIET_MR
        )
        assert image.dtype == np.int16
        for tissue, block in zip(TABLE.values(), interiors(image), strict=True):
            expected = rendering.GAIN * rendering.spin_echo(tissue, weighting)
            assert block.mean() == pytest.approx(expected, rel=0.01, abs=0.5), tissue.name


def test_spin_echo_signal_at_the_points_known_by_heart():
    """Half recovered after T1 ln 2, 1/e left after T2, else the proton density."""
    tissue = Tissue("any", hu=0, texture=0, t1=1000, t2=80, density=0.8)
    assert rendering.spin_echo(tissue, Weighting(1e9, 0)) == pytest.approx(0.8)
    assert rendering.spin_echo(tissue, Weighting(1000 * np.log(2), 0)) == pytest.approx(0.4)
    assert rendering.spin_echo(tissue, Weighting(1e9, 80)) == pytest.approx(0.8 / np.e)
    # An inversion leaves nothing after T1 ln 2, and half, upside down, before that.
    halfway = 1000 * np.log(2)
    assert rendering.spin_echo(tissue, Weighting(1e9, 0, halfway)) == pytest.approx(0, abs=1e-9)
    before = Weighting(1e9, 0, 1000 * np.log(4 / 3))
    assert rendering.spin_echo(tissue, before) == pytest.approx(0.4)


def test_contrast_of_the_brain_has_the_order_of_each_weighting():
    """From bright to dark, as radiologists know it; bone is dark in both."""

    def order(names, weighting):
        return sorted(names, key=lambda n: -rendering.spin_echo(TISSUES[n], weighting))

    t1 = ["fat", "white matter", "grey matter", "lesion", "fluid", "cortical bone"]
    t2 = ["fluid", "lesion", "grey matter", "white matter", "cortical bone"]
    assert order(t1[::-1], T1_WEIGHTED) == t1
    assert order(t2[::-1], T2_WEIGHTED) == t2
    pd = ["grey matter", "white matter", "fluid", "cortical bone"]
    flair = ["lesion", "grey matter", "white matter", "fluid"]
    assert order(pd[::-1], PD_WEIGHTED) == pd
    assert order(flair[::-1], FLAIR) == flair
    nothing = 0.01 * rendering.spin_echo(TISSUES["white matter"], FLAIR)
    assert rendering.spin_echo(TISSUES["fluid"], FLAIR) < 5 * nothing


def test_background_of_mr_is_rician():
    """Without signal it is Rayleigh: mean sigma sqrt(pi/2), variance sigma^2 (2 - pi/2)."""
    nothing = np.zeros((60, 60, 10), np.uint8)
    sigma = 0.01
    image = rendering.render_mr(nothing, SPACING, rng(), tissues=TABLE, noise=sigma)
    assert image.mean() == pytest.approx(rendering.GAIN * sigma * np.sqrt(np.pi / 2), rel=0.02)
    assert image.std() == pytest.approx(rendering.GAIN * sigma * np.sqrt(2 - np.pi / 2), rel=0.03)


def test_bias_field_is_smooth_and_multiplicative():
    """Against the picture without it, the field ranges widely but steps little."""
    white = np.full((64, 64, 8), 2, np.uint8)
    options = {"tissues": TABLE, "noise": 0, "jitter": 0}
    with_field = rendering.render_mr(white, SPACING, rng(), bias_field=0.2, **options)
    without = rendering.render_mr(white, SPACING, rng(), bias_field=0, **options)
    ratio = with_field / without
    assert np.ptp(ratio) > 0.3
    assert np.abs(np.diff(ratio, axis=0)).max() < 0.1 * np.ptp(ratio)


def test_reduction_averages_tissues_within_a_voxel():
    """A voxel half fluid, half bone has the mean of both: that is what partial volume means."""
    halves = np.where(np.arange(40)[:, None, None] % 2, 24, 515) * np.ones((1, 40, 4), int)
    options = {"tissues": TABLE, "reduction": (2, 1, 2), **QUIET_CT}
    image = rendering.render_ct(halves, SPACING, rng(), **options)
    assert image.shape == (20, 40, 2)
    expected = (TISSUES["fluid"].hu + TISSUES["cortical bone"].hu) / 2
    assert image[2:-2, 2:-2].mean() == pytest.approx(expected, abs=15)


def test_block_mean_is_the_mean_over_blocks():
    array = rng().standard_normal((7, 6, 9))
    expected = array[:6, :6, :9].reshape(3, 2, 6, 1, 3, 3).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(rendering.block_mean(array, (2, 1, 3)), expected, atol=1e-6)


def test_spline_field_passes_through_its_knots():
    """Sampled at the knots the smooth field returns the values it was made of."""
    values = rng().standard_normal((4, 5, 6)).astype(np.float32)
    bases = [rendering.spline_basis(np.arange(n), np.arange(n)) for n in values.shape]
    np.testing.assert_allclose(rendering.spline_field(values, bases), values, atol=1e-5)


def test_labels_of_one_tissue_vary_together_and_air_does_not_vary(blocks):
    """Left and right white matter are one tissue; the Hounsfield scale fixes air at -1000."""
    images = [
        rendering.render_ct(
            blocks,
            SPACING,
            np.random.default_rng(seed),
            tissues=TABLE,
            beam=None,
            jitter=0.2,
            holder=False,
        )
        for seed in range(8)
    ]
    means = np.array([[block.mean() for block in interiors(image)] for image in images])
    air, left, right, *_ = means.T
    np.testing.assert_allclose(air, -1000, atol=0.5)
    np.testing.assert_allclose(left, right, atol=1)
    assert left.std() > 2


def test_head_holder_lies_in_the_air_behind_the_head_and_nowhere_else():
    """The holder brightens air at the back (low y); what it touches of the head stays as it was."""
    x, y = np.ogrid[:120, :120]
    disc = (np.hypot(x - 60, y - 65) < 40)[..., None] * np.full((1, 1, 3), 2)
    with_holder, without = (
        rendering.render_ct(
            disc, (2.0, 2.0, 3.0), rng(), tissues=TABLE, beam=None, jitter=0, holder=holder
        ).astype(int)
        for holder in (True, False)
    )
    changed = np.argwhere(np.abs(with_holder - without) > 50)
    assert len(changed) and changed[:, 1].max() < 65
    assert with_holder[disc == 0].max() > 0 > without[tuple(changed.T)].max()
    np.testing.assert_array_equal(with_holder[40:80, 40:90], without[40:80, 40:90])


def test_the_same_generator_gives_the_same_picture(blocks):
    for render in (rendering.render_ct, rendering.render_mr):
        first, second = (render(blocks, SPACING, rng(), tissues=TABLE) for _ in range(2))
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.full((4, 4, 4), 7), r"no tissue for the labels \[7\]"),
        (np.zeros((4, 4, 4)), "integers"),
        (np.full((4, 4, 4), -1), "integers from 0"),
        (np.zeros((4, 4), int), "2-D"),
    ],
)
def test_a_label_map_that_cannot_be_rendered_is_named_in_one_line(labels, words):
    for render in (rendering.render_ct, rendering.render_mr):
        with pytest.raises(InputError, match=words) as caught:
            render(labels, SPACING, rng(), tissues=TABLE)
        assert "\n" not in str(caught.value)
