# SPDX-License-Identifier: Apache-2.0
"""What diffusers calls our settings: both ways, and what has no name on the other side.

That the names are right, and mean the same network, is for tests/parity to say.
"""

import importlib.util
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from contourdiff_jax import config, models
from contourdiff_jax.errors import InputError
from contourdiff_jax.interop import schedulers, unet2d

PUBLISHED = Path(__file__).parents[2] / "configs/contourdiff_2d.py"
# What UNet2DModel writes for the network that ContourDiff's train.py builds.
UNET = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.42.1",
    "act_fn": "silu",
    "add_attention": True,
    "attention_head_dim": 8,
    "attn_norm_num_groups": None,
    "block_out_channels": [128, 128, 256, 256, 512, 512],
    "center_input_sample": False,
    "class_embed_type": None,
    "down_block_types": [*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1,
    "downsample_type": "conv",
    "dropout": 0.0,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 2,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2D",
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "num_train_timesteps": None,
    "out_channels": 1,
    "resnet_time_scale_shift": "default",
    "sample_size": 256,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4],
    "upsample_type": "conv",
}
SECTIONS = [
    {},
    {"attention": (False, True, False), "decoder_attention": (True, False, False)},
    {"time_scale_shift": True, "middle_norm": False, "middle_divisor": 1.5},
    {"time_scale_shift": True, "head_width": 0, "centre_input": True},
    {"middle_attention": False, "epsilon": 1e-6, "dropout": 0.1, "downsample_padding": 0},
    {"time_cosine_first": False, "time_shift": 1, "groups": 4, "layers": 3},
]


def published():
    spec = importlib.util.spec_from_file_location("published", PUBLISHED)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def section(fields):
    model = config.default().model
    model.update(channels=(8, 16, 16), attention=(False, False, True), head_width=8)
    model.resample_convolution = True
    model.update(fields)
    return model


def parameters(model) -> dict:
    return jax.eval_shape(models.build(model).init, jax.random.key(0))


def paths(model) -> list[tuple]:
    leaves = jax.tree_util.tree_leaves_with_path(parameters(model))
    return [tuple(key.key for key in path) for path, _ in leaves]


# ----------------------------------------------------------------------------------------------
# The network
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [(("contour",), 113_669_761), (("contour", "neighbour"), 113_670_913)],
)
def test_the_published_network_has_as_many_parameters(conditions, expected):
    """Counts of `UNet2DModel` as ContourDiff builds it, with 2 and with 3 channels."""
    model = published().model
    model.conditions = conditions
    assert sum(leaf.size for leaf in jax.tree.leaves(parameters(model))) == expected


def test_the_published_configuration_is_the_original_s():
    model = published().model
    for name, value in unet2d.model(UNET).items():
        assert model[name] == value, name
    written = unet2d.unet(model, inputs=2, outputs=1, size=256)
    assert {name: UNET[name] for name in written} | {"_class_name": "UNet2DModel"} == written


@pytest.mark.parametrize("fields", SECTIONS)
def test_settings_go_to_diffusers_and_come_back(fields):
    model = section(fields)
    back = unet2d.model(unet2d.unet(model, inputs=2, outputs=1, size=32))
    for name, value in back.items():
        assert model[name] == value, name
    ours = {"conditions", "null", "patch", "dtype", "rematerialise", "fused_attention"}
    ours |= {"dims", "planar", "paths", "pool"}
    assert set(model) - set(back) == ours


def test_fields_that_a_file_leaves_out_are_diffusers_defaults():
    assert unet2d.model({}) == unet2d.model(unet2d.FIELDS)
    assert unet2d.model({})["channels"] == (224, 448, 672, 896)


@pytest.mark.parametrize("fields", SECTIONS)
def test_every_parameter_has_a_name_of_its_own(fields):
    model = section(fields)
    names = [unet2d.name(model, path) for path in paths(model)]
    assert len(set(names)) == len(names)


def test_names_are_those_of_the_blocks():
    model = section({})
    names = {path: unet2d.name(model, path) for path in paths(model)}
    for path, expected in {
        ("time", "first", "kernel"): "time_embedding.linear_1.weight",
        ("down", 2, "residual", "shortcut", "bias"): "down_blocks.1.resnets.0.conv_shortcut.bias",
        ("down", 3, "conv", "kernel"): "down_blocks.1.downsamplers.0.conv.weight",
        ("down", 4, "attention", "out", "kernel"): "down_blocks.2.attentions.0.to_out.0.weight",
        ("middle", 1, "residual", "time", "bias"): "mid_block.resnets.1.time_emb_proj.bias",
        ("up", 1, "attention", "norm", "scale"): "up_blocks.0.attentions.1.group_norm.weight",
        ("up", 5, "conv", "bias"): "up_blocks.1.upsamplers.0.conv.bias",
        ("up", 7, "residual", "norm_2", "bias"): "up_blocks.2.resnets.1.norm2.bias",
        ("norm_out", "scale"): "conv_norm_out.weight",
    }.items():
        assert names[path] == expected


