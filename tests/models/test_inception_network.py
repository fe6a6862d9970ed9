# SPDX-License-Identifier: Apache-2.0
"""InceptionV3: the layers against plain loops, and what its file must hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contourdiff_jax.errors import InputError
from contourdiff_jax.models import inception


def test_the_released_network_has_so_many_parameters():
    # 94 convolutions; with the 4 numbers that normalisation has to a channel, and the classifier of
    # 1008 classes, they are the 23.9 million float32 of the released file
    shapes = inception.shapes()
    kernels = sum(np.prod(shape) for shape in shapes.values())
    channels = sum(shape[-1] for shape in shapes.values())
    assert len(shapes) == 94
    assert kernels + 4 * channels + 2048 * 1008 + 1008 == 23_885_392
    assert shapes["Conv2d_1a_3x3"] == (3, 3, 3, 32)
    assert shapes["Mixed_6c.branch7x7dbl_2"] == (7, 1, 160, 160)
    assert shapes["Mixed_7c.branch1x1"] == (1, 1, 2048, 320)


def test_averages_leave_out_the_padding_and_the_maximum_does_not_see_it(rng):
    x = rng.standard_normal((1, 5, 4, 2)).astype(np.float32) - 5
    average, maximum = inception._average(jnp.array(x)), inception._maximum(jnp.array(x))
    for row in range(5):
        for column in range(4):
            rows, columns = slice(max(row - 1, 0), row + 2), slice(max(column - 1, 0), column + 2)
            near = x[0, rows, columns]
            np.testing.assert_allclose(average[0, row, column], near.mean((0, 1)), rtol=1e-5)
            np.testing.assert_array_equal(maximum[0, row, column], near.max((0, 1)))


def tensors(rng, scale=1.0):
    """A released file's tensors, with random numbers."""
    found = {}
    for name, (rows, columns, inputs, width) in inception.shapes().items():
        kernel = rng.standard_normal((width, inputs, rows, columns))
        found[f"{name}.conv.weight"] = np.float32(kernel * scale)
        found[f"{name}.bn.weight"] = rng.uniform(0.5, 1.5, width).astype(np.float32)
        found[f"{name}.bn.bias"] = rng.standard_normal(width).astype(np.float32)
        found[f"{name}.bn.running_mean"] = rng.standard_normal(width).astype(np.float32)
        found[f"{name}.bn.running_var"] = rng.uniform(0.5, 1.5, width).astype(np.float32)
    return found


def test_a_folded_convolution_is_the_convolution_and_its_normalisation(rng):
    given = tensors(rng)
    name, x = "Mixed_5b.branch1x1", rng.standard_normal((2, 3, 3, 192)).astype(np.float32)
    got = inception._convolve(inception.fold(given), name, jnp.array(x), 64, (1, 1))
    bn = {
        field: given[f"{name}.bn.{field}"].astype(np.float64)
        for field in ("weight", "bias", "running_mean", "running_var")
    }
    y = x @ given[f"{name}.conv.weight"][:, :, 0, 0].T.astype(np.float64)
    y = (y - bn["running_mean"]) / np.sqrt(bn["running_var"] + 1e-3) * bn["weight"] + bn["bias"]
    np.testing.assert_allclose(got, np.maximum(y, 0), rtol=1e-4, atol=1e-4)


def test_a_file_of_another_network_is_named(rng):
    given = tensors(rng)
    missing = dict(given)
    del missing["Mixed_7c.branch_pool.bn.running_var"]
    with pytest.raises(InputError, match=r"Mixed_7c\.branch_pool\.bn\.running_var is missing"):
        inception.fold(missing)
    other = given | {"Conv2d_1a_3x3.conv.weight": np.zeros((32, 1, 3, 3), np.float32)}
    with pytest.raises(InputError, match=r"Conv2d_1a_3x3\.conv\.weight has shape \(32, 1, 3, 3\)"):
        inception.fold(other)


@pytest.mark.slow
def test_random_parameters_give_features_of_the_scale_of_the_image(rng):
    images = rng.uniform(-1, 1, (2, 299, 299, 3)).astype(np.float32)
    features = jax.jit(inception.apply)(inception.init(jax.random.key(0)), images)
    assert features.shape == (2, 2048) and np.isfinite(features).all()
    assert 1e-2 < features.std() < 1e2 and not np.allclose(features[0], features[1])
