# SPDX-License-Identifier: Apache-2.0
"""The autoencoder: a run of it, in pieces too, its losses, and what it says of itself."""

import json
import shutil

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest
import setups
from PIL import Image
from setups import stats, stopping

from contourdiff_jax import config, methods
from contourdiff_jax.data.store import open_store
from contourdiff_jax.errors import InputError
from contourdiff_jax.methods import autoencoder, codecs, parts
from contourdiff_jax.methods.autoencoder import AUTOENCODER, Losses, Perceptual
from contourdiff_jax.models import autoencoder as networks
from contourdiff_jax.models import segmenter
from contourdiff_jax.reports.card import card
from contourdiff_jax.reports.page import report
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training import checkpoint, run

SIZE, STEPS = 32, 6


def settings(**fields):
    """Six steps of four images; the critic counts from the fourth on."""
    ours = config.default()
    ours.method, ours.model.conditions = "autoencoder", ("source",)
    ours.autoencoder.update(channels=(4, 8), groups=2, latents=2)
    ours.adversarial.update(critic_width=2, critic_layers=2, loss="hinge")
    ours.train.update(images=4 * STEPS, batch=4, log=4, evaluate=12, sample=12, checkpoint=0)
    ours.sampler.batch = 4
    ours.update_from_flattened_dict(fields)
    return ours


@pytest.fixture(scope="module")
def whole(store_path, tmp_path_factory):
    """A run that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert methods.train(settings(), store_path, folder)
    return folder


@pytest.mark.slow
def test_stopping_and_resuming_changes_nothing(store_path, whole, tmp_path):
    """Both players, the average, both optimisers and the count of images: to the bit."""
    workdir, like = tmp_path / "run", setups.like(settings(), SIZE)
    with pytest.MonkeyPatch.context() as patch:
        stopping(patch, 2)
        assert not methods.train(settings(), store_path, workdir)
    assert 0 < setups.last_state(workdir, like).step < STEPS
    assert methods.train(settings(), store_path, workdir)
    state = setups.last_state(workdir, like)
    assert state.params.keys() == {"autoencoder", "critic"} and state.ema.keys() == {"autoencoder"}
    assert state.memory["images"] == 4 * STEPS
    jax.tree.map(np.testing.assert_array_equal, state, setups.last_state(whole, like))
    assert stats(workdir) == stats(whole)


def test_the_critic_counts_after_its_share_of_the_training(whole):
    lines = [line for line in stats(whole) if "critic_loss" in line]
    before, after = lines[: STEPS // 2], lines[STEPS // 2 :]
    assert all(line["critic_loss"] == line["autoencoder_weight"] == 0 for line in before)
    assert all(line["critic_loss"] > 0 and line["autoencoder_weight"] > 0 for line in after)
    for line in lines:
        expected = (
            line["autoencoder_l1"]
            + 1e-6 * line["autoencoder_kl"]
            + line["autoencoder_weight"] * line["autoencoder_adversarial"]
        )
        assert line["autoencoder_loss"] == pytest.approx(expected, rel=1e-5)


def test_the_quality_of_held_out_images_is_on_record_and_on_the_card(whole, store_path, tmp_path):
    """The same numbers as of scikit-image, on what a translation of the images gives."""
    held = [line for line in stats(whole) if "heldout_ssim" in line][-1]
    assert 0 < held["heldout_loss"] < 2 and held["latent_std"] > 0
    method = methods.build(run.load(whole), store=open_store(store_path), mesh=meshes.local())
    _, averages = checkpoint.averages(whole, method.players, method.mesh)
    example = method.feed.held_out()
    found = method.held_out(averages, (), example)
    seen = {"source": np.concatenate([example["x"]] * 2, -1)}
    drawn = np.asarray(method.translator(averages, ())(seen, None))
    truth, body = np.asarray(example["x"]), np.asarray(example["mask"]) > 0
    squared = [np.mean((a - b)[m] ** 2) for a, b, m in zip(drawn, truth, body, strict=True)]
    psnr = np.mean(10 * np.log10(4 / np.maximum(squared, 1e-10)))
    assert found["heldout_psnr"] == pytest.approx(psnr, rel=1e-3)
    text = card(whole, tmp_path / "card.md").read_text()
    assert "An autoencoder that draws slices of MR" in text
    page = report(tmp_path / "page.html", [whole]).read_text()
    words = "SSIM of held-out images drawn again, in the body"
    assert f"<p>{words}: {held['heldout_ssim']:.4g}</p>" in page
    assert f"| {words} | {held['heldout_ssim']:.4g} |" in text


def test_a_picture_shows_the_truth_and_what_is_drawn(whole):
    picture = np.asarray(Image.open(sorted((whole / "samples").iterdir())[-1]))
    truth, drawn = np.split(picture, 2, axis=1)
    assert truth.std() > 0 and drawn.std() > 0


def test_it_draws_its_own_modality_again(whole, phantom_data, tmp_path):
    done = setups.translate(whole, phantom_data / "test_mr", tmp_path / "mr", preset="mr").done
    assert len(done) == 2
    with pytest.raises(InputError, match="sees the image of the source and learnt from mr"):
        setups.translate(whole, phantom_data / "test_ct", tmp_path / "ct", preset="ct")


# --------------------------------------------------------------------------------------------------
# Losses
# --------------------------------------------------------------------------------------------------


def losses(rng, stages=None, **fields):
    """The losses of a small autoencoder, whose output is known, with its parameters."""
    section = settings(**fields).autoencoder
    network = networks.build(section)
    judge = lambda critic, images: critic["slope"] * images  # noqa: E731
    made = Losses(network, judge, section, "hinge", alone=0, stages=stages)
    params = network.init(jax.random.key(0))
    images = rng.uniform(-1, 1, (2, 8, 8, 1)).astype(np.float32)
    return made, params, {"x": jnp.asarray(images)}


def test_the_pull_is_the_divergence_from_a_normal_distribution(rng):
    """By drawing: KL = E[log q - log p], for each of an image's pixels."""
    made, params, example = losses(rng)
    mean, log_variance = made.network.encode(params, example["x"])
    draws = 20_000
    noise = rng.standard_normal((draws, *mean.shape))
    latents = np.asarray(mean) + np.exp(np.asarray(log_variance) / 2) * noise
    log_q = -(noise**2) / 2 - np.asarray(log_variance) / 2
    expected = (log_q + latents**2 / 2).mean(0).sum() / example["x"].size
    pull = made._sampled(params, example["x"], jax.random.key(1))[1]
    assert pull == pytest.approx(expected, rel=0.02)


