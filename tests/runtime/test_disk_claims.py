# SPDX-License-Identifier: Apache-2.0
"""Claims: one holder at a time, and none left behind by a process that was killed."""

import multiprocessing
import os
import signal

from contourdiff_jax.runtime.disk import claim


def hold(path, held):
    with claim(path) as got:
        held.send(got)
        signal.pause()


def test_a_claim_is_held_once_and_leaves_nothing(tmp_path):
    path = tmp_path / ".head01.lock"
    with claim(path) as first, claim(path) as second, claim(tmp_path / ".head02.lock") as other:
        assert (first, second, other) == (True, False, True)
        assert path.exists()
    assert not any(tmp_path.iterdir())
    with claim(path) as again:
        assert again


def test_a_killed_process_holds_nothing(tmp_path):
    path = tmp_path / ".head01.lock"
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=hold, args=(path, theirs))
    process.start()
    try:
        assert ours.poll(60) and ours.recv()
        with claim(path) as got:
            assert not got
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert path.exists()  # what it left is no claim
    with claim(path) as got:
        assert got
    assert not path.exists()
