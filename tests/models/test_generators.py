# SPDX-License-Identifier: Apache-2.0
"""Generators and the patch critic: their sizes, what they begin with, and dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contourdiff_jax import models
from contourdiff_jax.models import convolution, critics, generators


def count(network) -> int:
    return models.count(jax.eval_shape(network.init, jax.random.key(0)))


@pytest.mark.parametrize(("channels", "parameters"), [(3, 54_413_955), (1, 54_407_809)])
def test_unet_256_has_as_many_parameters_as_published(channels, parameters):
    how = {"levels": 8, "width": 64, "norm": "batch", "dropout": 0.5}
    assert count(generators.unet(channels, outputs=channels, **how)) == parameters


@pytest.mark.parametrize(("channels", "parameters"), [(3, 11_378_179), (1, 11_365_633)])
def test_resnet_9_has_as_many_parameters_as_published(channels, parameters):
    how = {"blocks": 9, "width": 64, "norm": "instance"}
    assert count(generators.resnet(channels, outputs=channels, **how)) == parameters


@pytest.mark.parametrize(
    ("channels", "norm", "parameters"),
    [
        *((3, "instance", 2_764_737), (1, "instance", 2_762_689)),
        *((6, "batch", 2_768_705), (2, "batch", 2_764_609)),
    ],
)
def test_critics_have_as_many_parameters_as_published(channels, norm, parameters):
    assert count(critics.build(channels, layers=3, width=64, norm=norm)) == parameters


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_patch_is_as_wide_as_said(layers, rng):
    """What changes a logit lies within its patch, and reaches its ends."""
    critic = critics.build(1, layers=layers, width=2, norm="batch")
    params = jax.tree.map(jnp.ones_like, critic.init(jax.random.key(0)))

    def middle(image):  # the norms, which look at the whole image, are left out
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(critics.Norm, "__call__", lambda self, x: x)
            logits = critic.apply(params, image)
        return logits[0, logits.shape[1] // 2, logits.shape[2] // 2, 0]

    image = jnp.asarray(rng.uniform(1, 2, (1, 128, 128, 1)), jnp.float32)
    seen = np.flatnonzero(np.asarray(jax.grad(middle)(image))[0, :, 64, 0])
    assert len(seen) == seen[-1] - seen[0] + 1 == {1: 16, 2: 34, 3: 70}[layers]


def test_new_kernels_and_scales_are_as_published():
    params = generators.unet(1, levels=5, width=16, norm="batch", dropout=0.5).init(
        jax.random.key(0)
    )
    kernels = np.concatenate(
        [np.ravel(leaf) for leaf in jax.tree.leaves(params) if np.ndim(leaf) == 4]
    )
    np.testing.assert_allclose([kernels.mean(), kernels.std()], [0, 0.02], atol=1e-4)
    assert np.abs(kernels).max() > 4 * 0.02  # not cut off, as other networks' are
    scales = np.concatenate([np.ravel(norm["scale"]) for norm in params["up_norm"].values()])
    np.testing.assert_allclose([scales.mean(), scales.std()], [1, 0.02], atol=5e-3)
    assert not any(np.any(norm["bias"]) for norm in params["up_norm"].values())


@pytest.mark.parametrize(("levels", "random"), [(5, False), (6, True)])
def test_dropout_is_of_inner_levels_and_of_a_key(levels, random, rng):
    network = generators.unet(1, levels=levels, width=2, norm="instance", dropout=0.5)
    params = network.init(jax.random.key(0))
    image = rng.uniform(-1, 1, (1, 64, 64, 1)).astype(np.float32)
    apply = jax.jit(network.apply)
    drawn = [apply(params, image, key=jax.random.key(n)) for n in (1, 1, 2)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.array_equal(drawn[0], drawn[2]) != random
    assert np.array_equal(drawn[0], apply(params, image)) != random


def test_dropping_keeps_the_mean():
    x = generators.dropped(jax.random.key(0), jnp.ones(100_000), 0.25)
    assert set(np.unique(x)) == {0, np.float32(1 / 0.75)}
    assert float(x.mean()) == pytest.approx(1, abs=0.01)


FORMS = {
    "halve": (convolution.halve, convolution._halved_by_pairs),
    "double": (convolution.double, convolution._doubled_by_pairs),
}


@pytest.mark.parametrize(
    ("name", "size"),
    [*((name, size) for name in FORMS for size in ((6, 10), (5, 7), (2, 2))), ("double", (1, 1))],
)
def test_both_forms_of_a_convolution_of_stride_2_are_one(name, size, rng):
    """As one of XLA's own and as one of pairs of pixels, with the same gradients."""

    def own(x, kernel):
        if name == "halve":
            return jax.lax.conv_general_dilated(
                x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        return jax.lax.conv_transpose(
            x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    x = rng.standard_normal((2, *size, 3)).astype(np.float32)
    kernel = rng.standard_normal((4, 4, 3, 5)).astype(np.float32)
    flipped = kernel[::-1, ::-1] if name == "double" else kernel
    weights = rng.standard_normal(own(x, flipped).shape).astype(np.float32)

    def both(form, *given):
        """What a form draws, and its gradients."""

        @jax.jit
        def total(*given):
            drawn = form(*given)
            return (drawn * weights).sum(), drawn

        (_, drawn), gradients = jax.value_and_grad(total, (0, 1), has_aux=True)(*given)
        return drawn, *gradients

    expected, of_x, of_kernel = both(own, x, flipped)
    if name == "double":
        of_kernel = of_kernel[::-1, ::-1]
    for form in FORMS[name]:
        drawn, *gradients = both(form, x, kernel)
        np.testing.assert_allclose(drawn, expected, atol=1e-4)
        np.testing.assert_allclose(gradients[0], of_x, atol=1e-3)
        np.testing.assert_allclose(gradients[1], of_kernel, atol=1e-3)


def test_both_forms_of_a_convolution_to_few_features_are_one(rng):
    x = rng.standard_normal((2, 12, 15, 6)).astype(np.float32)
    kernel = rng.standard_normal((7, 7, 6, 2)).astype(np.float32)

    def own(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def total(form, *both):
        return jnp.square(form(*both)).sum()

    for form in (convolution.to_few, convolution._reduced_by_products):
        np.testing.assert_allclose(form(x, kernel), own(x, kernel), rtol=1e-4, atol=1e-4)
        for ours, theirs in zip(
            *(jax.grad(total, (1, 2))(f, x, kernel) for f in (form, own)), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-2)
