# SPDX-License-Identifier: Apache-2.0
"""What diffusers calls Stable Diffusion's settings: both ways, and what has no name on either side.

That the names are right, and mean the same network, is for tests/parity to say.
"""

import jax
import numpy as np
import pytest

from contourdiff_jax import config, models
from contourdiff_jax.errors import InputError
from contourdiff_jax.interop import unet2d_condition as interop
from contourdiff_jax.interop.parameters import of_condition
from contourdiff_jax.models import controlnet

# What the config.json of the published U-Nets say, but for what their diffusers wrote of itself.
FIRST = {  # 1.4 and 1.5: of early versions, with few fields
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
}
SECOND = FIRST | {  # 2.0 and 2.1, which differ in upcast_attention
    "_diffusers_version": "0.10.0.dev0",
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "sample_size": 96,
    "upcast_attention": True,
    "use_linear_projection": True,
}
INSTRUCT = FIRST | {  # InstructPix2Pix
    "in_channels": 8,
    "class_embed_type": None,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "only_cross_attention": [False] * 4,
    "resnet_time_scale_shift": "default",
}
OF_UNET_ALONE = ("center_input_sample", "out_channels", "sample_size", "up_block_types")
CONTROL = {name: value for name, value in FIRST.items() if name not in OF_UNET_ALONE} | {
    "_class_name": "ControlNetModel",
    "conditioning_embedding_out_channels": [16, 32, 96, 256],
    "controlnet_conditioning_channel_order": "rgb",
    "class_embed_type": None,
    "num_class_embeds": None,
    "projection_class_embeddings_input_dim": None,
    "only_cross_attention": False,
    "resnet_time_scale_shift": "default",
    "upcast_attention": False,
    "use_linear_projection": False,
}


def section(fields):
    model = config.default().model
    model.update(fields)
    model.conditions = ()
    return model


def small(**fields):
    model = section({"channels": (8, 16), "attention": (True, False), "groups": 4})
    model.update(context=6, heads=(2,), resample_convolution=True)
    model.update(fields)
    return model


