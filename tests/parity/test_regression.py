# SPDX-License-Identifier: Apache-2.0
"""Regression against the same in PyTorch: the network, its loss in the body, steps of training.

The peer is diffusers' UNet2DModel without what is for time. Shapes: B batch, H rows, W columns;
channels last for ours, second for theirs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import setups

from contourdiff_jax import config, models
from contourdiff_jax.data import examples
from contourdiff_jax.interop import unet2d as names
from contourdiff_jax.methods import regression
from contourdiff_jax.runtime import mesh as meshes

WHY = "needs the environment of `make test-parity`"
torch = pytest.importorskip("torch", reason=WHY)
diffusers = pytest.importorskip("diffusers", reason=WHY)
pytestmark = pytest.mark.parity

OUTPUT = 1e-4  # largest difference of outputs of unit variance
GRADIENT = 1e-4  # relative to the largest of a tensor's
LOSS = 1e-5  # relative
SIZE, BATCH, STEPS = 32, 2, 20


class Nothing(torch.nn.Module):
    def forward(self, *given):
        return None


def timeless(unet):
    """A UNet2DModel that is told no time, without the parameters for it."""
    unet.time_embedding = Nothing()
    for part in unet.modules():
        if hasattr(part, "time_emb_proj"):
            part.time_emb_proj = None
    return unet


def settings(**fields):
    ours = config.default()
    ours.method = "regression"
    ours.model.update(channels=(16, 32), attention=(False, True), head_width=8, groups=4)
    ours.model.update(resample_convolution=True, null="empty", conditions=("contour", "source"))
    ours.train.update(images=STEPS * BATCH, batch=BATCH, warmup=4 * BATCH)
    ours.regression.update(fields)
    ours.mesh.data = 1
    return ours


@pytest.fixture
def example():
    rng = np.random.default_rng(1)
    shape = (BATCH, SIZE, SIZE)
    seen = {"contour": rng.random(shape) < 0.1, "source": rng.uniform(-1, 1, shape)}
    mask = np.zeros((*shape, 1), np.float32)
    mask[0, 4:20, 8:30], mask[1, 10:18, 3:12] = 1, 1
    return {
        "x": np.where(mask > 0, rng.uniform(-1, 1, mask.shape), -1).astype(np.float32),
        "condition": {name: examples.given(np.float32(values)) for name, values in seen.items()},
        "mask": mask,
    }


def theirs(array):
    return torch.tensor(np.moveaxis(np.asarray(array), -1, 1))


def channels(example):
    """What is shown to their network."""
    return theirs(np.concatenate([seen[..., :1] for seen in example["condition"].values()], -1))


def same(ours):
    """(their network, our parameters): the same ones, random, none of them 0 or 1."""
    model = models.build(ours.model, denoises=False)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: p + rng.normal(0, 0.05, p.shape).astype(np.float32),
        jax.jit(model.init)(jax.random.key(0)),
    )
    fields = names.unet(ours.model, inputs=2, outputs=1, size=SIZE)
    unet = timeless(diffusers.UNet2DModel.from_config(fields))
    state = {name: torch.tensor(values) for name, values in named(ours, params).items()}
    unet.load_state_dict(state)  # strict: every parameter has its counterpart
    return unet, params


def named(ours, params):
    """Our parameters by their names, laid out as theirs."""
    return {
        names.name(ours.model, tuple(key.key for key in path)): names.theirs(np.asarray(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def their_loss(section, prediction, example):
    """The error of a pixel in the body, and outside with its weight: of each image, then meaned."""
    truth, mask = theirs(example["x"]), theirs(example["mask"])
    error = {"l1": torch.nn.functional.l1_loss, "l2": torch.nn.functional.mse_loss}[section.loss]
    weights = torch.where(mask > 0, 1.0, section.outside)
    of_pixels = error(prediction, truth, reduction="none") * weights
    return (of_pixels.sum((1, 2, 3)) / weights.sum((1, 2, 3))).mean()


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_the_network_answers_and_learns_the_same(example, loss):
    ours = settings(loss=loss)
    unet, params = same(ours)
    prediction = unet(channels(example), 0).sample
    reference = np.moveaxis(prediction.detach().numpy(), 1, -1)
    model = models.build(ours.model, denoises=False)
    answer = jax.jit(model.apply)(params, None, None, example["condition"])
    scale = reference.std()
    np.testing.assert_allclose(np.asarray(answer) / scale, reference / scale, rtol=0, atol=OUTPUT)

    value = their_loss(ours.regression, prediction, example)
    value.backward()
    of = jax.value_and_grad(regression.loss(model, ours.regression), has_aux=True)
    (found, _), gradients = jax.jit(of)(params, {}, example, jax.random.key(0), (), ())
    assert float(found) == pytest.approx(value.item(), rel=LOSS)
    by_name = named(ours, gradients)
    largest = max(np.abs(gradient).max() for gradient in by_name.values())
    for name, parameter in unet.named_parameters():
        reference = parameter.grad.numpy()
        # A shift of all keys changes no softmax: the gradient of their bias is rounding.
        scale = max(np.abs(reference).max(), 1e-3 * largest)
        np.testing.assert_allclose(
            by_name[name] / scale, reference / scale, rtol=0, atol=GRADIENT, err_msg=name
        )


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_steps_of_training_are_the_same(example, loss):
    """AdamW with warm-up, a cosine and clipped gradients; weights decay, biases do not."""
    ours = settings(loss=loss)
    unet, params = same(ours)
    plan = setups.setup(ours, SIZE)
    current = plan.init(jax.random.key(0))._replace(params={"network": params})
    batch = meshes.put(meshes.batch(plan.mesh), example)
    rates = plan.method.players["network"].learning_rate
    decayed = {True: [], False: []}
    for parameter in unet.parameters():
        decayed[parameter.ndim > 1].append(parameter)
    optimiser = torch.optim.AdamW(
        [
            {"params": decayed[True], "weight_decay": ours.train.weight_decay},
            {"params": decayed[False], "weight_decay": 0.0},
        ]
    )
    found, expected = [], []
    for step in range(STEPS):
        current, metrics = plan.step(current, batch)
        found.append(float(metrics["loss"]))
        for group in optimiser.param_groups:
            group["lr"] = float(rates(jnp.asarray(step)))
        value = their_loss(ours.regression, unet(channels(example), 0).sample, example)
        optimiser.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), ours.train.clip)
        optimiser.step()
        expected.append(value.item())
    assert expected[-1] < 0.9 * expected[0]
    np.testing.assert_allclose(found, expected, rtol=LOSS)
