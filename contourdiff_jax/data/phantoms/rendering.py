# SPDX-License-Identifier: Apache-2.0
"""CT and MR pictures of a label map: anatomy in, intensities out, voxel for voxel.

CT is what a scanner gives and not what the tissues are (`xrays`): noise that neighbours share,
brain that is brighter under the skull, streaks between bones. How near it is to real CT is measured
in experiments/022_clinical.

Any integer label map will do, generated or segmented, as long as a table says which tissue each
label is:

    tissues = {0: TISSUES["air"], 2: TISSUES["white matter"], 41: TISSUES["white matter"], ...}
    rng = np.random.default_rng(0)
    hu = render_ct(labels, spacing=(1, 1, 1), rng=rng, tissues=tissues)
    t1 = render_mr(labels, spacing=(1, 1, 1), rng=rng, tissues=tissues, weighting=T1_WEIGHTED)

Label maps are [X, Y, Z] in RAS orientation (y grows from posterior to anterior), spacings in mm. A
map finer than the wanted picture is averaged with `reduction`: thick slices and the partial volume
of small structures come from there, as in a scanner.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import interpolate, ndimage

from contourdiff_jax.data.phantoms import xrays
from contourdiff_jax.data.phantoms.xrays import CLINICAL, POINT_SPREAD, Beam
from contourdiff_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Tissue:
    """What a tissue looks like in CT and in spin-echo MR.

    Attributes:
        name: tissues of equal name vary together from picture to picture.
        hu: mean in Hounsfield units.
        texture: standard deviation of the HU inside the tissue, noise apart.
        t1, t2: relaxation times in ms at 1.5 T.
        density: proton density, 1 for water.
    """

    name: str
    hu: float
    texture: float
    t1: float
    t2: float
    density: float


@dataclasses.dataclass(frozen=True)
class Weighting:
    """Repetition and echo time of a spin-echo sequence, in ms, and the delay of an inversion."""

    repetition: float
    echo: float
    inversion: float | None = None  # none before the excitation


T1_WEIGHTED = Weighting(repetition=550, echo=14)
T2_WEIGHTED = Weighting(repetition=4000, echo=95)
PD_WEIGHTED = Weighting(repetition=2500, echo=15)
FLAIR = Weighting(repetition=9000, echo=110, inversion=1700)  # where the fluid below has no signal


# Relaxation of white and grey matter, fluid, fat and muscle: the 1.5 T table of the BrainWeb
# simulator (Kwan, Evans and Pike, IEEE TMI 18:1085, 1999). The rest, and the HU, are typical
# textbook values (Bushberg et al., The Essential Physics of Medical Imaging; Kalender, Computed
# Tomography). Bone has hardly any signal that lives until the echo.
TISSUES: Mapping[str, Tissue] = {
    tissue.name: tissue
    for tissue in (
        Tissue("air", hu=-1000, texture=0, t1=1, t2=1, density=0),
        Tissue("white matter", hu=30, texture=1, t1=500, t2=70, density=0.77),
        Tissue("grey matter", hu=35.5, texture=1, t1=833, t2=83, density=0.86),
        Tissue("deep grey matter", hu=35, texture=1, t1=740, t2=76, density=0.84),
        Tissue("fluid", hu=10, texture=1, t1=2569, t2=329, density=1),
        Tissue("lesion", hu=26, texture=1, t1=900, t2=200, density=0.8),
        Tissue("soft tissue", hu=50, texture=5, t1=900, t2=47, density=0.9),
        Tissue("fat", hu=-95, texture=4, t1=350, t2=70, density=1),
        Tissue("skin", hu=25, texture=5, t1=900, t2=35, density=0.7),
        Tissue("cortical bone", hu=1050, texture=120, t1=300, t2=1, density=0.06),
        Tissue("marrow", hu=350, texture=80, t1=380, t2=60, density=0.75),
        Tissue("eye", hu=8, texture=1, t1=2500, t2=400, density=1),
        Tissue("lens", hu=80, texture=4, t1=1000, t2=35, density=0.7),
        Tissue("mucosa", hu=35, texture=5, t1=1300, t2=80, density=0.85),
        Tissue("blood", hu=52, texture=2, t1=1400, t2=20, density=0.3),
    )
}

GAIN = 2000  # MR units per unit of signal: int16 holds it all, with room for the bias field


def spin_echo(tissue: Tissue, weighting: Weighting) -> float:
    """Signal of pure tissue, between 0 and its proton density.

    S = PD (1 - exp(-TR / T1)) exp(-TE / T2), for TE much shorter than TR; after an inversion the
    magnitude of S = PD (1 - 2 exp(-TI / T1) + exp(-TR / T1)) exp(-TE / T2): Bernstein, King and
    Zhou, Handbook of MRI Pulse Sequences, sections 14.3 and 14.2.
    """
    left = np.exp(-weighting.repetition / tissue.t1)
    recovered = 1 - left
    if weighting.inversion is not None:
        recovered = abs(1 - 2 * np.exp(-weighting.inversion / tissue.t1) + left)
    return float(tissue.density * recovered * np.exp(-weighting.echo / tissue.t2))


def spline_basis(knots: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Matrix [N, K] that takes values at `knots` [K], four or more, to a cubic spline's [N]."""
    spline = interpolate.make_interp_spline(knots, np.eye(len(knots)), k=3)
    return spline(positions).astype(np.float32)


