# SPDX-License-Identifier: Apache-2.0
"""The autoencoder is diffusers' AutoencoderKL, forwards and backwards, with the same weights."""

import jax
import numpy as np
import pytest

from contourdiff_jax import config
from contourdiff_jax.interop import autoencoder_kl, unet2d
from contourdiff_jax.models import autoencoder

WHY = "needs the environment of `make test-parity`"
torch = pytest.importorskip("torch", reason=WHY)
AutoencoderKL = pytest.importorskip("diffusers", reason=WHY).AutoencoderKL
pytestmark = pytest.mark.parity

WAYS = {
    "stable diffusion": {"in_channels": 3, "out_channels": 3, "layers_per_block": 2},
    "grey": {"in_channels": 1, "out_channels": 1, "layers_per_block": 1},
    "without attention": {"mid_block_add_attention": False, "latent_channels": 3},
}


def theirs(**fields):
    """A network of theirs with random weights, none of them zero."""
    torch.manual_seed(0)
    network = AutoencoderKL(
        block_out_channels=(32, 64, 64),
        down_block_types=(autoencoder_kl.DOWN,) * 3,
        up_block_types=(autoencoder_kl.UP,) * 3,
        norm_num_groups=8,
        **fields,
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return network


def ours(network):
    """Our network with their weights: (autoencoder, params, section)."""
    fields, _ = autoencoder_kl.section(dict(network.config))
    section = config.from_dict({"autoencoder": fields}).autoencoder
    made = autoencoder.build(section)
    tensors = network.state_dict()
    shapes = jax.eval_shape(made.init, jax.random.key(0))
    paths = jax.tree_util.tree_leaves_with_path(shapes)
    names = [autoencoder_kl.name(section, tuple(k.key for k in path)) for path, _ in paths]
    assert sorted(names) == sorted(tensors)
    leaves = [unet2d.ours(tensors[name].numpy()) for name in names]
    return made, jax.tree.unflatten(jax.tree.structure(shapes), leaves), names


def assert_near(actual, expected, share):
    expected = expected.detach().numpy()
    np.testing.assert_allclose(actual, expected, atol=share * expected.std())


@pytest.mark.parametrize("way", WAYS)
def test_latents_images_and_gradients_agree(way, rng):
    network = theirs(**WAYS[way])
    made, params, names = ours(network)
    channels = network.config.in_channels
    images = rng.uniform(-1, 1, (2, 16, 24, channels)).astype(np.float32)
    latents = rng.standard_normal((2, 4, 6, network.config.latent_channels)).astype(np.float32)
    first, second = (torch.tensor(a.transpose(0, 3, 1, 2)) for a in (images, latents))

    posterior = network.encode(first).latent_dist
    mean, log_variance = made.encode(params, images)
    assert_near(mean.transpose(0, 3, 1, 2), posterior.mean, 1e-4)
    assert_near(log_variance.transpose(0, 3, 1, 2), posterior.logvar, 1e-4)
    drawn = network.decode(second).sample
    assert_near(made.decode(params, latents).transpose(0, 3, 1, 2), drawn, 1e-4)

    (posterior.mean.square().sum() + posterior.logvar.sum() + drawn.square().sum()).backward()

    def loss(params):
        mean, log_variance = made.encode(params, images)
        return (mean**2).sum() + log_variance.sum() + (made.decode(params, latents) ** 2).sum()

    gradients = jax.tree.leaves(jax.jit(jax.grad(loss))(params))
    expected = dict(network.named_parameters())
    for name, gradient in zip(names, gradients, strict=True):
        wanted = unet2d.ours(expected[name].grad.numpy())
        scale = max(wanted.std(), 1e-3 * np.abs(wanted).max(), 1e-6)
        np.testing.assert_allclose(gradient, wanted, atol=1e-3 * scale + 1e-4, err_msg=name)


def test_configurations_go_there_and_back():
    network = theirs(**WAYS["grey"])
    fields, scale = autoencoder_kl.section(dict(network.config))
    section = config.from_dict({"autoencoder": fields}).autoencoder
    again = AutoencoderKL.from_config(autoencoder_kl.fields(section, scale=scale, size=32))
    assert {n: p.shape for n, p in again.named_parameters()} == {
        n: p.shape for n, p in network.named_parameters()
    }
    assert again.config.scaling_factor == scale == autoencoder_kl.SCALE
