# SPDX-License-Identifier: Apache-2.0
"""Translation: on the source's grid, the same to the bit however it is cut up, and how it fails.

Two convolutions stand in for the network, but where batches and devices are compared.
"""

import dataclasses
import errno
import gzip
import json
import re
import shutil

import cv2
import jax
import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from setups import translate

import contourdiff_jax
from contourdiff_jax import cli, config, methods, models
from contourdiff_jax.contours import opencv
from contourdiff_jax.contours import settings as contour_settings
from contourdiff_jax.contours.settings import ContourSettings
from contourdiff_jax.contracts import Translator
from contourdiff_jax.data.prepare import prepare
from contourdiff_jax.data.store import open_store
from contourdiff_jax.diffusion import noise, samplers
from contourdiff_jax.errors import InputError
from contourdiff_jax.methods import diffusion, segmentation, train
from contourdiff_jax.runtime import disk
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training import checkpoint, run
from contourdiff_jax.translation import sidecars
from contourdiff_jax.translation import volume as translate_volume
from contourdiff_jax.volumes import intensity, io, masks
from contourdiff_jax.volumes.volume import Assumed

UNET = models.build
NAMES = ["phantom005_ct.nii.gz", "phantom006_ct.nii.gz"]
SECRET = b"DOE^JANE"


def train_on(store, workdir, **train_fields):
    settings = config.default()
    settings.model.update(channels=(8, 16), attention=(False, True), head_width=8, groups=4)
    settings.train.update(images=32, batch=4, log=0, evaluate=0, sample=0, checkpoint=0)
    settings.train.update(warmup=4, learning_rate=1e-2, ema_rampup=1e-3, condition_dropout=0.1)
    settings.train.update(train_fields)
    settings.sampler.update(steps=3, batch=4)
    assert train(settings, store, workdir)
    return workdir


@pytest.fixture(scope="module")
def mr_run(two_convolutions, store_path, tmp_path_factory):
    return train_on(store_path, tmp_path_factory.mktemp("mr") / "run")


@pytest.fixture(scope="module")
def sources(phantom_data):
    folder = phantom_data / "test_ct"
    assert sorted(path.name for path in folder.iterdir()) == NAMES
    return folder


@pytest.fixture(scope="module")
def translated(mr_run, sources, tmp_path_factory):
    """Both volumes, translated without interruption."""
    out = tmp_path_factory.mktemp("translated") / "out"
    result = translate(mr_run, sources, out, preset="ct")
    assert [path.name for path in result.done] == NAMES and not result.kept + result.failed
    return out


def sidecar(out, name=NAMES[0]):
    return json.loads((out / name.replace(".nii.gz", ".json")).read_text())


def voxels(out, name=NAMES[0]):
    return np.asarray(nib.load(out / name).dataobj)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def same_volumes(ours, theirs):
    return all((ours / name).read_bytes() == (theirs / name).read_bytes() for name in NAMES)


def command(*arguments, **options):
    """Exit status of `contourdiff translate`."""
    argv = [f"--{name}={value}" for name, value in options.items()]
    return cli.main(["contourdiff", "translate", *argv, *arguments])


# ----------------------------------------------------------------------------------------------
# The same to the bit
# ----------------------------------------------------------------------------------------------


def test_a_volume_does_not_depend_on_the_others(mr_run, sources, translated, tmp_path):
    """Alone, and after the one that otherwise comes before it."""
    for name in reversed(NAMES):
        translate(mr_run, sources / name, tmp_path / "out", preset="ct")
    assert same_volumes(tmp_path / "out", translated)


def test_what_is_done_is_kept(mr_run, sources, translated):
    before = contents(translated)
    result = translate(mr_run, sources, translated, preset="ct")
    assert [path.name for path in result.kept] == NAMES and not result.done
    assert contents(translated) == before


@pytest.mark.parametrize("lost", NAMES)
def test_what_is_lost_is_made_again(mr_run, sources, translated, tmp_path, lost):
    out = shutil.copytree(translated, tmp_path / "out")
    (out / lost).unlink()
    result = translate(mr_run, sources, out, preset="ct")
    assert len(result.done) == len(result.kept) == 1
    assert same_volumes(out, translated)


