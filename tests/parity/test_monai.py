# SPDX-License-Identifier: Apache-2.0
"""The segmenter, its loss and its scores against MONAI's, which the published protocol takes.

Shapes: B batch, H rows, W columns, C channels; channels last for ours, second for theirs.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contourdiff_jax.evaluation.metrics import overlap
from contourdiff_jax.methods import segmentation
from contourdiff_jax.models import segmenter

WHY = "needs the environment of `make test-parity`"
torch = pytest.importorskip("torch", reason=WHY)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what MONAI imports
    monai = pytest.importorskip("monai", reason=WHY)
    from monai.losses import DiceCELoss
    from monai.metrics import (
        compute_average_surface_distance,
        compute_dice,
        compute_hausdorff_distance,
    )
    from monai.networks.nets import UNet
pytestmark = pytest.mark.parity

CLASSES = 5


def theirs(channels):
    """MONAI's network of the published widths."""
    return UNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=CLASSES,
        channels=channels,
        strides=(2,) * (len(channels) - 1),
        num_res_units=2,
    )


def activated(tensors, name, *, doubling=False):
    """One of their convolutions with its PReLU, as ours."""
    return {
        "conv": convolution(tensors, f"{name}.conv", doubling=doubling),
        "slope": tensors[f"{name}.adn.A.weight"][0],
    }


def convolution(tensors, name, *, doubling=False):
    weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
    kernel = weight.transpose(2, 3, 1, 0)
    if doubling:  # [in, out, rows, columns], and torch takes it the other way round
        kernel = weight.transpose(2, 3, 0, 1)[::-1, ::-1]
    return {"kernel": kernel, "bias": bias}


def ours(tensors, channels):
    """Their weights as ours."""
    params, prefix = {"down": {}, "up": {}}, "model"
    for level in range(len(channels)):
        last = level == len(channels) - 1
        block = prefix if last else f"{prefix}.0"
        params["down"][level] = {
            "first": activated(tensors, f"{block}.conv.unit0"),
            "second": activated(tensors, f"{block}.conv.unit1"),
            "shortcut": convolution(tensors, f"{block}.residual"),
        }
        if not last:
            conv = f"{prefix}.2.1.conv.unit0"
            take = convolution if level == 0 else activated
            params["up"][level] = {
                "double": activated(tensors, f"{prefix}.2.0", doubling=True),
                "conv": take(tensors, f"{conv}.conv" if level == 0 else conv),
            }
            prefix = f"{prefix}.1.submodule"
    return params


@pytest.mark.parametrize("channels", [segmenter.CHANNELS, (8, 12, 20)])
def test_the_network_is_monai_s(channels):
    torch.manual_seed(0)
    reference = theirs(channels)
    with torch.no_grad():
        for tensor in reference.parameters():
            tensor += 0.1 * torch.randn_like(tensor)
    tensors = {name: tensor.detach().numpy() for name, tensor in reference.named_parameters()}
    network = segmenter.build(CLASSES, channels)
    params = ours(tensors, channels)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), params, shapes)

    images = np.random.default_rng(0).standard_normal((2, 32, 64, 1)).astype(np.float32)
    with torch.no_grad():
        expected = reference(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    got = jax.jit(network.apply)(params, images)
    scale = float(expected.std())
    np.testing.assert_allclose(got, expected.transpose(0, 2, 3, 1), atol=1e-4 * scale)


def test_the_loss_and_its_gradient_are_monai_s(rng):
    logits = rng.standard_normal((3, 16, 24, CLASSES)).astype(np.float32)
    classes = rng.integers(0, CLASSES - 1, (3, 16, 24))  # the last class is not there
    tensor = torch.from_numpy(logits.transpose(0, 3, 1, 2)).requires_grad_()
    reference = DiceCELoss(softmax=True, to_onehot_y=True)
    expected = reference(tensor, torch.from_numpy(classes[:, None]))
    expected.backward()
    value, gradient = jax.value_and_grad(segmentation.dice_and_cross_entropy)(
        jnp.asarray(logits), jnp.asarray(classes)
    )
    assert float(value) == pytest.approx(float(expected.detach()), rel=1e-6)
    np.testing.assert_allclose(
        gradient, tensor.grad.numpy().transpose(0, 2, 3, 1), rtol=1e-4, atol=1e-9
    )


@pytest.mark.filterwarnings("ignore:monai.metrics.utils:FutureWarning")  # of what it calls itself
def test_dice_and_distances_are_monai_s(rng):
    truth = np.zeros((20, 18, 12), int)
    truth[3:15, 4:14, 2:11] = 1
    truth[6:10, 6:12, 0:5] = 2  # touches the end of the array
    labels = np.where(rng.random(truth.shape) < 0.1, 0, np.roll(truth, 1, axis=1))
    spacing = (0.7, 1.3, 3.0)

    def one_hot(array):
        return torch.from_numpy(np.stack([array == number for number in range(3)])[None]).float()

    pair = one_hot(labels), one_hot(truth)
    average = compute_average_surface_distance(*pair, symmetric=True, spacing=spacing)
    robust = compute_hausdorff_distance(*pair, percentile=95, spacing=spacing)
    dices = compute_dice(*pair, include_background=False)
    got = overlap.dice(labels, truth, [1, 2])
    for number in (1, 2):
        scores = overlap.distances(labels == number, truth == number, spacing)
        assert scores["assd"] == pytest.approx(float(average[0, number - 1]), rel=1e-5)
        assert scores["hd95"] == pytest.approx(float(robust[0, number - 1]), rel=1e-5)
        assert got[number] == pytest.approx(float(dices[0, number - 1]), rel=1e-6)
