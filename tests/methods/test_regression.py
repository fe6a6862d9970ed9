# SPDX-License-Identifier: Apache-2.0
"""Regression: its loss in the body, and a run of it from the first step to a translated folder.

Two convolutions stand in for the network but where it is the network that is tested.
"""

import json

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest
import setups
from ml_collections import ConfigDict
from PIL import Image
from setups import stats, stopping
from skimage.metrics import structural_similarity

from contourdiff_jax import cli, config, methods, models
from contourdiff_jax.data.store import open_store
from contourdiff_jax.errors import InputError
from contourdiff_jax.interop.exporting import export
from contourdiff_jax.methods import regression
from contourdiff_jax.models import Model
from contourdiff_jax.reports.card import card
from contourdiff_jax.reports.page import report
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training import checkpoint, run

UNET = models.build
SIZE, STEPS = 32, 8
SEEN = {"contours": ("contour",), "source": ("source",), "both": ("contour", "source")}
FAST = [name if name == "both" else pytest.param(name, marks=pytest.mark.slow) for name in SEEN]


def section(**fields) -> ConfigDict:
    ours = config.default().regression
    ours.update(fields)
    return ours


def settings(conditions=("contour",), **train_fields) -> ConfigDict:
    """Eight steps of four images, looked at in the middle and at the end."""
    ours = config.default()
    ours.method = "regression"
    ours.model.update(channels=(8, 16), attention=(False, True), head_width=8, groups=4)
    ours.model.conditions = conditions
    ours.train.update(images=4 * STEPS, batch=4, log=4, evaluate=16, sample=16, checkpoint=0)
    ours.train.update(warmup=8, ema_halflife=16)
    ours.train.update(train_fields)
    ours.sampler.batch = 4
    return ours


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


# ----------------------------------------------------------------------------------------------
# The loss
# ----------------------------------------------------------------------------------------------


@pytest.fixture
def example(rng):
    """Two images, one with twice the body of the other."""
    mask = np.zeros((2, SIZE, SIZE, 1), np.float32)
    mask[0, 4:12, 4:12], mask[1, 4:20, 4:12] = 1, 1
    x = rng.uniform(-1, 1, mask.shape).astype(np.float32)
    return {"x": np.where(mask > 0, x, -1), "condition": {}, "mask": mask}


@pytest.mark.parametrize(("loss", "expected"), [("l1", 0.5), ("l2", 0.25)])
def test_the_error_is_that_of_the_body_and_of_what_lies_outside_as_much_as_is_said(
    example, loss, expected
):
    mask = example["mask"]
    inside = example["x"] + 0.5 * mask
    outside = np.where(mask > 0, example["x"], 0)
    alone = section(loss=loss, outside=0.0)
    np.testing.assert_allclose(regression.errors(alone, inside, example), expected, rtol=1e-5)
    assert not np.any(regression.errors(alone, outside, example))
    weighted = regression.errors(section(loss=loss, outside=0.5), outside, example)
    body = mask.sum((1, 2, 3))
    rest = 0.5 * (SIZE**2 - body)
    np.testing.assert_allclose(weighted, rest / (rest + body), rtol=1e-5)


def test_ssim_is_that_of_the_body_whatever_lies_outside(example, rng):
    """As scikit-image has it, and in the shares that are asked for."""
    mask = example["mask"][..., 0] > 0
    noisy = np.float32(example["x"] + rng.normal(0, 0.3, mask.shape)[..., None])
    elsewhere = np.where(mask[..., None], noisy, rng.uniform(-1, 1, noisy.shape)).astype(np.float32)
    cut = np.where(mask[..., None], noisy, -1)
    of = [
        structural_similarity(a, b, data_range=2, full=True)[1][inside].mean()
        for a, b, inside in zip(cut[..., 0], example["x"][..., 0], mask, strict=True)
    ]
    for prediction in (noisy, elsewhere):
        found = regression.errors(section(ssim=1.0, outside=0.0), prediction, example)
        np.testing.assert_allclose(found, 1 - np.array(of), atol=1e-5)
    absolute = regression.errors(section(), noisy, example)
    mixed = regression.errors(section(ssim=0.25), noisy, example)
    np.testing.assert_allclose(mixed, 0.75 * absolute + 0.25 * (1 - np.array(of)), atol=1e-5)


