# SPDX-License-Identifier: Apache-2.0
"""The slices of a volume sampler: what each is given, and that sharing work changes nothing.

Two convolutions stand in for the network.
"""

import dataclasses
import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest
from setups import translate

from contourdiff_jax import cli, config, models
from contourdiff_jax.contours import settings as contour_settings
from contourdiff_jax.contracts import Translator
from contourdiff_jax.data import examples, layouts
from contourdiff_jax.data.layouts import pairs
from contourdiff_jax.errors import InputError
from contourdiff_jax.methods import diffusion, train
from contourdiff_jax.runtime import disk
from contourdiff_jax.training import run
from contourdiff_jax.translation import chains, sampling
from contourdiff_jax.translation import volume as translate_volume
from contourdiff_jax.translation.chains import NONE
from contourdiff_jax.translation.sidecars import Settings
from contourdiff_jax.translation.volume import Plan, SourceVolume
from contourdiff_jax.volumes import grid, intensity, io
from contourdiff_jax.volumes.grid import Grid

UNET = models.build
NAMES = ["phantom005_ct.nii.gz", "phantom006_ct.nii.gz"]


def train_on(store, workdir, **model):
    settings = config.default()
    settings.model.update(channels=(8, 16), attention=(False, True), head_width=8, groups=4)
    settings.model.update(model)
    settings.train.update(images=32, batch=4, log=0, evaluate=0, sample=0, checkpoint=0)
    settings.train.update(warmup=4, learning_rate=1e-2, ema_rampup=1e-3)
    if "neighbour" in settings.model.conditions:
        settings.train.neighbour = 0.5
    settings.sampler.update(steps=3, batch=4)
    assert train(settings, store, workdir)
    return workdir


BOTH = {"conditions": ("contour", "neighbour")}


@pytest.fixture(scope="module")
def mr_run(two_convolutions, store_path, tmp_path_factory):
    """It sees contours and neighbours."""
    return train_on(store_path, tmp_path_factory.mktemp("mr") / "run", **BOTH)


@pytest.fixture(scope="module")
def sources(phantom_data):
    return phantom_data / "test_ct"


@pytest.fixture(scope="module")
def translated(mr_run, sources, tmp_path_factory):
    out = tmp_path_factory.mktemp("translated") / "out"
    assert len(translate(mr_run, sources, out, preset="ct").done) == 2
    return out


def voxels(out, name=NAMES[0]):
    return np.asarray(nib.load(out / name).dataobj)


def sidecar(out, name=NAMES[0]):
    return json.loads((out / name.replace(".nii.gz", ".json")).read_text())


def flicker(array):
    """Mean difference between neighbouring slices, of [X, Y, Z]."""
    return np.abs(np.diff(array, axis=2)).mean()


# ----------------------------------------------------------------------------------------------
# Slices beside one another
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "before", "distance"),
    [
        ({}, [NONE, 0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 6]),
        ({"anchor": 3}, [NONE, 0, 1, NONE, 3, 4, NONE], [0, 1, 2, 0, 1, 2, 0]),
        ({"middle": True}, [1, 2, 3, NONE, 3, 4, 5], [3, 2, 1, 0, 1, 2, 3]),
        ({"anchor": 4, "middle": True}, [1, 2, NONE, 2, 5, NONE, 5], [2, 1, 0, 1, 1, 0, 1]),
    ],
)
def test_chains_begin_where_they_are_told_to(options, before, distance):
    ours = chains.chains(3.0 * np.arange(7), **options)
    np.testing.assert_array_equal(ours[0], before)
    np.testing.assert_array_equal(ours[1], distance)


def test_nothing_goes_across_a_gap():
    """Between slices 2 and 3 lie three times the usual distance; a little more is no gap."""
    positions = np.array([0, 3, 6.5, 15.5, 18.5])
    before, distance = chains.chains(positions)
    np.testing.assert_array_equal(before, [NONE, 0, 1, NONE, 3])
    np.testing.assert_array_equal(distance, [0, 1, 2, 0, 1])
    beside = [[1, 1], [0, 2], [1, 1], [4, 4], [3, 3]]
    np.testing.assert_array_equal(chains.neighbours(positions), beside)


