# SPDX-License-Identifier: Apache-2.0
"""Offers: what is downloaded is what the command writes, and each run is compiled for once."""

import copy
import dataclasses
import json
import resource
import zipfile

import nibabel
import numpy as np
import pytest
import setups

from contourdiff_jax.data.store import open_store
from contourdiff_jax.demo import views
from contourdiff_jax.demo.offers import Offer, Wish
from contourdiff_jax.demo.views import Drawn, Seen
from contourdiff_jax.errors import InputError
from contourdiff_jax.training import checkpoint
from contourdiff_jax.translation.sidecars import NOTICE
from contourdiff_jax.volumes import intensity
from contourdiff_jax.volumes.volume import UNKNOWN


def quiet(count):
    """Who is told how far it is, and does not mind."""


def test_a_translation_is_what_the_command_writes(offer, head, tmp_path):
    """To the bit, with its maps, and so is the sidecar, but for its cost."""
    wish, counts = Wish("ct", samples=2, seed=3), []
    made = offer.translate(offer.request(head, tmp_path / "demo", wish), counts.append)
    out = tmp_path / "command"
    setups.translate(offer.folder, head, out, preset="ct", seed=3, sampler={"samples": 2})
    names = {path.relative_to(out) for path in out.rglob("*") if path.is_file()}
    assert made.image.relative_to(tmp_path / "demo") in names and len(made.maps) == 3
    for name in names - {made.sidecar.relative_to(tmp_path / "demo")}:
        ours, theirs = (nibabel.load(root / name) for root in (tmp_path / "demo", out))
        assert ours.header == theirs.header
        np.testing.assert_array_equal(ours.get_fdata(), theirs.get_fdata())
    ours, theirs = (
        json.loads((p / made.sidecar.name).read_text()) for p in (made.sidecar.parent, out)
    )
    changing = {"seconds", "cost"}
    assert all(ours[name] == theirs[name] for name in theirs.keys() - changing)
    slices = nibabel.load(head).shape[2]
    assert counts == list(range(1, 1 + offer.batches(slices, 2)))


