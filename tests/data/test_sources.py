# SPDX-License-Identifier: Apache-2.0
"""Paired stores: the other image of every subject, found in any layout, laid and judged."""

import json
import re

import nibabel as nib
import numpy as np
import pytest
from absl import flags
from PIL import Image

from contourdiff_jax import cli
from contourdiff_jax.commands import prepare as command
from contourdiff_jax.data import registration
from contourdiff_jax.data.phantoms.heads import Heads
from contourdiff_jax.data.prepare import Request as Preparing
from contourdiff_jax.data.prepare import measure, prepare
from contourdiff_jax.data.sources import Pairs
from contourdiff_jax.data.store import open_store, verify
from contourdiff_jax.errors import InputError
from contourdiff_jax.volumes import intensity, io
from contourdiff_jax.volumes.volume import Assumed

CT, MR = intensity.preset("ct"), intensity.preset("mr")
NAMES = ("phantom000", "phantom001", "phantom002")
SIZE, SLICES, THICKNESS = 48, 6, 20.0
GRID = {"spacing": 4.8, "size": 48}
HEADS = Heads(4, SIZE, slices=SLICES, thickness=THICKNESS)


@pytest.fixture(scope="module")
def heads():
    """{name: ({'ct', 'mr'}: [X, Y, Z] int16, affine)}."""
    return {name: HEADS.render(name, ("ct", "mr")) for name in NAMES}


@pytest.fixture
def volumes(heads, tmp_path):
    """mr/NAME_mr.nii.gz and ct/NAME_ct.nii.gz."""
    for name, (pictures, affine) in heads.items():
        for kind, array in pictures.items():
            save(tmp_path / kind / f"{name}_{kind}.nii.gz", array, affine)
    return tmp_path


