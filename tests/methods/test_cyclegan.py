# SPDX-License-Identifier: Apache-2.0
"""CycleGAN: its pool, and a run of it from two stores to folders translated both ways."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest
import setups
from setups import stats

from contourdiff_jax import config, methods
from contourdiff_jax.data.feeds import Unpaired
from contourdiff_jax.data.phantoms.heads import phantoms
from contourdiff_jax.data.prepare import prepare
from contourdiff_jax.data.store import open_store
from contourdiff_jax.errors import InputError
from contourdiff_jax.methods import cyclegan
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training import checkpoint, run
from contourdiff_jax.training.logs import Logs

SIZE, STEPS, POOL = 32, 6, 5


def settings(**fields):
    """Six steps of four images and a pool that is full in the second."""
    ours = config.default()
    ours.method, ours.model.conditions = "cyclegan", ("source",)
    ours.adversarial.update(width=2, blocks=1, critic_width=2, critic_layers=2, pool=POOL)
    ours.train.update(images=4 * STEPS, batch=4, log=4, evaluate=12, sample=12, checkpoint=0)
    ours.train.update(decay="linear", constant=0.5, beta_1=0.5, weight_decay=0.0, clip=0.0)
    ours.sampler.batch = 4
    ours.update_from_flattened_dict(fields)
    return ours


@pytest.fixture(scope="module")
def source_path(tmp_path_factory):
    """A store of CT on the same grid, of other heads, one of them held out."""
    folder = tmp_path_factory.mktemp("ct")
    phantoms(
        folder / "data", subjects=6, test=1, train_ct=4, size=SIZE, slices=3, thickness=40, seed=1
    )
    prepare(
        folder / "data/train_ct", folder / "store", "ct", spacing=7.2, size=SIZE, validation=0.25
    )
    return folder / "store"


@pytest.fixture(scope="module")
def whole(store_path, source_path, tmp_path_factory):
    """A run that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert methods.train(settings(), store_path, folder, source_store=source_path)
    return folder


# ----------------------------------------------------------------------------------------------
# The pool
# ----------------------------------------------------------------------------------------------


def pool_of(count):
    return cyclegan.begun(1, count, 1)["pool"]["target"]


def shown_of(pool, first, count):
    """What is shown of `count` images of a pixel, first, first + 1, ..; and the pool after them."""
    images = jnp.arange(first, first + count, dtype=jnp.float32).reshape(-1, 1, 1, 1)
    shown, pool = cyclegan.exchanged(jax.random.key(first), pool, images)
    return np.ravel(shown), pool


def test_while_there_is_room_all_are_kept_and_shown():
    shown, pool = shown_of(pool_of(8), 1, 6)
    np.testing.assert_array_equal(shown, np.arange(1, 7))
    np.testing.assert_array_equal(np.ravel(pool["images"]), [1, 2, 3, 4, 5, 6, 0, 0])
    assert pool["filled"] == 6


def test_then_half_are_exchanged_for_one_of_before_and_none_is_lost_or_doubled():
    shown, pool = shown_of(pool_of(10), 1, 2010)
    drawn = np.arange(1, 2011)
    old = shown != drawn
    assert not old[:10].any()
    assert old[10:].mean() == pytest.approx(0.5, abs=0.04)
    assert (shown[old] < drawn[old]).all()
    assert len(set(shown[10:])) == 2000  # those kept at first are shown again, once
    assert set(shown) | set(np.ravel(pool["images"])) == set(drawn)


# ----------------------------------------------------------------------------------------------
# A run
# ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_stopping_and_resuming_changes_nothing(store_path, source_path, whole, tmp_path):
    """All networks, the averages, both optimisers, the pool, the record: to the bit."""
    workdir, like, write = tmp_path / "run", setups.like(settings(), SIZE), Logs.write_scalars

    def write_and_stop(self, number, images, scalars):
        write(self, number, images, scalars)
        if number == 2 and "heldout_loss" not in scalars:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Logs, "write_scalars", write_and_stop)
        assert not methods.train(settings(), store_path, workdir, source_store=source_path)
    assert 0 < setups.last_state(workdir, like).step < STEPS
    assert methods.train(settings(), store_path, workdir, source_store=source_path)
    state, before = setups.last_state(workdir, like), setups.last_state(whole, like)
    assert state.ema.keys() == {"generators"}
    assert state.memory["pool"]["target"]["filled"] == POOL
    assert np.abs(state.memory["pool"]["source"]["images"]).max() > 0
    jax.tree.map(np.testing.assert_array_equal, state, before)
    assert stats(workdir) == stats(whole)


def test_a_run_says_what_both_sides_are(whole, store_path, source_path):
    ours = run.load(whole)
    target, source = open_store(store_path), open_store(source_path)
    assert (ours.preset.name, ours.source_preset.name) == ("mr", "ct")
    assert (ours.window, ours.source_window) == (target.median_window(), source.median_window())
    both = {*target.subjects("train"), *source.subjects("train")}
    assert len(ours.subjects) == len(both)
    assert not ours.paired
    back = ours.reversed()
    assert (back.preset, back.window, back.backward) == (
        ours.source_preset,
        source.median_window(),
        True,
    )
    assert back.reversed() == ours


def test_the_record_has_both_players_and_alarms_of_both_sides(whole):
    lines = stats(whole)
    trained = next(line for line in lines if "critics_loss" in line)
    whole_loss = trained["generators_adversarial"] + 10 * trained["generators_cycle"]
    whole_loss += 5 * trained["generators_identity"]
    assert trained["generators_loss"] == pytest.approx(whole_loss, rel=1e-5)
    held = next(line for line in lines if "heldout_loss" in line)
    assert {name for name in held if name.startswith("alarm")} == {
        f"alarm_{alarm}_{side}"
        for alarm in ("identity", "reversed", "checkerboard")
        for side in ("target", "source")
    }


