# SPDX-License-Identifier: Apache-2.0
"""DICOM: files sorted into series, and the slices of a series stacked where they truly lie.

A volume's axes are those of its file: columns, rows, slices; a shape [columns, rows, slices]. The
slices follow one another along their normal, whatever their files are called and numbered. The
affine's third column goes from the first slice's origin to the last's, so that the tilted gantry of
a CT scanner comes out as shear, and uneven gaps as `NativeGrid.offsets`.
"""

import dataclasses
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from contourdiff_jax.errors import InputError
from contourdiff_jax.volumes import geometry
from contourdiff_jax.volumes.formats import decoding, frames
from contourdiff_jax.volumes.formats.elements import Unusable
from contourdiff_jax.volumes.formats.frames import Frame, Header
from contourdiff_jax.volumes.geometry import EVEN, NativeGrid
from contourdiff_jax.volumes.volume import BadSlices, Image

LPS = np.diag((-1.0, -1, 1, 1))  # from DICOM's coordinates to RAS and back

# Directions and sizes of slices that belong together: headers round them.
SAME = 1e-3
# Slices nearer than this have one position, and origins farther than this from a line lie beside
# it; in pixels. So no voxel ends up half a voxel from where it lies.
SAME_POSITION = 0.1
BESIDE = 0.25
STEEP = 2.0  # mm that a stack goes for one along its normal: 60 degrees
TILT = 0.5  # degrees between slices and their stack that rounded positions do not make
WHOLE_GAPS = 0.05  # what a gap may be off a multiple of the usual one and slices still be missing
# Positions may be even but for the rounding of the header: certainly so where the last digit is
# less than the first of these, in gaps; not where it is more than the second, unless the header
# says this gap, because missing slices could look the same.
FINE_DIGIT, COARSE_DIGIT = 0.1, 0.35


@dataclasses.dataclass(frozen=True)
class Series:
    """Files that make one volume.

    Attributes:
      files: sorted by path.
      frames: which of the only file's are the volume's, where it holds several volumes; else None.
      patient: counts the patients from 1, in the order of a digest of what identifies them.
      number: counts the series of a patient from 1.
      kind: the modality: 'CT', 'MR', ...; 'OT' where it is none that DICOM knows.
      localizer: whether it is an overview to plan others on.
    """

    files: tuple[Path, ...]
    frames: tuple[int, ...] | None
    patient: int
    number: int
    kind: str
    localizer: bool


# --------------------------------------------------------------------------------------------------
# Series
# --------------------------------------------------------------------------------------------------


def group(files: Iterable[Path]) -> tuple[list[Series], list[tuple[Path, str]]]:
    """Sorts DICOM files into series, by their headers alone.

    A series of DICOM is parted further, so that each makes a volume: by orientation, matrix and
    pixel size, and by echo, time or kind of image where several of them show the same positions. A
    file of several frames is never put together with others, and parted likewise: the order of its
    frames means nothing (PS3.3 C.7.6.16).

    Returns:
      The series, by patient, and the files that cannot be read, with the reason. Files without an
      image (reports, plans, ...) are in neither.
    """
    buckets, failed = defaultdict(list), []
    for path in sorted(set(files)):
        try:
            header = frames.header(path)
        except InputError as error:
            failed.append((path, str(error)))
            continue
        if header is not None:
            alone = path if len(header.frames) > 1 else None
            buckets[header.patient, header.series, header.shape, alone].append(header)
    parts = [part for headers in buckets.values() for part in _volumes(_slices_of(headers))]
    parts.sort(key=lambda part: part[0].header.place)
    series, patients, count = [], {}, Counter()
    for part in parts:
        first = part[0].header
        patient = patients.setdefault(first.patient, len(patients) + 1)
        count[patient] += 1
        files = tuple(dict.fromkeys(one.header.path for one in part))
        chosen = None
        if len(part) < len(first.frames):
            chosen = tuple(sorted(one.index for one in part))
        series.append(Series(files, chosen, patient, count[patient], first.kind, first.localizer))
    return series, failed


def _slices_of(headers: Sequence[Header]) -> list["_Slice"]:
    """All frames, those of a file in the order of what they show."""
    slices = [_Slice(header, index) for header in headers for index in range(len(header.frames))]
    return sorted(slices, key=lambda one: (one.header.path, one.frame.order, one.index))


def _volumes(slices: Sequence["_Slice"]) -> list[Sequence["_Slice"]]:
    """Slices parted so that each part makes a volume."""
    return [part for alike in _alike(slices) for part in _parted(alike)]


def _alike(slices: Sequence["_Slice"]) -> list[list["_Slice"]]:
    """Slices parted by orientation and pixel size."""
    parts = []
    for one in slices:
        part = next((part for part in parts if _same(part[0].frame, one.frame)), None)
        if part is None:
            parts.append(part := [])
        part.append(one)
    return parts


