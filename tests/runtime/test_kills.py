# SPDX-License-Identifier: Apache-2.0
"""Training that is killed again and again ends as if it had not been, to the bit."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import setups
import worker

from contourdiff_jax import methods
from contourdiff_jax.training import run as training_run

WRITING = "checkpoints/*.orbax-checkpoint-tmp*"  # checkpoints that are not whole
MOMENTS = ("writing a checkpoint", "training", "starting")


def killed(run: Path, task: dict, moment: str, delay: float) -> bool:
    """Trains in a process of its own until a moment, then kills it.

    Returns whether it left a checkpoint that is not whole.
    """
    (run / training_run.LOCK).unlink(missing_ok=True)
    began = time.time()

    def since(pattern: str) -> bool:
        with contextlib.suppress(FileNotFoundError):  # gone since it was listed
            return any(path.stat().st_mtime >= began for path in run.glob(pattern))
        return False

    def reached() -> bool:
        if moment == "starting":
            return since(training_run.LOCK)
        return since("stats.jsonl") and (moment == "training" or since(WRITING))

    argv = [sys.executable, worker.__file__, json.dumps(task, default=str)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            while not reached():
                assert process.poll() is None and time.time() < began + 200
                time.sleep(0.001)
            time.sleep(delay)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL  # it had not come to its end
    return since(WRITING)


def record(run: Path) -> list[dict]:
    """What it holds that does not depend on the clock."""
    lines = map(json.loads, (run / "stats.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if "second" not in k} for line in lines]


def state(run: Path, ours):
    return setups.last_state(run, setups.like(ours, 32))


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_training_ends_as_if_it_had_not_been(two_convolutions, store_path, tmp_path, kills):
    """At random moments, of which some are within a start, some within the writing of a file."""
    steps = 30 + 20 * kills  # enough to be killed so often
    fields = {"images": 4 * steps, "evaluate": 40, "sample": 40}
    ours = worker.settings(**fields, checkpoint=0)
    ours.mesh.data = 1
    assert methods.train(ours, store_path, tmp_path / "whole")

    run = tmp_path / "run"
    run.mkdir()
    task = {"task": "alone", "store": store_path, "out": run, **fields, "checkpoint": 8}
    generator = np.random.default_rng(kills)
    partial = 0
    for i in range(kills):
        moment = MOMENTS[i % len(MOMENTS)]
        longest = 0.02 if moment == MOMENTS[0] else 1.0  # seconds
        partial += killed(run, task, moment, generator.uniform(0, longest))
    assert partial >= 1
    argv = [sys.executable, worker.__file__, json.dumps(task, default=str)]
    subprocess.run(argv, check=True, capture_output=True)

    assert {path.name for path in (run / "checkpoints").iterdir()} == {str(steps - 2), str(steps)}
    jax.tree.map(np.testing.assert_array_equal, state(run, ours), state(tmp_path / "whole", ours))
    assert record(run) == record(tmp_path / "whole")
    pictures = [list((tmp_path / name / "samples").iterdir()) for name in ("run", "whole")]
    assert len(pictures[0]) == len(pictures[1]) == steps // 10
    for ours, theirs in zip(*map(sorted, pictures), strict=True):
        assert ours.read_bytes() == theirs.read_bytes()