def test_a_single_slice_has_no_neighbours_but_itself():
    before, distance = chains.chains(np.array([5.0]))
    assert (before, distance) == ([NONE], [0])
    np.testing.assert_array_equal(chains.neighbours(np.array([5.0])), [[0, 0]])


# ----------------------------------------------------------------------------------------------
# Even slices
# ----------------------------------------------------------------------------------------------


def test_even_slices_are_drawn_and_put_back_between_those_of_the_source(
    mr_run, sources, tmp_path, monkeypatch
):
    """Contours are sought in them, too; a volume with a gap is not translated, by name."""
    ours = shutil.copytree(mr_run, tmp_path / "run")
    even = Grid("axial", 7.2, 32, 10.0)
    dataclasses.replace(run.load(mr_run), grid=even).save(ours)
    finish, drawn = translate_volume.finish, {}

    def kept(plan, source, samples):
        drawn[source.scan.path.name] = source, samples[0]
        return finish(plan, source, samples)

    monkeypatch.setattr(translate_volume, "finish", kept)
    assert len(translate(ours, sources, tmp_path / "out", preset="ct").done) == 2
    source, slices = drawn[NAMES[0]]
    assert slices.shape == (12, 32, 32) == source.contours.shape  # of 5 slices of 24 mm
    np.testing.assert_allclose(np.diff(source.resampling.positions), 10)
    assert source.contours.any((1, 2)).sum() > 5
    back, original = nib.load(tmp_path / "out" / NAMES[0]), nib.load(sources / NAMES[0])
    assert back.shape == original.shape == (32, 32, 5)
    np.testing.assert_allclose(back.affine, original.affine)
    told = sidecar(tmp_path / "out")
    assert told["slices"] == 12 and told["grid"] == even.to_dict()
    # Each of the source's slices shows what was drawn where it lies.
    window = intensity.Window(*told["window"])
    shown = 2 * window.relative(voxels(tmp_path / "out")) - 1
    shown = Grid("axial", 7.2, 32).fit(back.shape, back.affine).slices(shown, -1.0)
    places = Grid("axial", 7.2, 32).fit(back.shape, back.affine).positions
    for place, image in zip(places, shown, strict=True):
        far = np.abs(source.resampling.positions - place)
        first, second = np.argsort(far)[:2]
        weight = far[first] / (far[first] + far[second])
        expected = (1 - weight) * slices[first] + weight * slices[second]
        inside = source.body[first] & source.body[second]
        if inside.any():
            assert np.abs(image - expected)[inside].mean() < 0.25

    read = io.read

    def with_gap(files, *arguments, **how):
        volume = read(files, *arguments, **how)
        offsets = np.array([0, 0.7, 1.4, 3.3, 4.0])
        native = dataclasses.replace(volume.native, offsets=offsets)
        return dataclasses.replace(volume, native=native)

    monkeypatch.setattr(io, "read", with_gap)
    with pytest.raises(
        InputError, match=r"phantom005_ct\.nii\.gz: its slices have a gap of 45\.6 mm"
    ):
        translate(ours, sources, tmp_path / "gap", preset="ct")


# ----------------------------------------------------------------------------------------------
# SCGD
# ----------------------------------------------------------------------------------------------


class Resampling:
    def __init__(self, count):
        self.positions = 3.0 * np.arange(count)


class Scan:
    def __init__(self, name):
        self.name = name


def volume_of(name, count):
    edges = np.random.default_rng(count).integers(0, 2, (count, 4, 4), np.uint8)
    seen = {"contour": edges}
    return SourceVolume(Scan(name), None, Resampling(count), edges, edges < 2, seen)


def plan_of(sampler, draw=None):
    """A plan for slices of 4 px of MR."""
    contours = dict.fromkeys(("source", "target"), contour_settings.MR)
    settings = Settings(None, intensity.preset("mr"), Grid("axial", 1.0, 4), contours)
    sees = frozenset(BOTH["conditions"])
    return Plan(settings, intensity.IDENTITY, None, sampler, sees, draw)


def section(**fields):
    settings = config.default().sampler
    settings.update(scgd=True, candidates=1)
    settings.update(fields)
    return settings


