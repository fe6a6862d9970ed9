# SPDX-License-Identifier: Apache-2.0
"""Python: images in memory are translated as the command does files, and compiled for once."""

import inspect
import json
import typing

import jax
import nibabel
import numpy as np
import pytest
import setups

import contourdiff_jax as cd
from contourdiff_jax import cli, config, methods
from contourdiff_jax.errors import InputError
from contourdiff_jax.methods import diffusion
from contourdiff_jax.reports import card
from contourdiff_jax.training import checkpoint


@pytest.fixture(scope="module")
def folder(two_convolutions, store_path, tmp_path_factory):
    return setups.drawing(tmp_path_factory.mktemp("runs") / "mr", store_path)


@pytest.fixture(scope="module")
def scan(phantom_data):
    return sorted((phantom_data / "test_ct").glob("*.nii.gz"))[0]


def test_an_image_gives_what_the_command_writes(folder, scan, tmp_path):
    """To the bit, header and type included; so does its array, under the same name."""
    cd.translate(folder, scan, tmp_path / "out", preset="ct", seed=3, samples=2, keep="mean")
    (file,) = (tmp_path / "out").glob("*.nii.gz")
    written, model = nibabel.load(file), cd.load(folder)
    image = nibabel.load(scan)
    ours = model(image, "ct", seed=3, samples=2, keep="mean")
    assert ours.header == written.header
    np.testing.assert_array_equal(ours.get_fdata(), written.get_fdata())
    given = {"affine": image.affine, "name": scan.name.removesuffix("_ct.nii.gz")}
    name = model(np.asarray(image.dataobj), "ct", seed=3, samples=2, keep="mean", **given)
    assert type(name) is np.ndarray
    np.testing.assert_array_equal(name, np.asarray(written.dataobj))


def test_a_second_image_is_not_compiled_for(folder, scan, monkeypatch):
    image, built = nibabel.load(scan), []
    build = methods.build
    monkeypatch.setattr(
        methods, "build", lambda *args, **how: built.append(1) or build(*args, **how)
    )
    model = cd.load(folder)
    first = model(image, "ct")
    once = len(built)
    again = model(image, "ct")
    np.testing.assert_array_equal(first.get_fdata(), again.get_fdata())
    assert len(built) == once
    other = model(image, "ct", seed=1)
    assert (first.get_fdata() != other.get_fdata()).any() and len(built) == once
    model(image, "ct", steps=1)
    assert len(built) > once


def test_a_mask_is_that_of_the_command(folder, scan, tmp_path):
    image = nibabel.load(scan)
    mask = np.zeros(image.shape, np.uint8)
    mask[8:20, 8:20] = 1
    (tmp_path / "masks").mkdir()
    nibabel.save(nibabel.Nifti1Image(mask, image.affine), tmp_path / "masks" / scan.name)
    cd.translate(folder, scan, tmp_path / "out", preset="ct", masks=tmp_path / "masks")
    (file,) = (tmp_path / "out").glob("*.nii.gz")
    ours = cd.load(folder)(image, "ct", mask=mask).get_fdata()
    np.testing.assert_array_equal(ours, nibabel.load(file).get_fdata())
    assert (ours != cd.load(folder)(image, "ct").get_fdata()).any()


def test_orientations_come_back(folder, scan):
    """A turned array with the affine that says so is the same head, turned."""
    image = nibabel.load(scan)
    model, array = cd.load(folder), np.asarray(image.dataobj)
    turned = image.as_reoriented(np.array([[2, 1], [0, -1], [1, -1]]))
    straight = model(array, "ct", affine=image.affine)
    other = model(np.asarray(turned.dataobj), "ct", affine=turned.affine)
    back = nibabel.Nifti1Image(other, turned.affine).as_reoriented(
        nibabel.orientations.ornt_transform(
            nibabel.io_orientation(turned.affine), nibabel.io_orientation(image.affine)
        )
    )
    np.testing.assert_array_equal(np.asarray(back.dataobj), straight)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"image": np.zeros((4, 4, 4)), "affine": np.eye(4)}, "constant"),
        ({"image": np.zeros((4, 4)), "affine": np.eye(4)}, r"\[X, Y, Z\]"),
        ({"image": np.full((4, 4, 4), "a"), "affine": np.eye(4)}, r"\[X, Y, Z\]"),
        ({"image": np.full((4, 4, 4), np.nan), "affine": np.eye(4)}, "NaN"),
        ({"image": np.arange(64.0).reshape(4, 4, 4)}, "affine"),
        ({"image": np.arange(64.0).reshape(4, 4, 4), "affine": np.zeros((4, 4))}, "singular"),
        ({"image": np.zeros((4, 4, 0)), "affine": np.eye(4)}, r"\[X, Y, Z\]"),
        ({"image": [[1], [1, 2]], "affine": np.eye(4)}, r"\[X, Y, Z\]"),
        ({"image": np.arange(64.0).reshape(4, 4, 4), "affine": np.eye(3)}, r"\[4, 4\]"),
        ({"image": np.arange(64.0).reshape(4, 4, 4), "affine": "x"}, r"\[4, 4\]"),
        ({"seed": -1}, "seed"),
        ({"seed": "a"}, "seed"),
        ({"preset": "pet"}, "pet"),
        ({"steps": 5000}, "steps"),
        ({"mask": np.ones((2, 2, 2))}, "mask"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_what_cannot_be_translated_is_one_line(folder, scan, given, words):
    given = {"image": nibabel.load(scan), "preset": "ct"} | given
    with pytest.raises(InputError, match=words) as error:
        cd.load(folder)(**given)
    assert "\n" not in str(error.value)


def test_all_that_is_an_array_is_one(folder, scan, tmp_path, monkeypatch):
    """Whatever its type, and whatever files there are."""
    image, model = nibabel.load(scan), cd.load(folder)
    array = np.asarray(image.dataobj)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "image").write_text("no image")
    ours = model(array, "ct", affine=image.affine)
    for same in (array.tolist(), jax.numpy.asarray(array)):
        other = model(same, "ct", affine=image.affine.tolist())
        assert type(other) is np.ndarray
        np.testing.assert_array_equal(ours, other)


