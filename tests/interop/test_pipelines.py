# SPDX-License-Identifier: Apache-2.0
"""Folders of Stable Diffusion: there and back to the bit, and all that can be wrong.

That diffusers loads them, and draws the same, is for tests/parity to say.
"""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from contourdiff_jax.errors import InputError
from contourdiff_jax.interop import pipelines
from contourdiff_jax.interop.autoencoder_kl import Coder
from contourdiff_jax.interop.pipelines import CONTROLLED, INSTRUCTED, PLAIN
from contourdiff_jax.interop.unet2d_condition import Branch, Network
from contourdiff_jax.models.clip import TextConfig

MODEL = {
    **{"channels": (8, 16), "layers": 1, "attention": (True, False), "groups": 4},
    **{"context": 8, "heads": (2,), "resample_convolution": True},
}
UNET = Network(MODEL, inputs=4, outputs=4, linear=False)
VAE = Coder({"image_channels": 3, "channels": (8, 8, 8), "groups": 4, "attention": True}, 0.18215)
BRANCH = Branch(MODEL, inputs=4, hint=1, hint_channels=(2, 3, 4), linear=False)
TEXT = TextConfig(vocabulary=11, width=8, layers=1, heads=2, mlp=12)
CONFIGS = {"unet": UNET, "vae": VAE, "text_encoder": TEXT}
PIPELINES = {
    PLAIN: CONFIGS,
    CONTROLLED: CONFIGS | {"controlnet": BRANCH},
    INSTRUCTED: CONFIGS | {"unet": UNET._replace(inputs=8, linear=True)},
}
SCHEDULER = {
    **{"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "steps_offset": 1},
    **{"beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False, "set_alpha_to_one": False},
}
WEIGHTS = "diffusion_pytorch_model.safetensors"
MIDDLE = "encoder.mid_block.attentions.0"


def random(config, name):
    """Random parameters of a network."""
    init = pipelines.KINDS[name].network(config).init
    rng = np.random.default_rng(len(name))
    return jax.tree.map(
        lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32),
        jax.eval_shape(init, jax.random.key(0)),
    )


def parts_of(configs):
    return {name: (config, random(config, name)) for name, config in configs.items()}


def write(folder, kind, parts, **options):
    pipelines.write(folder, kind, parts, scheduler=SCHEDULER, size=32, **options)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A tokenizer's folder, with a file that is none of its own."""
    folder = tmp_path_factory.mktemp("words")
    for name in ("vocab.json", "merges.txt", "notes.txt"):
        (folder / name).write_bytes(b"\xef\xbb\xbf of " + name.encode())
    return folder


@pytest.fixture(scope="module", params=PIPELINES)
def made(request, words, tmp_path_factory):
    """(kind, parts, folder) of what was written."""
    folder = tmp_path_factory.mktemp("pipeline")
    parts = parts_of(PIPELINES[request.param])
    write(folder, request.param, parts, tokenizer_folder=words)
    return request.param, parts, folder


@pytest.fixture(scope="module")
def written(words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("controlled")
    write(folder, CONTROLLED, parts_of(PIPELINES[CONTROLLED]), tokenizer_folder=words)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    """A pipeline with a ControlNet, to spoil."""
    return shutil.copytree(written, tmp_path / "pipeline")


def rewrite(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def rewrite_tensors(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def params_of(folder):
    read = pipelines.read(folder)
    parts = {name: getattr(read, name) for name in pipelines.KINDS}
    return {name: part.params() for name, part in parts.items() if part is not None}


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


# ----------------------------------------------------------------------------------------------
# There and back
# ----------------------------------------------------------------------------------------------


def test_what_was_written_is_read_to_the_bit(made, words):
    kind, parts, folder = made
    read = pipelines.read(folder)
    assert (read.kind, read.scheduler, read.passed_over) == (kind, SCHEDULER, ())
    for name, (config, _) in parts.items():
        found = getattr(read, name).config
        if name == "vae":
            assert found.scale == config.scale
            found, config = found.section, found.section | config.section
        elif name != "text_encoder":
            assert found._replace(model={}) == config._replace(model={})
            found, config = found.model, found.model | config.model
        assert found == config
    assert_same({name: params for name, (_, params) in parts.items()}, params_of(folder))
    assert read.tokenizer == folder / "tokenizer"
    assert {path.name for path in read.tokenizer.iterdir()} == {"vocab.json", "merges.txt"}
    for path in read.tokenizer.iterdir():
        assert path.read_bytes() == (words / path.name).read_bytes()


def test_an_export_of_an_import_has_the_same_files(made, tmp_path):
    """To the byte, weights and configurations."""
    kind, parts, folder = made
    read = pipelines.read(folder)
    again = {name: (getattr(read, name).config, getattr(read, name).params()) for name in parts}
    write(tmp_path, kind, again, tokenizer_folder=read.tokenizer)
    files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    for file in files:
        assert (tmp_path / file).read_bytes() == (folder / file).read_bytes(), file


def test_parameters_are_read_when_they_are_asked_for(folder):
    path = folder / "vae" / WEIGHTS
    rewrite_tensors(path, lambda t: t["encoder.conv_in.bias"].fill(np.nan))
    read = pipelines.read(folder)
    read.unet.params()
    with pytest.raises(InputError, match=rf"{path}: encoder\.conv_in\.bias .*not finite$"):
        read.vae.params()


def test_a_part_can_be_read_alone(folder):
    """As ControlNets are saved."""
    alone = shutil.move(folder / "controlnet", folder.parent / "alone")
    part = pipelines.read_part(alone, "controlnet")
    assert (part.config.hint, part.config.hint_channels) == (1, (2, 3, 4))
    assert_same(part.params(), random(BRANCH, "controlnet"))


def test_prompts_may_be_kept_without_what_reads_them(tmp_path):
    configs = {name: CONFIGS[name] for name in ("unet", "vae")}
    write(tmp_path, PLAIN, parts_of(configs))
    read = pipelines.read(tmp_path)
    assert (read.text_encoder, read.controlnet, read.tokenizer) == (None, None, None)


def test_what_is_not_needed_is_passed_over_by_name(folder):
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    rewrite(folder / pipelines.INDEX, safety_checker=checker)
    assert pipelines.read(folder).passed_over == ("safety_checker",)


def test_early_names_of_attention_are_read(folder):
    before = params_of(folder)

    def rename(tensors):
        for today, early in (("to_q", "query"), ("to_k", "key"), ("to_v", "value")):
            for kind in ("weight", "bias"):
                tensors[f"{MIDDLE}.{early}.{kind}"] = tensors.pop(f"{MIDDLE}.{today}.{kind}")
        tensors[f"{MIDDLE}.proj_attn.weight"] = tensors.pop(f"{MIDDLE}.to_out.0.weight")

    rewrite_tensors(folder / "vae" / WEIGHTS, rename)
    assert_same(params_of(folder), before)


def test_half_precision_is_read_where_there_is_no_other(folder):
    before = params_of(folder)["unet"]
    path = folder / "unet" / WEIGHTS
    half = {name: tensor.astype(np.float16) for name, tensor in load_file(path).items()}
    save_file(half, folder / "unet" / WEIGHTS.replace(".", ".fp16."))
    assert_same(params_of(folder)["unet"], before)
    path.unlink()
    rounded = jax.tree.map(lambda a: np.asarray(a).astype(np.float16).astype(np.float32), before)
    assert_same(params_of(folder)["unet"], rounded)


# ----------------------------------------------------------------------------------------------
# What can be wrong
# ----------------------------------------------------------------------------------------------


@pytest.fixture
def refused(folder):
    """Holds that a folder is refused in one line, with that file and these words."""

    def check(file, named, *, path=None):
        with pytest.raises(InputError) as error:
            pipelines.read(path or folder)
        message = str(error.value)
        assert "\n" not in message
        assert re.match(rf"{re.escape(str(folder / file))}: .*{named}", message), message

    return check


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"_class_name": "StableDiffusionXLPipeline"}, "_class_name: .*XL.*StableDiffusionPipe"),
        ({"_class_name": ["StableDiffusionPipeline"]}, "_class_name"),
        ({"vae": [None, None]}, f"vae: missing, and a {CONTROLLED} needs it"),
        ({"scheduler": [None, None]}, "scheduler: missing"),
        ({"controlnet": [None, None]}, "controlnet: missing"),
        ({"_class_name": PLAIN}, f"controlnet: not a component of a {PLAIN}"),
        ({"controlnet": ["diffusers", "MultiControlNetModel"]}, "controlnet: .*Multi.*ControlNetM"),
        ({"unet": ["diffusers", "UNet2DModel"]}, "unet: .*only UNet2DConditionModel"),
        ({"tokenizer": ["transformers", "T5Tokenizer"]}, "tokenizer: .*T5.*CLIPTokenizer"),
        ({"transformer": ["diffusers", "Transformer"]}, "transformer: not a component"),
        ({"unet": ["diffusers"]}, "unet: .*list of 2"),
        ({"unet": [1, 2]}, "unet.*a text"),
    ],
)
def test_pipelines_that_are_not_ours_are_named(refused, folder, fields, named):
    rewrite(folder / pipelines.INDEX, **fields)
    refused(pipelines.INDEX, named)