def _same(one: Frame, other: Frame) -> bool:
    """Whether two frames have the same orientation and pixel size, or both none."""
    if (one.axes is None) != (other.axes is None) or (one.spacing is None) != (
        other.spacing is None
    ):
        return False
    return (one.axes is None or np.allclose(one.axes, other.axes, rtol=0, atol=SAME)) and (
        one.spacing is None or np.allclose(one.spacing, other.spacing, rtol=SAME, atol=0)
    )


def _parted(slices: Sequence["_Slice"]) -> list[Sequence["_Slice"]]:
    """Slices parted by echo, time or kind of image, where several have one position.

    They are parted by what takes several values at most of the positions: neither where each value
    covers a stretch of the body, as acquisitions of a CT do, nor where each is one slice's.
    """
    places = [_place(one) for one in slices]
    most = max(Counter(places).values())
    if most == 1 or places[0] is None:
        return [slices]
    for values in zip(*(one.frame.parts for one in slices), strict=True):
        by_value = defaultdict(list)
        for number, value in enumerate(values):
            by_value[value].append(number)
        if not 1 < len(by_value) <= most:
            continue
        held = [[places[number] for number in some] for some in by_value.values()]
        times = Counter(itertools.chain.from_iterable(map(set, held)))
        shared = [np.mean([times[place] > 1 for place in some]) for some in held]
        if np.mean(shared) > 0.5:
            if isinstance(values[0], int):  # ranks of one file, by which its volumes are numbered
                by_value = dict(sorted(by_value.items()))
            some = ([slices[number] for number in numbers] for numbers in by_value.values())
            return [smaller for part in some for smaller in _parted(part)]
    return [slices]


def _place(one: "_Slice") -> tuple[float, ...] | None:
    """Where a slice lies, to compare."""
    origin = one.frame.origin
    return None if origin is None else tuple((np.round(origin, 2) + 0.0).tolist())


# --------------------------------------------------------------------------------------------------
# Volumes
# --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Slice:
    """A frame of a file."""

    header: Header
    index: int

    @property
    def frame(self) -> Frame:
        return self.header.frames[self.index]


def opened(files: Sequence[Path], chosen: Sequence[int] | None = None) -> Image:
    """Opens the slices of one series in any order, or one file of several frames.

    Args:
      files: of the series.
      chosen: which frames of the only file, as `group` has parted them; all by default.

    Raises:
      BadSlices: some of several files cannot be read, or hold no image.
      InputError: none of them can, or they make no volume.
    """
    headers = _headers([Path(file) for file in files])
    path = headers[0].path if len(headers) == 1 else headers[0].path.parent
    for header in headers:
        if header.refused is not None:
            raise InputError(f"{header.path}: {header.refused}")
    if len({header.series for header in headers}) > 1:
        raise InputError(f"{path}: files of several series; give those of one")
    slices = _slices_of(headers)
    if chosen is not None:
        slices = [one for one in slices if one.index in set(chosen)]
        if len(slices) < len(chosen):
            raise InputError(f"{path}: other frames than it had; begin anew")
    elif len(headers) == 1 and len(parts := _volumes(slices)) > 1:
        raise InputError(
            f"{path}: {len(parts)} volumes in one file, as are echoes, phases and kinds of image; "
            "give its folder, or split it first"
        )
    first = slices[0]
    if any(
        one.header.shape != first.header.shape or not _same(one.frame, first.frame)
        for one in slices
    ):
        raise InputError(f"{path}: slices of several sizes or orientations; give those of one")
    slices.sort(key=lambda one: (one.header.instance, one.header.path, one.index))
    notes = list(dict.fromkeys(note for header in headers for note in header.notes))
    spacing = first.frame.spacing
    if spacing is None:
        notes.append("no pixel size in the header: 1 mm is assumed")
        spacing = (1.0, 1.0)
    try:
        if first.frame.origin is None:
            native = _unplaced(slices, spacing, notes)
        else:
            slices, native = _placed(slices, spacing, notes)
    except Unusable as error:
        raise InputError(f"{path}: {error}") from error
    geometry.check_affine(path, native.affine)
    dtype = np.result_type(*{header.dtype for header in headers})
    return Image(native, lambda: _voxels(path, slices), dtype, "DICOM", tuple(notes))


def _headers(files: Sequence[Path]) -> list[Header]:
    """The headers of files that must all hold an image."""
    headers, failed = [], []
    for path in files:
        try:
            header = frames.header(path)
            if header is None:
                raise InputError(f"{path}: DICOM, but no image")
            headers.append(header)
        except InputError as error:
            failed.append((path, str(error)))
    if failed and len(files) == 1:
        raise InputError(failed[0][1])
    if failed:
        raise BadSlices(failed)
    return headers


