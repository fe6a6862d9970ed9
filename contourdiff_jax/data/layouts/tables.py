# SPDX-License-Identifier: Apache-2.0
"""Tables: CSV files that say which file is whose.

The columns of a table of its own are `file` and `subject`, and if wanted `slice`, `volume`,
`split`, `labels`, `mask` and `kind`. Files are named from the table's folder; one can be a folder
of DICOM files. Pictures of one subject, volume and kind are the slices of one volume, in the order
of `slice` or else of the lines. Other columns are left alone.

ContourDiff's df_meta.csv names the pictures of images/ as `image_name`; which volume they are of,
as `volume`, `subject`, `patient`, `case` or `specifier`; and the slice, as `slice`, `slice_id`,
`slice_number` or `z`. Without the volume their names tell it.
"""

import csv as reading
import dataclasses
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from contourdiff_jax.data.layouts import naming
from contourdiff_jax.data.layouts.folders import Folder, is_dicom, is_picture
from contourdiff_jax.data.layouts.naming import Wanted
from contourdiff_jax.data.layouts.scans import Content
from contourdiff_jax.data.layouts.stacks import recognition, scan, stacked
from contourdiff_jax.data.store import SPLITS
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk

IMAGES, META = "images", "df_meta.csv"
SUBJECTS = ("subject", "patient", "case")
VOLUMES = ("volume", "specifier")
SLICES = ("slice", "slice_id", "slice_number", "z")


@dataclasses.dataclass(frozen=True)
class _Line:
    """One line of a table.

    Attributes:
      number: of the line.
      file: what it is about.
      subject, volume, kind: '' where the table does not say.
      order: among the slices of a volume, None where the table does not say.
      split: None where the table does not say.
      labels, mask: None where there are none.
    """

    number: int
    file: Path
    subject: str
    volume: str
    order: float | None
    kind: str = ""
    split: str | None = None
    labels: Path | None = None
    mask: Path | None = None


def csv(path: Path, wanted: Wanted) -> Content:
    """The scans that a CSV file lists."""
    lines, splits = [], {}
    for number, row in rows(path, ("file", "subject")):
        at = f"{path}: line {number}"
        for column in ("file", "subject"):
            if not row[column]:
                raise InputError(f"{at}: no {column}")
        split = row.get("split") or None
        if split not in (None, *SPLITS):
            raise InputError(f"{at}: unknown split {split!r}; known: {', '.join(SPLITS)}")
        if splits.setdefault(row["subject"], split) != split:
            raise InputError(f"{at}: the subject {row['subject']!r} is in another split above")
        lines.append(
            _Line(
                number,
                path.parent / row["file"],
                row["subject"],
                row.get("volume", ""),
                _number(at, row.get("slice")),
                row.get("kind") or naming.PLAIN,
                split,
                *(path.parent / row[it] if row.get(it) else None for it in ("labels", "mask")),
            )
        )
    content = Content("csv", [])
    for kind in wanted.among(path, {line.kind for line in lines}):
        _add(content, path, [line for line in lines if line.kind == kind], wanted)
    return content


def holds_contourdiff(folder: Folder) -> bool:
    """Whether there are the pictures and the table of a domain of ContourDiff."""
    return folder.path / META in folder.files and folder.path / IMAGES in folder.folders


def contourdiff(folder: Folder, wanted: Wanted) -> Content:
    """The scans of a domain of ContourDiff, which are of one kind."""
    wanted.among(folder.path, [naming.PLAIN])
    table, images = folder.path / META, folder.enter(folder.path / IMAGES)
    images_of = rows(table, ("image_name",))
    subject, volume, order = (
        next((name for name in names if name in images_of[0][1]), None)
        for names in (SUBJECTS, VOLUMES, SLICES)
    )
    lines = []
    for number, row in images_of:
        at = f"{table}: line {number}"
        whose = row[subject or volume] if subject or volume else ""
        if not row["image_name"] or not (whose or subject is volume):
            raise InputError(f"{at}: an empty field")
        which = row[volume] if subject and volume else ""
        rank = _number(at, row[order]) if order else None
        inside = Path(os.path.normpath(row["image_name"]))
        if inside.is_absolute() or not inside.parts or inside.parts[0] == "..":
            raise InputError(f"{at}: {row['image_name']!r} is no picture of {IMAGES}")
        lines.append(_Line(number, images.path / row["image_name"], whose, which, rank))

    content = Content("contourdiff", [])
    if subject or volume:
        _add(content, table, lines, wanted)
    else:
        files = sorted(line.file for line in _present(content, table, lines))
        content.scans.extend(stacked(files, wanted, content.failed, owner=folder.name))
        content.notes.append(recognition(files))
    if others := set(images.pictures) - {line.file for line in lines}:
        content.notes.append(f"{len(others)} pictures of {IMAGES} are not in {META} and left out")
    return content


