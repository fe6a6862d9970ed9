# SPDX-License-Identifier: Apache-2.0
"""Stacks: 2-D pictures put together to volumes by their names.

The rule. At the end of a picture's name, words for what it shows (_ct, _mask) do not count. Then:

1. Digits at the end are the number of the slice, what stands before them is the subject, where a
   separator (- _ . blank) or a word for slices (slice, img, im, frame, z, ...) lies between:
     1BA001-045   slice 45 of 1BA001           IM-0001-0012   slice 12 of IM-0001
     case3_slice_07 and case3_z07   slice 7 of case3
   and likewise after letters alone, where the digits are four or more, or three or more with zeros
   in front: brain0012, knee012. Zeros in front do not count.
2. Where nothing is left of the subject's name (0001, img_0001, slice 7, CT-12), all such pictures
   of a folder are one subject's, whom the folder names, and the volume is called `slices`.
3. After a word for a person (patient, subject, sub, case, p, ...) the digits are the person's
   number, and the picture is all there is of it: patient_012, sub-07, case3.
4. Where every name in the folder ends in four or more digits, none begins with a zero, and what
   stands before the last three of them varies, these three are the slice: 16003 is slice 3 of 16,
   2004 slice 4 of 2, spect_10007 slice 7 of spect_10. Numbers that count through a thousand (1999,
   2000) are one number.
5. Any other name is a subject's own: 1BA001, left-knee.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from contourdiff_jax.data.layouts import naming
from contourdiff_jax.data.layouts.naming import Wanted
from contourdiff_jax.data.layouts.scans import Scan
from contourdiff_jax.errors import InputError
from contourdiff_jax.volumes import filenames, io
from contourdiff_jax.volumes.filenames import SEPARATORS

NUMBERED = "slices"  # what a volume of numbered pictures without a subject's name is called
DIGITS = re.compile(r"\d+$")
SLICE = re.compile(
    rf"(?:^|[{SEPARATORS}])(slices?|slc|sl|images?|img|im|i|pictures?|pic|frames?|z|s)[{SEPARATORS}]*$",
    re.IGNORECASE,
)
PERSON = re.compile(
    rf"(?:^|[{SEPARATORS}])(patient|pat|person|subject|subj|sub|case|participant|volunteer|id|pid|p)"
    rf"[{SEPARATORS}]*$",
    re.IGNORECASE,
)


def recognise(stems: Sequence[str]) -> list[tuple[str | None, int | None]]:
    """Subject and slice number of the pictures of a folder, from their names without suffix.

    The subject is None where the picture is only numbered, the number None where it has none.
    """
    stems = [filenames.without_kind(stem) or stem for stem in stems]
    together = _number_holds_subject(stems)
    return [_recognise(stem, together) for stem in stems]


def _recognise(stem: str, number_holds_subject: bool) -> tuple[str | None, int | None]:
    digits = DIGITS.search(stem)
    if digits is None:
        return stem, None
    before, number = stem[: digits.start()], digits[0]
    if number_holds_subject:  # rule 4
        return before + number[:-3], int(number[-3:])
    if PERSON.search(before):  # rule 3
        return stem, None
    subject = SLICE.sub("", before)
    apart = subject != before or before[-1:] in SEPARATORS
    long = len(number) >= 4 or (len(number) == 3 and number[0] == "0")
    subject = filenames.without_kind(subject.rstrip(SEPARATORS)).rstrip(SEPARATORS)
    if not subject:  # rule 2
        return None, int(number)
    if apart or (long and subject.isalpha()):  # rule 1
        return subject, int(number)
    return stem, None  # rule 5


def _number_holds_subject(stems: Sequence[str]) -> bool:
    """Whether the numbers in the names of a folder are those of subject and slice together."""
    numbers = [match[0] for match in map(DIGITS.search, stems) if match]
    if len(numbers) < len(stems) or any(len(text) < 4 or text[0] == "0" for text in numbers):
        return False
    values = set(map(int, numbers))
    counted_through = any(value % 1000 == 0 and value - 1 in values for value in values)
    return len({text[:-3] for text in numbers}) > 1 and not counted_through


def stacked(
    files: Sequence[Path],
    wanted: Wanted,
    failed: list[tuple[Path, str]],
    *,
    owner: str,
    name: str = NUMBERED,
    beside: Sequence[Path] = (),
) -> list[Scan]:
    """The volumes that the pictures of one folder make: one for every subject and picture size.

    Args:
      files: all pictures of the folder.
      wanted: what is wanted of them.
      failed: gets those that cannot be used. Of two pictures of one slice it is the later one.
      owner: the subject of pictures that are only numbered.
      name: of their volume.
      beside: other pictures of the folder, which are not wanted.

    A file of several pictures, as TIFF can be, is a volume of its own.
    """
    numbered, scans = defaultdict(dict), []
    names = recognise([filenames.stem(path) for path in (*files, *beside)])
    for path, (subject, number) in zip(files, names[: len(files)], strict=True):
        with io.failures(path, failed):
            shape = io.opened(path, wanted.assumed).native.shape3
            if shape[2] > 1:
                scans.append(of_file(path, wanted))
            elif number in numbered[subject]:
                other = numbered[subject][number][0]
                raise InputError(f"{path}: the same slice as {other.name}; keep one")
            else:
                numbered[subject][number] = path, shape[:2]
    for subject, slices in numbered.items():
        sizes = defaultdict(list)
        for number in sorted(slices, key=lambda number: -1 if number is None else number):
            path, size = slices[number]
            sizes[size].append(path)
        for (width, height), paths in sizes.items():
            called = subject or name
            if len(sizes) > 1:
                called += f"_{width}x{height}"
            path = paths[0].parent if subject is None and len(paths) > 1 else None
            scans.append(
                scan(subject or owner, paths, name=called, path=path, assumed=wanted.assumed)
            )
    return scans


def recognition(files: Sequence[Path]) -> str:
    """How the subjects of the pictures of a folder were recognised, in words."""
    names = recognise([filenames.stem(path) for path in files])
    subject, number = names[0]
    which = "the only slice" if number is None else f"slice {number}"
    whose = "this folder's subject" if subject is None else naming.legible(subject)
    count = len({subject for subject, _ in names})
    return (
        f"{len(files)} pictures of {count} {'subject' if count == 1 else 'subjects'} by their "
        f"names: {naming.legible(files[0].name)} is {which} of {whose}"
    )


def of_file(path: Path, wanted: Wanted, **rest) -> Scan:
    """The scan that is one file, named by it.

    Whose it is says its name, or where that says nothing but what it shows (T1.nii.gz), its folder.
    """
    stem = filenames.stem(path)
    return scan(
        filenames.plain(stem) or _owner(path) or stem,
        [path],
        name=filenames.subject_of(path),
        stem=stem,
        kind=naming.last_kind(stem),
        assumed=wanted.assumed,
        formerly=(filenames.former_subject_of(path),),
        **rest,
    )


def _owner(path: Path) -> str:
    """The name of the folder of a file, or of the first above that is not a collection's."""
    folders = Path(os.path.abspath(path)).parents
    return next((it.name for it in folders if it.name and not naming.is_collection(it.name)), "")


def scan(
    subject: str,
    files: Iterable[Path],
    *,
    name: str | None = None,
    path: Path | None = None,
    stem: str | None = None,
    formerly: Iterable[str] = (),
    told: bool = False,
    **rest,
) -> Scan:
    """A scan with names that any file system takes.

    Args:
      subject: of published names only the part that says who it is will be the subject.
      name: by default `subject`.
      path: by default the file, or of several files their folder and the name.
      stem: by default the name.
      formerly: names that earlier versions gave the subject.
      told: the user says who the subject is: it is taken whole.
      rest: the other attributes.
    """
    files = tuple(files)
    name = name or subject
    whose = naming.safe(subject if told else filenames.person(subject))
    formerly = {naming.legible(it).replace("/", "_") for it in (subject, *formerly)} - {whose}
    name, stem = naming.safe(name), naming.safe(stem or name)
    if path is None:
        path = files[0] if len(files) == 1 else files[0].parent / name
    return Scan(name, whose, files, path, stem, formerly=tuple(sorted(formerly)), **rest)
