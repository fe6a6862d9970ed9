# SPDX-License-Identifier: Apache-2.0
"""pix2pix: a run of it from the first step to a translated folder, in pieces and on any mesh."""

import jax
import nibabel as nib
import numpy as np
import pytest
import setups
from PIL import Image
from setups import stats, stopping

from contourdiff_jax import config, methods
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training import run

SIZE, STEPS = 32, 6


def settings(conditions=("contour",), **fields):
    """Six steps of four images, looked at in the middle and at the end."""
    ours = config.default()
    ours.method, ours.model.conditions = "pix2pix", conditions
    ours.adversarial.update(width=2, levels=5, critic_width=2, critic_layers=2, norm="batch")
    ours.train.update(images=4 * STEPS, batch=4, log=4, evaluate=12, sample=12, checkpoint=0)
    ours.train.update(decay="linear", constant=0.5, beta_1=0.5, weight_decay=0.0, clip=0.0)
    ours.sampler.batch = 4
    ours.update_from_flattened_dict(fields)
    return ours


@pytest.fixture(scope="module")
def whole(store_path, tmp_path_factory):
    """A run from contours that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert methods.train(settings(), store_path, folder)
    return folder


def test_stopping_and_resuming_changes_nothing(store_path, whole, tmp_path):
    """Both players, the average, both optimisers, the record and pictures: to the bit."""
    workdir, like = tmp_path / "run", setups.like(settings(), SIZE)
    with pytest.MonkeyPatch.context() as patch:
        stopping(patch, 2)
        assert not methods.train(settings(), store_path, workdir)
    assert 0 < setups.last_state(workdir, like).step < STEPS
    assert methods.train(settings(), store_path, workdir)
    state = setups.last_state(workdir, like)
    assert state.params.keys() == state.optimiser.keys() == {"critic", "generator"}
    assert state.ema.keys() == {"generator"}
    jax.tree.map(np.testing.assert_array_equal, state, setups.last_state(whole, like))
    assert stats(workdir) == stats(whole)
    names = [path.name for path in sorted((whole / "samples").iterdir())]
    assert names and all(
        (workdir / "samples" / name).read_bytes() == (whole / "samples" / name).read_bytes()
        for name in names
    )


def test_the_record_has_both_players_and_alarms(whole):
    lines = stats(whole)
    trained = next(line for line in lines if "critic_loss" in line)
    assert {"generator_loss", "generator_l1", "generator_adversarial"} <= trained.keys()
    assert trained["generator_loss"] == pytest.approx(
        trained["generator_adversarial"] + 100 * trained["generator_l1"], rel=1e-5
    )
    held = next(line for line in lines if "heldout_loss" in line)
    # Contours are no image that what is drawn could be the same as.
    alarms = {name for name in held if name.startswith("alarm")}
    assert alarms == {"alarm_reversed", "alarm_checkerboard"}


def test_a_picture_shows_the_truth_its_contours_and_what_is_drawn(whole):
    picture = np.asarray(Image.open(sorted((whole / "samples").iterdir())[-1]))
    truth, contours, drawn = np.split(picture, 3, axis=1)
    assert set(np.unique(contours)) == {0, 255}
    assert truth.std() > 0 and drawn.std() > 0


@pytest.mark.slow
def test_devices_hardly_matter(rng):
    """Norms of a batch are those of all of it, wherever its parts lie."""
    contour = rng.integers(0, 2, (4, SIZE, SIZE, 2)).astype(np.float32)
    x = rng.uniform(-1, 1, (4, SIZE, SIZE, 1)).astype(np.float32)
    found = []
    for devices in (1, 2):
        plan = setups.setup(settings(**{"mesh.data": devices}), SIZE)
        example = meshes.put(meshes.batch(plan.mesh), {"x": x, "condition": {"contour": contour}})
        _, metrics = plan.step(plan.init(jax.random.key(0)), example)
        found.append(jax.device_get(metrics))
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, rtol=1e-3, err_msg=name)


def volumes(folder):
    return {path.name: nib.load(path).get_fdata() for path in sorted(folder.glob("*.nii.gz"))}


def test_a_slice_is_drawn_alone(whole, phantom_data, tmp_path):
    """How many are drawn at once, on how many devices, changes nothing but rounding."""
    drawn = []
    for name, batch, devices in (("a", 4, 2), ("b", 1, 1)):
        done = setups.translate(
            *(whole, phantom_data / "test_ct", tmp_path / name),
            preset="ct",
            sampler={"batch": batch},
            devices=devices,
        ).done
        assert len(done) == 2
        drawn.append(volumes(tmp_path / name))
    for name, volume in drawn[0].items():
        assert volume.std() > 0
        np.testing.assert_allclose(drawn[1][name], volume, atol=1e-3 * np.ptp(volume))


@pytest.mark.slow
def test_a_source_is_seen_where_pairs_are(paired_store_path, tmp_path):
    """Sources are the reverse of the images here, and that is soon learnt."""
    ours = settings(("source",), **{"train.images": 120, "train.sample": 0, "train.log": 0})
    ours.adversarial.norm = "instance"
    ours.train.learning_rate = 1e-2
    assert methods.train(ours, paired_store_path, tmp_path / "run")
    held = [line for line in stats(tmp_path / "run") if "heldout_loss" in line]
    assert held[-1]["heldout_loss"] < 0.7 * held[0]["heldout_loss"]
    assert {"alarm_identity", "alarm_reversed", "alarm_checkerboard"} <= held[-1].keys()
    assert run.load(tmp_path / "run").paired


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"adversarial.levels": 6}, "cannot be halved 6 times.*adversarial.levels"),
        ({"adversarial.critic_layers": 4}, "nothing is left after 4 halvings"),
        ({"adversarial.pool": 5}, "adversarial.pool: has no effect unless config.method is cycle"),
        ({"adversarial.dropout": 0.2}, "levels above 5"),
        ({"model.channels": (32, 32, 32, 32)}, "model.channels: has no effect unless"),
        ({"diffusion.steps": 10}, "diffusion.steps: has no effect unless"),
        ({"model.conditions": ("source",)}, "without sources"),
        ({"model.conditions": ("contour", "neighbour")}, "neighbour"),
    ],
)
def test_what_cannot_be_is_one_line(store_path, tmp_path, fields, words):
    with pytest.raises(InputError, match=words) as error:
        methods.train(settings(**fields), store_path, tmp_path / "run")
    assert "\n" not in str(error.value)


def test_a_source_store_is_for_others(store_path, tmp_path):
    with pytest.raises(InputError, match=r"--source_store and config.method=cyclegan"):
        methods.train(settings(), store_path, tmp_path / "run", source_store=store_path)
