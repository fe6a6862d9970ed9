# SPDX-License-Identifier: Apache-2.0
"""Training: the same on any mesh and after any interruption, and what a run folder holds.

Two convolutions stand in for the network where it is the loop that is tested.
"""

import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import setups
from PIL import Image

from contourdiff_jax import config, methods, models
from contourdiff_jax.data import feeds
from contourdiff_jax.data.prepare import prepare
from contourdiff_jax.data.store import open_store
from contourdiff_jax.errors import InputError
from contourdiff_jax.methods import diffusion
from contourdiff_jax.runtime import disk as claims
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.runtime import signals
from contourdiff_jax.training import checkpoint, loop, recipe
from contourdiff_jax.training import run as training_run
from contourdiff_jax.training.logs import Logs

UNET = models.build
SIZE = 32
STEPS = 8


def settings(**train_fields):
    """Eight steps of four images, observed in the middle and at the end."""
    ours = config.default()
    ours.model.update(channels=(8, 16), attention=(False, True), head_width=8, groups=4)
    ours.train.update(images=4 * STEPS, batch=4, log=4, evaluate=16, sample=16, checkpoint=0)
    ours.train.update(warmup=8, ema_halflife=16)
    ours.train.update(train_fields)
    ours.sampler.update(steps=2, batch=4)
    return ours


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


# ----------------------------------------------------------------------------------------------
# The mesh
# ----------------------------------------------------------------------------------------------


@pytest.fixture(
    scope="module", params=["convolutions", pytest.param("U-Net", marks=pytest.mark.slow)]
)
def on_meshes(request, two_convolutions):
    """(data, fsdp) -> (moments of the gradient after one step, losses of 50 steps, arrays split).

    Everything that can be split is, and all parameters begin away from zero, where some layers do.
    """
    ours = settings(images=200)
    ours.model.update(channels=(8,), attention=(True,))
    ours.train.clip = 1e9
    generator = np.random.default_rng(0)
    x = generator.uniform(-1, 1, (4, 8, 8, 1)).astype(np.float32)
    contour = generator.integers(0, 2, (4, 8, 8, 2)).astype(np.float32)

    def run(data, fsdp):
        ours.mesh.update(data=data, fsdp=fsdp)
        plan = setups.setup(ours, 8)
        noise = np.random.default_rng(1)
        params = jax.tree.map(
            lambda s: jax.device_put(noise.normal(0, 0.1, s.shape).astype(s.dtype), s.sharding),
            plan.like.params,
        )
        split = sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(params))
        current = plan.init(jax.random.key(0))._replace(params=params)
        example = {"x": x, "condition": {"contour": contour}}
        batch = meshes.put(meshes.batch(plan.mesh), example)
        losses, moments = [], None
        for _ in range(50):
            current, metrics = plan.step(current, batch)
            losses.append(float(metrics["loss"]))
            if moments is None:
                moments = jax.device_get(current.optimiser["network"][1][0].mu)
        return moments, losses, split

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meshes, "SMALL", 0)
        if request.param == "U-Net":
            patch.setattr(models, "build", UNET)
        yield {shape: run(*shape) for shape in ((1, 1), (2, 1), (1, 2))}


@pytest.mark.parametrize("shape", [(2, 1), (1, 2)])
def test_gradients_are_the_same_on_any_mesh(on_meshes, shape):
    """Adam's first moment after a step is a tenth of the gradient at the same parameters."""
    alone, together = on_meshes[1, 1][0], on_meshes[shape][0]
    largest = max(np.abs(m).max() for m in jax.tree.leaves(alone))
    assert largest > 1e-3
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * largest),
        together,
        alone,
    )


@pytest.mark.parametrize("shape", [(2, 1), (1, 2)])
def test_losses_are_the_same_on_any_mesh(on_meshes, shape):
    _, alone, _ = on_meshes[1, 1]
    _, together, split = on_meshes[shape]
    np.testing.assert_allclose(together, alone, atol=1e-4)
    assert min(alone[-5:]) < alone[0]
    assert (split > 0) == (shape == (1, 2))


# ----------------------------------------------------------------------------------------------
# The loop, with two convolutions
# ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def like(two_convolutions):
    return setups.like(settings(), SIZE)


@pytest.fixture(scope="module")
def whole(two_convolutions, store_path, tmp_path_factory):
    """A run that was never interrupted."""
    workdir = tmp_path_factory.mktemp("whole")
    workdir.rmdir()
    assert methods.train(settings(), store_path, workdir)
    return workdir