def test_every_slice_is_shown_the_translation_of_the_one_before():
    """Volumes of different length advance together, each in its own chain."""

    def draw(seen, knots, beside):
        value, given = seen["neighbour"][..., 0], seen["neighbour"][..., 1]
        return seen["contour"][..., 0] + np.where(given, 0.5 * value, 7)

    both = [volume_of("a", 5), volume_of("b", 3)]
    results = translate_volume.chained(plan_of(section(), draw), both)
    for source, result in zip(both, results, strict=True):
        expected = source.contours.astype(np.float32)
        for i in range(len(expected)):
            expected[i] += 0.5 * expected[i - 1] if i else 7
        np.testing.assert_allclose(result, expected[None])


@pytest.mark.parametrize("coherence", [0.0, 12.0])
def test_candidates_are_samples_of_the_slice_that_a_chain_begins_with(coherence):
    """Sample k's candidates are k n, k n + 1, ...; the others have the noise of the first."""
    asked = []

    def draw(seen, knots, beside):
        asked.append((bool(seen["neighbour"].any()), knots))
        # The second candidate of three is the darkest.
        return np.full((1, 4, 4), 2.0 - len(asked) % 3 % 2, np.float32)

    source = volume_of("a", 2)
    plan = plan_of(section(samples=2, coherence=coherence, candidates=3), draw)
    translate_volume.chained(plan, [source])
    expected = [(i, n) for k in (0, 3) for i, n in ((0, k), (0, k + 1), (0, k + 2), (1, k))]
    for (shown, ours), (i, number) in zip(asked, expected, strict=True):
        own = translate_volume.knots(plan, source, number)
        assert shown == (i == 1)
        np.testing.assert_array_equal(ours.keys, own.keys[i : i + 1])
        np.testing.assert_array_equal(ours.weights, own.weights[i : i + 1])


def test_of_candidates_the_rule_keeps_one():
    """The darkest; or the one whose contours are those asked for, which are those of none here."""
    for rule, kept in (("lowest_mean", -0.5), ("best_contours", 0.5)):
        darkness = iter([0.5, -0.5, 0.0])

        def draw(seen, knots, beside, darkness=darkness):
            return np.full((1, 4, 4), next(darkness), np.float32)

        plan = plan_of(section(candidates=3, candidate=rule), draw)
        (result,) = translate_volume.chained(plan, [volume_of("a", 1)])
        assert (result == kept).all()


@pytest.mark.parametrize("network", ["convolutions", pytest.param("U-Net", marks=pytest.mark.slow)])
def test_scgd_gives_the_same_whatever_volumes_advance_sampler(
    mr_run, store_path, sources, tmp_path, network, monkeypatch
):
    """To the bit, on one kind of device: a batch does not mix its rows."""
    if network == "U-Net":
        monkeypatch.setattr(models, "build", UNET)
        mr_run = train_on(store_path, tmp_path / "run", **BOTH)
    options = {"preset": "ct", "sampler": {"scgd": True, "candidates": 2}}
    translate(mr_run, sources, tmp_path / "both", **options)
    for name in NAMES:
        translate(mr_run, sources / name, tmp_path / "alone", **options)
        np.testing.assert_array_equal(
            voxels(tmp_path / "alone", name), voxels(tmp_path / "both", name)
        )
    recorded = sidecar(tmp_path / "both")["sampler"]
    assert recorded["scgd"] and recorded["candidates"] == 2


def test_scgd_changes_all_but_the_first_slice(mr_run, sources, translated, tmp_path):
    options = {"preset": "ct", "sampler": {"scgd": True, "candidates": 1}}
    translate(mr_run, sources, tmp_path / "out", **options)
    low, high = sidecar(translated)["window"]
    for name in NAMES:
        apart = np.abs(voxels(tmp_path / "out", name) - voxels(translated, name)).max((0, 1))
        assert apart[0] < 1e-5 * (high - low) and (apart[1:] > 1e-3 * (high - low)).all()


