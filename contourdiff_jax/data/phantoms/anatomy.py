# SPDX-License-Identifier: Apache-2.0
"""The anatomy of generated heads: what lies where, as a function of position, drawn at random.

All randomness is drawn into a Head first; the tissue map is then a pure function of position, so
that any sampling of it shows the same head. Template coordinates are in mm: x right, y anterior,
z superior, the origin between the commissures. Parts are level sets of distances, mostly to
ellipsoids, painted over each other from the outside to the inside. Left and right share one
description through |x|; the random warp of space makes them differ.

Shapes: [X, Y, Z] tissue maps. Functions on points take x, y, z (or |x|, y, z) as arrays of one
shape and paint into `part` in place.
"""

import dataclasses
import enum
import itertools
from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from contourdiff_jax.data.phantoms import rendering


class Part(enum.IntEnum):
    """What the anatomy is made of, in a tissue map."""

    AIR = 0
    SKIN = 1
    FAT = 2
    MUSCLE = 3
    CORTICAL_BONE = 4
    MARROW = 5
    FLUID = 6
    GREY = 7
    WHITE = 8
    DEEP_GREY = 9
    LESION = 10
    EYE = 11
    LENS = 12
    MUCOSA = 13
    BLOOD = 14


TISSUES = {
    part: rendering.TISSUES[name]
    for part, name in {
        Part.AIR: "air",
        Part.SKIN: "skin",
        Part.FAT: "fat",
        Part.MUSCLE: "soft tissue",
        Part.CORTICAL_BONE: "cortical bone",
        Part.MARROW: "marrow",
        Part.FLUID: "fluid",
        Part.GREY: "grey matter",
        Part.WHITE: "white matter",
        Part.DEEP_GREY: "deep grey matter",
        Part.LESION: "lesion",
        Part.EYE: "eye",
        Part.LENS: "lens",
        Part.MUCOSA: "mucosa",
        Part.BLOOD: "blood",
    }.items()
}

LABELS = {  # by number in label files
    0: (Part.AIR,),
    1: (Part.GREY, Part.WHITE, Part.DEEP_GREY),
    2: (Part.FLUID,),
    3: (Part.CORTICAL_BONE, Part.MARROW),
    4: (Part.SKIN, Part.FAT, Part.MUSCLE, Part.EYE, Part.LENS, Part.MUCOSA, Part.BLOOD),
    5: (Part.LESION,),
}

KNOT_STEPS = {"warp": 40, "ripple": 20, "skull": 35, "gap": 40, "fat": 40, "texture": 8}  # mm
CHANNELS = {"warp": 3, "ripple": 3}  # the other random fields have one
KNOT_EXTENT = 160.0  # mm: random fields are defined in a cube of twice this size
FOLD_STEP = 3.0  # mm, lattice of the folds
FOLD_SAMPLES = 64


@dataclasses.dataclass(frozen=True)
class Head:
    """What makes one head differ from the next."""

    scale: np.ndarray  # [3] size along x, y, z
    rotation: np.ndarray  # [3, 3]
    offset: np.ndarray  # [3] mm, position in the field of view
    squareness: float  # of the brain's outline, 0 elliptic
    atrophy: float  # width of the sulci, around 1
    ventricles: float  # radius, around 1
    skull: float  # mm, mean thickness
    fat: float  # mm, mean thickness under the skin
    sinuses: float  # size of the air cavities, around 1
    lesions: np.ndarray  # [L, 6] centres and radii in mm
    knots: dict[str, np.ndarray]  # [C, K, K, K] values of the random fields
    sheets: np.ndarray  # [F, F, F] mm, signed distance to the winding sheets that the sulci follow


def draw_head(rng: np.random.Generator) -> Head:
    """A random adult head, intracranial volume about 1.5 litres."""
    atrophy = np.exp(rng.normal(0, 0.25))
    count = rng.integers(4, 10)
    sides = np.stack([rng.choice((-1, 1), count), np.ones(count), np.ones(count)], axis=1)
    centres = sides * rng.uniform((16, -50, 12), (38, 45, 36), (count, 3))
    radii = rng.uniform(3, 7, (count, 1)) * rng.uniform(0.7, 1, (count, 3))
    return Head(
        scale=rng.normal(0.94, 0.03) * rng.normal(1, 0.025, 3),
        rotation=Rotation.from_euler("xyz", rng.normal(0, (6, 3, 4)), degrees=True).as_matrix(),
        offset=rng.normal(0, (4, 4, 3)),
        squareness=rng.uniform(0, 0.4),
        atrophy=atrophy,
        ventricles=np.sqrt(atrophy) * np.exp(rng.normal(0, 0.15)),
        skull=rng.uniform(5.5, 8.5),
        fat=rng.uniform(1.5, 5),
        sinuses=rng.uniform(0.7, 1.2),
        lesions=np.concatenate([centres, radii], axis=1),
        knots={
            name: rng.standard_normal((CHANNELS.get(name, 1), *[len(_knots(step))] * 3))
            for name, step in KNOT_STEPS.items()
        },
        sheets=_winding_sheets(rng, wavelength=22.0),
    )