def spline_field(values: np.ndarray, bases: Sequence[np.ndarray]) -> np.ndarray:
    """Smooth field [X, Y, Z] float32 through `values` [I, J, K]; bases [X, I], [Y, J], [Z, K].

    Through independent normal values it is smooth noise, whatever the sampling.
    """
    field = values.astype(np.float32)
    for basis in reversed(bases):
        # Contracting the last axis and putting the new one first walks through z, y and x in turn.
        field = np.tensordot(basis, field, axes=(1, -1))
    return field


def render_ct(
    tissue_map: np.ndarray,
    spacing: Sequence[float],
    rng: np.random.Generator,
    *,
    tissues: Mapping[int, Tissue],
    reduction: Sequence[int] = (1, 1, 1),
    beam: Beam | None = CLINICAL,
    jitter: float = 0.025,
    holder: bool = True,
) -> np.ndarray:
    """Label map -> CT in HU.

    Args:
        tissue_map: [X, Y, Z] integer labels, RAS.
        spacing: of the label map in mm.
        tissues: what each label is.
        reduction: label voxels per picture voxel along each axis.
        beam: of the scanner, which adds its errors; none for the tissues as they are.
        jitter: how far the tissues' HU vary from picture to picture, relative.
        holder: add a head holder, a bright shell under the occiput that MR does not show.

    Returns:
        [X, Y, Z] // reduction, int16.

    Raises:
        InputError: the map is not of integers, or has a label without a tissue.
    """
    _check(tissue_map, tissues)
    varied = _jitter_hu(tissues, rng, jitter)
    image = _paint(tissue_map, {label: varied[t.name] for label, t in tissues.items()}, reduction)
    texture = _paint(tissue_map, {label: t.texture for label, t in tissues.items()}, reduction)
    spacing = np.asarray(spacing, float) * reduction
    image += texture * _grain(rng, image.shape, 1.0)
    if holder:
        air = {label: t.hu < -900 for label, t in tissues.items()}
        image = _add_holder(image, _paint(tissue_map, air, reduction), spacing)
    image = _blur(image, spacing)
    if beam is not None:
        image += xrays.errors(image, spacing, rng, beam)
    return np.clip(np.round(image), -1024, 3071).astype(np.int16)


def render_mr(
    tissue_map: np.ndarray,
    spacing: Sequence[float],
    rng: np.random.Generator,
    *,
    tissues: Mapping[int, Tissue],
    weighting: Weighting = T1_WEIGHTED,
    reduction: Sequence[int] = (1, 1, 1),
    noise: float = 0.006,
    jitter: float = 0.03,
    bias_field: float = 0.08,
) -> np.ndarray:
    """Label map -> spin-echo MR magnitude in arbitrary units, GAIN per unit of signal.

    Args:
        tissue_map: [X, Y, Z] integer labels, RAS.
        spacing: of the label map in mm.
        tissues: what each label is.
        weighting: repetition and echo time.
        reduction: label voxels per picture voxel along each axis.
        noise: standard deviation of the real and of the imaginary part, in units of signal.
        jitter: relative standard deviation of T1, T2 and proton density from picture to picture.
        bias_field: standard deviation of the logarithm of the smooth multiplicative field.

    Returns:
        [X, Y, Z] // reduction, int16.

    Raises:
        InputError: the map is not of integers, or has a label without a tissue.
    """
    _check(tissue_map, tissues)
    varied = _jitter_relaxation(tissues, rng, jitter)
    signal = {label: spin_echo(varied[t.name], weighting) for label, t in tissues.items()}
    image = _paint(tissue_map, signal, reduction)
    spacing = np.asarray(spacing, float) * reduction
    image *= 1 + 0.02 * _grain(rng, image.shape, 1.0)
    image = _blur(image, spacing)
    bases = [spline_basis(np.linspace(0, 1, 4), np.linspace(0, 1, n)) for n in image.shape]
    image *= np.exp(bias_field * spline_field(rng.standard_normal((4, 4, 4)), bases))
    # Magnitude of a complex signal with normal noise in both parts: Rician (Gudbjartsson and Patz,
    # MRM 34:910, 1995).
    real, imaginary = noise * rng.standard_normal((2, *image.shape), dtype=np.float32)
    return np.clip(np.round(GAIN * np.hypot(image + real, imaginary)), 0, 32767).astype(np.int16)


