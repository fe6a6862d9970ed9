# SPDX-License-Identifier: Apache-2.0
"""Remarks: what is wrong with scans and what to do about it, and what is good to know."""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator

import numpy as np

from contourdiff_jax.data.inspection import guesses
from contourdiff_jax.data.inspection.findings import NOTE, PROBLEM, Guess, Inspected, Remark
from contourdiff_jax.data.inspection.guesses import OFFSET
from contourdiff_jax.data.layouts import pairs
from contourdiff_jax.data.layouts.scans import Scan
from contourdiff_jax.errors import InputError, printable
from contourdiff_jax.volumes import geometry, intensity, masks
from contourdiff_jax.volumes.grid import AXES
from contourdiff_jax.volumes.volume import BRAIN, Image, Volume

FAR = 5.0  # outliers are so many times as far from the bulk as the 99.9th percentile
SMALLEST, LARGEST = 20.0, 2500.0  # [mm] fields of view
FEW_SLICES = 5
THICK = 2.0  # slices, by the size of their pixels
SHEARED, OBLIQUE = 1.0, 10.0  # [degrees]
LOSS = ("missing", "left out", "uneven")  # in a reader's note: it is a problem
OTHER_SPACING = 1.5  # times the median of the scans beside it


def on_scan(
    scan: Scan, volume: Volume, image: Image, percentiles: dict, guessed: Guess, called: str | None
) -> list[Remark]:
    """On one scan, without its name."""
    picture = scan.is_picture
    return [
        *_intensity_remarks(percentiles, guessed, called, image, picture),
        *_geometry_remarks(volume, image, picture),
        *([(NOTE, guesses.LYING)] if picture and _lies(volume, guessed) else []),
        *_slice_remarks(volume, guessed),
        *_partner_remarks(volume, scan),
    ]


def _intensity_remarks(percentiles, guessed, called, image: Image, picture) -> Iterator[Remark]:
    low, first, high, top, most = (percentiles[p] for p in (0, 1, 99.5, 99.9, 100))
    modality = guessed.modality
    if low == most:
        yield PROBLEM, f"constant, every voxel is {low:g}; leave it out unless it is a label map"
        return
    if modality == "labels":
        if called in ("ct", "mr"):
            remedy = "keep it apart from images"
            yield PROBLEM, f"called {called.upper()}, but it looks like a label map; {remedy}"
        return
    if low == high:
        yield PROBLEM, f"99.5% of the voxels are {low:g}; leave it out, that is no image"
        return
    if called == "labels":
        yield PROBLEM, f"called labels, but {low:g} to {most:g} are an image's values; rename it"
    if guessed.offset:
        shift = f"{-OFFSET},{65535 - OFFSET}"
        remedy = f"give --range={shift}" if picture and image.dtype == np.uint16 else "subtract it"
        yield PROBLEM, f"values look like HU + {OFFSET} ({low:g} to {most:g}); {remedy}"
    elif called == "ct" and modality == "picture":
        remedy = "get the original"
        if picture:
            remedy = f"give --range=LOW,HIGH, the HU of 0 and 255, --range={BRAIN}, or --preset=mr"
        yield PROBLEM, f"CT clipped to 8 bits, {low:g} to {most:g} are no HU; {remedy}"
    elif called == "ct" and modality == "mr":
        yield PROBLEM, f"called CT, but {low:g} to {most:g} are no HU; rescale or rename it"
    elif called == "mr" and modality == "ct":
        yield PROBLEM, "called MR, but its values look like HU; see which of both it is"
    elif modality == "mr" and first < -intensity.UNDERSHOOT * high:
        remedy = "normalise all volumes of a store like this, or none"
        yield PROBLEM, f"negative values in MR (1% are below {first:.4g}); {remedy}"
    elif modality == "mr" and low < 0:
        yield NOTE, f"few values are negative, down to {low:.4g}; they count as 0"
    if most - first > FAR * (top - first):
        remedy = "see whether it is metal or damage; it will be clipped"
        yield PROBLEM, f"outliers up to {most:g}, where 99.9% are below {top:g}; {remedy}"
    highest = intensity.preset("ct").storage.high
    if modality == "ct" and not guessed.offset and most > highest:
        yield NOTE, f"HU up to {most:g} will be clipped at {highest:g}"


