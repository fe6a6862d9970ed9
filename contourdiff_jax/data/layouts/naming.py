# SPDX-License-Identifier: Apache-2.0
"""Naming: what the names of files and folders tell of whose images they hold and what they show.

Names are read as words between the separators - _ . and blank, whatever their case.
"""

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path

from contourdiff_jax.errors import InputError
from contourdiff_jax.volumes.volume import Assumed

SEPARATORS = "-_. "
EVERY = "*"  # selects all kinds
PLAIN = "image"  # the kind of a file whose name tells none

# Words for what an image shows, by the modality whose intensities it has; of label maps and masks.
CT = r"ct|cbct"
MR = r"mri?|t1(w|c|n|ce|gd)?|t2(w|s|f|star|starw)?|pdw?|flair|inplanet[12]|unit1"
LABELS = r"labels?|seg|segmentation|dseg"
MASKS = r"masks?"
FAMILIES = {"ct": CT, "mr": MR, "labels": LABELS, "masks": MASKS}
KIND = re.compile(f"{CT}|{MR}|{LABELS}|{MASKS}", re.IGNORECASE)
KINDS_AT_THE_END = re.compile(rf"(?:(?:^|[{SEPARATORS}])(?:{KIND.pattern}))+$", re.IGNORECASE)

# Folders of this name hold images of many subjects.
COLLECTION = re.compile(
    r"(images?|labels?)(tr|ts|val)?|imgs?|train|training|val|validation|test|testing|source|target|[ab]"
)

# Which of several visits of one subject: study1, ses-02, baseline, 2019-03-01.
SESSION = (
    r"(?:ses|session|study|visit|time|timepoint|tp|scan|exam|day|week|month|year)[-_ ]?\d+"
    r"|baseline|follow[-_ ]?up[-_ ]?\d*|\d{4}-?\d\d-?\d\d"
)
SESSION_FIRST = re.compile(rf"({SESSION})(?:[{SEPARATORS}]+(.*))?", re.IGNORECASE)


def family(name: str) -> str | None:
    """'ct', 'mr', 'labels' or 'masks', by the last word that tells (p1_ct_reg -> ct), or None."""
    for word in reversed(words(name)):
        for known, pattern in FAMILIES.items():
            if re.fullmatch(pattern, word):
                return known
    return None


def words(name: str) -> list[str]:
    """The words of a name in lower case."""
    return [word for word in re.split(f"[{SEPARATORS}]+", name.lower()) if word]


def is_kind(name: str) -> bool:
    """Whether the name is just a word for what an image shows."""
    return KIND.fullmatch(name) is not None


def last_kind(stem: str) -> str | None:
    """The last word, or that before a number, if it says what a file shows, or None.

    head01_T1w -> T1w; head01_ct_045 -> ct.
    """
    for name in (stem, unnumbered(stem)):
        word = re.split(f"[{SEPARATORS}]", name)[-1]
        if is_kind(word):
            return word
    return None


def unnumbered(stem: str) -> str:
    """The name without a number at its end: that of a slice, or of a subject."""
    return re.sub(rf"[{SEPARATORS}]*\d+$", "", stem)


def is_collection(name: str) -> bool:
    """Whether a folder of that name holds images of many subjects: ct, imagesTr, train_mr."""
    return all(is_kind(word) or COLLECTION.fullmatch(word) for word in words(name))


def without_kind(name: str) -> str:
    """The name without the words at its end that say what it shows."""
    return KINDS_AT_THE_END.sub("", name)


def session_and_kind(stem: str, owners: Iterable[str]) -> tuple[str, str]:
    """What a file's name adds to those of the folders it lies in: which visit, and what it shows.

    study1_T1W -> (study1, T1W); BraTS-001-t1 in BraTS-001 -> ('', t1); p1 in p1 -> ('', image).
    """
    for owner in owners:
        stem = re.sub(rf"(^|[{SEPARATORS}]){re.escape(owner)}(?=[{SEPARATORS}]|$)", "", stem)
    stem = stem.strip(SEPARATORS)
    match = SESSION_FIRST.fullmatch(stem)
    session, kind = (match[1], match[2]) if match else ("", stem)
    return session, kind or PLAIN


def is_session(name: str) -> bool:
    """Whether a folder of that name is one of several visits of a subject."""
    return re.fullmatch(SESSION, name, re.IGNORECASE) is not None


def legible(name) -> str:
    """A name or path that can be printed on one line: bytes that are no UTF-8 as %ff."""
    name = re.sub("[\udc80-\udcff]", lambda byte: f"%{ord(byte[0]) - 0xDC00:02x}", str(name))
    return re.sub(r"[\x00-\x1f\x7f]", "_", name)


def joined(names: Iterable, most: int = 8) -> str:
    """'a', 'a and b', 'a, b and c', ..., 'a, b and 9 more'."""
    names = [legible(name) for name in names]
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} more"]
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is wanted of a folder.

    Attributes:
      select: the kind of images, in any case of letters, or EVERY; None: the only one.
      modality: 'ct' or 'mr', chooses where just one kind has this name, or is of that modality.
      assumed: what pictures do not say themselves.
    """

    select: str | None
    modality: str | None
    assumed: Assumed

    def among(self, path: Path, kinds: Iterable[str]) -> list[str]:
        """The kinds to take of those that a folder holds: one, unless all are wanted.

        Raises InputError, naming the folder `path`, where that leaves several or none.
        """
        kinds = sorted(set(kinds))
        if self.select == EVERY:
            return kinds
        if self.select is not None:
            for kind in kinds:
                if kind.casefold() == self.select.casefold():
                    return [kind]
            raise InputError(f"{path}: no {self.select!r} to select; it holds {joined(kinds)}")
        if self.modality is not None:
            if self.modality in map(str.lower, kinds):
                kinds = [kind for kind in kinds if kind.lower() == self.modality]
            elif fitting := [kind for kind in kinds if family(kind) == self.modality]:
                kinds = fitting
            elif all(family(kind) for kind in kinds):
                raise InputError(
                    f"{path}: holds {joined(kinds)}, where the preset is for {self.modality}; "
                    f"take another preset, or choose with --select={kinds[0]}"
                )
        if len(kinds) > 1:
            raise InputError(f"{path}: holds {joined(kinds)}; choose with --select={kinds[0]}")
        return kinds