def shapes(params) -> dict[tuple, tuple]:
    """Shapes of the parameters of a network by path."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {tuple(getattr(k, "key", None) for k in path): leaf.shape for path, leaf in leaves}


# ----------------------------------------------------------------------------------------------
# The networks
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "inputs", "heads", "context"),
    [(FIRST, 4, (8,), 768), (SECOND, 4, (5, 10, 20, 20), 1024), (INSTRUCT, 8, (8,), 768)],
)
def test_published_networks_are_read_and_written_as_they_are(fields, inputs, heads, context):
    read = interop.network(fields)
    assert (read.inputs, read.outputs) == (inputs, 4)
    assert (read.model["heads"], read.model["context"]) == (heads, context)
    assert read.linear == fields.get("use_linear_projection", False)
    assert read.model["attention"] == (True, True, True, False)
    assert read.model["decoder_attention"] == ()

    model = section(read.model)
    config.check_model(config.from_dict({"model": read.model}))
    size = fields["sample_size"]
    written = interop.unet(model, inputs=inputs, outputs=4, size=size, linear=read.linear)
    for name, value in written.items():
        assert value == (interop.FIELDS | {"only_cross_attention": False} | fields)[name], name
    assert interop.network(written) == read


def test_the_published_branch_is_read_and_written_as_it_is():
    read = interop.branch(CONTROL)
    assert read.model == interop.network(FIRST).model
    assert (read.inputs, read.hint, read.hint_channels) == (4, 3, (16, 32, 96, 256))
    written = interop.controlnet(
        section(read.model), inputs=4, hint=3, hint_channels=(16, 32, 96, 256)
    )
    for name, value in written.items():
        assert value == (interop.CONTROLNET_FIELDS | CONTROL)[name], name
    assert interop.branch(written) == read


@pytest.mark.parametrize(
    "fields",
    [
        {"heads": (2, 4), "epsilon": 1e-6, "dropout": 0.1, "centre_input": True},
        {"decoder_attention": (True, True), "layers": 3, "time_scale_shift": True},
        {"time_cosine_first": False, "time_shift": 1, "middle_divisor": 2.0},
    ],
)
def test_settings_go_to_diffusers_and_come_back(fields):
    model = small(**fields)
    back = interop.network(interop.unet(model, inputs=4, outputs=4, size=8)).model
    for name, value in back.items():
        assert model[name] == value, name
    ours = {"conditions", "null", "patch", "dtype", "rematerialise", "fused_attention"}
    ours |= {"dims", "planar", "paths", "pool"}
    assert set(model) - set(back) == ours | {"head_width"}


def test_a_width_of_heads_is_written_as_their_number():
    model = small(heads=(), head_width=4)
    written = interop.unet(model, inputs=4, outputs=4, size=8)
    assert written["attention_head_dim"] == [2, 4]
    assert config.head_widths(section(interop.network(written).model)) == (4, 4)


def test_fields_that_a_file_leaves_out_are_diffusers_defaults():
    assert interop.network({}) == interop.network(interop.FIELDS)
    assert interop.network({}).model["context"] == 1280
    assert interop.branch({}) == interop.branch(interop.CONTROLNET_FIELDS)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"_class_name": "UNet2DModel"}, "_class_name: 'UNet2DModel'"),
        ({"add_attention": True}, "add_attention: not a field"),
        ({"down_block_types": ["AttnDownBlock2D"]}, "AttnDownBlock2D.*CrossAttnDownBlock2D"),
        ({"up_block_types": "UpBlock2D"}, "up_block_types"),
        ({"mid_block_type": "UNetMidBlock2D"}, "mid_block_type.*UNetMidBlock2DCrossAttn"),
        ({"mid_block_type": None}, "mid_block_type"),
        ({"only_cross_attention": True}, "only_cross_attention: True"),
        ({"only_cross_attention": [False, True]}, "only_cross_attention"),
        ({"dual_cross_attention": True}, "dual_cross_attention"),
        ({"transformer_layers_per_block": [1, 2, 10]}, "transformer_layers_per_block"),
        ({"cross_attention_dim": [768, 1024]}, "cross_attention_dim"),
        ({"cross_attention_dim": None}, "cross_attention_dim: null"),
        ({"cross_attention_dim": 0}, "cross_attention_dim: 0"),
        ({"attention_head_dim": None}, "attention_head_dim: None"),
        ({"attention_head_dim": []}, "attention_head_dim"),
        ({"attention_head_dim": [5, "10"]}, "attention_head_dim"),
        ({"num_attention_heads": 8}, "num_attention_heads"),
        ({"use_linear_projection": "yes"}, "use_linear_projection"),
        ({"addition_embed_type": "text_time"}, "addition_embed_type: 'text_time'"),
        ({"class_embed_type": "projection"}, "class_embed_type"),
        ({"num_class_embeds": 10}, "num_class_embeds"),
        ({"encoder_hid_dim": 4096}, "encoder_hid_dim"),
        ({"time_cond_proj_dim": 256}, "time_cond_proj_dim"),
        ({"conv_in_kernel": 1}, "conv_in_kernel"),
        ({"attention_type": "gated"}, "attention_type"),
        ({"in_channels": "4"}, "in_channels: '4'"),
        ({"in_channels": True}, "in_channels: True"),
        ({"norm_eps": "small"}, "epsilon"),
        ({"layers_per_block": [1, 2]}, "layers"),
    ],
)
def test_what_our_network_has_no_equivalent_of_is_named(fields, named):
    with pytest.raises(InputError, match=named) as error:
        interop.network(FIRST | fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "_class_name"),
        ({"up_block_types": ["UpBlock2D"]}, "up_block_types: not a field"),
        ({"down_block_types": "DownBlock2D"}, "down_block_types"),
        ({"down_block_types": ["SkipDownBlock2D"]}, "down_block_types: 'SkipDownBlock2D'"),
        ({"controlnet_conditioning_channel_order": "bgr"}, "'bgr' is not supported, only rgb"),
        ({"global_pool_conditions": True}, "global_pool_conditions"),
        ({"conditioning_channels": 0}, "conditioning_channels"),
        ({"conditioning_embedding_out_channels": []}, "conditioning_embedding_out_channels"),
        ({"conditioning_embedding_out_channels": 16}, "conditioning_embedding_out_channels"),
    ],
)
def test_what_our_branch_has_no_equivalent_of_is_named(fields, named):
    with pytest.raises(InputError, match=named) as error:
        interop.branch(CONTROL | fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"context": 0},
        {"middle_attention": False},
        {"patch": 2},
        {"resample_convolution": False},
    ],
)
def test_what_diffusers_has_no_equivalent_of_is_named(fields):
    (name,) = fields
    with pytest.raises(InputError, match=rf"config\.model\.{name}: .* UNet2DConditionModel"):
        interop.unet(small(**fields), inputs=4, outputs=4, size=8)
    with pytest.raises(InputError, match=rf"config\.model\.{name}: .* ControlNetModel"):
        interop.controlnet(small(**fields), inputs=4, hint=3, hint_channels=(4, 8))


@pytest.mark.parametrize("fields", [{"centre_input": True}, {"dropout": 0.1}])
def test_a_branch_of_diffusers_lacks_more(fields):
    (name,) = fields
    with pytest.raises(InputError, match=rf"config\.model\.{name}: .* ControlNetModel"):
        interop.controlnet(small(**fields), inputs=4, hint=3, hint_channels=(4, 8))


# ----------------------------------------------------------------------------------------------
# Parameters
# ----------------------------------------------------------------------------------------------


def test_names_are_those_of_the_blocks():
    model = small()
    attention = "down_blocks.0.attentions.0"
    for path, expected in {
        ("conv_in", "kernel"): "conv_in.weight",
        ("down", 0, "attention", "norm", "scale"): f"{attention}.norm.weight",
        ("down", 0, "attention", "enter", "kernel"): f"{attention}.proj_in.weight",
        (
            *("up", 4, "attention", "block", "cross_attention", "out", "bias"),
        ): "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_out.0.bias",
        (
            *("middle", 0, "attention", "block", "feed_forward", "widen", "kernel"),
        ): "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight",
        ("down", 0, "residual", "norm_1", "scale"): "down_blocks.0.resnets.0.norm1.weight",
        ("hint", "blocks", 3, "kernel"): "controlnet_cond_embedding.blocks.3.weight",
        ("hint", "conv_out", "bias"): "controlnet_cond_embedding.conv_out.bias",
        ("zeros", 2, "kernel"): "controlnet_down_blocks.2.weight",
        ("zero_middle", "bias"): "controlnet_mid_block.bias",
    }.items():
        assert interop.name(model, path) == expected


@pytest.mark.parametrize("linear", [False, True])
def test_every_parameter_has_a_name_of_its_own_and_comes_back(linear, rng):
    model = small()
    words = of_condition(model, linear)
    for init in (
        models.build(model, channels=4).init,
        controlnet.build(model, hint_channels=(4, 8)).init,
    ):
        taken = shapes(jax.eval_shape(init, jax.random.key(0)))
        names = {path: interop.name(model, path) for path in taken}
        assert len(set(names.values())) == len(names)
        for path, shape in taken.items():
            array = rng.normal(size=shape).astype(np.float32)
            turned = interop.theirs(names[path], array, linear=linear)
            assert turned.shape == words.theirs_shape(path, shape)
            np.testing.assert_array_equal(interop.ours(turned, shape), array)
            projection = ".proj_in.weight" in names[path] or ".proj_out.weight" in names[path]
            if projection:
                assert turned.ndim == (2 if linear else 4)