def stats(workdir):
    return [json.loads(line) for line in (workdir / "stats.jsonl").read_text().splitlines()]


def untimed(lines):
    """What does not depend on the clock."""
    return [{k: v for k, v in line.items() if "second" not in k} for line in lines]


def at_step(monkeypatch, step, action):
    """Do something once the metrics of that step are written."""
    write = Logs.write_scalars

    def write_and_act(self, number, images, scalars):
        write(self, number, images, scalars)
        if number == step and "loss" in scalars:
            action()

    monkeypatch.setattr(Logs, "write_scalars", write_and_act)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def contents(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.device
@pytest.mark.parametrize(("accumulate", "stops"), [(1, (1, 5)), (2, (3,))])
def test_stopping_and_resuming_changes_nothing(
    store_path, like, whole, tmp_path, accumulate, stops
):
    """Parameters, average, optimiser, records and samples: to the bit, on a cluster's notice."""
    ours, workdir = settings(accumulate=accumulate), tmp_path / "run"
    if accumulate > 1:
        whole = tmp_path / "whole"
        assert methods.train(ours, store_path, whole)
    for stop in stops:
        with pytest.MonkeyPatch.context() as patch:
            at_step(patch, stop, terminate)
            assert not methods.train(ours, store_path, workdir)
        assert setups.last_state(workdir, like).step < STEPS
    assert methods.train(ours, store_path, workdir)
    assert_same(setups.last_state(workdir, like), setups.last_state(whole, like))
    assert untimed(stats(workdir)) == untimed(stats(whole))
    seconds = [line["seconds"] for line in stats(workdir) if "loss" in line]
    assert seconds == sorted(seconds)  # the time before it was stopped counts
    ours, theirs = (list(contents(run / "samples").values()) for run in (workdir, whole))
    assert ours == theirs


def test_what_a_killed_run_had_not_saved_is_done_again(store_path, like, whole, tmp_path):
    """Without a notice it goes on from its last checkpoint, and cuts its record back to that."""
    ours, workdir = settings(), tmp_path / "run"
    ours.train.checkpoint = 8  # images: every second step

    class Killed(BaseException):
        pass

    def kill():
        raise Killed

    writers, manager = [], checkpoint.manager

    def remembered(*args, **how):
        writers.append(manager(*args, **how))
        return writers[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "manager", remembered)
        at_step(patch, 5, kill)
        with pytest.raises(Killed):
            methods.train(ours, store_path, workdir)
    writers[-1].close()  # a kill ends its threads, which here would write beside the next run
    assert stats(workdir)[-1]["step"] == 5
    assert methods.train(ours, store_path, workdir)
    assert_same(setups.last_state(workdir, like), setups.last_state(whole, like))
    assert untimed(stats(workdir)) == untimed(stats(whole))


def test_looking_changes_nothing(store_path, like, whole, tmp_path):
    """Held-out loss, samples, records and checkpoints have no part in what is learnt."""
    ours = settings(log=0, evaluate=0, sample=0, checkpoint=4)
    assert methods.train(ours, store_path, tmp_path / "run")
    assert_same(setups.last_state(tmp_path / "run", like), setups.last_state(whole, like))


@pytest.mark.parametrize("number", signals.ASKING)
def test_the_notice_is_for_training_only(store_path, like, tmp_path, monkeypatch, number):
    """It saves, and the handler that was there before is there afterwards."""
    before = signal.getsignal(number)
    at_step(monkeypatch, 1, lambda: os.kill(os.getpid(), number))
    assert not methods.train(settings(), store_path, tmp_path / "run")
    assert signal.getsignal(number) is before
    assert 1 <= setups.last_state(tmp_path / "run", like).step < STEPS


@pytest.mark.parametrize("gone", ["", "checkpoints"])
@pytest.mark.parametrize("replaced", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_folder_that_goes_away_is_one_line(
    store_path, like, whole, tmp_path, monkeypatch, gone, replaced
):
    """What it holds by then stays as it is: put back, the run goes on to the same end."""
    workdir, aside = tmp_path / "run", tmp_path / "aside"

    def move():
        while not (workdir / "checkpoints" / "2").exists():
            time.sleep(0.01)
        (workdir / gone).rename(aside)
        if replaced:
            (workdir / gone).mkdir()

    with monkeypatch.context() as patch:
        at_step(patch, 3, move)
        with pytest.raises(InputError, match=f"{workdir / gone}: moved, removed or replaced"):
            methods.train(settings(checkpoint=8), store_path, workdir)
    shutil.rmtree(workdir / gone, ignore_errors=True)
    aside.rename(workdir / gone)
    assert methods.train(settings(checkpoint=8), store_path, workdir)
    assert_same(setups.last_state(workdir, like), setups.last_state(whole, like))


def test_a_config_that_goes_away_is_written_again(store_path, tmp_path, monkeypatch, capsys):
    workdir = tmp_path / "run"
    at_step(monkeypatch, 3, (workdir / "config.json").unlink)
    assert methods.train(settings(), store_path, workdir)
    assert "config.json was gone" in capsys.readouterr().err
    assert methods.train(settings(), store_path, workdir)


def test_a_run_may_go_on_on_another_mesh(store_path, like, whole, tmp_path, monkeypatch):
    ours, workdir = settings(), tmp_path / "run"
    monkeypatch.setattr(meshes, "SMALL", 0)
    at_step(monkeypatch, 3, terminate)
    assert not methods.train(ours, store_path, workdir)
    ours.mesh.update(data=1, fsdp=2)
    assert methods.train(ours, store_path, workdir)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        setups.last_state(workdir, like).params,
        setups.last_state(whole, like).params,
    )


# ----------------------------------------------------------------------------------------------
# Which run
# ----------------------------------------------------------------------------------------------


def test_a_finished_run_is_left_alone(store_path, whole, capsys):
    before = contents(whole)
    assert methods.train(settings(), store_path, whole)
    assert "nothing left to do" in capsys.readouterr().out
    assert contents(whole) == before


def test_another_configuration_is_refused_by_field(store_path, whole):
    before = contents(whole)
    ours = settings(learning_rate=5e-4)
    ours.seed = 1
    with pytest.raises(InputError, match=f"{whole}.*another seed, train.learning_rate;"):
        methods.train(ours, store_path, whole)
    assert contents(whole) == before


def test_other_data_are_refused(phantom_data, whole, tmp_path):
    prepare(phantom_data / "train_mr", tmp_path / "store", "mr", spacing=6.0, size=SIZE)
    with pytest.raises(InputError, match=f"{whole}: holds a run on other data"):
        methods.train(settings(), tmp_path / "store", whole)


def test_no_other_folder_is_trained_in(store_path, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    for taken in (tmp_path, tmp_path / "letter.txt"):
        with pytest.raises(InputError, match=str(taken)):
            methods.train(settings(), store_path, taken)
    assert (tmp_path / "letter.txt").read_text() == "dear"
    assert len(list(tmp_path.iterdir())) == 1


def test_weights_come_from_another_run(store_path, like, whole, tmp_path):
    """Its average, which a learning rate of zero leaves as it was."""
    ours, workdir = settings(images=4, learning_rate=0.0), tmp_path / "run"
    ours.seed = 3
    assert methods.train(ours, store_path, workdir, init=whole)
    begun, source = setups.last_state(workdir, like), setups.last_state(whole, like)
    assert_same(begun.params, source.ema)
    assert_same(begun.ema, source.ema)
    assert begun.step == 1 and not np.array_equal(begun.key, source.key)
    # With a checkpoint of its own the run needs the other no more.
    assert methods.train(ours, store_path, workdir, init=tmp_path / "gone")


def test_weights_of_no_run_leave_nothing_behind(store_path, tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path / 'absent'}: not a run"):
        methods.train(settings(), store_path, tmp_path / "run", init=tmp_path / "absent")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("left", [training_run.LOCK, f".{0:032x}.config.json"])
def test_what_a_process_killed_at_once_left_is_in_nobodys_way(store_path, like, tmp_path, left):
    (tmp_path / left).write_text("{")
    assert methods.train(settings(images=4), store_path, tmp_path)
    assert setups.last_state(tmp_path, like).step == 1


def test_two_do_not_train_one_run(store_path, tmp_path):
    """The second would write its record and its checkpoints between those of the first."""
    with claims.claim(tmp_path / training_run.LOCK):
        with pytest.raises(InputError, match=f"{tmp_path}: another process trains this run"):
            methods.train(settings(), store_path, tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [training_run.LOCK]


# ----------------------------------------------------------------------------------------------
# A teacher
# ----------------------------------------------------------------------------------------------


def pupil(**train_fields):
    ours = settings(**train_fields)
    ours.method, ours.distillation.substeps = "distilled", 2
    return ours


def test_a_pupil_begins_as_its_teacher(store_path, like, whole, tmp_path):
    assert methods.train(pupil(learning_rate=0.0), store_path, tmp_path / "run", teacher=whole)
    begun, taught = setups.last_state(whole, like).ema, setups.last_state(tmp_path / "run", like)
    assert_same(taught.params, begun)
    # Its average is of what never changed: the same, but for rounding.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), taught.ema, begun)


def test_a_pupil_goes_on_with_its_teacher_and_with_no_other(store_path, like, whole, tmp_path):
    undisturbed, workdir, other = (tmp_path / name for name in ("whole", "run", "other"))
    assert methods.train(pupil(), store_path, undisturbed, teacher=whole)
    assert methods.train(settings(images=4), store_path, other)
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 3, terminate)
        assert not methods.train(pupil(), store_path, workdir, teacher=whole)
    with pytest.raises(InputError, match="of another teacher"):
        methods.train(pupil(), store_path, workdir, teacher=other)
    assert methods.train(pupil(), store_path, workdir, teacher=whole)
    assert_same(setups.last_state(workdir, like), setups.last_state(undisturbed, like))
    assert training_run.load(workdir).teacher == checkpoint.digest(
        setups.last_state(whole, like).ema
    )


def test_a_teacher_is_given_where_there_is_something_to_learn_of_it(store_path, whole, tmp_path):
    for ours, given, named in (
        (pupil(), {}, "needs the other"),
        (settings(), {"teacher": whole}, "needs the other"),
        (pupil(), {"teacher": whole, "init": whole}, "--init"),
        (pupil(), {"teacher": tmp_path / "none"}, "none: not a run"),
    ):
        with pytest.raises(InputError, match=named):
            methods.train(ours, store_path, tmp_path / "run", **given)
        assert not (tmp_path / "run").exists()


# ----------------------------------------------------------------------------------------------
# Damage, and full disks
# ----------------------------------------------------------------------------------------------


def test_a_damaged_store_is_not_trained_on(two_convolutions, store_path, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(store_path, store)
    content = bytearray((store / "slices.npy").read_bytes())
    content[-1] ^= 1
    (store / "slices.npy").write_bytes(content)
    with pytest.raises(InputError, match=f"{store}/slices.npy: damaged"):
        methods.train(settings(), store, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert methods.train(settings(images=4), store, tmp_path / "run", verified=False)


def test_stores_of_earlier_versions_are_trained_on_and_that_is_said(
    two_convolutions, store_path, tmp_path, capsys
):
    store = tmp_path / "store"
    shutil.copytree(store_path, store)
    dataset = json.loads((store / "dataset.json").read_text())
    del dataset["sha256"], dataset["digest"]
    (store / "dataset.json").write_text(json.dumps(dataset))
    assert methods.train(settings(images=4), store, tmp_path / "run")
    assert f"note: {store}: of an earlier version, without digests" in capsys.readouterr().out


def test_of_a_damaged_checkpoint_the_one_before_is_gone_on_from(
    store_path, like, whole, tmp_path, capsys
):
    """A bit of the weights, flipped; the end is as if nothing had been."""
    ours, workdir = settings(checkpoint=8), tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 5, terminate)
        assert not methods.train(ours, store_path, workdir)
    *_, before, last = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
    files = (workdir / "checkpoints" / str(last) / "params").rglob("d/*")
    weights = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    assert methods.train(ours, store_path, workdir)
    warning = f"warning: {workdir}/checkpoints/{last}: damaged, params/.*; going on from {before}"
    assert re.search(warning, capsys.readouterr().err)
    assert_same(setups.last_state(workdir, like), setups.last_state(whole, like))
    assert untimed(stats(workdir)) == untimed(stats(whole))


@pytest.mark.parametrize(
    "full", [pytest.param("at a record", marks=pytest.mark.slow), "at a checkpoint"]
)
def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(
    store_path, like, whole, tmp_path, full
):
    """No file may grow from step 5 on; once there is room the same command goes on."""
    ours, workdir = settings(checkpoint=8, log=4 if full == "at a record" else 0), tmp_path / "run"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = checkpoint.save

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, limits[1]))

    def fill_and_save(checkpoints, current, *loss):
        if int(current.step) == 6:
            fill()
        save(checkpoints, current, *loss)

    with pytest.MonkeyPatch.context() as patch:
        if full == "at a record":
            at_step(patch, 5, fill)
        else:
            patch.setattr(checkpoint, "save", fill_and_save)
        try:
            with pytest.raises(InputError, match=f"{workdir}.*written.*intact") as error:
                methods.train(ours, store_path, workdir)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    assert setups.last_state(workdir, like).step in (
        2,
        4,
    )  # the one before may just be being written
    assert methods.train(ours, store_path, workdir)
    assert_same(setups.last_state(workdir, like), setups.last_state(whole, like))


# ----------------------------------------------------------------------------------------------
# Losses that are not finite
# ----------------------------------------------------------------------------------------------


def poison(monkeypatch, step):
    """Put a NaN into the images of a step."""
    training = feeds.Slices.training

    def poisoned(feed, start, stop):
        for number, example in enumerate(training(feed, start, stop), start + 1):
            if number == step:
                example["x"] = example["x"].at[0, 3, 3].set(np.nan)
            yield example

    monkeypatch.setattr(feeds.Slices, "training", poisoned)


def seen(store_path, step):
    """The slices of a step, as they are named."""
    index = open_store(store_path).index
    rows = np.flatnonzero(index["split"] == "train")
    rows = rows[feeds.indices(settings().seed, step - 1, 4, len(rows))]
    named = {}
    for subject, number in zip(index["subject"][rows], index["slice"][rows], strict=True):
        named[subject] = f"{named[subject]}, {number}" if subject in named else f"slice {number}"
    return "; ".join(f"{subject} {slices}" for subject, slices in sorted(named.items()))


@pytest.mark.parametrize(
    "step", [*(pytest.param(n, marks=pytest.mark.slow) for n in (1, STEPS)), 4]
)
def test_a_loss_that_is_not_finite_stops_the_run_in_a_finite_state(
    store_path, like, tmp_path, step
):
    workdir = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, step)
        with pytest.raises(
            InputError,
            match=f"{workdir}: the loss of step {step} is not finite.*"
            f"its images: {seen(store_path, step)}$",
        ):
            methods.train(settings(), store_path, workdir)
    saved = setups.last_state(workdir, like)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(saved))
    assert saved.step <= step
    assert "NaN" not in (workdir / "stats.jsonl").read_text()
    # Once the image is mended the same command goes on.
    assert methods.train(settings(), store_path, workdir)
    assert [line["step"] for line in stats(workdir) if "loss" in line][-1] == STEPS


