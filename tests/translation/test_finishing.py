# SPDX-License-Identifier: Apache-2.0
"""Finishing: a translation with the statistics of what was learnt, or with more contrast.

Two convolutions stand in for the network.
"""

import dataclasses
import json
import shutil

import jax
import nibabel as nib
import numpy as np
import pytest
from setups import translate
from skimage.exposure import equalize_adapthist

from contourdiff_jax import cli, config, methods
from contourdiff_jax.data.store import open_store
from contourdiff_jax.errors import InputError
from contourdiff_jax.training import checkpoint, run
from contourdiff_jax.translation.finishing import Finishing, contrasted, normalised
from contourdiff_jax.volumes import intensity, io, masks
from contourdiff_jax.volumes.intensity import Window

NAMES = ["phantom005_ct.nii.gz", "phantom006_ct.nii.gz"]


@pytest.fixture
def drawn(rng):
    """Slices [4, 24, 20] and a body that fills a part of each but the last."""
    slices = rng.uniform(-0.5, 0.5, (4, 24, 20)).astype(np.float32)
    body = np.zeros(slices.shape, bool)
    body[:3, 4:20, 2:16] = True
    return np.where(body, slices, -1).astype(np.float32), body


# ----------------------------------------------------------------------------------------------
# Normalisation
# ----------------------------------------------------------------------------------------------


def test_a_normalised_body_has_the_mean_and_the_deviation_asked_for(drawn):
    slices, body = drawn
    found = normalised(slices, body, 0.1, 0.2)
    assert found[body].mean() == pytest.approx(0.1, abs=1e-6)
    assert found[body].std() == pytest.approx(0.2, abs=1e-6)
    assert (found[~body] == -1).all() and found.dtype == np.float32
    # By one linear map for all slices.
    slope, offset = np.polyfit(slices[body], found[body], 1)
    np.testing.assert_allclose(found[body], slope * slices[body] + offset, atol=1e-5)


def test_what_would_leave_the_range_is_clipped(drawn):
    found = normalised(*drawn, 0.9, 0.3)
    assert found.max() == 1 and found[drawn[1]].mean() < 0.9


def test_a_body_without_contrast_gets_the_mean_and_none_gets_nothing(drawn):
    slices, body = drawn
    plain = np.where(body, np.float32(0.3), slices)
    np.testing.assert_allclose(normalised(plain, body, -0.2, 0.4)[body], -0.2, atol=1e-6)
    np.testing.assert_array_equal(normalised(slices, body & False, 0.0, 0.4), slices)


# ----------------------------------------------------------------------------------------------
# Contrast
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(32, 40), (16, 24, 20)])
def test_contrast_is_enhanced_as_scikit_image_does_it(rng, shape):
    """Of a body that fills the image, whose range stays."""
    image = rng.uniform(-0.3, 0.4, shape).astype(np.float32)
    image.flat[:2] = -0.5, 0.5
    found = contrasted(image, np.ones(shape, bool), 0.02)
    expected = equalize_adapthist(image + 0.5, clip_limit=0.02) - 0.5
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (found.min(), found.max()) == pytest.approx((-0.5, 0.5))


def test_what_lies_outside_the_body_stays(drawn, rng):
    slices, body = drawn
    outside = rng.uniform(-1, 1, slices.shape).astype(np.float32)
    for image in (slices, np.where(body, slices, outside)):
        found = contrasted(image, body, 0.05)
        np.testing.assert_array_equal(found[~body], image[~body])
        assert (found[body] != image[body]).mean() > 0.5
    # It is air to the histograms, whatever it holds.
    np.testing.assert_array_equal(found[body], contrasted(slices, body, 0.05)[body])


def test_faint_structure_is_made_stronger():
    """Beside a bright one, by more where histograms are clipped less."""
    ramp = np.tile(np.linspace(-0.02, 0.02, 64, dtype=np.float32), (64, 1))
    ramp[:4, :4] = 1.0
    body = np.ones(ramp.shape, bool)
    spread = [contrasted(ramp, body, clip)[32:].std() for clip in (0.01, 0.05)]
    assert 1.1 * ramp[32:].std() < spread[0] < 0.8 * spread[1]


@pytest.mark.parametrize("shape", [(1, 9, 9), (2, 1, 1), (3, 24, 20)])
def test_slices_are_enhanced_one_by_one_and_volumes_as_a_whole(rng, shape):
    """A volume of one slice, and a body of single voxels, too; of no body and no contrast none."""
    slices = rng.uniform(-0.5, 0.5, shape).astype(np.float32)
    body, finish = np.ones(shape, bool), Finishing(contrast=0.03)
    by_slice, whole = finish(slices, body, 2), finish(slices, body, 3)
    for ours, image in zip(by_slice, slices, strict=True):
        np.testing.assert_array_equal(ours, contrasted(image, body[0], 0.03))
    np.testing.assert_array_equal(whole, contrasted(slices, body, 0.03))
    assert np.isfinite(whole).all() and whole.shape == shape
    assert (np.abs(by_slice - whole).max() > 1e-3) == (shape == (3, 24, 20))
    np.testing.assert_array_equal(finish(slices, body & False, 3), slices)
    np.testing.assert_array_equal(finish(np.full_like(slices, -1), body, 2), -1)


def test_the_contrast_comes_before_the_normalisation(drawn):
    """So that what is normalised has that mean and deviation."""
    found = Finishing(0.05, (0.1, 0.2))(*drawn, 2)
    expected = normalised(Finishing(0.05)(*drawn, 2), drawn[1], 0.1, 0.2)
    np.testing.assert_array_equal(found, expected)
    assert found[drawn[1]].std() == pytest.approx(0.2, abs=1e-3)
    np.testing.assert_array_equal(Finishing()(*drawn, 2), drawn[0])


