# SPDX-License-Identifier: Apache-2.0
"""Batches: which slices, in which order, and what becomes of them."""

import itertools

import jax
import numpy as np
import pytest

from contourdiff_jax.data import augment, batches, intensity
from contourdiff_jax.data.contours import contours, preset
from contourdiff_jax.data.prepare import prepare
from contourdiff_jax.data.store import open_store

MR = intensity.preset("mr")
STILL = augment.Transform(False, (1.0, 1.0), 0.0, (0.0, 0.0))


@pytest.fixture(scope="module")
def store(store_path):
    return open_store(store_path)


@pytest.fixture
def examples(store, tiny):
    """(start, stop, process) -> list of examples."""

    def make(start, stop, **options):
        return list(
            batches.training(
                store, preset("default", "mr"), tiny, start=start, stop=stop, **options
            )
        )

    return make


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


# ----------------------------------------------------------------------------------------------
# Which slices
# ----------------------------------------------------------------------------------------------


def flat(seed, steps, batch, total):
    return np.concatenate([batches.indices(seed, s, batch, total) for s in range(steps)])


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
    asked = {s: batches.indices(5, s, 6, 40) for s in steps}
    for s in sorted(steps, reverse=True):
        np.testing.assert_array_equal(batches.indices(5, s, 6, 40), asked[s])


def test_the_order_follows_the_seed():
    assert not np.array_equal(flat(0, 10, 4, 40), flat(1, 10, 4, 40))


# ----------------------------------------------------------------------------------------------
# Examples
# ----------------------------------------------------------------------------------------------


def test_images_and_contours_have_their_ranges(examples, tiny):
    for example in examples(0, 8):
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
    x = batches.make(values, masks, MR, preset("default", "mr"))["x"][..., 0]
    assert (x[masks == 0] == -1).all()
    np.testing.assert_allclose(x[masks == 1], 2 * values[masks == 1] - 1, atol=1e-6)


def test_values_beyond_the_image_window_are_clipped():
    """A store keeps more of CT than the model sees."""
    values = np.linspace(-1024, 3071, 64, dtype=np.float32).reshape(1, 8, 8)
    ct = intensity.preset("ct")
    x = batches.make(values, np.ones((1, 8, 8), np.uint8), ct, preset("default", "ct"))["x"]
    assert x.min() == -1 and x.max() == 1
    np.testing.assert_allclose(x.ravel(), np.clip(values.ravel() / 1000, -1, 1), atol=1e-6)


def test_no_condition_is_not_an_empty_contour():
    """Slices of air have none either; the last channel tells them from a missing condition."""
    empty = batches.given(np.zeros((2, 4, 4), np.uint8))
    assert (empty[..., 0] == 0).all()
    assert (empty != np.zeros_like(empty)).any((1, 2, 3)).all()


def test_contours_are_taken_from_the_augmented_slice(store, rng):
    """At full sharpness: not the contours of the slice at rest, warped."""
    rows = store.rows("train")[2:3]
    values, masks = store.values(rows), store.masks[rows]
    transform = augment.Transform(True, (1.1, 0.95), 8.0, (0.04, -0.03))
    example = batches.make(values, masks, MR, preset("default", "mr"), [transform])
    warped, mask = augment.apply(transform, values[0], masks[0], MR.air)
    edges = contours(warped, mask, preset("default", "mr"))
    assert edges.any()
    np.testing.assert_array_equal(example["condition"]["contour"][0, ..., 0], edges)
    expected = MR.image.unit(np.where(mask > 0, warped, MR.air))
    np.testing.assert_array_equal(example["x"][0, ..., 0], expected)
    still = batches.make(values, masks, MR, preset("default", "mr"))
    assert_same(batches.make(values, masks, MR, preset("default", "mr"), [STILL]), still)


def test_contours_of_native_pixels_are_warped_with_the_whole_image(rng):
    """Those that were kept; the image outside the body stays too, for they show it."""
    values = rng.random((2, 32, 32), np.float32)
    masks = np.zeros((2, 32, 32), np.uint8)
    kept = np.uint8(rng.random((2, 32, 32)) < 0.1)
    original = preset("original", "mr")
    still = batches.make(values, masks, MR, original, native=kept)
    np.testing.assert_array_equal(still["condition"]["contour"][..., 0], kept)
    np.testing.assert_allclose(still["x"][..., 0], 2 * values - 1, atol=1e-6)
    assert_same(batches.make(values, masks, MR, original, [STILL, STILL], kept), still)

    transform = augment.Transform(True, (1.1, 0.95), 8.0, (0.04, -0.03))
    moved = batches.make(values, masks, MR, original, [transform, STILL], kept)
    expected = augment.apply_to_contours(transform, kept[0])
    np.testing.assert_array_equal(moved["condition"]["contour"][0, ..., 0], expected)
    warped, inside = augment.apply(transform, values[0], np.ones_like(masks[0]), MR.air)
    expected = MR.image.unit(np.where(inside, warped, MR.air))
    np.testing.assert_array_equal(moved["x"][0, ..., 0], expected)


def test_a_store_gives_the_contours_that_are_asked_for(phantom_data, tmp_path):
    """Its own of native pixels, or those of its slices."""
    out = tmp_path / "store"
    grid = {"spacing": 7.2, "size": 32}
    prepare(phantom_data / "train_mr", out, "mr", **grid, contours_file="original")
    store = open_store(out)
    rows = store.rows("train")[:3]
    native = batches.examples(store, rows, preset("original", "mr"))
    np.testing.assert_array_equal(native["condition"]["contour"][..., 0], store.contours[rows])
    ours = batches.examples(store, rows, preset("default", "mr"))
    slices = store.values(rows), store.masks[rows]
    assert_same(ours, batches.make(*slices, MR, preset("default", "mr")))


# ----------------------------------------------------------------------------------------------
# Training
# ----------------------------------------------------------------------------------------------


def test_resuming_gives_the_examples_that_would_have_come(examples):
    whole = examples(0, 9)
    for start in (1, 5, 8):
        resumed = examples(start, 9)
        assert len(resumed) == 9 - start
        for ours, theirs in zip(resumed, whole[start:], strict=True):
            assert_same(ours, theirs)


def test_the_parts_of_all_processes_are_the_global_batch(examples):
    whole = examples(2, 5)
    parts = [examples(2, 5, process=(index, 2)) for index in (0, 1)]
    for example, *shares in zip(whole, *parts, strict=True):
        assert_same(jax.tree.map(lambda *a: np.concatenate(a), *shares), example)


def test_only_training_subjects_are_learnt(store, examples, tiny):
    """Without augmentation every image is a slice of the training split, and all of them come."""
    tiny.augment.update(flip=0.0, probability=0.0)
    rows = store.rows("train")
    assert len(store.rows("val"))
    slices = batches.make(store.values(rows), store.masks[rows], MR, preset("default", "mr"))["x"]
    known = {image.tobytes() for image in slices}
    steps = -(-len(rows) // tiny.train.batch)
    seen = itertools.chain.from_iterable(example["x"] for example in examples(0, steps))
    assert {image.tobytes() for image in seen} == known


def test_a_slice_is_augmented_anew_each_time(store, examples, tiny):
    tiny.train.batch = len(store.rows("train"))
    tiny.augment.update(probability=1.0)
    seen = [image.tobytes() for example in examples(0, 3) for image in example["x"]]
    assert len(set(seen)) == len(seen)


def test_examples_follow_the_seed(examples, tiny):
    ours = examples(0, 1)[0]["x"]
    tiny.seed = 1
    assert not np.array_equal(examples(0, 1)[0]["x"], ours)
