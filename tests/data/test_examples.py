# SPDX-License-Identifier: Apache-2.0
"""Batches: which slices, in which order, and what becomes of them."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from contourdiff_jax.contours.opencv import contours, stack
from contourdiff_jax.contours.settings import preset
from contourdiff_jax.data import augment, examples, feeds
from contourdiff_jax.data.prepare import prepare
from contourdiff_jax.data.store import open_store
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.volumes import intensity

MR = intensity.preset("mr")
STILL = {"flip": False, "scale": (1.0, 1.0), "rotation": 0.0, "shift": (0.0, 0.0)}
MOVED = {"flip": True, "scale": (1.1, 0.95), "rotation": 8.0, "shift": (0.04, -0.03)}


@pytest.fixture(scope="module")
def store(store_path):
    return open_store(store_path)


@pytest.fixture(scope="module")
def mesh():
    return meshes.make(ConfigDict({"data": -1, "fsdp": 1}))


def feed(store, config, mesh=None, contours=None):
    """Of the slices of a store under a configuration."""
    return feeds.Slices(
        store,
        contours or preset("default", "mr"),
        tuple(config.model.conditions),
        config.seed,
        config.train,
        config.augment,
        config.disturbance,
        config.recast,
        mesh,
    )


def choices(config, volumes):
    """Of a training split whose slices are of those volumes."""
    slices = np.arange(len(volumes)) - np.searchsorted(volumes, volumes)
    index = {"volume": volumes, "slice": slices}
    return feed(SimpleNamespace(rows=lambda split: np.arange(len(volumes)), index=index), config)


@pytest.fixture
def fed(store, tiny, mesh):
    """(start, stop) -> list of examples, on the host."""

    def make(start, stop):
        steps = feed(store, tiny, mesh).training(start, stop)
        return [jax.device_get(example) for example in steps]

    return make


def raw(values, masks, modality=MR, native=None):
    """Slices [B, H, W] as a store has them."""
    native = None if native is None else native[:, None]
    return examples.Raw(modality.encode(values)[:, None], masks[:, None], native)


def make(values, masks, modality=MR, name="united", transforms=None, native=None):
    settings = preset(name, modality.modality)

    def made(raw, transforms):
        return examples.make(raw, modality, settings, transforms=transforms)

    return jax.device_get(jax.jit(made)(raw(values, masks, modality, native), transforms))


def transforms(*changes) -> augment.Transform:
    return augment.Transform(**{name: np.array([c[name] for c in changes]) for name in STILL})


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


# ----------------------------------------------------------------------------------------------
# Which slices
# ----------------------------------------------------------------------------------------------


def flat(seed, steps, batch, total):
    return np.concatenate([feeds.indices(seed, s, batch, total) for s in range(steps)])


@pytest.mark.parametrize(("batch", "total"), [(4, 12), (5, 12), (16, 12), (1, 7), (30, 7)])
def test_every_epoch_is_a_permutation_of_its_own(batch, total):
    epochs = 6
    seen = flat(0, -(-epochs * total // batch), batch, total)[: epochs * total]
    seen = seen.reshape(epochs, total)
    np.testing.assert_array_equal(np.sort(seen, 1), np.tile(np.arange(total), (epochs, 1)))
    assert len({tuple(epoch) for epoch in seen}) == epochs


def test_any_step_can_be_asked_for_directly():
    """Nothing is remembered: the answers are the same in any order."""
    steps = (7, 3, 100_000, 0, 7, 50)
    asked = {s: feeds.indices(5, s, 6, 40) for s in steps}
    for s in sorted(steps, reverse=True):
        np.testing.assert_array_equal(feeds.indices(5, s, 6, 40), asked[s])


def test_the_order_follows_the_seed():
    assert not np.array_equal(flat(0, 10, 4, 40), flat(1, 10, 4, 40))


# ----------------------------------------------------------------------------------------------
# Examples
# ----------------------------------------------------------------------------------------------


def test_images_and_contours_have_their_ranges(fed, tiny):
    for example in fed(0, 8):
        contour = example["condition"]["contour"]
        assert example["x"].shape == (tiny.train.batch, 32, 32, 1)
        assert contour.shape == (tiny.train.batch, 32, 32, 2)
        assert example["x"].dtype == contour.dtype == np.float32
        assert np.abs(example["x"]).max() <= 1
        assert set(np.unique(contour)) == {0, 1}
        assert (contour[..., -1] == 1).all()


def test_outside_the_body_there_is_air(rng):
    values = rng.random((3, 16, 16), np.float32)
    masks = np.zeros((3, 16, 16), np.uint8)
    masks[:, 4:12, 3:10] = 1
    x = make(values, masks)["x"][..., 0]
    assert (x[masks == 0] == -1).all()
    # To half a step of 65535.
    np.testing.assert_allclose(x[masks == 1], 2 * values[masks == 1] - 1, atol=2e-5)


def test_values_beyond_the_image_window_are_clipped():
    """A store keeps more of CT than the model sees."""
    values = np.linspace(-1024, 3071, 64, dtype=np.float32).reshape(1, 8, 8)
    x = make(values, np.ones((1, 8, 8), np.uint8), intensity.preset("ct"))["x"]
    assert x.min() == -1 and x.max() == 1
    np.testing.assert_allclose(x.ravel(), np.clip(values.ravel() / 1000, -1, 1), atol=5e-5)


def test_examples_at_rest_are_what_training_makes(store):
    """On the host and on the device: the same but for rounding."""
    rows = store.rows("train")[:4]
    ours = examples.at_rest(store, rows, preset("united", "mr"), ("contour", "neighbour"))
    theirs = make(store.values(rows), store.masks[rows])
    np.testing.assert_allclose(ours["x"], theirs["x"], atol=1e-6)
    same = ours["condition"]["contour"] == theirs["condition"]["contour"]
    assert same.mean() > 0.999
    assert not ours["condition"]["neighbour"].any()


def test_no_condition_is_not_an_empty_contour():
    """Slices of air have none either; the last channel tells them from a missing condition."""
    empty = examples.given(np.zeros((2, 4, 4), np.uint8))
    assert isinstance(empty, np.ndarray)
    assert (empty[..., 0] == 0).all()
    assert (empty != np.zeros_like(empty)).any((1, 2, 3)).all()


def test_contours_are_taken_from_the_augmented_slice(store):
    """At full sharpness: not the contours of the slice at rest, warped."""
    rows = store.rows("train")[2:3]
    values, masks = store.values(rows), store.masks[rows]
    moved = transforms(MOVED)
    example = make(values, masks, transforms=moved)
    warped, mask = (np.array(a[0]) for a in augment.apply(moved, values[None], masks[None], MR.air))
    edges = contours(warped[0], mask[0], preset("default", "mr"))
    assert edges.any()
    assert (example["condition"]["contour"][0, ..., 0] == edges).mean() > 0.999
    expected = MR.image.unit(np.where(mask > 0, warped, MR.air))
    np.testing.assert_allclose(example["x"][..., 0], expected, atol=1e-5)
    assert_same(make(values, masks, transforms=transforms(STILL)), make(values, masks))


def test_contours_of_native_pixels_are_warped_with_the_whole_image(rng):
    """Those that were kept; the image outside the body stays too, for they show it."""
    values = rng.random((2, 32, 32), np.float32)
    masks = np.zeros((2, 32, 32), np.uint8)
    kept = np.uint8(rng.random((2, 32, 32)) < 0.1)
    still = make(values, masks, name="original", native=kept)
    np.testing.assert_array_equal(still["condition"]["contour"][..., 0], kept)
    np.testing.assert_allclose(still["x"][..., 0], 2 * values - 1, atol=2e-5)
    both = transforms(STILL, STILL)
    assert_same(make(values, masks, MR, "original", both, kept), still)

    both = transforms(MOVED, STILL)
    moved = make(values, masks, MR, "original", both, kept)
    expected = augment.apply_to_contours(both, kept)
    np.testing.assert_array_equal(moved["condition"]["contour"][..., 0], expected)
    everywhere = np.ones_like(masks)[:, None]
    warped, inside = augment.apply(both, values[:, None], everywhere, MR.air)
    expected = MR.image.unit(np.where(inside, warped, MR.air))[:, 0]
    np.testing.assert_allclose(moved["x"][..., 0], expected, atol=2e-5)


def test_a_store_gives_the_contours_that_are_asked_for(phantom_data, tmp_path):
    """Its own of native pixels, or those of its slices."""
    out = tmp_path / "store"
    grid = {"spacing": 7.2, "size": 32}
    prepare(phantom_data / "train_mr", out, "mr", **grid, contours_file="original")
    store = open_store(out)
    rows = store.rows("train")[:3]
    native = examples.at_rest(store, rows, preset("original", "mr"))
    np.testing.assert_array_equal(native["condition"]["contour"][..., 0], store.contours[rows])
    ours = examples.at_rest(store, rows, preset("default", "mr"))
    edges = stack(store.values(rows), store.masks[rows], preset("default", "mr"))
    np.testing.assert_array_equal(ours["condition"]["contour"][..., 0], edges)


def test_pictures_of_a_store_move_with_the_image(phantom_data, tmp_path):
    """Contours that need the volumes' own voxels are taken from what the store kept of them."""
    out = tmp_path / "store"
    prepare(phantom_data / "test_ct", out, "ct", spacing=7.2, size=32, validation=0)
    store, ct = open_store(out), preset("default", "ct")
    assert store.contour_settings == ct and store.contours is None
    rows = store.rows("train")[:4]
    still = examples.at_rest(store, rows, ct)["condition"]["contour"][..., 0]
    expected = [
        contours(picture / 255, mask, dataclasses.replace(ct, thin=0, curve=((0, 0), (1, 1))))
        for picture, mask in zip(store.pictures[rows], store.masks[rows], strict=True)
    ]
    assert still.any()
    np.testing.assert_array_equal(still, expected)

    np.testing.assert_array_equal(store.contours_of(rows, ct), still)

    flipped = transforms(*[STILL | {"flip": True}] * 4)
    kept = (a[rows][:, None] for a in (store.slices, store.masks, store.pictures))
    slices, masks, pictures = kept
    moved = jax.jit(lambda raw, t: examples.make(raw, store.preset, ct, transforms=t))(
        examples.Raw(slices, masks, pictures), flipped
    )
    mirrored = examples.Raw(*(a[..., ::-1] for a in (slices, masks, pictures)))
    assert_same(moved, jax.jit(lambda raw: examples.make(raw, store.preset, ct))(mirrored))


