# SPDX-License-Identifier: Apache-2.0
"""Methods of three dimensions: they learn patches, and draw whole volumes, in one piece or tiles.

A network of single voxels draws of a volume what it would draw of each of its slices.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from setups import last_state, run_of, stats, stopping

from contourdiff_jax import config, methods, models
from contourdiff_jax.data import examples
from contourdiff_jax.data.store import open_store
from contourdiff_jax.diffusion import noise, samplers, schedules
from contourdiff_jax.errors import InputError
from contourdiff_jax.interop.exporting import export
from contourdiff_jax.methods import diffusion, regression, volumes
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training import checkpoint, loop, run

UNET = models.build
SLICES, SIDE = 10, 16


def settings(method="diffusion", **fields):
    """A tiny network of volumes, or the fields of another by dotted name."""
    ours = config.default()
    ours.method = method
    ours.model.update(channels=(8, 16), attention=(False, True), head_width=8, groups=4, dims=3)
    ours.volume.depth = 4
    ours.train.update(images=32, batch=4, log=4, evaluate=16, sample=32, checkpoint=0, warmup=8)
    ours.sampler.update(steps=3 if method != "regression" else 10, batch=4)
    ours.update_from_flattened_dict(fields)
    return ours


# ----------------------------------------------------------------------------------------------
# Drawing
# ----------------------------------------------------------------------------------------------


def contours(count=SLICES):
    return np.random.default_rng(0).integers(0, 2, (count, SIDE, SIDE)).astype(np.float32)


def pointwise(params, z_t, t, condition, *, key=None):
    """What stands in for the network: every voxel is drawn by itself."""
    seen = condition["contour"]
    return jnp.tanh(0.8 * z_t) + seen[..., :1] - 0.3 * seen[..., 1:]


def drawn(tile, asked, apply=pointwise, devices=1, **sampler):
    """Slices [N, H, W] of `asked`, drawn in one call."""
    ours = settings(**{f"sampler.{name}": value for name, value in sampler.items()})
    schedule, mesh = schedules.build(ours.diffusion), meshes.local(devices)
    visited = samplers.timesteps(ours.sampler, schedule.steps)
    draw = diffusion.drawing(lambda fixed: apply, schedule, "v", ours.sampler, visited, mesh, tile)
    seen, knots = examples.given(asked), noise.independent(3, "head", len(asked))
    of_volume = len(tile) == 3
    put = meshes.drawing(mesh, len(tile))
    seen = {"contour": seen[None] if of_volume else seen}
    found = draw(({}, ()), *meshes.split(put, (seen, knots)), None)
    assert found.shape == ((1,) * of_volume + (*asked.shape, 1))
    return np.asarray(found).reshape(asked.shape)


@pytest.mark.parametrize("sampler", [{}, {"name": "ddpm"}, {"guidance": 1.5}])
def test_a_volume_has_the_noise_of_its_slices(sampler):
    """Whether it is drawn in one piece, in tiles or slice by slice, and with several networks."""
    slices = drawn((SIDE, SIDE), contours(), **sampler)
    assert slices.std() > 0.1
    for tile, tiles in (((4, SIDE, SIDE), 0.0), ((4, 8, 8), 0.25), ((0, 8, 8), 0.5)):
        volume = drawn(tile, contours(), tiles=tiles, **sampler)
        np.testing.assert_allclose(volume, slices, atol=1e-5)


def test_slices_that_follow_change_nothing():
    """Nor do devices, and how many tiles are drawn at once."""
    whole = drawn((0, SIDE, SIDE), contours(), eta=1.0)
    longer = np.concatenate([contours(), np.zeros((6, SIDE, SIDE), np.float32)])
    for tile, how in (
        ((0, SIDE, SIDE), {}),
        ((4, 8, 8), {"tiles": 0.25, "batch": 6}),
        ((4, 8, 8), {"tiles": 0.25, "batch": 6, "devices": 2}),
    ):
        np.testing.assert_allclose(drawn(tile, longer, eta=1.0, **how)[:SLICES], whole, atol=1e-5)


def test_tiles_are_drawn_where_a_volume_exceeds_them_alone():
    """For a network that sees a voxel's neighbours: else it would not be told from the whole."""

    def wide(params, z_t, t, condition, *, key=None):
        beside = sum(jnp.roll(z_t, by, axis) for axis in (1, 2, 3) for by in (-1, 1))
        return jnp.tanh(z_t + 0.3 * beside) + condition["contour"][..., :1]

    whole = drawn((4, 8, 8), contours(), wide)
    held = drawn((SLICES, SIDE, SIDE), contours(), wide, tiles=0.25)
    np.testing.assert_array_equal(held, whole)
    assert np.abs(drawn((4, 8, 8), contours(), wide, tiles=0.25) - whole).max() > 0.05


