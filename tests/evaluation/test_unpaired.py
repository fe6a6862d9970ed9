# SPDX-License-Identifier: Apache-2.0
"""Unpaired scores: which images are compared, how many, and what the numbers are called."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from unpaired_pictures import look, pictures

from contourdiff_jax import cli
from contourdiff_jax.errors import InputError
from contourdiff_jax.evaluation import features, unpaired
from contourdiff_jax.evaluation import folder as module
from contourdiff_jax.evaluation.folder import Request, evaluate
from contourdiff_jax.evaluation.metrics import distribution, samples
from contourdiff_jax.evaluation.unpaired import Options
from contourdiff_jax.interop import inception
from contourdiff_jax.volumes import io


@pytest.fixture(autouse=True)
def network(monkeypatch):
    """Released weights that are there, of a network that compiles at once; what it is shown."""
    monkeypatch.setattr(features.inception, "apply", look)
    monkeypatch.setattr(inception, "load", lambda path: ({}, "net", inception.SHA256))
    monkeypatch.setattr(samples, "RESAMPLES", {"kernel": 50, "frechet": 3})
    monkeypatch.setattr(module, "PANELS", 0)
    features._jitted.cache_clear()
    shown, extract = [], features.extract

    def keep(stacks, *arguments):
        stacks = list(stacks)
        shown.append(stacks)
        return extract(stacks, *arguments)

    monkeypatch.setattr(features, "extract", keep)
    yield shown
    features._jitted.cache_clear()


@pytest.fixture
def data(tmp_path):
    pictures(tmp_path / "translated", ["a1", "a2", "a3"], 20, 0, brighter=30)
    pictures(tmp_path / "real", ["r1", "r2", "r3", "r4"], 15, 1)
    return tmp_path


def run(data, out="out", *, real="real", options=None, **arguments):
    options = options or Options("inception")
    folders = {"translated": data / "translated", "real": data / real, "out": data / out}
    return evaluate(Request(**folders, preset="mr", distances=options, **arguments)).metrics


def read(folder):
    """The pictures of a folder [n, H, W]."""
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))])


def test_pictures_of_8_bits_reach_the_network_as_they_are(data, network):
    # what pytorch-fid and the others are given when they are pointed at the same folders
    run(data)
    for stacks, folder in zip(network, ("translated", "real"), strict=True):
        np.testing.assert_array_equal(np.concatenate(stacks), read(data / folder))


def test_the_numbers_are_those_of_the_features(data, monkeypatch):
    monkeypatch.setattr(unpaired, "LEAST_FRECHET", 10)
    metrics = run(data)
    mode = features.mode("clean-fid")
    x, y = (
        features.extract([read(data / name)], mode, {}, mesh()) for name in ("translated", "real")
    )
    got = metrics["methods"]["translation"]
    assert got["kid"]["value"] == pytest.approx(distribution.kernel(x, y), rel=1e-5)
    assert got["fid"]["value"] == pytest.approx(distribution.frechet(x, y), rel=1e-5)
    assert next(iter(got)) == "kid" and got["kid"]["n"] == 3
    assert got["kid"]["low"] < got["kid"]["value"] < got["kid"]["high"]
    assert metrics["data"]["weights"] == f"net, SHA-256 {inception.SHA256}"


def mesh():
    from ml_collections import ConfigDict

    from contourdiff_jax.runtime import mesh as meshes

    return meshes.make(ConfigDict({"data": -1, "fsdp": 1}))


def test_both_sides_have_as_many_images_as_the_smaller(data, monkeypatch):
    pictures(data / "real", ["r5", "r6"], 40, 2)
    taken, kernel = [], distribution.kernel
    monkeypatch.setattr(
        distribution, "kernel", lambda x, y: taken.append((len(x), len(y))) or kernel(x, y)
    )
    metrics = run(data)
    assert taken[0] == (60, 60)
    assert {a for a, _ in taken[1:]} == {a for _, a in taken[1:]}  # of the floor
    assert "60 on each side" in metrics["data"]["number of images"]


def test_the_floor_is_lower_than_a_translation_that_is_off(data, monkeypatch):
    monkeypatch.setattr(unpaired, "LEAST_FRECHET", 10)
    methods = run(data)["methods"]
    assert methods["real"]["kid"]["n"] == 4
    assert methods["real"]["kid"]["value"] < methods["translation"]["kid"]["value"]
    # halves have 30 images, and FID falls with their number: it is compared at 30
    assert "fid" not in methods["real"]
    half = {name: entry["fid_at_30"]["value"] for name, entry in methods.items()}
    assert (
        half["real"] < half["translation"]
        and half["translation"] > methods["translation"]["fid"]["value"]
    )


def test_one_real_subject_gives_no_floor(data):
    pictures(data / "one", ["r1"], 60, 3)
    metrics = run(data, real="one")
    assert list(metrics["methods"]) == ["translation"]
    assert metrics["data"]["floor"].startswith("none")
    assert metrics["methods"]["translation"]["kid"]["low"] is None


def test_few_images_get_a_reason_and_no_number(data):
    metrics = run(data)
    assert "fid" not in metrics["methods"]["translation"]
    assert metrics["data"]["fid"].startswith("left out: of fewer than 200")
    pictures(data / "few", ["r1", "r2"], 20, 3)
    with pytest.raises(InputError, match=r"real, axial: 40 images, .* at least 50"):
        run(data, "other", real="few")
    with pytest.raises(InputError, match=r"60 images, .* at least 1000"):
        run(data, "other", options=Options("inception", mode="torch-fidelity"))
    pictures(data / "single", ["r1"], 1, 3)
    with pytest.raises(InputError, match="1 images"):
        run(data, "other", real="single")
    assert not (data / "other").exists()


def test_sizes_may_differ_and_constant_pictures_are_named(data):
    pictures(data / "real", ["r7"], 5, 4, size=33)
    assert run(data)["methods"]["translation"]["kid"]["n"] == 3
    for path in (data / "real").glob("r7-*"):
        Image.fromarray(np.full((33, 33), 7, np.uint8)).save(path)
    result = run(data, "constant")
    assert any("r7" in reason and "constant" in reason for reason in result["data"]["failed"])


def test_translated_subjects_are_not_compared_with_themselves(data):
    before = run(data)["methods"]
    pictures(data / "real", ["a1"], 15, 9)
    after = run(data, "after")
    assert after["methods"] == before
    assert after["data"]["real volumes left out of the distances"] == ["a1"]
    with pytest.raises(InputError, match="no volume of a subject that was not translated"):
        run(data, "other", real="translated")


def test_the_source_is_measured_too(data):
    pictures(data / "source", ["a1", "a2", "a3"], 20, 7, brighter=60)
    metrics = run(data, source=data / "source", source_preset="mr")
    methods = metrics["methods"]
    assert methods["source"]["kid"]["value"] > methods["translation"]["kid"]["value"]
    assert "contour_f1" in methods["translation"]
    with (data / "out" / "rows.csv").open() as rows:
        assert len(list(csv.reader(rows))) > 60


def test_other_weights_are_never_called_fid(data, monkeypatch):
    monkeypatch.setattr(inception, "load", lambda path: ({}, "mine", "0" * 64))
    monkeypatch.setattr(unpaired, "LEAST_FRECHET", 10)
    metrics = run(data)
    assert list(metrics["methods"]["translation"]) == [
        "kernel_mine",
        "frechet_mine",
        "frechet_mine_at_30",
    ]
    assert "neither KID nor FID" in metrics["data"]["features"]


def test_statistics_are_those_pytorch_fid_reads(data):
    run(data, options=Options("inception", statistics=True))
    files = sorted(path.name for path in (data / "out" / "statistics").iterdir())
    assert files == ["real_axial.npz", "translation_axial.npz"]
    with np.load(data / "out" / "statistics" / "real_axial.npz") as file:
        assert file["mu"].shape == (2048,) and file["sigma"].shape == (2048, 2048)
        assert file["mu"].dtype == file["sigma"].dtype == np.float64


# ----------------------------------------------------------------------------------------------
# Volumes
# ----------------------------------------------------------------------------------------------


def head(seed, spots=100):
    """MR of an ellipsoid in noise-free air [24, 20, 16]."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (24, 20, 16)), indexing="ij")
    inside = (x / 0.7) ** 2 + (y / 0.7) ** 2 + (z / 0.8) ** 2 < 1
    return np.where(inside, 400 + spots * rng.random(x.shape), 0).astype(np.float32), inside