@pytest.mark.parametrize(
    ("file", "fields", "named"),
    [
        ("unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type"),
        ("unet/config.json", {"rotary": True}, "rotary"),
        ("unet/config.json", {"norm_num_groups": 3}, "8 is not a multiple"),
        ("vae/config.json", {"shift_factor": 0.1}, "shift_factor"),
        ("vae/config.json", {"norm_num_groups": 3}, "8 is not a multiple"),
        ("controlnet/config.json", {"global_pool_conditions": True}, "global_pool_conditions"),
        ("text_encoder/config.json", {"hidden_act": "relu"}, "hidden_act"),
        ("scheduler/scheduler_config.json", {"_class_name": "Euler"}, "_class_name: 'Euler'"),
        ("scheduler/scheduler_config.json", {"beta_end": 2}, "beta_last|beta_end"),
        # What does not fit the others
        ("unet/config.json", {"out_channels": 3}, "out_channels: 3, .*latent_channels.* 4$"),
        ("unet/config.json", {"in_channels": 9}, "in_channels: 9, .* 4$"),
        ("controlnet/config.json", {"cross_attention_dim": 16}, "cross.*dim: 16, .* 8$"),
        ("controlnet/config.json", {"in_channels": 3}, "in_channels: 3"),
        ("controlnet/config.json", {"layers_per_block": 2}, "layers_per_block: 2, .* 1$"),
        (
            "controlnet/config.json",
            {"conditioning_embedding_out_channels": [4, 4]},
            "conditioning_embedding_out_channels: .*2 px wide.*4$",
        ),
        ("text_encoder/config.json", {"hidden_size": 6}, "hidden_size: 6, .*unet.* 8$"),
        ("text_encoder/config.json", {"max_position_embeddings": 7}, "7, .*77 tokens"),
    ],
)
def test_settings_that_are_not_ours_or_do_not_fit_are_named(refused, folder, file, fields, named):
    rewrite(folder / file, **fields)
    refused(file, named)


