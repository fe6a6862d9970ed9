# SPDX-License-Identifier: Apache-2.0
"""`contourdiff contours`: what it finds in stores of phantoms, and what it refuses."""

import dataclasses
import json
import re

import numpy as np
import pytest
from absl import flags
from PIL import Image

from contourdiff_jax import cli
from contourdiff_jax.commands import contours
from contourdiff_jax.contours import opencv
from contourdiff_jax.contours import settings as contour_settings
from contourdiff_jax.contours.settings import ContourSettings
from contourdiff_jax.data.prepare import prepare
from contourdiff_jax.data.store import open_store
from contourdiff_jax.evaluation import contour_gap as command
from contourdiff_jax.runtime import ownership


@pytest.fixture(scope="module")
def ct_store(phantom_data, tmp_path_factory):
    """The CT of heads that the MR store does not hold."""
    out = tmp_path_factory.mktemp("stores") / "ct"
    prepare(phantom_data / "test_ct", out, "ct", spacing=7.2, size=32, validation=0)
    return out


@pytest.fixture(scope="module")
def crossing(store_path, ct_store, tmp_path_factory):
    """(folder, what is in its statistics.json) of the published contours of that CT."""
    out = tmp_path_factory.mktemp("crossings") / "ct"
    assert run(f"--store={store_path}", f"--source={ct_store}", f"--out={out}", PUBLISHED) == 0
    return out, json.loads((out / "statistics.json").read_text())


PUBLISHED = "--source_contours=published"


def run(*arguments) -> int:
    return cli.main(["contourdiff", "contours", *arguments])


def settings_file(path, **fields):
    path.write_text(json.dumps({"low": 20, "high": 50, "windows": [[-20, 60]]} | fields))
    return path


# ----------------------------------------------------------------------------------------------
# What is found
# ----------------------------------------------------------------------------------------------


def test_statistics_of_a_store(store_path, capsys):
    assert run(f"--store={store_path}") == 0
    printed = capsys.readouterr().out
    assert "contour, share of the body" in printed and "GAP" not in printed


def test_density_is_that_of_the_contours_themselves(store_path):
    """In and just around the body, of the split that is trained on."""
    store = open_store(store_path)
    found = command.describe(command.domain(store_path, split="train"))
    rows = store.rows("train")
    drawn = opencv.stack(
        store.values(rows), store.masks[rows], contour_settings.preset("default", "mr")
    )
    entry = found["target"]
    assert entry["subjects"] == len(store.subjects("train")) and entry["slices"] == len(rows)
    inside = drawn.sum() / (store.masks[rows] > 0).sum()
    assert 0.6 * inside < entry["statistics"]["density"] < inside


def test_suggested_settings_have_the_smallest_gap_and_are_what_translate_takes(crossing):
    out, found = crossing
    suggested = contour_settings.named(out / "contours.json", "ct")
    assert suggested == ContourSettings.from_dict(found["suggested"]["contours"])
    gaps = [entry["gap"] for entry in found["search"]]
    assert found["suggested"]["gap"]["gap"] == min(gaps)
    assert min(gaps) < 0.8 * found["source"]["gap"]["gap"]


def test_settings_stay_as_they_are_where_none_are_better(store_path):
    """A domain is not apart from itself."""
    target = command.domain(store_path)
    found = command.compare(target, target)
    assert found["suggested"]["contours"] == found["source"]["contours"]
    assert found["source"]["gap"]["gap"] == 0 == found["structural_bias"]["value"]


def test_everything_is_written_down(crossing):
    out, found = crossing
    assert sorted(path.name for path in out.iterdir()) == [
        ownership.MARK,
        "contact_sheet.png",
        "contours.json",
        "statistics.json",
    ]
    assert found["schema"] == command.SCHEMA
    assert found["grid"] == {"axis": "axial", "spacing": 7.2, "size": 32}
    assert found["target"]["modality"] == "mr" and found["source"]["modality"] == "ct"
    assert 0 < found["structural_bias"]["value"] < 1 and "formula" in found["structural_bias"]
    text = contours.table(found)
    assert f"{found['suggested']['gap']['gap']:.2f}" in text
    assert found["structural_bias"]["formula"] in text
    with Image.open(out / "contact_sheet.png") as sheet:
        assert np.asarray(sheet.convert("RGB")).std() > 10