def test_the_critic_changes_the_last_kernel_as_the_error_does(rng):
    """Up to its share: gradients of both terms have these lengths."""
    made, params, example = losses(rng, **{"autoencoder.adversarial": 0.25})
    critic = {"slope": jnp.float32(3.0)}
    latents, _ = made._sampled(params, example["x"], jax.random.key(1))
    weight = jax.jit(made._weight)(params, critic, latents, example["x"], ())

    def length(loss):
        gradient = jax.jit(jax.grad(loss))(params)
        return np.linalg.norm(gradient["decoder"]["conv_out"]["kernel"])

    error = length(lambda p: made._error(p, latents, example["x"], ())[0])
    doubt = length(lambda p: made._doubt(p, critic, latents))
    assert weight == pytest.approx(0.25 * error / (doubt + 1e-4), rel=1e-4)


def test_features_are_compared_each_of_length_1(rng):
    """Of a network that shows the image and its square, and half the pixels of both."""

    def stages(params, images):
        features = params * jnp.concatenate([images, images**2], -1)
        return [features, features[:, ::2, ::2]]

    one, other = rng.uniform(0.1, 1, (2, 3, 8, 8, 1)).astype(np.float32)
    assert autoencoder.unlike(stages, 2.0, one, one) == 0
    lengths = [np.stack([a, a**2], -1) / np.hypot(a, a**2)[..., None] for a in (one, other)]
    squared = np.square(lengths[0] - lengths[1]).sum(-1)
    expected = squared.mean() + squared[:, ::2, ::2].mean()
    found, gradient = jax.value_and_grad(autoencoder.unlike, 2)(
        stages, 2.0, jnp.asarray(one), other
    )
    assert found == pytest.approx(expected, rel=1e-4) and np.abs(gradient).min() > 0


@pytest.mark.slow
def test_features_of_a_frozen_network_count(store_path, tmp_path):
    """They need a weight and a network, and are on record."""
    network = segmenter.build(3)
    frozen = Perceptual(network.init(jax.random.key(0)), network.stages)
    ours = settings(**{"autoencoder.perceptual": 0.5, "train.images": 8, "train.evaluate": 0})
    with pytest.raises(InputError, match="each needs the other"):
        methods.train(ours, store_path, tmp_path / "run")
    assert methods.train(ours, store_path, tmp_path / "run", perceptual=frozen)
    assert all(
        line["autoencoder_perceptual"] > 0
        for line in stats(tmp_path / "run")
        if "autoencoder_loss" in line
    )


