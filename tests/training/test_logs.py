# SPDX-License-Identifier: Apache-2.0
"""What a run writes about itself."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk
from contourdiff_jax.training.logs import Logs


def lines(run):
    return [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]


def write(run, steps, resumed=0):
    logs = Logs(run, resumed)
    for step in steps:
        logs.write_scalars(step, 4 * step, {"loss": step / 10})
    logs.close()


def test_every_line_is_an_object_with_its_step(tmp_path):
    logs = Logs(tmp_path)
    logs.write_scalars(1, 16, {"loss": 0.5, "heldout_loss_t": [0.1, 0.2]})
    logs.write_scalars(2, 32, {"loss": 0.25})
    logs.close()
    assert lines(tmp_path) == [
        {"step": 1, "images": 16, "loss": 0.5, "heldout_loss_t": [0.1, 0.2]},
        {"step": 2, "images": 32, "loss": 0.25},
    ]


def test_lines_can_be_read_while_training_goes_on(tmp_path):
    logs = Logs(tmp_path)
    logs.write_scalars(1, 16, {"loss": 0.5})
    logs.flush()
    assert len(lines(tmp_path)) == 1
    logs.close()


def test_what_is_stored_is_in_a_closed_file_and_writing_goes_on(tmp_path):
    """A bucket that is mounted as a folder gets what a file holds when that is closed."""
    logs = Logs(tmp_path)
    for step in (1, 2):
        logs.write_scalars(step, 16 * step, {"loss": 0.5})
        written = logs._file
        logs.store()
        assert written.closed
        assert [line["step"] for line in lines(tmp_path)] == list(range(1, step + 1))
    logs.close()


def test_resuming_cuts_off_what_will_be_written_again(tmp_path):
    write(tmp_path, range(1, 7))
    write(tmp_path, range(5, 9), resumed=4)
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 9))


def test_the_time_before_is_known_when_resuming(tmp_path):
    logs = Logs(tmp_path)
    for step in (1, 2, 3):
        logs.write_scalars(step, 4 * step, {"seconds": 10.0 * step})
        logs.write_scalars(step, 4 * step, {"heldout_loss": 0.5})
    logs.close()
    for step in (3, 2, 0):
        logs = Logs(tmp_path, step)
        assert logs.seconds == 10.0 * step
        logs.close()


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    """/dev/full has no room, ever."""
    full = disk.hidden(tmp_path / "full")
    full.symlink_to("/dev/full")
    monkeypatch.setattr(disk, "hidden", lambda path: full)
    logs = Logs(tmp_path)
    logs._file.close()
    logs._file = Path("/dev/full").open("w")  # noqa: SIM115, closed by what is tested
    logs.write_scalars(1, 4, {"loss": 0.5})
    for write in (lambda: logs.write_image(4, np.zeros((8, 8), np.uint8)), logs.flush, logs.close):
        with pytest.raises(InputError, match=f"{tmp_path}: cannot be written: no space left"):
            write()


def test_the_line_that_a_killed_run_was_writing_is_cut_off(tmp_path):
    write(tmp_path, range(1, 4))
    with (tmp_path / "stats.jsonl").open("a") as file:
        file.write('{"step": 4, "im')
    write(tmp_path, [4], resumed=3)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]


def test_pictures_are_named_by_images_seen(tmp_path, rng):
    picture = rng.integers(0, 256, (24, 36), np.uint8)
    logs = Logs(tmp_path)
    path = logs.write_image(1200, picture)
    logs.write_image(1300, picture)
    logs.close()
    assert path == tmp_path / "samples" / "000001200.png"
    np.testing.assert_array_equal(np.asarray(Image.open(path)), picture)
    assert len(list((tmp_path / "samples").iterdir())) == 2


@pytest.mark.parametrize(
    "line",
    [
        b'{"step": "2", "images": 8}',
        b'{"step": 2, "images": 8, "seconds": NaN}',
        b'{"step": true, "images": 8}',
        b'{"step": 2, "images": 8, "loss": "low"}',
        *(b"[" * 100_000, b"null", b"\xff\xfe", b"", b'"step"'),
    ],
)
def test_a_damaged_line_blocks_no_resuming(tmp_path, line):
    write(tmp_path, [1])
    with (tmp_path / "stats.jsonl").open("ab") as file:
        file.write(line + b"\n")
    write(tmp_path, [3], resumed=2)
    assert [line["step"] for line in lines(tmp_path)] == [1, 3]