@pytest.fixture
def heads(tmp_path):
    for folder, names, spots in (("translated", "abcd", 300), ("real", "rstuv", 100)):
        (tmp_path / folder).mkdir()
        for seed, name in enumerate(names):
            path = tmp_path / folder / f"{name}_mr.nii.gz"
            io.save(path, head(seed, spots)[0], np.diag([4.0, 4, 4, 1]), np.float32)
    return tmp_path


def test_slices_are_shown_through_the_window_of_their_volume(heads, network):
    run(heads)
    array = head(0, 300)[0]
    expected = 255 * np.clip(array / np.percentile(array, 99.5), 0, 1)
    axial = np.flip(np.transpose(expected, (2, 1, 0)), (1, 2))
    np.testing.assert_allclose(network[0][0], axial, atol=0.51)


def test_the_foreground_is_the_body_in_air(heads, network, monkeypatch):
    for path in (heads / "real").iterdir():
        array = io.read(path).array
        array[0, 0] = 300  # a tube beside the head: the last pixel of the first row
        path.unlink()
        io.save(path, array, np.diag([4.0, 4, 4, 1]), np.float32)
    monkeypatch.setattr(unpaired, "LEAST", 40)
    metrics = run(heads, options=Options("inception", foreground=True))
    assert "made air outside the body" in metrics["data"]["images of the distances"]
    run(heads, "whole")
    for body, whole in zip(network[1], network[3], strict=True):
        assert len(whole) == 16 and (whole[:, -1, -1] > 0).all()
        assert len(body) == 12 and (body[:, -1, -1] == 0).all()  # none above or below the head
        assert (body[:, 10, 12] == whole[2:14, 10, 12]).all()