def test_scgd_needs_a_run_that_sees_neighbours(two_convolutions, store_path, sources, tmp_path):
    plain = train_on(store_path, tmp_path / "run")
    with pytest.raises(InputError, match=r"--scgd: .*neighbour.*train with"):
        translate(plain, sources, tmp_path / "out", preset="ct", sampler={"scgd": True})


# ----------------------------------------------------------------------------------------------
# Noise and estimates that slices share
# ----------------------------------------------------------------------------------------------


def drawn_from(settings, knots, beside=None):
    """Translations [N, H, W] of the same contours everywhere."""
    from contourdiff_jax.diffusion import samplers, schedules
    from contourdiff_jax.runtime import mesh as meshes

    def apply(params, z_t, t, condition, *, key=None):
        return 0.3 * z_t + condition["contour"][..., :1]

    mesh = meshes.make(settings.mesh)
    schedule = schedules.build(settings.diffusion)
    visited = samplers.timesteps(settings.sampler, schedule.steps)
    prediction = settings.diffusion.prediction
    draw = diffusion.drawing(
        lambda fixed: apply, schedule, prediction, settings.sampler, visited, mesh
    )
    translator = Translator(draw, ({}, ()), frozenset(("contour",)), settings.sampler.batch, True)
    contour = examples.given(np.zeros((len(knots.keys), 16, 16), np.uint8))
    return sampling.draw(translator, meshes.batch(mesh), {"contour": contour}, knots, beside)


@pytest.fixture
def plain():
    settings = config.default()
    settings.sampler.update(steps=3, batch=4)
    return settings


def of_subject(count, distance=0.0, spacing=2.0):
    source = volume_of("head01", count)
    source.resampling.positions = spacing * np.arange(count)
    settings = config.default().sampler
    settings.coherence = distance
    return translate_volume.knots(plan_of(settings), source, 0)


def test_slices_that_share_noise_are_more_alike(plain):
    def steps(knots):
        return np.abs(np.diff(drawn_from(plain, knots), axis=0)).mean((1, 2))

    assert steps(of_subject(8, 24.0)).max() < 0.5 * steps(of_subject(8)).min()


def test_neither_batches_nor_other_slices_change_shared_noise(plain):
    whole = drawn_from(plain, of_subject(10, 24.0))
    thick = drawn_from(plain, of_subject(5, 24.0, spacing=4.0))
    np.testing.assert_array_equal(whole[::2], thick)
    plain.sampler.batch = 10
    np.testing.assert_allclose(drawn_from(plain, of_subject(10, 24.0)), whole, atol=1e-5)


def test_coupled_slices_agree_and_batches_do_not_matter(plain):
    knots = of_subject(10)
    beside = chains.neighbours(2.0 * np.arange(10))
    alone = drawn_from(plain, knots)
    plain.sampler.coupling = 0.5
    coupled = drawn_from(plain, knots, beside)
    assert np.abs(np.diff(coupled, axis=0)).mean() < 0.7 * np.abs(np.diff(alone, axis=0)).mean()
    plain.sampler.batch = 10
    np.testing.assert_allclose(drawn_from(plain, knots, beside), coupled, atol=1e-5)
    # Without a share of them, neighbours are nothing to a slice.
    plain.sampler.coupling = 0.0
    np.testing.assert_allclose(drawn_from(plain, knots, beside), alone, atol=1e-5)


@pytest.mark.parametrize("sampler", [{"coherence": 96.0}, {"coupling": 0.5}])
def test_a_translated_volume_flickers_less(mr_run, sources, translated, tmp_path, sampler):
    result = translate(mr_run, sources, tmp_path / "out", preset="ct", sampler=sampler)
    assert len(result.done) == 2
    assert sidecar(tmp_path / "out")["sampler"].items() >= sampler.items()
    for name in NAMES:
        assert flicker(voxels(tmp_path / "out", name)) < flicker(voxels(translated, name))


# ----------------------------------------------------------------------------------------------
# Samples
# ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sampled(mr_run, sources, tmp_path_factory):
    out = tmp_path_factory.mktemp("sampled") / "out"
    translate(mr_run, sources, out, preset="ct", sampler={"samples": 3})
    return out


def maps_of(out, name=NAMES[0]):
    return {kind: nib.load(out / "maps" / kind / name) for kind in ("mean", "std", "unasked")}