# ----------------------------------------------------------------------------------------------
# Translation
# ----------------------------------------------------------------------------------------------


def voxels(out, name=NAMES[0]):
    return np.asarray(nib.load(out / name).dataobj)


def sidecar(out, name=NAMES[0]):
    return json.loads((out / name.replace(".nii.gz", ".json")).read_text())


@pytest.fixture(scope="module")
def made(two_convolutions, store_path, tmp_path_factory):
    """A run with weights that nothing was learnt by."""
    folder = tmp_path_factory.mktemp("made") / "run"
    ours = config.default()
    ours.sampler.update(steps=3, batch=4)
    begun = run.begin(ours, open_store(store_path))
    folder.mkdir()
    begun.save(folder)
    params = methods.build(begun).players["network"].init(jax.random.key(1))
    checkpoint.save_averages(folder, {"network": params})
    return folder


@pytest.fixture(scope="module")
def plain(made, phantom_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "out"
    assert translate(made, phantom_data / "test_ct", out, preset="ct").done
    return out


def test_a_run_knows_the_bodies_that_it_learnt_from(made, store_path):
    store = open_store(store_path)
    rows = store.rows("train")
    inside = store.preset.image.unit(store.values(rows))[store.masks[rows] > 0]
    population = run.load(made).population
    assert population == pytest.approx((inside.mean(), inside.std()), rel=1e-4)


def test_translations_get_the_statistics_of_what_was_learnt(made, phantom_data, plain, tmp_path):
    source = phantom_data / "test_ct"
    translate(made, source, tmp_path / "out", preset="ct", normalise=True)
    population = run.load(made).population
    for name in NAMES:
        volume = io.read(source / name)
        body = masks.body_mask(volume.array, volume.affine, "ct") > 0
        unit = Window(*sidecar(plain, name)["window"]).unit(voxels(tmp_path / "out", name))[body]
        # On the volume's own voxels, which are those of the grid.
        assert (unit.mean(), unit.std()) == pytest.approx(population, abs=0.02)
        assert np.abs(voxels(plain, name) - voxels(tmp_path / "out", name)).max() > 0
    assert sidecar(tmp_path / "out")["finishing"]["normalise"] == list(population)
    assert sidecar(plain)["finishing"] == {"contrast": 0.0, "normalise": None}


def test_what_is_finished_otherwise_is_not_mixed_into_a_folder(made, phantom_data, plain, tmp_path):
    out, source = shutil.copytree(plain, tmp_path / "out"), phantom_data / "test_ct"
    for options in ({"contrast": 0.02}, {"normalise": True}):
        with pytest.raises(InputError, match="made with other settings"):
            translate(made, source, out, preset="ct", **options)
        done = translate(made, source, tmp_path / str(options), preset="ct", **options)
        assert len(done.done) == 2
        assert (voxels(tmp_path / str(options)) != voxels(plain)).any()
        kept = translate(made, source, tmp_path / str(options), preset="ct", **options)
        assert len(kept.kept) == 2
        with pytest.raises(InputError, match="made with other settings"):
            translate(made, source, tmp_path / str(options), preset="ct")
    # Translations of before say nothing of it, and had none.
    for name in NAMES:
        path = out / name.replace(".nii.gz", ".json")
        fields = json.loads(path.read_text())
        del fields["finishing"]
        path.write_text(json.dumps(fields))
    assert len(translate(made, source, out, preset="ct").kept) == 2
    with pytest.raises(InputError, match="made with other settings"):
        translate(made, source, out, preset="ct", contrast=0.02)


def test_the_command_has_them_as_flags(made, phantom_data, tmp_path):
    argv = [f"--run={made}", f"--source={phantom_data / 'test_ct'}", "--preset=ct"]
    argv += [f"--out={tmp_path / 'out'}", "--normalise", "--contrast=0.02"]
    assert cli.main(["contourdiff", "translate", *argv]) == 0
    assert sidecar(tmp_path / "out")["finishing"]["contrast"] == 0.02


def other_run(made, folder, **fields):
    shutil.copytree(made, folder)
    dataclasses.replace(run.load(made), **fields).save(folder)
    return folder


@pytest.mark.parametrize(
    ("fields", "options", "named"),
    [
        ({"preset": intensity.preset("ct")}, {"normalise": True}, "--normalise: HU .*leave it out"),
        ({"preset": intensity.preset("ct")}, {"contrast": 0.1}, "--contrast: HU .*leave it out"),
        ({"population": None}, {"normalise": True}, "--normalise: .*run does not know.*train anew"),
        ({}, {"contrast": 1.5}, "--contrast: 1.5 must lie between 0 and 1"),
    ],
)
def test_what_cannot_be_finished_is_refused_in_one_line(
    made, phantom_data, tmp_path, fields, options, named
):
    ours = other_run(made, tmp_path / "run", **fields)
    with pytest.raises(InputError, match=named) as error:
        translate(ours, phantom_data / "test_ct", tmp_path / "out", preset="ct", **options)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_backwards_a_run_has_the_population_of_its_source(made):
    window = Window(0.0, 1.0)
    both = dataclasses.replace(
        run.load(made),
        source_preset=intensity.preset("mr"),
        source_window=window,
        source_population=(0.2, 0.4),
    )
    assert both.reversed().population == (0.2, 0.4)
    assert both.reversed().source_population == both.population