# ----------------------------------------------------------------------------------------------
# Neighbours
# ----------------------------------------------------------------------------------------------


def test_neighbours_are_of_the_same_volume_and_as_often_as_asked(tiny):
    volumes = np.repeat([4, 5, 9], [6, 1, 13])
    tiny.model.conditions = ("contour", "neighbour")
    tiny.train.update(batch=20, neighbour=0.6)
    chosen = [choices(tiny, volumes).choose(step) for step in range(200)]
    pairs = np.concatenate([choice.rows for choice in chosen])
    shown = np.concatenate([choice.neighboured for choice in chosen]) == 1
    assert (volumes[pairs[:, 0]] == volumes[pairs[:, 1]]).all()
    steps = np.diff(pairs, axis=1)[:, 0]
    assert set(steps[shown]) == {-1, 1} and set(steps[~shown]) == {0}
    inner = np.isin(pairs[:, 0], [1, 2, 3, 4, *range(8, 19)])
    assert shown[inner].mean() == pytest.approx(0.6, abs=0.04)
    assert not shown[pairs[:, 0] == 6].any()  # a volume of one slice
    assert shown[np.isin(pairs[:, 0], [0, 5, 7, 19])].mean() == pytest.approx(0.3, abs=0.06)


def test_a_neighbour_moves_with_its_image(store, fed, tiny):
    """It is the slice beside, through the same transform; a missing one is all zeros."""
    tiny.model.conditions = ("contour", "neighbour")
    tiny.train.neighbour = 0.7
    tiny.augment.update(flip=0.5, probability=0.0)
    rows = store.rows("train")
    at_rest = examples.at_rest(store, rows, preset("default", "mr"))["x"][..., 0]
    seen = set()
    for step, example in enumerate(fed(0, 6)):
        pairs, shown, _ = feed(store, tiny).choose(step)
        for i, (row, beside) in enumerate(pairs):
            image, neighbour = example["x"][i, ..., 0], example["condition"]["neighbour"][i]
            flipped = not np.allclose(image, at_rest[row], atol=1e-6)
            assert (neighbour[..., 1] == shown[i]).all()
            expected = at_rest[beside][:, ::-1] if flipped else at_rest[beside]
            np.testing.assert_allclose(neighbour[..., 0], expected * shown[i], atol=1e-6)
            seen.add((flipped, bool(shown[i])))
    assert len(seen) == 4