def test_ssim_around_each_pixel_is_that_of_scikit_image_at_the_borders_too(rng):
    a, b = rng.uniform(-1, 1, (2, 3, 20, 24)).astype(np.float32)
    expected = [
        structural_similarity(*pair, data_range=2, full=True)[1] for pair in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(regression.similarity(a, b), expected, atol=2e-5)


@pytest.mark.parametrize("fields", [{}, {"loss": "l2"}, {"ssim": 0.5}, {"ssim": 1.0}])
def test_the_truth_has_no_error_and_a_gradient_that_is_finite(example, fields):
    """An image of air alone, of which SSIM divides by next to nothing, and one without a body."""
    example["x"][1], example["mask"][1] = -1, 0
    ours = section(**fields)

    def value(prediction):
        return regression.errors(ours, prediction, example).mean()

    np.testing.assert_allclose(value(example["x"]), 0, atol=1e-6)
    assert np.isfinite(jax.grad(value)(jnp.asarray(example["x"]))).all()


def test_what_is_learnt_is_the_median_or_the_mean_of_what_would_fit(example):
    """A network that answers with one number for all images."""
    example = {"x": jnp.asarray([0.0, 0.0, 0.9])[:, None, None, None], "condition": {}}
    example["mask"] = jnp.ones((3, 1, 1, 1))
    constant = Model(
        None, lambda params, z_t, t, condition, *, key=None: jnp.full((3, 1, 1, 1), params)
    )
    for name, expected in (("l1", 0.0), ("l2", 0.3)):
        loss = regression.loss(constant, section(loss=name))
        value = [float(loss(c, None, example, None, (), ())[0]) for c in np.linspace(-1, 1, 41)]
        assert np.linspace(-1, 1, 41)[np.argmin(value)] == pytest.approx(expected, abs=1e-6)


# ----------------------------------------------------------------------------------------------
# The network
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaled", [False, True])
def test_the_network_is_that_of_diffusion_without_what_is_for_noise_and_time(scaled):
    """Parameters of the same names and shapes, but for a channel less to begin with."""
    ours = settings().model
    ours.time_scale_shift = scaled
    key = jax.random.key(0)
    names, shapes = [], []
    for denoises in (False, True):
        params = jax.eval_shape(models.build(ours, denoises=denoises).init, key)
        leaves = jax.tree_util.tree_leaves_with_path(params)
        found = {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}
        timeless = {name: shape for name, shape in found.items() if "'time'" not in name}
        names.append(set(found))
        shapes.append(timeless)
    assert names[0] == set(shapes[1])
    different = {name for name in shapes[0] if shapes[0][name] != shapes[1][name]}
    assert different == {"['conv_in']['kernel']"}
    assert shapes[0]["['conv_in']['kernel']"] == (3, 3, 2, 8)


def test_the_network_draws_from_what_it_is_shown_and_every_parameter_matters(rng):
    model = models.build(settings().model, denoises=False)
    params = jax.tree.map(
        lambda p: p + rng.normal(0, 0.1, p.shape).astype(np.float32), model.init(jax.random.key(0))
    )
    seen = rng.normal(size=(2, 16, 16, 2)).astype(np.float32)

    @jax.jit
    def gradients(params, seen):
        def value(params, seen):
            image = model.apply(params, None, None, {"contour": seen})
            return jnp.square(image).sum(), image.shape

        return jax.grad(value, (0, 1), has_aux=True)(params, seen)

    (of_params, of_seen), shape = gradients(params, seen)
    assert shape == (2, 16, 16, 1)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(of_params))
    assert np.abs(of_seen).max((1, 2)).min() > 0