def test_names_of_early_versions_are_known():
    for early, name in {"query": "to_q", "proj_attn": "to_out.0"}.items():
        parent = "up_blocks.0.attentions.1"
        assert unet2d.current(f"{parent}.{early}.bias") == f"{parent}.{name}.bias"
    for name in ("conv_in.weight", "down_blocks.0.resnets.0.norm1.bias", "odd.query.weight"):
        assert unet2d.current(name) == name


@pytest.mark.parametrize("shape", [(3, 3, 2, 5), (3, 3, 3, 2, 5), (4, 6), (7,)])
def test_kernels_come_back_from_being_turned(shape, rng):
    array = rng.normal(size=shape).astype(np.float32)
    turned = unet2d.theirs(array)
    assert turned.shape == (*shape[-2:][::-1], *shape[:-2])
    assert turned.flags.c_contiguous
    np.testing.assert_array_equal(unet2d.ours(turned), array)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel"),
        ({"cross_attention_dim": 768}, "cross_attention_dim"),
        ({"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]}, "SkipDownBlock2D.*DownBlock2D"),
        ({"up_block_types": ["ResnetUpsampleBlock2D"]}, "ResnetUpsampleBlock2D"),
        ({"mid_block_type": None}, "mid_block_type"),
        ({"time_embedding_type": "fourier"}, "fourier.*positional"),
        ({"time_embedding_dim": 100}, "time_embedding_dim"),
        ({"resnet_time_scale_shift": "spatial"}, "spatial.*scale_shift"),
        ({"downsample_type": "resnet"}, "downsample_type"),
        ({"upsample_type": "resnet"}, "upsample_type"),
        ({"act_fn": "gelu"}, "gelu.*silu"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"num_class_embeds": 10}, "num_class_embeds.*only null"),
        ({"attn_norm_num_groups": 4}, "attn_norm_num_groups"),
        ({"block_out_channels": "abc"}, "block_out_channels"),
        ({"block_out_channels": [8, "x"]}, "block_out_channels"),
        ({"layers_per_block": [1, 2]}, "layers"),
        ({"norm_num_groups": None}, "norm_num_groups: null"),
        ({"attention_head_dim": 0}, "attention_head_dim: 0"),
        ({"norm_eps": "small"}, "epsilon"),
        ({"mid_block_scale_factor": "1"}, "middle_divisor"),
    ],
)
def test_what_our_network_has_no_equivalent_of_is_named(fields, named):
    with pytest.raises(InputError, match=named) as error:
        unet2d.model(UNET | fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"resample_convolution": False}, "resample_convolution"),
        ({"middle_norm": False}, "norm"),
        ({"context": 8}, "context"),
        ({"heads": (2,)}, "heads"),
    ],
)
def test_what_diffusers_has_no_equivalent_of_is_named(fields, named):
    with pytest.raises(InputError, match=f"config.model.*{named}"):
        unet2d.unet(section(fields), inputs=2, outputs=1, size=32)


# ----------------------------------------------------------------------------------------------
# The schedule and the sampler
# ----------------------------------------------------------------------------------------------


def sampling(diffusion, sampler):
    settings = config.default()
    settings.diffusion.update(diffusion)
    settings.sampler.update(sampler)
    return settings


@pytest.mark.parametrize(
    ("diffusion", "sampler"),
    [
        ({"schedule": "linear", "prediction": "eps"}, {"name": "ddpm", "spacing": "leading"}),
        (
            {"schedule": "cosine", "prediction": "v"},
            {"name": "ddim", "spacing": "linspace", "clipped_eps": False, "fixed_stride": True},
        ),
        (
            {"schedule": "scaled_linear", "beta_first": 8.5e-4, "beta_last": 0.012, "steps": 500},
            {"name": "ddpm", "spacing": "leading", "offset": 1, "clip": False},
        ),
        (
            {"schedule": "linear", "prediction": "x0", "zero_terminal_snr": True},
            {"name": "dpmpp_2m", "spacing": "linspace", "clip": False},
        ),
        ({"schedule": "cosine", "prediction": "v"}, {"name": "dpmpp_2m", "clip": True}),
        (
            {"schedule": "scaled_linear", "prediction": "eps"},
            {
                **{"name": "ddim", "spacing": "leading", "offset": 1, "clip": False},
                **{"clipped_eps": False, "fixed_stride": True, "ends_clean": False},
            },
        ),
    ],
)
def test_schedules_and_samplers_go_to_diffusers_and_come_back(diffusion, sampler):
    settings = sampling(diffusion, sampler)
    for name, fields in schedulers.ours(schedulers.theirs(settings)).items():
        for field, value in fields.items():
            assert settings[name][field] == value, field


