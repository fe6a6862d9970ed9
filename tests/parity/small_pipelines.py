# SPDX-License-Identifier: Apache-2.0
"""Small pipelines of Stable Diffusion with random weights, as diffusers saves them.

None of a ControlNet's zeros is 0.
"""

import pytest
import small_tokenizer
from agreement import shaken

from contourdiff_jax.interop import tokenizer
from contourdiff_jax.interop.pipelines import CONTROLLED, INSTRUCTED, PLAIN

WHY = "needs the environment of `make test-parity`"
torch = pytest.importorskip("torch", reason=WHY)
diffusers = pytest.importorskip("diffusers", reason=WHY)
transformers = pytest.importorskip("transformers", reason=WHY)

SIZE, LATENTS = 64, 16  # pixels a side, of images and of latents
NARROW = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "cross_attention_dim": 32,
}
FIRST = {"attention_head_dim": 8}
SECOND = {"attention_head_dim": [2, 4], "use_linear_projection": True, "upcast_attention": True}
TEXT = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "max_position_embeddings": 77},
}
CASES = {  # kind, version, options of save_pretrained
    "1.x": (PLAIN, 1, {}),
    "2.x in shards": (PLAIN, 2, {"max_shard_size": "400KB"}),
    "ControlNet": (CONTROLLED, 1, {}),
    "ControlNet in half precision": (CONTROLLED, 2, {"variant": "fp16"}),
    "InstructPix2Pix": (INSTRUCTED, 1, {}),
    "InstructPix2Pix in half precision, in shards": (
        *(INSTRUCTED, 1),
        {"variant": "fp16", "max_shard_size": "200KB"},
    ),
}
EXACT = [name for name, (*_, options) in CASES.items() if "variant" not in options]


def pipeline_of(kind, version, words):
    """A pipeline of theirs with random weights, and a tokenizer of that folder."""
    torch.manual_seed(0)
    of_version = FIRST if version == 1 else SECOND
    tokens = transformers.CLIPTokenizer.from_pretrained(words)
    text = transformers.CLIPTextConfig(
        vocab_size=len(tokens), hidden_act="quick_gelu" if version == 1 else "gelu", **TEXT
    )
    text_encoder = transformers.CLIPTextModel(text).eval()
    with torch.no_grad():
        for parameter in text_encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    unet = diffusers.UNet2DConditionModel(
        in_channels=8 if kind == INSTRUCTED else 4,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        sample_size=LATENTS,
        **NARROW,
        **of_version,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        sample_size=SIZE,
    )
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    ending = {"steps_offset": 1, "set_alpha_to_one": False}
    predicted = {"prediction_type": "epsilon" if version == 1 else "v_prediction"}
    scheduler = diffusers.PNDMScheduler(**schedule, **ending, **predicted, skip_prk_steps=True)
    others = {"controlnet": branch_of(of_version)} if kind == CONTROLLED else {}
    return getattr(diffusers, kind)(
        vae=shaken(vae),
        text_encoder=text_encoder,
        tokenizer=tokens,
        unet=shaken(unet),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **others,
    )


def branch_of(of_version):
    branch = diffusers.ControlNetModel(
        conditioning_embedding_out_channels=(4, 8, 16), **NARROW, **of_version
    )
    with torch.no_grad():
        for number, parameter in enumerate(shaken(branch).parameters()):
            if parameter.ndim > 1 and not parameter.any():  # a convolution that is zero at first
                parameter.normal_(std=0.1, generator=torch.manual_seed(number))
    return branch


def saver(tmp_path_factory):
    """case -> (their pipeline, in single precision, and the folder that it was saved to)."""
    made = {}

    def save(case):
        if case not in made:
            kind, version, options = CASES[case]
            fill = tokenizer.END if version == 1 else "!"
            words = small_tokenizer.save(tmp_path_factory.mktemp("words"), fill=fill)
            folder = tmp_path_factory.mktemp("pipeline")
            pipeline = pipeline_of(kind, version, words)
            pipeline.set_progress_bar_config(disable=True)
            if "variant" in options:
                pipeline.to(torch.float16)
            pipeline.save_pretrained(folder, **options)
            made[case] = pipeline.to(torch.float32), folder
        return made[case]

    return save
