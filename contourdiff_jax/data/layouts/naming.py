# SPDX-License-Identifier: Apache-2.0
"""Naming: what the names of files and folders tell of whose images they hold and what they show.

What a name says of its subject and kind, volumes/filenames.py decides.
"""

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path

from contourdiff_jax.errors import InputError
from contourdiff_jax.volumes.filenames import FAMILY, SEPARATORS, subject_digest
from contourdiff_jax.volumes.filenames import last_kind as kind_at_the_end
from contourdiff_jax.volumes.volume import Assumed

EVERY = "*"  # selects all kinds
PLAIN = "image"  # the kind of a file whose name tells none
MADE = ("labels", "masks")  # families of what is made of images

# Folders of this name hold images of many subjects.
COLLECTION = re.compile(
    r"(images?|labels?)(tr|ts|val)?|imgs?|train|training|val|validation|test|testing|source|target|[ab]"
)

# Which of several visits of one subject: study1, ses-02, baseline, 2019-03-01.
SESSION = (
    r"(?:ses|session|study|visit|time|timepoint|tp|scan|exam|day|week|month|year)[-_ ]?\d+"
    r"|baseline|follow[-_ ]?up[-_ ]?\d*|\d{4}-?\d\d-?\d\d"
)
# What files are called that were published with more in their names: entities and suffix of BIDS,
# the kind of ADNI's MR_MP-RAGE__br_raw_20060418193713091_1_S13408_I13722.
BIDS = re.compile(r"sub-[^_]+((?:_[^_-]+-[^_]+)*)_([^_-]+)")
ADNI = re.compile(r"(?:ADNI_)?\d{3}_S_\d{4,5}_((?:MR|CT|PT|PET)_.+?)_+br_.*", re.IGNORECASE)
SESSION_FIRST = re.compile(rf"({SESSION})(?:[{SEPARATORS}]+(.*))?", re.IGNORECASE)


def family(name: str) -> str | None:
    """The family of KINDS, by the last word that tells (p1_ct_reg -> ct), or None."""
    return next((FAMILY[word] for word in reversed(words(name)) if word in FAMILY), None)


def words(name: str) -> list[str]:
    """The words of a name in lower case."""
    return [word for word in re.split(f"[{SEPARATORS}]+", name.lower()) if word]


def is_kind(name: str) -> bool:
    """Whether the name is just a word for what an image shows."""
    return kind_at_the_end(name) == name


def last_kind(stem: str) -> str | None:
    """The last words that say what a file shows, a number behind them aside, or None.

    head01_T1w -> T1w; head01_ct_045 -> ct.
    """
    return kind_at_the_end(stem) or kind_at_the_end(unnumbered(stem))


def unnumbered(stem: str) -> str:
    """The name without a number at its end: that of a slice, or of a subject."""
    return re.sub(rf"[{SEPARATORS}]*\d+$", "", stem)


def is_collection(name: str) -> bool:
    """Whether a folder of that name holds images of many subjects: ct, imagesTr, train_mr."""
    return all(is_kind(word) or COLLECTION.fullmatch(word) for word in words(name))


def session_and_kind(stem: str, owners: Iterable[str]) -> tuple[str, str]:
    """What a file's name adds to those of the folders it lies in: which visit, and what it shows.

    study1_T1W -> (study1, T1W); BraTS-001-t1 in BraTS-001 -> ('', t1); p1 in p1 -> ('', image).
    """
    if match := BIDS.fullmatch(stem):
        return (match[1] or "").strip("_"), match[2]
    if match := ADNI.fullmatch(stem):
        return "", match[1]
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


LONGEST = 160  # bytes: with what outputs add to a name, file systems take up to 255


def safe(name: str) -> str:
    """A name that any file system takes as one file's, and any spreadsheet as text.

    a/b -> a_b, .. -> __, =1+1 -> _1+1; of a name that is too long the end becomes its digest.
    """
    name = re.sub(r"[/\\]", "_", legible(name)) or "_"
    name = re.sub(r"^[.=+@-]+", lambda first: "_" * len(first[0]), name)
    if len(name.encode()) > LONGEST:
        start = name.encode()[: LONGEST - 9].decode(errors="ignore")
        name = f"{start}-{subject_digest(name)[:8]}"
    return name


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
      prefix: of the flags --select and --layout, by which the user can choose; None: there are
        none, so none is advised.
    """

    select: str | None
    modality: str | None
    assumed: Assumed
    prefix: str | None = ""

    def advice(self, *flags: str) -> str:
        """How to choose among several of something: by one of the flags, or else in the folder."""
        if self.prefix is None:
            return "give a folder that holds one of them"
        return "choose with " + " or ".join(f"--{self.prefix}{flag}" for flag in flags)

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
        kinds = [kind for kind in kinds if family(kind) not in MADE] or kinds
        if self.modality is not None:
            own = ("special mr",) if self.modality == "mr" else ()
            fitting = [kind for kind in kinds if kind.lower() == self.modality]
            for known in (self.modality, *own):
                fitting = fitting or [kind for kind in kinds if family(kind) == known]
            if not fitting and all(map(family, kinds)):
                remedy = self.advice(f"select={kinds[0]}")
                if self.prefix is not None:
                    remedy = f"take another preset, or {remedy}"
                raise InputError(
                    f"{path}: holds {joined(kinds)}, where the preset is for {self.modality}; "
                    f"{remedy}"
                )
            kinds = fitting or kinds
        if len(kinds) > 1:
            advice = self.advice(f"select={kinds[0]}")
            raise InputError(f"{path}: holds {joined(kinds)}; {advice}")
        return kinds