def _add(content: Content, table: Path, lines: Iterable[_Line], wanted: Wanted) -> None:
    """Adds the scans that lines of one kind make."""
    held = defaultdict(list)
    for line in _present(content, table, lines):
        # Slices come together by their volume; any other file is a volume of its own.
        sliced = is_picture(line.file) or is_dicom(line.file)
        held[line.subject, line.volume, None if sliced else line.number].append(line)
    volumes_of = defaultdict(set)
    for subject, volume, _ in held:
        volumes_of[subject].add(volume)
    made = []  # (name, files, frames, first line)
    for (subject, volume, _), those in held.items():
        first = those[0]
        for line in those:
            if (line.labels, line.mask) != (first.labels, first.mask):
                raise InputError(
                    f"{table}: line {line.number}: other labels or another mask than in line "
                    f"{first.number}, which is of the same volume"
                )
        name = f"{subject}_{volume}" if len(volumes_of[subject]) > 1 and volume else subject
        made += [(name, *volume, first) for volume in _volumes(content, table, those)]
    several, counts = Counter(name for name, *_ in made), Counter()
    for name, files, frames, line in made:
        counts[name] += 1
        content.scans.append(
            scan(
                line.subject,
                files,
                told=True,
                name=name if several[name] == 1 else f"{name}_{counts[name]}",
                path=line.file if line.file.is_dir() else None,
                kind=None if line.kind == naming.PLAIN else line.kind,
                split=line.split,
                labels=line.labels,
                mask=line.mask,
                frames=frames,
                assumed=wanted.assumed,
            )
        )


def _present(content: Content, table: Path, lines: Iterable[_Line]) -> list[_Line]:
    """The lines whose files are there, each for the first time; the others are noted as failed."""
    present = {}
    for line in lines:
        at = f"{table}: line {line.number}"
        if line.file in present:
            first = present[line.file].number
            content.failed.append((line.file, f"{at}: the same file as in line {first}"))
        elif not os.path.exists(line.file):
            content.failed.append((line.file, f"{at}: no file {line.file}"))
        elif not (os.path.isfile(line.file) or os.path.isdir(line.file)):
            content.failed.append((line.file, f"{at}: {line.file} is neither a file nor a folder"))
        else:
            present[line.file] = line
    return list(present.values())


def _volumes(
    content: Content, table: Path, lines: Sequence[_Line]
) -> list[tuple[Sequence[Path], tuple[int, ...] | None]]:
    """The files, and frames, of each volume that lines name: of one, but for DICOM."""
    path = lines[0].file
    if path.is_dir() or (len(lines) == 1 and is_dicom(path)):
        from contourdiff_jax.volumes.formats import dicom

        folder, inside = Folder(path, translations=True), [path]
        if path.is_dir():
            inside = [path for files in folder.below.values() for path in files if is_dicom(path)]
            content.failed.extend(folder.failed)
        series, failed = dicom.group(inside)
        content.failed.extend(failed)
        if not series and not failed:
            why = f"{table}: line {lines[0].number}: no DICOM images in {path}"
            content.failed.append((path, why))
        return [(one.files, one.frames) for one in series]
    slices = {}
    for line in sorted(lines, key=lambda line: (line.order is None, line.order or 0, line.number)):
        key = line.order if line.order is not None else f"line {line.number}"
        if key in slices:
            why = f"{table}: line {line.number}: the same slice as {slices[key].name}; keep one"
            content.failed.append((line.file, why))
        slices.setdefault(key, line.file)
    return [(list(slices.values()), None)]


def rows(path: str | Path, needed: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """The lines of a CSV file, but for empty ones: number, and {column in lower case: field}.

    Columns are parted by commas, semicolons or tabs. Raises InputError where `needed` ones, or all
    lines, are missing.
    """
    disk.check_can_be_read(path)
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            first = stream.readline()
            stream.seek(0)
            reader = reading.DictReader(stream, delimiter=max(",;\t", key=first.count), restkey="")
            names = {name: name.strip().lower() for name in reader.fieldnames or () if name}
            lines = []
            for row in reader:
                fields = {names[name]: (row[name] or "").strip() for name in names}
                if any(fields.values()):
                    lines.append((reader.line_num, fields))
    except (OSError, ValueError, reading.Error) as error:
        raise InputError(f"{path}: cannot be read as a table: {disk.reason(error)}") from error
    for column in needed:
        if column not in names.values():
            raise InputError(
                f"{path}: no column {column!r}; the first line must name the columns "
                f"{','.join(needed)}"
            )
    if not lines:
        raise InputError(f"{path}: no line below the names of the columns")
    return lines


def _number(at: str, field: str | None) -> float | None:
    """The number of a slice; None where the field is empty."""
    if not field:
        return None
    try:
        number = float(field)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{at}: the slice {field!r} is no number")
    return number
