# SPDX-License-Identifier: Apache-2.0
"""Damaged files of every format are read, or refused in one line: no crash, no hang, no hunger.

Each format is tried in a process of its own (this file, run as a script), where a crash, a hang, a
warning, or a word on the standard error would show, and where memory can be measured.
"""

import functools
import gzip
import json
import re
import resource
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image as Pillow

from contourdiff_jax.errors import InputError
from contourdiff_jax.volumes import geometry, io
from contourdiff_jax.volumes.formats import itk

SHAPE = (9, 8, 7)
SECONDS = 5  # for one file, which takes milliseconds unless something is wrong
MEGABYTES = 64  # for files of some kB; everything that is asked for is bounded by their size


def ramp(dtype):
    return np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(dtype)


def write_nifti(path):
    nib.save(nib.Nifti1Image(ramp(np.int16), np.diag((1, -2, 3, 1))), path)


def write_itk(path):
    itk.write(path, ramp(np.int16), geometry.NativeGrid(SHAPE, np.eye(4)), np.int16, False)


def write_picture(path):
    dtype = np.uint16 if "16" in path.name else np.uint8
    Pillow.fromarray(ramp(dtype).reshape(56, 9)).save(path, quality=90)


def write_tiff(path):
    pages = [Pillow.fromarray(page) for page in ramp(np.float32)]
    kind = "tiff_lzw" if "lzw" in path.name else None
    pages[0].save(path, save_all=True, append_images=pages[1:], compression=kind)


def write_npy(path):
    np.save(path, ramp(np.int16))


# By file name: who writes it, and how many bytes of it are its header.
FORMATS = {
    "a.nii": (write_nifti, 352),
    "a.nii.gz": (write_nifti, 352),
    "a.mha": (write_itk, 360),
    "a.nrrd": (write_itk, 400),
    "8.png": (write_picture, 60),
    "16.png": (write_picture, 60),
    "a.jpg": (write_picture, 650),
    "a.bmp": (write_picture, 54),
    "raw.tif": (write_tiff, 200),
    "lzw.tif": (write_tiff, 200),
    "a.npy": (write_npy, 128),
}

# What fields of headers become.
TEXTS = (
    *("", "0", "-1", "1", "nan", "inf inf inf", "1e308 1e308 1e308", "1e-320 1 1", "9" * 5000),
    *("99999 99999 99999", "0 0 0", "-9 8 7", "2 2", "9 8 7 1", "9 8 7 6", "9 8 7 " * 999),
    *("LOCAL", "LIST", "%03d.raw 1 9 1", "../a.raw", "/etc/passwd", "a\0b", "\xff" * 9, "%s%n"),
    *("True", "none", "(1,0,0) none (0,0,1)", "(1,0,0)", "double", "gzip", "bzip2", "MET_DOUBLE"),
)
SHAPES = (
    *("(9, 8, 99999999)", "(-9, 8, 7)", "(0, 8, 7)", "()", "(4294967296, 4294967296)", "(9.0, 8)"),
    *("(9, 8, 7, 6)", "(9,", "[9, 8]", "((((((((9", "9" * 5000, "(True, 8)", "(1e99,)"),
)
TYPES = (
    *("|O", "<c8", "<f2", ">i8", "<M8[s]", "<U9", "|V2", "|b1", "<i3", "", "<f16"),
    "[('a','<i2')]",
)
NUMBERS = tuple(
    bytes.fromhex(digits) for digits in ("ffffffff", "7fffffff", "ffffff7f", "00000000")
)


def edits(name, data, header):
    """The data with each field of the header replaced by what does not belong there."""
    if name.endswith((".mha", ".nrrd")):
        for field in re.finditer(rb"(?m)^(\w[\w ]*[:=] ?)(.*)$", data[:header]):
            for text in TEXTS:
                yield data[: field.end(1)] + text.encode("latin-1") + data[field.end() :]
    elif name.endswith(".npy"):
        for pattern, texts in (
            (rb"\([^)]*\)", SHAPES),
            (rb"<i2", TYPES),
            (rb"False", ("True", "2")),
        ):
            for text in texts:
                line = re.sub(pattern, text.encode(), data[10:header]).rstrip() + b"\n"
                yield data[:8] + struct.pack("<H", len(line)) + line + data[header:]
    else:
        for place in range(0, header - 3, 2):
            for number in NUMBERS:
                for width in (2, 4):
                    yield data[:place] + number[:width] + data[place + width :]


