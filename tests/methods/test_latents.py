# SPDX-License-Identifier: Apache-2.0
"""Latents that are kept: what is learnt from them is what would be learnt by encoding anew."""

import dataclasses
import json
import os
import shutil

import jax
import numpy as np
import pytest
import setups
from setups import stats, stopping

from contourdiff_jax import config, methods
from contourdiff_jax.contracts import Moments
from contourdiff_jax.data import augment, moments
from contourdiff_jax.data.store import open_store
from contourdiff_jax.errors import InputError
from contourdiff_jax.methods import codecs, diffusion, parts
from contourdiff_jax.methods.autoencoder import AUTOENCODER
from contourdiff_jax.models import autoencoder as networks
from contourdiff_jax.training import checkpoint, run

pytestmark = pytest.mark.usefixtures("two_convolutions")


def settings(conditions=("contour",), **fields):
    """Four steps of four images, as latents of 16 x 16 of images that are at most flipped."""
    ours = config.default()
    ours.model.update(channels=(8, 8), attention=(False, False), groups=4, head_width=8)
    ours.model.conditions = conditions
    ours.augment.probability = 0.0
    ours.train.update(images=16, batch=4, log=4, evaluate=0, sample=0, checkpoint=0)
    ours.sampler.update(clip=False, steps=2, batch=4)
    ours.update_from_flattened_dict(fields)
    return ours


def _codec(folder, store, seed):
    """A run of an autoencoder that has learnt nothing."""
    ours = config.default()
    ours.method, ours.model.conditions = "autoencoder", ("source",)
    ours.autoencoder.update(channels=(4, 8), groups=2, latents=2)
    folder.mkdir()
    run.begin(ours, store).save(folder)
    network = networks.build(ours.autoencoder)
    checkpoint.save_averages(folder, {AUTOENCODER: network.init(jax.random.key(seed))})
    return folder


@pytest.fixture(scope="module")
def codec(paired_store_path, tmp_path_factory):
    return _codec(tmp_path_factory.mktemp("codec") / "run", open_store(paired_store_path), 0)


@pytest.fixture(scope="module")
def other(paired_store_path, tmp_path_factory):
    return _codec(tmp_path_factory.mktemp("other") / "run", open_store(paired_store_path), 1)


def begun(ours, store, codec, **how) -> run.Run:
    """A run of latents that has begun."""
    known = codecs.chosen(codec, store)
    return run.begin(ours, store, codec=known, parts={run.CODEC: codec}, **how)


@pytest.mark.parametrize(
    ("conditions", "fields"),
    [
        pytest.param(
            ("contour", "neighbour", "source"),
            {"disturbance.noise": 0.1, "train.neighbour": 0.5},
            marks=pytest.mark.slow,
        ),
        pytest.param(("source",), {"augment.flip": 0.0}, marks=pytest.mark.slow),
        pytest.param(("contour", "picture"), {"augment.flip": 1.0}, marks=pytest.mark.slow),
        ((), {}),
    ],
)
def test_what_is_learnt_is_what_encoding_anew_gives(
    conditions, fields, codec, paired_store_path, tmp_path
):
    """In the codec's space, and by the loss; resident or streamed: the same to the bit."""
    store, ours = open_store(paired_store_path), settings(conditions, **fields)
    begins = begun(ours, store, codec)
    method = methods.build(begins, store=store)
    kept = codecs.kept(begins, method.feed, tmp_path)
    nothing = settings(conditions, **fields, **{"train.resident": 0.0}).train
    streamed = dataclasses.replace(kept, train=nothing)
    assert kept.is_resident and not streamed.is_resident
    encode = jax.jit(lambda *of: diffusion.encoded(method.codec, *of))
    loss = jax.jit(method.players[parts.NETWORK].loss)
    params, key = method.players[parts.NETWORK].init(jax.random.key(1)), jax.random.key(2)
    params = setups.perturbed(params)
    for plain, known, read in zip(
        *(feed.training(0, 3) for feed in (method.feed, kept, streamed)), strict=True
    ):
        assert isinstance(known["x"], Moments)
        like = jax.tree.map(lambda a: (a.shape, a.dtype), kept.example)
        assert like == jax.tree.map(lambda a: (a.shape, a.dtype), known)
        jax.tree.map(np.testing.assert_array_equal, known, read)
        there, here = (encode(method.fixed, each, key) for each in (plain, known))
        assert set(there["condition"]) == set(here["condition"]) == set(conditions)
        for name in ("x", "condition"):
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), here[name], there[name]
            )
        again = encode(method.fixed, known, jax.random.key(3))
        assert np.abs(again["x"] - here["x"]).max() > 0.01
        values = [
            float(loss(params, {}, each, key, method.fixed, ())[0]) for each in (plain, known)
        ]
        assert values[0] == pytest.approx(values[1], rel=1e-5) and values[0] > 0