def _unplaced(slices: list[_Slice], spacing, notes: list[str]) -> NativeGrid:
    """The grid of slices without positions: as axial ones, in the order of their numbers."""
    step = slices[0].frame.gap or 1.0
    notes.append(
        "no position in the header: taken as axial slices in the order of their numbers, "
        f"{step:g} mm apart"
    )
    return _grid(slices, np.array([[1.0, 0, 0], [0, 1, 0]]), spacing, np.zeros(3), (0, 0, step))


def _placed(slices: list[_Slice], spacing, notes: list[str]) -> tuple[list[_Slice], NativeGrid]:
    """Slices by their positions along the normal, one for each, and their grid; adds notes.

    Raises Unusable where they lie on no line.
    """
    axes = slices[0].frame.axes
    normal = np.cross(*axes)
    origins = np.array([one.frame.origin for one in slices])
    positions = origins @ normal
    order = np.argsort(positions, kind="stable")
    slices = [slices[index] for index in order]
    origins, positions = origins[order], positions[order]

    pixel = min(spacing)
    digit = min(one.frame.digit for one in slices)
    blur = np.sqrt(3) * digit  # what two rounded origins may be off each other
    extent = positions[-1] - positions[0]
    direction = (origins[-1] - origins[0]) / extent if extent > SAME_POSITION * pixel else normal
    line = origins[0] + (positions - positions[0])[:, None] * direction
    beside = np.linalg.norm(origins - line, axis=1).max()
    if beside > max(BESIDE * pixel, min(blur, pixel)) or np.linalg.norm(direction) > STEEP:
        raise Unusable("slices that do not lie behind one another; give one stack of them")

    kept = _one_a_position(slices, positions, SAME_POSITION * pixel, notes)
    slices, positions = [slices[index] for index in kept], positions[kept]
    if len(slices) == 1:
        step = slices[0].frame.gap
        if step is None:
            notes.append(
                "no slice thickness in the header, or none that is plausible: 1 mm is assumed"
            )
        return slices, _grid(slices, axes, spacing, origins[kept[0]], (step or 1.0) * normal)

    if extent * np.linalg.norm(direction - normal) > blur:
        _note_tilt(slices[0].header, direction, normal, notes)
    origin = origins[kept[0]]
    step = (origins[kept[-1]] - origin) / (len(slices) - 1)
    exact = _unrounded(positions, digit * np.abs(normal).sum(), slices[0].frame.gap)
    if exact is not None:
        # What lies beside the normal by less than the rounding is no tilt either.
        along = direction if extent * np.linalg.norm(direction - normal) > blur else normal
        origin = origin + (exact[0] - positions[0]) * along
        step = (exact[-1] - exact[0]) / (len(slices) - 1) * along
        positions = exact
    offsets = (positions - positions[0]) / (step @ normal)
    if np.abs(offsets - np.arange(len(slices))).max() <= EVEN:
        offsets = None
    else:
        _note_gaps(slices, positions, normal, notes)
    return slices, _grid(slices, axes, spacing, origin, step, offsets)


def _unrounded(positions: np.ndarray, digit: float, stated: float | None) -> np.ndarray | None:
    """Positions [n] as they were before the header rounded them, if they were even.

    None where they are even as they are, with slices missing or not, and where no even ones become
    these by rounding.

    Args:
      digit: mm that the last digit of the header is worth along the normal.
      stated: mm from slice to slice as the header says it.
    """
    heights, gaps = positions - positions[0], np.diff(positions)

    def fit(steps, numbers):
        """How far apart rounding has moved positions at least, and where it moved them from."""
        moved = positions - np.outer(steps, numbers)
        best = moved[np.ptp(moved, axis=1).argmin()]
        return np.ptp(best), (best.max() + best.min()) / 2 + positions - best

    step = heights[-1] / len(gaps)
    if np.abs(heights - step * np.arange(len(positions))).max() <= EVEN * step:
        return None
    most = digit * 1.001  # but for floating-point numbers
    if stated is not None:
        moved, even = fit([stated], np.rint(heights / stated))
        if moved <= most and np.diff(even).min() > 0.5 * stated:
            return even
    usual = gaps[gaps < 1.5 * np.quantile(gaps, 0.25, method="lower")].mean()
    counts = np.rint(gaps / usual)
    numbers = np.append(0, np.cumsum(counts))  # of the slices, missing ones counted
    step = heights[-1] / numbers[-1]
    if counts.min() < 1 or np.abs(heights - step * numbers).max() <= EVEN * step:
        return None
    if digit > FINE_DIGIT * step:
        if counts.max() > 1 or digit > COARSE_DIGIT * step:
            return None
        most = digit * 0.99  # gaps that grow would just be within it
    steps = step + digit / numbers[-1] * np.linspace(-1, 1, 201)  # the ends are rounded too
    moved, even = fit(steps, numbers)
    return even if moved <= most else None