# ----------------------------------------------------------------------------------------------
# A run
# ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(two_convolutions, paired_store_path, tmp_path_factory):
    """Runs that were never interrupted, by what they see."""
    folder = tmp_path_factory.mktemp("whole")
    for name, conditions in SEEN.items():
        assert methods.train(settings(conditions), paired_store_path, folder / name)
    return folder


@pytest.mark.parametrize("seen", FAST)
def test_stopping_and_resuming_changes_nothing(paired_store_path, whole, tmp_path, seen):
    """Parameters, average, optimiser, record and pictures: to the bit."""
    ours, workdir = settings(SEEN[seen]), tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        stopping(patch, 3)
        assert not methods.train(ours, paired_store_path, workdir)
    like = setups.like(ours, SIZE)
    assert setups.last_state(workdir, like).step < STEPS
    assert methods.train(ours, paired_store_path, workdir)
    state, before = setups.last_state(workdir, like), setups.last_state(whole / seen, like)
    assert state.step == STEPS and state.ema.keys() == {"network"}
    assert_same(state, before)
    assert stats(workdir) == stats(whole / seen)
    pictures = [sorted((run / "samples").iterdir()) for run in (workdir, whole / seen)]
    assert [p.name for p in pictures[0]] == [p.name for p in pictures[1]] and pictures[0]
    assert [p.read_bytes() for p in pictures[0]] == [p.read_bytes() for p in pictures[1]]


@pytest.mark.parametrize("seen", SEEN)
def test_a_picture_shows_the_truth_what_is_seen_and_what_is_drawn(whole, seen):
    picture = np.asarray(Image.open(sorted((whole / seen / "samples").iterdir())[-1]))
    columns = np.split(picture, 2 + len(SEEN[seen]), axis=1)
    assert picture.shape[0] % SIZE == 0 and columns[0].shape[1] == SIZE
    assert set(np.unique(columns[1])) == {0, 255} or seen == "source"
    if seen != "contours":  # what is bright in the one is dark in the other
        inside = columns[-2] > 0
        np.testing.assert_allclose(columns[-2][inside], 255.0 - columns[0][inside], atol=1)


def test_devices_and_parts_of_a_batch_hardly_matter(two_convolutions, rng):
    """The loss of an image is its own: there is no randomness in it, and no sum over a batch."""
    mask = np.float32(rng.uniform(size=(4, 8, 8, 1)) < 0.5)
    contour = rng.integers(0, 2, (4, 8, 8, 2)).astype(np.float32)
    x = rng.uniform(-1, 1, mask.shape).astype(np.float32)
    example = {"x": x, "condition": {"contour": contour}, "mask": mask}
    found = []
    for data, accumulate in ((1, 1), (2, 1), (1, 2)):
        ours = settings(accumulate=accumulate, clip=1e9)
        ours.regression.ssim = 0.5
        ours.mesh.data = data
        plan = setups.setup(ours, 8)
        begun = plan.init(jax.random.key(0))
        after, metrics = plan.step(begun, meshes.put(meshes.batch(plan.mesh), example))
        found.append((float(metrics["loss"]), jax.device_get(after.optimiser["network"][1][0].mu)))
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(found[0][1])) > 1e-4
    for other in found[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), other, found[0])


@pytest.mark.parametrize("seen", FAST)
def test_what_the_network_is_shown_tells_it_the_image(paired_store_path, whole, tmp_path, seen):
    """Sources are the reverse of the images here, so that two convolutions can learn them."""
    ours = settings(SEEN[seen], images=1200, learning_rate=0.02, sample=0, log=0)
    assert methods.train(ours, paired_store_path, tmp_path / "run")
    losses = [line["heldout_loss"] for line in stats(tmp_path / "run") if "heldout_loss" in line]
    assert losses[-1] < (0.4 if "source" in SEEN[seen] else 0.9) * losses[0]