# --------------------------------------------------------------------------------------------------
# Bad input
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"autoencoder.channels": (2,) * 7, "autoencoder.groups": 1}, "cannot be halved 6 times"),
        ({"adversarial.critic_layers": 4}, "nothing is left after 4 halvings"),
        ({"adversarial.width": 5}, "adversarial.width: has no effect unless"),
        ({"model.layers": 2}, "model.layers: has no effect unless"),
        ({"model.conditions": ("contour",)}, "autoencoder sees the source alone"),
        ({"sampler.steps": 2}, "sampler.steps: has no effect unless"),
    ],
)
def test_what_cannot_be_is_one_line(store_path, tmp_path, fields, words):
    with pytest.raises(InputError, match=words) as error:
        methods.train(settings(**fields), store_path, tmp_path / "run")
    assert "\n" not in str(error.value)


def test_the_fields_are_of_no_other_method():
    with pytest.raises(InputError, match=r"unless config\.method is autoencoder"):
        config.check_idle(config.default(), given=["autoencoder.kl"])


# --------------------------------------------------------------------------------------------------
# Its latents, learnt by diffusion
# --------------------------------------------------------------------------------------------------


def of_latents(conditions=("contour",), **fields):
    """Two steps of diffusion of latents of 16 x 16."""
    ours = config.default()
    ours.model.update(channels=(8, 8), attention=(False, False), groups=4, head_width=8)
    ours.model.conditions = conditions
    ours.train.update(images=8, batch=4, log=4, evaluate=4, sample=4, checkpoint=0)
    ours.sampler.update(clip=False, steps=2, batch=4)
    ours.update_from_flattened_dict(fields)
    return ours