# ----------------------------------------------------------------------------------------------
# What a run folder holds
# ----------------------------------------------------------------------------------------------


def test_a_run_folder_holds_what_it_says(whole):
    names = {path.name for path in whole.iterdir()} - {"tensorboard"}
    assert names == {"config.json", "checkpoints", "stats.jsonl", "samples"}
    assert [path.name for path in (whole / "checkpoints").iterdir()] == [str(STEPS)]


def test_the_record_has_its_keys_and_increasing_steps(whole):
    lines = stats(whole)
    steps = [line["step"] for line in lines]
    assert steps == sorted(steps)
    assert all(line["images"] == 4 * line["step"] for line in lines)
    logged = [line for line in lines if "loss" in line]
    assert [line["step"] for line in logged] == list(range(1, STEPS + 1))
    keys = {"loss", "grad_norm", "learning_rate", "seconds", "images_per_second"}
    for line in logged:
        assert line.keys() == {"step", "images"} | keys
        assert all(isinstance(line[key], float) for key in keys)
    seconds = [line["seconds"] for line in logged]
    assert seconds == sorted(seconds) and seconds[0] > 0


def test_the_held_out_loss_is_there_and_by_timestep(whole):
    held = [line for line in stats(whole) if "heldout_loss" in line]
    assert [line["step"] for line in held] == [4, 8]
    for line in held:
        assert len(line["heldout_loss_t"]) == diffusion.BINS
        assert 0 < min(line["heldout_loss_t"]) < line["heldout_loss"] < max(line["heldout_loss_t"])


