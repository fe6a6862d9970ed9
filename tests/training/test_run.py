# SPDX-License-Identifier: Apache-2.0
"""A run's config.json: what it keeps of the data, and how it fails."""

import csv
import dataclasses
import json

import pytest

from contourdiff_jax import config
from contourdiff_jax.contours.settings import ContourSettings, preset
from contourdiff_jax.data import pseudonyms
from contourdiff_jax.data.prepare import prepare
from contourdiff_jax.data.store import open_store
from contourdiff_jax.errors import InputError
from contourdiff_jax.training import run, summary
from contourdiff_jax.volumes import filenames


@pytest.fixture
def store(store_path):
    return open_store(store_path)


@pytest.fixture
def saved(store, tiny, tmp_path):
    """(run, the folder it is saved in)"""
    ours = run.begin(tiny, store)
    ours.save(tmp_path)
    return ours, tmp_path


def rewrite(folder, change):
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    fields.pop("digest", None)
    change(fields)
    path.write_text(json.dumps(fields))


def test_what_is_saved_is_loaded(saved):
    ours, folder = saved
    read = run.load(folder)
    assert config.differences(read.config, ours.config) == []
    for field in ("preset", "window", "grid", "contours", "subjects"):
        assert getattr(read, field) == getattr(ours, field)
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_a_run_knows_its_training_data(store, tiny):
    ours = run.begin(tiny, store)
    assert ours.preset == store.preset
    assert ours.grid == store.grid
    assert ours.window == store.median_window()
    scheme = pseudonyms.scheme(store.index["sha256"].tolist())
    assert ours.subjects == pseudonyms.made(store.subjects("train"), scheme)


def test_a_run_knows_the_sources_that_it_learns_from(paired_store_path, tiny, tmp_path):
    """And to one that does not look at them, a paired store is that of its target."""
    store = open_store(paired_store_path)
    plain = run.begin(tiny, store)
    assert plain.source_preset is None and not plain.paired
    assert not {"source_preset", "paired"} & set(plain.to_dict()["data"])
    tiny.model.conditions = ("source",)
    ours = run.begin(tiny, store)
    assert ours.source_preset is store.source_preset and ours.paired
    ours.save(tmp_path)
    read = run.load(tmp_path)
    assert read.source_preset is store.source_preset and read.paired
    assert "paired with ct of -1000 to 1000 HU" in summary.summary(tmp_path, ours)["images"]
    rewrite(tmp_path, lambda fields: fields["data"].update(source_preset="pet"))
    with pytest.raises(InputError, match="pet"):
        run.load(tmp_path)


def test_subjects_are_recognised_but_not_named(saved, store):
    _, folder = saved
    text = (folder / "config.json").read_text()
    for name in store.subjects():
        assert name not in text
        assert filenames.subject_digest(name) not in text  # found among guesses in a moment
    known = run.load(folder).subjects
    assert pseudonyms.recognised(store.subjects("train")[0], (), known)
    assert not pseudonyms.recognised(store.subjects("val")[0], (), known)


def test_a_run_of_before_goes_on_with_its_pseudonyms(store, tiny, tmp_path):
    ours = run.begin(tiny, store)
    theirs = dataclasses.replace(ours, subjects=pseudonyms.made(store.subjects("train")))
    with run.claimed(tmp_path / "run", theirs):
        pass
    begun = run.load(tmp_path / "run")
    assert begun.subjects == theirs.subjects != ours.subjects
    with run.claimed(tmp_path / "run", run.begin(tiny, store, before=begun)):
        pass


def test_contours_are_those_of_the_preset_but_for_what_is_set(store, tiny):
    default = preset("default", "mr")
    assert run.begin(tiny, store).contours == default
    tiny.contours.low = 40.0
    assert run.begin(tiny, store).contours == dataclasses.replace(default, low=40)
    tiny.contours.preset = "published"
    assert run.begin(tiny, store).contours == dataclasses.replace(preset("published", "mr"), low=40)
    tiny.contours.update(windows=((0, 0.5), (0.5, 1)), low=10, high=20, blur=5, apart=1)
    windows = ((0, 0.5), (0.5, 1))
    expected = ContourSettings(windows=windows, low=10, high=20, blur=5, apart=1)
    assert run.begin(tiny, store).contours == expected
    tiny.contours.update(windows=(), curve=((0, 0), (1, 1)), apart=0)
    expected = ContourSettings(curve=((0, 0), (1, 1)), low=10, high=20, blur=5)
    assert run.begin(tiny, store).contours == expected


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"blur": 4}, r"config\.contours\.blur: 4"),
        ({"low": 60.0}, r"config\.contours: the thresholds low=60.0 and high=50"),
        ({"thin": 3.0}, r"config\.contours\.thin: it is of a curve alone"),
        ({"clean": (80, 30)}, r"config\.contours\.clean: it is of native pixels"),
        ({"windows": ()}, r"config\.contours\.windows: one .* is needed"),
        (
            {"windows": (("a", "b"),)},
            r"config\.contours\.windows\[0\]\[0\]: .a., where a finite number",
        ),
        ({"apart": 1}, r"config\.contours\.apart: has no effect unless"),
    ],
)
def test_contours_that_cannot_be_had_are_refused(store, tiny, fields, named):
    tiny.contours.update(**fields)
    with pytest.raises(InputError, match=named):
        run.begin(tiny, store)


