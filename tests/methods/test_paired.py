# SPDX-License-Identifier: Apache-2.0
"""Paired diffusion: the image of the source is seen, alone or with contours, and all else is as is.

Two convolutions stand in for the network.
"""

import functools
import json
import shutil

import jax
import numpy as np
import pytest

from contourdiff_jax import config as configuration
from contourdiff_jax import methods
from contourdiff_jax.data import examples
from contourdiff_jax.data.store import open_store
from contourdiff_jax.diffusion import noise
from contourdiff_jax.errors import InputError
from contourdiff_jax.methods import train
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training import checkpoint, run

BOTH = ("contour", "source")
pytestmark = pytest.mark.usefixtures("two_convolutions")


def settings(conditions, **fields):
    ours = configuration.default()
    ours.model.update(conditions=conditions, channels=(16, 16), attention=(False, False))
    ours.model.update(middle_attention=False)
    ours.train.update(images=400, batch=4, learning_rate=1e-2, warmup=40, ema_halflife=16)
    ours.train.update(log=40, evaluate=400, sample=0, checkpoint=0)
    ours.train.update(fields)
    ours.diffusion.prediction = "x0"
    ours.sampler.update(steps=3, batch=4)
    return ours


def heldout(workdir):
    lines = [json.loads(line) for line in (workdir / "stats.jsonl").read_text().splitlines()]
    return [line["heldout_loss"] for line in lines if "heldout_loss" in line][-1]


@pytest.fixture(scope="module")
def trained(two_convolutions, paired_store_path, tmp_path_factory):
    """A run that sees both, each of them hidden at times."""
    workdir = tmp_path_factory.mktemp("paired") / "run"
    assert train(settings(BOTH, condition_dropout=0.2), paired_store_path, workdir)
    return workdir


def drawn(workdir, store_path, *, swapped=False, **sampler):
    """Images of slices that a run draws, [N, H, W], from their sources or from those of others."""
    ours, store = run.load(workdir), open_store(store_path)
    section = ours.config.sampler
    section.update(sampler)
    method = methods.build(ours, sampler=section)
    averages = checkpoint.averages(workdir, method.players, method.mesh)[1]
    conditions = tuple(ours.config.model.conditions)
    seen = examples.at_rest(store, store.rows("val")[:4], ours.contours, conditions)["condition"]
    if swapped:
        seen["source"] = seen["source"][::-1]
    translator = method.translator(averages, ())
    assert translator.sees == frozenset(conditions)
    put = functools.partial(meshes.put, meshes.batch(method.mesh))
    return np.asarray(translator(put(seen), put(noise.independent(0, "some", 4))))


def test_who_sees_the_source_knows_more_of_the_image(paired_store_path, tmp_path):
    losses = {}
    for name in ("contour", "source"):
        assert train(settings((name,)), paired_store_path, tmp_path / name)
        losses[name] = heldout(tmp_path / name)
    assert losses["source"] < 0.9 * losses["contour"]


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpmpp_2m"])
def test_every_sampler_draws_from_the_source(trained, paired_store_path, name):
    ours, others = (
        drawn(trained, paired_store_path, name=name, swapped=swapped) for swapped in (False, True)
    )
    assert np.abs(ours).max() <= 1 and np.abs(ours - others).mean() > 0.01


def test_each_condition_has_a_scale_of_its_own(trained, paired_store_path):
    scales = {"guidance": 1.5, "source_guidance": 1.5}
    plain = drawn(trained, paired_store_path)
    several = [plain]
    for name, scale in scales.items():
        several.append(drawn(trained, paired_store_path, **{name: scale}))
    assert min(np.abs(a - b).mean() for a in several for b in several if a is not b) > 1e-3
    # Without a weight for either, nothing of the source is left.
    ours, others = (
        drawn(trained, paired_store_path, guidance=0.0, source_guidance=0.0, swapped=swapped)
        for swapped in (False, True)
    )
    np.testing.assert_array_equal(ours, others)


def test_a_picture_of_samples_shows_what_is_seen(trained, paired_store_path):
    method = methods.build(run.load(trained), store=open_store(paired_store_path))
    averages = checkpoint.averages(trained, method.players, method.mesh)[1]
    picture = method.samples(averages, ())
    example, count = method.feed.shown(4)
    columns = np.split(picture, picture.shape[1] // 32, axis=1)
    truth, contour, source, _ = (column.reshape(count, 32, 32) for column in columns)
    assert set(np.unique(contour)) == {0, 255}
    shown = example["condition"]["source"][:count, ..., 0]
    np.testing.assert_array_equal(source, np.uint8(np.round((shown + 1) * 127.5)))
    inside = shown > -1
    np.testing.assert_allclose(source[inside] + truth[inside].astype(int), 255, atol=2)


def test_a_run_goes_on_bit_by_bit_where_it_stopped(paired_store_path, tmp_path):
    config = settings(BOTH, images=16, condition_dropout=0.1, checkpoint=8, warmup=4)
    assert train(config, paired_store_path, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "begun")
    (last,) = (p for p in (tmp_path / "begun" / "checkpoints").iterdir() if p.name == "4")
    shutil.rmtree(last)
    assert checkpoint.steps(tmp_path / "begun") == [2]
    assert train(config, paired_store_path, tmp_path / "begun")
    method = methods.build(run.load(tmp_path / "whole"))
    ours, theirs = (
        checkpoint.averages(tmp_path / name, method.players, method.mesh)[1]
        for name in ("whole", "begun")
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_few_steps_are_learnt_from_a_teacher_that_sees_the_same(
    trained, paired_store_path, tmp_path
):
    config = settings(BOTH, images=40)
    config.method, config.distillation.substeps, config.sampler.steps = "distilled", 4, 1
    assert train(config, paired_store_path, tmp_path / "few", teacher=trained)
    few = drawn(tmp_path / "few", paired_store_path)
    many = drawn(trained, paired_store_path, steps=4)
    assert np.abs(few - many).mean() < 0.15
    assert np.abs(few - drawn(tmp_path / "few", paired_store_path, swapped=True)).mean() > 0.01
    config.model.conditions = ("source",)
    with pytest.raises(InputError, match=r"another config\.model\.conditions"):
        train(config, paired_store_path, tmp_path / "other", teacher=trained)


def test_an_unpaired_store_is_refused_in_one_line(store_path, tmp_path):
    with pytest.raises(InputError, match="without sources, and the network is to see") as error:
        train(settings(BOTH), store_path, tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()
