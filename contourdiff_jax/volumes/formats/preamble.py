# SPDX-License-Identifier: Apache-2.0
"""DICOM is recognised by its first bytes, whatever a file is called; without pydicom, for speed."""

import struct
from pathlib import Path


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: it says so, or begins as a data set does that lost its preamble."""
    try:
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError:
        return False
    return start[128:132] == b"DICM" or _is_data_set(start)


def _is_data_set(start: bytes) -> bool:
    """Whether three elements of groups 2 or 8 follow one another, as in no other kind of file."""
    at, last = 0, 0
    for _ in range(3):
        if len(start) < at + 12:
            return False
        group, element, vr, length = struct.unpack_from("<HH2sH", start, at)
        tag = group << 16 | element
        if group not in (2, 8) or tag <= last:
            return False
        if vr in (b"OB", b"UN", b"SQ", b"UT"):
            length = 4 + struct.unpack_from("<L", start, at + 8)[0]
        elif not (vr.isalpha() and vr.isupper()):  # implicit: the length stands here
            (length,) = struct.unpack_from("<L", start, at + 4)
        at, last = at + 8 + length, tag
    return True
