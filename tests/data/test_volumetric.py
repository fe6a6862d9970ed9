# SPDX-License-Identifier: Apache-2.0
"""Patches of volumes: which, in which order, and what becomes of them."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from contourdiff_jax.contours.settings import preset
from contourdiff_jax.data import examples, volumetric
from contourdiff_jax.data.store import StoreWriter, open_store
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.volumes import intensity
from contourdiff_jax.volumes.grid import Grid
from contourdiff_jax.volumes.intensity import Window

MR, CT = intensity.preset("mr"), intensity.preset("ct")
SIDE = 16
CONTOURS = preset("default", "mr")
LENGTHS = {"anna": 12, "bert": 5, "carl": 9, "dora": 10}
SPLITS = dict.fromkeys(LENGTHS, "train") | {"dora": "val"}
BOTH = ("contour", "source")


def volume(n, seed):
    """Values and masks [n, H, W]: blocks in a body, brighter from slice to slice."""
    rng = np.random.default_rng(seed)
    blocks = np.kron(rng.random((n, 4, 4)), np.ones((1, 4, 4)))
    values = np.float32(0.5 * blocks + np.linspace(0.1, 0.5, n)[:, None, None])
    masks = np.zeros((n, SIDE, SIDE), bool)
    masks[:, 1:-1, 2:-2] = True
    return values, masks


def write(path, *, lengths=LENGTHS, step=3.0, steps=None, numbers=None, every=0.0, native=None):
    """A paired store of such volumes, `step` mm from slice to slice, or `steps` by subject."""
    grid = Grid("axial", 1.0, SIDE, every)
    with StoreWriter(path, MR, grid, source_preset=CT, contours=native) as writer:
        for seed, (subject, n) in enumerate(lengths.items()):
            values, masks = volume(n, seed)
            apart = (steps or {}).get(subject, np.full(n - 1, step))
            writer.add(
                subject,
                values,
                masks,
                positions=np.cumsum([-20.0, *apart]),
                window=Window(0, 1),
                source=f"{subject}.nii.gz",
                sha256=f"{seed:064x}",
                sources=CT.image.inverse(1 - 2 * values),
                source_masks=masks,
                numbers=(numbers or {}).get(subject),
                basis=None if native is None else values > 0.7,
            )
        writer.finish({name: SPLITS[name] for name in lengths})
    return open_store(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write(tmp_path_factory.mktemp("stores") / "volumes")


@pytest.fixture(scope="module")
def mesh():
    return meshes.make(ConfigDict({"data": -1, "fsdp": 1}))


@pytest.fixture
def tiny(tiny):
    """That learns from patches of 8 slices."""
    tiny.model.dims = 3
    tiny.volume.depth = 8
    return tiny


def still(config):
    """Without any movement."""
    config.augment.update(flip=0.0, probability=0.0)
    return config


def feed(store, config, mesh=None, contours=CONTOURS, **how):
    conditions = tuple(config.model.conditions)
    return volumetric.feed(config, store, contours, conditions, mesh, **how)


def taught(store, config, mesh, start, stop, **how):
    """Examples of steps, on the host."""
    return [jax.device_get(e) for e in feed(store, config, mesh, **how).training(start, stop)]


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


# ----------------------------------------------------------------------------------------------
# Which patches
# ----------------------------------------------------------------------------------------------


def chosen(store, config, steps):
    """All patches of so many steps."""
    fed = feed(store, config)
    return jax.tree.map(lambda *a: np.concatenate(a), *[fed.choose(step) for step in range(steps)])


def test_a_volume_is_seen_as_often_as_it_has_slices(store, tiny):
    """An epoch has as many patches as there are slices."""
    tiny.train.batch = 13
    rows = chosen(store, tiny, 2 * (12 + 5 + 9) // 13).rows
    volumes = store.index["volume"][store.rows("train")][rows]
    assert (volumes == volumes[:, :1, :1]).all()
    assert np.bincount(volumes[:, 0, 0]).tolist() == [24, 10, 18]


def test_patches_begin_anywhere_that_they_lie_within(store, tiny):
    """Uniformly; what is shorter than a patch lies anywhere within that."""
    tiny.train.batch = 26
    patches = chosen(store, still(tiny), 60)
    assert (patches.weights == 0).all()
    first = patches.rows[:, 0, 0]
    for start, n in ((0, 12), (12, 5), (17, 9)):
        ours = (first >= start) & (first < start + n)
        there = patches.there[ours]
        if n < 8:
            shifts = np.bincount(there.argmax(1), minlength=4)
            assert (there.sum(1) == n).all()
            for row in patches.rows[ours][..., 0], there:
                assert len(row) == 300
            inside = patches.rows[ours][..., 0][there > 0].reshape(-1, n)
            np.testing.assert_array_equal(inside, np.tile(np.arange(start, start + n), (300, 1)))
        else:
            shifts = np.bincount(first[ours] - start)
            assert there.all() and (np.diff(patches.rows[ours][..., 0]) == 1).all()
        assert len(shifts) == abs(n - 8) + 1
        assert shifts.min() > 0.6 * ours.sum() / len(shifts)


def test_patches_are_scaled_along_the_axis_and_stay_within(store, tiny):
    tiny.augment.update(probability=0.5, depth=0.4)
    tiny.train.batch = 26
    patches = chosen(store, tiny, 40)
    at = patches.rows[..., 0] + patches.weights
    # The outermost slices may lie up to half a slice beyond the volume's.
    steps = np.diff(at, axis=1)[patches.there.all(1), 1:-1]
    # Each patch has one scale; half of them have none.
    np.testing.assert_allclose(steps, np.repeat(steps[:, :1], 5, 1), atol=2e-6)
    scale = 1 / steps[:, 0]
    assert (np.abs(scale - 1) < 1e-6).mean() == pytest.approx(0.5, abs=0.08)
    assert 1 / 1.4 - 1e-5 <= scale.min() < 0.8 and 1.3 < scale.max() <= 1.4 + 1e-5
    assert np.isin(patches.rows[..., 1] - patches.rows[..., 0], (0, 1)).all()
    volumes = store.index["volume"][store.rows("train")][patches.rows]
    assert (volumes == volumes[:, :1, :1]).all()


def test_processes_share_a_step_and_devices_change_nothing(store, tiny, mesh):
    for step in range(3):
        parts = [feed(store, tiny).choose(step, (index, 2)) for index in (0, 1)]
        together = jax.tree.map(lambda *a: np.concatenate(a), *parts)
        assert_same(together, feed(store, tiny).choose(step))
    assert mesh.size == 2
    alone = meshes.make(ConfigDict({"data": 1, "fsdp": 1}))
    assert_same(taught(store, tiny, alone, 1, 3), taught(store, tiny, mesh, 1, 3))


def test_volumes_fall_apart_where_slices_are_missing(tmp_path, tiny):
    """A pair lacks some, a scan has a gap; a slice alone is no volume."""
    numbers = {"anna": [0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 12, 14]}
    steps = {"anna": 3.0 * np.diff(numbers["anna"]), "carl": [3, 3, 9, 3, 3, 3, 3, 3]}
    store = write(tmp_path / "store", numbers=numbers, steps=steps)
    fed = feed(store, tiny)
    assert [len(rows) for rows in fed._volumes] == [4, 7, 5, 3, 6]
    tiny.volume.depth = 0
    assert feed(store, tiny).depth == 8, "7, and as often as the network halves them"


def test_an_error_names_the_slices(store, tiny):
    tiny.train.batch = 2
    words = feed(store, still(tiny)).named(3).split("; ")
    patches = feed(store, tiny).choose(2)
    for word, rows, there in zip(words, patches.rows, patches.there, strict=True):
        first, *_, last = store.rows("train")[rows[there > 0, 0]]
        subject, slices = store.index["subject"], store.index["slice"]
        assert word == f"{subject[first]} slices {slices[first]} to {slices[last]}"


# ----------------------------------------------------------------------------------------------
# What becomes of them
# ----------------------------------------------------------------------------------------------


def test_a_patch_at_rest_is_its_slices_to_the_bit(store, tiny):
    tiny.model.conditions = BOTH
    fed = feed(store, tiny, masked=True)
    patches = fed.at_hand("train", 3)
    assert patches.shape == (3, 8)
    made = fed.at_rest(patches)
    rows = patches[0]
    assert (np.diff(rows) == 1).all()
    alone = examples.at_rest(store, rows, CONTOURS, BOTH, masked=True)
    assert_same(jax.tree.map(lambda a: a[0], made), alone)
    edges = made["condition"]["contour"][0, ..., 0]
    np.testing.assert_array_equal(edges, store.contours_of(rows, CONTOURS))
    assert edges.any() and (made["condition"]["contour"][..., 1] == 1).all()


def test_training_makes_what_is_at_rest(store, tiny, mesh):
    """But for rounding, where nothing moves."""
    tiny.model.conditions = BOTH
    still(tiny)
    fed = feed(store, tiny, mesh, masked=True)
    numbers = store.rows("train")
    for step, example in enumerate(taught(store, tiny, mesh, 0, 4, masked=True)):
        like = jax.tree.map(lambda a: (a.shape, a.dtype), example)
        assert like == jax.tree.map(lambda a: (a.shape, a.dtype), fed.example)
        choice = fed.choose(step)
        rows = np.where(choice.there, numbers[choice.rows[..., 0]], volumetric.NOTHING)
        rest = fed.at_rest(rows)
        for name in ("x", "mask"):
            np.testing.assert_allclose(example[name], rest[name], atol=1e-5)
        source = example["condition"]["source"]
        np.testing.assert_allclose(source, rest["condition"]["source"], atol=1e-5)
        edges = (e["condition"]["contour"] for e in (example, rest))
        assert np.equal(*edges).mean() > 0.999


def test_beside_a_short_volume_is_air(tmp_path, tiny, mesh):
    """Without a body and contours, which are known not to be there; the mask says where."""
    store = write(tmp_path / "store", lengths={"bert": 5})
    tiny.model.conditions = ("contour", "picture")
    tiny.disturbance.noise = 0.2
    for config in (tiny, still(tiny)):
        fed = feed(store, config, mesh, masked=True)
        for step, example in enumerate(taught(store, config, mesh, 0, 3, masked=True)):
            beyond = fed.choose(step).there == 0
            assert 3 * len(beyond) - 4 <= beyond.sum() <= 3 * len(beyond) + 4
            assert (example["x"][beyond] == -1).all() and not example["mask"][beyond].any()
            contour, picture = (example["condition"][n] for n in ("contour", "picture"))
            assert not contour[beyond][..., 0].any() and (picture[beyond][..., 0] == -1).all()
            assert (contour[..., 1] == 1).all() and (picture[..., 1] == 1).all()
            assert example["mask"][~beyond].any((1, 2, 3)).all()
    patches = feed(store, tiny).at_hand("train", 4)
    assert patches.tolist() == [[-1, 0, 1, 2, 3, 4, -1, -1]]
    assert (feed(store, tiny).at_rest(patches)["x"][0, [0, 6, 7]] == -1).all()


def test_between_two_slices_codes_are_mixed_and_masks_are_the_nearer_ones(store, tiny):
    """By hand, of a ramp along the axis."""
    fed = feed(store, tiny)
    ramp = np.uint16([1000, 3000])[None, None, :, None, None] * np.ones((1, 3, 1, 2, 2), np.uint16)
    masks = np.uint8([0, 1])[None, None, :, None, None] * np.ones((1, 3, 1, 2, 2), np.uint8)
    raw = examples.Raw(ramp, masks, None, ramp, masks)
    mixed = jax.device_get(jax.jit(fed._between)(raw, np.float32([[0.0, 0.25, 0.75]])))
    assert mixed.slices.dtype == np.uint16 and mixed.slices.shape == (3, 1, 2, 2)
    assert mixed.slices[:, 0, 0, 0].tolist() == [1000, 1500, 2500]
    assert mixed.masks[:, 0, 0, 0].tolist() == [0, 0, 1] == mixed.source_masks[:, 0, 1, 1].tolist()
    assert mixed.kept is None
    np.testing.assert_array_equal(mixed.sources, mixed.slices)


def test_the_slices_of_a_patch_move_together(store, tiny, mesh):
    """So does the source; the body, which all slices have in common, is the same in all."""
    tiny.model.conditions = BOTH
    tiny.augment.update(probability=1.0, rotation=30.0)
    bodies = []
    for example in taught(store, tiny, mesh, 0, 2, masked=True):
        there = example["mask"].any((2, 3, 4))
        for mask, inside in zip(example["mask"], there, strict=True):
            assert (mask[inside] == mask[inside][:1]).all()
            bodies.append(mask[inside][0].tobytes())
        source = example["condition"]["source"][..., 0]
        body = (source > -1) & (example["x"][..., 0] > -1)
        np.testing.assert_allclose(source[body], -example["x"][..., 0][body], atol=1e-3)
    assert len({*bodies}) == len(bodies)


def test_patches_are_cut_out_of_slices_with_their_contours(store, tiny, mesh):
    whole = taught(store, tiny, mesh, 0, 2)
    tiny.volume.side = 8
    corners = set()
    for step, (cut, full) in enumerate(zip(taught(store, tiny, mesh, 0, 2), whole, strict=True)):
        assert cut["x"].shape == (4, 8, 8, 8, 1)
        for i, (row, column) in enumerate(feed(store, tiny).choose(step).corners):
            window = np.s_[:, row : row + 8, column : column + 8]
            of_full = jax.tree.map(lambda a, i=i, window=window: a[i][window], full)
            assert_same(jax.tree.map(lambda a, i=i: a[i], cut), of_full)
            corners.add((int(row), int(column)))
    assert len(corners) > 4 and feed(store, tiny).space == (8, 8, 8)
    rest = feed(store, tiny).at_rest(feed(store, tiny).at_hand("val", 1))["x"]
    tiny.volume.side = 0
    full = feed(store, tiny).at_rest(feed(store, tiny).at_hand("val", 1))["x"]
    np.testing.assert_array_equal(rest, full[:, :, 4:12, 4:12])


def test_resumed_streamed_and_resident_patches_are_the_same(store, tiny, mesh):
    tiny.model.conditions = BOTH
    tiny.disturbance.update(missing=0.5, displacement=1.0)
    assert feed(store, tiny).is_resident
    resident = taught(store, tiny, mesh, 0, 4)
    assert_same(taught(store, tiny, mesh, 2, 4), resident[2:])
    tiny.train.resident = 0.0
    assert not feed(store, tiny).is_resident
    assert_same(taught(store, tiny, mesh, 0, 4), resident)
    tiny.seed = 1
    assert not np.array_equal(taught(store, tiny, mesh, 0, 1)[0]["x"], resident[0]["x"])


def test_kept_contours_are_those_of_the_nearer_slice(tmp_path, tiny, mesh):
    native = preset("original", "mr")
    store = write(tmp_path / "store", native=native)
    tiny.augment.update(flip=0.0, scale=0.0, zoom=0.0, rotation=0.0, shift=0.0, probability=1.0)
    fed, numbers = feed(store, tiny, contours=native), store.rows("train")
    for step, example in enumerate(taught(store, tiny, mesh, 0, 3, contours=native)):
        choice = fed.choose(step)
        nearer = np.where(choice.weights < 0.5, choice.rows[..., 0], choice.rows[..., 1])
        expected = store.contours[numbers[nearer]] * choice.there[..., None, None]
        np.testing.assert_array_equal(example["condition"]["contour"][..., 0], expected)
        assert (choice.weights > 0).any()


def test_contours_of_a_patch_are_missing_slice_by_slice(store, tiny, mesh):
    """What is of a scan is shared: all slices are displaced alike."""
    still(tiny)
    ours = taught(store, tiny, mesh, 0, 3)
    tiny.disturbance.missing = 0.9
    for disturbed, example in zip(taught(store, tiny, mesh, 0, 3), ours, strict=True):
        np.testing.assert_array_equal(disturbed["x"], example["x"])
        after, before = (e["condition"]["contour"][..., 0] for e in (disturbed, example))
        assert (after <= before).all() and after.sum() < before.sum()
    drawn = volumetric._of_slices(_disturbance(tiny), 3)
    assert drawn.missing.shape == (6, 16, 16) and drawn.displacement.shape == (6, 2, 16, 16)
    missing, moved, grey = drawn.missing, drawn.displacement, drawn.contrast
    assert (missing[0] != missing[1]).any() and (drawn.noise[0] != drawn.noise[1]).any()
    for shared in (moved, grey, drawn.thresholds, drawn.doubled):
        np.testing.assert_array_equal(shared[:3], np.broadcast_to(shared[:1], shared[:3].shape))
    assert (moved[0] != moved[3]).any()


def _disturbance(config):
    from contourdiff_jax.contours import disturbance

    config.disturbance.update(thresholds=0.5, contrast=0.5, noise=0.5, displacement=2.0)
    config.disturbance.update(doubled=0.5, missing=0.9)
    keys = jax.random.split(jax.random.key(0), 2)
    return jax.device_get(disturbance.draw(keys, config.disturbance, (3, 16, 16)))


# ----------------------------------------------------------------------------------------------
# What is held out and shown
# ----------------------------------------------------------------------------------------------


def test_patches_are_held_out_over_the_whole_volume(store, tiny, mesh):
    fed = feed(store, tiny, mesh)
    patches = fed.at_hand("val", fed.HELD_OUT)
    assert (store.index["subject"][patches] == "dora").all()
    starts = patches[:, 0] - store.rows("val")[0]
    assert starts.tolist() == [0, 1, 2]  # those that there are
    held = jax.device_get(fed.held_out())
    assert held["x"].shape == (8, 8, SIDE, SIDE, 1)
    assert_same(held, fed.at_rest(patches[np.arange(8) % 3]))
    shown, count = fed.shown(2)
    assert count == 2 and len(shown["x"]) == 2 * mesh.size


def test_without_volumes_to_validate_with_nothing_is_held_out(tmp_path, tiny, mesh):
    fed = feed(write(tmp_path / "store", lengths={"anna": 12, "bert": 5}), tiny, mesh)
    assert fed.held_out() is None
    assert fed.shown(2)[1] == 2
    assert fed.summary == (
        "17 slices of 2 subjects, 16 px of 1 mm, mr; patches of 8 x 16 x 16 voxels from 2 volumes"
    )


def test_a_picture_shows_three_planes():
    """The middle slice, and beside it those across, the last slice on top."""
    volumes = np.zeros((2, 4, 8, 6, 1), np.float32)
    volumes[0, 2, 1, 2] = 1  # in the middle slice
    volumes[0, 3, 4, 1] = 1  # in the last, halfway down the rows
    volumes[0, 0, 5, 3] = 1  # in the first, halfway along the columns
    shown = {"x": volumes, "condition": {"contour": np.concatenate([volumes] * 2, -1)}}
    picture = examples.picture(shown, -np.ones((2, 4, 8, 6, 1), np.float32))
    width = 6 + 6 + 8
    assert picture.shape == (2 * 8, 3 * width) and picture.dtype == np.uint8
    first = picture[:8, :width] == 255
    assert first[:, :6].sum() == 1 and first[1, 2]
    assert first[:, 6:12].sum() == 2 and first[:2, 6 + 1].all()
    assert first[:, 12:].sum() == 2 and first[6:, 12 + 5].all()
    assert (picture[:, 2 * width :] == 0).all()


# ----------------------------------------------------------------------------------------------
# What cannot be learnt from
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "steps",
    [
        {"bert": [3, 3, 3.1, 3]},  # within a volume
        {"bert": [5, 5, 5, 5]},  # from one to another
    ],
)
def test_uneven_slices_are_refused_with_what_to_do(tmp_path, tiny, steps):
    store = write(tmp_path / "store", steps=steps)
    with pytest.raises(InputError, match=r"mm apart, .*`prepare --slice_spacing=3` again") as error:
        feed(store, tiny)
    assert "\n" not in str(error.value)
    # Positions of oblique volumes are closer than the slices that prepare has made even.
    feed(write(tmp_path / "even", steps=steps, every=3.0), tiny)
    feed(write(tmp_path / "rounded", steps={"bert": [3.02, 2.99, 3, 3]}), tiny)


def test_what_is_no_volume_is_refused(tmp_path, store, tiny):
    with pytest.raises(InputError, match=r"no training volume has two slices") as error:
        feed(write(tmp_path / "store", lengths={"anna": 1, "bert": 1}), tiny)
    assert "\n" not in str(error.value)
    tiny.volume.side = 24
    with pytest.raises(InputError, match=r"config\.volume\.side: 24 px, where slices .* have 16"):
        feed(store, tiny)
    tiny.volume.side = 5
    with pytest.raises(InputError, match=r"--config\.volume\.side=6"):
        feed(store, tiny)