def test_held_out_loss_is_that_of_training_at_rest(whole, paired_store_path):
    store = open_store(paired_store_path)
    method = methods.build(run.load(whole / "both"), store=store)
    _, averages = checkpoint.averages(whole / "both", method.players, method.mesh)
    example = method.feed.held_out()
    loss = regression.loss(method.model, method.regression)
    expected = loss(averages["network"], None, jax.device_get(example), None, (), ())[0]
    found = method.held_out(averages, (), example)
    assert found == {"heldout_loss": pytest.approx(float(expected), rel=1e-4)}
    assert stats(whole / "both")[-2]["heldout_loss"] == pytest.approx(found["heldout_loss"])


# ----------------------------------------------------------------------------------------------
# What is done with a run
# ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def translated(whole, phantom_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("translated") / "out"
    assert (
        len(setups.translate(whole / "contours", phantom_data / "test_ct", out, preset="ct").done)
        == 2
    )
    return out


def volumes(folder):
    return {path.name: nib.load(path).get_fdata() for path in sorted(folder.glob("*.nii.gz"))}


def test_a_folder_is_translated_and_no_noise_has_a_part_in_it(
    whole, phantom_data, translated, tmp_path
):
    """Neither the seed nor how many slices are drawn at once changes an image."""
    again = setups.translate(
        whole / "contours",
        phantom_data / "test_ct",
        tmp_path / "out",
        preset="ct",
        seed=7,
        sampler={"batch": 2},
        devices=1,
    )
    ours, theirs = volumes(translated), volumes(tmp_path / "out")
    assert len(again.done) == 2 and ours.keys() == theirs.keys()
    for name, volume in ours.items():
        assert np.ptp(volume) > 1
        np.testing.assert_allclose(theirs[name], volume, atol=1e-3 * np.ptp(volume))


@pytest.mark.parametrize("seen", SEEN)
def test_what_is_drawn_follows_what_is_seen_and_nothing_else(
    whole, phantom_data, translated, tmp_path, seen
):
    """Other greys are another image to who sees the image; other volumes change nothing."""
    out, other = tmp_path / "out", tmp_path / "other" / "phantom005_ct.nii.gz"
    source = phantom_data / "test_ct" / other.name
    image = nib.load(source)
    values = image.get_fdata(dtype=np.float32)
    other.parent.mkdir()
    brighter = np.where(values > -300, values + 150, values)
    nib.save(nib.Nifti1Image(brighter, image.affine, image.header), other)
    drawn = []
    for number, path in enumerate((source, other)):
        setups.translate(whole / seen, path, out / str(number), preset="ct")
        drawn.append(volumes(out / str(number))[other.name])
    sidecar = json.loads((out / "0" / "phantom005_ct.json").read_text())
    assert sidecar["method"] == "regression" and sidecar["sees"] == sorted(SEEN[seen])
    assert sidecar["training"] == ("unpaired" if seen == "contours" else "paired")
    if seen == "contours":
        np.testing.assert_array_equal(drawn[0], volumes(translated)[other.name])
    else:
        assert np.mean(drawn[0] != drawn[1]) > 0.05