def test_without_held_out_subjects_there_is_no_held_out_loss(phantom_data, tmp_path):
    store = tmp_path / "store"
    prepare(phantom_data / "train_mr", store, "mr", spacing=7.2, size=SIZE, validation=0)
    assert methods.train(settings(), store, tmp_path / "run")
    assert all("heldout_loss" not in line for line in stats(tmp_path / "run"))
    assert len(list((tmp_path / "run" / "samples").iterdir())) == 2


def test_sample_grids_show_truth_contour_and_sample(whole):
    paths = sorted((whole / "samples").iterdir())
    assert [path.name for path in paths] == ["000000016.png", "000000032.png"]
    grids = [np.asarray(Image.open(path)) for path in paths]
    for grid in grids:
        assert grid.shape == (diffusion.SAMPLES * SIZE, 3 * SIZE)
        truth, contour, _ = np.split(grid, 3, axis=1)
        assert set(np.unique(contour)) == {0, 255}
        assert truth.std() > 10
    # The same slices each time; only the samples change.
    np.testing.assert_array_equal(grids[0][:, : 2 * SIZE], grids[1][:, : 2 * SIZE])
    assert (grids[0][:, 2 * SIZE :] != grids[1][:, 2 * SIZE :]).any()


def test_learning_lowers_the_held_out_loss(store_path, tmp_path):
    ours = settings(images=400, learning_rate=1e-2, log=400, evaluate=4, sample=0)
    assert methods.train(ours, store_path, tmp_path / "run")
    held = [line["heldout_loss"] for line in stats(tmp_path / "run") if "heldout_loss" in line]
    assert len(held) == 100
    assert held[-1] < 0.7 * held[0]