# ----------------------------------------------------------------------------------------------
# Sources
# ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paired_store(paired_store_path):
    return open_store(paired_store_path)


def test_a_source_is_seen_in_its_own_range_within_its_own_body(paired_store):
    rows = paired_store.rows("train")[:3]
    seen = examples.at_rest(paired_store, rows, preset("default", "mr"), ("source",))
    assert set(seen["condition"]) == {"source"}
    source, flag = np.moveaxis(seen["condition"]["source"], -1, 0)
    masks = paired_store.source_masks[rows]
    assert (flag == 1).all() and (source[masks == 0] == -1).all()
    # To a step of each of the storages.
    expected = -seen["x"][..., 0][masks == 1]
    np.testing.assert_allclose(source[masks == 1], expected, atol=1e-4)
    assert masks.sum() < paired_store.masks[rows].sum()


@pytest.mark.parametrize("conditions", [("source",), ("contour", "source")])
def test_a_source_moves_with_its_image(paired_store, tiny, mesh, conditions):
    """Through the same transform, its body too; without contours none are computed."""
    tiny.model.conditions = conditions
    tiny.augment.probability = 1.0
    fed = feed(paired_store, tiny, mesh)
    assert set(fed.example["condition"]) == set(conditions)
    moved = []
    for example in fed.training(0, 3):
        like = jax.tree.map(lambda a: (a.shape, a.dtype), example)
        assert like == jax.tree.map(lambda a: (a.shape, a.dtype), fed.example)
        image = np.asarray(example["x"][..., 0])
        source, flag = np.moveaxis(np.asarray(example["condition"]["source"]), -1, 0)
        assert (flag == 1).all()
        inside = source > -1
        np.testing.assert_allclose(source[inside], -image[inside], atol=2e-4)
        assert 0.5 < inside.sum() / (image > -1).sum() < 1
        moved.append(image)
    rest = fed.at_rest(fed._numbers)["x"][..., 0]
    assert np.abs(np.concatenate(moved)[:, None] - rest[None]).max((2, 3)).min() > 0.1