@pytest.fixture(scope="module")
def latent(whole, store_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("latent") / "run"
    assert methods.train(of_latents(), store_path, folder, codec=whole)
    return folder


def test_latents_are_learnt_with_a_deviation_of_one(latent, store_path):
    ours = run.load(latent)
    codec, fixed = codecs.of(ours), parts.read(ours, meshes.local())
    store = open_store(store_path)
    rows = store.rows("train")
    images = store.preset.in_body(store.values(rows), store.masks[rows])[..., None]
    learnt = codec.learnt(fixed, jnp.asarray(images, jnp.float32))
    assert learnt.shape == (len(rows), 16, 16, 2) and (codec.channels, codec.side) == (2, 2)
    assert np.std(learnt) == pytest.approx(1, rel=1e-3)
    twice = [codec.learnt(fixed, images, jax.random.key(k)) for k in (0, 1)]
    assert np.abs(twice[0] - twice[1]).max() > 0


def test_an_autoencoder_counts_for_what_a_run_of_its_latents_holds(latent, whole):
    held, theirs = (methods.networks(run.load(folder)) for folder in (latent, whole))
    assert held.keys() == {"network", "codec"} and held["codec"] == theirs[AUTOENCODER]


def test_conditions_are_seen_in_the_space_of_latents(latent, rng):
    """Contours folded, images as the means of their latents, unscaled; what is missing is zero."""
    ours = run.load(latent)
    codec, fixed = codecs.of(ours), parts.read(ours, meshes.local())
    edges = rng.integers(0, 2, (2, SIZE, SIZE, 1)).astype(np.float32)
    image = rng.uniform(-1, 1, (2, SIZE, SIZE, 1)).astype(np.float32)
    given = np.ones_like(edges)
    given[1] = 0
    seen = codec.seen(
        fixed,
        {
            "contour": np.concatenate([edges * given, given], -1),
            "source": np.concatenate([image * given, given], -1),
        },
    )
    assert seen["contour"].shape == (2, 16, 16, 5) and seen["source"].shape == (2, 16, 16, 3)
    np.testing.assert_array_equal(seen["contour"][0, 3, 5, :4], edges[0, 6:8, 10:12].ravel())
    mean, _ = networks.build(ours.codec.section).encode(fixed["codec"], image)
    np.testing.assert_allclose(seen["source"][0, ..., :2], mean[0], atol=1e-5)
    assert not np.any(seen["contour"][1]) and not np.any(seen["source"][1])


@pytest.mark.slow
def test_a_run_of_latents_is_whole_in_its_folder(latent, whole, phantom_data, store_path, tmp_path):
    """It goes on without --codec, and translates; its codec is that of the autoencoder's run.

    A run that was killed before it had a copy of its codec takes it from where it was.
    """
    assert methods.train(of_latents(), store_path, latent)
    killed = tmp_path / "killed"
    shutil.copytree(latent, killed, ignore=shutil.ignore_patterns("codec"))
    with pytest.raises(InputError, match="codec: missing in the folder of the run"):
        methods.train(of_latents(), store_path, killed)
    assert methods.train(of_latents(), store_path, killed, codec=whole)
    averages = checkpoint.averages(
        killed / "codec", setups.players_of(whole, AUTOENCODER), meshes.local()
    )[1]
    assert checkpoint.digest(averages) == run.load(latent).codec.digest
    done = setups.translate(
        latent, phantom_data / "test_ct", tmp_path / "out", preset="ct", sampler={"coupling": 0.2}
    ).done
    assert len(done) == 2
    fields = json.loads(next((tmp_path / "out").glob("*.json")).read_text())
    ours = run.load(latent)
    network = checkpoint.averages(
        latent, methods.build(ours, mesh=meshes.local()).players, meshes.local()
    )[1]
    assert fields["checkpoint"]["digest"] == checkpoint.digest(network, ours.marks)
    assert fields["checkpoint"]["digest"] != checkpoint.digest(network)


@pytest.mark.slow
def test_what_is_drawn_depends_on_no_other(latent, phantom_data, tmp_path):
    drawn = []
    for name, batch, devices in (("a", 4, 2), ("b", 1, 1)):
        place = tmp_path / name
        setups.translate(
            *(latent, phantom_data / "test_ct", place),
            preset="ct",
            sampler={"batch": batch},
            devices=devices,
        )
        drawn.append([nib.load(p).get_fdata() for p in sorted(place.glob("*.nii.gz"))])
    for one, other in zip(*drawn, strict=True):
        assert one.std() > 0
        np.testing.assert_allclose(one, other, atol=1e-3 * np.ptp(one))


@pytest.mark.slow
def test_pairs_are_learnt_in_latents_too(whole, paired_store_path, phantom_data, tmp_path):
    ours = of_latents(("source",), **{"train.condition_dropout": 0.1})
    assert methods.train(ours, paired_store_path, tmp_path / "run", codec=whole)
    sampler = {"source_guidance": 1.5}
    assert setups.translate(
        *(tmp_path / "run", phantom_data / "test_ct", tmp_path / "out"),
        preset="ct",
        sampler=sampler,
    ).done


@pytest.mark.slow
def test_a_network_of_latents_teaches_one_for_few_steps(latent, store_path, tmp_path):
    """In its own latents, which need not be named again."""
    ours = of_latents(**{"sampler.steps": 1, "distillation.substeps": 2, "train.evaluate": 0})
    ours.train.sample = 0
    assert methods.train(ours, store_path, tmp_path / "run", teacher=latent)
    assert run.load(tmp_path / "run").codec == run.load(latent).codec


def test_a_codec_that_was_changed_since_is_refused(latent, store_path, phantom_data, tmp_path):
    """Its weights are those that the run has learnt with, or nothing is drawn."""
    changed, other = tmp_path / "changed", tmp_path / "other"
    shutil.copytree(latent, changed)
    shutil.rmtree(changed / "codec")
    itself = run.load(latent / "codec")
    network = networks.build(itself.config.autoencoder)
    other.mkdir()
    itself.save(other)
    checkpoint.save_averages(other, {AUTOENCODER: network.init(jax.random.key(5))})
    parts.keep({run.CODEC: other}, changed)
    with pytest.raises(InputError, match="another autoencoder than the run has learnt with"):
        setups.translate(changed, phantom_data / "test_ct", tmp_path / "out", preset="ct")
    with pytest.raises(InputError, match="another codec than the run has begun with"):
        methods.train(of_latents(), store_path, latent, codec=other)


TOO_DEEP = {"model.channels": (8,) * 6, "model.attention": (False,) * 6}


def test_what_is_no_codec_is_refused(whole, store_path, tmp_path, tmp_path_factory):
    setups.run_of(config.default(), SIZE).save(tmp_path)  # of ContourDiff, in pixels
    out = tmp_path_factory.mktemp("out")

    def train(ours=None, codec=whole, **how):
        methods.train(ours or of_latents(), store_path, out / "run", codec=codec, **how)

    for words, arguments in (
        ("neither of an autoencoder nor of latents", {"codec": tmp_path}),
        ("not a run", {"codec": store_path}),
        ("latents have no bounds", {"ours": of_latents(**{"sampler.clip": True})}),
        ("--codec: the space that diffusion learns in", {"ours": settings()}),
        ("cannot be halved 5 times", {"ours": of_latents(**TOO_DEEP)}),
    ):
        with pytest.raises(InputError, match=words) as error:
            train(**arguments)
        assert "\n" not in str(error.value)
