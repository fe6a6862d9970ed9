# SPDX-License-Identifier: Apache-2.0
"""Our U-Net against diffusers' UNet2DModel: the same answers and gradients, both ways.

Weights are random, and no scale 1 and no bias 0, so that every one counts.

Shapes: B batch, H rows, W columns; channels last for ours, second for theirs.
"""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import setups
from agreement import assert_equal_gradients, assert_equal_outputs, ours, shaken, theirs

from contourdiff_jax import config, models
from contourdiff_jax.contours import settings as contour_settings
from contourdiff_jax.data import examples
from contourdiff_jax.errors import InputError
from contourdiff_jax.interop import schedulers
from contourdiff_jax.interop import unet2d as names
from contourdiff_jax.interop.exporting import export
from contourdiff_jax.interop.importing import import_checkpoint
from contourdiff_jax.interop.parameters import of_unet2d
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training import checkpoint, run
from contourdiff_jax.volumes import intensity
from contourdiff_jax.volumes.grid import Grid

WHY = "needs the environment of `make test-parity`"
torch = pytest.importorskip("torch", reason=WHY)
diffusers = pytest.importorskip("diffusers", reason=WHY)
pytestmark = pytest.mark.parity

BATCH, SHAPE = 2, (32, 64)
IMAGES = {"preset": "mr", "spacing": 1.0, "size": 64}


def topology(down: str, up: str) -> dict:
    """Blocks from one letter each: D without and A with attention."""
    kinds = {"D": "", "A": "Attn"}
    return {
        "down_block_types": [f"{kinds[k]}DownBlock2D" for k in down],
        "up_block_types": [f"{kinds[k]}UpBlock2D" for k in up],
    }


PUBLISHED = {
    "sample_size": 256,
    "in_channels": 2,
    "out_channels": 1,
    "layers_per_block": 2,
    "block_out_channels": (128, 128, 256, 256, 512, 512),
    **topology("DDDDAD", "DADDDD"),
}
NARROW = PUBLISHED | {"block_out_channels": (64, 64, 96, 96, 128, 128)}
NETWORKS = {
    "published, narrow": NARROW,
    "published, narrow, with neighbour": NARROW | {"in_channels": 3},
    "as of DDPM": {
        "block_out_channels": (16, 32, 48),
        **topology("DAD", "DAA"),
        "attention_head_dim": None,
        "norm_num_groups": 8,
        "norm_eps": 1e-6,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
    },
    "without attention": {
        "block_out_channels": (24, 36),
        **topology("DD", "DD"),
        "add_attention": False,
        "layers_per_block": 3,
        "norm_num_groups": 12,
        "norm_eps": 1e-3,
        "center_input_sample": True,
        "act_fn": "swish",
    },
    "time scales and shifts": {
        "block_out_channels": (16, 32, 32),
        **topology("DDA", "ADD"),
        "attention_head_dim": 16,
        "norm_num_groups": 4,
        "resnet_time_scale_shift": "scale_shift",
        "mid_block_scale_factor": 1.4,
        "layers_per_block": 1,
    },
    "time scales and shifts, all is normalised": {
        "block_out_channels": (16, 32),
        **topology("AA", "AA"),
        "norm_num_groups": 8,
        "attn_norm_num_groups": 8,
        "resnet_time_scale_shift": "scale_shift",
        "freq_shift": 1,
        "dropout": 0.3,
    },
}


def network(fields):
    """A UNet2DModel with random parameters, of 2 -> 1 channels unless said."""
    torch.manual_seed(0)
    return shaken(diffusers.UNet2DModel(**({"in_channels": 2, "out_channels": 1} | fields)))


def inputs(conditions):
    """z_t [B, H, W, 1], t [B] and the conditions of ours, and all channels as of theirs."""
    rng = np.random.default_rng(1)
    z_t = rng.normal(size=(BATCH, *SHAPE, 1)).astype(np.float32)
    t = np.array([3, 997])
    contour = (rng.random((BATCH, *SHAPE)) < 0.1).astype(np.float32)
    neighbour = rng.uniform(-1, 1, (BATCH, *SHAPE)).astype(np.float32)
    values = {"contour": contour, "neighbour": neighbour}
    condition = {name: examples.given(values[name]) for name in conditions}
    channels = np.concatenate([z_t, *(values[name][..., None] for name in conditions)], -1)
    return z_t, t, condition, channels