def test_three_views_are_averaged(heads, network):
    metrics = run(heads, options=Options("inception", three_views=True))
    got = metrics["methods"]["translation"]
    views = [got[f"kid_{view}"]["value"] for view in ("axial", "coronal", "sagittal")]
    assert got["kid"]["value"] == pytest.approx(np.mean(views), rel=1e-12)
    assert len(set(views)) == 3
    assert {stack.shape for stack in network[0]} == {(16, 20, 24), (20, 16, 24), (24, 16, 20)}
    assert "kid_axial" in metrics["methods"]["real"]


def test_the_model_s_grid_makes_pixels_square(heads, network):
    run(heads, grid="model")
    assert network[0][0].shape == (16, 24, 24)


# ----------------------------------------------------------------------------------------------
# Features of a file
# ----------------------------------------------------------------------------------------------


def write(path, rng, **changes):
    arrays = {
        "translated": rng.standard_normal((60, 8)) + 1,
        "real": rng.standard_normal((80, 8)),
        "translated_subjects": np.repeat(["a", "b", "c"], 20),
        "real_subjects": np.repeat(["r", "s"], 40),
    }
    np.savez(path, **{k: v for k, v in (arrays | changes).items() if v is not None})
    return Options(str(path))


def test_features_of_a_file_go_by_its_name(heads, rng):
    options = write(heads / "radimagenet.npz", rng)
    request = Request(heads / "translated", heads / "out", preset="mr", distances=options)
    metrics = evaluate(request).metrics
    assert list(metrics["methods"]["translation"]) == ["kernel_radimagenet"]
    assert metrics["methods"]["translation"]["kernel_radimagenet"]["n"] == 3
    assert metrics["methods"]["real"]["kernel_radimagenet"]["n"] == 2
    assert "fid" not in json.dumps(metrics["methods"]) + json.dumps(metrics["data"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"real": None}, "not the features of two sets"),
        ({"real": np.zeros((80, 9))}, r"shape \(60, 8\)"),
        ({"real": np.full((80, 8), np.nan)}, "finite"),
        ({"real_subjects": np.array(["r"])}, "a subject to each"),
        ({"real": np.array([{}] * 80, dtype=object)}, "not the features .* allow_pickle=False"),
        ({"real": np.zeros((30, 8)), "real_subjects": np.array(["r"] * 30)}, "at least 50"),
    ],
)
def test_files_that_are_no_features(heads, rng, changes, message):
    options = write(heads / "f.npz", rng, **changes)
    with pytest.raises(InputError, match=message):
        unpaired.measure(options, None, None)