def test_one_picture_of_voxels_serves_for_all_thresholds(tiny, phantom_data, tmp_path):
    """But not for lines of another width: these are taken out of what the store keeps."""
    prepare(phantom_data / "train_ct", tmp_path / "ct", "ct", spacing=7.2, size=32)
    store = open_store(tmp_path / "ct")
    tiny.contours.update(low=40.0, high=90.0, blur=5)
    expected = dataclasses.replace(preset("default", "ct"), low=40, high=90, blur=5)
    assert run.begin(tiny, store).contours == expected
    tiny.contours.thin = 2.0
    with pytest.raises(InputError, match="`prepare --contours=FILE` again"):
        run.begin(tiny, store)
    tiny.contours.thin = 0.0
    assert not run.begin(tiny, store).contours.of_voxels


def test_contours_set_in_other_words_are_no_other_run(store, tiny, tmp_path):
    ours = run.begin(tiny, store)
    with run.claimed(tmp_path / "run", ours):
        pass
    tiny.contours.low = float(ours.contours.low)
    with run.claimed(tmp_path / "run", run.begin(tiny, store)):
        pass
    tiny.contours.low = 10.0
    other = run.begin(tiny, store)
    with (
        pytest.raises(InputError, match=r"another contours\.low"),
        run.claimed(tmp_path / "run", other),
    ):
        pass


# The section as versions without methods wrote it: all of it, whether it counted or not.
BEFORE = {
    **{"preset": "default", "windows": [], "curve": [], "low": 20.0, "high": 50.0, "blur": 3},
    **{"apart": 0, "thin": 0.0, "native": False, "clean": []},
}


def of_before(folder, contours):
    """What is loaded of a config.json of such a version."""

    def older(fields):
        del fields["config"]["method"]
        fields["config"]["contours"] = contours

    rewrite(folder, older)
    return run.load(folder)


@pytest.mark.parametrize(
    "ignored", [{}, {"low": 45.0}, {"high": 200.0, "blur": 5, "apart": 3, "thin": 2.0}]
)
def test_contours_of_a_preset_were_those_of_the_preset_alone(saved, store, tiny, ignored):
    """Then the other fields of the section did nothing, so a run is resumed without them."""
    ours, folder = saved
    read = of_before(folder, BEFORE | ignored)
    assert config.differences(read.config, tiny) == []
    assert run.begin(read.config, store).contours == ours.contours == read.contours
    with run.claimed(folder, run.begin(tiny, store)):
        pass


@pytest.mark.parametrize("earlier", [(), ("thin", "native", "clean")])
def test_contours_without_a_preset_were_all_of_the_section(saved, store, tiny, earlier):
    """A run is resumed with the command that it was made with, and its defaults do not count."""
    _, folder = saved
    windows = [[0.0, 0.5], [0.25, 1.0]]
    section = BEFORE | {"preset": "published", "windows": windows, "low": 30.0}
    expected = ContourSettings(windows=windows, low=30, high=50)
    rewrite(folder, lambda fields: fields["data"].update(contours=expected.to_dict()))
    read = of_before(folder, {name: section[name] for name in section if name not in earlier})
    assert run.begin(read.config, store).contours == expected
    tiny.contours.update(windows=((0.0, 0.5), (0.25, 1.0)), low=30.0)
    with run.claimed(folder, run.begin(tiny, store)):
        pass