def block_mean(array: np.ndarray, reduction: Sequence[int]) -> np.ndarray:
    """Means over blocks of `reduction` voxels; an incomplete block at the far end is left out."""
    shape = [n // r for n, r in zip(array.shape, reduction, strict=True)]
    array = array[tuple(slice(n * r) for n, r in zip(shape, reduction, strict=True))]
    for axis, r in enumerate(reduction):
        # Summing strided views is several times faster than a mean over a reshaped array.
        parts = [array[(slice(None),) * axis + (slice(k, None, r),)] for k in range(r)]
        array = sum(parts[1:], start=parts[0].astype(np.float32))
    return array / np.float32(np.prod(reduction))


def _check(tissue_map, tissues):
    if tissue_map.ndim != 3 or tissue_map.dtype.kind not in "iu" or tissue_map.min() < 0:
        raise InputError(
            f"label map: {tissue_map.ndim}-D of {tissue_map.dtype}; "
            "labels must be a 3-D array of integers from 0 on"
        )
    present = np.flatnonzero(np.bincount(tissue_map.ravel()))
    if missing := sorted(set(present.tolist()) - set(tissues)):
        raise InputError(f"label map: no tissue for the labels {missing}; add them to the table")


def _jitter_hu(tissues, rng, jitter):
    """HU by tissue name. The scale's fixed points, water at 0 and air at -1000, do not vary."""
    table = {t.name: t for t in tissues.values()}
    freedom = {name: min(abs(t.hu), abs(t.hu + 1000)) for name, t in table.items()}
    return {name: t.hu + jitter * freedom[name] * rng.uniform(-1, 1) for name, t in table.items()}


def _jitter_relaxation(tissues, rng, jitter):
    """Tissues by name with varied T1, T2 and proton density."""
    table = {}
    for tissue in {t.name: t for t in tissues.values()}.values():
        t1, t2, density = np.exp(jitter * rng.standard_normal(3))
        table[tissue.name] = dataclasses.replace(
            tissue, t1=t1 * tissue.t1, t2=t2 * tissue.t2, density=density * tissue.density
        )
    return table


def _paint(tissue_map, values, reduction):
    """Value of each label, averaged over blocks: [X, Y, Z] // reduction float32."""
    labels = np.fromiter(values, int)
    lookup = np.zeros(labels.max() + 1, np.float32)
    lookup[labels] = np.fromiter(values.values(), np.float32)
    return block_mean(lookup[tissue_map], reduction)


def _grain(rng, shape, width):
    """Unit-variance normal noise, smoothed over `width` voxels (standard deviation) in plane."""
    grain = rng.standard_normal(shape, dtype=np.float32)
    grain = ndimage.gaussian_filter(grain, (width, width, 0))
    return grain / grain.std()


def _blur(image, spacing, fwhm=POINT_SPREAD):
    """In-plane point spread of a scanner, full width at half maximum in mm."""
    sigma = fwhm / 2.355 / spacing[:2]
    return ndimage.gaussian_filter(image, (*sigma, 0))


def _add_holder(image, air, spacing, radius=95.0, thickness=4.0, hu=180.0):
    """A cylindrical shell behind the head; `air` is the fraction of air in each voxel."""
    head = np.argwhere(air.min(axis=2) < 0.5)
    if not len(head):
        return image
    x, y = (s * np.arange(n) for n, s in zip(image.shape[:2], spacing[:2], strict=True))
    centre = head[:, 0].mean() * spacing[0]
    back = head[:, 1].min() * spacing[1]
    middle = back - 1.5 * thickness + radius
    distance = np.abs(np.hypot(x[:, None] - centre, y - middle) - radius)
    width = spacing[:2].mean()
    shell = np.clip((thickness / 2 - distance) / width + 0.5, 0, 1) * (y < back + 40)
    return image + shell[..., None].astype(np.float32) * air * (hu - image)