def test_a_source_of_another_preset_than_was_learnt_from_is_refused(whole, phantom_data, tmp_path):
    with pytest.raises(InputError, match=r"learnt from ct, not from --preset=mr") as error:
        setups.translate(whole / "source", phantom_data / "train_mr", tmp_path / "out", preset="mr")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"coupling": 0.25}, "--coupling: .* diffusion"),
        ({"tiles": 0.25}, "--tiles: .* diffusion"),
        ({"samples": 4}, "--samples: .* diffusion"),
        ({"steps": 5}, "--steps: .* diffusion"),
        ({"coherence": 10.0}, "--coherence: .* diffusion"),
        ({"name": "ddpm"}, "--sampler: .* diffusion"),
        ({"scgd": True}, "--scgd: .* diffusion"),
        ({"guidance": 2.0}, "--guidance: .* diffusion"),
    ],
)
def test_what_only_noise_and_steps_give_is_refused(whole, phantom_data, tmp_path, flags, named):
    with pytest.raises(InputError, match=f"^{named}") as error:
        setups.translate(
            whole / "contours",
            phantom_data / "test_ct",
            tmp_path / "out",
            preset="ct",
            sampler=flags,
        )
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_maps_of_uncertainty_are_refused(whole, phantom_data, tmp_path):
    with pytest.raises(InputError, match=r"^--maps: .*regression draws one") as error:
        setups.translate(
            whole / "contours", phantom_data / "test_ct", tmp_path / "out", preset="ct", maps=True
        )
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_flags_that_ask_for_nothing_are_taken(whole, phantom_data, translated):
    """So that one command line serves all methods; what is there is kept."""
    nothing = {"samples": 1, "coupling": 0.0, "scgd": False, "tiles": 0.0, "coherence": 0.0}
    source = phantom_data / "test_ct"
    again = setups.translate(whole / "contours", source, translated, preset="ct", sampler=nothing)
    assert len(again.kept) == 2 and not again.done


def test_a_run_is_inspected(whole, capsys):
    assert cli.main(["contourdiff", "inspect", str(whole / "source")]) == 0
    text = capsys.readouterr().out
    assert "method    regression" in text and "model.conditions = ['source']" in text
    assert "network\n" in text


@pytest.mark.parametrize("seen", SEEN)
def test_a_card_says_what_it_is_what_it_sees_and_how_it_errs(whole, tmp_path, seen):
    text = card(whole / seen, tmp_path / "card.md").read_text()
    source = {
        "contours": "their contours alone",
        "source": "the image of the source",
        "both": "the image of the source and their contours",
    }[seen]
    assert f"A U-Net that draws slices of MR from {source}, in one pass, by regression" in text
    assert "diffusion" not in text.lower() and "sampler" not in text
    assert "L1 in the body; outside it counts 0.1 of that" in text
    assert "where that leaves much open, they are smooth" in text
    learnt = "contours of MR" if seen == "contours" else "pairs of CT and MR"
    assert f"Training saw {learnt} alone" in text


def test_a_report_has_its_curve_and_pictures(whole, tmp_path):
    page = report(tmp_path / "page.html", [whole / "both"]).read_text()
    assert "Training run: both" in page and "Samples" in page and "regression" in page


def test_diffusers_have_no_such_network(whole, tmp_path):
    with pytest.raises(InputError, match=r"contours: a run of regression, .*translate") as error:
        export(whole / "contours", tmp_path / "exported")
    assert "\n" not in str(error.value) and not (tmp_path / "exported").exists()


def test_nothing_is_learnt_of_a_teacher(whole, paired_store_path, tmp_path):
    with pytest.raises(InputError, match=r"^--teacher: .*leave it out"):
        methods.train(settings(), paired_store_path, tmp_path / "run", teacher=whole / "contours")
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_network_gives_no_weights_to_begin_with(
    whole, paired_store_path, tmp_path
):
    """Its own kind does; one of diffusion has a channel more, and says so in one line."""
    assert methods.train(settings(), paired_store_path, tmp_path / "run", init=whole / "contours")
    noisy = tmp_path / "noisy"
    noisy.mkdir()
    ours = settings()
    ours.method = "diffusion"
    setups.run_of(ours, SIZE).save(noisy)
    params = models.build(ours.model).init(jax.random.key(0))
    checkpoint.save_averages(noisy, {"network": params})
    with pytest.raises(InputError) as error:
        methods.train(settings(), paired_store_path, tmp_path / "other", init=noisy)
    assert str(noisy) in str(error.value) and "\n" not in str(error.value)
