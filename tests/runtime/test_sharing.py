# SPDX-License-Identifier: Apache-2.0
"""Processes that translate one folder together, one of which is killed."""

import re
import signal
import subprocess
import sys
import time

import pytest
from setups import translate

NAMES = ["phantom005_ct.nii.gz", "phantom006_ct.nii.gz"]


def test_processes_share_a_folder_and_one_may_be_killed(trained, phantom_data, tmp_path):
    """Nothing is made twice but what the killed one had begun, and all of it to the bit."""
    many = tmp_path / "many"
    many.mkdir()
    for i in range(6):
        (many / f"head{i:02}_ct.nii.gz").symlink_to(phantom_data / "test_ct" / NAMES[i % 2])
    reference = tmp_path / "reference"
    how = {"preset": "ct", "sampler": {"steps": 20}}
    translate(trained, many, reference, **how)

    out = tmp_path / "out"
    argv = [sys.executable, "-m", "contourdiff_jax", "translate", f"--run={trained}"]
    argv += [f"--source={many}", f"--out={out}", "--preset=ct", "--steps=20"]
    started = [
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    try:
        while not list(out.glob("*.nii.gz")):
            assert started[0].poll() is None
            time.sleep(0.01)
        started[0].kill()
        said, _ = started[1].communicate(timeout=300)
    finally:
        for process in started:
            process.kill()
            process.communicate()
    assert started[0].returncode == -signal.SIGKILL and started[1].returncode == 0
    counts = re.search(r"(\d+) translated, (\d+) kept from before, 0 failed", said)

    result = translate(trained, many, out, **how)
    # At most what the killed one had begun when the other came by.
    assert len(result.done) <= 1 and len(result.done + result.kept) == 6
    assert 6 - len(result.done) == int(counts[1]) + int(counts[2])
    assert not list(out.glob(".*.lock"))
    for path in reference.glob("*.nii.gz"):
        assert (out / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_processes_that_share_a_folder_do_nothing_twice(trained, phantom_data, tmp_path):
    many = tmp_path / "many"
    many.mkdir()
    for i in range(6):
        (many / f"head{i:02}_ct.nii.gz").symlink_to(phantom_data / "test_ct" / NAMES[i % 2])
    argv = [sys.executable, "-m", "contourdiff_jax", "translate", f"--run={trained}"]
    argv += [f"--source={many}", f"--out={tmp_path / 'out'}", "--preset=ct", "--steps=20"]
    started = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    counts = [int(re.search(r"(\d+) translated", text)[1]) for text in said]
    assert sum(counts) == 6
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 6
