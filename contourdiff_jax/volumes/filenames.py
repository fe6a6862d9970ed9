# SPDX-License-Identifier: Apache-2.0
"""File names: what a suffix says of the format, and a stem of the subject and what it shows.

A stem is read as words between the separators - _ . and blank, whatever their case. Words at its
end that say what a file shows (KINDS) are no part of the subject's name, whichever separator stands
before them: IXI901-Made-0001-T1 and IXI901-Made-0001-T2 are of IXI901-Made-0001. Words for what was
done to an image (TREATMENTS) count as such behind one of KINDS, and words for just any image
(IMAGES) behind a name. All others are part of the subject's name, and numbers always are: CT-5 is
the subject CT-5. No other file knows such words.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

# What a file's name must end with, by the module that reads it.
NIFTI = (".nii.gz", ".nii")
ITK = (".mha", ".mhd", ".nrrd", ".nhdr")
PICTURES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp", ".npy")
DICOM = (".dcm", ".dicom", ".ima")
SUFFIXES = (*NIFTI, *ITK, *PICTURES, *DICOM)

SEPARATORS = "-_. "

# Words for what a file shows, by its family: the modality, or label maps and masks.
KINDS = {
    "ct": "CT CBCT CTA CECT NCCT LDCT MVCT sCT CTres",
    "mr": "MR MRI MRT T1 T1w T1n T1c T1ce T1wCE T1Gd T1post T1pre T1DUAL T2 T2w T2s T2f T2star "
    "T2starw T2flair T2SPIR PD PDw FLAIR MPRAGE MP2RAGE SPGR FSPGR inplaneT1 inplaneT2 UNIT1",
    # MR that is not meant where another is there too.
    "special mr": "MRA MRV ADC DWI DTI SWI ASL BOLD TOF HBV LGE bSSFP cine T1map T1rho T2map",
    "pet": "PET SUV FDG",
    "labels": "label labels labelmap seg segs segmentation segmentations dseg gt annotation "
    "annotations roi",
    "masks": "mask masks bodymask brainmask",
}
FAMILY = {word.lower(): family for family, words in KINDS.items() for word in words.split()}
TREATMENTS = (
    "w ce gd post pre contrast fs tra ax axial sag sagittal cor coronal reg registered brain bet "
    "stripped skullstripped unstripped bias n4 norm normalized normalised corrected restore "
    "resampled cropped uncropped defaced acpc dc raw native mni mpr mpr1 mpr2 spc spc1 spc2 manual"
)
TREATED = frozenset(TREATMENTS.split())
IMAGES = ("image", "img", "imaging", "volume", "vol")

_WORDS = re.compile(f"([{SEPARATORS}]+)")
_FIRST_CHANNEL = re.compile(r"_0000\Z")  # nnU-Net's
# Of names of BIDS the words belong to their entities, kinds or not: sub-01_acq-mprage.
_ENTITIES = re.compile("sub-[A-Za-z0-9]+(_[A-Za-z]+-[A-Za-z0-9+]+)*")

# Published names that hold more of a person than who it is: visits, dates, numbers of images.
PERSONS = re.compile(
    r"(?:ADNI_)?(?P<adni>\d{3}_S_\d{4,5})(?:_.*)?"
    r"|(?P<oasis>OAS[12]_\d{4}|OAS[34]\d{4})_.+"
    r"|(?P<brats>BraTS-[A-Za-z-]+-\d{4,5})-\d{1,3}"
    r"|(?P<bids>sub-[A-Za-z0-9]+)(?:_[A-Za-z]+-[A-Za-z0-9+]+)+",
    re.DOTALL,
)


def suffix_of(path: str | Path) -> str | None:
    """The known suffix that the name ends with, in lower case; None where there is none."""
    name = Path(path).name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def stem(path: str | Path) -> str:
    """The file's name without its known suffix."""
    name = Path(path).name
    return name[: len(name) - len(suffix_of(name) or "")]


def _parted(name: str) -> tuple[str, str | None]:
    """The name without the words at its end that say what it shows, and the last of these."""
    parts, last = _WORDS.split(name), None  # words, and between each two what separates them
    while parts and not _ENTITIES.fullmatch(name):
        first = len(parts) - 1
        if not first or parts[first].lower() not in IMAGES:
            while first and parts[first].lower() in TREATED:
                first -= 2
            if parts[first].lower() not in FAMILY:
                break
            last = last or "".join(parts[first:])
        parts = parts[: max(first - 1, 0)]
        name = "".join(parts)
    return name, last


def without_kind(name: str) -> str:
    """The name without the words at its end that say what it shows; '' where it has no others."""
    return _parted(name)[0]


def last_kind(name: str) -> str | None:
    """The words at the end of a name that say what it shows, the last such, or None.

    head01_T1w -> T1w, p1_ct_seg -> seg, p1-T1-Gd -> T1-Gd.
    """
    return _parted(name)[1]


def plain(name: str) -> str:
    """The name without what it shows, nnU-Net's number of the first channel included, or ''."""
    return without_kind(_FIRST_CHANNEL.sub("", without_kind(name)))


def subject_of(path: str | Path) -> str:
    """Whose volume it is, by the file's name alone: head01_ct.nii.gz -> head01.

    A name that says nothing but what it shows (T1.nii.gz) is all there is.
    """
    return plain(stem(path)) or stem(path)


def person(name: str) -> str:
    """The person of a subject's name that was published with more in it, or the name itself.

    002_S_0295 for all of ADNI_002_S_0295_MR_MP-RAGE__br_raw_2006; OAS30001 for OAS30001_MR_d0129;
    BraTS-GLI-00005 for the visit BraTS-GLI-00005-001; sub-01 for sub-01_ses-1.
    """
    match = PERSONS.fullmatch(name)
    return match[match.lastgroup] if match else name


def is_person(name: str) -> bool:
    """Whether a name is one of those that `person` knows."""
    return PERSONS.fullmatch(name) is not None


def subject_digest(subject: str) -> str:
    """SHA-256 of a subject's name, all that earlier versions kept of it."""
    return hashlib.sha256(subject.encode()).hexdigest()


# --------------------------------------------------------------------------------------------------
# Names of before
# --------------------------------------------------------------------------------------------------

# What a stem lost in versions that knew only these words.
_FORMER = re.compile(
    r"(_(ct|mr|mri|t1|t2|t1w|t2w|flair|pd|labels?|seg|mask|0000))+$", re.IGNORECASE
)


def former_subject_of(path: str | Path) -> str:
    """What `subject_of` was in versions that knew fewer words: stores and runs remember it."""
    return _FORMER.sub("", stem(path))


def former_names(subject: str) -> Iterator[str]:
    """Names under which versions that knew fewer words may have kept a subject: p1-T1, p1_t1ce."""
    words = [*" ".join(KINDS.values()).split(), *IMAGES]
    spelt = {form for word in words for form in (word, word.lower(), word.upper())}
    for separator in SEPARATORS:
        for word in spelt:
            yield f"{subject}{separator}{word}"