EXPECTED = "but config.json says"


@pytest.mark.parametrize(
    ("name", "change", "file", "named"),
    [
        ("unet", lambda t: t.pop("conv_in.bias"), "unet", r"conv_in\.bias is missing, one of 1"),
        ("vae", lambda t: t.pop("quant_conv.bias"), "vae", r"quant_conv\.bias is missing"),
        (
            "controlnet",
            lambda t: t.update(new=t["conv_in.bias"]),
            "controlnet",
            "new is unexpected, one of 1",
        ),
        (
            "unet",
            lambda t: t.update({"conv_in.bias": np.zeros(3, np.float32)}),
            f"unet/{WEIGHTS}",
            rf"conv_in\.bias has shape \(3,\), {EXPECTED} \(8,\)",
        ),
        (
            "text_encoder",
            lambda t: t.pop("text_model.final_layer_norm.bias"),
            "text_encoder",
            r"text_model\.final_layer_norm\.bias is missing",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(refused, folder, name, change, file, named):
    weights = "model.safetensors" if name == "text_encoder" else WEIGHTS
    rewrite_tensors(folder / name / weights, change)
    refused(file, named)


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("vae/config.json", "cannot be read"),
        ("scheduler/scheduler_config.json", "cannot be read"),
        (f"unet/{WEIGHTS}", f"holds no {WEIGHTS}"),
        ("text_encoder/model.safetensors", "holds no model.safetensors"),
    ],
)
def test_files_that_are_missing_are_named(refused, folder, file, named):
    path = folder / file
    path.unlink()
    refused(path.parent if path.suffix == ".safetensors" else path, named)


def test_a_tokenizer_that_is_missing_is_named(refused, folder):
    shutil.rmtree(folder / "tokenizer")
    refused("tokenizer", "is not there")


def test_a_folder_without_a_pipeline_is_named(refused, folder):
    refused("unet", "holds no model_index.json", path=folder / "unet")


@pytest.mark.parametrize(
    ("name", "kind"), [("vae", "AutoencoderKL"), ("text_encoder", "CLIPTextModel")]
)
def test_pickles_are_refused_with_the_line_that_converts_them(refused, folder, name, kind):
    (path,) = (folder / name).glob("*.safetensors")
    path.rename(path.with_suffix(".bin"))
    refused(path.with_suffix(".bin"), f"pickle.* import {kind} as M")


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        ("StableDiffusionXLPipeline", {}, "_class_name: .*XL"),
        (CONTROLLED, {}, "controlnet: missing"),
        (PLAIN, {"controlnet": BRANCH}, "controlnet: not a component"),
        (INSTRUCTED, {}, "unet: in_channels: 4, .* 8$"),
        (PLAIN, {"vae": Coder(VAE.section | {"latents": 3}, 1.0)}, "unet: out_channels: 4, .* 3$"),
        (PLAIN, {"text_encoder": TextConfig(width=6, heads=2)}, "text_encoder: hidden_size: 6"),
    ],
)
def test_parts_that_make_no_pipeline_are_not_written(kind, changes, named, tmp_path):
    parts = {name: (config, {}) for name, config in (CONFIGS | changes).items()}
    with pytest.raises(InputError, match=f"^{named}"):
        write(tmp_path, kind, parts)
    assert not any(tmp_path.iterdir())


def test_an_autoencoder_that_diffusers_has_not_is_not_written(tmp_path):
    config = Coder(VAE.section | {"epsilon": 1e-5}, VAE.scale)
    with pytest.raises(InputError, match=r"config\.autoencoder\.epsilon: 1e-05"):
        write(tmp_path, PLAIN, parts_of(CONFIGS | {"vae": config}))
    assert not any(tmp_path.iterdir())
