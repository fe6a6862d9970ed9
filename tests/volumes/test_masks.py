# SPDX-License-Identifier: Apache-2.0
"""The body mask holds the patient, all of it, and nothing else."""

import tracemalloc

import numpy as np
import pytest
from scipy import ndimage

from contourdiff_jax.volumes import io
from contourdiff_jax.volumes.masks import body_mask, extent

SHAPE, SIZES = (96, 112, 40), (2.0, 2.0, 4.0)
AIR, SKIN, BONE, BRAIN, SINUS, HOLDER = range(6)
HU = (-1000, 30, 900, 35, -1000, 180)
SIGNAL = {"T1": (0, 0.9, 0.05, 0.6, 0, 0), "T2": (0, 0.1, 0.02, 0.5, 0, 0)}


def head(shape=SHAPE, sizes=SIZES, centre=(0.0, 10.0, 0.0)):
    """Tissues [X, Y, Z] of a head on a holder, with a nose that is open to the front; its body."""
    x, y, z = (
        ((np.arange(n) - (n - 1) / 2) * s - c).reshape([-1 if a == b else 1 for b in range(3)])
        for a, (n, s, c) in enumerate(zip(shape, sizes, centre, strict=True))
    )
    radius = np.sqrt((x / 70) ** 2 + (y / 85) ** 2 + (z / 90) ** 2)
    tissue = np.full(shape, AIR)
    for limit, kind in ((1, SKIN), (0.93, BONE), (0.85, BRAIN)):
        tissue[radius < limit] = kind
    nose = (np.hypot(x, z) < 6) & (y > 55) & (radius < 1)
    tissue[nose] = SINUS
    body = radius < 1
    shell = (np.abs(np.hypot(x, y + 10) - 92) < 2.5) & (y < -55) & (z > -1000)
    tissue[shell & ~body] = HOLDER
    return tissue, body


def render(tissue, modality, generator, noise=None, sizes=SIZES):
    """HU, or a signal with a bias field and Rician noise; blurred by 1 mm."""
    blur = 1 / np.array(sizes)
    if modality == "ct":
        clean = ndimage.gaussian_filter(np.array(HU, np.float32)[tissue], blur)
        return clean + (noise or 15) * generator.normal(size=tissue.shape).astype(np.float32)
    clean = ndimage.gaussian_filter(np.array(SIGNAL[modality], np.float32)[tissue], blur)
    clean *= np.linspace(0.7, 1.3, tissue.shape[0], dtype=np.float32)[:, None, None]
    real, imaginary = (noise or 0.01) * generator.normal(size=(2, *tissue.shape))
    return np.hypot(clean + real, imaginary).astype(np.float32)


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("kind", ["ct", "T1", "T2"])
@pytest.mark.parametrize(
    ("shape", "sizes"),
    [(SHAPE, SIZES), ((160, 200, 30), (1.2, 1.2, 6.0)), ((30, 200, 140), (6.0, 1.2, 1.2))],
    ids=["isotropic", "axial", "sagittal"],
)
def test_a_head_is_found_without_its_holder(rng, kind, shape, sizes):
    """The skull is dark in MR, the scalp faint in T2, the sinus is air: all belong to the head."""
    tissue, body = head(shape, sizes)
    array = render(tissue, kind, rng, sizes=sizes)
    mask = body_mask(array, np.diag([*sizes, 1]), "ct" if kind == "ct" else "mr")
    assert mask.dtype == bool and mask.shape == shape
    assert dice(mask, body) > 0.97
    assert not mask[tissue == HOLDER].any()
    assert mask[tissue == BRAIN].all()
    assert mask[tissue == BONE].mean() > 0.97


def test_an_open_cavity_belongs_to_the_body(rng):
    """The edges in the nose are anatomy; a mask that follows them inwards would cut them off."""
    tissue, _ = head()
    mask = body_mask(render(tissue, "ct", rng), np.diag([*SIZES, 1]), "ct")
    assert mask[tissue == SINUS].mean() > 0.8


def test_a_table_that_touches_the_body_falls_off(rng):
    """Patients lie on what is under them; it is thin, they are not."""
    tissue, body = head()
    lowest = np.flatnonzero(body.any((0, 2)))[0]
    table = np.zeros(SHAPE, bool)
    table[:, lowest - 2 : lowest] = True  # 4 mm
    tissue[table] = HOLDER
    mask = body_mask(render(tissue, "ct", rng), np.diag([*SIZES, 1]), "ct")
    assert dice(mask, body) > 0.97
    assert (mask & table).sum() < 0.15 * table.sum()  # what is left is under the point of contact


def test_a_body_beyond_the_field_of_view_keeps_its_borders(rng):
    """Where the field of view cuts the patient there is no skin, and nothing may be shaved off."""
    tissue, body = head()
    cut = (slice(34, 62), slice(44, 80), slice(12, 28))
    array = render(tissue, "ct", rng)[cut]
    assert body[cut].all()
    assert body_mask(array, np.diag([*SIZES, 1]), "ct").all()
    half = (slice(48, None), slice(None), slice(10, 30))
    mask = body_mask(render(tissue, "ct", rng)[half], np.diag([*SIZES, 1]), "ct")
    assert dice(mask, body[half]) > 0.97 and (mask[0] == body[half][0]).mean() > 0.97


def test_mr_masks_do_not_depend_on_the_unit(rng):
    """MR has no unit: the same volume times any number has the same mask."""
    tissue, _ = head()
    array = render(tissue, "T1", rng)
    reference = body_mask(array, np.diag([*SIZES, 1]), "mr")
    for scale in (1e-3, 1e4):
        mask = body_mask(array * np.float32(scale), np.diag([*SIZES, 1]), "mr")
        assert dice(mask, reference) > 0.999