def damaged(data, header, generator):
    """The data with a few bytes changed, lost or added, most of them in the header."""
    data = bytearray(data)
    for _ in range(generator.integers(1, 4)):
        place = int(
            generator.integers(min(header if generator.random() < 0.8 else 1 << 30, len(data)))
        )
        some = generator.integers(0, 256, generator.integers(1, 9), np.uint8).tobytes()
        kind = generator.integers(6)
        if kind == 0:
            data[place] ^= 1 << generator.integers(8)
        elif kind == 1:
            data[place : place + len(some)] = some
        elif kind == 2:
            data[place : place + 1] = generator.choice(list(b"0123456789.-e \n"), 1).tobytes()[:1]
        elif kind == 3:
            del data[place : place + len(some)]
        elif kind == 4:
            data[place:place] = some
        elif place > header or generator.random() < 0.2:
            del data[place:]
        if not data:
            break
    return bytes(data)


def with_checksums(data):
    """A PNG with the right checksum for every chunk: damage that is not seen at once."""
    data, place = bytearray(data), 8
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4])
        if end + 4 > len(data):
            break
        data[end : end + 4] = zlib.crc32(data[place + 4 : end]).to_bytes(4)
        place = end + 4
    return bytes(data)


def mutations(name, path, count):
    """Damaged contents of the file: half of them edited fields, half random; all of them: None."""
    data, header = path.read_bytes(), FORMATS[name][1]
    packed = name.endswith(".gz")
    content = gzip.decompress(data) if packed else data
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    edited = list(edits(name, content, header))
    if count is not None:
        chosen = generator.choice(len(edited), min(count // 2, len(edited)), replace=False)
        edited = [edited[number] for number in chosen]
    # What stands around the fields is put right, and damaged by itself as often.
    whole = bytes
    if packed:
        whole = functools.partial(gzip.compress, compresslevel=1, mtime=0)
    elif name.endswith(".png"):
        whole = with_checksums
    yield from map(whole, edited)
    for number in range((count or 1000) // 2):
        if number % 2:
            yield whole(damaged(content, header, generator))
        else:
            yield damaged(data, 20 if packed else header, generator)


def main(name, count, folder):
    """Reads mutations of one file and prints what came of them."""
    path = Path(folder) / name
    FORMATS[name][0](path)
    io.read(path)
    cases = mutations(name, path, json.loads(count))
    limit = resource.getrlimit(resource.RLIMIT_AS)[1]
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 30), limit))
    before = peak()
    done, refused, slowest = 0, 0, 0.0
    for mutated in cases:
        path.write_bytes(mutated)  # and there it lies if this is the last
        signal.alarm(2 * SECONDS)
        start = time.perf_counter()
        try:
            array = io.read(path).array
            assert array.ndim == 3 and array.dtype == np.float32 and np.isfinite(array).all()
            done += 1
        except InputError as error:
            message = str(error)
            assert message.startswith(f"{path}: ") and len(message.splitlines()) == 1, message
            assert message.count(str(path)) == 1 and len(message) < 1000, message
            assert "memory" not in message, message
            refused += 1
        slowest = max(slowest, time.perf_counter() - start)
    grown = peak() - before
    print(json.dumps({"read": done, "refused": refused, "slowest": slowest, "grown": grown}))


def peak():
    """MB that this process has had at most, unlike getrusage without those of its parent."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def check(name, count, folder):
    """Runs `main` in a process of its own and checks what it prints."""
    result = subprocess.run(
        [sys.executable, "-W", "error", __file__, name, json.dumps(count), folder],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, f"{result.returncode} for {folder / name}: {result.stderr}"
    assert result.stderr == ""
    said = json.loads(result.stdout)
    print(name, said)
    assert said["slowest"] < SECONDS
    assert said["grown"] < MEGABYTES
    assert said["refused"] > 0 and said["read"] > 0, "the damage must matter, and not always"


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_read_or_refused(tmp_path, name):
    check(name, 60, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_every_field_of_a_header_can_be_damaged(tmp_path, name):
    check(name, None, tmp_path)


if __name__ == "__main__":
    main(*sys.argv[1:])
