# SPDX-License-Identifier: Apache-2.0
"""Mosaics: pictures in which MR scanners lay all slices of a volume side by side.

How many of the tiles are slices, and which way these follow one another, is said only by a private
element of Siemens, the CSA header; nibabel reads it (nibabel.org, dicom/siemens_csa).
"""

from pathlib import Path

import numpy as np

from contourdiff_jax.volumes.formats import elements

KINDS = {b"MOSAIC", b"VFRAME"}  # of Siemens, and of United Imaging
# Private elements that may be the CSA header: who made them, and in each of their blocks the tenth.
TAGS = [0x00290000 + block for block in range(0x10, 0x20)]
TAGS += [0x00290010 + (block << 8) for block in range(0x10, 0x20)]


def is_mosaic(image_type: bytes) -> bool:
    """Whether an ImageType says so."""
    return not KINDS.isdisjoint(image_type.upper().split(b"\\"))


def described(path: Path) -> tuple[int, np.ndarray] | None:
    """How many slices a mosaic has, and the direction [3] in which they follow one another.

    None where no CSA header says both. Call it within `elements.guarded`.
    """
    from nibabel.nicom import csareader  # here: it warns when it is imported

    dataset = elements.read(path, TAGS, pixels=False).dataset
    try:
        tags = csareader.get_csa_header(dataset, "image")["tags"]
        (count, *_), normal = (
            tags[name]["items"] for name in ("NumberOfImagesInMosaic", "SliceNormalVector")
        )
        count, normal = int(count), np.array(normal, np.float64).reshape(3)
    except Exception:  # it is damaged in some way, or not there
        return None
    return (count, normal) if count > 0 and np.isfinite(normal).all() else None
