# SPDX-License-Identifier: Apache-2.0
"""FID and KID against pytorch-fid, torch-fidelity and clean-fid, with equal random weights.

The packages are the real ones, with a stand-in for torchvision, see fid_packages.py. The images are
real CT and MR slices; several hundred of them are compared in experiments/013_fid.
"""

import sys

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from contourdiff_jax.evaluation import features
from contourdiff_jax.evaluation.metrics import distribution
from contourdiff_jax.interop import inception, torchfile
from contourdiff_jax.runtime import mesh as meshes

WHY = "needs the environment of `make test-parity`"
torch = pytest.importorskip("torch", reason=WHY)
import fid_packages  # noqa: E402, needs torch

if fid_packages.missing():
    pytest.skip(f"{WHY}, with {', '.join(fid_packages.missing())}", allow_module_level=True)
pytestmark = [
    pytest.mark.parity,
    # SciPy is about to drop an argument that the packages use.
    pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Matrix is:scipy.linalg.LinAlgWarning"),
]

IMAGES = 8  # of each kind
FEATURES = 1e-4  # relative, of the largest
FID = 1e-3  # relative
KID = 1e-5
KINDS = [(256, "grey"), (256, "colour"), (512, "grey"), (512, "colour")]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    fid_packages.random_weights(path)
    return path


@pytest.fixture(scope="module")
def packages(file):
    with pytest.MonkeyPatch.context() as patch:
        for name, module in fid_packages.stand_in().items():
            patch.setitem(sys.modules, name, module)
        yield fid_packages.load(file)


@pytest.fixture(scope="module")
def folders(data_root, tmp_path_factory):
    """PNG files of real slices, by size and kind."""
    made = {}
    for size, kind in KINDS:
        folder = tmp_path_factory.mktemp(f"{kind}{size}")
        for number, image in enumerate(fid_packages.slices(data_root, size, kind, IMAGES)):
            Image.fromarray(image).save(folder / f"{number:04d}.png")
        made[size, kind] = folder
    return made


@pytest.fixture(scope="module")
def ours(file, folders):
    """Features by mode, size and kind."""
    params, _, _ = inception.load(file)
    mesh = meshes.make(ConfigDict({"data": -1, "fsdp": 1}))
    stacks = {k: fid_packages.read(folder) for k, folder in folders.items()}
    return {
        (name, *kind): features.extract([stack], mode, params, mesh, batch=8)
        for name, mode in features.MODES.items()
        for kind, stack in stacks.items()
    }


def test_weights_are_read_as_torch_reads_them(file):
    theirs = torch.load(file, weights_only=True)
    ours = torchfile.read(file)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name], tensor.numpy())


def test_both_forms_of_torch_save_are_the_same(tmp_path):
    whole = torch.arange(24.0).reshape(4, 6)
    saved = {"part": whole[1:, ::2], "turned": whole.T, "half": whole.half(), "n": torch.tensor(3)}
    read = []
    for zipped in (True, False):
        torch.save(saved, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
        read.append(torchfile.read(tmp_path / "w.pth"))
    for name, tensor in saved.items():
        for tensors in read:
            np.testing.assert_array_equal(tensors[name], tensor.numpy())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind[1]}{kind[0]}")
@pytest.mark.parametrize("mode", features.MODES)
def test_features_are_the_package_s(packages, folders, ours, mode, kind):
    theirs = packages.features[mode](folders[kind])
    assert theirs.std() > 0.01  # there is something to agree on
    np.testing.assert_allclose(ours[mode, *kind], theirs, atol=FEATURES * np.abs(theirs).max())


def test_the_modes_differ_by_more_than_they_may(ours):
    for first, second in (("pytorch-fid", "torch-fidelity"), ("torch-fidelity", "clean-fid")):
        x, y = (ours[mode, 512, "grey"] for mode in (first, second))
        assert np.abs(x - y).max() > 10 * FEATURES * np.abs(x).max()


def samples(n, dims, rng):
    """Two sets of rectified features that depend on each other."""
    mixing = rng.standard_normal((dims, dims)) / np.sqrt(dims)
    x, y = (np.maximum(rng.standard_normal((n, dims)) @ mixing + s, 0) for s in (0.0, 0.1))
    return np.float32(x), np.float32(y)


@pytest.mark.parametrize("mode", features.MODES)
@pytest.mark.parametrize("n", [100, 700], ids=["fewer images than features", "more"])
def test_fid_is_the_package_s(packages, rng, mode, n):
    x, y = samples(n, 256, rng)
    assert distribution.frechet(x, y) == pytest.approx(packages.frechet[mode](x, y), rel=FID)


@pytest.mark.parametrize("mode", features.MODES)
def test_fid_of_the_images_is_the_package_s(packages, folders, ours, mode):
    # 8 CT and MR slices against the same at 512 pixels; every eighth feature, for a quick root
    x, y = (ours[mode, size, "grey"][:, ::8] for size in (256, 512))
    assert distribution.frechet(x, y) == pytest.approx(packages.frechet[mode](x, y), rel=FID)


@pytest.mark.slow
@pytest.mark.parametrize("mode", features.MODES)
def test_fid_of_more_images_than_features_is_the_package_s(packages, rng, mode):
    x, y = samples(2100, 2048, rng)
    assert distribution.frechet(x, y) == pytest.approx(packages.frechet[mode](x, y), rel=FID)


def test_kid_is_torch_fidelity_s(packages, rng):
    x, y = samples(1200, 512, rng)
    assert distribution.kernel(x, y) == pytest.approx(
        packages.torch_fidelity_kid(x, y, 1000), abs=KID
    )
    small = distribution.kernel(x[:150], y[:120], size=50)
    assert small == pytest.approx(packages.torch_fidelity_kid(x[:150], y[:120], 50), abs=KID)


def test_kid_is_clean_fid_s_where_it_draws_the_same(packages, rng):
    # it draws of its second set first, by a generator that it does not seed
    x, y = samples(150, 2048, rng)
    for a, b in ((x, y[:120]), (x[:60], y)):
        np.random.seed(distribution.SEED)  # noqa: NPY002
        assert distribution.kernel(b, a) == pytest.approx(packages.clean_fid_kid(a, b), abs=KID)


def test_kid_of_fewer_than_a_subset_is_an_error_there(packages, rng):
    with pytest.raises(ValueError, match="KID subset size"):
        packages.torch_fidelity_kid(*samples(999, 8, rng), 1000)