@pytest.mark.slow
def test_images_of_native_contours_are_kept_with_what_lies_outside_the_body(
    codec, paired_store_path, tmp_path
):
    """As they are learnt."""
    store = open_store(paired_store_path)
    pixels = np.zeros(store.slices.shape, np.uint8)
    native = dataclasses.replace(store, contours=pixels, masks=np.zeros_like(pixels))
    begins = begun(settings(), store, codec)
    method = methods.build(begins, store=store)
    feed = dataclasses.replace(
        method.feed,
        store=native,
        contours=dataclasses.replace(method.feed.contours, native=True),
    )
    for plain, known in zip(
        feed.training(0, 1), codecs.kept(begins, feed, tmp_path).training(0, 1), strict=True
    ):
        assert np.std(plain["x"]) > 0.1
        there, here = (diffusion.encoded(method.codec, method.fixed, it) for it in (plain, known))
        np.testing.assert_allclose(here["x"], there["x"], atol=1e-6)


def test_flips_are_those_that_augmentation_draws():
    keys = jax.random.split(jax.random.key(0), 64)
    for fields, flips in (
        ({}, (False, True)),
        ({"augment.flip": 0.0}, (False,)),
        ({"augment.flip": 1.0}, (True,)),
        ({"augment.probability": 0.5}, None),
        (
            {"augment.probability": 0.5}
            | dict.fromkeys(("augment.scale", "augment.zoom", "augment.shift"), 0.0),
            None,
        ),
        (
            {"augment.probability": 0.5}
            | {f"augment.{name}": 0.0 for name in ("scale", "zoom", "rotation", "shift")},
            (False, True),
        ),
    ):
        section = settings(**fields).augment
        assert augment.flips(section) == flips
        drawn = augment.draw(keys, section)
        if flips is None:
            continue
        assert set(np.asarray(drawn.flip).tolist()) == set(flips)
        jax.tree.map(np.testing.assert_array_equal, drawn, augment.flipping(drawn.flip))


@pytest.fixture(scope="module")
def kept(codec, store_path, tmp_path_factory):
    """A run that was never interrupted."""
    folder = tmp_path_factory.mktemp("kept") / "run"
    assert methods.train(settings(), store_path, folder, codec=codec)
    return folder


@pytest.mark.slow
def test_a_run_keeps_latents_where_images_stay_as_they_are(
    kept, codec, store_path, tmp_path, capsys
):
    """And learns what it would learn by encoding; it goes on from them, to the bit."""
    assert {path.name for path in (kept / "latents").iterdir()} == {
        *("images.npy", "latents.json", ".contourdiff.json")
    }
    count = len(open_store(store_path).rows("train"))
    assert np.load(kept / "latents" / "images.npy").shape == (count, 2, 2, 16, 16, 2)
    halved = tmp_path / "halved"
    with pytest.MonkeyPatch.context() as patch:
        stopping(patch, 2)
        assert not methods.train(settings(), store_path, halved, codec=codec)
    made = (halved / "latents" / "images.npy").stat()
    assert "latents of" in capsys.readouterr().out
    assert methods.train(settings(), store_path, halved)
    assert "latents of" not in capsys.readouterr().out
    assert os.path.samestat(made, (halved / "latents" / "images.npy").stat())
    assert stats(halved) == stats(kept)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codecs, "kept", lambda ours, feed, workdir: feed)
        assert methods.train(settings(), store_path, tmp_path / "anew", codec=codec)
    assert not (tmp_path / "anew" / "latents").exists()
    losses = [
        [line["loss"] for line in stats(it) if "loss" in line] for it in (kept, tmp_path / "anew")
    ]
    assert len(losses[0]) == 4
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_nothing_is_kept_where_images_move(codec, store_path, tmp_path):
    store = open_store(store_path)
    ours = begun(settings(**{"augment.probability": 0.9}), store, codec)
    feed = methods.build(ours, store=store).feed
    assert codecs.kept(ours, feed, tmp_path) is feed and not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------