def test_the_patches_learnt_are_the_tiles():
    ours = settings(**{"volume.side": 8})
    assert volumes.sides(ours, 16) == (4, 8, 8)
    ours.volume.update(depth=0, side=0)
    assert volumes.sides(ours, 16) == (0, 16, 16)
    ours.model.dims = 2
    assert volumes.sides(ours, 16) == (16, 16)


@pytest.mark.parametrize("method", ["diffusion", "regression"])
def test_a_network_of_volumes_draws_one(method):
    """In one piece and in tiles: the whole U-Net, and of diffusion with guidance."""
    guided = {"sampler.guidance": 2.0, "train.condition_dropout": 0.1}
    fields = guided if method == "diffusion" else {}
    found = {}
    for tiles in (0.0, 0.5):
        ours = settings(method, **{"sampler.tiles": tiles}, **fields)
        made = methods.build(run_of(ours, SIDE), mesh=meshes.local(1))
        params = made.players["network"].init(jax.random.key(0))
        noisy = jax.tree.map(
            lambda p: p + 0.05 * jax.random.normal(jax.random.key(p.size), p.shape), params
        )
        translator = made.translator({"network": noisy}, ())
        assert (translator.dims, translator.depth_unit, translator.unit) == (3, 2, 1)
        assert translator.denoises == (method == "diffusion")
        seen = {"contour": examples.given(contours(8))[None]}
        found[tiles] = np.asarray(translator(seen, noise.independent(0, "head", 8)))
        assert found[tiles].shape == (1, 8, SIDE, SIDE, 1) and found[tiles].std() > 0.01
    apart = np.abs(found[0.0] - found[0.5])
    assert apart.max() > 1e-3 and apart.mean() < 0.3


# ----------------------------------------------------------------------------------------------
# Learning
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["diffusion", "regression"])
def test_volumes_are_learnt_and_resumed_to_the_bit(
    two_convolutions, stacks, store_path, tmp_path, monkeypatch, method
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    ours = settings(method)
    assert methods.train(ours, store_path, whole)
    with monkeypatch.context() as patch:
        stopping(patch, 3)
        assert not methods.train(ours, store_path, parts)
    assert methods.train(ours, store_path, parts)
    assert stats(whole) == stats(parts)
    of = loop.like(methods.build(run.load(whole), store=open_store(store_path)))
    jax.tree.map(np.testing.assert_array_equal, last_state(whole, of), last_state(parts, of))
    assert len(list((whole / "samples").iterdir())) == 1
    kept = run.load(whole)
    assert kept.slice_spacing == 24.0 and kept.config.model.dims == 3


def test_a_network_for_few_steps_learns_volumes_of_its_teacher(
    two_convolutions, stacks, store_path, tmp_path
):
    assert methods.train(settings(), store_path, tmp_path / "teacher")
    ours = settings("distilled", **{"distillation.substeps": 2, "sampler.steps": 2})
    assert methods.train(ours, store_path, tmp_path / "run", teacher=tmp_path / "teacher")
    made = methods.build(run.load(tmp_path / "run"), mesh=meshes.local(1))
    _, averages = checkpoint.averages(tmp_path / "run", made.players, made.mesh)
    translator = made.translator(averages, made.fixed)
    seen = {"contour": examples.given(contours(6))[None]}
    found = translator(seen, noise.independent(0, "head", 6))
    assert translator.dims == 3 and found.shape == (1, 6, SIDE, SIDE, 1)


@pytest.mark.parametrize("method", ["diffusion", "regression"])
def test_held_out_patches_are_seen_a_batch_at_a_time(
    two_convolutions, stacks, store_path, method, monkeypatch
):
    """Which is the same as all at once."""
    store = open_store(store_path)
    found, sizes = [], []
    for batch in (2, 4):
        ours = settings(method, **{"train.batch": batch})
        made = methods.build(run.begin(ours, store), store=store, mesh=meshes.local(2))
        params = made.players["network"].init(jax.random.key(0))
        whole, example = volumes.parts, made.feed.held_out()
        seen = lambda *a, whole=whole: [sizes.append(len(p["x"])) or (r, p) for r, p in whole(*a)]  # noqa: E731
        with monkeypatch.context() as patch:
            patch.setattr(volumes, "parts", seen)
            found.append(made.held_out({"network": params}, (), example)["heldout_loss"])
    assert sizes == [2, 2, 4]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_picture_of_samples_shows_slices_of_a_patch(two_convolutions, stacks, store_path):
    store = open_store(store_path)
    ours = settings(**{"volume.depth": 6})
    made = methods.build(run.begin(ours, store), store=store, mesh=meshes.local(2))
    params = made.players["network"].init(jax.random.key(0))
    picture = made.samples({"network": params}, ())
    size = store.grid.size
    assert picture.shape == (4 * size, 3 * size) and picture.dtype == np.uint8
    truth = made.feed.at_rest("val", 1)["x"][0, [0, 2, 3, 5], ..., 0]
    np.testing.assert_array_equal(picture[:, :size], examples.grey(np.concatenate(truth)))


def test_the_similarity_of_volumes_is_that_of_their_slices(rng):
    image, truth = (rng.uniform(-1, 1, (2, 3, 12, 12)).astype(np.float32) for _ in range(2))
    volume = regression.similarity(image, truth)
    slices = regression.similarity(*(a.reshape(6, 12, 12) for a in (image, truth)))
    np.testing.assert_array_equal(np.asarray(volume).reshape(6, 12, 12), slices)
    section = config.default().regression
    section.ssim = 0.5
    example = {"x": truth[..., None], "mask": np.ones((2, 3, 12, 12, 1), np.float32)}
    found = regression.errors(section, image[..., None], example)
    expected = 0.5 * np.abs(image - truth).mean((1, 2, 3)) + 0.5 * (1 - volume).mean((1, 2, 3))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# ----------------------------------------------------------------------------------------------
# What cannot work
# ----------------------------------------------------------------------------------------------

NEIGHBOURS = ("contour", "neighbour")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model.conditions": NEIGHBOURS}, r"config\.model\.conditions: neighbour .*dims=3"),
        ({"sampler.scgd": True}, r"config\.sampler\.scgd: .*dims=3"),
        ({"sampler.coupling": 0.1}, r"config\.sampler\.coupling: .*dims=3"),
        ({"sampler.coherence": 24.0}, r"config\.sampler\.coherence: .*dims=3"),
        ({"method": "controlnet"}, r"config\.model\.dims: controlnet learns slices"),
        ({"method": "segmentation"}, r"config\.model\.dims: segmentation learns slices"),
        ({"method": "pix2pix"}, r"config\.model\.dims: pix2pix learns slices"),
        ({"volume.depth": -1}, r"config\.volume\.depth"),
    ],
)
def test_what_volumes_cannot_have_is_refused_in_one_line(fields, named):
    with pytest.raises(InputError, match=named) as error:
        config.check(settings(**fields), size=SIDE)
    assert "\n" not in str(error.value)