def test_of_several_samples_the_first_is_the_usual_one(sampled, translated):
    for name in NAMES:
        np.testing.assert_array_equal(voxels(sampled, name), voxels(translated, name))
        recorded = sidecar(sampled, name)["sampler"]
        assert recorded["samples"] == 3 and recorded["keep"] == "first"


def test_maps_lie_beside_on_the_same_grid(sampled, sources):
    for name in NAMES:
        source = nib.load(sources / name)
        for image in maps_of(sampled, name).values():
            assert image.shape == source.shape and image.get_data_dtype() == np.float32
            np.testing.assert_array_equal(image.affine, source.affine)
    arrays = {kind: np.asarray(image.dataobj) for kind, image in maps_of(sampled).items()}
    assert arrays["std"].min() >= 0 and arrays["std"].max() > 0
    assert arrays["unasked"].min() >= 0 and 0 < arrays["unasked"].max() <= 1


def test_maps_are_not_taken_for_translations(sampled):
    """And those of one kind pair with them by their names, for `evaluate --uncertainty`."""
    assert [scan.path for scan in layouts.find(sampled).scans] == [sampled / n for n in NAMES]
    deviations = pairs.by_name(sampled / "maps" / "std")
    assert list(deviations) == list(pairs.by_name(sampled)) == ["phantom005", "phantom006"]


def test_the_mean_may_be_kept(mr_run, sources, sampled, tmp_path):
    sampler = {"samples": 3, "keep": "mean"}
    translate(mr_run, sources, tmp_path / "out", preset="ct", sampler=sampler, maps=False)
    assert not (tmp_path / "out" / "maps").exists()
    for name in NAMES:
        mean = np.asarray(maps_of(sampled, name)["mean"].dataobj)
        np.testing.assert_allclose(voxels(tmp_path / "out", name), mean, atol=1e-3)


@pytest.mark.parametrize("keep", ["lowest_mean", "nearest", "best_contours"])
def test_rules_keep_slices_of_the_samples(mr_run, sources, tmp_path, monkeypatch, keep):
    # By linear weights alone the mean of two volumes is the volume of the mean.
    monkeypatch.setattr(grid, "_consistent", lambda backward, forward: backward)
    options = {"preset": "ct", "maps": False}
    chosen, both = {"samples": 2, "keep": keep}, tmp_path / "out"
    translate(mr_run, sources / NAMES[0], both, sampler=chosen, **options)
    translate(mr_run, sources / NAMES[0], tmp_path / "first", sampler={"samples": 1}, **options)
    mean = {"samples": 2, "keep": "mean"}
    translate(mr_run, sources / NAMES[0], tmp_path / "mean", sampler=mean, **options)
    first, kept = voxels(tmp_path / "first"), voxels(both)
    second = 2 * voxels(tmp_path / "mean") - first
    apart = [np.abs(kept - sample).max((0, 1)) for sample in (first, second)]
    assert (np.minimum(*apart) < 1e-3).all() and (apart[1] < 1e-3).any()


def test_one_sample_may_have_maps_too(mr_run, sources, translated, tmp_path):
    """And what is lost of them is made again."""
    options = {"preset": "ct", "maps": True}
    translate(mr_run, sources / NAMES[0], tmp_path / "out", **options)
    maps = maps_of(tmp_path / "out")
    assert not np.asarray(maps["std"].dataobj).any()
    np.testing.assert_array_equal(np.asarray(maps["mean"].dataobj), voxels(translated))
    (tmp_path / "out" / "maps" / "unasked" / NAMES[0]).unlink()
    assert translate(mr_run, sources / NAMES[0], tmp_path / "out", **options).done
    assert translate(mr_run, sources / NAMES[0], tmp_path / "out", **options).kept


# ----------------------------------------------------------------------------------------------
# Tiles
# ----------------------------------------------------------------------------------------------


def test_what_fits_has_no_tiles(mr_run, sources, translated, tmp_path):
    translate(mr_run, sources, tmp_path / "out", preset="ct", sampler={"tiles": 0.25})
    for name in NAMES:
        np.testing.assert_array_equal(voxels(tmp_path / "out", name), voxels(translated, name))


