# SPDX-License-Identifier: Apache-2.0
"""Volumes that are drawn whole: whatever their orientation and depth, in one piece or in tiles.

Two convolutions, or a network of single voxels, stand in for the U-Net, with weights made by hand.
"""

import itertools
import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest
from nibabel import orientations
from setups import translate

from contourdiff_jax import config, methods, models
from contourdiff_jax.contracts import Translator
from contourdiff_jax.data.store import open_store
from contourdiff_jax.diffusion import noise
from contourdiff_jax.errors import InputError
from contourdiff_jax.models import Model
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training import checkpoint, run
from contourdiff_jax.translation import sampling, volume
from contourdiff_jax.volumes import io
from contourdiff_jax.volumes.grid import Grid

NAMES = ["phantom005_ct.nii.gz", "phantom006_ct.nii.gz"]
UNIT = 4  # slices, of a network of three resolutions


def made_by_hand(store_path, folder, method="diffusion", **fields):
    """A run of volumes with weights that nothing was learnt by."""
    ours = config.default()
    ours.method = method
    ours.model.update(channels=(8, 16, 16), attention=(False,) * 3, middle_attention=False)
    ours.model.dims = 3
    ours.volume.depth = UNIT
    ours.sampler.update(batch=4, steps=10 if method == "regression" else 2)
    ours.update_from_flattened_dict(fields)
    begun = run.begin(ours, open_store(store_path))
    folder.mkdir()
    begun.save(folder)
    params = methods.build(begun).players["network"].init(jax.random.key(1))
    checkpoint.save_averages(folder, {"network": jax.tree.map(lambda p: 3 * p, params)})
    return folder


@pytest.fixture(scope="module")
def volumes_run(two_convolutions, store_path, tmp_path_factory):
    return made_by_hand(store_path, tmp_path_factory.mktemp("volumes") / "run")


@pytest.fixture(scope="module")
def sources(phantom_data):
    return phantom_data / "test_ct"


@pytest.fixture(scope="module")
def translated(volumes_run, sources, tmp_path_factory):
    out = tmp_path_factory.mktemp("translated") / "out"
    assert len(translate(volumes_run, sources, out, preset="ct").done) == 2
    return out


def voxels(out, name=NAMES[0]):
    return np.asarray(nib.load(out / name).dataobj)


def sidecar(out, name=NAMES[0]):
    return json.loads((out / name.replace(".nii.gz", ".json")).read_text())


def pointwise(config, channels=1, side=1, denoises=True):
    """In place of the U-Net, a network that draws every voxel by itself."""

    def apply(params, z_t, t, condition, *, key=None, context=None):
        seen = condition["contour"]
        return jnp.tanh(params["scale"][0] * z_t) + seen[..., :1] - 0.5 * seen[..., 1:]

    return Model(lambda key: {"scale": jnp.full((1,), 0.3)}, apply)


def part(source, folder, slices):
    """Some slices of a volume, in a folder of their own."""
    whole = io.read(source)
    io.save(folder / source.name, whole.array[..., slices], whole.affine, np.int16)
    return folder


def test_a_volume_comes_back_on_its_own_grid(volumes_run, sources, translated):
    """Of five slices, which the network cannot halve twice; what is done is kept."""
    for name in NAMES:
        source, ours = nib.load(sources / name), nib.load(translated / name)
        assert ours.shape == source.shape == (32, 32, 5)
        np.testing.assert_array_equal(ours.affine, source.affine)
    low, high = sidecar(translated)["window"]
    assert voxels(translated).std((0, 1)).min() > 0.02 * (high - low)
    assert sidecar(translated)["config"]["model"]["dims"] == 3
    assert len(translate(volumes_run, sources, translated, preset="ct").kept) == 2


def test_a_volume_does_not_depend_on_the_others(volumes_run, sources, translated, tmp_path):
    translate(volumes_run, sources / NAMES[1], tmp_path / "out", preset="ct")
    np.testing.assert_array_equal(voxels(tmp_path / "out", NAMES[1]), voxels(translated, NAMES[1]))


@pytest.mark.parametrize("count", [1, 3])
def test_a_volume_thinner_than_the_network_halves_is_drawn(
    volumes_run, sources, translated, tmp_path, count
):
    """Its slices have the noise that they have in the whole, and what is seen is theirs alone."""
    thin = part(sources / NAMES[0], tmp_path / "thin", slice(0, count))
    assert translate(volumes_run, thin, tmp_path / "out", preset="ct").done
    assert voxels(tmp_path / "out").shape == (32, 32, count)
    assert voxels(tmp_path / "out").std() > 0