def test_both_stores_have_an_order_of_their_own(store_path):
    """Or, of one size, they would be paired."""
    store, ours = open_store(store_path), settings()
    feed = methods.build(run.begin(ours, store, source=store), store=store, source=store).feed
    assert isinstance(feed, Unpaired)
    rows = [
        [side.choose(step).rows.tolist() for step in range(8)]
        for side in (feed.target, feed.source)
    ]
    assert rows[0] != rows[1]
    example = next(feed.training(0, 1))
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), example, feed.example)
    assert not np.array_equal(example["x"], example["source"])
    assert feed.named(1).startswith("target ") and "; source " in feed.named(1)


@pytest.mark.slow
def test_devices_hardly_matter(rng):
    images = rng.uniform(-1, 1, (2, 4, 16, 16, 1)).astype(np.float32)
    found = []
    for devices in (1, 2):
        ours = settings(**{"mesh.data": devices, "adversarial.critic_layers": 1})
        plan = setups.setup(ours, 16)
        example = dict(zip(("x", "source"), images, strict=True))
        current = plan.init(jax.random.key(0))
        for _ in range(2):
            put = meshes.put(meshes.batch(plan.mesh), example)
            current, metrics = plan.step(current, put)
        found.append(jax.device_get(metrics))
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, rtol=1e-3, err_msg=name)


# ----------------------------------------------------------------------------------------------
# Both ways
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "folder", "kind"), [("ct", "test_ct", "mr"), ("mr", "test_mr", "ct")]
)
def test_it_translates_both_ways(whole, phantom_data, tmp_path, preset, folder, kind):
    """The way is that of the source's preset; each is drawn by a generator of its own."""
    done = setups.translate(whole, phantom_data / folder, tmp_path / "out", preset=preset).done
    assert len(done) == 2
    sidecar = json.loads(next((tmp_path / "out").glob("*.json")).read_text())
    assert sidecar["preset"] == {"source": preset, "target": kind}
    image = nib.load(done[0])
    assert (image.get_data_dtype() == np.int16) == (kind == "ct")
    assert np.asarray(image.dataobj).std() > 0


def test_which_way_is_drawn_by_which_generator(whole):
    ours = run.load(whole)
    for made, side in ((ours, "target"), (ours.reversed(), "source")):
        method = methods.build(made)
        _, averages = checkpoint.averages(whole, method.players, method.mesh)
        translator = method.translator(averages, ())
        assert translator.params is averages["generators"][side]
        assert translator.sees == {"source"}


@pytest.mark.parametrize(
    ("preset", "direction", "words"),
    [
        ("ct", "backward", "learnt from mr, not from --preset=ct"),
        ("mr", "forward", "learnt from ct, not from --preset=mr"),
    ],
)
def test_a_way_that_does_not_suit_the_source_is_one_line(
    whole, phantom_data, tmp_path, preset, direction, words
):
    with pytest.raises(InputError, match=words):
        setups.translate(
            whole, phantom_data / f"test_{preset}", tmp_path, preset=preset, direction=direction
        )


@pytest.mark.slow
def test_where_both_sides_are_of_a_kind_the_way_is_said(store_path, phantom_data, tmp_path):
    ours = settings(**{"train.images": 4, "train.evaluate": 0, "train.sample": 0})
    assert methods.train(ours, store_path, tmp_path / "run", source_store=store_path)
    source = phantom_data / "test_mr"
    with pytest.raises(InputError, match=r"--direction: both sides of .* are mr; say forward"):
        setups.translate(tmp_path / "run", source, tmp_path / "out", preset="mr")
    drawn = [
        nib.load(
            setups.translate(
                *(tmp_path / "run", source, tmp_path / way), preset="mr", direction=way
            ).done[0]
        ).get_fdata()
        for way in ("forward", "backward")
    ]
    assert not np.allclose(*drawn)


def test_a_run_of_one_way_has_no_direction(trained, phantom_data, tmp_path):
    with pytest.raises(InputError, match=r"--direction: .* translates one way alone; leave it out"):
        setups.translate(
            trained, phantom_data / "test_ct", tmp_path / "out", preset="ct", direction="forward"
        )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model.conditions": ("contour",)}, "cyclegan sees the source alone"),
        ({"train.accumulate": 2}, "accumulate.*set it to 1"),
        ({"adversarial.l1": 10.0}, "l1: has no effect unless config.method is pix2pix"),
        ({"adversarial.cycle": 0.0, "adversarial.identity": 1.0}, "identity.*cycle above 0"),
    ],
)
def test_what_cannot_be_is_one_line(store_path, source_path, tmp_path, fields, words):
    with pytest.raises(InputError, match=words) as error:
        methods.train(settings(**fields), store_path, tmp_path / "run", source_store=source_path)
    assert "\n" not in str(error.value)


def test_two_stores_are_on_one_grid(store_path, phantom_data, tmp_path):
    prepare(phantom_data / "test_ct", tmp_path / "ct", "ct", spacing=7.2, size=64)
    with pytest.raises(InputError, match=r"another grid .*64 px.*32 px.*prepare it again on that"):
        methods.train(settings(), store_path, tmp_path / "run", source_store=tmp_path / "ct")


def test_a_second_store_is_needed(store_path, tmp_path):
    with pytest.raises(InputError, match=r"--source_store and config.method=cyclegan: each needs"):
        methods.train(settings(), store_path, tmp_path / "run")
