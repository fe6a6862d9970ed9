# SPDX-License-Identifier: Apache-2.0
"""Generators and critic against the same layers in PyTorch: what they give, and gradients.

In float64: with new weights little is left of an image at the bottom of a U-Net with 8 levels, and
in float32 norms there make much of rounding, in PyTorch as here.

Shapes: B batch, H rows, W columns, C channels; channels last for ours, second for theirs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contourdiff_jax.models import critics, generators

torch = pytest.importorskip("torch", reason="needs the environment of `make test-parity`")
import adversaries  # noqa: E402, of PyTorch
from adversaries import tensor  # noqa: E402

pytestmark = pytest.mark.parity

# Name: ours, theirs, their weights as ours, channels in, pixels.
CASES = {
    "unet_256": (
        lambda: generators.unet(1, levels=8, width=64, norm="batch", dropout=0.5),
        lambda: adversaries.UNet(1, 1, 8, 64, "batch"),
        *(adversaries.of_unet, 1, (256, 256)),
    ),
    "unet of instance norms": (
        lambda: generators.unet(2, levels=5, width=8, norm="instance", dropout=0.5),
        lambda: adversaries.UNet(2, 1, 5, 8, "instance"),
        *(adversaries.of_unet, 2, (64, 96)),
    ),
    "resnet_9": (
        lambda: generators.resnet(1, blocks=9, width=64, norm="instance"),
        lambda: adversaries.resnet(1, 1, 9, 64, "instance"),
        *(adversaries.of_resnet, 1, (32, 40)),
    ),
    "resnet of batch norms": (
        lambda: generators.resnet(1, blocks=2, width=8, norm="batch"),
        lambda: adversaries.resnet(1, 1, 2, 8, "batch"),
        *(adversaries.of_resnet, 1, (36, 52)),
    ),
    "patch critic of pix2pix": (
        lambda: critics.build(2, layers=3, width=64, norm="batch"),
        lambda: adversaries.critic(2, 3, 64, "batch"),
        *(adversaries.of_critic, 2, (96, 96)),
    ),
    "patch critic of CycleGAN": (
        lambda: critics.build(1, layers=3, width=64, norm="instance"),
        lambda: adversaries.critic(1, 3, 64, "instance"),
        *(adversaries.of_critic, 1, (100, 70)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_it_gives_and_its_gradients_are_theirs(name, rng):
    ours, theirs, as_ours, channels, size = CASES[name]
    torch.manual_seed(0)
    network, reference = ours(), adversaries.begun(theirs())
    reference = reference.double()
    params = as_ours(reference)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), params, shapes)

    images = rng.uniform(-1, 1, (1 if max(size) > 128 else 2, *size, channels))
    answer = reference(tensor(images))
    expected = np.moveaxis(answer.detach().numpy(), 1, -1)
    weights = rng.standard_normal(expected.shape)
    (answer * tensor(weights)).sum().backward()

    def total(params):
        drawn = network.apply(params, jnp.asarray(images))
        return (drawn * weights).sum(), drawn

    with jax.enable_x64(True):
        (_, drawn), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    np.testing.assert_allclose(drawn, expected, atol=1e-4 * np.abs(expected).max())
    theirs = as_ours(reference, adversaries.gradient)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))

    def close(ours, theirs):
        # Before an instance norm a bias has no gradient but rounding: it is none beside others.
        scale = max(np.abs(theirs).max(), 1e-3 * largest)
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * scale)

    jax.tree.map(close, gradients, theirs)


def test_dropout_is_where_theirs_is(rng):
    """With the masks of ours in place of theirs."""
    torch.manual_seed(0)
    reference = adversaries.begun(adversaries.UNet(1, 1, 7, 2, "batch"))
    network = generators.unet(1, levels=7, width=2, norm="batch", dropout=0.5)
    images = rng.uniform(-1, 1, (3, 128, 128, 1)).astype(np.float32)
    key = jax.random.key(3)
    for level in (4, 5):
        shape = (3, 2 ** (7 - level), 2 ** (7 - level), 16)
        kept = jax.random.bernoulli(jax.random.fold_in(key, level), 0.5, shape)
        reference.masks[level] = tensor(2 * np.asarray(kept, np.float32))
    expected = np.moveaxis(reference(tensor(images)).detach().numpy(), 1, -1)
    drawn = network.apply(adversaries.of_unet(reference), images, key=key)
    np.testing.assert_allclose(drawn, expected, atol=1e-4 * np.abs(expected).max())