def test_a_scheduler_s_defaults_are_what_was_published():
    sections = schedulers.ours({"_class_name": "DDPMScheduler"})
    assert sections["diffusion"]["schedule"] == "linear"
    assert sections["diffusion"]["prediction"] == "eps"
    assert sections["sampler"]["spacing"] == "leading"
    assert sections["sampler"]["clip"] is True


STABLE_DIFFUSION = {  # what the file of 1.5 says
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


def test_stable_diffusion_is_drawn_with_ddim_of_its_schedule():
    """What is said so; of DDIM itself, in the same words, nothing is."""
    sections = schedulers.ours(STABLE_DIFFUSION)
    ddim = STABLE_DIFFUSION | {"_class_name": "DDIMScheduler"}
    assert sections == schedulers.ours(ddim)
    assert sections["sampler"] == {
        **{"name": "ddim", "clip": False, "spacing": "leading", "offset": 1},
        **{"clipped_eps": False, "fixed_stride": True, "ends_clean": False},
    }
    assert sections["diffusion"]["beta_last"] == 0.012
    assert re.search("PNDMScheduler.*ddim", schedulers.note(STABLE_DIFFUSION))
    assert schedulers.note(ddim) == schedulers.note({}) == ""


def test_what_pndm_lacks_has_no_effect_on_what_stands_in_for_it():
    left = {"clip_sample": True, "rescale_betas_zero_snr": True, "thresholding": True}
    assert schedulers.ours(STABLE_DIFFUSION | left) == schedulers.ours(STABLE_DIFFUSION)


@pytest.mark.parametrize("name", schedulers.SCHEDULERS)
def test_thresholding_at_one_is_clipping(name):
    fields = {"_class_name": schedulers.SCHEDULERS[name], "dynamic_thresholding_ratio": 0.9}
    on = fields | {"thresholding": True, "sample_max_value": 1.0, "clip_sample_range": 2.0}
    assert schedulers.ours(on)["sampler"]["clip"] is True
    off = fields | {"thresholding": False, "sample_max_value": 2.0, "clip_sample": False}
    assert schedulers.ours(off)["sampler"]["clip"] is False


def test_what_another_scheduler_left_behind_has_no_effect():
    """`from_config` keeps what the scheduler before it was given, and save_pretrained writes it."""
    fields = {"_class_name": "DPMSolverMultistepScheduler"}
    left = {"clip_sample": True, "variance_type": "fixed_large", "set_alpha_to_one": False}
    assert schedulers.ours(fields | left) == schedulers.ours(fields)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"_class_name": "EulerDiscreteScheduler"}, "EulerDiscreteScheduler.*DDIM.*PNDM"),
        ({"_class_name": "PNDMScheduler", "trained_betas": [0.1]}, "trained_betas"),
        ({"_class_name": "PNDMScheduler", "set_alpha_to_one": None}, "set_alpha_to_one"),
        ({"_class_name": ["DDPMScheduler"]}, "_class_name"),
        ({"beta_schedule": "sigmoid"}, "sigmoid"),
        ({"prediction_type": "flow_prediction"}, "flow_prediction"),
        ({"variance_type": "learned_range"}, "variance_type.*fixed_small"),
        ({"trained_betas": [0.1]}, "trained_betas"),
        ({"thresholding": True, "sample_max_value": 2.0}, "sample_max_value: 2.0"),
        ({"thresholding": "yes"}, "clip"),
        ({"clip_sample_range": 2.0}, "clip_sample_range"),
        ({"use_karras_sigma": True}, "use_karras_sigma"),
        ({"num_train_timesteps": "many"}, "steps"),
        ({"beta_start": None}, "beta_start"),
        ({"_class_name": "DDIMScheduler", "set_alpha_to_one": "no"}, "ends_clean"),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, "solver_order"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "final_sigmas_type": "sigma_min"},
            "final_sigmas_type: 'sigma_min' is not supported, only 'zero'",
        ),
    ],
)
def test_what_our_samplers_have_no_equivalent_of_is_named(fields, named):
    with pytest.raises(InputError, match=named):
        schedulers.ours({"_class_name": "DDPMScheduler"} | fields)


def test_ddim_over_linspace_has_a_scheduler_with_its_fixed_stride_only():
    """Those timesteps lie (T - 1) / (n - 1) apart, and DDIMScheduler steps T // n down."""
    with pytest.raises(InputError, match=r"fixed_stride: False.*linspace"):
        schedulers.theirs(sampling({}, {"name": "ddim", "spacing": "linspace"}))
