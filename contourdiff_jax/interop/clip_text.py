# SPDX-License-Identifier: Apache-2.0
"""CLIP's text encoder in transformers' words: names and numbers only, no files.

The reference is `CLIPTextModel` of transformers 5.24 (models/clip/modeling_clip.py,
configuration_clip.py). `text_config` and `fields` are inverses of each other, as are `ours` and
`theirs`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from contourdiff_jax.errors import InputError
from contourdiff_jax.interop import unet2d
from contourdiff_jax.models.clip import ACTIVATIONS, TextConfig
from contourdiff_jax.runtime import forms

TEXT_MODEL = "CLIPTextModel"
MODEL_TYPE = "clip_text_model"

# Fields of its config.json that make the network: of a TextConfig, with transformers' defaults.
NAMES = {
    "vocab_size": "vocabulary",
    "max_position_embeddings": "positions",
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "mlp",
    "hidden_act": "activation",
    "layer_norm_eps": "epsilon",
}
FIELDS = {
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "hidden_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
# Fields of which our network has only these values, the usual one first; `dropout` is of files of
# early versions.
SUPPORTED = {
    "model_type": (MODEL_TYPE,),
    "architectures": ([TEXT_MODEL], None),
    "hidden_act": tuple(ACTIVATIONS),
    "attention_dropout": (0.0,),
    "dropout": (0.0,),
}
# Without effect on the last hidden state: how new weights are drawn, what comes after it, which
# tokens begin, end and fill (the tokenizer knows), and what a file says of itself.
IDLE = {
    "initializer_range",
    "initializer_factor",
    "projection_dim",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "dtype",
    "torch_dtype",
    "transformers_version",
}


# ----------------------------------------------------------------------------------------------
# The network
# ----------------------------------------------------------------------------------------------


def text_config(fields: Mapping) -> TextConfig:
    """Fields of a CLIPTextModel's config.json -> the encoder that is the same network.

    Raises:
      InputError: a field that our network has no equivalent of; it is named.
    """
    fields = {name: value for name, value in fields.items() if not name.startswith("_")}
    unknown = sorted(fields.keys() - FIELDS.keys() - SUPPORTED.keys() - IDLE)
    if unknown:
        raise InputError(f"{unknown[0]}: not a field of a {TEXT_MODEL} that is known here")
    for name, known in SUPPORTED.items():
        if name in fields and fields[name] not in known:
            listed = ", ".join(map(str, known))
            raise InputError(f"{name}: {fields[name]!r} is not supported, only {listed}")
    fields = FIELDS | {name: value for name, value in fields.items() if name in FIELDS}
    fields = forms.checked(fields, {name: type(value) for name, value in FIELDS.items()})
    for name, value in fields.items():
        if name != "hidden_act" and value <= 0:
            raise InputError(f"{name}: {value} is not positive")
    if fields["hidden_size"] % fields["num_attention_heads"]:
        raise InputError(
            f"num_attention_heads: {fields['num_attention_heads']} do not divide hidden_size, "
            f"{fields['hidden_size']}"
        )
    return TextConfig(**{NAMES[name]: value for name, value in fields.items()})


def fields(config: TextConfig) -> dict:
    """An encoder -> fields of the config.json of the CLIPTextModel that is the same network."""
    return {
        "architectures": [TEXT_MODEL],
        "model_type": MODEL_TYPE,
        **{theirs: getattr(config, ours) for theirs, ours in NAMES.items()},
    }


# ----------------------------------------------------------------------------------------------
# Parameters
# ----------------------------------------------------------------------------------------------

# Before every name in files of transformers 4; 5.24 leaves it out, and reads both.
PREFIX = "text_model."
# The numbers 0 to 76, which files of early versions hold beside the parameters.
POSITIONS = f"{PREFIX}embeddings.position_ids"
PARTS = {
    "token": "embeddings.token_embedding",
    "position": "embeddings.position_embedding",
    "layers": "encoder.layers",
    "norm": "final_layer_norm",
    # of layers
    "norm_1": "layer_norm1",
    "attention": "self_attn",
    "norm_2": "layer_norm2",
    "first": "mlp.fc1",
    "second": "mlp.fc2",
    # of attention
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "out": "out_proj",
    # of all of these
    "embedding": "weight",
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
}


def name(path: tuple) -> str:
    """Path of a parameter of ours -> its name in files that all versions of transformers read.

    ('layers', 0, 'first', 'kernel') -> 'text_model.encoder.layers.0.mlp.fc1.weight'
    """
    return PREFIX + ".".join(str(PARTS.get(part, part)) for part in path)


def current(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of a file by `name`, whatever version wrote it, without what is no parameter."""

    def prefixed(name: str) -> str:
        # Where a file has a tensor under both names, one of them remains unknown.
        other = PREFIX + name
        return name if name.startswith(PREFIX) or other in tensors else other

    found = {prefixed(name): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in found.items() if name != POSITIONS}


def ours(path: tuple, array: np.ndarray) -> np.ndarray:
    """Kernels [O, I] -> [I, O]; embeddings, scales and biases stay."""
    return array if path[-1] == "embedding" else unet2d.ours(array)


def theirs(path: tuple, array: np.ndarray) -> np.ndarray:
    """Kernels [I, O] -> [O, I]; embeddings, scales and biases stay."""
    return array if path[-1] == "embedding" else unet2d.theirs(array)
