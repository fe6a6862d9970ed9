# SPDX-License-Identifier: Apache-2.0
"""What transformers calls CLIP's text encoder: both ways, and what has no name on the other side.

That the names are right, and mean the same network, is for tests/parity to say.
"""

import jax
import numpy as np
import pytest

from contourdiff_jax.errors import InputError
from contourdiff_jax.interop import clip_text
from contourdiff_jax.models import clip

# The config.json of Stable Diffusion 1.5's text_encoder.
STABLE = {
    "_name_or_path": "openai/clip-vit-large-patch14",
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "projection_dim": 768,
    "torch_dtype": "float32",
    "transformers_version": "4.22.0.dev0",
    "vocab_size": 49408,
}
TINY = clip.TextConfig(vocabulary=50, positions=9, width=16, layers=2, heads=4, mlp=32)
LAYER = (
    *("layer_norm1.weight", "layer_norm1.bias", "layer_norm2.weight", "layer_norm2.bias"),
    *(f"self_attn.{p}_proj.{part}" for p in ("q", "k", "v", "out") for part in ("weight", "bias")),
    *("mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"),
)


def theirs(layers: int) -> set[str]:
    """The names in a file of Stable Diffusion 1.5, but for so many layers."""
    own = {
        "text_model.embeddings.token_embedding.weight",
        "text_model.embeddings.position_embedding.weight",
        "text_model.final_layer_norm.weight",
        "text_model.final_layer_norm.bias",
    }
    return own | {f"text_model.encoder.layers.{n}.{part}" for n in range(layers) for part in LAYER}


def paths(config) -> list[tuple]:
    shapes = jax.eval_shape(clip.build(config).init, jax.random.key(0))
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    return [tuple(key.key for key in path) for path, _ in leaves]


@pytest.mark.parametrize(("config", "count"), [(TINY, 36), (clip.TextConfig(), 196)])
def test_every_parameter_has_the_name_of_one_of_theirs(config, count):
    names = [clip_text.name(path) for path in paths(config)]
    assert len(names) == count
    assert sorted(names) == sorted(theirs(config.layers))


def test_names_are_those_of_the_parts():
    for path, expected in {
        ("token", "embedding"): "embeddings.token_embedding.weight",
        ("layers", 1, "attention", "out", "kernel"): "encoder.layers.1.self_attn.out_proj.weight",
        ("layers", 0, "norm_2", "scale"): "encoder.layers.0.layer_norm2.weight",
        ("layers", 11, "second", "bias"): "encoder.layers.11.mlp.fc2.bias",
        ("norm", "bias"): "final_layer_norm.bias",
    }.items():
        assert clip_text.name(path) == f"text_model.{expected}"


def test_files_of_all_versions_hold_the_same():
    early = dict.fromkeys(theirs(2), 1)
    late = {name.removeprefix("text_model."): 1 for name in early}
    assert clip_text.current(late) == early
    assert clip_text.current(early | {"text_model.embeddings.position_ids": 1}) == early
    assert clip_text.current(late | {"embeddings.position_ids": 1}) == early


def test_a_tensor_under_two_names_is_not_taken_for_one():
    both = {"text_model.final_layer_norm.bias": 1, "final_layer_norm.bias": 2}
    assert clip_text.current(both) == both


def test_kernels_are_turned_and_embeddings_are_not(rng):
    array = rng.normal(size=(4, 6)).astype(np.float32)
    np.testing.assert_array_equal(clip_text.theirs(("first", "kernel"), array), array.T)
    for path in (("first", "kernel"), ("token", "embedding"), ("norm", "bias")):
        given = array[0] if path[-1] == "bias" else array
        turned = clip_text.theirs(path, given)
        np.testing.assert_array_equal(clip_text.ours(path, turned), given)
        if path[-1] != "kernel":
            np.testing.assert_array_equal(turned, given)


def test_stable_diffusion_s_configuration_is_the_usual_one():
    assert clip_text.text_config(STABLE) == clip.TextConfig()
    written = clip_text.fields(clip.TextConfig())
    assert written.items() <= STABLE.items()


@pytest.mark.parametrize("config", [TINY, clip.TextConfig(activation="gelu", epsilon=1e-6)])
def test_settings_go_to_transformers_and_come_back(config):
    assert clip_text.text_config(clip_text.fields(config)) == config


def test_fields_that_a_file_leaves_out_are_transformers_defaults():
    config = clip_text.text_config({})
    assert config == clip_text.text_config(clip_text.FIELDS)
    assert (config.width, config.heads, config.mlp) == (512, 8, 2048)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model_type": "clip"}, "model_type: 'clip'.*clip_text_model"),
        ({"model_type": "t5"}, "model_type"),
        ({"architectures": ["CLIPTextModelWithProjection"]}, "architectures.*WithProjection"),
        ({"text_config": {}}, "text_config"),
        ({"relative_attention": True}, "relative_attention"),
        ({"hidden_act": "gelu_new"}, "hidden_act: 'gelu_new'.*quick_gelu, gelu"),
        ({"attention_dropout": 0.1}, "attention_dropout: 0.1.*only 0.0"),
        ({"hidden_size": "768"}, "hidden_size"),
        ({"hidden_size": None}, "hidden_size: None"),
        ({"vocab_size": True}, "vocab_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: 0"),
        ({"intermediate_size": 1.5}, "intermediate_size"),
        ({"layer_norm_eps": -1e-5}, "layer_norm_eps"),
        ({"num_attention_heads": 7}, "num_attention_heads: 7.*hidden_size, 768"),
    ],
)
def test_what_our_network_has_no_equivalent_of_is_named(fields, named):
    with pytest.raises(InputError, match=named) as error:
        clip_text.text_config(STABLE | fields)
    assert "\n" not in str(error.value)