def test_a_zip_holds_all_files_and_not_itself(offer, head, tmp_path):
    out = tmp_path / "out"
    made = offer.translate(offer.request(head, out, Wish("ct", samples=2)), quiet)
    with zipfile.ZipFile(made.whole) as archive:
        packed = {name for name in archive.namelist() if not name.endswith("/")}
    assert packed == {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert offer.translate(offer.request(head, tmp_path / "1", Wish("ct")), quiet).whole is None


def test_files_say_that_they_are_synthetic(offer, head, tmp_path):
    made = offer.translate(offer.request(head, tmp_path / "out", Wish("ct", samples=2)), quiet)
    for path in (made.image, *made.maps.values()):
        assert nibabel.load(path).header["descrip"].item().decode() == NOTICE
    assert json.loads(made.sidecar.read_text())["notice"] == NOTICE


def test_a_run_is_compiled_for_once(offer, head, tmp_path, monkeypatch):
    """Whatever the contours, the seed and the number of samples."""
    loaded, load = [], checkpoint.averages
    monkeypatch.setattr(checkpoint, "averages", lambda *args: loaded.append(1) or load(*args))
    fresh = Offer(offer.folder)
    source, settings = fresh.read(fresh.request(head, tmp_path / "0", Wish("ct")))
    contours = dataclasses.replace(settings.contours["source"], low=100.0, high=200.0)
    first = fresh.translate(fresh.request(head, tmp_path / "a" / "1", Wish("ct")), quiet)
    compiled = fresh._networks[False].translator.draw._cache_size()
    wish = Wish("ct", contours, samples=2, seed=5)
    (tmp_path / "b").mkdir()
    second = fresh.translate(fresh.request(head, tmp_path / "b" / "2", wish), quiet)
    assert len(loaded) == 1
    assert fresh._networks[False].translator.draw._cache_size() == compiled
    said = json.loads(second.sidecar.read_text())["contours"]["source"]
    assert (said["low"], said["high"]) == (100.0, 200.0)
    assert source.contours.any() and first.image.read_bytes() != second.image.read_bytes()


def test_who_leaves_ends_the_drawing(offer, head, tmp_path):
    def leave(count):
        raise InputError("left")

    with pytest.raises(InputError, match="left"):
        offer.translate(offer.request(head, tmp_path / "out", Wish("ct")), leave)


@pytest.mark.parametrize("wish", [{"samples": 0}, {"samples": 9}, {"seed": -1}, {"seed": 1.5}])
def test_wishes_have_bounds(wish):
    with pytest.raises(InputError, match=next(iter(wish))):
        Wish("ct", **wish)


@pytest.mark.parametrize(
    ("source", "target", "both", "chosen"),
    [
        (None, "mr", False, {"ct": "ct", "mr": "mr"}),
        ("ct_wide", "mr", False, {"ct": "ct_wide", "mr": "mr"}),
        ("mr", "ct_wide", False, {"ct": "ct", "mr": "mr"}),
        ("mr", "ct_wide", True, {"ct": "ct_wide", "mr": "mr"}),
    ],
)
def test_a_modality_is_what_the_run_learnt_of_it(offer, head, source, target, both, chosen):
    """Of a run that translates both ways, that of either side."""
    run = dataclasses.replace(
        offer.run,
        preset=intensity.preset(target),
        source_preset=source and intensity.preset(source),
        source_window=intensity.IDENTITY if both else None,
    )
    ours = copy.copy(offer)
    ours.run = run
    asked = {name: ours.request(head, head.parent, Wish(name)).preset for name in chosen}
    assert asked == chosen


def test_a_run_that_learnt_from_wide_ct_reads_ct(two_convolutions, store_path, head, tmp_path):
    store = setups.paired(open_store(store_path), tmp_path / "store", "ct_wide")
    wide = Offer(setups.drawing(tmp_path / "run", store, conditions=("source",)))
    source, settings = wide.read(wide.request(head, tmp_path / "out", Wish("ct")))
    assert settings.source.name == "ct_wide" and source.said == ()


def test_wrong_modality_is_a_warning(offer, head, tmp_path):
    source, settings = offer.read(offer.request(head, tmp_path / "out", Wish("mr")))
    seen = Seen.of(source, settings)
    assert any("look like ct" in line for line in seen.said)


def test_what_is_looked_at(offer, head, tmp_path):
    """Slices, contours by thresholds, the translation and the map lie on one grid."""
    request = offer.request(head, tmp_path / "out", Wish("ct", samples=2))
    source, settings = offer.read(request)
    seen = Seen.of(source, settings)
    number = len(seen) // 2
    np.testing.assert_array_equal(seen.edges(number, seen.settings), source.contours[number])
    steep = dataclasses.replace(seen.settings, low=400.0, high=450.0)
    assert seen.edges(number, steep).sum() < source.contours[number].sum()
    made = offer.translate(request, quiet)
    drawn = Drawn.of(made, seen, UNKNOWN)
    assert drawn.stack.greys.shape == drawn.spread.greys.shape == seen.stack.greys.shape
    np.testing.assert_allclose(drawn.stack.positions, seen.stack.positions)
    for picture in (
        views.picture(seen.stack.greys[number], source.contours[number]),
        views.heat(drawn.spread.greys[number]),
    ):
        assert picture.dtype == np.uint8 and picture.shape[2] == 3
        assert min(picture.shape[:2]) >= views.SIDE


@pytest.mark.slow
def test_memory_does_not_grow(offer, phantom_data, tmp_path):
    """Heads with other numbers of slices, again and again."""
    heads = []
    for count in (3, 4, 5):
        path = sorted((phantom_data / "test_ct").glob("*.nii.gz"))[0]
        image = nibabel.load(path)
        heads.append(tmp_path / f"head{count}_ct.nii.gz")
        nibabel.save(image.slicer[:, :, :count], heads[-1])
    peaks = []
    for number in range(18):
        request = offer.request(heads[number % 3], tmp_path / f"{number}", Wish("ct"))
        Seen.of(*offer.read(request))
        offer.translate(request, quiet)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert peaks[-1] - peaks[5] < 20 << 10, "more than 20 MB in twelve translations"