def save(path, array, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    io.save(path, array, affine, array.dtype, overwrite=True)


def paired(root, mr="mr", ct="ct", *, out="store", **pairs):
    """A store of MR with CT, and what prepare tells of it."""
    options = {name: pairs.pop(name) for name in ("select", "assumed") if name in pairs}
    options |= {"select": pairs.pop("of", None)} if "of" in pairs else {}
    wanted = Pairs(root / ct, "ct", **{n.removeprefix("pairs_"): v for n, v in pairs.items()})
    result = prepare(root / mr, root / out, "mr", pairs=wanted, **GRID, **options, overwrite=True)
    return open_store(root / out), result


def run(*arguments):
    """The command as the command line calls it."""
    values = flags.FlagValues()
    command.define_flags(values)
    values(["prepare", *map(str, arguments)])
    return command.main(values)


# ----------------------------------------------------------------------------------------------
# Where they lie
# ----------------------------------------------------------------------------------------------


def test_a_source_on_the_same_voxels_is_cut_as_its_target(volumes, heads):
    store, result = paired(volumes)
    assert verify(store) and store.source_preset is CT and store.preset is MR
    assert len(store) == len(NAMES) * SLICES and not result.failed
    pictures, affine = heads["phantom001"]
    volume = io.read(volumes / "ct" / "phantom001_ct.nii.gz")
    fit = store.grid.fit(pictures["ct"].shape, affine)
    rows = np.flatnonzero(store.index["subject"] == "phantom001")
    expected = CT.storage.fraction(fit.slices(volume.array, CT.air))
    np.testing.assert_allclose(store.sources[rows] / 65535, expected, atol=1e-5)
    seen = store.source_images(rows)
    assert (seen[store.source_masks[rows] == 0] == -1).all() and seen.max() > 0.5
    for fit in result.fits:
        assert fit.overlap > 0.9 and fit.shift < 1 and not fit.is_notable(4.8)
        assert (fit.slices, fit.missing, fit.apart, fit.why) == (SLICES, 0, 0, "")


def test_either_direction_is_a_store(volumes):
    store = prepare(
        volumes / "ct", volumes / "other", "ct", pairs=Pairs(volumes / "mr", "mr"), **GRID
    )
    assert len(store.fits) == 3
    other, ours = open_store(volumes / "other"), paired(volumes)[0]
    np.testing.assert_array_equal(other.sources, ours.slices)
    np.testing.assert_array_equal(other.slices, ours.sources)
    np.testing.assert_array_equal(other.source_masks, ours.masks)
    assert other.pictures is not None  # in which contours of CT are sought


def test_another_grid_is_brought_onto_the_targets_by_the_affines(volumes):
    """Of a scan with finer voxels, more slices and another field of view."""
    name = "phantom000"
    same, _ = paired(volumes, f"mr/{name}_mr.nii.gz")
    pictures, affine = Heads(4, 60, slices=13, thickness=10.0, spacing=4.2).render(name, ("ct",))
    save(volumes / "fine" / f"{name}_ct.nii.gz", pictures["ct"], affine)
    store, result = paired(volumes, f"mr/{name}_mr.nii.gz", "fine", out="fine_store")
    assert len(store) == len(same) and all(fit.shift < 1.5 for fit in result.fits)
    rows = np.arange(len(store))
    both = (store.source_masks[rows] & same.source_masks[rows]) > 0
    assert both.sum() > 0.97 * same.source_masks[rows].sum()
    ours, theirs = (CT.decode(s.sources[rows])[both] for s in (store, same))
    fits = np.corrcoef(ours, theirs)[0, 1]
    assert fits > 0.8  # of another scan, with thinner slices and noise of its own
    for axis in range(3):
        shifted = np.roll(CT.decode(store.sources[rows]), 1, axis)[both]
        assert np.corrcoef(shifted, theirs)[0, 1] < fits - 0.1


def test_slices_that_the_source_does_not_show_are_left_out(volumes, heads):
    pictures, affine = heads["phantom001"]
    above = affine.copy()
    above[2, 3] += 2 * THICKNESS
    save(volumes / "ct" / "phantom001_ct.nii.gz", pictures["ct"][:, :, 2:], above)
    store, result = paired(volumes)
    [fit] = [fit for fit in result.fits if fit.missing]
    assert (fit.name, fit.missing, fit.slices) == ("phantom001", 2, SLICES)
    rows = np.flatnonzero(store.index["subject"] == "phantom001")
    assert store.index["slice"][rows].tolist() == [2, 3, 4, 5]
    assert np.diff(store.index["position"][rows]).tolist() == [THICKNESS] * 3
    assert store.index["volume"].tolist() == [0] * 6 + [1] * 4 + [2] * 6


def test_even_slices_of_both_show_the_same_place(volumes, heads):
    """Those of the source are made of what there is of it; where it has none, there is no slice."""
    for name, part in {"phantom000": slice(2, None), "phantom001": slice(None)}.items():
        pictures, affine = heads[name]
        shift = np.eye(4)
        shift[2, 3] = part.start or 0
        save(volumes / "ct" / f"{name}_ct.nii.gz", pictures["ct"][..., part], affine @ shift)
    wanted = Pairs(volumes / "ct", "ct")
    prepare(volumes / "mr", volumes / "even", "mr", pairs=wanted, **GRID, slice_spacing=8.0)
    store = open_store(volumes / "even")
    count = int(np.ceil(SLICES * THICKNESS / 8))
    rows = [np.flatnonzero(store.index["subject"] == name) for name in NAMES[:2]]
    assert len(rows[1]) == count
    # The first of the source's slices lies at 40 mm; of what is before it there is no even slice.
    _, affine = heads["phantom000"]
    first = store.grid.fit(heads["phantom000"][0]["mr"].shape, affine).positions
    kept = first[store.index["slice"][rows[0]]] - affine[2, 3]
    assert kept.min() >= 40 and len(kept) == (first - affine[2, 3] >= 40).sum()
    volume = io.read(volumes / "ct" / "phantom001_ct.nii.gz")
    fit = store.grid.fit(volume.array.shape, volume.affine)
    expected = CT.storage.fraction(fit.slices(volume.array, CT.air))
    np.testing.assert_allclose(store.sources[rows[1]] / 65535, expected, atol=1e-5)


def test_slices_in_which_the_bodies_lie_apart_are_left_out(volumes, heads):
    """As where a jaw is open in one of them."""
    pictures, affine = heads["phantom002"]
    bent = pictures["ct"].copy()
    bent[:, :, 3] = np.roll(bent[:, :, 3], 20, 0)
    save(volumes / "ct" / "phantom002_ct.nii.gz", bent, affine)
    store, result = paired(volumes)
    [fit] = [fit for fit in result.fits if fit.apart]
    assert (fit.name, fit.apart, fit.missing) == ("phantom002", 1, 0) and fit.overlap > 0.9
    rows = store.index["subject"] == "phantom002"
    assert store.index["slice"][rows].tolist() == [0, 1, 2, 4, 5]


# ----------------------------------------------------------------------------------------------
# How well they fit
# ----------------------------------------------------------------------------------------------


@pytest.fixture
def misplaced(volumes, heads):
    """One CT lies 9 mm to the patient's left, one nowhere near, one is of no target."""
    for name, by in (("phantom001", 9.0), ("phantom002", 700.0)):
        pictures, affine = heads[name]
        affine = affine.copy()
        affine[0, 3] -= by
        save(volumes / "ct" / f"{name}_ct.nii.gz", pictures["ct"], affine)
    save(volumes / "ct" / "stranger_ct.nii.gz", pictures["ct"], affine)
    return volumes


def test_what_fits_badly_is_left_out_and_told(misplaced, capsys):
    status = run(
        f"--source={misplaced}/mr",
        "--preset=mr",
        f"--pairs={misplaced}/ct",
        "--pairs_preset=ct",
        f"--out={misplaced}/store",
        "--spacing=4.8",
        "--size=48",
        "--validation=0",
    )
    printed = capsys.readouterr()
    assert status == 1
    assert "pairs: 1 of 3 fit; of their 6 slices 0 are left out" in printed.out
    assert "1 of --pairs have no target and are left out: stranger" in printed.out
    rows = {line.split()[0]: line.split()[1:] for line in printed.out.splitlines() if line}
    _, right, down, missing, apart, of, *remarks = rows["phantom001"]
    # As slices are seen, the patient's left is on the right.
    assert float(right) == pytest.approx(9, abs=1) and float(down) == pytest.approx(0, abs=1)
    assert remarks == ["left", "out"] and (missing, apart, of) == ("0", "0", "6")
    assert rows["phantom002"][:5] == ["0.00", "0.0", "0.0", "6", "0"]
    lines = printed.err.splitlines()
    assert re.search(
        r"phantom001_ct.nii.gz: lies off by [89]\.\d mm, more than 5; --register", lines[0]
    )
    assert "phantom002_ct.nii.gz: the source does not overlap" in lines[1]
    assert open_store(misplaced / "store").subjects() == ["phantom000"]


def test_the_measures_are_kept_in_the_store(misplaced):
    store, result = paired(misplaced)
    pairs = store.dataset["pairs"]
    assert {name: pairs[name] for name in ("overlap", "shift", "register")} == {
        "overlap": 0.8,
        "shift": 5.0,
        "register": None,
    }
    kept = {fit["name"]: fit for fit in pairs["fits"]}
    assert set(kept) == {"phantom000"} and kept["phantom000"]["overlap"] == result.fits[0].overlap
    file = store.path / "dataset.json"
    assert pairs["left_out"] == 2 and not re.search("phantom00[12]", file.read_text())
    plain = prepare(misplaced / "mr", misplaced / "plain", "mr", **GRID)
    assert plain.fits == [] and "pairs" not in open_store(misplaced / "plain").dataset
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pairs": {**pairs, "fits": 3}}))
    with pytest.raises(InputError, match=r"dataset\.json: pairs\.fits: 3, where a list belongs"):
        open_store(store.path)


def test_thresholds_say_what_is_left_out(misplaced):
    store, result = paired(misplaced, pairs_shift=12.0)
    assert store.subjects() == ["phantom000", "phantom001"]
    [failure] = result.failed
    assert "phantom002" in failure[1]
    with pytest.raises(InputError, match=r"none of 3 volumes can be used.*by 0\.999 \(Dice\)"):
        paired(misplaced, pairs_overlap=0.999)


def test_registration_lays_them_on_their_targets(misplaced):
    store, result = paired(misplaced, pairs_register="rigid")
    assert store.subjects() == list(NAMES) and not result.failed
    at_home, off, away = result.fits
    assert "moved 9." in off.registered or "moved 8." in off.registered
    assert re.match(r"rigid: moved (69|70)\d\.\d mm, turned", away.registered)
    assert all(fit.shift < 2.4 and fit.overlap > 0.9 for fit in result.fits)
    assert at_home.registered
    assert store.dataset["pairs"]["fits"][1]["registered"] == off.registered
    again, _ = paired(misplaced, pairs_register="rigid", out="again")
    np.testing.assert_array_equal(again.sources, store.sources)


def test_inspect_shows_the_same_fits(misplaced, capsys):
    _, result = paired(misplaced)
    measured = measure(
        Preparing(misplaced / "mr", "", "mr", pairs=Pairs(misplaced / "ct", "ct"), **GRID)
    )
    for name in ("fits", "failed", "doubtful", "notes", "grid"):
        assert getattr(measured, name) == getattr(result, name)
    assert measured.notes
    arguments = ["contourdiff", "inspect", f"{misplaced}/mr", "--preset=mr"]
    arguments += [f"--pairs={misplaced}/ct", "--pairs_preset=ct"]
    capsys.readouterr()
    assert cli.main(arguments) == 1
    shown = capsys.readouterr().out
    assert "pairs: 1 of 3 fit" in shown and "left out: " in shown
    assert "note: 1 of --pairs have no target and are left out: stranger" in shown
    assert cli.main([*arguments, "--json=-"]) == 1
    pairs = json.loads(capsys.readouterr().out)["pairs"]
    assert [fit["name"] for fit in pairs["fits"]] == list(NAMES) and len(pairs["failed"]) == 2
    assert pairs["notes"] == result.notes and pairs["problems"] == []


def test_inspect_tells_of_pairs_what_prepare_does(heads, volumes, capsys):
    """Slices that cannot be read, and what is not what its preset says."""
    mr, ct = (pictures_of(heads, kind) for kind in ("mr", "ct"))
    write(volumes / "B", mr)
    write(volumes / "A", ct)
    (volumes / "A" / "phantom001-002.png").write_bytes(b"none")
    arguments = [f"{volumes}/B", "--preset=mr", "--pixel_spacing=4.8", "--pairs_preset=ct"]
    arguments += [f"--pairs={volumes}/A", "--pairs_range=-1000,1000"]
    assert cli.main(["contourdiff", "inspect", *arguments]) == 1
    shown = capsys.readouterr().out
    assert "pairs: 3 of 3 fit" in shown and re.search(r"left out: .*phantom001-002\.png", shown)
    arguments = [f"{volumes}/mr", "--preset=mr", "--pairs_preset=mr", f"--pairs={volumes}/ct"]
    assert cli.main(["contourdiff", "inspect", *arguments]) == 0
    shown = capsys.readouterr().out
    assert "warning: " in shown and "its source is taken for mr, but" in shown


# ----------------------------------------------------------------------------------------------
# Where they are found
# ----------------------------------------------------------------------------------------------


def same(store, other):
    for name in ("slices", "masks", "sources", "source_masks"):
        np.testing.assert_array_equal(getattr(store, name), getattr(other, name))


def test_a_folder_of_synthrad_holds_both(volumes, heads):
    plain, _ = paired(volumes)
    for name, (pictures, affine) in heads.items():
        for kind, array in pictures.items():
            save(volumes / "synthrad" / name / f"{kind}.nii.gz", array, affine)
    store, result = paired(volumes, "synthrad", "synthrad", out="other")
    assert result.layout == "synthrad"
    same(store, plain)
    # The mask of the layout is that of both.
    for name, (pictures, affine) in heads.items():
        inside = (pictures["ct"] > -200).astype(np.uint8)
        save(volumes / "synthrad" / name / "mask.nii.gz", inside, affine)
    store, result = paired(volumes, "synthrad", "synthrad", out="other")
    np.testing.assert_array_equal(store.masks, store.source_masks)
    assert all(fit.overlap == 1 for fit in result.fits)


def test_channels_of_nnunet_are_a_pair(volumes, heads):
    plain, _ = paired(volumes)
    for name, (pictures, affine) in heads.items():
        for channel, kind in enumerate(("mr", "ct")):
            path = volumes / "nnunet" / "imagesTr" / f"{name}_{channel:04d}.nii.gz"
            save(path, pictures[kind], affine)
    channels = {"channel_names": {"0": "MR", "1": "CT"}}
    (volumes / "nnunet" / "dataset.json").write_text(json.dumps(channels))
    store, result = paired(volumes, "nnunet", "nnunet", out="other")
    assert result.layout == "nnunet"
    same(store, plain)
    (volumes / "nnunet" / "dataset.json").unlink()
    numbers = {"of": "0000", "pairs_select": "0001"}
    same(paired(volumes, "nnunet", "nnunet", out="other", **numbers)[0], plain)


def test_a_table_says_what_is_whose(volumes, heads):
    plain, _ = paired(volumes)
    lines = ["file,subject,kind"]
    for number, name in enumerate(NAMES):
        for kind in ("mr", "ct"):
            path = volumes / "odd" / f"{number}-odd-{kind}.nii.gz"
            save(path, heads[name][0][kind], heads[name][1])
            lines.append(f"odd/{path.name},{name},{kind}")
    (volumes / "all.csv").write_text("\n".join(lines))
    store, _ = paired(volumes, "all.csv", "all.csv", out="other")
    same(store, plain)


def pictures_of(heads, kind):
    """{name-NUMBER.png: [H, W] uint8}, as radiologists see them."""
    found = {}
    for name, (arrays, _) in heads.items():
        array = arrays[kind].astype(float)
        low, high = (-1000, 1000) if kind == "ct" else (0, np.percentile(array, 99.5))
        grey = np.uint8(np.clip((array - low) / (high - low), 0, 1) * 255)
        for number in range(array.shape[2]):
            found[f"{name}-{number:03d}.png"] = grey[::-1, ::-1, number].T
    return found


def write(folder, pictures):
    folder.mkdir(parents=True)
    for name, picture in pictures.items():
        Image.fromarray(picture).save(folder / name)


SPAN = (-1000.0, 1000.0)


def test_pictures_are_laid_pixel_on_pixel(heads, tmp_path):
    """In two folders, or side by side in one picture; slices by their numbers."""
    mr, ct = (pictures_of(heads, kind) for kind in ("mr", "ct"))
    missing = "phantom001-002.png"
    write(tmp_path / "B", mr)
    write(tmp_path / "A", {name: picture for name, picture in ct.items() if name != missing})
    how = {"assumed": Assumed(4.8)}
    store, result = paired(tmp_path, "B", "A", **how, pairs_assumed=Assumed(4.8, SPAN))
    assert [fit.missing for fit in result.fits] == [0, 1, 0]
    assert len(store) == 3 * SLICES - 1
    row = SLICES + 2  # slice 3 of phantom001, after the one without a source
    assert store.index["slice"][row] == 3 and store.index["subject"][row] == "phantom001"
    expected = ct["phantom001-003.png"] / 255.0 * 2000 - 1000
    np.testing.assert_allclose(CT.decode(store.sources[row]), expected, atol=0.1)

    write(tmp_path / "AB", {name: np.hstack([ct[name], mr[name]]) for name in mr})
    right, left = Assumed(4.8, None, "right"), Assumed(4.8, SPAN, "left")
    both, result = paired(tmp_path, "AB", "AB", assumed=right, pairs_assumed=left, out="both")
    assert len(both) == 3 * SLICES and both.grid == store.grid
    kept = np.delete(np.arange(3 * SLICES), SLICES + 2)
    for name in ("slices", "sources"):
        assert (getattr(both, name)[kept] == getattr(store, name)[:]).mean() > 0.98


def test_registered_pictures_lack_the_slices_that_they_lacked(heads, tmp_path, monkeypatch):
    """And those that a motion across slices would mix with what is not there."""
    mr, ct = (pictures_of(heads, kind) for kind in ("mr", "ct"))
    off = {name: np.roll(picture, 2, 1) for name, picture in ct.items() if "001" in name[:10]}
    of_one = [name for name in off if not name.endswith("002.png")]
    write(tmp_path / "B", {name: mr[name] for name in off})
    write(tmp_path / "A", {name: off[name] for name in of_one})
    how = {"assumed": Assumed(4.8), "pairs_assumed": Assumed(4.8, SPAN)}
    for across, left in ((0.0, [0, 1, 3, 4, 5]), (2.0, [0, 3, 4, 5])):
        matrix = np.eye(4)
        matrix[0, 3], matrix[2, 3] = -9.6, across  # the picture's columns run to the left
        motion = registration.Motion(matrix, 9.6, 0.0)
        monkeypatch.setattr(registration, "rigid", lambda *_, found=motion: found)
        store, result = paired(tmp_path, "B", "A", **how, pairs_register="rigid")
        [fit] = result.fits
        assert fit.registered == "rigid: moved 9.6 mm, turned 0.0 degrees"
        assert store.index["slice"].tolist() == left
        assert (fit.missing, fit.apart) == (SLICES - len(left), 0)


def test_what_pictures_cannot_say_is_one_line(heads, volumes):
    mr, ct = (pictures_of(heads, kind) for kind in ("mr", "ct"))
    write(volumes / "B", mr)
    write(volumes / "small", {name: picture[::2, ::2] for name, picture in ct.items()})
    write(volumes / "odd", {name: picture[:, 1:] for name, picture in ct.items()})
    how = {"assumed": Assumed(4.8), "pairs_assumed": Assumed(4.8, SPAN)}
    unit = {"pairs_assumed": Assumed(4.8, SPAN)}
    for mr_of, ct_of, given, why in (
        ("B", "small", how, "24 x 24 pixels, and 48 x 48 in .*B.*: pictures do not say"),
        ("B", "small", {}, "hold no HU; say .*--pairs_range=LOW,HIGH, or .*--pairs_preset=mr$"),
        ("B", "ct", {}, "made of pictures, which do not say where they lie"),
        ("mr", "small", unit, "made of pictures, which do not say where they lie"),
        ("B", "B", {}, "has this file itself"),
    ):
        with pytest.raises(InputError, match=why) as error:
            paired(volumes, mr_of, ct_of, **given)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"47 pixels wide, so it has no halves of one width"):
        paired(
            volumes, "odd", "odd", assumed=Assumed(half="left"), pairs_assumed=Assumed(half="right")
        )