def test_an_unknown_option_is_one_line(folder, scan, tmp_path):
    for given in ({"sampler": {"steps": 1}}, {"unknown": 1}):
        with pytest.raises(InputError, match=next(iter(given))):
            cd.translate(folder, scan, tmp_path / "out", preset="ct", **given)


def test_a_metric_of_ones_own_is_scored_beside_ours(folder, scan, phantom_data, tmp_path):
    """Slice by slice, with an interval, for baselines too; names of ours are refused."""
    cd.translate(folder, scan, tmp_path / "out", preset="ct")
    truth = phantom_data / "test_mr"

    def worst(image, truth, body):
        return float(np.abs(image - truth)[body].max()) if body.any() else None

    given = {"truth": truth, "source": scan.parent, "metrics": {"worst": worst}}
    found = cd.evaluate(tmp_path / "out", tmp_path / "scores", **given).metrics["methods"]
    ours = found["translation"]["worst"]
    assert ours["value"] > 0 and {"low", "high", "n"} <= set(ours)
    assert (tmp_path / "scores/rows.csv").read_text().count(",translation,worst,") > 1
    for wrong, words in (
        ({"metrics": {"ssim_mask": worst}, "truth": truth}, "one of ours"),
        ({"metrics": {"worst": worst}, "source": scan.parent}, "truth"),
        ({"metrics": {"dice_1": worst}, "truth": truth}, "one of ours"),
        ({"metrics": {"inf": lambda *_: np.inf}, "truth": truth}, "inf gives inf of .*finite"),
    ):
        with pytest.raises(InputError, match=words):
            cd.evaluate(tmp_path / "out", tmp_path / "other", **wrong)


def test_no_run_is_one_line(tmp_path):
    with pytest.raises(InputError, match="not a run"):
        cd.load(tmp_path)


def test_contours_are_those_of_slices(scan):
    edges = cd.contours_of(nibabel.load(scan), "ct", spacing=7.2, size=32)
    assert edges.shape == (nibabel.load(scan).shape[2], 32, 32)
    assert edges.dtype == np.uint8 and set(np.unique(edges)) == {0, 1}


def test_all_names_are_there_with_types_and_words():
    assert set(cd.__all__) <= set(dir(cd.api))
    for name in cd.__all__:
        named = getattr(cd, name)
        assert inspect.getdoc(named), name
        if inspect.isfunction(named):
            assert "return" in typing.get_type_hints(named) or name == "prepare", name
    with pytest.raises(AttributeError):
        cd.nothing  # noqa: B018


def test_a_checkpoint_is_chosen_and_the_sidecar_says_which(
    store_path, scan, tmp_path, two_convolutions
):
    """From Python, on the command line and on the card."""
    settings = config.default()
    settings.train.update(images=24, batch=4, log=4, evaluate=8, sample=0, checkpoint=0, keep=1)
    settings.train.keep_best, settings.sampler.batch = True, 4
    place = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        losses = iter([0.3, 0.1, 0.2])
        patch.setattr(diffusion.Diffusion, "held_out", lambda *_: {"heldout_loss": next(losses)})
        assert cd.train(settings, store_path, place)
    assert checkpoint.steps(place) == [4, 6]
    images = {}
    for which, step in (("best", 4), ("last", 6), ("4", 4)):
        out = tmp_path / which
        flags = [f"--run={place}", f"--source={scan}", f"--out={out}", "--preset=ct"]
        assert cli.main(["contourdiff", "translate", *flags, f"--checkpoint={which}"]) == 0
        (sidecar,), (file,) = out.glob("*.json"), out.glob("*.nii.gz")
        told = json.loads(sidecar.read_text())["checkpoint"]
        assert (told["step"], told["images"]) == (step, 4 * step)
        images[which] = np.asarray(nibabel.load(file).dataobj)
        model = cd.load(place, checkpoint=which)
        made = np.asarray(model(nibabel.load(scan), "ct").dataobj)
        np.testing.assert_array_equal(made, images[which])
        text = card.card(place, tmp_path / f"{which}.md", checkpoint=which).read_text()
        assert f"| checkpoint | of step {step}, after {4 * step} images, held-out loss 0." in text
    np.testing.assert_array_equal(images["best"], images["4"])
    assert (images["best"] != images["last"]).any()
    with pytest.raises(InputError, match=r"--checkpoint=5: take last, best, .* one of 4, 6"):
        cd.load(place, checkpoint=5)