def entries(own, suggested, target=5, source=3):
    """The statistics of two domains of which nothing counts but gaps and subjects."""
    return {
        "target": {"subjects": target},
        "source": {"subjects": source, "gap": {"gap": own}},
        "suggested": {"gap": {"gap": suggested}},
    }


@pytest.mark.parametrize(
    ("statistics", "said"),
    [
        (entries(1.3, 1.2), "^near .gap 1.3; .*: keep the source's settings.$"),
        (entries(5.3, 1.2), "^near .gap 1.2 instead of 5.3; .*: take the suggested settings.$"),
        (entries(4.0, 3.9), "^neither near nor far .gap 4.0; .*: keep the source's settings.$"),
        (entries(9.0, 8.0), "^far, whatever is set .gap 9.0; .*wrong outlines"),
        (entries(1, 1, target=4), "^none, with 4 of the target where it takes 5 subjects"),
        (
            entries(1, 1, 2, 1),
            "^none, with 2 of the target .* and 1 of the source where it takes 3",
        ),
    ],
)
def test_the_verdict_is_a_sentence(statistics, said):
    assert re.search(said, command.verdict(statistics))


@pytest.mark.parametrize(
    ("given", "gaps", "next_command"),
    [
        (("--out=o",), (1.3, 1.2), "--preset=ct --out=TRANSLATED"),
        (("--source_contours=mine.json",), (1.3, 1.2), "--preset=ct --contours=mine.json --out="),
        (("--out=o",), (5.0, 1.2), "--preset=ct --contours=o/contours.json --out=TRANSLATED"),
        ((), (5.0, 1.2), "--source=b --out=CONTOURS"),
        (("--out=o",), (9.0, 8.9), "--source=b --source_contours=MINE.json --out=CONTOURS"),
    ],
)
def test_the_next_command_takes_the_settings_of_the_verdict(given, gaps, next_command):
    """Suggested ones need a file, those of the preset no flag."""
    values = flags.FlagValues()
    contours.define_flags(values)
    values(["contours", "--store=a", "--source=b", *given])
    statistics = entries(*gaps)
    own = contour_settings.preset("default", "ct")
    if "mine" in str(given):
        own = dataclasses.replace(own, low=own.low / 2)
    statistics["source"] |= {"modality": "ct", "contours": own.to_dict()}
    assert next_command in contours.following(values, statistics)


def test_a_verdict_is_printed_with_what_comes_next(store_path, ct_store, capsys):
    assert run(f"--store={store_path}", f"--source={ct_store}") == 0
    assert re.search("^verdict: .*\nnext:\n  contourdiff ", capsys.readouterr().out, re.MULTILINE)


def test_the_same_numbers_come_again(crossing, store_path, ct_store):
    source = command.domain(ct_store, "published")
    again = command.compare(source, command.domain(store_path, split="train"))
    assert json.loads(json.dumps(again)) == crossing[1]


def test_thresholds_are_searched_for_every_window_and_curve(ct_store, tmp_path):
    own = settings_file(tmp_path / "own.json", windows=[[-77, 77]])
    tried = command.candidates(command.domain(ct_store, str(own)))
    assert len(set(tried)) == len(tried)
    families = {(each.windows, each.curve, each.thin) for each in tried}
    assert (((-77.0, 77.0),), (), 0) in families
    assert ((), contour_settings.CT_CURVE, contour_settings.CT.thin) in families
    assert not any(each.native for each in tried)


