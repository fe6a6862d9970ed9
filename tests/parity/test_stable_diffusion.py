# SPDX-License-Identifier: Apache-2.0
"""Our U-Net with a context and our ControlNet against diffusers': the same answers and gradients.

Networks are small; their options are those of Stable Diffusion 1.x and 2.x and of InstructPix2Pix.
Weights are random, and none of a new ControlNet's zeros is 0, so that every one counts.

Shapes: B batch, H rows, W columns, M tokens; channels last for ours, second for theirs.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import assert_equal_gradients, assert_equal_outputs, ours, shaken, theirs

from contourdiff_jax import config, models
from contourdiff_jax.interop import unet2d_condition as names
from contourdiff_jax.interop.parameters import of_condition
from contourdiff_jax.models import controlnet

WHY = "needs the environment of `make test-parity`"
torch = pytest.importorskip("torch", reason=WHY)
diffusers = pytest.importorskip("diffusers", reason=WHY)
pytestmark = pytest.mark.parity

BATCH, SHAPE, TOKENS, SCALE = 2, (16, 8), 7, 0.7
SMALL = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "cross_attention_dim": 24,
}
FIRST = {"attention_head_dim": 8}
SECOND = {
    "attention_head_dim": [2, 4],
    "use_linear_projection": True,
    "upcast_attention": True,
    "only_cross_attention": [False, False],
}
NETWORKS = {"1.x": FIRST, "2.x": SECOND, "InstructPix2Pix": FIRST | {"in_channels": 8}}
# By the file that each says of itself.
FULL = {
    "1.5": {"attention_head_dim": 8, "cross_attention_dim": 768, "sample_size": 64},
    "2.1": {
        "attention_head_dim": (5, 10, 20, 20),
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
    },
}
HINTS = {"conditioning_channels": 1, "conditioning_embedding_out_channels": (4, 8, 16)}


def network(kind, **fields):
    """A U-Net or a ControlNet of theirs with random parameters."""
    torch.manual_seed(0)
    return shaken(kind(**fields))


def section_of(fields):
    """A `model` section without conditions."""
    section = config.default().model
    section.update(fields | {"conditions": ()})
    return section


def path_of(keys):
    return tuple(getattr(key, "key", getattr(key, "idx", None)) for key in keys)


def parameters(read, init, state):
    """Parameters of ours from theirs, every one of which is taken."""
    section, shapes = section_of(read.model), jax.eval_shape(init, jax.random.key(0))
    words, taken = of_condition(section, read.linear), set()

    def take(keys, leaf):
        name = names.name(section, path_of(keys))
        taken.add(name)
        tensor = state[name].numpy()
        assert tensor.shape == words.theirs_shape(path_of(keys), leaf.shape), name
        array = names.ours(tensor, leaf.shape)
        np.testing.assert_array_equal(names.theirs(name, array, linear=read.linear), tensor)
        return jnp.asarray(array)

    params = jax.tree_util.tree_map_with_path(take, shapes)
    assert taken == state.keys()
    return params


def unet_of(unet):
    """(what its configuration says, our model, its parameters)"""
    read = names.network(unet.config)
    model = models.build(section_of(read.model), channels=read.inputs, outputs=read.outputs)
    return read, model, parameters(read, model.init, unet.state_dict())


def inputs(channels, width):
    """z_t [B, H, W, C], t [B], a context [B, M, width] and a target [B, H, W, 4]."""
    rng = np.random.default_rng(1)
    shapes = (BATCH, *SHAPE, channels), (BATCH, TOKENS, width), (BATCH, *SHAPE, 4)
    z_t, context, target = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    return z_t, np.array([3, 997]), context, target


def gradients(read, tree, module):
    """{name: (ours, theirs)} of all parameters."""
    section = section_of(read.model)
    references = {name: p.grad.numpy() for name, p in module.named_parameters()}
    pairs = {}
    for keys, gradient in jax.tree_util.tree_leaves_with_path(tree):
        name = names.name(section, path_of(keys))
        pairs[name] = gradient, names.ours(references[name], gradient.shape)
    assert pairs.keys() == references.keys()
    return pairs


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_network_answers_and_learns_the_same(kind):
    """Gradients of a squared error in every parameter, in the image and in the context."""
    unet = network(diffusers.UNet2DConditionModel, **SMALL, **NETWORKS[kind])
    read, model, params = unet_of(unet)
    z_t, t, context, target = inputs(read.inputs, read.model["context"])

    @jax.jit
    def answered(params, z_t, context):
        def loss(params, z_t, context):
            prediction = model.apply(params, z_t, t, {}, context=context)
            return jnp.square(prediction - target).mean(), prediction

        return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(params, z_t, context)

    (by_params, by_input, by_context), prediction = answered(params, z_t, context)
    sample, seen = theirs(z_t).requires_grad_(), torch.tensor(context).requires_grad_()
    reference = unet(sample, torch.tensor(t), seen).sample
    assert_equal_outputs(prediction, ours(reference))
    (reference - theirs(target)).square().mean().backward()
    assert_equal_gradients(
        gradients(read, by_params, unet)
        | {"z_t": (by_input, ours(sample.grad)), "context": (by_context, seen.grad.numpy())}
    )


@pytest.mark.parametrize("kind", ["1.x", "2.x"])
def test_a_controlnet_answers_and_learns_the_same(kind):
    """Its residuals, what the U-Net makes of them, and gradients through both."""
    unet = network(diffusers.UNet2DConditionModel, **SMALL, **NETWORKS[kind])
    encoder = {name: value for name, value in SMALL.items() if name != "up_block_types"}
    branch = network(diffusers.ControlNetModel, **encoder, **NETWORKS[kind], **HINTS)
    with torch.no_grad():
        for name, parameter in branch.named_parameters():
            if parameter.ndim > 1 and not parameter.any():  # a convolution that is zero at first
                parameter.normal_(std=0.1, generator=torch.manual_seed(len(name)))
    read, model, params = unet_of(unet)
    read_of_branch = names.branch(branch.config)
    assert {**read_of_branch.model, "decoder_attention": ()} == read.model
    control = controlnet.build(
        section_of(read_of_branch.model),
        channels=read_of_branch.inputs,
        hint=read_of_branch.hint,
        hint_channels=read_of_branch.hint_channels,
    )
    of_branch = parameters(read_of_branch, control.init, branch.state_dict())
    z_t, t, context, target = inputs(read.inputs, read.model["context"])
    hint = np.random.default_rng(2).random((BATCH, *(4 * s for s in SHAPE), 1), np.float32)

    @jax.jit
    def answered(both, hint):
        def loss(both, hint):
            residuals = control.apply(both[0], z_t, t, hint, context, scale=SCALE)
            prediction = model.apply(both[1], z_t, t, {}, context=context, residuals=residuals)
            return jnp.square(prediction - target).mean(), (residuals, prediction)

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(both, hint)

    (by_both, by_hint), (residuals, prediction) = answered((of_branch, params), hint)
    given, seen = (theirs(z_t), torch.tensor(t), torch.tensor(context)), theirs(hint)
    seen.requires_grad_()
    down, middle = branch(*given, seen, conditioning_scale=SCALE, return_dict=False)
    reference = unet(
        *given, down_block_additional_residuals=down, mid_block_additional_residual=middle
    ).sample
    for answer, expected in zip(jax.tree.leaves(residuals), [*down, middle], strict=True):
        assert_equal_outputs(answer, ours(expected))
    assert_equal_outputs(prediction, ours(reference))
    (reference - theirs(target)).square().mean().backward()
    assert_equal_gradients(
        gradients(read_of_branch, by_both[0], branch)
        | {f"unet.{name}": pair for name, pair in gradients(read, by_both[1], unet).items()}
        | {"hint": (by_hint, ours(seen.grad))}
    )


@pytest.mark.parametrize("kind", FULL)
def test_stable_diffusion_has_the_same_parameters(kind):
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**FULL[kind])
        branch = diffusers.ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    read, of_branch = names.network(unet.config), names.branch(branch.config)
    section = section_of(read.model)
    words = of_condition(section, read.linear)
    for module, init in (
        (unet, models.build(section, channels=read.inputs, outputs=read.outputs).init),
        (branch, controlnet.build(section_of(of_branch.model)).init),
    ):
        leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(init, jax.random.key(0)))
        shapes = {
            words.name(path_of(keys)): words.theirs_shape(path_of(keys), leaf.shape)
            for keys, leaf in leaves
        }
        assert shapes == {name: tuple(p.shape) for name, p in module.named_parameters()}


@pytest.mark.parametrize("kind", NETWORKS)
def test_what_is_written_is_the_same_network_to_diffusers(kind):
    unet = diffusers.UNet2DConditionModel(**SMALL, **NETWORKS[kind])
    read = names.network(unet.config)
    fields = names.unet(
        section_of(read.model),
        inputs=read.inputs,
        outputs=read.outputs,
        size=16,
        linear=read.linear,
    )
    again = diffusers.UNet2DConditionModel.from_config(fields)
    assert names.network(again.config) == read
    shapes = {name: p.shape for name, p in unet.named_parameters()}
    assert {name: p.shape for name, p in again.named_parameters()} == shapes


def test_fields_and_their_defaults_are_those_of_diffusers():
    def defaults(kind):
        kept = inspect.signature(kind.__init__).parameters
        return {name: p.default for name, p in kept.items() if name != "self"}

    assert defaults(diffusers.UNet2DConditionModel) == names.FIELDS
    assert defaults(diffusers.ControlNetModel) == names.CONTROLNET_FIELDS