# ----------------------------------------------------------------------------------------------
# What cannot be
# ----------------------------------------------------------------------------------------------


def test_missing_partners_are_listed_and_the_rest_goes_on(volumes, capsys):
    (volumes / "ct" / "phantom001_ct.nii.gz").unlink()
    status = run(
        f"--source={volumes}/mr",
        "--preset=mr",
        f"--pairs={volumes}/ct",
        "--pairs_preset=ct",
        f"--out={volumes}/store",
        "--validation=0",
    )
    assert status == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "phantom001_mr.nii.gz: no volume of the subject 'phantom001' in --pairs" in line
    assert open_store(volumes / "store").subjects() == ["phantom000", "phantom002"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--pairs_preset=ct"], "--pairs_preset: is of --pairs"),
        (["--register=rigid"], "--register: is of --pairs"),
        (["--pairs={}/ct"], "--pairs_preset is required"),
        (["--pairs={}/ct", "--pairs_preset=ct", "--pairs_overlap=2"], "between 0 and 1"),
        (["--pairs={}/ct", "--pairs_preset=ct", "--pairs_shift=0"], "above 0"),
        (["--pairs={}/ct", "--pairs_preset=ct", "--pairs_half=left"], "--pairs_half: it is of pic"),
        (["--pairs={}/ct", "--pairs_preset=ct", "--half=left"], "--half: it is of pictures"),
        (["--pairs={}/ct", "--pairs_preset=ct", "--pairs_range=1"], "--pairs_range=1: give two"),
        (["--pairs={}/ct", "--pairs_preset=ct", "--pairs_range=5,1"], "--pairs_range=5,1: give"),
        (["--pairs={}/nowhere", "--pairs_preset=ct"], "nowhere: no such file"),
        (
            [
                "--pairs={}/ct/phantom001_ct.nii.gz",
                "--source={}/mr/phantom000_mr.nii.gz",
                "--pairs_preset=ct",
            ],
            "no volume of the subject 'phantom000' in --pairs",
        ),
        (["--pairs={}/mr", "--pairs_preset=mr"], "has this file itself"),
        (["--pairs={}/store", "--pairs_preset=ct"], "no such file"),
    ],
)
def test_bad_input_is_one_line(volumes, arguments, named):
    arguments = [argument.format(volumes) for argument in arguments]
    with pytest.raises(InputError, match=re.escape(named)) as error:
        run(f"--source={volumes}/mr", "--preset=mr", f"--out={volumes}/store", *arguments)
    assert "\n" not in str(error.value) and not (volumes / "store").exists()