def test_one_picture_in_the_store_serves_for_all_thresholds(ct_store):
    """Those of its own are what contours are anyway."""
    source = command.domain(ct_store)
    assert source.settings == contour_settings.CT
    strict = dataclasses.replace(contour_settings.CT, low=150, high=300)
    assert strict.served_by(source.store.contour_settings)
    other = dataclasses.replace(strict, thin=5)
    assert not other.served_by(source.store.contour_settings)
    some, others = source.contours(strict) > 0, source.contours() > 0
    assert others.sum() > some.sum() and not (some & ~others).any()


def test_contours_of_native_pixels_are_those_of_the_store(phantom_data, tmp_path):
    out = tmp_path / "ct"
    prepare(phantom_data / "test_ct", out, "ct", spacing=7.2, size=32, contours_file="original")
    source = command.domain(out)
    np.testing.assert_array_equal(source.contours(), source.store.contours[source.rows])
    assert not any(each.of_voxels for each in command.candidates(source))


# ----------------------------------------------------------------------------------------------
# What is refused
# ----------------------------------------------------------------------------------------------


@pytest.fixture
def refused(capfd):
    def check(*arguments) -> str:
        assert run(*map(str, arguments)) == 2
        written = capfd.readouterr()
        assert written.out == "" and written.err.count("\n") == 1, written
        return written.err

    return check


def test_a_store_is_needed(refused, ct_store):
    assert "--store is required" in refused(f"--source={ct_store}")
    assert "not a store" in refused(f"--store={ct_store.parent}")
    assert "without --source" in refused(f"--store={ct_store}", PUBLISHED)


def test_a_source_on_another_grid(refused, store_path, phantom_data, tmp_path):
    prepare(phantom_data / "test_ct", tmp_path / "ct", "ct", spacing=9, size=24, validation=0)
    error = refused(f"--store={store_path}", f"--source={tmp_path / 'ct'}")
    assert "24 px of 9 mm" in error and "32 px of 7.2 mm" in error


def test_empty_contours(refused, store_path, ct_store, tmp_path):
    """No edge is as steep; and no value lies in the window."""
    for fields in ({"high": 1e6}, {"windows": [[3000, 3001]]}):
        path = settings_file(tmp_path / "none.json", **fields)
        error = refused(
            f"--store={store_path}", f"--source={ct_store}", f"--source_contours={path}"
        )
        assert str(ct_store) in error and "contours are empty" in error


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"low": 60}, "0 <= low <= high"),
        ({"windows": [[60, -20]]}, "low < high"),
        ({"windows": [[5, 5]]}, "low < high"),
    ],
)
def test_settings_that_cannot_be(refused, store_path, tmp_path, fields, reason):
    path = settings_file(tmp_path / "bad.json", **fields)
    error = refused(f"--store={store_path}", f"--contours={path}")
    assert str(path) in error and reason in error


def test_a_target_of_one_subject(refused, phantom_data, ct_store, tmp_path):
    one = sorted((phantom_data / "train_mr").iterdir())[0]
    prepare(one, tmp_path / "mr", "mr", spacing=7.2, size=32, validation=0)
    assert "one subject only" in refused(f"--store={tmp_path / 'mr'}", f"--source={ct_store}")


def test_a_target_of_copies(refused, phantom_data, ct_store, tmp_path):
    one = sorted((phantom_data / "train_mr").iterdir())[0]
    (tmp_path / "scans").mkdir()
    for name in ("a", "b"):
        (tmp_path / "scans" / f"{name}_mr.nii.gz").write_bytes(one.read_bytes())
    prepare(tmp_path / "scans", tmp_path / "mr", "mr", spacing=7.2, size=32, validation=0)
    assert "same to the bit" in refused(f"--store={tmp_path / 'mr'}", f"--source={ct_store}")


def test_contours_that_the_store_does_not_hold(refused, store_path):
    assert "`prepare --contours=original` again" in refused(
        f"--store={store_path}", "--contours=original"
    )


def test_a_folder_in_use(refused, store_path):
    assert "lies in --store" in refused(f"--store={store_path}", f"--out={store_path}")