def test_an_interrupted_command_is_continued_by_repeating_it(
    mr_run, sources, translated, tmp_path, monkeypatch
):
    """Interrupted where it matters: when the second sidecar is written and its volume is not."""
    out, write = tmp_path / "out", io.write

    def interrupted(path, *arguments, **options):
        if path.name == NAMES[1]:
            raise KeyboardInterrupt
        write(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(io, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            translate(mr_run, sources, out, preset="ct")
    assert not (out / NAMES[1]).exists()
    result = translate(mr_run, sources, out, preset="ct")
    assert [path.name for path in result.kept] == NAMES[:1]
    assert same_volumes(out, translated)
    assert sorted(contents(out)) == sorted(contents(translated))


@pytest.mark.parametrize("network", ["convolutions", pytest.param("U-Net", marks=pytest.mark.slow)])
def test_batches_and_devices_hardly_matter(
    mr_run, store_path, sources, translated, tmp_path, network, monkeypatch
):
    """Other shapes are other programs, which round elsewhere: to a thousandth of the range."""
    if network == "U-Net":
        monkeypatch.setattr(models, "build", UNET)
        mr_run = train_on(store_path, tmp_path / "run")
        translated = tmp_path / "reference"
        translate(mr_run, sources, translated, preset="ct")
    low, high = sidecar(translated)["window"]
    for name, options in {
        "large": {"sampler": {"batch": 8}},
        "alone": {"devices": 1},
        "both": {"sampler": {"batch": 6}, "devices": 1},
    }.items():
        translate(mr_run, sources, tmp_path / name, preset="ct", **options)
        for volume in NAMES:
            ours, theirs = voxels(tmp_path / name, volume), voxels(translated, volume)
            assert np.abs(ours - theirs).max() < 1e-3 * (high - low)


def test_every_step_of_a_sampler_has_its_own_noise(mr_run, monkeypatch):
    """A slice's own, wherever it lies in the batch; what sampling starts from is one more."""
    settings = run.load(mr_run).config
    mesh = meshes.make(settings.mesh)
    condition = {"contour": np.zeros((4, 8, 8, 2), np.float32)}
    knots = noise.independent(0, "head01", 4)

    def drawn(answer, knots=knots):
        monkeypatch.setattr(samplers, "build", lambda section, visited: answer)
        method = methods.build(run.load(mr_run), mesh=mesh)
        return np.asarray(method.draw(({}, ()), condition, knots, None))

    def noise_of(step):
        return lambda denoise, schedule, z_T, noise: 0.1 * noise(step)

    start = drawn(lambda denoise, schedule, z_T, noise: 0.1 * z_T)
    steps = [start, *(drawn(noise_of(step)) for step in range(settings.sampler.steps))]
    pictures = [picture.tobytes() for step in steps for picture in step]
    assert len(set(pictures)) == len(pictures)
    turned = jax.tree.map(lambda a: a[::-1], knots)
    np.testing.assert_array_equal(drawn(noise_of(0), turned), steps[1][::-1])


def test_another_seed_is_another_image(mr_run, sources, translated, tmp_path):
    translate(mr_run, sources / NAMES[0], tmp_path / "out", preset="ct", seed=1)
    ours, theirs = voxels(tmp_path / "out"), voxels(translated)
    low, high = sidecar(translated)["window"]
    assert np.abs(ours - theirs).max() > 0.01 * (high - low)
    assert sidecar(tmp_path / "out")["seed"] == 1


def test_nothing_of_the_source_is_seen_but_its_contours(mr_run, sources, tmp_path, monkeypatch):
    """Two heads with the same contours, were there such, would have the same translation."""
    edges = np.random.default_rng(0).integers(0, 2, (5, 32, 32), np.uint8)
    monkeypatch.setattr(opencv, "of_basis", lambda *of_the_volume: edges)
    for folder, factor in (("a", 1.0), ("b", -0.5)):
        volume = io.read(sources / NAMES[0])
        array = np.rint(factor * volume.array)
        io.save(tmp_path / folder / NAMES[0], array, volume.affine, np.int16)
        translate(mr_run, tmp_path / folder, tmp_path / f"{folder}_out", preset="ct")
    np.testing.assert_array_equal(voxels(tmp_path / "a_out"), voxels(tmp_path / "b_out"))
    with monkeypatch.context() as patch:
        patch.setattr(opencv, "of_basis", lambda *of_the_volume: 1 - edges)
        translate(mr_run, tmp_path / "a", tmp_path / "c_out", preset="ct")
    assert (voxels(tmp_path / "a_out") != voxels(tmp_path / "c_out")).any()


def echo(translator, seen, knots, beside=None):
    """A translator that answers with the contours."""
    return 2 * seen["contour"][..., :1] - 1


def test_every_slice_is_drawn_from_its_own_contours(mr_run, sources, tmp_path, monkeypatch):
    """They show where they were taken."""
    monkeypatch.setattr(Translator, "__call__", echo)
    options = {"preset": "ct", "masks": tmp_path / "masks"}
    volume = io.read(sources / NAMES[0])
    everywhere = np.ones(volume.array.shape)
    io.save(tmp_path / "masks" / NAMES[0], everywhere, volume.affine, np.uint8)
    translate(mr_run, sources / NAMES[0], tmp_path / "out", **options)

    trained = run.load(mr_run)
    resampling = trained.grid.fit(volume.array.shape, volume.affine)
    inside = resampling.masks(everywhere)
    ct, settings = intensity.preset("ct"), contour_settings.preset("default", "ct")
    edges = opencv.on_grid(volume.array, inside, resampling, ct, settings)
    assert len({picture.tobytes() for picture in edges}) == len(edges) == 5
    expected = trained.window.absolute(resampling.volume(edges, 0))
    low, high = sidecar(tmp_path / "out")["window"]
    np.testing.assert_allclose(voxels(tmp_path / "out"), expected, atol=1e-5 * (high - low))


# ----------------------------------------------------------------------------------------------
# The source's own grid
# ----------------------------------------------------------------------------------------------


def rotation(degrees):
    """About an oblique axis (Rodrigues)."""
    cross = np.cross(np.eye(3), np.array([1, 2, 3]) / np.sqrt(14))
    angle = np.deg2rad(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


@pytest.fixture
def turned(sources, tmp_path):
    """The first head: axes permuted and flipped, oblique, one axis more, and a name in it."""
    image = nib.load(sources / NAMES[0])
    array = np.asarray(image.dataobj).transpose(2, 0, 1)[:, ::-1, :, None]
    # Of the new indices (k, i', j): i = 31 - i'.
    order = np.array([[0, -1, 0, 31], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    oblique = np.eye(4)
    oblique[:3, :3] = rotation(12)
    source = nib.Nifti1Image(np.ascontiguousarray(array), oblique @ image.affine @ order)
    for field in ("descrip", "db_name", "aux_file", "intent_name"):
        source.header[field] = SECRET
    source.header.extensions.append(nib.nifti1.Nifti1Extension("comment", SECRET))
    folder = tmp_path / "turned"
    folder.mkdir()
    nib.save(source, folder / NAMES[0])
    assert SECRET in gzip.decompress((folder / NAMES[0]).read_bytes())
    return folder


def test_the_translation_lies_where_its_source_lies(mr_run, turned, translated, tmp_path):
    """Shape, affine and axis order are the file's; and a head turned is the same head."""
    result = translate(mr_run, turned, tmp_path / "out", preset="ct")
    source, ours = nib.load(turned / NAMES[0]), nib.load(tmp_path / "out" / NAMES[0])
    assert ours.shape == source.shape == (5, 32, 32, 1)
    np.testing.assert_array_equal(ours.affine, source.affine)
    for code in ("qform_code", "sform_code"):
        assert ours.header[code] == source.header[code]
    back = voxels(tmp_path / "out")[:, ::-1, :, 0].transpose(1, 2, 0)
    # The spacing, read off an oblique affine, is rounded elsewhere.
    low, high = sidecar(translated)["window"]
    np.testing.assert_allclose(back, voxels(translated), atol=1e-5 * (high - low))
    assert not result.failed


def test_nothing_that_could_name_a_patient_is_copied(mr_run, turned, tmp_path):
    out = tmp_path / "out"
    translate(mr_run, turned, out, preset="ct")
    written = [gzip.decompress((out / NAMES[0]).read_bytes())]
    written += [path.read_bytes() for path in out.glob("*.json")]
    assert len(written) == 2 and not any(SECRET in content for content in written)


def test_mr_comes_in_the_units_of_the_training_data(translated, mr_run):
    """float32, between the ends of the median window of the training volumes."""
    window = run.load(mr_run).window
    array = voxels(translated)
    assert array.dtype == np.float32 and nib.load(translated / NAMES[0]).shape == (32, 32, 5)
    assert window.low <= array.min() < array.max() <= window.high
    assert array.std() > 0.05 * (window.high - window.low)


def test_ct_comes_in_hounsfield_units(two_convolutions, phantom_data, tmp_path):
    prepare(phantom_data / "train_ct", tmp_path / "store", "ct", spacing=7.2, size=32)
    ct_run = train_on(tmp_path / "store", tmp_path / "run")
    translate(ct_run, phantom_data / "test_mr", tmp_path / "out", preset="mr")
    array = voxels(tmp_path / "out", "phantom005_mr.nii.gz")
    assert array.dtype == np.int16
    assert -1000 <= array.min() < array.max() <= 1000
    fields = sidecar(tmp_path / "out", "phantom005_mr.nii.gz")
    assert fields["preset"] == {"source": "mr", "target": "ct"}
    assert fields["window"] == [0, 1]


@pytest.fixture
def large(sources, tmp_path):
    """The first head in a field of view of 48 x 48 voxels, half as wide again as the grid."""
    volume = io.read(sources / NAMES[0])
    array = np.pad(volume.array, ((8, 8), (8, 8), (0, 0)), constant_values=-1000)
    affine = volume.affine.copy()
    affine[:2, 3] -= 8 * np.diag(affine)[:2]
    io.save(tmp_path / "large" / NAMES[0], array, affine, np.int16)
    return tmp_path / "large"


def test_air_that_the_grid_does_not_cover_is_no_loss(mr_run, large, translated, tmp_path, capsys):
    translate(mr_run, large, tmp_path / "out", preset="ct")
    assert capsys.readouterr().err == ""
    array = voxels(tmp_path / "out")
    outside = np.pad(np.zeros((32, 32, 5), bool), ((8, 8), (8, 8), (0, 0)), constant_values=True)
    low, high = sidecar(tmp_path / "out")["window"]
    # The grid's last pixel covers a seventieth of the voxel beside it.
    assert np.abs(array[outside] - low).max() < 0.03 * (high - low)
    np.testing.assert_allclose(array[~outside].reshape(32, 32, 5), voxels(translated), atol=1e-3)


def moved(sources, folder, *, scale=1, pad=0):
    """The first head, larger, or in the last corner of a field of view with that much air."""
    volume = io.read(sources / NAMES[0])
    array = np.pad(volume.array, ((pad, 0), (pad, 0), (0, 0)), constant_values=-1000)
    io.save(folder / NAMES[0], array, volume.affine @ np.diag((scale, scale, 1, 1)), np.int16)
    return folder


def test_a_body_that_the_grid_does_not_cover_is_said(mr_run, sources, tmp_path, capsys):
    large = moved(sources, tmp_path / "large", scale=1.6)
    translate(mr_run, large, tmp_path / "out", preset="ct")
    (kept,) = re.findall(r"body is larger than .* 7.2 mm: (\d+)% of it", capsys.readouterr().err)
    volume = io.read(large / NAMES[0])
    body = masks.body_mask(volume.array, volume.affine, "ct")
    middle = slice(6, 26)  # of 32 voxels, 1.6 times as wide as a pixel: 20 cover the 32 pixels
    assert int(kept) == round(100 * body[middle, middle].sum() / body.sum()) < 90


def test_a_body_that_is_not_on_the_grid_is_not_translated(mr_run, sources, tmp_path):
    """Zeros would count as done; nothing of it stays."""
    away, out = moved(sources, tmp_path / "away", pad=64), tmp_path / "out"
    with pytest.raises(InputError, match=rf"{NAMES[0]}: nothing of the body lies on .*--tiles"):
        translate(mr_run, away, out, preset="ct")
    assert not out.exists()
    assert translate(mr_run, away, out, preset="ct", sampler={"tiles": 0.25}).done


def test_a_source_without_contours_is_not_translated(mr_run, sources, tmp_path):
    mixed = shutil.copytree(sources, tmp_path / "mixed")
    plain = np.broadcast_to(np.linspace(0, 60, 32)[:, None, None], (32, 32, 5))
    io.save(mixed / "plain_ct.nii.gz", plain, np.diag((7.2, 7.2, 7.2, 1)), np.float32)
    result = translate(mr_run, mixed, tmp_path / "out", preset="ct")
    [(path, why)] = result.failed
    assert path.name == "plain_ct.nii.gz" and "no contour in any slice" in why
    assert len(result.done) == 2


def test_what_fits_is_translated_without_a_word(mr_run, sources, tmp_path, capsys):
    translate(mr_run, sources, tmp_path / "out", preset="ct")
    assert capsys.readouterr().err == ""


# ----------------------------------------------------------------------------------------------
# Sidecars and settings
# ----------------------------------------------------------------------------------------------


def test_the_sidecar_says_what_the_image_was_made_with(mr_run, sources, translated):
    fields = sidecar(translated)
    assert fields["notice"] == sidecars.NOTICE and "not for diagnosis" in sidecars.NOTICE
    assert fields["schema"] == 1
    assert fields["subject"] == "phantom005"
    assert fields["source"] == {
        "name": NAMES[0],
        "sha256": disk.sha256(sources / NAMES[0]),
    }
    trained = run.load(mr_run)
    assert fields["preset"] == {"source": "ct", "target": "mr"}
    assert fields["window"] == [trained.window.low, trained.window.high]
    assert fields["grid"] == {"axis": "axial", "spacing": 7.2, "size": 32}
    assert ContourSettings.from_dict(fields["contours"]["target"]) == trained.contours
    given = ContourSettings.from_dict(fields["contours"]["source"])
    assert given == contour_settings.preset("default", "ct")
    assert fields["sampler"] == trained.config.sampler.to_dict()
    assert fields["seed"] == 0
    assert fields["slices"] == 5 and fields["seconds"] > 0
    cost = fields["cost"]
    assert cost["parameters"] > 0 and cost["host_bytes"] > 2**20 and cost["device"] == "cpu"
    assert fields["versions"]["contourdiff-jax"] == contourdiff_jax.__version__
    assert {"jax", "numpy"} <= fields["versions"].keys()
    assert config.differences(config.from_dict(fields["config"]), trained.config) == []
    assert fields["training_subjects"] == list(trained.subjects)


def test_the_digest_is_that_of_the_average(mr_run, translated):
    fields = sidecar(translated)["checkpoint"]
    assert fields["step"] == 8 and fields["images"] == 32
    method = methods.build(run.load(mr_run))
    _, averages = checkpoint.averages(mr_run, method.players, method.mesh)
    assert fields["digest"] == checkpoint.digest(averages)


@pytest.mark.parametrize(
    "sampler",
    [{"name": "ddpm"}, {"steps": 2}, {"guidance": 2.0}, {"eta": 1.0}, {"spacing": "leading"}],
)
def test_the_sampler_may_be_chosen(mr_run, sources, translated, tmp_path, sampler):
    translate(mr_run, sources / NAMES[0], tmp_path / "out", preset="ct", sampler=sampler)
    fields = sidecar(tmp_path / "out")
    assert fields["sampler"].items() >= sampler.items()
    assert fields["config"]["sampler"] == fields["sampler"]
    assert (voxels(tmp_path / "out") != voxels(translated)).any()


def test_contours_may_be_given(mr_run, sources, translated, tmp_path):
    """By a file, or by the name of a preset; both are recorded."""
    given = ContourSettings(windows=((0, 300),), low=30, high=60, blur=5)
    (tmp_path / "contours.json").write_text(json.dumps(given.to_dict()))
    published = contour_settings.preset("published", "ct")
    for name, expected in ((str(tmp_path / "contours.json"), given), ("published", published)):
        out = tmp_path / f"blur{expected.blur}"
        translate(mr_run, sources / NAMES[0], out, preset="ct", contours=name)
        recorded = sidecar(out)["contours"]["source"]
        assert ContourSettings.from_dict(recorded) == expected
        assert (voxels(out) != voxels(translated)).any()


def test_within_a_modality_contours_are_those_of_training(mr_run, phantom_data, tmp_path):
    translate(mr_run, phantom_data / "test_mr", tmp_path / "out", preset="mr")
    fields = sidecar(tmp_path / "out", "phantom005_mr.nii.gz")["contours"]
    assert fields["source"] == fields["target"]


def test_the_originals_contours_are_those_of_the_pictures(
    two_convolutions, phantom_data, tmp_path, monkeypatch
):
    """Of a run trained on them, across modalities too; at twice the pixels of the grid.

    All the way: prepare, train, translate, score. What is drawn is the contours themselves, which
    come back as pictures of two greys.
    """
    pictures, planes = tmp_path / "pictures", {}
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for name in ("head1-0", "head1-1", "head2-0"):
        planes[name] = np.kron(rng.integers(0, 256, (16, 16), np.uint8), np.ones((4, 4), np.uint8))
        Image.fromarray(planes[name]).save(pictures / f"{name}.png")
    grid = {"spacing": 7.2, "size": 32}
    prepare(phantom_data / "train_mr", tmp_path / "mr", "mr", **grid, contours_file="original")
    settings = config.default()
    settings.contours.preset = "original"
    settings.model.update(channels=(8,), attention=(False,), head_width=8, groups=4)
    settings.train.update(images=8, batch=2, log=0, evaluate=0, sample=0, checkpoint=0)
    assert train(settings, tmp_path / "mr", tmp_path / "run")

    monkeypatch.setattr(Translator, "__call__", echo)
    out, assumed = tmp_path / "out", Assumed(3.6)
    translate(tmp_path / "run", pictures, out, preset="ct", assumed=assumed)
    fields = json.loads((out / "head1.json").read_text())["contours"]
    for side in ("source", "target"):
        assert ContourSettings.from_dict(fields[side]) == contour_settings.preset("original", "mr")
    resampling = run.load(tmp_path / "run").grid.fit((64, 64, 1), np.diag((3.6, 3.6, 3.6, 1)))
    for name, plane in planes.items():
        edges = cv2.Canny(cv2.GaussianBlur(plane, (3, 3), 0), 80, 150)
        small = Image.fromarray(edges).resize((32, 32), Image.Resampling.NEAREST)
        expected = resampling.planes(resampling.volume(np.asarray(small)[None] > 0, 0))[0]
        drawn = np.asarray(Image.open(out / f"{name}.png"), np.float32)
        assert expected.any() and drawn.max() > 0
        np.testing.assert_allclose(drawn / drawn.max(), expected, atol=0.01)


def test_masks_may_be_given(mr_run, sources, phantom_data, translated, tmp_path):
    """A mask of nothing but ones is one, and of zeros none."""
    translate(mr_run, sources, tmp_path / "a", preset="ct", masks=phantom_data / "test_labels")
    volume = io.read(sources / NAMES[0])
    for value, folder in ((1, "ones"), (0, "zeros")):
        mask = np.full(volume.array.shape, value)
        io.save(tmp_path / folder / "phantom005_mask.nii.gz", mask, volume.affine, np.uint8)
    options = {"preset": "ct", "masks": tmp_path / "ones"}
    result = translate(mr_run, sources, tmp_path / "b", **options)
    # The other subject has no mask.
    assert [path.name for path, _ in result.failed] == NAMES[1:]
    assert "phantom006" in result.failed[0][1] and "masks" in result.failed[0][1]
    options["masks"] = tmp_path / "zeros"
    with pytest.raises(InputError, match=r"phantom005_mask\.nii\.gz: an empty mask"):
        translate(mr_run, sources, tmp_path / "c", **options)


def test_other_settings_are_not_mixed_into_a_folder(mr_run, sources, translated, tmp_path):
    out = shutil.copytree(translated, tmp_path / "out")
    before = contents(out)
    with pytest.raises(InputError, match=f"{out / NAMES[0]}: made with other settings.*overwrite"):
        translate(mr_run, sources, out, preset="ct", seed=1)
    assert contents(out) == before
    result = translate(mr_run, sources, out, preset="ct", seed=1, overwrite=True)
    assert len(result.done) == 2
    assert sidecar(out)["seed"] == 1
    assert not same_volumes(out, translated)


def test_what_an_earlier_version_translated_is_kept(mr_run, sources, translated, tmp_path):
    """Its sidecars lack the fields that the configuration has got since; the others count."""
    out, path = shutil.copytree(translated, tmp_path / "out"), "phantom005_ct.json"
    fields = sidecar(out)
    fields["training_subjects_sha256"] = fields.pop("training_subjects")
    del fields["config"]["method"]
    for section in (fields["config"]["sampler"], fields["sampler"]):
        del section["tiles"], section["coherence"]
    (out / path).write_text(json.dumps(fields))
    assert len(translate(mr_run, sources, out, preset="ct").kept) == 2
    fields["config"]["sampler"]["steps"] = fields["sampler"]["steps"] = 7
    (out / path).write_text(json.dumps(fields))
    result = translate(mr_run, sources, out, preset="ct")
    assert "made with other settings" in result.failed[0][1] and len(result.kept) == 1


def test_a_sidecar_that_is_none_is_no_proof(mr_run, sources, translated, tmp_path):
    out = shutil.copytree(translated, tmp_path / "out")
    for text in ("[1]", "{", "5"):
        (out / "phantom005_ct.json").write_text(text)
        result = translate(mr_run, sources, out, preset="ct")
        assert [path.name for path, _ in result.failed] == NAMES[:1]


# ----------------------------------------------------------------------------------------------
# What goes wrong
# ----------------------------------------------------------------------------------------------


def test_a_bad_file_is_reported_and_the_rest_is_done(mr_run, sources, translated, tmp_path, capsys):
    mixed, out = shutil.copytree(sources, tmp_path / "mixed"), tmp_path / "out"
    bad = mixed / "broken_ct.nii.gz"
    bad.write_bytes((mixed / NAMES[0]).read_bytes()[:1000])
    assert command(run=mr_run, source=mixed, preset="ct", out=out) == 1
    written = capsys.readouterr()
    assert written.err.count("\n") == 1
    assert str(bad) in written.err and "truncated" in written.err
    assert "2 translated, 0 kept from before, 1 failed" in written.out
    assert same_volumes(out, translated)
    assert len(contents(out)) == 4


@pytest.mark.parametrize(
    "error", [MemoryError("63.5 TiB"), OSError(errno.EIO, "Input/output error")]
)
@pytest.mark.parametrize("step", ["read", "draw", "finish"])
def test_what_a_volume_makes_fail_ends_nothing_else(
    mr_run, sources, tmp_path, monkeypatch, step, error
):
    done = getattr(translate_volume, step)

    def fails(plan, source, *drawn):
        scans = source if isinstance(source, list) else [source]
        if any(getattr(it, "scan", it).name == "phantom005" for it in scans):
            raise error
        return done(plan, source, *drawn)

    monkeypatch.setattr(translate_volume, step, fails)
    result = translate(mr_run, sources, tmp_path / "out", preset="ct")
    [(path, why)] = result.failed
    assert path == sources / NAMES[0] and why.startswith(f"{path}: ")
    assert [path.name for path in result.done] == NAMES[1:]
    assert sorted(contents(tmp_path / "out")) == ["phantom006_ct.json", NAMES[1]]


def test_a_bug_is_no_failure_of_a_volume(mr_run, sources, tmp_path, monkeypatch):
    monkeypatch.setattr(translate_volume, "read", lambda *_: {}["no such thing"])
    with pytest.raises(KeyError):
        translate(mr_run, sources, tmp_path / "out", preset="ct")


def test_a_bad_file_of_any_name_is_one_line(mr_run, sources, tmp_path, capsys):
    mixed = shutil.copytree(sources, tmp_path / "mixed")
    (mixed / "a\n\udcff\x1b[31m_ct.nii").write_bytes(b"no volume" * 99)
    assert command(run=mr_run, source=mixed, preset="ct", out=tmp_path / "out") == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"not translated: {mixed}/a???[31m_ct.nii: not a NIfTI file")


def test_a_volume_without_contrast_is_reported_by_name(mr_run, phantom_data, tmp_path):
    mixed = shutil.copytree(phantom_data / "test_mr", tmp_path / "mixed")
    flat = np.zeros((32, 32, 5))
    flat[0, 0, 0] = 1
    io.save(mixed / "flat_mr.nii.gz", flat, np.eye(4), np.float32)
    result = translate(mr_run, mixed, tmp_path / "out", preset="mr")
    assert [path.name for path, _ in result.failed] == ["flat_mr.nii.gz"]
    assert str(mixed / "flat_mr.nii.gz") in result.failed[0][1]


def fail_for(monkeypatch, names):
    """A disk that is full when these volumes are written."""
    save = nib.save

    def full(image, path):
        if any(str(path).endswith(name) for name in names):
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(image, path)

    monkeypatch.setattr(nib, "save", full)


def test_a_full_disk_leaves_nothing_half_written(mr_run, sources, tmp_path, monkeypatch):
    fail_for(monkeypatch, NAMES)
    with pytest.raises(InputError, match=f"{NAMES[0]}: cannot be written: no space left"):
        translate(mr_run, sources, tmp_path / "out", preset="ct")
    assert not any(tmp_path.iterdir())


def test_a_disk_that_fills_up_keeps_what_was_whole(
    mr_run, sources, translated, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        fail_for(patch, NAMES[1:])
        result = translate(mr_run, sources, out, preset="ct")
    assert len(result.done) == len(result.failed) == 1
    assert sorted(contents(out)) == ["phantom005_ct.json", NAMES[0]]
    translate(mr_run, sources, out, preset="ct")
    assert same_volumes(out, translated)


def test_sources_are_never_written_over(mr_run, sources, tmp_path):
    folder = shutil.copytree(sources, tmp_path / "ct")
    before = contents(folder)
    for source in (folder, folder / NAMES[0]):
        with pytest.raises(InputError, match=f"--out={folder}: (lies in|holds) --source={source}"):
            translate(mr_run, source, folder, preset="ct", overwrite=True)
    assert contents(folder) == before


def test_two_sources_do_not_share_a_sidecar(mr_run, sources, tmp_path):
    folder = shutil.copytree(sources, tmp_path / "ct")
    volume = io.read(folder / NAMES[0])
    io.save(folder / "phantom005_ct.nii", volume.array, volume.affine, np.int16)
    with pytest.raises(InputError, match=r"phantom005_ct\.nii.*same sidecar"):
        translate(mr_run, folder, tmp_path / "out", preset="ct")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"preset": "pet"}, "pet"),
        ({"sampler": {"batch": 3}, "devices": 2}, "--batch: 3"),
        ({"devices": 3}, "3 devices"),
        ({"sampler": {"steps": 0}}, "steps: 0"),
        ({"sampler": {"steps": 1001}}, "1001"),
        ({"sampler": {"name": "euler"}}, "--sampler: 'euler'"),
        ({"contours": "absent.json"}, "absent.json"),
        ({"masks": "absent"}, "absent"),
        ({"source": "absent"}, "absent"),
        ({"sampler": {"speed": 3}}, "speed"),
        ({"sampler": {"steps": "many"}}, "many"),
        ({"kind": "T1w"}, "--kind: .*leave it out"),
        ({"labels": "absent"}, "--labels: only --format=nnunet"),
        ({"assumed": Assumed(2.0)}, "--pixel_spacing: .*pictures"),
        ({"run": "absent"}, "absent: not a run"),
    ],
)
def test_settings_that_cannot_work_are_named(mr_run, sources, tmp_path, options, named):
    arguments = {"run": mr_run, "source": sources, "preset": "ct"}
    with pytest.raises(InputError, match=named) as error:
        translate(**(arguments | options), out=tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text", ["", "[]", '{"windows": [[0, 1]]}', '{"windows": [["a", "b"]], "low": 1, "high": 2}']
)
def test_contour_files_that_cannot_be_used_are_named(mr_run, sources, tmp_path, text):
    path = tmp_path / "contours.json"
    path.write_text(text)
    with pytest.raises(InputError, match=str(path)):
        translate(mr_run, sources, tmp_path / "out", preset="ct", contours=str(path))


def test_guidance_needs_a_run_that_was_trained_for_it(
    two_convolutions, store_path, sources, tmp_path
):
    plain = train_on(store_path, tmp_path / "run", condition_dropout=0.0, images=4)
    with pytest.raises(InputError, match=r"--guidance: .*trained without condition dropout"):
        translate(plain, sources, tmp_path / "out", preset="ct", sampler={"guidance": 2.0})


def test_a_run_of_few_steps_is_asked_for_those_it_learnt(mr_run, sources, tmp_path):
    few = shutil.copytree(mr_run, tmp_path / "run")
    fields = json.loads((few / "config.json").read_text())
    del fields["digest"]
    fields["config"]["diffusion"]["timesteps"] = "sampler"
    fields["config"]["sampler"]["steps"] = 2
    (few / "config.json").write_text(json.dumps(fields))
    with pytest.raises(InputError, match=r"the run: learnt the timesteps of .*--steps=2"):
        translate(few, sources, tmp_path / "out", preset="ct", sampler={"steps": 3})
    result = translate(few, sources / NAMES[0], tmp_path / "out", preset="ct")
    assert len(result.done) == 1 and sidecar(tmp_path / "out")["sampler"]["steps"] == 2


def test_a_run_of_another_network_is_refused(mr_run, sources, tmp_path):
    other = shutil.copytree(mr_run, tmp_path / "run")
    fields = json.loads((other / "config.json").read_text())
    del fields["digest"]
    fields["config"]["model"]["channels"] = [16, 16]
    (other / "config.json").write_text(json.dumps(fields))
    with pytest.raises(InputError, match=r"another architecture: network\.first\.bias"):
        translate(other, sources, tmp_path / "out", preset="ct")


def test_a_run_of_a_segmenter_is_refused(mr_run, sources, store_path, tmp_path):
    settings = segmentation.configured(0, 4, 4)
    ours = run.begin(settings, open_store(store_path), labels=(0, 1))
    method = segmentation.build(ours)
    (tmp_path / "run").mkdir()
    ours.save(tmp_path / "run")
    params = method.players["network"].init(jax.random.key(0))
    checkpoint.save_averages(tmp_path / "run", {"network": params})
    with pytest.raises(InputError, match=r"a run of a segmenter: it .* draws none"):
        translate(tmp_path / "run", sources, tmp_path / "out", preset="ct")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("field", ["coupling", "tiles"])
def test_only_what_draws_step_by_step_has_steps_to_change(
    mr_run, sources, tmp_path, monkeypatch, field
):
    real = diffusion.Diffusion.translator

    def at_once(self, averages, fixed):
        return dataclasses.replace(real(self, averages, fixed), denoises=False)

    monkeypatch.setattr(diffusion.Diffusion, "translator", at_once)
    with pytest.raises(InputError, match=f"--{field}: .*diffusion takes none"):
        translate(mr_run, sources, tmp_path / "out", preset="ct", sampler={field: 0.25})
    assert translate(mr_run, sources / NAMES[0], tmp_path / "out", preset="ct").done


def test_a_run_without_a_checkpoint_is_refused(mr_run, sources, tmp_path):
    other = tmp_path / "run"
    other.mkdir()
    shutil.copy(mr_run / "config.json", other)
    with pytest.raises(InputError, match=f"{other}: holds no checkpoint"):
        translate(other, sources, tmp_path / "out", preset="ct")