# What is there already, and bad input
# --------------------------------------------------------------------------------------------------


@pytest.fixture
def made(codec, paired_store_path, tmp_path):
    """A folder with moments, and what reads them there: (run, folder) -> feed."""
    store = open_store(paired_store_path)

    def keep(codec=codec, store=store, **fields):
        ours = begun(settings(**fields), store, codec)
        return codecs.kept(ours, methods.build(ours, store=store).feed, tmp_path)

    keep()
    return tmp_path / "latents", keep


@pytest.mark.slow
def test_others_are_made_again(made, other, paired_store_path, tmp_path_factory, capsys):
    """Of another autoencoder, another store, or of other flips; and what a kill left half."""
    folder, keep = made
    before = (folder / "images.npy").read_bytes()
    capsys.readouterr()
    keep()
    assert not capsys.readouterr().out
    keep(other)
    assert capsys.readouterr().out and (folder / "images.npy").read_bytes() != before
    keep()
    assert capsys.readouterr().out and (folder / "images.npy").read_bytes() == before
    copy = tmp_path_factory.mktemp("stores") / "copy"
    shutil.copytree(paired_store_path, copy)
    keep(store=open_store(copy))
    assert not capsys.readouterr().out
    with (copy / "index.csv").open("a") as index:
        index.write((copy / "index.csv").read_text().splitlines()[-1] + "\n")
    digest = moments.named(open_store(paired_store_path))
    shutil.copy(paired_store_path / "index.csv", copy)
    fields = json.loads((copy / "dataset.json").read_text()) | {"version": "another"}
    (copy / "dataset.json").write_text(json.dumps(moments.forms.sealed(fields)))
    assert moments.named(open_store(copy)) != digest
    keep(store=open_store(copy))
    assert capsys.readouterr().out
    keep(**{"augment.flip": 0.0})
    assert capsys.readouterr().out and np.load(folder / "images.npy").shape[1] == 1
    mark = folder / ".contourdiff.json"
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"unfinished": True}))
    keep(**{"augment.flip": 0.0})
    assert capsys.readouterr().out
    (folder / "images.npy").unlink()
    keep(**{"augment.flip": 0.0})
    assert capsys.readouterr().out


def test_files_that_were_changed_are_refused(made):
    folder, keep = made
    images = (folder / "images.npy").read_bytes()
    (folder / "images.npy").write_bytes(images[:-1] + b"?")
    with pytest.raises(InputError, match=r"images.npy: damaged.*remove the folder") as error:
        keep()
    assert "\n" not in str(error.value)
    (folder / "images.npy").write_bytes(images)
    about = (folder / "latents.json").read_text()
    for text in (about.replace("false", "true", 1), "no JSON"):
        (folder / "latents.json").write_text(text)
        with pytest.raises(InputError, match=r"latents.json: .*remove the folder") as error:
            keep()
        assert "\n" not in str(error.value)
    (folder / "latents.json").write_text(about)
    feed = keep()
    (folder / "images.npy").write_bytes(images[: len(images) // 2])
    with pytest.raises(InputError, match=r"images.npy: cut short since it was opened; remove"):
        feed.moments.read(feed.store.rows("train")[-1:])


def test_what_is_in_the_way_stays(made):
    """A folder of the user's, or a file that was changed, where others were to be made."""
    folder, keep = made
    (folder / "images.npy").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"images.npy: in the way") as error:
        keep(**{"augment.flip": 0.0})
    assert "\n" not in str(error.value) and (folder / "images.npy").read_bytes() == b"mine"
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"latents: exists already and is not latents"):
        keep()
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_on_a_full_disk_nothing_is_left(made, monkeypatch):
    folder, keep = made
    before = (folder / "images.npy").read_bytes()

    def full(file, shape):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(moments, "_write_header", full)
    for old in (True, False):
        if not old:
            shutil.rmtree(folder)
        with pytest.raises(InputError, match="latents: cannot be written: no space left") as error:
            keep(**{"augment.flip": 0.0})
        assert "\n" not in str(error.value)
        assert [path.name for path in folder.parent.iterdir()] == ["latents"] * old
        assert not old or (folder / "images.npy").read_bytes() == before