@pytest.fixture
def by_hand(two_convolutions, store_path, tmp_path):
    """(folder, config) -> a run with weights that nothing was learnt by."""

    def made(folder, ours):
        begun = run.begin(ours, open_store(store_path))
        folder.mkdir()
        begun.save(folder)
        params = methods.build(begun).players["network"].init(jax.random.key(0))
        checkpoint.save_averages(folder, {"network": params})
        return folder

    return made


@pytest.mark.parametrize("conditions", [("contour",), ("contour", "picture")])
def test_weights_of_slices_are_none_of_volumes(by_hand, stacks, store_path, tmp_path, conditions):
    """Nor are they where a network sees more than the one that it begins with."""
    flat = by_hand(tmp_path / "flat", settings(**{"model.dims": 2}))
    ours = settings(**{"model.conditions": conditions})
    with pytest.raises(InputError, match=r"flat: of another architecture"):
        methods.train(ours, store_path, tmp_path / "run", init=flat)


def test_networks_of_volumes_are_not_exported(by_hand, tmp_path):
    ours = by_hand(tmp_path / "run", settings())
    with pytest.raises(InputError, match=r"run: draws volumes, and diffusers .* slices alone"):
        export(ours, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_latents_are_of_slices():
    with pytest.raises(InputError, match=r"--codec: .*dims=3"):
        config.check(settings(), size=SIDE, side=4)


def test_a_field_of_volumes_has_no_effect_on_slices():
    ours = config.default()
    ours.volume.depth = 8
    with pytest.raises(InputError, match=r"config\.volume\.depth: .*config\.model\.dims is 3"):
        config.check_idle(ours)
    ours = settings("regression", **{"sampler.tiles": 0.25})
    config.check_idle(ours, ["sampler.tiles"])
    ours.model.dims = 2
    with pytest.raises(InputError, match=r"sampler\.tiles: .*config\.model\.dims is 3"):
        config.check_idle(ours, ["sampler.tiles"])


def test_a_card_tells_of_volumes():
    ours = settings(**{"volume.side": 8})
    assert methods.about("diffusion").training(ours)["patches"] == "4 slices of 8 x 8 px"
    ours.volume.update(depth=0, side=0)
    assert methods.about("regression").training(ours)["patches"] == "all slices"
    ours.model.dims = 2
    assert "patches" not in methods.about("diffusion").training(ours)
