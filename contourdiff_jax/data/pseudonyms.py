# SPDX-License-Identifier: Apache-2.0
"""Pseudonyms: all that runs and sidecars keep of the subjects that a model was trained on.

They are enough to recognise a subject that is named, not to name one. Because names are short and
easily guessed, a pseudonym is slow to make (scrypt, RFC 7914) and has the salt of its store: a list
of guesses takes milliseconds each, and the same again for every other store. Earlier versions kept
plain SHA-256.

    $scrypt$ln=11,r=8,p=1$<salt>$<hash>, both in hexadecimal
"""

import functools
import hashlib
import re
from collections.abc import Collection, Iterable

from contourdiff_jax.errors import InputError
from contourdiff_jax.volumes import filenames

COST = 11  # log2 of scrypt's N; with r = 8 and p = 1 a pseudonym takes 2 MiB and some milliseconds
HASH = 64  # hexadecimal digits; what stands before them says how they are made
FORM = re.compile(rf"(?:\$scrypt\$ln={COST},r=8,p=1\$[0-9a-f]{{32}}\$)?[0-9a-f]{{{HASH}}}")


def scheme(content: Iterable[str]) -> str:
    """How pseudonyms are made of the subjects of a store that holds files with these digests."""
    salt = hashlib.sha256("\n".join(["subjects", *sorted(set(content))]).encode()).hexdigest()
    return f"$scrypt$ln={COST},r=8,p=1${salt[:32]}$"


def scheme_of(known: Iterable[str]) -> str:
    """How the first of these pseudonyms was made; as in earlier versions where there is none."""
    return next(iter(known), "")[:-HASH]


def made(subjects: Iterable[str], scheme: str = "") -> tuple[str, ...]:
    """The pseudonyms of subjects; by default those of earlier versions, which are fast.

    Of a name only what is the subject's own counts: stores of earlier versions have p1-T1 for p1.
    Their order tells nothing of the names'.
    """
    if not scheme:
        return tuple(map(filenames.subject_digest, subjects))
    return tuple(sorted(_salted(filenames.plain(name) or name, scheme) for name in subjects))


def checked(known: Iterable[str]) -> tuple[str, ...]:
    """The pseudonyms; InputError where one is none that this version can compare."""
    known = tuple(known)
    for one in known:
        if not FORM.fullmatch(one):
            raise InputError(f"training subjects: {one!r:.60} is no pseudonym of one")
    return known


def recognised(subject: str, formerly: Iterable[str], known: Collection[str]) -> bool:
    """Whether a subject, which may have had other names, is among those with these pseudonyms."""
    names = [subject, *formerly]
    # Without a salt, all names that an earlier version may have kept are tried.
    every = [*names, *filenames.former_names(subject)]
    schemes = {scheme_of([one]) for one in known}
    return any(not {*known}.isdisjoint(made(names if it else every, it)) for it in schemes)


@functools.cache
def _salted(subject: str, scheme: str) -> str:
    salt = bytes.fromhex(scheme.rstrip("$").rpartition("$")[2])
    return scheme + hashlib.scrypt(subject.encode(), salt=salt, n=1 << COST, r=8, p=1).hex()[:HASH]