def test_streamed_sources_are_those_kept_on_the_devices(paired_store, tiny, mesh):
    tiny.model.conditions = ("contour", "neighbour", "source")
    tiny.train.neighbour = 0.5
    resident = list(feed(paired_store, tiny, mesh).training(0, 3))
    tiny.train.resident = 0.0
    assert not feed(paired_store, tiny).is_resident
    for ours, theirs in zip(feed(paired_store, tiny, mesh).training(0, 3), resident, strict=True):
        assert_same(jax.device_get(ours), jax.device_get(theirs))


def test_a_paired_store_is_to_others_the_store_of_its_target(paired_store, store, tiny, mesh):
    ours = feed(paired_store, tiny, mesh).training(0, 2)
    for one, other in zip(ours, feed(store, tiny, mesh).training(0, 2), strict=True):
        assert_same(jax.device_get(one), jax.device_get(other))


def test_a_store_without_sources_is_refused_to_who_wants_to_see_them(store, tiny):
    tiny.model.conditions = ("source",)
    with pytest.raises(InputError, match=r"mr: without sources, .*`prepare --pairs`") as error:
        feed(store, tiny)
    assert "\n" not in str(error.value)


# ----------------------------------------------------------------------------------------------
# Training
# ----------------------------------------------------------------------------------------------


def test_resuming_gives_the_examples_that_would_have_come(fed):
    whole = fed(0, 9)
    for start in (1, 5, 8):
        resumed = fed(start, 9)
        assert len(resumed) == 9 - start
        for ours, theirs in zip(resumed, whole[start:], strict=True):
            assert_same(ours, theirs)


@pytest.mark.parametrize("conditions", [("contour",), ("contour", "neighbour")])
def test_streamed_slices_give_the_same_examples(store, fed, tiny, conditions):
    tiny.model.conditions = conditions
    assert feed(store, tiny).is_resident
    resident = fed(3, 7)
    tiny.train.resident = 0.0
    assert not feed(store, tiny).is_resident
    for ours, theirs in zip(fed(3, 7), resident, strict=True):
        assert_same(ours, theirs)