def test_without_a_terminal_there_is_a_summary_and_a_line_for_each_record(
    two_convolutions, store_path, capsys, tmp_path
):
    assert methods.train(settings(images=64, log=16), store_path, tmp_path / "run")
    out = capsys.readouterr().out
    assert re.search(
        r"parameters \(first \d+, last \d+\) on 2 .* device\(s\).*MiB of state.*MiB a step", out
    )
    assert re.search(
        r"15 slices of 3 subjects, 32 px of 7.2 mm, mr; 64 images in batches of 4", out
    )
    assert re.search(r"about \d+ s to go at \d+\.\d images/s", out)
    assert len(re.findall(r"images  loss \d\.\d+  .* images/s  \d+ s left", out)) == 4


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *((0.4, "0 s"), (119, "119 s"), (120, "2.0 minutes"), (1000, "17 minutes")),
        *((7200, "2.0 hours"), (100_000, "28 hours"), (1_503_941, "17 days")),
    ],
)
def test_times_are_told_in_words(seconds, words):
    assert loop.duration(seconds) == words


def test_what_would_take_days_comes_with_advice():
    pace = loop._Pace(0, 10**6, 4, 0.0)
    pace.compiled -= 8 * 4  # a second for each image
    pace.note(1)
    pace.compiled -= 8 * 4
    assert re.search(r"about 46 days to go .*; an hour here is --images=3\d+,", pace.note(9))