def loaded(folder):
    """(the `model` section, params, compiled apply) of a run."""
    section = run.load(folder).config.model
    model = models.build(section)
    one = meshes.make(config.default().mesh)
    return (
        section,
        checkpoint.averages(folder, setups.players(model.init), one)[1]["network"],
        jax.jit(model.apply),
    )


@pytest.fixture(scope="module", params=NETWORKS)
def imported(request, tmp_path_factory):
    """(their network, the folder of the run it was imported to)"""
    folder = tmp_path_factory.mktemp("imported")
    unet = network(NETWORKS[request.param])
    pipeline = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler())
    pipeline.save_pretrained(folder / "model_epoch_1")
    import_checkpoint(folder / "model_epoch_1", folder / "run", **IMAGES)
    return unet, folder / "run"


# ----------------------------------------------------------------------------------------------
# From diffusers
# ----------------------------------------------------------------------------------------------


def test_an_imported_network_answers_the_same(imported):
    unet, folder = imported
    section, params, apply = loaded(folder)
    z_t, t, condition, channels = inputs(section.conditions)
    with torch.no_grad():
        reference = ours(unet(theirs(channels), torch.tensor(t)).sample)
    assert_equal_outputs(apply(params, z_t, t, condition), reference)


def test_an_imported_network_learns_the_same(imported):
    """Gradients of a squared error in every parameter and in the input."""
    unet, folder = imported
    section, params, apply = loaded(folder)
    z_t, t, condition, channels = inputs(section.conditions)
    target = np.random.default_rng(2).normal(size=z_t.shape).astype(np.float32)

    def loss(params, z_t):
        return jnp.square(apply(params, z_t, t, condition) - target).mean()

    by_params, by_input = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, z_t)
    unet.zero_grad()
    sample = theirs(channels).requires_grad_()
    (unet(sample, torch.tensor(t)).sample - theirs(target)).square().mean().backward()

    pairs = {"input": (by_input, ours(sample.grad)[..., :1])}
    references = {name: parameter.grad.numpy() for name, parameter in unet.named_parameters()}
    for path, gradient in jax.tree_util.tree_leaves_with_path(by_params):
        name = names.name(section, tuple(key.key for key in path))
        pairs[name] = (gradient, names.ours(references[name]))
    assert len(pairs) == 1 + len(references)
    assert_equal_gradients(pairs)


def test_what_is_imported_and_exported_is_bit_for_bit_what_it_was(imported, tmp_path):
    unet, folder = imported
    export(folder, tmp_path / "out")
    again = diffusers.UNet2DModel.from_pretrained(tmp_path / "out", subfolder="unet")
    before, after = unet.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name


def test_shards_are_imported_as_the_whole(tmp_path):
    unet = network(NETWORKS["without attention"])
    for name, size in (("whole", "1GB"), ("shards", "100KB")):
        unet.save_pretrained(tmp_path / name / "unet", max_shard_size=size)
        import_checkpoint(tmp_path / name, tmp_path / f"{name}_run", **IMAGES)
    assert len(list((tmp_path / "shards/unet").glob("*.safetensors"))) > 1
    whole, shards = (loaded(tmp_path / f"{name}_run")[1] for name in ("whole", "shards"))
    jax.tree.map(np.testing.assert_array_equal, whole, shards)


def test_the_line_that_converts_pickles_does(tmp_path, monkeypatch):
    unet = network(NETWORKS["without attention"])
    model = tmp_path / "model"
    unet.save_pretrained(model / "unet", safe_serialization=False)
    with pytest.raises(InputError) as error:
        import_checkpoint(model, tmp_path / "run", **IMAGES)
    line = re.search("(python -c .*)", str(error.value))[1]
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    subprocess.run(line, shell=True, check=True, capture_output=True)
    import_checkpoint(model, tmp_path / "run", **IMAGES)