def test_the_number_of_devices_changes_nothing(store, fed, tiny):
    whole = fed(2, 5)
    alone = meshes.make(ConfigDict({"data": 1, "fsdp": 1}))
    steps = feed(store, tiny, alone).training(2, 5)
    for ours, theirs in zip(steps, whole, strict=True):
        assert_same(jax.device_get(ours), theirs)


def test_the_parts_of_all_processes_are_the_global_batch(tiny):
    tiny.model.conditions = ("contour", "neighbour")
    tiny.train.neighbour = 0.5
    volumes = np.repeat(np.arange(5), 8)
    for step in range(5):
        parts = [choices(tiny, volumes).choose(step, (index, 2)) for index in (0, 1)]
        together = jax.tree.map(lambda *a: np.concatenate(a), *parts)
        assert_same(together, choices(tiny, volumes).choose(step))


def test_only_training_subjects_are_learnt(store, fed, tiny):
    """Without augmentation every image is a slice of the training split, and all of them come."""
    tiny.augment.update(flip=0.0, probability=0.0)
    rows = store.rows("train")
    assert len(store.rows("val"))
    known = examples.at_rest(store, rows, preset("default", "mr"))["x"]
    steps = -(-len(rows) // tiny.train.batch)
    seen = np.concatenate([example["x"] for example in fed(0, steps)])
    difference = np.abs(seen[:, None] - known[None]).max((2, 3, 4))
    assert (difference.min(1) < 1e-6).all() and (difference.min(0) < 1e-6).all()


def test_a_slice_is_augmented_anew_each_time(fed, tiny):
    tiny.augment.update(probability=1.0)
    seen = [image.tobytes() for example in fed(0, 12) for image in example["x"]]
    assert len(set(seen)) == len(seen)


def test_examples_follow_the_seed(fed, tiny):
    ours = fed(0, 1)[0]["x"]
    tiny.seed = 1
    assert not np.array_equal(fed(0, 1)[0]["x"], ours)


def test_disturbances_change_contours_and_nothing_else(fed, tiny):
    ours = fed(0, 3)
    tiny.disturbance.missing = 0.9
    for disturbed, example in zip(fed(0, 3), ours, strict=True):
        np.testing.assert_array_equal(disturbed["x"], example["x"])
        after, before = (e["condition"]["contour"][..., 0] for e in (disturbed, example))
        assert (after <= before).all() and after.sum() < before.sum()


PICTURES = ("contour", "picture")


def test_a_picture_is_the_moved_slice_in_another_contrast(store, tiny, mesh):
    tiny.model.conditions = PICTURES
    tiny.recast.update(evenness=1e5, blur=0.0, noise=0.0)
    [example] = feed(store, tiny, mesh).training(0, 1)
    np.testing.assert_allclose(
        example["condition"]["picture"][..., 0], example["x"][..., 0], atol=0.05
    )
    tiny.recast.evenness = 0.3
    [other] = feed(store, tiny, mesh).training(0, 1)
    np.testing.assert_array_equal(other["x"], example["x"])
    same = other["condition"]["picture"][..., 0] - np.asarray(other["x"])[..., 0]
    assert np.abs(same).max() > 0.2


def test_pictures_follow_the_step_alone(store, tiny, mesh):
    tiny.model.conditions = PICTURES
    ours = list(feed(store, tiny, mesh).training(0, 3))[2]
    [again] = feed(store, tiny, mesh).training(2, 3)
    np.testing.assert_array_equal(ours["condition"]["picture"], again["condition"]["picture"])


def test_a_picture_at_rest_is_that_in_which_contours_are_sought(store, phantom_data, tmp_path):
    rows, settings = store.rows("train")[:3], preset("default", "mr")
    example = examples.at_rest(store, rows, settings, PICTURES)
    np.testing.assert_allclose(
        example["condition"]["picture"][..., 0], example["x"][..., 0], atol=0.01
    )


def test_contours_of_several_pictures_have_no_picture_to_show(store, tiny):
    tiny.model.conditions = PICTURES
    with pytest.raises(InputError, match="sought in native pixels"):
        feed(store, tiny, contours=preset("original", "mr"))