def _knots(step):
    return np.arange(-KNOT_EXTENT, KNOT_EXTENT + step, step)


def _winding_sheets(rng, wavelength):
    """Zero crossings of periodic noise that has one wavelength in mm but no direction."""
    frequency = np.fft.fftfreq(FOLD_SAMPLES, FOLD_STEP)
    radius = np.sqrt(sum(f**2 for f in np.ix_(frequency, frequency, frequency)))
    band = np.exp(-0.5 * ((radius * wavelength - 1) / 0.15) ** 2)
    noise = np.fft.ifftn(np.fft.fftn(rng.standard_normal((FOLD_SAMPLES,) * 3)) * band).real
    # A level set's distance is value over slope to first order; the slope is kept off zero at the
    # noise's extrema.
    slope = np.sqrt(sum(g**2 for g in np.gradient(noise, FOLD_STEP)))
    return (noise / (slope + 0.3 * slope.mean())).astype(np.float32)


def tissue_map(head: Head, axes: Sequence[np.ndarray]) -> np.ndarray:
    """Tissue map [X, Y, Z] uint8 of Part, sampled at the coordinates `axes` ([X], [Y], [Z]; mm)."""
    shape = tuple(len(axis) for axis in axes)
    parts = np.empty(shape, np.uint8)
    bases = {
        name: [
            rendering.spline_basis(_knots(step), np.clip(axis, -KNOT_EXTENT, KNOT_EXTENT))
            for axis in axes
        ]
        for name, step in KNOT_STEPS.items()
    }
    # Slabs whose arrays fit into the processor's cache are three times faster than the whole.
    planes = max(1, 65536 // (shape[0] * shape[1]))
    for first in range(0, shape[2], planes):
        slab = slice(first, first + planes)
        fields = {
            name: [rendering.spline_field(k, (x, y, z[slab])) for k in head.knots[name]]
            for name, (x, y, z) in bases.items()
        }
        parts[:, :, slab] = _slab(head, (axes[0], axes[1], axes[2][slab]), fields)
    return parts


def majority_labels(parts: np.ndarray, reduction: Sequence[int]) -> np.ndarray:
    """The label that fills most of each block of `reduction` samples of a tissue map, uint8."""
    fractions = []
    for members in LABELS.values():
        chosen = np.zeros(len(Part), np.float32)
        chosen[list(members)] = 1
        fractions.append(rendering.block_mean(chosen[parts], reduction))
    return np.argmax(fractions, axis=0).astype(np.uint8)


def _slab(head, axes, fields):
    warp = [2.2 * w + 0.6 * r for w, r in zip(fields["warp"], fields["ripple"], strict=True)]
    x, y, z = _template(head, axes, warp)
    side = np.abs(x)
    (skull,), (gap,), (fat,), (texture,) = (fields[n] for n in ("skull", "gap", "fat", "texture"))

    # From the brain outwards: fluid, skull, muscle over the temples, fat, skin.
    brain = _brain_hull(head, side, y, z)
    gap = np.clip(2.2 * head.atrophy + gap, 0.8, 6)
    orbital_roof = _step(y - 15, 5) * _step(2 - z, 6)
    skull = np.clip(head.skull + 1.3 * skull, 3.5, 12) * (1 - 0.65 * orbital_roof)
    fat = np.clip(head.fat + 1.2 * fat, 0.8, 9)
    temporalis = 7 * np.exp(-(((y - 18) / 32) ** 2) - ((z + 6) / 30) ** 2) * _step(side - 52, 5)
    outer_table = brain - gap - skull
    surface = _skin(outer_table - temporalis - fat - 4, side, y, z)

    parts = np.zeros(brain.shape, np.uint8)
    inside = surface < 0
    x, y, z, side, brain, skull, fat, texture, outer_table, surface = (
        field[inside] for field in (x, y, z, side, brain, skull, fat, texture, outer_table, surface)
    )
    part = np.full(surface.shape, Part.MUSCLE, np.uint8)
    part[texture > 1.1] = Part.FAT
    part[surface > -2 - fat] = Part.FAT
    part[surface > -2] = Part.SKIN
    _paint_face(part, side, y, z)
    cortex = 1.3 + 0.1 * skull
    part[outer_table < 0] = Part.CORTICAL_BONE
    part[(outer_table < -cortex) & (outer_table > cortex - skull)] = Part.MARROW
    part[outer_table < -skull] = Part.FLUID
    _paint_air_cavities(part, head, side, y, z, texture)
    within = brain < 0
    part[within] = _brain(head, x[within], y[within], z[within], -brain[within])
    sagittal_sinus = (np.hypot(side, brain - 1) < 3.5) & (z > 0) & (y < 60)
    part[sagittal_sinus & (outer_table < -skull)] = Part.BLOOD
    parts[inside] = part
    return parts


def _template(head, axes, warp):
    """Template coordinates x, y, z of the grid of `axes`, [X, Y, Z] each."""
    matrix = np.linalg.inv(head.rotation * head.scale).astype(np.float32)
    world = np.ix_(*(np.float32(axis - o) for axis, o in zip(axes, head.offset, strict=True)))
    return [
        sum((m * w for m, w in zip(row, world, strict=True)), start=shift)
        for row, shift in zip(matrix, warp, strict=True)
    ]


def _ellipsoid(x, y, z, centre, radii, squareness=0.0):
    """Distance in mm to an ellipsoid's surface along the ray from its centre, negative inside."""
    x, y, z = (p - np.float32(c) for p, c in zip((x, y, z), centre, strict=True))
    a, b, c = ((p / np.float32(r)) ** 2 for p, r in zip((x, y, z), radii, strict=True))
    level = np.sqrt(a + b + c) + np.float32(1e-6)
    if squareness:
        level += np.float32(squareness) * (np.sqrt(np.sqrt(a * a + b * b + c * c)) - level)
    return np.sqrt(x * x + y * y + z * z + np.float32(1e-6)) * (1 - 1 / level)


def _capsule(x, y, z, start, end):
    """Distance in mm to a tube, negative inside; `start` and `end` are (x, y, z, radius)."""
    (*origin, radius), (*direction, widening) = start, np.subtract(end, start)
    x, y, z = (p - np.float32(o) for p, o in zip((x, y, z), origin, strict=True))
    u, v, w = np.float32(direction)
    along = np.clip((x * u + y * v + z * w) / (u * u + v * v + w * w), 0, 1)
    distance = np.sqrt((x - along * u) ** 2 + (y - along * v) ** 2 + (z - along * w) ** 2)
    return distance - radius - along * widening


def _union(a, b, width):
    """Smooth minimum of two distances; the crease between the surfaces is `width` mm wide."""
    overlap = np.maximum(width - np.abs(a - b), 0)
    return np.minimum(a, b) - overlap * overlap / (4 * width)


def _step(distance, width):
    """From 0 to 1 where `distance` goes from -width to width."""
    return np.clip(0.5 + 0.5 * distance / width, 0, 1)


def _brain_hull(head, side, y, z):
    """Distance to the hull of cerebrum, cerebellum and brainstem, negative inside."""
    # The frontal lobes rest on the roofs of the orbits, which bulge upwards.
    roofs = 9 * np.exp(-(((side - 28) / 15) ** 2) - ((y - 50) / 28) ** 2)
    cerebrum = np.maximum(_convexity(head, side, y, z), roofs + 0.2 * y - z - 21)
    hull = _union(cerebrum, _ellipsoid(side, y, z, (40, 12, -26), (24, 36, 24)), 8)
    hull = _union(hull, _ellipsoid(side, y, z, (0, -50, -36), (50, 32, 26)), 3)
    return _union(hull, _stem(side, y, z), 3)


def _convexity(head, side, y, z):
    """Distance to the vault of the cerebrum; egg-shaped from above, widest behind the centre."""
    return _ellipsoid(side * (1 + y / 700), y, z, (0, 0, 12), (67, 84, 62), head.squareness)


def _stem(side, y, z):
    return _ellipsoid(side, y, z, (0, -22, -50), (14, 12, 45))


def _skin(scalp, side, y, z):
    """Distance to the skin, from that to the scalp: face, nose, neck and ears are added."""
    surface = _union(scalp, _ellipsoid(side, y, z, (0, 34, -62), (62, 58, 62), 0.3), 14)
    surface = _union(surface, _ellipsoid(side, y, z, (0, 90, -50), (12, 18, 20)), 8)
    surface = _union(surface, _ellipsoid(side, y, z, (0, -20, -110), (60, 66, 75)), 14)
    return _union(surface, _ellipsoid(side + 0.6 * y, y, z, (72, -20, -36), (4, 11, 24)), 5)


def _paint_face(part, side, y, z):
    """Facial bones, and orbits: cones of fat with eyeball, optic nerve and muscles."""
    maxilla = _ellipsoid(side, y, z, (20, 56, -60), (26, 24, 26))
    part[maxilla < 1] = Part.CORTICAL_BONE
    part[maxilla < -1.5] = Part.MARROW
    arch = np.maximum(60 * np.abs(np.hypot(side / 66, (y - 20) / 53) - 1) - 3, np.abs(z + 50) - 5)
    part[(arch < 0) & (y > -5)] = Part.CORTICAL_BONE

    depth = (y - 20) / 48  # 0 at the apex, 1 at the eyeball's equator
    off_axis = np.hypot(side - (13 + 19 * depth), z + 34)
    cone = off_axis - (3 + 17 * np.sqrt(np.clip(depth, 0, 1)))
    orbit = (depth > 0) & (y < 76)
    part[orbit & (cone < 2.5) & (y < 66)] = Part.CORTICAL_BONE
    part[orbit & (cone < 0)] = Part.FAT
    part[orbit & (np.abs(cone + 3.5) < 1.6) & (np.abs(z + 34) < 9) & (depth < 0.9)] = Part.MUSCLE
    part[orbit & (off_axis < 2.2) & (depth < 0.8)] = Part.WHITE
    eyeball = _ellipsoid(side, y, z, (32, 70, -34), (12.5, 12.5, 12.5))
    part[eyeball < 1.2] = Part.MUSCLE
    part[eyeball < 0] = Part.EYE
    part[_ellipsoid(side, y, z, (32, 78.5, -34), (5, 2.5, 5)) < 0] = Part.LENS


def _paint_air_cavities(part, head, side, y, z, texture):
    """Paranasal sinuses, nasal cavity, mastoid cells and ear canals."""
    size = head.sinuses
    for centre, radii in (
        ((26, 56, -60), (13 * size, 15 * size, 16 * size)),  # maxillary
        ((0, 24, -38), (12 * size, 11 * size, 9 * size)),  # sphenoidal
        ((8, 91, -8), (9 * size**2, 3.5 * size, 12 * size**2)),  # frontal
    ):
        wall = _ellipsoid(side, y, z, centre, radii)
        part[wall < 1.8] = Part.CORTICAL_BONE
        part[wall < 0.6] = Part.MUCOSA
        part[wall < 0] = Part.AIR
    ethmoid = np.maximum(np.maximum(side - 11, np.abs(y - 56) - 20), np.abs(z + 34) - 9) < 0
    part[ethmoid] = np.where(np.abs(texture[ethmoid]) < 0.35, Part.CORTICAL_BONE, Part.AIR)
    nasal = np.maximum(np.maximum(side - 13, np.abs(y - 64) - 26), np.abs(z + 60) - 17) < 0
    part[nasal] = np.where(texture[nasal] > 0.2, Part.MUCOSA, Part.AIR)
    part[nasal & (side < 1.2)] = Part.MUCOSA  # septum
    mastoid = _ellipsoid(side, y, z, (54, -26, -42), (11, 14, 15))
    part[mastoid < 0] = Part.CORTICAL_BONE
    part[(mastoid < -2) & (texture > 0)] = Part.AIR
    part[(np.hypot(y + 10, z + 40) < 3) & (side > 46)] = Part.AIR  # ear canal


def _brain(head, x, y, z, depth):
    """Parts [P] of points inside the brain's hull, `depth` mm below its surface."""
    side = np.abs(x)
    fold, sheet = _folds(head, x, y, z, depth)
    sulcus = np.float32(0.9 * head.atrophy)  # half its width
    part = np.full(x.shape, Part.WHITE, np.uint8)
    part[np.minimum(depth, fold - sulcus) < 3] = Part.GREY
    part[fold < sulcus] = Part.FLUID

    # Cerebellum, under the tentorium, with finer folds along its surface.
    tentorium = z + 9 + 0.3 * side - 0.2 * (y + 40)
    cerebellum = (y < -12) & (tentorium < 0)
    folia = np.sin(1.1 * depth + 0.4 * sheet)
    part[cerebellum] = np.where((depth < 15) & (folia > -0.5), Part.GREY, Part.WHITE)[cerebellum]
    part[cerebellum & (depth < 12) & (folia > 0.93)] = Part.FLUID
    part[(y < -12) & (np.abs(tentorium) < 0.8)] = Part.FLUID
    part[(_stem(side, y, z) < 0) & (z < -8)] = Part.WHITE

    for centre, radii, slant in (
        ((11, -14, 6), (9, 15, 10), 0),  # thalamus
        ((14.5, 20, 8), (5, 10, 10), 0),  # head of the caudate nucleus
        ((27, 3, 2), (6.5, 17, 11), 0.25),  # lentiform nucleus, its front nearer to the midline
    ):
        part[_ellipsoid(side + slant * (y - centre[1]), y, z, centre, radii) < 0] = Part.DEEP_GREY
    for lesion in head.lesions:
        inside = _ellipsoid(x, y, z, lesion[:3], lesion[3:]) < 0
        part[inside & (part == Part.WHITE)] = Part.LESION
    _paint_ventricles(part, head.ventricles, side, y, z)
    return part


def _folds(head, x, y, z, depth):
    """Distance to the middle of the nearest sulcus or fissure; signed distance to the sheets."""
    side = np.abs(x)
    # Sulci run inwards from the convexity: along the ray from the brain's centre their pattern
    # hardly changes.
    radius = np.sqrt(x * x + y * y + (z - 12) ** 2) + 1
    stretch = (70 / radius) ** np.float32(0.7)
    lattice = np.stack([x * stretch, y * stretch, (z - 12) * stretch]) / FOLD_STEP
    sheet = ndimage.map_coordinates(head.sheets, lattice, order=1, mode="grid-wrap") / stretch
    # How deep sulci reach varies slowly: the same noise, stretched, says how.
    slow = ndimage.map_coordinates(head.sheets, lattice / 2.1 + 17, order=1, mode="grid-wrap")
    deepest = 18 + 1.5 * slow
    depth = np.maximum(depth, -_convexity(head, side, y, z))
    sulci = np.hypot(sheet, np.maximum(depth - deepest, 0))

    # The fissure between the hemispheres ends at the corpus callosum.
    callosum = _ellipsoid(np.zeros_like(x), y, z, (0, -4, 6), (1, 46, 24))
    between = np.hypot(x + 0.15 * sheet, np.maximum(-callosum, 0))
    # The lateral fissure covers the insula and opens outwards from there.
    shell = side - 40 + ((y - 8) / 12) ** 2 + 0.3 * sheet
    insula = np.hypot(shell, np.maximum(np.hypot((y - 8) / 1.5, z - 2) - 14, 0))
    cleft = np.hypot(z - 0.25 * (y - 8) + 0.3 * sheet, np.maximum(np.abs(y - 8) - 26, 0))
    lateral = np.minimum(insula, np.hypot(cleft, np.maximum(-shell, 0)))
    return np.minimum(np.minimum(sulci, between), lateral), sheet


LATERAL_VENTRICLE = (  # x, y, z, radius in mm: frontal horn, body, atrium, occipital horn
    *((13, 34, 3, 3), (8, 20, 11, 5.5), (9, -8, 18, 5.5)),
    *((17, -30, 15, 6.5), (25, -46, 8, 6), (24, -64, 4, 2)),
)
TEMPORAL_HORN = ((25, -40, 5, 4), (33, -22, -12, 2), (34, -2, -20, 2))


def _paint_ventricles(part, size, side, y, z):
    for path in (LATERAL_VENTRICLE, TEMPORAL_HORN):
        for start, end in itertools.pairwise(path):
            start, end = ((*point[:3], size * point[3]) for point in (start, end))
            part[_capsule(side, y, z, start, end) < 0] = Part.FLUID
    for centre, radii in (
        ((0, -4, -1), (2 * size, 12, 10)),  # third
        ((0, -38, -34), (7 * size, 5 * size, 9)),  # fourth
        ((0, 6, -20), (13, 10, 6)),  # suprasellar cistern
        ((0, -36, -2), (12, 4, 6)),  # quadrigeminal cistern
    ):
        part[_ellipsoid(side, y, z, centre, radii) < 0] = Part.FLUID
