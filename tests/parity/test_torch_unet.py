# SPDX-License-Identifier: Apache-2.0
"""The network of PyTorch that ours is timed beside on a GPU (experiments/019_gpu) is diffusers'."""

import importlib.util
from pathlib import Path

import pytest

WHY = "needs the environment of `make test-parity`"
pytest.importorskip("torch", reason=WHY)
pytest.importorskip("diffusers", reason=WHY)
pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def networks():
    path = Path(__file__).parents[2] / "experiments/019_gpu/torch_unet.py"
    spec = importlib.util.spec_from_file_location("torch_unet", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_has_the_published_parameters(networks):
    assert networks.parameters(networks.PUBLISHED) == 113_669_761


@pytest.mark.parametrize("attention", [(False, True), (True, False)])
def test_with_the_same_weights_it_gives_the_same(networks, attention):
    fields = {"channels": (16, 32), "attention": attention, "layers": 2}
    assert networks.difference(fields | {"groups": 4, "head_width": 8}, 16) < 1e-4
