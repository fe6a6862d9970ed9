# SPDX-License-Identifier: Apache-2.0
"""Phantoms: heads that differ, pictures that agree with their labels, folders that hold them."""

import nibabel
import numpy as np
import pytest
from absl import flags
from scipy import ndimage

from contourdiff_jax.commands import phantoms as commands_phantoms
from contourdiff_jax.data.phantoms import heads as phantoms
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import ownership

AIR, BRAIN, FLUID, BONE, SOFT, LESION = range(6)
GEOMETRY = {"size": 64, "slices": 24, "spacing": phantoms.FIELD_OF_VIEW / 64, "thickness": 6.0}


def render(seed, kinds, **options):
    return phantoms.Heads(seed=seed, **(GEOMETRY | options)).render("phantom000", kinds)[0]


@pytest.fixture(scope="module")
def heads():
    """Six subjects in every kind of picture."""
    return [render(seed, ("ct", "mr", "t2", "labels")) for seed in range(6)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small set on disk, with its roles."""
    out = tmp_path_factory.mktemp("phantoms") / "set"
    return out, phantoms.phantoms(out, 5, 32, test=2, train_ct=1, slices=6, thickness=20, seed=4)


def of(picture, labels, value, near=()):
    """Values of a picture where its label is `value` and the neighbours' too, or one of `near`."""
    alike = ndimage.binary_erosion(np.isin(labels, (value, *near)))
    return picture[alike & (labels == value)]


def dice(a, b):
    return 2 * np.sum(a & b) / (np.sum(a) + np.sum(b))


# ------------------------------------------------------------------------------- intensities


def test_ct_has_the_hu_of_what_its_labels_say(heads):
    """Wide bounds: a label holds several tissues, and a voxel of 3.6 mm more than one of them."""
    bounds = {
        AIR: (-1005, -995, ()),
        BRAIN: (27, 39, ()),
        FLUID: (0, 30, (BRAIN,)),  # sulci are narrower than a voxel
        BONE: (250, 1100, ()),
        SOFT: (-100, 60, ()),
    }
    for head in heads:
        for label, (low, high, near) in bounds.items():
            assert low < np.median(of(head["ct"], head["labels"], label, near)) < high, label


def test_ct_shows_ventricles_against_brain(heads):
    """The border that contours live on, above the noise."""
    for head in heads:
        brain = np.median(of(head["ct"], head["labels"], BRAIN))
        # The darkest fifth of the fluid's voxels is nearly free of partial volume.
        fluid = np.percentile(of(head["ct"], head["labels"], FLUID, (BRAIN,)), 20)
        assert brain - fluid > 15


def test_fluid_is_dark_in_t1_and_bright_in_t2(heads):
    for head in heads:
        for kind, sign in (("mr", -1), ("t2", 1)):
            fluid, brain = (
                np.median(of(head[kind], head["labels"], n, (BRAIN,))) for n in (FLUID, BRAIN)
            )
            assert sign * (fluid / brain - 1) > 0.1, kind


def test_lesions_show_in_mr_and_hardly_in_ct():
    """Against the brain around them: much brighter in T2, darker in T1, within a few HU in CT."""
    for seed in range(3):
        head = render(seed, ("ct", "mr", "t2", "labels"), size=128, slices=14, spacing=1.8)
        lesion = head["labels"] == LESION
        around = ndimage.binary_dilation(lesion, iterations=3) & (head["labels"] == BRAIN)
        assert lesion.any()
        ct, mr, t2 = (
            (np.median(head[kind][lesion]), np.median(head[kind][around]))
            for kind in ("ct", "mr", "t2")
        )
        assert t2[0] > 1.4 * t2[1]
        assert mr[0] < 0.97 * mr[1]
        assert abs(ct[0] - ct[1]) < 6


def test_unseen_sources_are_other_pictures_of_the_same_head(heads):
    """FLAIR takes the fluid out, PD hardly tells it from brain, cone-beam CT is dark and uneven."""
    kinds = ("ct", "cbct", "pd", "flair", "labels")
    head = phantoms.Heads(seed=0, unseen=True, **GEOMETRY).render("phantom000", kinds)[0]
    np.testing.assert_array_equal(head["labels"], heads[0]["labels"])
    brain, fluid = (
        {kind: of(head[kind], head["labels"], n, (BRAIN,)) for kind in kinds}
        for n in (BRAIN, FLUID)
    )
    assert np.percentile(fluid["flair"], 20) < 0.6 * np.median(brain["flair"])
    assert np.median(fluid["pd"]) == pytest.approx(np.median(brain["pd"]), rel=0.1)
    assert brain["cbct"].std() > 1.3 * brain["ct"].std()
    assert brain["cbct"].mean() < brain["ct"].mean() - 4


def test_unseen_sources_are_written_where_they_are_asked_for(tmp_path):
    roles = phantoms.phantoms(tmp_path / "set", 3, 32, slices=2, thickness=40, unseen=True)
    for kind in phantoms.UNSEEN:
        found = sorted(path.name for path in (tmp_path / "set" / f"test_{kind}").iterdir())
        assert found == [f"{subject}_{kind}.nii.gz" for subject in roles["test"]]
    assert sorted(phantoms.UNSEEN) == ["cbct", "flair", "pd"]


def test_pictures_of_a_subject_do_not_depend_on_which_are_asked_for(heads):
    """So a training subject's MR is the one that it would have as a test subject."""
    np.testing.assert_array_equal(render(2, ("mr",))["mr"], heads[2]["mr"])


# ------------------------------------------------------------------------------- structural bias


def test_bias_changes_field_of_view_and_position():
    roles = phantoms.scanners(1.0)
    masks, sides, centres = {}, {}, {}
    for role in ("train_mr", "train_ct"):
        pictures, affine = phantoms.Heads(**GEOMETRY).render("phantom000", ("labels",), roles[role])
        masks[role] = np.argwhere(pictures["labels"] > 0)
        sides[role] = affine[0, 0] * GEOMETRY["size"]
        centres[role] = (affine[:3, :3] @ masks[role].mean(axis=0) + affine[:3, 3])[1]
    assert sides["train_mr"] < phantoms.FIELD_OF_VIEW < sides["train_ct"]
    assert centres["train_ct"] < centres["train_mr"] - 5
    assert (
        masks["train_mr"][:, 1].min() == 0 or masks["train_mr"][:, 1].max() == GEOMETRY["size"] - 1
    )
    assert len(set(phantoms.scanners(0.0).values())) == 1


def test_bias_keeps_the_truth_paired(tmp_path):
    """All pictures of a test subject share one grid and one outline."""
    roles = phantoms.phantoms(tmp_path / "set", 3, 32, slices=6, thickness=20, bias=1.0)
    for subject in roles["test"]:
        ct, mr, t2, labels = (
            nibabel.load(tmp_path / "set" / f"test_{kind}" / f"{subject}_{kind}.nii.gz")
            for kind in ("ct", "mr", "t2", "labels")
        )
        head = np.asarray(labels.dataobj) > 0
        for image in (ct, mr, t2):
            np.testing.assert_array_equal(image.affine, labels.affine)
        for image in (mr, t2):
            values = image.get_fdata()
            assert dice(values > 0.1 * np.percentile(values, 99), head) > 0.85


# ------------------------------------------------------------------------------- the folder


def test_the_folder_holds_every_role_with_its_labels(folder):
    out, roles = folder
    layout = {
        "train_mr": ("train_mr", "mr"),
        "train_ct": ("train_ct", "ct"),
        "test_ct": ("test", "ct"),
        "test_t2": ("test", "t2"),
        "test_mr": ("test", "mr"),
        **{f"{role}_labels": (role, "labels") for role in ("train_mr", "train_ct", "test")},
    }
    expected = {
        f"{name}/{subject}_{kind}.nii.gz"
        for name, (role, kind) in layout.items()
        for subject in roles[role]
    }
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert found == expected | {ownership.MARK}


def test_roles_share_no_subject(folder):
    """Training is unpaired, and nothing tested was seen before."""
    _, roles = folder
    assert [len(names) for names in roles.values()] == [2, 1, 2]
    assert len(set().union(*roles.values())) == 5


def test_files_have_the_geometry_asked_for(folder):
    out, _ = folder
    for path in out.rglob("*.nii.gz"):
        image = nibabel.load(path)
        assert image.shape == (32, 32, 6)
        assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
        np.testing.assert_allclose(image.header.get_zooms(), (230 / 32, 230 / 32, 20), rtol=1e-6)
        middle = image.affine @ (15.5, 15.5, 2.5, 1)
        np.testing.assert_allclose(middle[:3], (*phantoms.CENTRE, phantoms.LEVEL), atol=1e-4)
        assert image.get_data_dtype() == (np.uint8 if "labels" in path.name else np.int16)


def test_the_level_moves_the_slices_and_not_the_head():
    options = {"size": 32, "slices": 6, "thickness": 20}
    low, _ = phantoms.Heads(level=4, **options).render("one", ["labels"])
    high, affine = phantoms.Heads(level=24, **options).render("one", ["labels"])
    np.testing.assert_array_equal(high["labels"][..., :-1], low["labels"][..., 1:])
    assert (affine @ (0, 0, 2.5, 1))[2] == pytest.approx(24)


def test_the_same_seed_gives_the_same_files_and_another_seed_does_not(folder, tmp_path):
    out, _ = folder
    options = {"test": 2, "train_ct": 1, "slices": 6, "thickness": 20}
    phantoms.phantoms(tmp_path / "same", 5, 32, seed=4, **options)
    phantoms.phantoms(tmp_path / "other", 5, 32, seed=5, **options)
    for path in out.rglob("*.nii.gz"):
        first, same, other = (
            np.asarray(nibabel.load(root / path.relative_to(out)).dataobj)
            for root in (out, tmp_path / "same", tmp_path / "other")
        )
        np.testing.assert_array_equal(first, same)
        assert np.any(first != other)


def test_an_existing_folder_is_kept_unless_told_otherwise(folder, tmp_path):
    out = tmp_path / "set"
    out.mkdir()
    small = {"slices": 2, "thickness": 40}
    phantoms.phantoms(out, 3, 32, **small)
    with pytest.raises(InputError, match="exists already"):
        phantoms.phantoms(out, 2, 32, **small)
    (out / "notes.txt").write_text("mine")
    phantoms.phantoms(out, 2, 32, overwrite=True, **small)
    assert len(list(out.rglob("*.nii.gz"))) == 2 + 4
    assert (out / "notes.txt").read_text() == "mine"
    # A scan that took the name of a phantom is its owner's.
    next(out.glob("train_mr/*")).write_text("a real scan")
    with pytest.raises(InputError, match=r"train_mr/.*not as this tool wrote it"):
        phantoms.phantoms(out, 2, 32, overwrite=True, **small)


def test_an_interrupted_run_leaves_nothing_behind(tmp_path, monkeypatch):
    """Half a set under the final name would be taken for a whole one."""
    calls = []

    def save(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(phantoms.io, "save", save)
    with pytest.raises(KeyboardInterrupt):
        phantoms.phantoms(tmp_path / "set", 3, 32, slices=2, thickness=40)
    assert len(calls) == 3 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 31}, "--size=31"),
        ({"size": -64}, "--size=-64"),
        ({"subjects": 1}, "--subjects=1"),
        ({"subjects": 4, "test": 4}, "4 for testing"),
        ({"subjects": 4, "test": 0}, "0 for testing"),
        ({"train_ct": -1}, "-1 with CT"),
        ({"slices": 0}, "--slices=0"),
        ({"spacing": 0.0}, "--spacing=0"),
        ({"thickness": float("nan")}, "--thickness=nan"),
        ({"seed": -1}, "--seed=-1"),
        ({"bias": -0.5}, "--bias=-0.5"),
    ],
)
def test_bad_numbers_are_named_in_one_line_and_nothing_is_written(tmp_path, options, words):
    with pytest.raises(InputError, match=words) as caught:
        phantoms.phantoms(tmp_path / "set", **options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        phantoms.phantoms(tmp_path / "file" / "set", 2, 32, slices=2)


def test_the_command_takes_flags_and_needs_an_out_folder(tmp_path, capsys):
    values = flags.FlagValues()
    commands_phantoms.define_flags(values)
    values(["phantoms"])
    with pytest.raises(InputError, match="--out is required"):
        commands_phantoms.main(values)
    values(["phantoms", f"--out={tmp_path / 'set'}", "--subjects=2", "--size=32", "--slices=2"])
    assert commands_phantoms.main(values) == 0
    assert "1 train_mr, 0 train_ct, 1 test" in capsys.readouterr().out
