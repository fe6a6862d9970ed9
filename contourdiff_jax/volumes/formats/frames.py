# SPDX-License-Identifier: Apache-2.0
"""The frames of a DICOM file: where each lies and what its numbers mean.

A file holds one frame (a slice) or many (an enhanced object). Positions and directions are DICOM's
own here: millimetres, LPS. What a header claims is checked before it is believed; identifiers leave
as digests, which are compared and never shown.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path

import numpy as np
from pydicom.datadict import dictionary_has_tag, dictionary_VR, tag_for_keyword
from pydicom.pixels import get_decoder

from contourdiff_jax.errors import InputError
from contourdiff_jax.volumes.formats import elements, mosaic, preamble
from contourdiff_jax.volumes.formats.elements import (
    Elements,
    Unusable,
    integer,
    number,
    numbers,
    raw,
)
from contourdiff_jax.volumes.geometry import LARGEST, SMALLEST
from contourdiff_jax.volumes.intensity import PRESETS

AIR = PRESETS["ct"].air

# Objects with rows and columns that are no images: RT dose, segmentation, MR spectroscopy.
NOT_IMAGES = tuple(f"1.2.840.10008.5.1.4.1.1.{last}" for last in ("481.2", "66.4", "4.2"))
# What a file may call itself (PS3.3 C.7.3.1.1.1); all else is 'OT', as DICOM says for other.
KINDS = ("CT", "MR", "PT", "NM", "US", "CR", "DX", "MG", "XA", "RF", "OCT", "OP", "ES", "SM", "SC")
COLOUR = (
    *("RGB", "PALETTE COLOR", "ARGB", "CMYK", "HSV", "YBR_FULL", "YBR_FULL_422"),
    *("YBR_PARTIAL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT"),
)
# What can differ between images of one series at one position.
PARTS = (
    *("EchoTime", "EchoNumbers", "InversionTime", "TemporalPositionIdentifier", "TriggerTime"),
    *("DiffusionBValue", "ImageType", "AcquisitionNumber"),
)
# Of nuclear medicine, what frames in one place can be of (PS3.3 C.8.4.8).
VECTORS = (
    *("EnergyWindowVector", "DetectorVector", "PhaseVector", "RotationVector"),
    *("RRIntervalVector", "TimeSlotVector", "AngularViewVector", "TimeSliceVector"),
)
KEYWORDS = (
    *("SOPClassUID", "Modality", "PatientID", "StudyInstanceUID", "SeriesInstanceUID"),
    *("SeriesNumber", "InstanceNumber", "NumberOfFrames", "Rows", "Columns", *PARTS),
    *("ImagePositionPatient", "ImageOrientationPatient", "SliceThickness", "SpacingBetweenSlices"),
    *("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"),
    *("SamplesPerPixel", "PhotometricInterpretation", "PixelRepresentation", "BitsAllocated"),
    *("BitsStored", "HighBit", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", *VECTORS),
)
TAGS = tuple(tag_for_keyword(keyword) for keyword in KEYWORDS)

MOSAIC = "a mosaic of many slices in one picture; convert it, as with dcm2niix"
# What functional groups say of where a frame lies and not of what it shows.
PLACES = tuple(
    tag_for_keyword(keyword)
    for keyword in ("PlanePositionSequence", "PlaneOrientationSequence", "DimensionIndexValues")
)
CODECS = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
COMPRESSION = 10_000  # times that pixels may be smaller in a file: more than a blank frame is
RIGHT_ANGLE = 0.01  # what the cosines of two directions may be off
SIZES = (1e-5, 1e3)  # [mm] between pixels
FARTHEST = 1e6  # [mm] from the origin


@dataclasses.dataclass(frozen=True)
class Frame:
    """Where a frame lies and what its numbers mean; None where the header does not say.

    Attributes:
      origin: [3] mm, the centre of its first pixel.
      axes: [2, 3] unit vectors along its rows (columns count up) and along its columns.
      spacing: mm between columns, and between rows.
      gap: mm to the next frame.
      slope, intercept: from stored numbers to units.
      digit: [mm] of the last that the numbers of its origin are written with.
      parts: what can differ between images in one place, to compare: digests of what PARTS say, or
        of one frame of many, ranks of what its functional groups say.
      order: its dimension indices (PS3.3 C.7.6.17), among those of its file; () where it has none.
    """

    origin: np.ndarray | None
    axes: np.ndarray | None
    spacing: tuple[float, float] | None
    gap: float | None
    slope: float
    intercept: float
    digit: float
    parts: tuple = ()
    order: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Header:
    """What the header of a file with an image says.

    Attributes:
      path: the file.
      frames: one or more.
      shape: columns and rows.
      dtype: of the numbers as they are stored.
      kind: the modality: 'CT', 'MR', ...
      localizer: whether it is an overview to plan others on.
      refused: why the pixels cannot be used, although the file is whole; None where they can be.
      padding: stored numbers, from and to, that stand for no measurement.
      notes: what is odd about it, one line each.
      patient, series: digests of what identifies them.
      number, instance: of the series, and of the image in it; infinite where there is none.
      tiles: along a side of the mosaic in which its frames lie; 1 where they lie in none.
    """

    path: Path
    frames: tuple[Frame, ...]
    shape: tuple[int, int]
    dtype: np.dtype
    kind: str
    localizer: bool
    refused: str | None
    padding: tuple[float, float] | None
    notes: tuple[str, ...]
    patient: str
    series: str
    number: float
    instance: float
    tiles: int = 1

    @property
    def place(self) -> tuple[str, float, Path]:
        """By what files are put in order."""
        return self.patient, self.number, self.path


def header(path: Path) -> Header | None:
    """The header of a file; None where it is DICOM without an image: a report, a plan, ...

    Raises InputError, naming the file, for anything else.
    """
    if not preamble.is_dicom(path):
        raise InputError(f"{path}: not a DICOM file")
    return elements.guarded(path, lambda: _header(path))


def _header(path: Path) -> Header | None:
    file = elements.read(path, TAGS, pixels=False)
    dataset = file.dataset
    if not _is_image(dataset):
        return None
    if file.pixels is None:
        raise Unusable("holds no pixels; export it again")
    kind = str(dataset.get("Modality", "")).upper()
    kind = kind if kind in KINDS else "OT"
    rows, columns = integer(dataset, "Rows", 0), integer(dataset, "Columns", 0)
    dtype, refused = _dtype(file), _refusal(file)
    count = 1 if refused else integer(dataset, "NumberOfFrames", 1)
    if refused is None:
        _check_size(file, count, rows * columns * dtype.itemsize)
    frames, notes = _frames(dataset, count)
    tiles = 1
    if refused is None and mosaic.is_mosaic(raw(dataset, "ImageType")):
        frames, tiles = _tiled(path, frames, (columns, rows))
        refused = None if tiles else MOSAIC
        columns, rows = columns // max(tiles, 1), rows // max(tiles, 1)
    padding = _padding(dataset) if kind == "CT" else None
    if padding and padding[0] * frames[0].slope + frames[0].intercept < AIR:
        notes.append(f"padding outside the field of view is set to {AIR:g}")
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        notes.append("MONOCHROME1: low values are meant to be shown bright; they are kept")
    return Header(
        path=path,
        frames=tuple(frames),
        shape=(columns, rows),
        dtype=dtype,
        kind=kind,
        localizer=b"LOCALIZER" in raw(dataset, "ImageType"),
        refused=refused,
        padding=padding,
        notes=tuple(notes),
        patient=_digest(raw(dataset, "PatientID") or raw(dataset, "StudyInstanceUID")),
        series=_digest(raw(dataset, "SeriesInstanceUID")),
        number=number(dataset, "SeriesNumber", np.inf),
        instance=number(dataset, "InstanceNumber", np.inf),
        tiles=tiles,
    )


def _is_image(dataset) -> bool:
    """Whether there is an image; Unusable where there should be."""
    rows, columns = integer(dataset, "Rows", 0), integer(dataset, "Columns", 0)
    kind = dataset.SOPClassUID
    if rows == columns == 0 and kind and "Image Storage" not in kind.name:
        return False
    if not (0 < rows < 1 << 16 and 0 < columns < 1 << 16):
        raise Unusable("an image without rows or columns; export it again")
    return kind not in NOT_IMAGES


def _dtype(file: Elements) -> np.dtype:
    """Of the numbers as they are stored."""
    if file.pixels != "PixelData":
        return np.dtype(np.float32 if file.pixels == "FloatPixelData" else np.float64)
    bits = integer(file.dataset, "BitsAllocated", 0)
    signed = integer(file.dataset, "PixelRepresentation", 0)
    if bits not in (1, 8, 16, 32) or signed not in (0, 1):
        raise Unusable("pixels of no known type (BitsAllocated, PixelRepresentation)")
    return np.dtype(f"{'ui'[signed]}{max(bits // 8, 1)}")


def _refusal(file: Elements) -> str | None:
    """Why the pixels of a file that is whole cannot be used."""
    dataset, syntax = file.dataset, file.syntax
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    if photometric in COLOUR:
        return f"a colour image ({photometric}); give one number a pixel"
    if integer(dataset, "SamplesPerPixel", 1) != 1 or (
        photometric not in ("MONOCHROME1", "MONOCHROME2", "")
    ):
        return "an image of no known colours; give one number a pixel"
    if any(len(set(np.ravel(dataset.get(keyword) or 0).tolist())) > 1 for keyword in VECTORS):
        return "frames of several detectors, phases or times; split it first"
    if file.pixels == "PixelData":
        allocated = integer(dataset, "BitsAllocated", 0)
        stored = integer(dataset, "BitsStored", allocated)
        if allocated == 1:
            return "one bit a pixel; convert it to 8 bits"
        if integer(dataset, "HighBit", stored - 1) != stored - 1:
            return "pixels that do not begin at the lowest bit (HighBit); convert it first"
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        return f"pixels encoded as {syntax.name}, which cannot be read; decompress it first"
    return None if available else f"pixels compressed as {syntax.name}; run {CODECS}"


def _check_size(file: Elements, count: int, frame: int) -> None:
    """Unusable where a file cannot hold the frames, of so many bytes each, that it claims."""
    possible = file.size * (COMPRESSION if file.syntax.is_encapsulated else 1)
    if not 1 <= count <= file.size or count * frame > possible:
        raise Unusable("the file is truncated or damaged; copy it again")


def _frames(dataset, count: int) -> tuple[list[Frame], list[str]]:
    """The frames of a file, and notes."""
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or [None]
    if count == 1 or not own:
        frame = _frame(dataset, shared[0], own[0] if own else None)
        parts = tuple(_digest(raw(dataset, keyword)) for keyword in PARTS)
        frame = dataclasses.replace(frame, parts=parts)
        if count == 1 or frame.origin is None:
            return [frame] * count, []
        step = frame.gap or 1.0
        steps = step * np.cross(*frame.axes) * np.arange(count)[:, None]
        return (
            [dataclasses.replace(frame, origin=origin) for origin in frame.origin + steps],
            [f"the header places the first frame only: {step:g} mm to the next is assumed"],
        )
    if len(own) != count:
        raise Unusable("NumberOfFrames is damaged; export it again")
    ranks, orders = _ranks(own), _orders(own)
    return [
        dataclasses.replace(_frame(dataset, shared[0], group), parts=order + parts, order=order)
        for group, parts, order in zip(own, ranks, orders, strict=True)
    ], []


def _orders(groups: Sequence) -> list[tuple[int, ...]]:
    """The dimension indices of frames by their functional groups; () where not all have them."""
    contents = [group.get("FrameContentSequence") or [{}] for group in groups]
    orders = [tuple(map(int, content[0].get("DimensionIndexValues") or ())) for content in contents]
    return orders if len(set(map(len, orders))) == 1 else [()] * len(orders)


def _ranks(groups: Sequence) -> list[tuple[int, ...]]:
    """Of all elements that differ between functional groups, but for places, the rank in each."""
    told = [dict(_elements(group)) for group in groups]
    ranks = []
    for path in sorted(set().union(*told)):
        values = [values.get(path, (b"", None))[0] for values in told]
        if len(set(values)) > 1:
            some = {values[path][0]: values[path][1] for values in told if path in values}
            ordered = sorted(set(values), key=lambda value: _sortable(some.get(value)))
            rank = {value: place for place, value in enumerate(ordered)}
            ranks.append([rank[value] for value in values])
    return list(zip(*ranks, strict=True)) or [()] * len(groups)


def _elements(item, path: tuple[int, ...] = ()) -> Iterator[tuple[tuple, tuple[bytes, object]]]:
    """All elements of an item and of those in it: where each stands, its bytes, and itself."""
    for tag in sorted(item.keys()):
        if tag in PLACES or tag.is_private or not dictionary_has_tag(tag):
            continue
        if dictionary_VR(tag) == "SQ":
            for number, inner in enumerate(item[tag].value or ()):
                yield from _elements(inner, (*path, tag, number))
        else:
            value = item.get_item(tag).value
            encoded = value if isinstance(value, bytes) else repr(value).encode()
            yield (*path, tag), (encoded, (item, tag))


def _sortable(element) -> tuple:
    """The value of an element of an item, to sort by: none, numbers, and then texts."""
    if element is None:
        return 0, [], ""
    item, tag = element
    value = item[tag].value
    try:
        return 1, np.array(value, np.float64).ravel().tolist(), ""
    except (TypeError, ValueError):
        return 2, [], str(value)


def _tiled(path: Path, frames: list[Frame], shape: tuple[int, int]) -> tuple[list[Frame], int]:
    """The slices in a mosaic of [columns, rows], and tiles along its side: 0 where nothing says it.

    The header places the mosaic as if it were one slice: its middle is that of the first tile.
    """
    frame, told = frames[0], mosaic.described(path)
    if told is None or len(frames) > 1 or None in (frame.spacing, frame.gap) or frame.axes is None:
        return frames, 0
    count, direction = told
    tiles = math.ceil(math.sqrt(count))
    normal = np.cross(*frame.axes)
    cosine = normal @ direction
    if shape[0] % tiles or shape[1] % tiles or abs(abs(cosine) - 1) > RIGHT_ANGLE:
        return frames, 0
    size = np.array(shape)
    first = frame.origin + (size - size // tiles) / 2 * frame.spacing @ frame.axes
    step = np.sign(cosine) * frame.gap * normal
    return [dataclasses.replace(frame, origin=first + k * step) for k in range(count)], tiles


def _frame(dataset, shared, own) -> Frame:
    """One frame, by its own functional groups, those of all frames, or the data set itself."""

    def group(name):
        items = [item.get(name) for item in (own, shared) if item is not None]
        return next((item[0] for item in items if item), dataset)

    measures, values = group("PixelMeasuresSequence"), group("PixelValueTransformationSequence")
    origin = numbers(group("PlanePositionSequence"), "ImagePositionPatient", 3)
    cosines = numbers(group("PlaneOrientationSequence"), "ImageOrientationPatient", 6)
    placed = origin is not None and cosines is not None
    if placed and np.abs(origin).max() > FARTHEST:
        raise Unusable("ImagePositionPatient is damaged; export it again")
    gaps = [number(measures, name, 0.0) for name in ("SpacingBetweenSlices", "SliceThickness")]
    slope = number(values, "RescaleSlope", 1.0)
    if slope == 0:
        raise Unusable("RescaleSlope is 0; export it again")
    return Frame(
        origin=origin if placed else None,
        axes=_axes(cosines) if placed else None,
        spacing=_spacing(measures),
        gap=next((abs(gap) for gap in gaps if SMALLEST <= abs(gap) <= LARGEST), None),
        slope=slope,
        intercept=number(values, "RescaleIntercept", 0.0),
        digit=_last_digit(group("PlanePositionSequence"), "ImagePositionPatient"),
    )


def _last_digit(item, keyword: str) -> float:
    """What one step of the last digit is worth with which numbers are written, 1 at most."""
    values = item.get(keyword) or ()
    exponents = [Decimal(str(value).strip()).as_tuple().exponent for value in values]
    return 10.0 ** min([0, *exponents])


def _axes(cosines: np.ndarray) -> np.ndarray:
    """[2, 3] unit vectors of ImageOrientationPatient [6]."""
    axes = cosines.reshape(2, 3)
    lengths = np.linalg.norm(axes, axis=1)
    if np.abs(lengths - 1).max() > RIGHT_ANGLE or abs(axes[0] @ axes[1]) > RIGHT_ANGLE:
        raise Unusable("ImageOrientationPatient is no pair of directions at right angles")
    return axes / lengths[:, None]


def _spacing(measures) -> tuple[float, float] | None:
    """mm between columns, and between rows."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        spacing = numbers(measures, keyword, 2)
        if spacing is not None:
            if not SIZES[0] < spacing.min() <= spacing.max() < SIZES[1]:
                raise Unusable(f"{keyword} is damaged; export it again")
            return float(spacing[1]), float(spacing[0])
    return None


def _padding(dataset) -> tuple[float, float] | None:
    """Stored numbers, from and to, that stand for no measurement."""
    value = number(dataset, "PixelPaddingValue")
    if value is None:
        return None
    ends = [value, number(dataset, "PixelPaddingRangeLimit", value)]
    if integer(dataset, "PixelRepresentation", 0):  # -2000 is often written as 63536
        full = 1 << integer(dataset, "BitsAllocated", 16)
        ends = [end - full if end >= full / 2 else end for end in ends]
    return min(ends), max(ends)


def _digest(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()