# ----------------------------------------------------------------------------------------------
# How long
# ----------------------------------------------------------------------------------------------


def test_time_too_makes_checkpoints(two_convolutions, store_path, tmp_path, monkeypatch):
    """At every log that comes so many minutes after the last; not where they are for the end."""
    saved, save = [], checkpoint.save
    monkeypatch.setattr(
        checkpoint, "save", lambda c, *of: saved.append(int(of[0].step)) or save(c, *of)
    )
    ours = settings(log=8, checkpoint=1000, evaluate=1000, minutes=1e-9)
    assert methods.train(ours, store_path, tmp_path / "often")
    assert saved == [2, 4, 6, 8]
    assert [line["step"] for line in stats(tmp_path / "often") if "heldout_loss" in line] == saved
    saved.clear()
    assert methods.train(settings(log=8, minutes=1e-9), store_path, tmp_path / "at_the_end")
    assert saved == [8]


def test_a_run_goes_on_by_its_own_configuration(two_convolutions, store_path, tmp_path, capsys):
    """And to more images, of which it keeps the record of those before."""
    folder = tmp_path / "run"
    assert methods.train(settings(log=8), store_path, folder)
    assert methods.train(None, store_path, folder)
    assert "nothing left to do" in capsys.readouterr().out
    assert methods.train(None, store_path, folder, images=4 * STEPS + 8)
    assert training_run.load(folder).config.train.images == 4 * STEPS + 8
    assert [line["step"] for line in stats(folder) if "loss" in line] == [2, 4, 6, 8, 10]