def test_what_exceeds_the_grid_is_translated_in_tiles(mr_run, sources, tmp_path, capsys):
    """A head beside another, 60 x 32 voxels: nothing is left out, and there is no seam."""
    volume = io.read(sources / NAMES[0])
    array = np.concatenate([volume.array, volume.array[4:]])
    io.save(tmp_path / "wide" / NAMES[0], array, volume.affine, np.int16)
    translate(mr_run, tmp_path / "wide", tmp_path / "out", preset="ct", sampler={"tiles": 0.25})
    assert "larger" not in capsys.readouterr().err
    wide = voxels(tmp_path / "out")
    low, high = sidecar(tmp_path / "out")["window"]
    assert wide.shape == (60, 32, 5)
    # Both heads are there, from one end to the other.
    assert min(wide[:30].std(), wide[30:].std()) > 0.05 * (high - low)
    changes = np.abs(np.diff(wide, axis=0)).mean((1, 2))
    assert changes.max() < 4 * np.median(changes)


# ----------------------------------------------------------------------------------------------
# Odd input
# ----------------------------------------------------------------------------------------------

EVERY_WAY = [{}, {"coherence": 24.0}, {"coupling": 0.5}, {"scgd": True, "middle": True}]


@pytest.mark.parametrize("sampler", EVERY_WAY)
def test_a_single_slice_is_a_volume(mr_run, sources, tmp_path, sampler):
    volume = io.read(sources / NAMES[0])
    io.save(tmp_path / "one" / NAMES[0], volume.array[..., 2:3], volume.affine, np.int16)
    translate(mr_run, tmp_path / "one", tmp_path / "out", preset="ct", sampler=sampler)
    array = voxels(tmp_path / "out")
    assert array.shape == (32, 32, 1) and array.std() > 0


@pytest.mark.parametrize("sampler", EVERY_WAY)
def test_a_slice_of_air_is_air(mr_run, sources, tmp_path, sampler):
    """At the end and in the middle; the others are not disturbed.

    The mask is given, because the one that is computed keeps what hangs sampler.
    """
    volume = io.read(sources / NAMES[0])
    array, mask = volume.array.copy(), np.ones(volume.array.shape)
    array[..., [0, 3]], mask[..., [0, 3]] = -1000, 0
    io.save(tmp_path / "holes" / NAMES[0], array, volume.affine, np.int16)
    io.save(tmp_path / "masks" / NAMES[0], mask, volume.affine, np.uint8)
    options = {"preset": "ct", "sampler": sampler, "masks": tmp_path / "masks"}
    translate(mr_run, tmp_path / "holes", tmp_path / "out", **options)
    low, _ = sidecar(tmp_path / "out")["window"]
    drawn = voxels(tmp_path / "out")
    assert (drawn[..., [0, 3]] == low).all()
    assert (drawn[..., [1, 2, 4]].std((0, 1)) > 0).all()


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (lambda hu: hu + 1024, r"taken for ct, but its values look like ct \(HU \+ 1024\)"),
        (lambda hu: (hu + 1000) / 3, "taken for ct, but its values look like mr"),
        (lambda hu: 6 * (hu + 1000) - 1000, r"%\ of the body lies outside -1024 to 3071"),
    ],
)
def test_values_that_the_preset_cannot_mean_are_said(
    mr_run, sources, tmp_path, capsys, change, warning
):
    volume = io.read(sources / NAMES[0])
    io.save(tmp_path / "odd" / NAMES[0], change(volume.array), volume.affine, np.float32)
    assert translate(mr_run, tmp_path / "odd", tmp_path / "out", preset="ct").done
    assert re.search(warning, capsys.readouterr().err)


def argv_of(run, source, out, sampler):
    named = {"sampler" if field == "name" else field: value for field, value in sampler.items()}
    argv = ["contourdiff", "translate", f"--run={run}", f"--source={source}", "--preset=ct"]
    return [*argv, f"--out={out}", *(f"--{name}={value}" for name, value in named.items())]


