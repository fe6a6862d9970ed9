# SPDX-License-Identifier: Apache-2.0
"""Our autoencoder and its parameters in diffusers' words: names and numbers only, no files.

The reference is `AutoencoderKL` of diffusers 0.42 (models/autoencoders/autoencoder_kl.py, vae.py).
`section` and `fields` are inverses of each other. Arrays and early names are those of unet2d.py.
"""

from collections.abc import Mapping
from typing import NamedTuple

from contourdiff_jax import config as configuration
from contourdiff_jax.errors import InputError
from contourdiff_jax.interop import unet2d

AUTOENCODER = "AutoencoderKL"
DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"
EPSILON = 1e-6  # of its group normalisation, whatever its config.json says
SCALE = 0.18215  # diffusers' default, of Stable Diffusion 1 and 2

# Fields of its config.json with diffusers' defaults, for files of older versions that lack some.
FIELDS = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": (DOWN,),
    "up_block_types": (UP,),
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 32,
    "scaling_factor": SCALE,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "force_upcast": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
# What our network has no other of; how diffusers computes in half precision is its own matter.
SUPPORTED = {
    "act_fn": ("silu",),
    "shift_factor": (None,),
    "latents_mean": (None,),
    "latents_std": (None,),
    "use_quant_conv": (True,),
    "use_post_quant_conv": (True,),
}
TOP = {"quantise": "quant_conv", "dequantise": "post_quant_conv"}


class Coder(NamedTuple):
    """An autoencoder, as `autoencoder.build` makes it.

    Attributes:
      section: fields of an `autoencoder` section (see config.py).
      scale: by which latents are multiplied to be learnt.
    """

    section: dict
    scale: float


def section(fields: Mapping) -> Coder:
    """Fields of an AutoencoderKL's config.json -> the autoencoder that it is.

    Raises:
      InputError: a field that our network has no equivalent of; it is named.
    """
    fields = unet2d.completed(fields, AUTOENCODER, FIELDS, SUPPORTED)
    if fields["in_channels"] != fields["out_channels"]:
        raise InputError(f"out_channels: {fields['out_channels']!r} are others than in_channels")
    channels = fields["block_out_channels"]
    if not isinstance(channels, list | tuple):
        raise InputError(f"block_out_channels: {channels!r} is not a list")
    for name, kind in (("down_block_types", DOWN), ("up_block_types", UP)):
        if list(fields[name]) != [kind] * len(channels):
            raise InputError(
                f"{name}: {fields[name]!r} is not supported, only {kind} for each of "
                f"block_out_channels"
            )
    scale = fields["scaling_factor"]
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < 1e6:
        raise InputError(f"scaling_factor: {scale!r} is no number above 0")
    found = {
        "image_channels": fields["in_channels"],
        "channels": tuple(channels),
        "layers": fields["layers_per_block"],
        "latents": fields["latent_channels"],
        "attention": fields["mid_block_add_attention"],
        "groups": fields["norm_num_groups"],
    }
    made = configuration.from_dict({"autoencoder": found})  # refuses values of the wrong type
    configuration.check_values("autoencoder", made.autoencoder)
    return Coder(found, float(scale))


def fields(config, *, scale: float, size: int) -> dict:
    """An `autoencoder` section -> fields of the config.json of the AutoencoderKL that is the same.

    Args:
      scale: by which latents are multiplied to be learnt.
      size: of the images, in pixels.

    Raises:
      InputError: a setting that AutoencoderKL has no equivalent of; it is named.
    """
    if config.epsilon != EPSILON:
        raise InputError(
            f"config.autoencoder.epsilon: {config.epsilon} has no equivalent in {AUTOENCODER}, "
            f"only {EPSILON}"
        )
    count = len(config.channels)
    return {
        "_class_name": AUTOENCODER,
        "in_channels": config.image_channels,
        "out_channels": config.image_channels,
        "down_block_types": [DOWN] * count,
        "up_block_types": [UP] * count,
        "block_out_channels": list(config.channels),
        "layers_per_block": config.layers,
        "act_fn": "silu",
        "latent_channels": config.latents,
        "norm_num_groups": config.groups,
        "sample_size": size,
        "scaling_factor": scale,
        "force_upcast": True,
        "mid_block_add_attention": config.attention,
    }


def name(config, path: tuple) -> str:
    """Path of a parameter of ours -> its name in diffusers.

    ('encoder', 'down', 0, 'residual', 'conv_1', 'kernel')
    -> 'encoder.down_blocks.0.resnets.0.conv1.weight'
    """
    top, *rest = path
    if top in TOP:
        return f"{TOP[top]}.{unet2d.PARTS[rest[0]]}"
    return f"{top}.{unet2d.name(config, tuple(rest))}"