def test_a_registration_that_there_is_not_is_refused():
    """In Python, too, before anything is read."""
    with pytest.raises(InputError, match=r"^--register=affine: known are rigid"):
        Pairs("nowhere", "ct", register="affine")


def test_other_grids_without_an_affine_are_refused(volumes, heads):
    """As where a tool wrote only numbers; on the same grid they need none."""
    array = heads["phantom001"][0]["ct"]
    ct = volumes / "ct" / "phantom001_ct.nii.gz"
    nib.save(nib.Nifti1Image(array[:, :, 1:], None), ct)
    one = f"mr/{ct.name.replace('ct', 'mr')}"
    with pytest.raises(InputError, match=r"does not say where it lies .* another grid") as error:
        paired(volumes, one, f"ct/{ct.name}")
    assert "\n" not in str(error.value)
    for kind in ("ct", "mr"):
        image = nib.Nifti1Image(heads["phantom001"][0][kind], None)
        image.header.set_zooms((4.8, 4.8, THICKNESS))
        nib.save(image, volumes / kind / f"phantom001_{kind}.nii.gz")
    assert len(paired(volumes, one, f"ct/{ct.name}")[0]) == SLICES


def test_sources_that_are_not_what_the_preset_says_are_told(volumes, capsys):
    run(
        f"--source={volumes}/mr",
        "--preset=mr",
        f"--pairs={volumes}/ct",
        "--pairs_preset=mr",
        f"--out={volumes}/store",
    )
    assert "its source is taken for mr, but its values look like ct" in capsys.readouterr().err