@pytest.mark.parametrize(("modality", "noise"), [("ct", 60), ("T1", 0.05)])
def test_noise_does_not_fray_the_mask(rng, modality, noise):
    tissue, body = head()
    array = render(tissue, modality, rng, noise)
    mask = body_mask(array, np.diag([*SIZES, 1]), "ct" if modality == "ct" else "mr")
    assert dice(mask, body) > 0.96
    assert ndimage.label(mask)[1] == 1


def test_without_a_body_the_whole_field_of_view_counts(rng):
    """A mask that hides everything would train a model on nothing, silently."""
    shape = (40, 40, 20)
    air = -1000 + 10 * rng.normal(size=shape).astype(np.float32)
    assert body_mask(air, np.eye(4), "ct").all()
    noise = np.hypot(*rng.normal(size=(2, *shape))).astype(np.float32)
    assert body_mask(noise, np.eye(4), "mr").all()
    texture = (np.indices(shape).sum(0) % 2).astype(np.float32)
    assert body_mask(texture, np.eye(4), "mr").all()


def test_an_mr_volume_without_air_is_all_body(rng):
    """Inside a body the darker tissue is not air, only dark."""
    array = np.full((40, 40, 20), 60, np.float32)
    array[10:30, 10:30] = 300
    array += 10 * rng.normal(size=array.shape).astype(np.float32)
    assert body_mask(array, np.eye(4), "mr").all()


def test_small_and_flat_volumes_have_masks(rng):
    """One slice is a volume too, and a mouse is thinner than a head holder."""
    tissue, body = head()
    array = render(tissue, "ct", rng)[:, :, 20:21]
    assert dice(body_mask(array, np.diag([*SIZES, 1]), "ct"), body[:, :, 20:21]) > 0.97
    tissue, body = head()
    mouse = body_mask(render(tissue, "ct", rng), np.diag([0.06, 0.06, 0.12, 1]), "ct")
    assert mouse[body].mean() > 0.95


@pytest.mark.parametrize("dark", [0.0, 1000.0])
def test_parts_that_are_all_alike_have_no_threshold(dark):
    """No histogram can be made of values that differ by rounding alone."""
    array = np.full((20, 20, 20), dark, np.float32)
    array.flat[::3] = np.nextafter(np.float32(dark), np.float32(np.inf))
    assert body_mask(array, np.eye(4), "mr").all()
    array[5:15, 5:15, 5:15] = 2000
    assert body_mask(array, np.eye(4), "mr")[6:14, 6:14, 6:14].all()


@pytest.mark.parametrize("planes", [3, 4])
def test_a_volume_of_a_few_planes_is_not_a_colour_picture(rng, planes):
    """scikit-image takes a last axis of 3 or 4 for channels, and warns; a stack may be as thin."""
    tissue, body = head()
    array = render(tissue, "T1", rng)[:, :, 20 : 20 + planes]
    found = body_mask(array, np.diag([*SIZES, 1]), "mr")
    assert dice(found, body[:, :, 20 : 20 + planes]) > 0.95


def test_the_extent_is_from_the_first_to_the_last_slice_that_shows_the_body():
    masks = np.zeros((6, 3, 3), bool)
    assert extent(masks) == (0, 5)
    masks[[1, 3], 1, 1] = True
    assert extent(masks) == (1, 3)


def test_memory_is_bounded(rng):
    """A large volume must not need several copies of itself, of which one would be too many."""
    array = render(head()[0], "T1", rng).repeat(4, 0).repeat(4, 1).repeat(4, 2)
    tracemalloc.start()
    body_mask(array, np.diag([0.5, 0.5, 1, 1]), "mr")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < array.nbytes


@pytest.mark.parametrize(
    ("name", "modality", "low", "high"),
    [
        ("totalsegmentator/example_ct.nii.gz", "ct", 0.60, 0.68),
        ("totalsegmentator/example_mr_sm.nii.gz", "mr", 0.72, 0.84),
        ("stroke/T1.nii.gz", "mr", 0.33, 0.43),
        ("open_ms/mni/patient07_T2.nii.gz", "mr", 0.14, 0.18),
        ("open_ms/longitudinal_raw/patient01/study1_T1W.nii.gz", "mr", 0.33, 0.43),
        ("open_ms/longitudinal_raw/patient01/study1_FLAIR.nii.gz", "mr", 0.30, 0.43),
        ("sct/t2s_uncropped.nii.gz", "mr", 0.40, 0.52),
        ("sct/t2.nii.gz", "mr", 1.0, 1.0),
    ],
)
def test_real_bodies_fill_a_plausible_part(data_root, name, modality, low, high):
    """Bounds around what a look at the pictures confirmed: scalp in, table out, spine all body."""
    volume = io.read(data_root / "nifti" / name)
    mask = body_mask(volume.array, volume.affine, modality)
    assert low <= mask.mean() <= high
    assert ndimage.label(mask)[0].max() >= 1
    assert np.bincount(ndimage.label(mask)[0].ravel())[1:].max() > 0.98 * mask.sum()


def test_mr_weightings_of_one_head_agree(data_root):
    """T1, T2 and FLAIR of one patient on one grid show one body."""
    folder = data_root / "nifti" / "stroke"
    masks = []
    for name in ("T1", "T2", "FLAIR"):
        volume = io.read(folder / f"{name}.nii.gz")
        masks.append(body_mask(volume.array, volume.affine, "mr"))
    assert dice(masks[0], masks[1]) > 0.97 and dice(masks[0], masks[2]) > 0.97
