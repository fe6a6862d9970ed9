# SPDX-License-Identifier: Apache-2.0
"""Pseudonyms: subjects are recognised by them, and not found by a list of guesses in a moment."""

import hashlib
import time

import pytest

from contourdiff_jax.data import pseudonyms
from contourdiff_jax.errors import InputError

FILES = ["a" * 64, "b" * 64]


def test_a_store_gives_its_subjects_the_same_and_another_store_others():
    first, second = (pseudonyms.scheme(files) for files in (FILES, FILES[::-1]))
    assert first == second != pseudonyms.scheme(FILES[:1])
    known = pseudonyms.made(["p1", "p2"], first)
    assert pseudonyms.checked(known) == known and len(set(known)) == 2
    assert pseudonyms.scheme_of(known) == first
    assert set(known).isdisjoint(pseudonyms.made(["p1", "p2"], pseudonyms.scheme(FILES[:1])))


def test_their_order_tells_nothing_of_the_names():
    names, scheme = [f"p{number}" for number in range(8)], pseudonyms.scheme(FILES)
    known = pseudonyms.made(names, scheme)
    assert known == pseudonyms.made(names[::-1], scheme)
    assert known != tuple(pseudonyms.made([name], scheme)[0] for name in names)


def test_a_guess_takes_time():
    assert hashlib.sha256(b"p1").hexdigest() == pseudonyms.made(["p1"])[0]  # of earlier versions
    scheme, began = pseudonyms.scheme(FILES), time.process_time()
    pseudonyms.made([f"guess{number}" for number in range(10)], scheme)
    assert (time.process_time() - began) / 10 > 5e-4  # SHA-256 takes a thousandth of that


@pytest.mark.parametrize("scheme", ["", pseudonyms.scheme(FILES)])
def test_subjects_are_recognised_by_what_stores_called_them(scheme):
    known = pseudonyms.made(["p1-T1", "q", "sub-07_ses-1"], scheme)
    for subject, formerly in (("p1", ()), ("q", ()), ("sub-07", ["sub-07_ses-1"])):
        assert pseudonyms.recognised(subject, formerly, known)
    for subject in ("p2", "p", "Q", "sub-07"):
        assert not pseudonyms.recognised(subject, (), known)


def test_those_of_several_models_are_told_apart():
    known = {*pseudonyms.made(["p1"]), *pseudonyms.made(["p2"], pseudonyms.scheme(FILES))}
    assert [pseudonyms.recognised(name, (), known) for name in ("p1", "p2", "p3")] == [1, 1, 0]


@pytest.mark.parametrize("wrong", ["p1", "$scrypt$ln=40,r=8,p=1$" + 32 * "0" + "$" + 64 * "0"])
def test_what_cannot_be_compared_is_refused(wrong):
    with pytest.raises(InputError, match="is no pseudonym"):
        pseudonyms.checked([wrong])