def _grid(slices, axes, spacing, origin, step, offsets=None) -> NativeGrid:
    """The grid of slices from DICOM's numbers."""
    affine = np.eye(4)
    affine[:3] = np.column_stack([axes[0] * spacing[0], axes[1] * spacing[1], step, origin])
    shape = (*slices[0].header.shape, len(slices))
    return NativeGrid(shape, LPS @ affine, offsets=offsets)


def _one_a_position(slices, positions, tolerance: float, notes: list[str]) -> list[int]:
    """Of the slices at each position the one with the lowest number, as indices; adds notes.

    Raises Unusable where frames of one file have no numbers.
    """
    starts = np.flatnonzero(np.diff(positions, prepend=-np.inf) > tolerance)
    kept, same, other = [], 0, 0
    for cluster in np.split(np.arange(len(slices)), starts[1:]):
        orders = {(slices[k].header.path, slices[k].frame.order) for k in cluster}
        if len(orders) < len(cluster):
            raise Unusable(
                "frames in one place that its header does not tell apart; split it first"
            )
        first = min(cluster, key=lambda k: (slices[k].header.instance, slices[k].frame.order, k))
        kept.append(int(first))
        for k in cluster:
            if k != first:
                identical = _identical(slices[first], slices[k])
                same, other = same + identical, other + (not identical)
    if same:
        notes.append(f"{_slices(same, 'duplicated ')} left out")
    if other:
        notes.append(f"{_slices(other)} left out: others in the same place differ")
    return kept


def _identical(one: _Slice, other: _Slice) -> bool:
    """Whether two slices hold the same numbers, as they are encoded."""
    if len(one.header.frames) > 1 or len(other.header.frames) > 1:
        return False
    digest = decoding.digest(one.header)
    return digest is not None and digest == decoding.digest(other.header)


def _note_tilt(header: Header, direction, normal, notes: list[str]) -> None:
    cosine = np.clip(direction @ normal / np.linalg.norm(direction), -1, 1)
    tilt = np.rad2deg(np.arccos(cosine))
    if tilt > TILT:
        name = "gantry tilt" if header.kind == "CT" else "slices slanted by a tilt"
        notes.append(f"{name} of {tilt:.1f} degrees")


def _note_gaps(slices, positions, normal, notes: list[str]) -> None:
    """Says where slices are missing, or how uneven their gaps are."""
    gaps = np.diff(positions)
    usual = np.quantile(gaps, 0.25, method="lower")  # also where slices are missing in many places
    multiples = gaps / usual
    missing = np.rint(multiples).astype(int) - 1
    whole = np.abs(multiples - np.rint(multiples)).max() <= WHOLE_GAPS
    if not whole or missing.min() < 0 or not missing.any():
        digits = 1 if np.ptp(gaps) >= 0.1 else 3
        notes.append(f"uneven slice gaps {gaps.min():.{digits}f} to {gaps.max():.{digits}f} mm")
        return
    axis = int(np.argmax(np.abs(normal)))
    holes = np.flatnonzero(missing)
    ends = sorted(LPS[axis, axis] * slices[k].frame.origin[axis] for k in (holes[0], holes[0] + 1))
    between = f"between {'xyz'[axis]} = {ends[0]:.1f} and {ends[1]:.1f} mm"
    if len(holes) > 1:
        between = f"in {len(holes)} places, the first {between}"
    notes.append(f"{_slices(missing.sum())} missing {between}")


def _slices(count: int, what: str = "") -> str:
    return f"{count} {what}slice{'' if count == 1 else 's'}"


def _voxels(path: Path, slices: Sequence[_Slice]) -> np.ndarray:
    """[columns, rows, slices] float32."""
    columns, rows = slices[0].header.shape
    try:
        array = np.empty((len(slices), rows, columns), np.float32)
    except MemoryError as error:
        raise InputError(f"{path}: not enough memory for the volume its headers claim") from error
    targets = defaultdict(dict)
    for one, target in zip(slices, array, strict=True):
        targets[one.header.path][one.index] = target
    headers = {one.header.path: one.header for one in slices}
    failed = []
    for file, header in headers.items():
        try:
            decoding.read(header, targets[file])
        except InputError as error:
            failed.append((file, str(error)))
    if failed and len(headers) == 1:
        raise InputError(failed[0][1])
    if failed:
        raise BadSlices(failed)
    return array.transpose(2, 1, 0)