def test_a_file_that_unpacks_to_far_more_than_it_is(heads, rng, monkeypatch):
    """It is not unpacked to find that out."""
    monkeypatch.setattr(unpaired, "UNPACKED", 1 << 20)
    np.savez_compressed(heads / "f.npz", real=np.zeros((1 << 12, 64)))
    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", None)
    with pytest.raises(InputError, match=r"f\.npz: .*unpack to 2,097,\d\d\d bytes"):
        unpaired.measure(Options(str(heads / "f.npz")), None, None)


def test_a_damaged_file(heads):
    (heads / "f.npz").write_bytes(b"PK\x03\x04 and no more")
    for name in ("f.npz", "none.npz"):
        with pytest.raises(InputError, match=name):
            unpaired.measure(Options(str(heads / name)), None, None)


# ----------------------------------------------------------------------------------------------
# Command line
# ----------------------------------------------------------------------------------------------


def test_on_the_command_line(data, capsys):
    arguments = [f"--{name}={data / name}" for name in ("translated", "real")]
    command = ["contourdiff", "evaluate", *arguments, "--preset=mr", f"--out={data / 'out'}"]
    assert cli.main([*command, "--features=inception", "--mode=pytorch-fid"]) == 0
    assert "KID" in capsys.readouterr().out
    metrics = json.loads((data / "out" / "metrics.json").read_text())
    assert "--mode=pytorch-fid" in metrics["command"]
    assert "pytorch-fid" in metrics["data"]["features"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mode=pytorch-fid"], "--mode goes with --features"),
        (["--mode=clean-fid"], "--mode goes with --features"),
        (["--features=f.npz", "--mode=clean-fid"], "--mode is not for --features=f.npz"),
        (["--features=f.npz", "--weights=w"], "--weights is not for --features=f.npz"),
        (["--features=f.npz", "--foreground"], "--foreground is not for --features=f.npz"),
        (["--features=f.npz", "--three_views"], "--three_views is not for --features=f.npz"),
        (["--features=segmenter", "--real=real", "--foreground"], "--foreground is not for"),
        (["--features=segmenter", "--real=real", "--mode=clean-fid"], "--mode is not for"),
        (["--features=f.npz", "--real=real"], "--real is for baselines"),
        (["--features=segmenter", "--real=real", "--grid=model"], "--grid=model is where"),
        (["--features=f.npz", "--coordinator=auto"], "--coordinator: processes share"),
        (["--features=dino"], "--features=dino: known are inception, segmenter, or an .npz"),
        (["--features=inception", "--mode=fid"], "--mode"),
        (["--features=inception"], "--real; give them"),
        ([], "nothing to compare with"),
    ],
)
def test_bad_requests(data, capsys, flags, message):
    command = ["contourdiff", "evaluate", f"--translated={data / 'translated'}", "--preset=mr"]
    assert cli.main([*command, f"--out={data / 'out'}", *flags]) == 2
    assert message in capsys.readouterr().err


def test_16_bits_are_nothing_without_a_window(data, capsys):
    for path in (data / "translated").glob("*.png"):
        Image.fromarray(np.uint16(np.asarray(Image.open(path))) * 200).save(path)
    command = ["contourdiff", "evaluate", f"--out={data / 'out'}", "--features=inception"]
    command += [f"--{name}={data / name}" for name in ("translated", "real")]
    assert cli.main(command) == 2
    assert "--preset" in capsys.readouterr().err