@pytest.mark.parametrize("custom", [False, True])
def test_native_contours_must_be_in_the_store(store, tiny, phantom_data, tmp_path, custom):
    """All of them, and taken as the configuration says."""
    tiny.contours.preset = wanted = "original"
    if custom:
        tiny.contours.update(native=True, low=10, high=20, clean=(80, 30))
        given = ContourSettings(native=True, low=10, high=20, clean=(80, 30))
        wanted = tmp_path / "contours.json"
        wanted.write_text(json.dumps(given.to_dict()))
    with pytest.raises(InputError, match=f"--contours={'FILE' if custom else 'original'}"):
        run.begin(tiny, store)
    out = tmp_path / "store"
    prepare(phantom_data / "train_mr", out, "mr", spacing=7.2, size=32, contours_file=wanted)
    ours = run.begin(tiny, open_store(out))
    assert ours.contours == (given if custom else preset("original", "mr"))
    ours.save(tmp_path)
    assert run.load(tmp_path).contours == ours.contours
    tiny.disturbance.missing = 0.1
    with pytest.raises(InputError, match=r"config\.disturbance: contours of native pixels"):
        run.begin(tiny, open_store(out))
    tiny.disturbance.missing = 0.0
    tiny.contours.update(preset="original_cleaned", clean=(1, 1))
    with pytest.raises(InputError, match="`prepare --contours=FILE` again"):
        run.begin(tiny, open_store(out))
    # What a store keeps does not bind those who want contours of its slices.
    tiny.contours = config.default().contours
    assert run.begin(tiny, open_store(out)).contours == preset("default", "mr")


def test_configurations_of_earlier_versions_take_the_defaults(saved):
    """Fields that came later stand for what was done before there were any."""
    ours, folder = saved
    later = {
        "contours": ("native", "clean", "thin"),
        "train": ("neighbour", "resident"),
        "diffusion": ("beta_first", "beta_last", "zero_terminal_snr"),
        "sampler": ("spacing", "offset", "clipped_eps"),
    }

    def older(fields):
        for section, names in later.items():
            for name in names:
                del fields["config"][section][name]
        for name in later["contours"]:
            del fields["data"]["contours"][name]

    rewrite(folder, older)
    assert run.load(folder).to_dict() == ours.to_dict()


@pytest.mark.parametrize(("field", "value"), [("axis", "coronal"), ("spacing", 1.5), ("size", 64)])
def test_a_store_on_another_grid_is_refused(store, tiny, field, value):
    """The message says how to prepare a store on that grid."""
    tiny.grid[field] = value
    with pytest.raises(InputError, match=f"{store.path}.*--{field}={value}"):
        run.begin(tiny, store)
    tiny.grid[field] = getattr(store.grid, field)
    assert run.begin(tiny, store).grid == store.grid


def test_a_store_without_training_subjects_is_refused(store_path, tiny, tmp_path):
    copy = tmp_path / "store"
    copy.mkdir()
    for path in store_path.iterdir():
        copy.joinpath(path.name).write_bytes(path.read_bytes())
    with (copy / "index.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    with (copy / "index.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(row | {"split": "test"} for row in rows)
    with pytest.raises(InputError, match=f"{copy}.*no training subjects"):
        run.begin(tiny, open_store(copy))


# ----------------------------------------------------------------------------------------------
# What cannot be loaded
# ----------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_a_run_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match=f"{folder}: not a run"):
            run.load(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "\x00\xff", "[1, 2]", "null", "5", '{"schema": 0}', "{}"]
)
def test_broken_files_are_refused_in_one_line(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(InputError, match=str(path)) as error:
        run.load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(InputError, match="cannot be read"):
        run.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda f: f.update(schema=2), "not of schema 1"),
        (lambda f: f.pop("schema"), "not of schema 1"),
        (lambda f: f.pop("config"), "config"),
        (lambda f: f["config"].update(sead=1), "sead"),
        (lambda f: f["config"]["train"].update(bach=1), "bach"),
        (lambda f: f["config"].update(train=5), "config"),
        (lambda f: f.pop("data"), "data"),
        (lambda f: f.update(data=[1]), "data: .1., where an object"),
        (lambda f: f["data"].pop("window"), "window"),
        (lambda f: f["data"].update(window=[1, 2, 3]), "window: .*a list of 2"),
        (
            lambda f: f["data"].update(window=["low", "high"]),
            "window.0.: .low., where a finite number",
        ),
        (lambda f: f["data"].update(preset="pet"), "pet"),
        (lambda f: f["data"]["grid"].update(axis="oblique"), "oblique"),
        (lambda f: f["data"]["grid"].update(depth=3), "depth"),
        (lambda f: f["data"]["contours"].update(blur=4), "blur"),
        (lambda f: f["data"]["contours"].pop("low"), "low"),
        (lambda f: f["data"].update(subjects=5), "subjects: 5, where a list"),
        (lambda f: f["data"].update(subjects="abc"), "subjects: .abc., where a list"),
    ],
)
def test_fields_that_cannot_be_used_are_named(saved, change, named):
    _, folder = saved
    rewrite(folder, change)
    with pytest.raises(InputError, match=f"{folder / 'config.json'}.*{named}") as error:
        run.load(folder)
    assert "\n" not in str(error.value)
