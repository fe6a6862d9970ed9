# SPDX-License-Identifier: Apache-2.0
"""Runs of Stable Diffusion's pipelines: they answer as diffusers does, are trained on, and go back.

Networks are small and their weights random. Shapes: channels last for ours, second for theirs.
"""

import json
import shutil

import jax
import numpy as np
import pytest
import setups
import small_pipelines
from agreement import assert_equal_outputs, ours, theirs
from small_pipelines import LATENTS, SIZE

from contourdiff_jax import config, methods
from contourdiff_jax.errors import InputError
from contourdiff_jax.interop import tokenizer
from contourdiff_jax.interop.exporting import export
from contourdiff_jax.interop.importing import import_checkpoint
from contourdiff_jax.methods import codecs, prompts
from contourdiff_jax.methods.diffusion import NETWORK
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training import checkpoint, run

WHY = "needs the environment of `make test-parity`"
torch = pytest.importorskip("torch", reason=WHY)
diffusers = pytest.importorskip("diffusers", reason=WHY)
pytestmark = pytest.mark.parity

PROMPT = "an MR image of the brain"
OF = {"1.x": {}, "2.x in shards": {}, "ControlNet": {}, "InstructPix2Pix": {"source_preset": "ct"}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return small_pipelines.saver(tmp_path_factory)


@pytest.fixture(scope="module")
def imported(saved, tmp_path_factory):
    """case -> the run of that pipeline."""
    made = {}

    def make(case):
        if case not in made:
            made[case] = tmp_path_factory.mktemp("runs") / "run"
            images = {"preset": "mr", "spacing": 3.6, "prompt": PROMPT, **OF[case]}
            import_checkpoint(saved(case)[1], made[case], **images)
        return made[case]

    return make


@pytest.mark.parametrize("case", OF)
def test_a_run_answers_as_the_pipeline(case, saved, imported):
    """One denoising step, with what it is shown in pixels; latents, and the image of them."""
    pipeline, _ = saved(case)
    folder = imported(case)
    trained = run.load(folder)
    method = methods.build(trained, mesh=meshes.local())
    params = checkpoint.averages(folder, method.players, method.mesh)[1][NETWORK]
    codec, fixed, rng = codecs.of(trained), method.fixed, np.random.default_rng(0)
    z_t = rng.standard_normal((2, LATENTS, LATENTS, 4)).astype(np.float32)
    t = np.array([421, 421])
    edges = rng.integers(0, 2, (2, SIZE, SIZE, 1)).astype(np.float32)
    image = rng.uniform(-1, 1, (2, SIZE, SIZE, 1)).astype(np.float32)
    ones = np.ones_like(edges)
    shown = {
        "contour": np.concatenate([edges, ones], -1),
        "source": np.concatenate([image, ones], -1),
    }
    seen = codec.seen(fixed, {name: shown[name] for name in trained.config.model.conditions})
    seen |= prompts.shown(fixed, z_t.shape)
    found = jax.jit(method.network.bound(fixed))(params, z_t, t, seen)

    tokens = pipeline.tokenizer(PROMPT, padding="max_length", max_length=77, return_tensors="pt")
    colours = np.repeat(image, 3, -1)
    with torch.no_grad():
        context = pipeline.text_encoder(tokens.input_ids).last_hidden_state.expand(2, -1, -1)
        inputs, added = theirs(z_t), {}
        if "source" in seen:
            source = pipeline.vae.encode(theirs(colours)).latent_dist.mode()
            inputs = torch.cat([inputs, source], 1)
        if "contour" in seen:
            hint = theirs(np.repeat(edges, 3, -1))
            down, middle = pipeline.controlnet(
                *(inputs, torch.tensor(t), context, hint), return_dict=False
            )
            added["down_block_additional_residuals"] = down
            added["mid_block_additional_residual"] = middle
        reference = pipeline.unet(inputs, torch.tensor(t), context, **added).sample
        latents = pipeline.vae.encode(theirs(colours)).latent_dist.mode()
        scale = pipeline.vae.config.scaling_factor
        drawn = pipeline.vae.decode(theirs(z_t) / scale).sample
    assert_equal_outputs(found, ours(reference))
    assert_equal_outputs(codec.learnt(fixed, image), scale * ours(latents))
    assert_equal_outputs(codec.drawn(fixed, z_t), ours(drawn).mean(-1, keepdims=True))


@pytest.mark.parametrize("case", ["1.x", "2.x in shards", "ControlNet", "InstructPix2Pix"])
def test_what_is_exported_is_what_was_imported(case, saved, imported, tmp_path):
    """The same tensors to the bit, and a folder that diffusers loads."""
    pipeline, folder = saved(case)
    export(imported(case), tmp_path / "out", like=folder)
    again = getattr(diffusers, type(pipeline).__name__).from_pretrained(tmp_path / "out")
    for name in ("unet", "vae", "text_encoder", "controlnet"):
        before, after = (getattr(p, name, None) for p in (pipeline, again))
        assert (before is None) == (after is None)
        states = [part.state_dict() for part in (before, after) if part is not None]
        for key in states[0] if states else ():
            assert torch.equal(states[0][key], states[1][key]), key


def settings(**fields):
    chosen = config.default()
    chosen.train.update(images=4, batch=4, log=4, evaluate=0, sample=0, checkpoint=0)
    chosen.update_from_flattened_dict(fields)
    return chosen


@pytest.fixture(scope="module")
def store(phantom_data, tmp_path_factory):
    """Phantoms in the size of the pipelines, in pairs too."""
    from contourdiff_jax.data.prepare import prepare
    from contourdiff_jax.data.store import open_store

    out = tmp_path_factory.mktemp("store") / "mr"
    prepare(phantom_data / "train_mr", out, "mr", spacing=3.6, size=SIZE, validation=0)
    return setups.paired(open_store(out), out.with_name("paired"))


def test_a_pipeline_is_the_beginning_of_an_instructed_run(
    saved, imported, store, phantom_data, tmp_path
):
    """With its codec, its prompt, its network and its guidance."""
    base, instructed = imported("1.x"), tmp_path / "run"
    ours = settings(**{"model.conditions": ("source",), "train.learning_rate": 0.0})
    assert methods.train(ours, store, instructed, init=base)
    trained = run.load(instructed)
    assert trained.prompt == run.load(base).prompt and trained.codec == run.load(base).codec
    assert trained.config.sampler.prompt_guidance == 7.5
    done = setups.translate(
        *(instructed, phantom_data / "test_ct", tmp_path / "translated"),
        preset="ct",
        sampler={"steps": 2, "prompt_guidance": 1.0},
    ).done
    assert len(done) == 2
    export(instructed, tmp_path / "out", like=saved("1.x")[1])
    again = diffusers.StableDiffusionInstructPix2PixPipeline.from_pretrained(tmp_path / "out")
    before = saved("1.x")[0].unet.state_dict()
    for name, tensor in again.unet.state_dict().items():
        kept = tensor[:, : before[name].shape[1]] if name == "conv_in.weight" else tensor
        np.testing.assert_allclose(kept.numpy(), before[name].numpy(), atol=1e-6, err_msg=name)
    assert not again.unet.conv_in.weight[:, 4:].any()


def test_a_pipeline_is_the_base_of_a_controlnet(saved, imported, store, phantom_data, tmp_path):
    base, branched = imported("1.x"), tmp_path / "run"
    ours = settings(method="controlnet", **{"controlnet.channels": (4, 8, 16)})
    ours.controlnet.image_channels = 3
    assert methods.train(ours, store, branched, base=base)
    done = setups.translate(
        *(branched, phantom_data / "test_ct", tmp_path / "translated"),
        preset="ct",
        sampler={"steps": 2, "prompt_guidance": 1.0, "control": 0.5},
    ).done
    assert len(done) == 2
    export(branched, tmp_path / "out", like=saved("1.x")[1])
    again = diffusers.StableDiffusionControlNetPipeline.from_pretrained(tmp_path / "out")
    before = saved("1.x")[0].unet.state_dict()
    for name, tensor in again.unet.state_dict().items():
        assert torch.equal(tensor, before[name]), name


# ----------------------------------------------------------------------------------------------
# Bad input
# ----------------------------------------------------------------------------------------------


def changed(folder, out, edit):
    """A copy of a pipeline's folder with one of its JSON files changed."""
    shutil.copytree(folder, out)
    name, fields = edit
    path = out / name
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return out


@pytest.mark.parametrize(
    ("case", "how", "words"),
    [
        ("1.x", {"spacing": None}, "--spacing is required"),
        ("1.x", {"prompt": "mr " * 99}, "101 tokens, .* where 77"),
        ("1.x", {"source_preset": "ct"}, "--source_preset and InstructPix2Pix"),
        ("InstructPix2Pix", {"source_preset": None}, "--source_preset and InstructPix2Pix"),
        ("1.x", {"size": 30}, "a latent of the autoencoder stands for 4 px"),
    ],
)
def test_what_cannot_be_imported_is_one_line(case, how, words, saved, tmp_path):
    images = {"preset": "mr", "spacing": 3.6, "prompt": PROMPT, **OF[case]}
    with pytest.raises(InputError, match=words) as error:
        import_checkpoint(saved(case)[1], tmp_path / "run", **images | how)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_missing_part_and_an_unknown_option_are_named(saved, tmp_path):
    _, folder = saved("1.x")
    for name, edit, words in (
        ("option", ("unet/config.json", {"class_embed_type": "timestep"}), "class_embed_type"),
        ("part", ("model_index.json", {"vae": [None, None]}), "vae"),
        ("channels", ("vae/config.json", {"latent_channels": 3}), "latent"),
    ):
        place = changed(folder, tmp_path / name, edit)
        with pytest.raises(InputError, match=words) as error:
            import_checkpoint(place, tmp_path / "run", preset="mr", spacing=3.6)
        assert "\n" not in str(error.value)


def test_an_export_needs_the_pipeline_that_a_run_came_from(imported, trained, saved, tmp_path):
    with pytest.raises(InputError, match="--like"):
        export(imported("1.x"), tmp_path / "out")
    with pytest.raises(InputError, match=r"--like: .* has no text encoder"):
        export(trained, tmp_path / "out", like=saved("1.x")[1])


def test_no_words_are_the_tokens_of_nothing(saved, imported):
    """The first row of prompt.npy is what the encoder makes of an empty prompt."""
    pipeline, folder = saved("1.x")
    empty = tokenizer.load(folder / "tokenizer")("")
    with torch.no_grad():
        reference = pipeline.text_encoder(torch.tensor(empty)[None].long()).last_hidden_state
    array = np.load(imported("1.x") / "prompt.npy")
    np.testing.assert_allclose(array[0], reference.numpy()[0], atol=1e-4)