def test_every_field_of_the_sampler_has_a_flag(mr_run, sources, tmp_path):
    given = {"name": "ddim", "steps": 2, "spacing": "leading", "offset": 1, "eta": 0.5}
    given |= {"clip": True, "clipped_eps": False, "fixed_stride": True, "guidance": 1.0}
    given |= {"source_guidance": 1.0, "prompt_guidance": 1.0, "control": 1.0}
    given |= {"ends_clean": False, "batch": 2, "coherence": 24.0, "coupling": 0.0, "scgd": True}
    given |= {"neighbour_guidance": 0.5, "candidates": 2, "candidate": "best_contours"}
    given |= {"anchor": 3, "middle": True, "samples": 2, "keep": "mean", "tiles": 0.25}
    assert set(given) == set(config.default().sampler)
    out = tmp_path / "out"
    assert cli.main([*argv_of(mr_run, sources, out, given), "--nomaps"]) == 0
    assert sidecar(out)["sampler"] == sidecar(out)["config"]["sampler"] == given
    assert not (out / "maps").exists()


@pytest.mark.parametrize(
    ("sampler", "named"),
    [
        ({"offset": 1}, "--offset: leading has it"),
        ({"name": "ddpm", "eta": 0.5}, "--eta: only ddim has it"),
        ({"name": "ddpm", "clipped_eps": False}, "--clipped_eps: .*--sampler is ddim and --clip"),
        ({"name": "ddpm", "fixed_stride": True}, "--fixed_stride: .*unless --sampler is ddim"),
        ({"name": "ddpm", "ends_clean": False}, "--ends_clean: .*unless --sampler is ddim"),
        ({"neighbour_guidance": 0.35}, "--neighbour_guidance: .*unless --scgd"),
        ({"candidates": 4}, "--candidates: .*unless --scgd"),
        ({"candidate": "lowest_mean"}, "--candidate: .*unless --scgd"),
        ({"scgd": True, "candidates": 1, "candidate": "lowest_mean"}, "--candidate: .*above 1"),
        ({"anchor": 2}, "--anchor: .*unless --scgd"),
        ({"middle": True}, "--middle: .*unless --scgd"),
        ({"keep": "mean"}, "--keep: .*unless --samples is above 1"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(mr_run, sources, tmp_path, capsys, sampler, named):
    assert cli.main(argv_of(mr_run, sources, tmp_path / "out", sampler)) == 2
    assert re.search(f"translate: {named}", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_what_is_off_may_be_said_to_be_off(mr_run, sources, tmp_path):
    off = {"name": "ddpm", "eta": 0.0, "offset": 0, "middle": False, "keep": "first"}
    assert translate(mr_run, sources / NAMES[0], tmp_path / "out", preset="ct", sampler=off).done


@pytest.mark.parametrize(
    ("sampler", "named"),
    [
        ({"coherence": -1.0}, "--coherence: -1.0"),
        ({"coupling": 1.0}, "--coupling: 1.0 .*below 1"),
        ({"samples": 0}, "--samples: 0"),
        ({"candidates": 0}, "--candidates: 0"),
        ({"anchor": -1}, "--anchor: -1"),
        ({"tiles": 0.6}, "--tiles: 0.6"),
        ({"keep": "best"}, "--keep: 'best'.*nearest"),
        ({"candidate": "nearest"}, "--candidate: 'nearest'.*lowest_mean"),
        ({"scgd": True, "coupling": 0.5}, "--scgd.*--coupling.*choose one"),
    ],
)
def test_settings_that_cannot_work_are_named(mr_run, sources, tmp_path, sampler, named):
    with pytest.raises(InputError, match=named):
        translate(mr_run, sources, tmp_path / "out", preset="ct", sampler=sampler)
    assert not any(tmp_path.iterdir())


def test_what_another_process_holds_is_left_to_it(mr_run, sources, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    with disk.claim(disk.hidden(out / "lock", of="phantom005_ct.json")) as held:
        assert held
        result = translate(mr_run, sources, out, preset="ct")
    assert [path.name for path in result.left] == NAMES[:1]
    assert [path.name for path in result.done] == NAMES[1:] and not result.failed
    assert "1 left to another process" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["phantom006_ct.json", NAMES[1]]
