# SPDX-License-Identifier: Apache-2.0
"""What counts as agreement of a network of ours with one of diffusers, for the tests of parity.

Shapes: channels last for ours, second for theirs.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the environment of `make test-parity`")

OUTPUT = 1e-4  # largest difference of outputs of unit variance
GRADIENT = 1e-3  # relative, of a whole tensor


def shaken(module):
    """A network in evaluation, with no scale 1 and no bias 0, so that every one counts."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return module.eval()


def theirs(array):
    return torch.tensor(np.moveaxis(np.asarray(array), -1, 1))


def ours(tensor):
    return np.moveaxis(tensor.detach().numpy(), 1, -1)


def assert_equal_outputs(answer, reference):
    scale = reference.std()
    assert scale > 0
    np.testing.assert_allclose(np.asarray(answer) / scale, reference / scale, rtol=0, atol=OUTPUT)


def assert_equal_gradients(pairs):
    """{name: (ours, theirs)}: those of all parameters together say what is small."""
    # A shift of all keys changes no softmax: the gradient of their bias is rounding.
    total = np.sqrt(sum(np.square(reference).sum() for _, reference in pairs.values()))
    assert total > 0
    for name, (gradient, reference) in pairs.items():
        error = np.linalg.norm(np.asarray(gradient) - reference)
        assert error <= GRADIENT * max(np.linalg.norm(reference), 1e-4 * total), name
