# SPDX-License-Identifier: Apache-2.0
"""Translation with a method that sees the source's image: what it is shown, and what it refuses."""

import dataclasses
import json

import numpy as np
import pytest
from setups import translate

from contourdiff_jax import config as configuration
from contourdiff_jax.contours import settings as contour_settings
from contourdiff_jax.data import layouts
from contourdiff_jax.data.prepare import prepare
from contourdiff_jax.data.sources import Pairs
from contourdiff_jax.data.store import open_store
from contourdiff_jax.errors import InputError
from contourdiff_jax.methods import train
from contourdiff_jax.translation import sidecars, volume
from contourdiff_jax.translation.sidecars import Settings
from contourdiff_jax.translation.volume import Plan
from contourdiff_jax.volumes import intensity
from contourdiff_jax.volumes.grid import Grid

GRID = Grid("axial", 7.2, 32)


@pytest.fixture(scope="module")
def paired_run(two_convolutions, paired_store_path, tmp_path_factory):
    """A run that learnt from CT, in a few steps."""
    config = configuration.default()
    config.model.update(conditions=("source",), channels=(8, 16), attention=(False, False))
    config.model.update(middle_attention=False)
    config.train.update(images=8, batch=4, log=0, evaluate=0, sample=0, checkpoint=0, warmup=4)
    config.sampler.update(steps=2, batch=4)
    workdir = tmp_path_factory.mktemp("paired") / "run"
    assert train(config, paired_store_path, workdir)
    return workdir


def plan(sees, **fields):
    """Of CT as the source, and MR as the target."""
    contours = contour_settings.preset("default", "ct")
    both = {"source": dataclasses.replace(contours, **fields), "target": contour_settings.MR}
    settings = Settings(intensity.preset("ct"), intensity.preset("mr"), GRID, both)
    sampler = configuration.default().sampler
    return Plan(settings, intensity.IDENTITY, None, sampler, frozenset(sees), None)


def test_what_is_seen_is_what_a_paired_store_has(phantom_data, tmp_path):
    grid = {"spacing": GRID.spacing, "size": GRID.size}
    pairs = Pairs(phantom_data / "test_ct", "ct")
    prepare(phantom_data / "test_mr", tmp_path / "store", "mr", pairs=pairs, **grid, validation=0)
    store = open_store(tmp_path / "store")
    scans = layouts.find(phantom_data / "test_ct", modality="ct").scans
    for scan in scans:
        rows = np.flatnonzero(store.index["subject"] == scan.subject)
        source = volume.read(plan(["source"]), scan)
        assert set(source.seen) == {"source"} and len(rows) == 5
        np.testing.assert_allclose(source.seen["source"], store.source_images(rows), atol=1e-4)
        both = volume.read(plan(["source", "contour"]), scan).seen
        np.testing.assert_array_equal(both["source"], source.seen["source"])
        assert both["contour"].any()


def test_an_image_without_contours_is_seen_all_the_same(phantom_data):
    scan = layouts.find(phantom_data / "test_ct", modality="ct").scans[0]
    blind = {"low": 1e6, "high": 1e6}
    source = volume.read(plan(["source"], **blind), scan)
    assert not source.contours.any() and (source.air == ~source.body.any((1, 2))).all()
    with pytest.raises(InputError, match="no contour in any slice"):
        volume.read(plan(["contour", "source"], **blind), scan)


def test_a_sidecar_says_what_was_seen_and_what_was_learnt_from(paired_run, phantom_data, tmp_path):
    source = phantom_data / "test_ct"
    result = translate(paired_run, source, tmp_path / "out", preset="ct")
    assert len(result.done) == 2 and not result.failed
    written = [json.loads(path.read_text()) for path in sorted((tmp_path / "out").glob("*.json"))]
    told = {"method": "diffusion", "sees": ["source"], "training": "paired"}
    for fields in written:
        assert {name: fields[name] for name in told} == told
        assert fields["preset"] == {"source": "ct", "target": "mr"}
    again = translate(paired_run, source, tmp_path / "out", preset="ct")
    assert len(again.kept) == 2 and not again.done


def test_sidecars_of_before_say_as_much_by_their_configuration():
    config = configuration.default().to_dict()
    new = {"config": config, "method": "diffusion", "sees": ["contour"], "training": "unpaired"}
    assert sidecars.states({"config": config}, new)
    assert not sidecars.states({"config": config}, new | {"training": "paired"})
    # The slice before, which SCGD draws, is nothing of the source.
    config["model"]["conditions"] = ("contour", "neighbour")
    assert sidecars.states({"config": config}, new | {"config": config})


def test_a_source_that_was_not_learnt_from_is_refused(paired_run, phantom_data, tmp_path):
    for options, named in (
        ({"preset": "mr"}, "learnt from ct, not from --preset=mr"),
        ({"preset": "ct", "contours": "united"}, "--contours: the run does not see the source's"),
    ):
        with pytest.raises(InputError, match=named) as error:
            translate(paired_run, phantom_data / "test_ct", tmp_path / "out", **options)
        assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="--guidance: has no effect unless"):
        translate(
            paired_run,
            phantom_data / "test_ct",
            tmp_path / "out",
            preset="ct",
            sampler={"guidance": 2.0},
        )
    # Maps compare contours, whatever the network sees.
    result = translate(
        paired_run,
        phantom_data / "test_ct" / "phantom005_ct.nii.gz",
        tmp_path / "out",
        preset="ct",
        contours="united",
        sampler={"samples": 2},
    )
    assert len(result.done) == 1
