# SPDX-License-Identifier: Apache-2.0
"""Our text encoder against transformers' CLIPTextModel: the same answers and gradients, both ways.

Weights are random, and no scale 1 and no bias 0, so that every one counts.
"""

import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from contourdiff_jax.interop import clip_text
from contourdiff_jax.models import clip

WHY = "needs the environment of `make test-parity`"
torch = pytest.importorskip("torch", reason=WHY)
transformers = pytest.importorskip("transformers", reason=WHY)
pytestmark = pytest.mark.parity

OUTPUT = 1e-4  # largest difference of outputs of unit variance
GRADIENT = 1e-3  # relative, of a whole tensor
SMALL = {"vocab_size": 99, "bos_token_id": 97, "eos_token_id": 98, "num_hidden_layers": 2}
NETWORKS = {
    "of Stable Diffusion 1, narrow": SMALL
    | {"hidden_size": 48, "intermediate_size": 192, "num_attention_heads": 3},
    "of Stable Diffusion 2, narrow": SMALL
    | {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4, "hidden_act": "gelu"},
    "other settings": SMALL
    | {
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_attention_heads": 1,
        "num_hidden_layers": 3,
        "max_position_embeddings": 80,
        "layer_norm_eps": 1e-2,
    },
}
IDS = np.random.default_rng(1).integers(0, 99, (2, 77), np.int32)


def network(fields):
    """A CLIPTextModel with random parameters."""
    torch.manual_seed(0)
    model = transformers.CLIPTextModel(transformers.CLIPTextConfig(**fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # New kernels of theirs are so small that attention would hardly tell tokens apart.
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def read(folder):
    """(params, compiled encode) of a folder that save_pretrained wrote."""
    fields = json.loads((folder / "config.json").read_text())
    encoder = clip.build(clip_text.text_config(fields))
    tensors = clip_text.current(load_file(folder / "model.safetensors"))
    shapes = jax.eval_shape(encoder.init, jax.random.key(0))
    params = jax.tree_util.tree_map_with_path(
        lambda path, _: clip_text.ours(keys(path), tensors.pop(clip_text.name(keys(path)))), shapes
    )
    assert not tensors
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
    return params, jax.jit(encoder.encode)


def keys(path) -> tuple:
    return tuple(key.key for key in path)


@pytest.fixture(scope="module", params=NETWORKS)
def saved(request, tmp_path_factory):
    """(their network, the folder it was saved to)"""
    folder = tmp_path_factory.mktemp("text_encoder")
    model = network(NETWORKS[request.param])
    model.save_pretrained(folder)
    return model, folder


def assert_equal_outputs(answer, reference):
    scale = reference.std()
    assert scale > 0
    np.testing.assert_allclose(np.asarray(answer) / scale, reference / scale, rtol=0, atol=OUTPUT)


def answered(model, ids=IDS):
    with torch.no_grad():
        return model(torch.tensor(ids)).last_hidden_state.numpy()


def test_an_encoder_answers_the_same(saved):
    model, folder = saved
    params, encode = read(folder)
    for ids in (IDS, IDS[:, :5]):
        assert_equal_outputs(encode(params, ids), answered(model, ids))


def test_an_encoder_learns_the_same(saved):
    """Gradients of a squared error in every parameter."""
    model, folder = saved
    params, encode = read(folder)
    shape = (*IDS.shape, model.config.hidden_size)
    target = np.random.default_rng(2).normal(size=shape).astype(np.float32)

    def loss(params):
        return jnp.square(encode(params, IDS) - target).mean()

    gradients = jax.jit(jax.grad(loss))(params)
    model.zero_grad()
    answer = model(torch.tensor(IDS)).last_hidden_state
    (answer - torch.tensor(target)).square().mean().backward()
    references = clip_text.current({n: p.grad.numpy() for n, p in model.named_parameters()})
    # A shift of all keys changes no softmax: the gradient of their bias is rounding.
    total = np.sqrt(sum(np.square(reference).sum() for reference in references.values()))
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        name = clip_text.name(keys(path))
        reference = clip_text.ours(keys(path), references.pop(name))
        error = np.linalg.norm(np.asarray(gradient) - reference)
        assert error <= GRADIENT * max(np.linalg.norm(reference), 1e-4 * total), name
    assert not references


def test_a_file_of_ours_is_theirs(saved, tmp_path):
    """With a prefix before every name, which they leave out today: bit for bit what it was."""
    model, folder = saved
    params, _ = read(folder)
    fields = clip_text.fields(clip_text.text_config(model.config.to_diff_dict()))
    (tmp_path / "config.json").write_text(json.dumps(fields))
    tensors = {
        clip_text.name(keys(path)): clip_text.theirs(keys(path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again, report = transformers.CLIPTextModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    np.testing.assert_array_equal(answered(again), answered(model))


def test_a_file_of_an_early_version_is_read_the_same(saved, tmp_path):
    """Its names have the prefix, and the positions' numbers are beside the parameters."""
    _, folder = saved
    fields = json.loads((folder / "config.json").read_text()) | {"dropout": 0.0}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    tensors = load_file(folder / "model.safetensors")
    early = {f"text_model.{name}": tensor for name, tensor in tensors.items()}
    early["text_model.embeddings.position_ids"] = np.arange(77)[None]
    save_file(early, tmp_path / "model.safetensors", metadata={"format": "pt"})
    jax.tree.map(np.testing.assert_array_equal, read(tmp_path)[0], read(folder)[0])


def test_stable_diffusion_s_encoder_has_the_same_parameters():
    config = clip.TextConfig()
    with torch.device("meta"):
        fields = transformers.CLIPTextConfig(**clip_text.fields(config))
        model = transformers.CLIPTextModel(fields)
    shapes = {
        clip_text.name(keys(path)): clip_text.theirs(keys(path), np.broadcast_to(0, leaf.shape))
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            jax.eval_shape(clip.build(config).init, jax.random.key(0))
        )
    }
    theirs = clip_text.current({n: tuple(p.shape) for n, p in model.named_parameters()})
    assert {name: array.shape for name, array in shapes.items()} == theirs


def test_fields_and_their_defaults_are_those_of_transformers():
    parameters = inspect.signature(transformers.CLIPTextConfig.__init__).parameters
    generic = inspect.signature(transformers.PreTrainedConfig.__init__).parameters
    theirs = {n: p.default for n, p in parameters.items() if n not in generic}
    for field, value in clip_text.FIELDS.items():
        assert theirs.pop(field) == value, field
    assert theirs.pop("attention_dropout") == 0
    assert theirs.keys() <= clip_text.IDLE