def test_what_is_added_is_a_slice_of_air_with_noise_of_its_own():
    seen, asked = {}, {}
    positions = SimpleNamespace(positions=2.0 * np.arange(5))
    edges = np.ones((5, 4, 4), np.uint8)
    shown = {"contour": edges, "source": np.full((5, 4, 4), 0.5, np.float32)}
    scan = SimpleNamespace(name="head")
    source = volume.SourceVolume(scan, None, positions, edges, edges > 0, shown)

    def draw(conditions, knots, beside):
        seen.update(conditions)
        asked["knots"] = knots
        return np.arange(8.0)[:, None, None] * np.ones((8, 4, 4), np.float32)

    sampler = config.default().sampler
    names = frozenset(shown)
    plan = volume.Plan(None, None, None, sampler, names, draw, dims=3, depth_unit=UNIT)
    (drawn,) = volume.at_once(plan, source)
    np.testing.assert_array_equal(drawn[:, 0, 0], np.arange(5))
    for name, (inside, added) in {"contour": (1, 0), "source": (0.5, -1)}.items():
        assert seen[name].shape == (8, 4, 4, 2) and (seen[name][..., 1] == 1).all()
        assert (seen[name][:5, ..., 0] == inside).all() and (seen[name][5:, ..., 0] == added).all()
    own = noise.independent(0, "head", 8)
    np.testing.assert_array_equal(asked["knots"].keys, own.keys)


def test_tiles_and_devices_change_nothing_where_voxels_are_drawn_by_themselves(
    store_path, sources, tmp_path, monkeypatch
):
    monkeypatch.setattr(models, "build", pointwise)
    ours = made_by_hand(store_path, tmp_path / "run", **{"volume.side": 24})
    translate(ours, sources, tmp_path / "whole", preset="ct")
    translate(ours, sources, tmp_path / "tiles", preset="ct", sampler={"tiles": 0.25}, devices=2)
    for name in NAMES:
        low, high = sidecar(tmp_path / "whole", name)["window"]
        whole, tiles = (voxels(tmp_path / out, name) for out in ("whole", "tiles"))
        assert whole.std() > 0.05 * (high - low)
        np.testing.assert_allclose(tiles, whole, atol=1e-5 * (high - low))
    assert sidecar(tmp_path / "tiles")["sampler"]["tiles"] == 0.25


@pytest.mark.parametrize("method", ["diffusion", "regression"])
def test_what_exceeds_the_grid_is_translated_in_tiles(
    two_convolutions, store_path, sources, tmp_path, capsys, method
):
    """A head beside another, 60 x 32 voxels, by methods with steps and without."""
    ours = made_by_hand(store_path, tmp_path / "run", method)
    whole = io.read(sources / NAMES[0])
    array = np.concatenate([whole.array, whole.array[4:]])
    io.save(tmp_path / "wide" / NAMES[0], array, whole.affine, np.int16)
    translate(ours, tmp_path / "wide", tmp_path / "out", preset="ct", sampler={"tiles": 0.25})
    assert "larger" not in capsys.readouterr().err
    wide = voxels(tmp_path / "out")
    low, high = sidecar(tmp_path / "out")["window"]
    assert wide.shape == (60, 32, 5)
    assert min(wide[:30].std(), wide[30:].std()) > 0.01 * (high - low)


def test_of_several_samples_the_first_is_the_usual_one(volumes_run, sources, translated, tmp_path):
    translate(
        volumes_run, sources / NAMES[0], tmp_path / "out", preset="ct", sampler={"samples": 2}
    )
    np.testing.assert_array_equal(voxels(tmp_path / "out"), voxels(translated))
    deviation = nib.load(tmp_path / "out" / "maps" / "std" / NAMES[0])
    assert deviation.shape == (32, 32, 5) and np.asarray(deviation.dataobj).max() > 0


def test_every_orientation_comes_back_as_it_was(two_convolutions, store_path, sources, tmp_path):
    """All 48, by a method without noise, which is that of a name."""
    ours = made_by_hand(store_path, tmp_path / "run", "regression")
    image = nib.load(sources / NAMES[0])
    pictures = np.asarray(image.dataobj)[2:30, :, :].astype(np.int16)  # sides that differ
    image = nib.Nifti1Image(pictures, image.affine)
    kinds = [
        "".join(signs)
        for axes in itertools.permutations(("LR", "PA", "IS"))
        for signs in itertools.product(*axes)
    ]
    assert len(kinds) == 48
    (tmp_path / "in").mkdir()
    own = orientations.io_orientation(image.affine)
    for kind in kinds:
        turn = orientations.ornt_transform(own, orientations.axcodes2ornt(kind))
        nib.save(image.as_reoriented(turn), tmp_path / "in" / f"{kind}.nii.gz")
    assert len(translate(ours, tmp_path / "in", tmp_path / "out", preset="ct").done) == 48
    expected = nib.as_closest_canonical(nib.load(tmp_path / "out" / "RAS.nii.gz"))
    assert np.ptp(expected.dataobj) > 0
    for kind in kinds:
        ours = nib.load(tmp_path / "out" / f"{kind}.nii.gz")
        assert "".join(nib.aff2axcodes(ours.affine)) == kind
        upright = nib.as_closest_canonical(ours)
        np.testing.assert_allclose(upright.affine, expected.affine, atol=1e-4)
        np.testing.assert_allclose(upright.dataobj, expected.dataobj, atol=1e-4)


