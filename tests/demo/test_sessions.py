# SPDX-License-Identifier: Apache-2.0
"""Sessions: visitors have folders of their own, and nothing is left of who has gone."""

import numpy as np
import pytest

from contourdiff_jax.demo import sessions
from contourdiff_jax.demo.sessions import Sessions
from contourdiff_jax.errors import InputError


@pytest.fixture
def held(tmp_path) -> Sessions:
    return Sessions(tmp_path)


def test_visitors_do_not_share_a_folder(held):
    first, second = held.enter("../a"), held.enter("b")
    assert first.folder != second.folder and first.folder.parent == second.folder.parent
    assert held.enter("../a") is first
    assert first.folder.stat().st_mode & 0o077 == 0


def test_nothing_is_left_of_who_has_gone(held, tmp_path):
    """Of a file that two sent, what the server keeps stays until the second has gone."""
    first, second = held.enter("a"), held.enter("b")
    shared, own = tmp_path / "shared", tmp_path / "own"
    for path in (shared, own):
        path.write_text("sent")
    first.uploads |= {shared, own}
    second.uploads.add(shared)
    second.picture(np.zeros((4, 4, 3), np.uint8))
    held.close("a")
    assert first.closed and not first.folder.exists() and not own.exists()
    assert shared.exists() and second.folder.exists()
    held.close("a")
    held.close("b")
    assert not any(tmp_path.iterdir())


def test_nothing_more_is_done_for_who_has_gone(held):
    session = held.enter("a")
    held.close("a")
    with pytest.raises(InputError, match="ended"):
        session.place("out")
    session.folder.mkdir()
    held.sweep(session)
    assert not session.folder.exists()


def test_only_who_enters_has_a_session(held, tmp_path):
    """What others send is removed, but for what a visitor has sent too; a folder stays."""
    here = held.enter("here")
    shared, own = tmp_path / "shared", tmp_path / "own"
    for path in (shared, own):
        path.write_text("sent")
    here.uploads.add(shared)
    gone = held.of("gone")
    with pytest.raises(InputError, match="ended"):
        gone.begin()
    gone.uploads |= {shared, own, tmp_path}
    held.sweep(gone)
    assert {*tmp_path.iterdir()} == {here.folder, shared}
    assert held.of("here") is here and held.of("gone") is not gone


def test_old_pictures_go_and_so_does_the_upload_before(held):
    session = held.enter("a")
    for _ in range(sessions.KEPT + 5):
        session.picture(np.zeros((4, 4, 3), np.uint8))
    assert len([*session.folder.rglob("*.png")]) == sessions.KEPT
    session.begin()
    assert not [*session.folder.rglob("*.png")]


def test_lines_do_not_tell_where_files_lie(held):
    session = held.enter("a")
    place = session.begin()
    line = session.plain(f"{place}/head.nii.gz: too bad; {session.folder}/x")
    assert line == "head.nii.gz: too bad; x"
