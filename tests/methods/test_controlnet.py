# SPDX-License-Identifier: Apache-2.0
"""ControlNet and prompts: branches beside a base that stays, and what a network attends to."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest
import setups

from contourdiff_jax import config, methods, models
from contourdiff_jax.contracts import PROMPT
from contourdiff_jax.data.store import open_store
from contourdiff_jax.errors import InputError
from contourdiff_jax.methods import codecs, controlnet, diffusion, parts, prompts
from contourdiff_jax.reports.card import card
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training import checkpoint, run

SIZE = 32


def settings(method="controlnet", **fields):
    """Two steps of four images, of a network that compiles in seconds."""
    ours = config.default()
    ours.method = method
    ours.model.update(channels=(8, 8), attention=(False, False), groups=4, head_width=8)
    ours.model.conditions = ("contour",) if method == "controlnet" else ()
    ours.train.update(images=8, batch=4, log=4, evaluate=8, sample=8, checkpoint=0)
    ours.sampler.update(steps=2, batch=4)
    if method == "controlnet":
        ours.controlnet.channels = (4,)
    ours.update_from_flattened_dict(fields)
    return ours


@pytest.fixture(scope="module")
def base(store_path, tmp_path_factory):
    """A run of diffusion that sees nothing."""
    folder = tmp_path_factory.mktemp("base") / "run"
    assert methods.train(settings("diffusion"), store_path, folder)
    return folder


@pytest.fixture(scope="module")
def branched(base, store_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("branched") / "run"
    assert methods.train(settings(), store_path, folder, base=base)
    return folder


def test_it_begins_as_its_base(base, store_path, tmp_path):
    """What the branch adds is nothing before the first step, whatever contours there are."""
    ours = run.begin(
        settings(),
        open_store(store_path),
        base=controlnet.chosen(settings(), base),
        parts={run.BASE: base},
    )
    method = methods.build(ours, store=open_store(store_path), mesh=meshes.local())
    example = method.feed.held_out()
    t = jnp.full(len(example["x"]), 500)
    apply = jax.jit(method.network.bound(method.fixed))
    start = method.start[parts.NETWORK]
    shown = apply(start, example["x"], t, example["condition"])
    plain = jax.jit(method.network.base.apply)(method.fixed["base"], example["x"], t, {})
    np.testing.assert_array_equal(shown, plain)
    moved = jax.tree.map(lambda leaf: leaf + 0.1, start)
    assert np.abs(apply(moved, example["x"], t, example["condition"]) - plain).max() > 0.01
    # And none, where what it adds counts for nothing.
    silent = jax.jit(controlnet.network_of(ours, control=0.0).bound(method.fixed))
    np.testing.assert_array_equal(silent(moved, example["x"], t, example["condition"]), plain)


def test_the_base_stays_and_the_branch_learns(base, branched):
    ours = run.load(branched)
    method = methods.build(ours, mesh=meshes.local())
    _, averages = checkpoint.averages(branched, method.players, method.mesh)
    assert np.any(averages[parts.NETWORK]["zero_middle"]["kernel"])
    of_base = parts.weights(base, method.network.base, meshes.local())
    jax.tree.map(np.testing.assert_array_equal, method.fixed["base"], of_base)
    assert checkpoint.digest({parts.NETWORK: of_base}) == ours.base
    assert not (branched / "base" / "checkpoints" / "2" / "optimiser").exists()


def test_its_base_counts_for_what_it_holds(branched, base, tmp_path):
    """By number on the card, of what each core of a CPU holds while drawing, too."""
    held = methods.networks(run.load(branched))
    assert held.keys() == {"network", "base"}
    assert held["base"] == methods.networks(run.load(base))["network"]
    text = card(branched, tmp_path / "card.md").read_text()
    for name, params in held.items():
        assert f"| parameters of the {name} | {models.count(params):,}: " in text
    assert models.count(held["network"]) != models.count(held["base"])


@pytest.mark.slow
def test_a_run_is_whole_in_its_folder(branched, store_path, phantom_data, tmp_path):
    """It goes on without --base, and translates with more or less of what the branch adds."""
    longer = tmp_path / "longer"
    shutil.copytree(branched, longer)
    assert methods.train(settings(), store_path, longer)
    drawn = []
    for name, control in (("whole", 1.0), ("none", 0.0)):
        done = setups.translate(
            *(branched, phantom_data / "test_ct", tmp_path / name),
            preset="ct",
            sampler={"control": control},
        ).done
        drawn.append(nib.load(done[0]).get_fdata())
    cost = json.loads(next((tmp_path / "whole").glob("*.json")).read_text())["cost"]
    assert cost["parameters"] == models.count(methods.networks(run.load(branched)))
    assert drawn[0].std() > 0 and np.abs(drawn[0] - drawn[1]).max() > 0


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({}, "--base and config.method=controlnet: each needs the other"),
        ({"base": "seeing"}, "a base is a run of diffusion that sees no conditions"),
        ({"base": "base", "codec": "base"}, "--codec: the space that diffusion learns in"),
        (
            {"base": "base", "ours": settings(**{"diffusion.prediction": "eps"})},
            "a base with another config.diffusion.prediction",
        ),
        (
            {"base": "base", "ours": settings(**{"controlnet.channels": (4, 4)})},
            "2 layers lead from 2 px to one, .* stands for 1 px",
        ),
        ({"base": "base", "ours": settings("diffusion")}, "each needs the other"),
    ],
)
def test_what_cannot_be_is_one_line(how, words, base, store_path, tmp_path, tmp_path_factory):
    seeing = tmp_path_factory.mktemp("seeing")
    setups.run_of(config.default(), SIZE).save(seeing)
    runs = {"base": base, "seeing": seeing}
    named = {flag: runs[name] for flag, name in how.items() if flag != "ours"}
    with pytest.raises(InputError, match=words) as error:
        methods.train(how.get("ours", settings()), store_path, tmp_path / "run", **named)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_base_alone_translates_nothing(base, phantom_data, tmp_path):
    with pytest.raises(InputError, match="sees nothing of a source"):
        setups.translate(base, phantom_data / "test_ct", tmp_path / "out", preset="ct")


def test_a_base_that_was_changed_since_is_refused(branched, store_path, phantom_data, tmp_path):
    changed, other = tmp_path / "changed", tmp_path / "other"
    shutil.copytree(branched, changed)
    itself = run.load(branched / "base")
    other.mkdir()
    itself.save(other)
    network = diffusion.models.build(itself.config.model)
    checkpoint.save_averages(other, {parts.NETWORK: network.init(jax.random.key(5))})
    shutil.rmtree(changed / "base")
    words = "base: missing in the folder of the run"
    with pytest.raises(InputError, match=words):
        setups.translate(changed, phantom_data / "test_ct", tmp_path / "out", preset="ct")
    parts.keep({run.BASE: other}, changed)
    with pytest.raises(InputError, match="another base than the run has learnt with"):
        setups.translate(changed, phantom_data / "test_ct", tmp_path / "out", preset="ct")


# --------------------------------------------------------------------------------------------------
# Prompts
# --------------------------------------------------------------------------------------------------

WIDTH = 6


@pytest.fixture
def words(rng):
    return rng.standard_normal((2, 3, WIDTH)).astype(np.float32)


def attentive(**fields):
    ours = settings("diffusion", **{"model.context": WIDTH, "train.condition_dropout": 0.2})
    ours.model.update(conditions=("contour",), middle_attention=True)
    ours.update_from_flattened_dict(fields)
    return ours


def prompted(words, path, ours=None):
    """A run of a network that attends to a prompt."""
    prompts.write(path, words)
    known = run.PromptOf("a head", prompts.digest(words))
    made = setups.run_of(ours or attentive(), SIZE)
    return dataclasses.replace(made, prompt=known, parts={run.PROMPT: path})


def test_a_hidden_prompt_is_that_of_no_words(words):
    fixed = {prompts.FIXED: jnp.asarray(words)}
    seen = prompts.shown(fixed, (2, 4, 4, 1))
    assert seen.keys() == {PROMPT.name}
    hidden = {PROMPT.name: seen[PROMPT.name] * jnp.array([1.0, 0.0])[:, None, None, None]}
    np.testing.assert_allclose(prompts.context(fixed, hidden), words[::-1], atol=1e-6)
    assert prompts.shown({}, (2, 4, 4, 1)) == {} and prompts.context({}, {}) is None


def test_a_network_attends_to_the_prompt_of_its_run(words, tmp_path, rng):
    """And guidance leads from no words to those of the prompt, conditions before it given."""
    method = methods.build(prompted(words, tmp_path / "prompt.npy"), mesh=meshes.local())
    params = jax.tree.map(
        lambda leaf: leaf + 0.05 * rng.standard_normal(leaf.shape).astype(np.float32),
        method.players[parts.NETWORK].init(jax.random.key(0)),
    )
    z_t = rng.standard_normal((2, 8, 8, 1)).astype(np.float32)
    contour = rng.integers(0, 2, (2, 8, 8, 2)).astype(np.float32)
    apply, t = jax.jit(method.network.bound(method.fixed)), jnp.full(2, 500)
    given = {"contour": contour, **prompts.shown(method.fixed, z_t.shape)}
    hidden = given | {PROMPT.name: 0 * given[PROMPT.name]}
    assert np.abs(apply(params, z_t, t, given) - apply(params, z_t, t, hidden)).max() > 1e-3
    scales = {"contour": 2.0, PROMPT.name: 3.0}
    denoise = diffusion.guidance.denoiser(
        apply, params, method.schedule, "x0", given, scales=scales
    )
    nothing = {"contour": 0 * contour, PROMPT.name: 0 * given[PROMPT.name]}
    e_0, e_1, e_2 = (apply(params, z_t, t, seen) for seen in (nothing, hidden, given))
    expected = e_0 + 2 * (e_1 - e_0) + 3 * (e_2 - e_1)
    np.testing.assert_allclose(denoise(z_t, 500), expected, atol=1e-4)


@pytest.mark.slow
def test_a_run_hands_its_prompt_on(words, store_path, phantom_data, tmp_path):
    """To the one that begins with it, which is whole in its folder then."""
    ours = prompted(words, tmp_path / "prompt.npy")
    origin = tmp_path / "origin"
    origin.mkdir()
    store = open_store(store_path)
    ours = dataclasses.replace(ours, grid=store.grid)
    ours.save(origin)
    shutil.copy(tmp_path / "prompt.npy", origin / "prompt.npy")
    method = methods.build(ours, mesh=meshes.local())
    params = method.players[parts.NETWORK].init(jax.random.key(0))
    checkpoint.save_averages(origin, {parts.NETWORK: params})
    folder = tmp_path / "run"
    assert methods.train(attentive(), store_path, folder, init=origin)
    assert run.load(folder).prompt == ours.prompt
    assert methods.train(attentive(), store_path, folder)
    sampler = {"prompt_guidance": 2.0}
    assert setups.translate(
        *(folder, phantom_data / "test_ct", tmp_path / "out"), preset="ct", sampler=sampler
    ).done


def test_a_prompt_that_cannot_be_is_one_line(words, store_path, tmp_path):
    path = tmp_path / "prompt.npy"
    ours = prompted(words, path)
    for array, message in (
        (words + 1, "another prompt than the run has learnt with"),
        (words[:1], r"finite float32 \[2, tokens, width\]"),
        (words.astype(np.float64), "float64"),
        (np.full_like(words, np.nan), "finite"),
    ):
        prompts.write(path, array)
        with pytest.raises(InputError, match=message):
            parts.read(ours, meshes.local())
    path.write_bytes(b"no array")
    with pytest.raises(InputError, match="no array that can be read"):
        parts.read(ours, meshes.local())
    with pytest.raises(InputError, match="which a run has from the one that it begins with"):
        methods.train(attentive(), store_path, tmp_path / "run")


def test_the_space_of_pixels_needs_no_part():
    assert parts.read(setups.run_of(config.default(), SIZE), meshes.local()) == {}
    assert codecs.of(setups.run_of(config.default(), SIZE)) is codecs.PIXELS


# --------------------------------------------------------------------------------------------------
# Beginning with another run
# --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_network_that_saw_less_is_widened_by_zeros(base, store_path, tmp_path):
    """With weights and bias of before in their place: at first what is new changes nothing."""
    ours = settings("diffusion", **{"model.conditions": ("contour",), "train.images": 4})
    ours.train.learning_rate = 0.0
    assert methods.train(ours, store_path, tmp_path / "run", init=base)
    model = diffusion.models.build(ours.model)
    found = parts.weights(tmp_path / "run", model, meshes.local())
    before = parts.weights(
        base, diffusion.models.build(settings("diffusion").model), meshes.local()
    )
    kernel = found["conv_in"]["kernel"]
    np.testing.assert_allclose(kernel[:, :, :1], before["conv_in"]["kernel"], atol=1e-6)
    assert not np.any(kernel[:, :, 1:])
    for name in ("conv_out", "down"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found[name], before[name]
        )
    np.testing.assert_allclose(found["conv_in"]["bias"], before["conv_in"]["bias"], atol=1e-6)


@pytest.mark.slow
def test_a_branch_of_latents_has_its_base_s_settings(store_path, phantom_data, tmp_path):
    """Without a word of them in its own configuration, when it goes on, too; on two devices as one.

    And it is what another ControlNet may begin with.
    """
    codec, base, branched = (tmp_path / name for name in ("codec", "base", "branched"))
    ours = config.default()
    ours.method, ours.model.conditions = "autoencoder", ("source",)
    ours.autoencoder.update(channels=(4, 8), groups=2, latents=2)
    ours.adversarial.update(critic_width=2, critic_layers=2)
    ours.train.update(images=4, batch=4, log=4, evaluate=0, sample=0, checkpoint=0)
    assert methods.train(ours, store_path, codec)
    ours = settings("diffusion", **{"sampler.clip": False, "train.evaluate": 0, "train.sample": 0})
    assert methods.train(ours, store_path, base, codec=codec)
    plain = config.default()
    plain.method, plain.controlnet.channels = "controlnet", (4, 4)
    plain.train.update(images=4, batch=4, log=4, evaluate=0, sample=0, checkpoint=0)
    plain.mesh.update(data=1, fsdp=2)
    assert methods.train(plain, store_path, branched, base=base)
    trained = run.load(branched)
    assert trained.config.model.channels == (8, 8) and not trained.config.sampler.clip
    assert trained.config.model.conditions == ("contour",)
    assert methods.train(plain, store_path, branched)
    assert methods.train(plain, store_path, branched, base=base)
    assert methods.train(plain, store_path, tmp_path / "another", init=branched)
    assert run.load(tmp_path / "another").base == trained.base
    assert setups.translate(
        tmp_path / "another", phantom_data / "test_ct", tmp_path / "out", preset="ct"
    ).done