# ----------------------------------------------------------------------------------------------
# What is not as it was learnt, and what cannot be had
# ----------------------------------------------------------------------------------------------


def doubt(places, learnt, slice_spacing=0.0, turned=0.0):
    """What is said of slices at those places in mm, of a volume turned by so many degrees."""
    places, grid = np.asarray(places, float), Grid("axial", 4.0, 16, slice_spacing)
    n, gap = len(places), np.diff(places).mean() if len(places) > 1 else 3.0
    turn = np.deg2rad(turned)
    rotation = np.eye(4)
    rotation[1:3, 1:3] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    affine = rotation @ np.diag((1, 1, gap, 1))
    resampling = grid.fit((8, 8, n), affine, (places - places[0]) / gap)
    return volume._uneven(resampling, learnt)


def test_slices_as_far_apart_as_those_learnt_are_no_doubt():
    assert doubt(3.0 * np.arange(5), 3.0) == ""
    assert doubt(3.2 * np.arange(5), 3.0) == "" == doubt(np.zeros(1), 3.0)
    assert doubt(5.0 * np.arange(5), None) == ""
    assert re.search("5 mm apart, .* 3 mm; .*--slice_spacing", doubt([0, 5.0], 3.0))
    assert re.search("uneven, 3 to 9 mm", doubt([0, 3.0, 12], 3.0))


def test_oblique_slices_are_as_far_apart_as_they_are():
    """Not as their places along the axis; even ones of the grid's are no doubt at all."""
    assert doubt(3.0 * np.arange(5), 3.0, turned=35) == ""
    assert re.search("uneven, 3 to 9 mm", doubt([0, 3.0, 12], 3.0, turned=35))
    assert doubt(6.0 * np.arange(5), 3.0, slice_spacing=3.0, turned=35) == ""
    assert doubt([0, 3.0, 7.2], 3.0, slice_spacing=3.0) == ""


def test_slices_farther_apart_than_those_learnt_are_told(volumes_run, sources, tmp_path, capsys):
    """24 mm; every second slice is translated none the less."""
    thin = part(sources / NAMES[0], tmp_path / "thin", slice(0, 2))
    translate(volumes_run, thin, tmp_path / "a", preset="ct")
    assert "mm apart" not in capsys.readouterr().err
    image = nib.load(thin / NAMES[0])
    affine = image.affine @ np.diag((1, 1, 2, 1))
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), thin / NAMES[0])
    assert translate(volumes_run, thin, tmp_path / "b", preset="ct").done
    assert "its slices are 48 mm apart, and those learnt 24 mm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"sampler": {"coupling": 0.2}}, "--coupling: .*dims=3"),
        ({"sampler": {"coherence": 48.0}}, "--coherence: .*dims=3"),
        ({"sampler": {"scgd": True}}, "--scgd: .*dims=3"),
        ({"devices": 2}, "--devices: .*--tiles"),
    ],
)
def test_what_joins_slices_is_refused_in_one_line(volumes_run, sources, tmp_path, options, named):
    with pytest.raises(InputError, match=named) as error:
        translate(volumes_run, sources, tmp_path / "out", preset="ct", **options)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_volume_that_a_device_does_not_hold_is_told():
    """What cannot be reserved becomes one line; any other failure stays what it is."""
    for words, kind in (("RESOURCE_EXHAUSTED: 90 GiB", InputError), ("INTERNAL", None)):

        def draw(params, seen, knots, beside, words=words):
            raise jax.errors.JaxRuntimeError(words)

        translator = Translator(draw, {}, frozenset(("contour",)), 1, True, dims=3)
        seen = {"contour": np.zeros((4, 8, 6, 2), np.float32)}
        put = meshes.replicated(meshes.local(1))
        with pytest.raises(kind or jax.errors.JaxRuntimeError) as error:
            sampling.draw(translator, put, seen, noise.independent(0, "head", 4))
        if kind:
            assert "4 x 8 x 6 voxels" in str(error.value) and "--tiles" in str(error.value)