def test_minutes_become_images_once(two_convolutions, store_path, tmp_path, monkeypatch, capsys):
    """With the settings that suit them; the same command goes on with the same run."""
    monkeypatch.setattr(loop, "images_per_second", lambda *given, **how: 4.0)
    ours, folder = settings(sample=0), tmp_path / "run"
    ours.diffusion.time_exponent = 0.5
    assert methods.train(ours, store_path, folder, minutes=0.2)
    assert "4.0 images/s here: 0.2 minutes are 48 images" in capsys.readouterr().out
    made = training_run.load(folder).config
    assert made.train.images == 48
    assert made.augment.probability == recipe.RECIPES[0].fields["augment.probability"]
    assert (made.diffusion.time_exponent, made.train.sample) == (0.5, 0), "as they were asked for"
    monkeypatch.setattr(loop, "images_per_second", None)
    assert methods.train(ours, store_path, folder, minutes=0.2)
    assert config.differences(training_run.load(folder).config, made) == []
    ours.train.keep = 5
    assert methods.train(ours, store_path, folder, minutes=0.2)
    assert config.differences(training_run.load(folder).config, made) == ["train.keep"]
    ours.diffusion.time_exponent = 0.6
    with pytest.raises(InputError, match=r"diffusion\.time_exponent"):
        methods.train(ours, store_path, folder, minutes=0.2)


@pytest.mark.parametrize(
    "long", [{"minutes": -1.0}, {"images": 0}, {"minutes": math.nan}, {"minutes": 1, "images": 8}]
)
def test_how_long_is_said_once_and_above_0(store_path, tmp_path, long):
    with pytest.raises(InputError, match=f"--{next(iter(long))}"):
        methods.train(None, store_path, tmp_path / "run", **long)
    assert not any(tmp_path.iterdir())


def test_recipes_are_for_more_and_more_images():
    assert [r.most for r in recipe.RECIPES] == sorted(r.most for r in recipe.RECIPES)
    settings = recipe.fitted(config.default(), 10_000, asked=("sampler.steps",))
    assert settings.diffusion.time_exponent == 0.25
    assert settings.sampler.steps == config.default().sampler.steps
    assert (settings.train.images, settings.train.checkpoint) == (10_000, 2_500)
    others = config.default()
    others.method = "regression"
    assert recipe.fitted(others, 10_000).augment == others.augment
    assert recipe.fitted(others, 10_000).sampler == others.sampler


def test_slices_are_coupled_where_they_can_be():
    coupled = []
    for fields in ({}, {"dims": 3}, {"conditions": ("contour", "neighbour")}):
        settings = config.default()
        settings.model.update(fields)
        coupled.append(recipe.fitted(settings, 10_000).sampler.coupling)
    assert coupled == [recipe.COUPLING, 0, 0]


def test_speed_is_measured_with_the_input(two_convolutions, store_path):
    assert methods.images_per_second(settings(), store_path, steps=2) > 0


# ----------------------------------------------------------------------------------------------
# Settings that cannot work
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"train": {"batch": 3}, "mesh": {"data": 2}}, "config.train.batch: 3 .*try 4"),
        ({"train": {"batch": 0}}, "config.train.batch"),
        ({"train": {"images": 0}}, "config.train.images"),
        ({"seed": -1}, "config.seed"),
        ({"train": {"accumulate": 3}}, "config.train.accumulate.*3 equal parts"),
        ({"train": {"accumulate": 0}}, "config.train.accumulate"),
        ({"mesh": {"data": 3}}, "config.mesh"),
        ({"model": {"channels": (8, 16, 32), "attention": (False,) * 3}}, "--size=32"),
        ({"model": {"groups": 3}}, "config.model.groups"),
        ({"model": {"conditions": ("neighbour",)}}, "config.model.conditions.*contour"),
        ({"train": {"neighbour": 1.5}}, "config.train.neighbour: 1.5"),
        ({"disturbance": {"missing": -1.0}}, "config.disturbance.missing: -1.0"),
        ({"diffusion": {"schedule": "sqrt"}}, "config.diffusion.schedule.*sqrt"),
        ({"diffusion": {"prediction": "score"}}, "config.diffusion.prediction.*score"),
    ],
)
def test_settings_that_cannot_work_are_named(two_convolutions, fields, named):
    ours = settings()
    ours.update(fields)
    with pytest.raises(InputError, match=named):
        setups.setup(ours, 30)