def _geometry_remarks(volume: Volume, image: Image, picture: bool) -> Iterator[Remark]:
    for note in image.notes:
        if any(word in note for word in LOSS):
            yield PROBLEM, f"{note}; see whether the series is complete"
        else:
            yield NOTE, note
    shape, affine = volume.array.shape, volume.affine
    sizes = geometry.spacing(affine)
    extent = sizes * shape
    if not SMALLEST < extent.max() < LARGEST:
        remedy = "give --pixel_spacing" if picture else "repair the header: metres, or microns?"
        yield PROBLEM, f"a field of view of {_by(' x ', extent)} mm; {remedy}"
    unit = affine[:3, :3] / sizes
    shear = np.degrees(np.arcsin(np.abs(np.triu(unit.T @ unit, 1)).max().clip(0, 1)))
    turn = np.degrees(np.arccos(np.diag(unit).min().clip(-1, 1)))
    if shear > SHEARED and not any("tilt" in note for note in image.notes):
        yield NOTE, f"sheared by {shear:.1f} degrees (a tilted gantry); slices stay where they are"
    if shear <= SHEARED and turn > OBLIQUE:
        remedy = "slices are cut along its own axes, straighten it if the others are straight"
        yield PROBLEM, f"oblique by {turn:.0f} degrees; {remedy}"
    if picture:  # what follows is about slices that belong together
        return
    thick = sizes.max() > THICK * np.median(sizes)  # along one axis, not two
    across = int(sizes.argmax()) if thick else int(np.argmin(shape))
    if shape[across] == 1:
        yield PROBLEM, "a single slice; leave it out if it is a localiser"
    elif shape[across] < FEW_SLICES:
        yield PROBLEM, f"{shape[across]} slices; too few for a body mask, get the whole volume"
    if thick:
        axis = next(name for name, axes in AXES.items() if axes[0] == across)
        text = f"{axis} slices, {sizes.max() / sizes.min():.1f} times as thick as their pixels"
        if axis == "axial":
            yield NOTE, text
        else:
            yield PROBLEM, f"{text}; give `prepare --axis={axis}`"


def _lies(volume: Volume, guessed: Guess) -> bool:
    """Whether pictures seem to lie on their side."""
    if guessed.preset is None:
        return False
    preset = intensity.preset(guessed.preset)
    body = masks.body_mask(volume.array, volume.affine, preset.modality)
    return guesses.lies(volume.array, body)


def _slice_remarks(volume: Volume, guessed: Guess) -> Iterator[Remark]:
    """On axial slices that hold one value only."""
    array = volume.array
    shown = np.flatnonzero(array.min((0, 1)) < array.max((0, 1)))
    if guessed.modality == "labels" or not shown.size:
        return
    between = shown[-1] - shown[0] + 1 - shown.size
    ends = array.shape[2] - shown.size - between
    if between:
        yield PROBLEM, f"empty: {between} axial slices between others; convert it again"
    if ends:
        yield NOTE, f"empty: {ends} of {array.shape[2]} axial slices, at the ends"


def _partner_remarks(volume: Volume, scan: Scan) -> Iterator[Remark]:
    """On the mask and the label map that the layout holds for a scan."""
    for what in ("masks", "labels"):
        try:
            pairs.companion(volume, scan, None, what)
        except InputError as error:
            yield PROBLEM, str(error).removeprefix(printable(f"{scan.path}: "))


# --------------------------------------------------------------------------------------------------
# On several scans
# --------------------------------------------------------------------------------------------------


