# SPDX-License-Identifier: Apache-2.0
"""Intensities go to the model's range and back without losing or wrapping anything."""

import nibabel as nib
import numpy as np
import pytest

from contourdiff_jax.errors import InputError
from contourdiff_jax.volumes import intensity, io
from contourdiff_jax.volumes.intensity import Window

CT, MR = intensity.preset("ct"), intensity.preset("mr")


def test_a_window_maps_its_ends_and_clips_the_rest():
    window = Window(-1000.0, 1000.0)
    hu = np.array([-3000, -1000, 0, 500, 1000, 9000], np.int16)
    np.testing.assert_allclose(window.unit(hu), [-1, -1, 0, 0.5, 1, 1])
    np.testing.assert_allclose(window.fraction(hu), [0, 0, 0.5, 0.75, 1, 1])
    assert window.unit(hu).dtype == window.fraction(hu).dtype == np.float32


def test_a_window_is_undone_by_its_inverse():
    window = Window(-37.5, 1234.0)
    x = np.linspace(window.low, window.high, 1000, dtype=np.float32)
    np.testing.assert_allclose(window.inverse(window.unit(x)), x, atol=1e-3)
    np.testing.assert_allclose(window.absolute(window.relative(x * 3)), x * 3, atol=2e-3)


def test_ct_values_are_hounsfield_units():
    """HU are a unit: no window of the volume's own may touch them."""
    hu = np.array([[-1024, 0, 3071]], np.float32)
    window = CT.volume_window(hu)
    np.testing.assert_array_equal(CT.values(hu, window), hu)
    np.testing.assert_array_equal(CT.native(hu, window), hu)


@pytest.mark.parametrize("preset", [CT, MR], ids=lambda preset: preset.name)
def test_a_store_keeps_16_bits_of_values(preset):
    """Every number of the storage range survives to within half a step; the rest is clipped."""
    low, high = preset.storage.low, preset.storage.high
    values = np.linspace(low, high, 5000, dtype=np.float32)
    raw = preset.encode(values)
    assert raw.dtype == np.uint16 and raw[0] == 0 and raw[-1] == 65535
    half_a_step = (high - low) / 65535 / 2
    np.testing.assert_allclose(preset.decode(raw), values, atol=1.1 * half_a_step)
    np.testing.assert_array_equal(preset.encode([low - 500, high + 500]), [0, 65535])
    np.testing.assert_array_equal(preset.encode(preset.decode(raw)), raw)


def test_every_hounsfield_unit_survives_a_store():
    hu = np.arange(-1024, 3072)
    np.testing.assert_array_equal(np.rint(CT.decode(CT.encode(hu))), hu)


def test_mr_windows_are_percentiles_of_the_whole_volume():
    """Every slice of a volume has one window: windows of its slices would differ and flicker."""
    volume = np.random.default_rng(0).gamma(2, 100, (20, 20, 20)).astype(np.float32)
    volume[..., 10:] *= 3
    window = MR.volume_window(volume)
    assert window.low == volume.min()
    assert window.high == pytest.approx(np.percentile(volume, 99.5))
    values = MR.values(volume, window)
    assert values.min() == 0 and values.max() > 1  # not clipped: that is the storage's business
    np.testing.assert_allclose(MR.native(values, window), volume, rtol=1e-4)


def test_mr_windows_do_not_depend_on_the_unit():
    volume = np.random.default_rng(0).gamma(2, 100, (20, 20, 20)).astype(np.float32)
    reference = MR.values(volume, MR.volume_window(volume))
    scaled = 0.01 * volume
    np.testing.assert_allclose(MR.values(scaled, MR.volume_window(scaled)), reference, atol=1e-5)


def test_undershoot_does_not_lift_the_air():
    """A few negative voxels from resampling must leave air at 0; z-scores keep their minimum."""
    volume = np.random.default_rng(0).gamma(2, 100, (40, 40, 20)).astype(np.float32)
    volume[:20] = 0
    resampled = volume.copy()
    resampled[30, 30, :5] = -120
    assert MR.volume_window(resampled).low == 0
    scores = (volume - volume.mean()) / volume.std()
    assert MR.volume_window(scores).low == scores.min() < 0


def test_real_resampled_volumes_start_at_air(data_root):
    """Brains resampled to MNI space dip to -17% of their window; their air is 0 all the same."""
    folder = data_root / "nifti" / "open_ms" / "mni"
    for name in ("patient07_T1.nii.gz", "patient07_FLAIR.nii.gz"):
        volume = nib.load(folder / name).get_fdata(dtype=np.float32)
        assert volume.min() < 0 and MR.volume_window(volume).low == 0


@pytest.mark.parametrize("value", [0, 7, -3])
def test_constant_volumes_have_no_window(value):
    """Also one with a few bright voxels: 99.5% of it are the same."""
    volume = np.full((10, 10, 10), value, np.float32)
    volume[0, 0, :3] = 50
    with pytest.raises(InputError, match="constant volume"):
        MR.volume_window(volume)


def test_8_bit_pictures_are_shown_as_they_are(tmp_path):
    """Black and white are the values of 0 and 255, whatever the window; else the model's range."""
    picture = np.random.default_rng(0).integers(30, 200, (16, 16), np.uint8)
    np.save(tmp_path / "bytes.npy", picture)
    np.save(tmp_path / "floats.npy", picture / np.float32(7))
    for preset in intensity.PRESETS.values():
        volume = io.read(tmp_path / "bytes.npy")
        window = preset.window_of(volume)
        shown = preset.shown(volume, window)
        greys = 255 * shown.relative(preset.values(volume.array, window))
        np.testing.assert_allclose(greys, volume.array, atol=1e-3)
        assert preset.shown(io.read(tmp_path / "floats.npy"), window) == preset.image


def test_air_is_the_bottom_of_the_model_range():
    """What is filled in around a field of view must look like air."""
    for preset in intensity.PRESETS.values():
        assert preset.image.unit(preset.air) == -1
        assert preset.storage.low <= preset.air <= preset.storage.high


def test_the_wide_window_reaches_what_scanners_store_and_keeps_what_is_stored():
    wide, bone = intensity.preset("ct_wide"), np.array([-1000, 1000, 1800, 3071], np.int16)
    np.testing.assert_array_equal(wide.encode(bone), CT.encode(bone))
    np.testing.assert_allclose(wide.image.inverse(wide.image.unit(bone)), bone, atol=1e-3)
    np.testing.assert_allclose(CT.image.inverse(CT.image.unit(bone)), bone.clip(-1000, 1000))
    assert wide.dtype == CT.dtype == np.int16


def test_the_window_of_the_model_is_said_in_hu():
    """An imported run has a window of its own, which the preset's is mapped to."""
    assert CT.described() == "ct of -1000 to 1000 HU" and MR.described() == "mr"
    assert CT.described(Window(0.0, 0.5)) == "ct of -500 to 500 HU"


def test_unknown_presets_are_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"'pet'; known: ct, ct_wide, mr"):
        intensity.preset("pet")