def test_nothing_is_made_for_settings_that_cannot_work(two_convolutions, store_path, tmp_path):
    with pytest.raises(InputError):
        methods.train(settings(batch=0), store_path, tmp_path / "run")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("every", "steps"), [(3, [3, 6, 8]), (4, [4, 8]), (0, [8]), (100, [8]), (1, list(range(1, 9)))]
)
def test_what_is_periodic_happens_at_the_end_too(every, steps):
    assert [step for step in range(1, 9) if loop._due(step, every, 8)] == steps


# ----------------------------------------------------------------------------------------------
# The command
# ----------------------------------------------------------------------------------------------


def command(store, workdir, **train_fields):
    fields = {
        "model.channels": "(8, 16)",
        "model.attention": "(False, False)",
        "model.groups": 4,
        "model.head_width": 8,
        "train.images": 400,
        "train.batch": 4,
        "train.log": 4,
    }
    fields |= {f"train.{name}": value for name, value in train_fields.items()}
    argv = [sys.executable, "-m", "contourdiff_jax", "train"]
    argv += [f"--store={store}", f"--workdir={workdir}"]
    return argv + [f"--config.{name}={value}" for name, value in fields.items()]


@pytest.mark.slow
def test_a_full_disk_ends_the_command_with_one_line(store_path, tmp_path):
    """A real one, with room for two checkpoints, but not for three."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1400k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        argv = command(store_path, disk / "run", checkpoint=8)
        ended = subprocess.run(argv, capture_output=True, text=True)
        complete = [path.name for path in (disk / "run" / "checkpoints").iterdir()]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert ended.returncode == 2 and any(name.isdigit() for name in complete)
    (line,) = ended.stderr.splitlines()
    assert re.search(f"{disk}/run.*written.*(intact.*no space left|no space left.*intact)", line)


@pytest.mark.slow
def test_a_terminated_command_resumes(store_path, tmp_path):
    """From outside: SIGTERM to the process gives exit status 1, the same command again 0."""
    workdir = tmp_path / "run"
    argv = command(store_path, workdir)
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as process:
        record = workdir / "stats.jsonl"
        while process.poll() is None and not (record.exists() and record.read_text()):
            time.sleep(0.05)
        process.terminate()
        assert process.wait() == 1
    (stopped,) = (int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert 0 < stopped < 100
    subprocess.run(argv, stdout=subprocess.DEVNULL, check=True)
    assert [line["step"] for line in stats(workdir) if "loss" in line] == list(range(1, 101))


# ----------------------------------------------------------------------------------------------
# The best
# ----------------------------------------------------------------------------------------------


def losing(monkeypatch, losses):
    """Held-out losses as given, of every step."""
    of_step = dict(zip(range(1, STEPS + 1), losses, strict=True))
    monkeypatch.setattr(
        diffusion.Diffusion,
        "held_out",
        lambda *_: {"heldout_loss": of_step[losing.step]},
    )
    due = loop._due

    def noting(step, every, total):
        losing.step = step
        return due(step, every, total)

    monkeypatch.setattr(loop, "_due", noting)


FALLING_AND_RISING = (0.9, 0.5, 0.6, 0.3, 0.4, 0.45, 0.5, 0.6)


def test_the_best_is_kept_and_the_last_goes_on_to_the_same_bits(
    store_path, like, whole, tmp_path, monkeypatch
):
    """Whatever is kept, and wherever it is stopped."""
    losing(monkeypatch, FALLING_AND_RISING)
    ours = settings(evaluate=4, keep_best=True, keep=1)
    for stop in (2, 6):
        workdir = tmp_path / f"run{stop}"
        with pytest.MonkeyPatch.context() as patch:
            at_step(patch, stop, terminate)
            assert not methods.train(ours, store_path, workdir)
        assert methods.train(ours, store_path, workdir)
        assert checkpoint.steps(workdir) == [4, STEPS]
        assert checkpoint.chosen(workdir, "best") == 4
        assert_same(setups.last_state(workdir, like), setups.last_state(whole, like))


def test_without_held_out_subjects_there_is_no_best_and_a_line_says_so(
    phantom_data, tmp_path, two_convolutions, capsys
):
    store = tmp_path / "store"
    prepare(phantom_data / "train_mr", store, "mr", spacing=7.2, size=32, validation=0)
    capsys.readouterr()
    assert methods.train(settings(keep_best=True, images=4), store, tmp_path / "run")
    assert capsys.readouterr().out.count("holds no subjects out, so that no checkpoint is") == 1
    assert checkpoint.losses(tmp_path / "run") == {}
