# SPDX-License-Identifier: Apache-2.0
"""Weights are written as all files are: whole or not at all, and with the usual permissions.

And read from the files that diffusers and transformers write, in the order of what they are worth.
"""

import json
from unittest.mock import Mock

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save_file

from contourdiff_jax.errors import InputError
from contourdiff_jax.interop import weight_files

TENSORS = {"a": np.arange(3.0)}


def test_weights_have_the_permissions_of_other_files(tmp_path):
    weight_files.write(tmp_path / weight_files.WEIGHTS, TENSORS, {"format": "pt"})
    (tmp_path / "other").touch()
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1
    np.testing.assert_array_equal(weight_files.tensors(tmp_path)["a"].read(), TENSORS["a"])


def test_weights_on_a_full_disk_are_one_line(tmp_path, monkeypatch):
    full = SafetensorError("I/O error: No space left on device (os error 28)")
    monkeypatch.setattr(weight_files, "save_file", Mock(side_effect=full))
    with pytest.raises(InputError, match=r"w: cannot be written: no space left on the device$"):
        weight_files.write(tmp_path / "w", TENSORS, {})
    assert not any(tmp_path.iterdir())


def put(path, value, **others):
    """A file of one tensor with that value, and of others."""
    save_file({"a": np.full(3, value, np.float32)} | others, path)


def found(folder, stem="model") -> float:
    (tensor,) = weight_files.tensors(folder, stem).values()
    return tensor.read()[0]


def test_the_best_variant_is_read_whole_or_in_shards(tmp_path):
    """Each file in turn is better than all before it."""
    names = ("model.non_ema", "model.fp16-00001-of-00001", "model.fp16", "model-00001-of-00001")
    for value, name in enumerate([*names, "model"]):
        put(tmp_path / f"{name}.safetensors", value)
        if "-of-" in name:
            variant = ".fp16" if "fp16" in name else ""
            index = {"weight_map": {"a": f"{name}.safetensors"}}
            path = tmp_path / f"model.safetensors.index{variant}.json"
            path.write_text(json.dumps(index))
        assert found(tmp_path) == value


def test_a_file_of_another_stem_is_none(tmp_path):
    put(tmp_path / "model.safetensors", 1)
    with pytest.raises(InputError, match=r"holds no diffusion_pytorch_model\.safetensors"):
        weight_files.tensors(tmp_path)


def test_numbers_of_positions_are_no_tensors(tmp_path):
    """Beside them whole numbers are refused, and an index may name them or not."""
    numbers = {"text_model.embeddings.position_ids": np.arange(77)[None]}
    put(tmp_path / "model-00001-of-00001.safetensors", 5, **numbers)
    for named in ({}, numbers):
        index = {"weight_map": dict.fromkeys(["a", *named], "model-00001-of-00001.safetensors")}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        assert found(tmp_path) == 5
    put(tmp_path / "model.safetensors", 5, ids=np.arange(77))
    with pytest.raises(InputError, match="ids is I64"):
        weight_files.tensors(tmp_path, "model")


def test_a_pickle_is_converted_by_the_class_that_wrote_it(tmp_path):
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(InputError, match="from transformers import CLIPTextModel as M"):
        weight_files.tensors(tmp_path, "model", ("transformers", "CLIPTextModel"))
