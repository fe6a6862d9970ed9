# SPDX-License-Identifier: Apache-2.0
"""Blocks of three dimensions against those of MONAI's DiffusionModelUNet with as many.

MONAI's attention asks for a package more; diffusers', which ours is in two dimensions, sees all
positions of a volume in one row.

Shapes: channels last for ours, second for theirs.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import assert_equal_gradients, assert_equal_outputs, ours, shaken, theirs
from flax import nnx

from contourdiff_jax.interop import unet2d
from contourdiff_jax.models import blocks

WHY = "needs the environment of `make test-parity`"
torch = pytest.importorskip("torch", reason=WHY)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what MONAI imports
    pytest.importorskip("monai", reason=WHY)
    from diffusers.models.attention_processor import Attention
    from monai.networks.nets import diffusion_model_unet as monai

pytestmark = pytest.mark.parity

LAYER = {"dtype": jnp.float32, "rngs": nnx.Rngs(0)}
NORM = {"groups": 4, "epsilon": 1e-6}
RESAMPLED = {"convolve": True, "dims": 3, **LAYER}
# Their names of our parts.
RESIDUAL = {
    **{"norm_1": "norm1", "conv_1": "conv1.conv", "time": "time_emb_proj", "norm_2": "norm2"},
    **{"conv_2": "conv2.conv", "shortcut": "skip_connection.conv"},
}
ATTENTION = {
    **{"norm": "layer.group_norm", "query": "layer.to_q", "key": "layer.to_k"},
    **{"value": "layer.to_v", "out": "layer.to_out.0"},
}


class Flattened(torch.nn.Module):
    """Attention as diffusers' U-Nets have it, of [B, C, D, H, W]."""

    def __init__(self):
        super().__init__()
        self.layer = Attention(
            8, heads=2, dim_head=4, norm_num_groups=4, eps=1e-6, bias=True, residual_connection=True
        )

    def forward(self, x):
        return self.layer(x.flatten(2).mT).mT.reshape(x.shape)


def upsample():
    """As `UpBlock` makes it."""
    post = monai.Convolution(
        spatial_dims=3,
        in_channels=8,
        out_channels=8,
        strides=1,
        kernel_size=3,
        padding=1,
        conv_only=True,
    )
    return monai.WrappedUpsample(
        spatial_dims=3,
        mode="nontrainable",
        in_channels=8,
        out_channels=8,
        interp_mode="nearest",
        scale_factor=2.0,
        post_conv=post,
        align_corners=None,
    )


def residual(features_out):
    ours = blocks.ResidualBlock(
        8, features_out, 12, dims=3, time_scale_shift=False, dropout=0.0, **NORM, **LAYER
    )
    return ours, monai.DiffusionUNetResnetBlock(3, 8, 12, features_out, norm_num_groups=4)


CASES = {
    "residual": lambda: (*residual(16), RESIDUAL),
    "residual of as many features": lambda: (*residual(8), RESIDUAL),
    "down": lambda: (
        blocks.Downsample(8, padding=1, **RESAMPLED),
        monai.DiffusionUnetDownsample(3, 8, use_conv=True),
        {"conv": "op.conv"},
    ),
    "down by means": lambda: (
        blocks.Downsample(8, padding=1, **(RESAMPLED | {"convolve": False})),
        monai.DiffusionUnetDownsample(3, 8, use_conv=False),
        {},
    ),
    "up": lambda: (blocks.Upsample(8, **RESAMPLED), upsample(), {"conv": "postconv.conv"}),
    "attention": lambda: (
        blocks.AttentionBlock(8, head_width=4, **NORM, **LAYER),
        Flattened(),
        ATTENTION,
    ),
}
KINDS = {"kernel": "weight", "scale": "weight", "bias": "bias"}


@pytest.mark.parametrize("case", CASES)
def test_blocks_of_volumes_are_monai_s(case):
    torch.manual_seed(0)
    block, reference, parts = CASES[case]()
    with torch.no_grad():  # theirs are zero at first, too
        for tensor in reference.parameters():
            tensor += 0.2 * torch.randn_like(tensor)
    shaken(reference)
    graph, state = nnx.split(block)
    tensors = dict(reference.named_parameters())

    def name(path):
        part, kind = (key.key for key in path)
        return f"{parts[part]}.{KINDS[kind]}"

    shapes = nnx.to_pure_dict(state)
    params = jax.tree_util.tree_map_with_path(
        lambda path, _: unet2d.ours(tensors[name(path)].detach().numpy()), shapes
    )
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), params, shapes)
    assert len(jax.tree.leaves(params)) == len(tensors)

    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, 6, 8, 8)).astype(np.float32)
    time = [rng.standard_normal((2, 12)).astype(np.float32)] * case.startswith("residual")
    tensor = theirs(x).requires_grad_()
    expected = reference(tensor, *map(torch.tensor, time))
    weight = rng.standard_normal(ours(expected).shape).astype(np.float32)

    def applied(params, x):
        nnx.replace_by_pure_dict(state, params)
        answer = nnx.merge(graph, state)(x, *time, *[None] * len(time))
        return (answer * weight).mean(), answer

    grad = jax.value_and_grad(applied, argnums=(0, 1), has_aux=True)
    (_, answer), (of_params, of_x) = jax.jit(grad)(params, x)
    assert_equal_outputs(answer, ours(expected))
    (expected * theirs(weight)).mean().backward()
    pairs = {"x": (of_x, ours(tensor.grad))}
    for path, gradient in jax.tree_util.tree_leaves_with_path(of_params):
        pairs[name(path)] = gradient, unet2d.ours(tensors[name(path)].grad.numpy())
    assert_equal_gradients(pairs)
