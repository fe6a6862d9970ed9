# SPDX-License-Identifier: Apache-2.0
"""Our networks and their parameters in diffusers' words: names and numbers only, no files.

The reference is `UNet2DModel` of diffusers 0.42 (models/unets/unet_2d.py, unet_2d_blocks.py,
models/resnet.py, attention_processor.py, embeddings.py). `model` and `unet` are inverses of each
other, as are `ours` and `theirs`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from contourdiff_jax import config as configuration
from contourdiff_jax.errors import InputError
from contourdiff_jax.models.unet import decoder_attention

UNET = "UNet2DModel"

# Fields of its config.json with diffusers' defaults, for files of older versions that lack some.
FIELDS = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", *("AttnDownBlock2D",) * 3),
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": (*("AttnUpBlock2D",) * 3, "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
# Fields of which our network has only these values, the usual one first.
SUPPORTED = {
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D",),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
}
DOWN = ("DownBlock2D", "AttnDownBlock2D")  # without and with attention
UP = ("UpBlock2D", "AttnUpBlock2D")


# ----------------------------------------------------------------------------------------------
# The network
# ----------------------------------------------------------------------------------------------


def model(fields: Mapping) -> dict:
    """Fields of a UNet2DModel's config.json -> fields of a `model` section (see config.py).

    The conditions are left out: diffusers does not know what channels mean.

    Raises:
      InputError: a field that our network has no equivalent of; it is named.
    """
    fields = completed(fields, UNET, FIELDS, SUPPORTED)
    section = common_section(fields, DOWN, UP)
    if fields["attention_head_dim"] == 0:
        raise InputError("attention_head_dim: 0 is not supported; all in one head is null")
    groups = fields["norm_num_groups"]
    if fields["attn_norm_num_groups"] not in (None, groups):
        raise InputError(
            f"attn_norm_num_groups: {fields['attn_norm_num_groups']} is not supported, only null "
            f"or norm_num_groups"
        )
    section |= {
        "middle_attention": fields["add_attention"],
        # Where the time scales and shifts, this attention has a norm only if its groups are given.
        "middle_norm": not section["time_scale_shift"]
        or fields["attn_norm_num_groups"] is not None,
        "context": 0,
        "head_width": fields["attention_head_dim"] or 0,
        "heads": (),
    }
    configuration.from_dict({"model": section})  # refuses values of the wrong type
    return section


def completed(fields: Mapping, kind: str, defaults: Mapping, supported: Mapping) -> dict:
    """All fields of a config.json, those that it leaves out with diffusers' defaults.

    Args:
      kind: the class that it should be of.
      supported: {field: the values that our network has}.

    Raises:
      InputError: another class, an unknown field or one with a value that is not supported.
    """
    if fields.get("_class_name", kind) != kind:
        raise InputError(f"_class_name: {fields['_class_name']!r} is not {kind}")
    fields = {name: value for name, value in fields.items() if not name.startswith("_")}
    unknown = sorted(fields.keys() - defaults.keys())
    if unknown:
        raise InputError(f"{unknown[0]}: not a field of a {kind} that is known here")
    fields = {**defaults, **fields}
    for name, known in supported.items():
        if fields[name] not in known:
            raise InputError(f"{name}: {fields[name]!r} is not supported, only {_listed(known)}")
    for name, value in fields.items():
        if value is None and defaults[name] is not None and name != "attention_head_dim":
            raise InputError(f"{name}: null is not supported")
    return fields


def common_section(fields: Mapping, down: tuple[str, str], up: tuple[str, str]) -> dict:
    """What all U-Nets of diffusers say in the same words, as fields of a `model` section.

    Args:
      down, up: names of blocks without and with attention.
    """
    for name in ("block_out_channels", "down_block_types", "up_block_types"):
        if not isinstance(fields[name], list | tuple) or not fields[name]:
            raise InputError(f"{name}: {fields[name]!r} is not a list")
    channels = tuple(fields["block_out_channels"])
    if not all(isinstance(c, int) for c in channels):
        raise InputError(f"block_out_channels: {channels} are not whole numbers")
    if fields["time_embedding_dim"] not in (None, 4 * channels[0]):
        raise InputError(
            f"time_embedding_dim: {fields['time_embedding_dim']} is not supported, only four "
            f"times the first of block_out_channels"
        )
    attention = _attention("down_block_types", fields["down_block_types"], down)
    decoder = _attention("up_block_types", fields["up_block_types"], up)[::-1]
    return {
        "channels": channels,
        "layers": fields["layers_per_block"],
        "attention": attention,
        "decoder_attention": () if decoder == attention else decoder,
        "middle_divisor": fields["mid_block_scale_factor"],
        "resample_convolution": True,
        "downsample_padding": fields["downsample_padding"],
        "groups": fields["norm_num_groups"],
        "epsilon": fields["norm_eps"],
        "time_scale_shift": fields["resnet_time_scale_shift"] == "scale_shift",
        "time_cosine_first": fields["flip_sin_to_cos"],
        "time_shift": fields["freq_shift"],
        "centre_input": fields["center_input_sample"],
        "dropout": fields["dropout"],
    }


def unet(config, *, inputs: int, outputs: int, size: int) -> dict:
    """A `model` section -> fields of the config.json of the UNet2DModel that is the same network.

    Args:
      inputs, outputs: channels.
      size: of the images, in pixels.

    Raises:
      InputError: a setting that UNet2DModel has no equivalent of; it is named.
    """
    for field in ("context", "heads"):
        if config[field]:
            raise InputError(f"config.model.{field}: {config[field]} has no equivalent in {UNET}")
    if config.middle_attention and not config.middle_norm and not config.time_scale_shift:
        raise InputError(
            f"config.model.middle_norm: False has no equivalent in {UNET} without time_scale_shift"
        )
    middle_groups = config.groups if config.time_scale_shift and config.middle_norm else None
    return {
        "_class_name": UNET,
        "sample_size": size,
        "in_channels": inputs,
        "out_channels": outputs,
        **common_fields(config, UNET, DOWN, UP),
        "mid_block_type": "UNetMidBlock2D",
        "downsample_type": "conv",
        "upsample_type": "conv",
        "attention_head_dim": config.head_width or None,
        "attn_norm_num_groups": middle_groups,
        "add_attention": config.middle_attention,
    }


def common_fields(config, kind: str, down: tuple[str, str], up: tuple[str, str]) -> dict:
    """The inverse of `common_section`.

    Args:
      kind: the class that cannot say all that a `model` section can.

    Raises:
      InputError: a setting that none of diffusers' U-Nets has an equivalent of.
    """
    for field, usual in (("dims", 2), ("patch", 1), ("paths", 1), ("pool", ())):
        if config[field] != usual:
            raise InputError(f"config.model.{field}: {config[field]} has no equivalent in {kind}")
    if not config.resample_convolution:
        raise InputError(
            f"config.model.resample_convolution: False has no equivalent in {kind}; only networks "
            f"trained with True, as configs/contourdiff_2d.py is, can be exported"
        )
    return {
        "center_input_sample": config.centre_input,
        "time_embedding_type": "positional",
        "freq_shift": config.time_shift,
        "flip_sin_to_cos": config.time_cosine_first,
        "down_block_types": [down[bool(attentive)] for attentive in config.attention],
        "up_block_types": [up[bool(attentive)] for attentive in decoder_attention(config)[::-1]],
        "block_out_channels": list(config.channels),
        "layers_per_block": config.layers,
        "mid_block_scale_factor": config.middle_divisor,
        "downsample_padding": config.downsample_padding,
        "dropout": config.dropout,
        "act_fn": "silu",
        "norm_num_groups": config.groups,
        "norm_eps": config.epsilon,
        "resnet_time_scale_shift": "scale_shift" if config.time_scale_shift else "default",
    }


def _attention(name: str, blocks, known: tuple[str, str]) -> tuple[bool, ...]:
    for block in blocks:
        if block not in known:
            raise InputError(f"{name}: {block!r} is not supported, only {_listed(known)}")
    return tuple(block == known[1] for block in blocks)


def _listed(known) -> str:
    return ", ".join("null" if value is None else str(value) for value in known)


# ----------------------------------------------------------------------------------------------
# Parameters
# ----------------------------------------------------------------------------------------------

TOP = {
    "time": "time_embedding",
    "conv_in": "conv_in",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}
PARTS = {
    # of the time embedding
    "first": "linear_1",
    "second": "linear_2",
    # of residual blocks
    "norm_1": "norm1",
    "conv_1": "conv1",
    "time": "time_emb_proj",
    "norm_2": "norm2",
    "conv_2": "conv2",
    "shortcut": "conv_shortcut",
    # of attention
    "norm": "group_norm",
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "out": "to_out.0",
    # of changes of resolution
    "conv": "conv",
    # of all of these
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
}
# Names of the parts of attention in files of early versions, which diffusers still reads.
EARLY = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def name(config, path: tuple, *, top: Mapping = TOP, parts: Mapping = PARTS) -> str:
    """Path of a parameter of ours -> its name in diffusers.

    ('down', 0, 'residual', 'conv_1', 'kernel') -> 'down_blocks.0.resnets.0.conv1.weight'

    Args:
      top, parts: their names for ours at the network's two ends, and within its blocks; a number in
        a list is the same for both.
    """
    first, *rest = path
    parent, rest = (top[first], rest) if first in top else _block(config, first, *rest)
    return ".".join([parent, *(str(p) if isinstance(p, int) else parts[p] for p in rest)])


def _block(config, side: str, place: int, kind: str, *rest) -> tuple[str, tuple]:
    """Our encoder and decoder are flat lists; theirs are lists of blocks, one a resolution."""
    stages = {"down": config.layers, "middle": 2, "up": config.layers + 1}[side]
    block, stage = divmod(place, stages + 1)
    parent = "mid_block" if side == "middle" else f"{side}_blocks.{block}"
    if stage == stages:
        return f"{parent}.{side}samplers.0", (kind, *rest)
    return f"{parent}.{'resnets' if kind == 'residual' else 'attentions'}.{stage}", rest


def current(name: str) -> str:
    """The name of a parameter in diffusers today, whatever version wrote it."""
    parts = name.split(".")
    return ".".join(EARLY.get(p, p) for p in parts) if "attentions" in parts else name


def renamed(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of a file by `current` names.

    Where it has one under its early name and under today's, the former remains unknown.
    """
    return {
        name if current(name) in tensors else current(name): tensor
        for name, tensor in tensors.items()
    }


def ours(array: np.ndarray) -> np.ndarray:
    """Kernels [O, I, *S] -> [*S, I, O]; scales and biases stay."""
    if array.ndim < 2:
        return array
    return np.ascontiguousarray(array.transpose(*range(2, array.ndim), 1, 0))


def theirs(array: np.ndarray) -> np.ndarray:
    """Kernels [*S, I, O] -> [O, I, *S]; scales and biases stay."""
    if array.ndim < 2:
        return array
    last = array.ndim - 1
    return np.ascontiguousarray(array.transpose(last, last - 1, *range(last - 1)))
