# SPDX-License-Identifier: Apache-2.0
"""Folders of Stable Diffusion against diffusers' pipelines: what they save is read, what is written
they load, and a prompt is drawn to the same latents.

Networks are small and their weights random.

Shapes: channels last for ours, second for theirs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_pipelines
from agreement import assert_equal_outputs, ours, theirs
from small_pipelines import CASES, EXACT, LATENTS, SIZE

from contourdiff_jax import config as configuration
from contourdiff_jax.diffusion import guidance, samplers, schedules
from contourdiff_jax.interop import pipelines, schedulers, tokenizer

WHY = "needs the environment of `make test-parity`"
torch = pytest.importorskip("torch", reason=WHY)
diffusers = pytest.importorskip("diffusers", reason=WHY)
transformers = pytest.importorskip("transformers", reason=WHY)
pytestmark = pytest.mark.parity

PROMPT, STEPS, GUIDANCE = "an MR image of the brain", 10, 7.5


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return small_pipelines.saver(tmp_path_factory)


def random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def numbers_of(read, prompt):
    """(tokens of a prompt [1, 77], what the text encoder makes of them)."""
    ids = tokenizer.load(read.tokenizer)(prompt)[None]
    return ids, read.text_encoder.network.encode(read.text_encoder.params(), ids)


# ----------------------------------------------------------------------------------------------
# What they save
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_what_is_read_answers_the_same(case, saved):
    pipeline, folder = saved(case)
    read = pipelines.read(folder)
    assert read.kind == CASES[case][0]
    assert read.passed_over == ()

    ids, context = numbers_of(read, PROMPT)
    padded = pipeline.tokenizer(PROMPT, padding="max_length", max_length=77).input_ids
    np.testing.assert_array_equal(ids[0], padded)
    seen = torch.tensor(np.array(context))
    with torch.no_grad():
        reference = pipeline.text_encoder(torch.tensor(ids)).last_hidden_state
    assert_equal_outputs(context, reference.numpy())

    vae, params = read.vae.network, read.vae.params()
    images, latents = random(1, 1, SIZE, SIZE, 3), random(2, 1, LATENTS, LATENTS, 4)
    with torch.no_grad():
        posterior = pipeline.vae.encode(theirs(images)).latent_dist
        drawn = pipeline.vae.decode(theirs(latents)).sample
    mean, log_variance = jax.jit(vae.encode)(params, images)
    assert_equal_outputs(mean, ours(posterior.mean))
    assert_equal_outputs(log_variance, ours(posterior.logvar))
    assert_equal_outputs(jax.jit(vae.decode)(params, latents), ours(drawn))
    assert read.vae.config.scale == pipeline.vae.config.scaling_factor

    z_t, t = random(3, 1, LATENTS, LATENTS, read.unet.config.inputs), np.array([421])
    given, residuals, added = (theirs(z_t), torch.tensor(t), seen), None, {}
    if read.controlnet is not None:
        hint = np.random.default_rng(4).random((1, SIZE, SIZE, 3), np.float32)
        answer = jax.jit(read.controlnet.network.apply)
        residuals = answer(read.controlnet.params(), z_t, t, hint, context)
        with torch.no_grad():
            down, middle = pipeline.controlnet(*given, theirs(hint), return_dict=False)
        for found, expected in zip(jax.tree.leaves(residuals), [*down, middle], strict=True):
            assert_equal_outputs(found, ours(expected))
        added["down_block_additional_residuals"] = down
        added["mid_block_additional_residual"] = middle
    answer = jax.jit(read.unet.network.apply)
    found = answer(read.unet.params(), z_t, t, {}, context=context, residuals=residuals)
    with torch.no_grad():
        assert_equal_outputs(found, ours(pipeline.unet(*given, **added).sample))


# ----------------------------------------------------------------------------------------------
# What is drawn
# ----------------------------------------------------------------------------------------------


def drawn(read, z_T, shown, scales, predict):
    """Latents that a prompt is drawn to with DDIM.

    Args:
      shown: {name: what the network is shown}, of which "text" is 1 for a prompt.
      scales: of their guidance.
      predict: (unet's apply, its parameters, z_t, t, shown, context) -> prediction.
    """
    sections = schedulers.ours(read.scheduler)
    config = configuration.from_dict(sections | {"sampler": sections["sampler"] | {"steps": STEPS}})
    (_, nothing), (_, context) = numbers_of(read, ""), numbers_of(read, PROMPT)
    apply = read.unet.network.apply

    def told(params, z_t, t, shown):
        # A prompt that is missing is an empty one.
        given = shown["text"].reshape(-1, 1, 1)
        return predict(apply, params, z_t, t, shown, jnp.where(given == 1, context, nothing))

    schedule = schedules.build(config.diffusion)

    @jax.jit
    def draw(params, z_T):
        denoise = guidance.denoiser(
            told, params, schedule, config.diffusion.prediction, shown, scales=scales
        )
        t = samplers.timesteps(config.sampler, schedule.steps)
        return samplers.build(config.sampler, t)(denoise, schedule, z_T, None)

    return draw(read.unet.params(), z_T)


TOLD = np.ones((1, 1, 1, 1), np.float32)


def of_ddim(pipeline):
    """With the scheduler that stands in for its own, which does not clip either."""
    fields = pipeline.scheduler.config
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(fields, clip_sample=False)
    return pipeline


@pytest.mark.parametrize("case", ["ControlNet", "ControlNet in half precision"])
def test_a_controlled_prompt_is_drawn_to_the_same_latents(case, saved):
    """Of networks that predict eps, and v."""
    pipeline, folder = saved(case)
    read = pipelines.read(folder)
    z_T = random(5, 1, LATENTS, LATENTS, 4)
    hint = np.random.default_rng(6).random((1, SIZE, SIZE, 3), np.float32)
    branch = read.controlnet.params()

    def predict(apply, params, z_t, t, shown, context):
        hints = jnp.repeat(hint, len(z_t), 0)
        residuals = read.controlnet.network.apply(branch, z_t, t, hints, context)
        return apply(params, z_t, t, {}, context=context, residuals=residuals)

    found = drawn(read, z_T, {"text": TOLD}, {"text": GUIDANCE}, predict)
    expected = of_ddim(pipeline)(
        PROMPT,
        image=theirs(hint),
        latents=theirs(z_T),
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        output_type="latent",
    ).images
    assert_equal_outputs(found, ours(expected))


def test_an_instruction_is_drawn_to_the_same_latents(saved):
    """e(0, 0) + s_I (e(I, 0) - e(0, 0)) + s_T (e(I, T) - e(I, 0)), as Brooks et al. 2023 have it.

    The latents of the source are not scaled, and zero where it is missing.
    """
    pipeline, folder = saved("InstructPix2Pix")
    read = pipelines.read(folder)
    z_T = random(7, 1, LATENTS, LATENTS, 4)
    image = np.random.default_rng(8).random((1, SIZE, SIZE, 3), np.float32)
    source, _ = read.vae.network.encode(read.vae.params(), 2 * image - 1)

    def predict(apply, params, z_t, t, shown, context):
        beside = jnp.concatenate([z_t, shown["source"]], -1)
        return apply(params, beside, t, {}, context=context)

    scales = {"source": 1.5, "text": GUIDANCE}
    found = drawn(read, z_T, {"source": source, "text": TOLD}, scales, predict)
    expected = of_ddim(pipeline)(
        PROMPT,
        image=theirs(image),
        latents=theirs(z_T),
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        image_guidance_scale=1.5,
        output_type="latent",
    ).images
    assert_equal_outputs(found, ours(expected))


# ----------------------------------------------------------------------------------------------
# What they load
# ----------------------------------------------------------------------------------------------


def parts_of(read):
    parts = {name: getattr(read, name) for name in pipelines.KINDS}
    return {n: (part.config, part.params()) for n, part in parts.items() if part is not None}


def rewritten(read, folder, parts=None, **options):
    pipelines.write(
        folder,
        read.kind,
        parts or parts_of(read),
        scheduler=read.scheduler,
        size=SIZE,
        **options,
    )


def settings_of(config) -> dict:
    """What makes a network or a scheduler; how it computes in half precision is not kept."""
    fields = config if isinstance(config, dict) else config.to_diff_dict()
    listed = {n: list(v) if isinstance(v, tuple) else v for n, v in fields.items()}
    own = {"upcast_attention", "dtype", "transformers_version"}
    return {n: v for n, v in listed.items() if n not in own and not n.startswith("_")}


@pytest.mark.parametrize("case", EXACT)
def test_what_is_written_they_load_to_the_bit(case, saved, tmp_path):
    pipeline, folder = saved(case)
    read = pipelines.read(folder)
    rewritten(read, tmp_path, tokenizer_folder=read.tokenizer)
    again = getattr(diffusers, read.kind).from_pretrained(tmp_path)
    for name in parts_of(read):
        before, after = (getattr(p, name).state_dict() for p in (pipeline, again))
        assert before.keys() == after.keys()
        for key, tensor in before.items():
            assert torch.equal(tensor, after[key]), key
        said, says = (settings_of(getattr(p, name).config) for p in (pipeline, again))
        assert said == says
    assert isinstance(again.scheduler, diffusers.PNDMScheduler)
    assert pipelines.read(tmp_path).scheduler == read.scheduler
    assert again.tokenizer(PROMPT).input_ids == pipeline.tokenizer(PROMPT).input_ids
    for path in read.tokenizer.iterdir():
        assert (tmp_path / "tokenizer" / path.name).read_bytes() == path.read_bytes()
    jax.tree.map(np.testing.assert_array_equal, parts_of(read), parts_of(pipelines.read(tmp_path)))


def test_a_pipeline_without_prompts_is_loaded_as_it_is_told_to_be(saved, tmp_path):
    pipeline, folder = saved("ControlNet")
    read = pipelines.read(folder)
    parts = parts_of(read)
    del parts["text_encoder"]
    rewritten(read, tmp_path, parts)
    assert pipelines.read(tmp_path).text_encoder is None
    again = diffusers.StableDiffusionControlNetPipeline.from_pretrained(
        tmp_path, text_encoder=None, tokenizer=None
    )
    for key, tensor in pipeline.controlnet.state_dict().items():
        assert torch.equal(tensor, again.controlnet.state_dict()[key]), key
