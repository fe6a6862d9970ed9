# SPDX-License-Identifier: Apache-2.0
"""Stable Diffusion's U-Net and its ControlNets in diffusers' words: names and numbers only.

The references are `UNet2DConditionModel` and `ControlNetModel` of diffusers 0.42
(models/unets/unet_2d_condition.py, models/controlnets/controlnet.py,
models/transformers/transformer_2d.py, models/attention.py), with the options of Stable Diffusion
1.x and 2.x and of InstructPix2Pix. `network` and `unet` are inverses of each other, as are `branch`
and `controlnet`, and `ours` and `theirs`. What a UNet2DModel has too is said in unet2d.py.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from contourdiff_jax import config as configuration
from contourdiff_jax.errors import InputError
from contourdiff_jax.interop import unet2d

UNET, CONTROLNET = "UNet2DConditionModel", "ControlNetModel"

DOWN = ("DownBlock2D", "CrossAttnDownBlock2D")  # without and with attention
UP = ("UpBlock2D", "CrossAttnUpBlock2D")

# Fields that both have, with diffusers' defaults, for files of older versions that lack some.
SHARED = {
    "in_channels": 4,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": (*(DOWN[1],) * 3, DOWN[0]),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "only_cross_attention": False,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "attention_head_dim": 8,
    "num_attention_heads": None,
    "use_linear_projection": False,
    "class_embed_type": None,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "num_class_embeds": None,
    "upcast_attention": False,
    "resnet_time_scale_shift": "default",
    "projection_class_embeddings_input_dim": None,
    "addition_embed_type_num_heads": 64,
}
# Fields of a U-Net that a ControlNet has not: with other values it would be for no such U-Net.
OF_UNET = {
    "center_input_sample": False,
    "dropout": 0.0,
    "time_embedding_dim": None,
}
FIELDS = {
    **SHARED,
    **OF_UNET,
    "sample_size": None,
    "out_channels": 4,
    "up_block_types": (UP[0], *(UP[1],) * 3),
    "reverse_transformer_layers_per_block": None,
    "dual_cross_attention": False,
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "mid_block_only_cross_attention": None,
    "cross_attention_norm": None,
}
CONTROLNET_FIELDS = {
    **SHARED,
    "conditioning_channels": 3,
    "controlnet_conditioning_channel_order": "rgb",
    "conditioning_embedding_out_channels": (16, 32, 96, 256),
    "global_pool_conditions": False,
}

# Fields of which our networks have only these values, the usual one first.
SHARED_SUPPORTED = {
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "only_cross_attention": (False,),
    "act_fn": ("silu", "swish"),
    "transformer_layers_per_block": (1,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "num_attention_heads": (None,),
    "use_linear_projection": (False, True),
    "class_embed_type": (None,),
    "addition_embed_type": (None,),
    "addition_time_embed_dim": (None,),
    "num_class_embeds": (None,),
    "upcast_attention": (False, True),  # ours has scores in float32 in any case
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "projection_class_embeddings_input_dim": (None,),
}
SUPPORTED = SHARED_SUPPORTED | {
    "reverse_transformer_layers_per_block": (None,),
    "dual_cross_attention": (False,),
    "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1,),
    "time_embedding_type": ("positional",),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "time_cond_proj_dim": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "attention_type": ("default",),
    "class_embeddings_concat": (False,),
    "mid_block_only_cross_attention": (None, False),
    "cross_attention_norm": (None,),
}
CONTROLNET_SUPPORTED = SHARED_SUPPORTED | {
    "controlnet_conditioning_channel_order": ("rgb",),
    "global_pool_conditions": (False,),
}
# Of these a file may have a list, one value for each resolution, and all of them the same.
REPEATED = (
    *("only_cross_attention", "transformer_layers_per_block"),
    *("cross_attention_dim", "layers_per_block"),
)


# ----------------------------------------------------------------------------------------------
# The networks
# ----------------------------------------------------------------------------------------------


class Network(NamedTuple):
    """A U-Net, as `models.build` makes it.

    Attributes:
      model: fields of a `model` section (see config.py), but its conditions: none is known there.
      inputs, outputs: channels.
      linear: whether projections are stored as those of linear layers, not of convolutions.
    """

    model: dict
    inputs: int
    outputs: int
    linear: bool


class Branch(NamedTuple):
    """A ControlNet, as `controlnet.build` makes it.

    Attributes:
      model: fields of the `model` section of its U-Net, see `Network`.
      inputs: channels of the noisy image.
      hint: channels of the hint.
      hint_channels: features of its layers.
      linear: see `Network`.
    """

    model: dict
    inputs: int
    hint: int
    hint_channels: tuple[int, ...]
    linear: bool


def network(fields: Mapping) -> Network:
    """Fields of a UNet2DConditionModel's config.json -> the network that it is.

    Raises:
      InputError: a field that our network has no equivalent of; it is named.
    """
    fields = unet2d.completed(_single(fields), UNET, FIELDS, SUPPORTED)
    inputs, outputs = (_number(fields, name) for name in ("in_channels", "out_channels"))
    return Network(_section(fields), inputs, outputs, bool(fields["use_linear_projection"]))


def branch(fields: Mapping) -> Branch:
    """Fields of a ControlNetModel's config.json -> the branch that it is.

    Raises:
      InputError: a field that our branch has no equivalent of; it is named.
    """
    fields = unet2d.completed(_single(fields), CONTROLNET, CONTROLNET_FIELDS, CONTROLNET_SUPPORTED)
    hint_channels = fields["conditioning_embedding_out_channels"]
    if not isinstance(hint_channels, list | tuple) or not all(map(_is_number, hint_channels)):
        raise InputError(
            f"conditioning_embedding_out_channels: {hint_channels!r} are not whole numbers above 0"
        )
    if not hint_channels:
        raise InputError("conditioning_embedding_out_channels: is empty")
    return Branch(
        _section(OF_UNET | fields | {"up_block_types": _mirrored(fields["down_block_types"])}),
        _number(fields, "in_channels"),
        _number(fields, "conditioning_channels"),
        tuple(hint_channels),
        bool(fields["use_linear_projection"]),
    )


def unet(config, *, inputs: int, outputs: int, size: int, linear: bool = False) -> dict:
    """A `model` section -> fields of the config.json of the UNet2DConditionModel that is the same.

    Args:
      inputs, outputs: channels.
      size: of the latents, in pixels.
      linear: whether projections are to be stored as those of linear layers, as in Stable Diffusion
        2.x; the function is the same.

    Raises:
      InputError: a setting that UNet2DConditionModel has no equivalent of; it is named.
    """
    return {
        "_class_name": UNET,
        "sample_size": size,
        "in_channels": inputs,
        "out_channels": outputs,
        **_fields(config, UNET, linear),
    }


def controlnet(
    config, *, inputs: int, hint: int, hint_channels: Sequence[int], linear: bool = False
) -> dict:
    """A `model` section -> fields of the config.json of the ControlNetModel for that U-Net.

    Args:
      inputs, hint: channels of the noisy image and of the hint.
      hint_channels: features of the hint's layers.
      linear: see `unet`.

    Raises:
      InputError: a setting that ControlNetModel has no equivalent of; it is named.
    """
    for field, name in (("centre_input", "center_input_sample"), ("dropout", "dropout")):
        if config[field] != OF_UNET[name]:
            raise InputError(
                f"config.model.{field}: {config[field]} has no equivalent in {CONTROLNET}"
            )
    fields = _fields(config, CONTROLNET, linear)
    return {
        "_class_name": CONTROLNET,
        "in_channels": inputs,
        "conditioning_channels": hint,
        "conditioning_embedding_out_channels": list(hint_channels),
        **{name: value for name, value in fields.items() if name in CONTROLNET_FIELDS},
    }


def _section(fields: Mapping) -> dict:
    section = unet2d.common_section(fields, DOWN, UP)
    section |= {
        "middle_attention": True,
        "middle_norm": True,
        "context": _number(fields, "cross_attention_dim"),
        "heads": _heads(fields["attention_head_dim"]),
    }
    configuration.from_dict({"model": section})  # refuses values of the wrong type
    return section


def _fields(config, kind: str, linear: bool) -> dict:
    if not config.context:
        raise InputError(f"config.model.context: 0 has no equivalent in {kind}")
    if not config.middle_attention:
        raise InputError(f"config.model.middle_attention: False has no equivalent in {kind}")
    widths = configuration.head_widths(config)
    heads = [c // width for c, width in zip(config.channels, widths, strict=True)]
    return {
        **unet2d.common_fields(config, kind, DOWN, UP),
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "cross_attention_dim": config.context,
        # Their name for a number of heads.
        "attention_head_dim": config.heads[0] if len(config.heads) == 1 else heads,
        "use_linear_projection": linear,
    }


def _heads(value) -> tuple[int, ...]:
    """Heads at each resolution, or one number for all: it is they that this field gives."""
    heads = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not heads or not all(map(_is_number, heads)):
        raise InputError(f"attention_head_dim: {value!r} are not whole numbers above 0")
    return heads


def _mirrored(down) -> tuple | object:
    """Blocks of the decoder for those of the encoder; what cannot be is for others to name."""
    if not isinstance(down, list | tuple):
        return (UP[0],)
    return tuple(UP[block == DOWN[1]] for block in down[::-1])


def _single(fields: Mapping) -> dict:
    """Fields, with one value in place of a list of the same for each resolution."""

    def single(name, value):
        listed = name in REPEATED and isinstance(value, list | tuple) and len(value) > 0
        return value[0] if listed and all(item == value[0] for item in value) else value

    return {name: single(name, value) for name, value in fields.items()}


def _number(fields: Mapping, name: str) -> int:
    if not _is_number(fields[name]):
        raise InputError(f"{name}: {fields[name]!r} is not a whole number above 0")
    return fields[name]


def _is_number(value) -> bool:
    return type(value) is int and value > 0


# ----------------------------------------------------------------------------------------------
# Parameters
# ----------------------------------------------------------------------------------------------

TOP = unet2d.TOP | {
    # of a ControlNet
    "hint": "controlnet_cond_embedding",
    "zeros": "controlnet_down_blocks",
    "zero_middle": "controlnet_mid_block",
}
PARTS = unet2d.PARTS | {
    # of a transformer
    "norm": "norm",
    "enter": "proj_in",
    "block": "transformer_blocks.0",
    "self_attention": "attn1",
    "cross_attention": "attn2",
    "norm_3": "norm3",
    "feed_forward": "ff",
    "widen": "net.0.proj",
    "narrow": "net.2",
    "leave": "proj_out",
    # of the hint
    "conv_in": "conv_in",
    "blocks": "blocks",
    "conv_out": "conv_out",
}
PROJECTIONS = (PARTS["enter"], PARTS["leave"])


def name(config, path: tuple) -> str:
    """Path of a parameter of ours -> its name in diffusers, see unet2d.name.

    ('down', 0, 'attention', 'enter', 'kernel') -> 'down_blocks.0.attentions.0.proj_in.weight'
    """
    return unet2d.name(config, path, top=TOP, parts=PARTS)


def ours(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Kernels [O, I, *S] -> [*S, I, O], or [I, O] where `shape` says so; scales and biases stay."""
    return unet2d.ours(array).reshape(shape)


def theirs(name: str, array: np.ndarray, *, linear: bool = False) -> np.ndarray:
    """Kernels [*S, I, O] -> [O, I, *S]; scales and biases stay.

    Args:
      name: theirs.
      linear: whether projections, which are [I, O] here, stay matrices there, or are convolutions
        of one pixel.
    """
    array = unet2d.theirs(array)
    convolved = not linear and array.ndim == 2 and name.split(".")[-2] in PROJECTIONS
    return array[..., None, None] if convolved else array