# ----------------------------------------------------------------------------------------------
# To diffusers
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"attention": (False, True), "groups": 4, "epsilon": 1e-6},
        {"attention": (True, False), "decoder_attention": (False, True), "null": "flag"},
        {"middle_attention": False, "time_scale_shift": True, "layers": 2, "null": "flag"},
        {"conditions": ("contour", "neighbour"), "null": "empty", "downsample_padding": 0},
    ],
)
def test_an_exported_network_answers_the_same(fields, tmp_path):
    settings = config.default()
    settings.model.update(channels=(16, 32), head_width=8, resample_convolution=True)
    settings.model.update(attention=(False, False))
    settings.model.update(fields)
    model = models.build(settings.model)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: p + rng.normal(0, 0.1, p.shape).astype(np.float32),
        jax.jit(model.init)(jax.random.key(0)),
    )
    made = run.Run(
        settings,
        intensity.preset("mr"),
        intensity.IDENTITY,
        Grid("axial", 1.0, 64),
        contour_settings.preset("default", "mr"),
        (),
    )
    (tmp_path / "run").mkdir()
    made.save(tmp_path / "run")
    checkpoint.save_averages(tmp_path / "run", {"network": params})
    export(tmp_path / "run", tmp_path / "out")

    pipeline = diffusers.DDIMPipeline.from_pretrained(tmp_path / "out")
    z_t, t, condition, channels = inputs(settings.model.conditions)
    if settings.model.null == "flag":
        channels = np.concatenate([channels, np.ones_like(z_t)], -1)
    with torch.no_grad():
        reference = ours(pipeline.unet(theirs(channels), torch.tensor(t)).sample)
    assert_equal_outputs(jax.jit(model.apply)(params, z_t, t, condition), reference)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("name", schedulers.SCHEDULERS)
def test_an_exported_scheduler_is_loaded_as_it_is_and_comes_back(name, clip, tmp_path):
    settings = config.default()
    settings.diffusion.update(schedule="scaled_linear", beta_first=2e-4, prediction="x0", steps=500)
    settings.sampler.update(name=name, spacing="leading", offset=1, clip=clip)
    fields = schedulers.theirs(settings)
    scheduler = getattr(diffusers, fields["_class_name"]).from_config(fields)
    for field, value in fields.items():
        assert scheduler.config[field] == value, field
    scheduler.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert schedulers.ours(saved) == schedulers.ours(fields)


def test_a_scheduler_made_of_another_is_read_as_what_it_does(tmp_path):
    """Clipping of DDPM is written on, and the solver does not do it."""
    before = diffusers.DDPMScheduler(clip_sample=True, variance_type="fixed_large")
    diffusers.DPMSolverMultistepScheduler.from_config(before.config).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert saved["clip_sample"]
    assert not schedulers.ours(saved)["sampler"]["clip"]


# ----------------------------------------------------------------------------------------------
# Names
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conditions", [("contour",), ("contour", "neighbour")])
def test_the_published_network_has_the_same_parameters(conditions):
    with torch.device("meta"):
        unet = diffusers.UNet2DModel(**PUBLISHED | {"in_channels": 1 + len(conditions)})
    section = config.default().model
    section.update(names.model(unet.config) | {"conditions": conditions, "null": "empty"})
    params = jax.eval_shape(models.build(section).init, jax.random.key(0))
    words = of_unet2d(section)
    leaves = [
        (tuple(key.key for key in path), leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]
    shapes = {words.name(path): words.theirs_shape(path, shape) for path, shape in leaves}
    assert shapes == {name: tuple(p.shape) for name, p in unet.named_parameters()}


def test_fields_and_their_defaults_are_those_of_diffusers():
    def defaults(kind):
        parameters = inspect.signature(kind.__init__).parameters
        return {n: p.default for n, p in parameters.items() if n != "self"}

    assert defaults(diffusers.UNet2DModel) == names.FIELDS
    for name, kind in schedulers.READ.items():
        theirs = defaults(getattr(diffusers, kind))
        for field, value in schedulers.FIELDS[name].items():
            assert theirs.pop(field) == value, field
        # The solver's: whether the network answers with a variance too, in channels of its own.
        assert set(theirs) - {"variance_type"} <= schedulers.IDLE