def on_several(done: list[Inspected]) -> Iterator[Remark]:
    """On scans that are unlike those beside them, or too much like them."""
    for (root, kind), group in _grouped(done, lambda s: (s.root, s.scan.kind)):
        where = f"{root} ({kind})" if kind else root
        yield from ((which, f"{where}: {text}") for which, text in _differences(group))
    for (root, *_), group in _grouped(done, lambda s: (s.root, s.scan.kind, s.scan.name)):
        if len(group) > 1:
            remedy = "rename them, or give --layout=FILE.csv"
            name = group[0].scan.name
            yield (
                PROBLEM,
                f"{root}: {name!r} is the name of {_listed(s.scan.path for s in group)}; {remedy}",
            )
    for (root, subject), group in _grouped(done, lambda s: (s.root, s.scan.subject)):
        splits = sorted({s.scan.split for s in group} - {None})
        if len(splits) > 1:
            remedy = "keep it in one, or the test is of what was learned by heart"
            yield PROBLEM, f"{root}: {subject!r} is in {' and '.join(splits)}; {remedy}"
    yield from _identical([s for s in done if s.guess.modality != "labels"])


def _differences(group: list[Inspected]) -> Iterator[Remark]:
    """On scans of one folder and kind that are unlike most of them."""
    seems = Counter(s.guess.modality for s in group)
    if len(seems) > 1:
        few = [s.scan.name for s in group if s.guess.modality != seems.most_common(1)[0][0]]
        remedy = "keep them in folders of their own"
        yield PROBLEM, f"{_tally(seems)} in one place, see {_listed(few)}; {remedy}"
    axes = Counter(s.orientation for s in group)
    if len(axes) > 1:
        yield NOTE, f"stored as {_tally(axes)}; all are turned the same way"
    sizes = np.array([_along_ras(s) for s in group])
    usual = np.median(sizes, axis=0)
    factors = np.maximum(sizes / usual, usual / sizes).max(axis=1)
    other = [s.scan.name for s, f in zip(group, factors, strict=True) if f > OTHER_SPACING]
    if other:
        remedy = "pixels are resampled to one spacing, but slices stay as thick as they are"
        usual = f"far from {_by(' x ', usual)} mm, their median"
        yield PROBLEM, f"spacing of {_listed(other)} {usual}; {remedy}"


def _along_ras(inspected: Inspected) -> list[float]:
    """Spacing [mm] along x, y and z."""
    sizes = dict(zip(inspected.orientation, inspected.spacing, strict=True))
    return [next(sizes[end] for end in ends if end in sizes) for ends in ("RL", "AP", "SI")]


def _identical(done: list[Inspected]) -> Iterator[Remark]:
    """On scans with the same bytes. Only files of one size are read again."""
    for _, alike in _grouped(done, lambda s: sum(path.stat().st_size for path in s.scan.files)):
        for _, group in _grouped(
            alike if len(alike) > 1 else (), lambda s: (s.scan.sha256, s.scan.frames)
        ):
            if len(group) > 1:
                subjects = _listed(sorted(s.scan.subject for s in group))
                files = _listed(s.scan.path for s in group)
                yield PROBLEM, f"identical (of {subjects}): {files}; keep one"


def _grouped(done: Iterable[Inspected], key: Callable[[Inspected], Hashable]):
    groups = defaultdict(list)
    for inspected in done:
        groups[key(inspected)].append(inspected)
    return groups.items()


def _listed(names: Iterable[object]) -> str:
    names = list(dict.fromkeys(map(str, names)))
    more = [f"{len(names) - 3} more"] if len(names) > 3 else []
    return ", ".join([*names[:3], *more])


def _tally(counts: Counter) -> str:
    return ", ".join(f"{count} {value}" for value, count in counts.most_common())


def _by(sign: str, numbers: Iterable[float]) -> str:
    return sign.join(f"{number:.3g}" for number in numbers)
