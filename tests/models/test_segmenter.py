# SPDX-License-Identifier: Apache-2.0
"""The segmenter: shapes, every weight at work, and training that is a function of its seed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from contourdiff_jax import config
from contourdiff_jax.data import feeds
from contourdiff_jax.errors import InputError
from contourdiff_jax.evaluation.segmentation import trained
from contourdiff_jax.methods import segmentation
from contourdiff_jax.models import segmenter
from contourdiff_jax.volumes.grid import Grid
from contourdiff_jax.volumes.intensity import PRESETS

CHANNELS = (4, 8, 12)


@pytest.fixture(scope="module")
def network():
    return segmenter.build(3, CHANNELS)


def test_the_published_network_has_monai_s_parameters():
    # UNet(2, 1, 6, (16, 32, 64, 128, 256), (2, 2, 2, 2), num_res_units=2) of monai 1.6.1
    shapes = jax.eval_shape(segmenter.build(6).init, jax.random.key(0))
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == 1_626_609


def test_every_kernel_and_slope_matters(network):
    params = jax.jit(network.init)(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (2, 16, 24, 1))
    assert network.encode(params, images).shape == (2, CHANNELS[-1])

    def of_logits(params):
        logits = network.apply(params, images)
        assert logits.shape == (2, 16, 24, 3)
        return jnp.square(logits - images).mean()

    for path, gradient in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(of_logits))(params)):
        name = jax.tree_util.keystr(path)
        # A bias before a normalisation is subtracted again.
        if "['conv']['bias']" not in name:
            assert np.abs(gradient).max() > 1e-7, name


def test_doubling_is_a_dilated_convolution():
    layer = segmenter.Double(3, 5)
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 3, 5))
    layer.kernel = nnx.Param(kernel)
    x = jax.random.normal(jax.random.key(1), (2, 6, 8, 3))
    expected = jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        [(1, 2)] * 2,
        lhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(layer(x), expected, atol=1e-5)


def test_sizes_that_cannot_be_halved_are_refused():
    segmenter.check_size(96)
    with pytest.raises(InputError, match=r"--size=100.* 112"):
        segmenter.check_size(100)


# ----------------------------------------------------------------------------------------------
# Loss and examples
# ----------------------------------------------------------------------------------------------


def test_the_loss_is_least_where_all_is_right(rng):
    classes = rng.integers(0, 3, (2, 8, 8))
    certain = 50.0 * np.eye(3, dtype=np.float32)[classes]
    loss = segmentation.dice_and_cross_entropy
    assert float(loss(certain, classes)) == pytest.approx(0, abs=1e-5)
    # undecided: cross entropy is log 3, and Dice of a third of every pixel near 2/3 wrong
    assert float(loss(0 * certain, classes)) == pytest.approx(np.log(3) + 0.665, abs=0.02)
    # wrong everywhere, and sure of it
    assert float(loss(certain, (classes + 1) % 3)) == pytest.approx(50 + 1, rel=1e-3)


def test_images_and_labels_move_alike():
    """A network that reads the label off the image is right after any transform."""
    settings = config.default().augment
    settings.update(flip=0.5, probability=1.0)
    classes = np.zeros((4, 32, 32), np.uint8)
    classes[:, 8:20, 10:26] = 1
    images = np.where(classes == 1, 1.0, -1.0).astype(np.float32)
    reads = segmenter.Segmenter(
        None, lambda _, images: jnp.concatenate([-40 * images, 40 * images], -1), None, None
    )

    @jax.jit
    def loss_of(classes):
        example = {"x": images, "classes": classes}
        return segmentation.loss(reads, settings)({}, None, example, jax.random.key(0), (), ())

    # but for the interpolated border
    assert float(loss_of(classes)[0]) < 0.3
    assert float(loss_of(np.roll(classes, 5, axis=2))[0]) > 2


def test_labels_are_numbered_and_others_are_background():
    array = np.array([[0, 3, 7], [9, 65535, 3]], np.uint16)
    np.testing.assert_array_equal(feeds.numbered(array, [0, 3, 7]), [[0, 1, 2], [0, 0, 1]])
    np.testing.assert_array_equal(feeds.numbered(np.zeros((2, 2), int), [0, 3]), 0)


def test_what_is_not_the_body_is_air():
    values, body = np.float32([[-1000, 0], [1000, 3000]]), np.array([[1, 1], [0, 1]])
    np.testing.assert_allclose(PRESETS["ct"].in_body(values, body), [[-1, 0], [-1, 1]], atol=1e-6)


# ----------------------------------------------------------------------------------------------
# Label maps
# ----------------------------------------------------------------------------------------------


def test_labels_survive_the_way_to_a_finer_grid_and_back(rng):
    labels = np.kron(rng.integers(0, 3, (5, 6, 4)), np.ones((4, 4, 1))).astype(int)
    affine = np.diag([1.5, 1.5, 4.0, 1.0])
    resampling = Grid("axial", 0.75, 64).fit(labels.shape, affine)
    classes = resampling.labels(labels)
    back = trained.label_map(np.eye(3, dtype=np.float32)[classes], [0, 1, 2], resampling)
    np.testing.assert_array_equal(back, labels)


def test_the_most_probable_label_counts_and_background_outside(rng):
    resampling = Grid("coronal", 1.0, 16).fit((24, 3, 20), np.eye(4))
    probabilities = rng.dirichlet(np.ones(3), (3, 16, 16)).astype(np.float32)
    found = trained.label_map(probabilities, [0, 4, 300], resampling)
    np.testing.assert_array_equal(
        resampling.slices(found, -1), np.array([0, 4, 300])[probabilities.argmax(-1)]
    )
    assert not found[:4].any() and not found[:, :, -2:].any()


# ----------------------------------------------------------------------------------------------
# Files
# ----------------------------------------------------------------------------------------------


@pytest.fixture
def network_file(tmp_path, rng):
    shapes = jax.eval_shape(segmenter.build(3).init, jax.random.key(0))
    network = trained.Trained(
        jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes),
        (0, 2, 300),
        PRESETS["mr"],
        Grid("sagittal", 1.25, 48),
        "upper",
        7,
        1000,
    )
    network.save(tmp_path / "upper_7.safetensors")
    return network, tmp_path / "upper_7.safetensors"


def test_a_file_holds_all_it_takes(network_file):
    network, path = network_file
    again, digest = trained.load(path)
    jax.tree.map(np.testing.assert_array_equal, again.params, network.params)
    fields = ("labels", "preset", "grid", "method", "seed", "images")
    assert [getattr(again, f) for f in fields] == [getattr(network, f) for f in fields]
    assert len(digest) == 64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (b"\x80\x04K\x01.", "not the weights of a segmenter"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "weights.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        trained.load(path)


def test_files_of_others_are_refused(tmp_path, network_file):
    from safetensors.numpy import load_file, save_file

    path = tmp_path / "other.safetensors"
    tensors = load_file(network_file[1])
    save_file(tensors, path)  # as other programs do: without our metadata
    with pytest.raises(InputError, match="not the weights of a segmenter"):
        trained.load(path)
    network, _ = network_file
    del network.params["down"][0]["shortcut"]
    network.save(path)
    with pytest.raises(InputError, match=r"other tensors: down\.0\.shortcut"):
        trained.load(path)
