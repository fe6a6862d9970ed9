# SPDX-License-Identifier: Apache-2.0
"""File names: what a suffix says of the format, and a stem of the subject."""

import hashlib
import re
from pathlib import Path

# What a file's name must end with, by the module that reads it.
NIFTI = (".nii.gz", ".nii")
ITK = (".mha", ".mhd", ".nrrd", ".nhdr")
PICTURES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp", ".npy")
DICOM = (".dcm", ".dicom", ".ima")
SUFFIXES = (*NIFTI, *ITK, *PICTURES, *DICOM)

# Words that tell what a file shows of a subject, not which subject it shows.
MODALITY = re.compile(
    r"(_(ct|mr|mri|t1|t2|t1w|t2w|flair|pd|labels?|seg|mask|0000))+$", re.IGNORECASE
)


def suffix_of(path: str | Path) -> str | None:
    """The known suffix that the name ends with, in lower case; None where there is none."""
    name = Path(path).name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def stem(path: str | Path) -> str:
    """The file's name without its known suffix."""
    name = Path(path).name
    return name[: len(name) - len(suffix_of(name) or "")]


def subject_of(path: str | Path) -> str:
    """Whose volume it is: the stem without trailing modality words (head01_ct.nii.gz -> head01)."""
    return MODALITY.sub("", stem(path))


def subject_digest(subject: str) -> str:
    """SHA-256 of a subject's name: enough to recognise the subject, not to name it."""
    return hashlib.sha256(subject.encode()).hexdigest()
