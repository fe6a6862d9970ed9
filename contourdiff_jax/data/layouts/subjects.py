# SPDX-License-Identifier: Apache-2.0
"""Subjects: layouts with a folder for each subject.

A folder is a subject's if its name is not that of a collection (ct, images, train_mr) and it holds
volumes called as in others (ct, mr, t1, ...), pictures, or DICOM files. Its name is the subject's.
Where several folders have one name, those above it are part of the subject's (siteA_001); where it
is that of a visit (study1, ses-02, 2019-03-01), or of what it shows (100307/T1w), the folder above
is the subject's. What lies in folders inside a subject's is left out where it is of other kinds
than subjects have (instances of KiTS).
"""

import dataclasses
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from contourdiff_jax.data.layouts import naming
from contourdiff_jax.data.layouts.folders import Folder, is_dicom, is_picture, is_volume
from contourdiff_jax.data.layouts.naming import Wanted
from contourdiff_jax.data.layouts.scans import Content
from contourdiff_jax.data.layouts.stacks import recognise, scan, stacked
from contourdiff_jax.errors import InputError
from contourdiff_jax.volumes import filenames, io

SYNTHRAD = {"ct", "mr", "cbct", "mask"}
FEW = 3  # slices: series of fewer are overviews, like localizers


@dataclasses.dataclass
class _Visit:
    """The volumes of a subject, or of one visit of several.

    Attributes:
      folder: where they lie.
      subject, session: whose they are; the session is '' where there is one only.
      images: by kind.
      labels, mask: where there are some.
    """

    folder: Path
    subject: str
    session: str
    images: dict[str, Path] = dataclasses.field(default_factory=dict)
    labels: Path | None = None
    mask: Path | None = None


# --------------------------------------------------------------------------------------------------
# Volumes
# --------------------------------------------------------------------------------------------------


def holds_synthrad(folder: Folder) -> bool:
    """Whether all volumes are called as SynthRAD's, and there are several kinds of them."""
    held = [folder.volumes] if folder.volumes else folder.leaves.values()
    names = {filenames.stem(path).lower() for files in held for path in files}
    return len(names) > 1 and names <= SYNTHRAD and names != {"mask"}


def holds_volumes(folder: Folder) -> bool:
    """Whether there are folders of volumes that can be recognised as subjects'."""
    if folder.volumes or not folder.leaves:
        return False
    above = _subjects_above(folder, folder.leaves)
    if not all(_is_subjects(path, files, above.get(path)) for path, files in folder.leaves.items()):
        return False
    visits, *_ = _visits(folder)
    kinds = Counter(kind for visit in visits for kind in visit.images)
    if len(folder.leaves) == 1:  # or else it is a folder of volumes inside another folder
        return all(map(naming.is_kind, kinds)) and len(kinds) > 1
    subjects = {(visit.subject, kind) for visit in visits for kind in visit.images}
    having = Counter(kind for _, kind in subjects)
    common = max(kinds.values(), default=0) > len(visits) / 2 or (
        max(having.values(), default=0) > len({visit.subject for visit in visits}) / 2
    )
    return common and not all(map(str.isdigit, kinds))


def _is_subjects(leaf: Path, files: list[Path], owner: tuple[str, ...] | None) -> bool:
    """Whether a folder of volumes can be one subject's, and not a collection of many subjects'.

    If it says what it shows, then so do its files, or they name the subject `owner` above it.
    """
    if not naming.is_collection(leaf.name):
        return True
    if owner is None:
        return False
    kinds = [naming.session_and_kind(filenames.stem(path), ())[1] for path in files]
    return any(
        naming.is_kind(naming.words(kind)[0])
        or naming.session_and_kind(kind, owner[-1:])[1] != kind
        for kind in kinds
    )


def _subjects_above(folder: Folder, leaves: Iterable[Path]) -> dict[Path, tuple[str, ...]]:
    """Of folders that say only what they show, the folders down to the subject that they lie in.

    Several subjects have a folder of that name: 100307/T1w, 100408/T1w.
    """
    owners, having = {}, defaultdict(set)
    for leaf in leaves:
        parts = leaf.relative_to(folder.path).parts
        end = len(parts)
        while end > 1 and naming.is_kind(parts[end - 1]):
            end -= 1
        if end < len(parts) and not naming.is_collection(parts[end - 1]):
            owners[leaf] = parts[:end]
            having[parts[end:]].add(parts[:end])
    several = {leaf for those in having.values() if len(those) > 1 for leaf in those}
    return {leaf: owner for leaf, owner in owners.items() if owner in several}


def synthrad(folder: Folder, wanted: Wanted) -> Content:
    """The scans of SynthRAD's folders."""
    return dataclasses.replace(of_volumes(folder, wanted), layout="synthrad")


def of_volumes(folder: Folder, wanted: Wanted) -> Content:
    """The scans of folders with a volume for each kind."""
    visits, failed, notes = _visits(folder)
    content = Content("subjects", [], [*folder.failed, *failed], notes)
    kinds = {kind for visit in visits for kind in visit.images}
    if not kinds:
        raise InputError(f"{folder.path}: no images in its folders, only label maps or masks")
    for kind in wanted.among(folder.path, kinds):
        for visit in visits:
            if kind not in visit.images:
                content.failed.append((visit.folder, f"{visit.folder}: no {kind}, as others have"))
                continue
            made = scan(
                visit.subject,
                [visit.images[kind]],
                name=together(visit.subject, visit.session),
                kind=kind,
                labels=visit.labels,
                mask=visit.mask,
                assumed=wanted.assumed,
            )
            content.scans.append(made)
    return content


def _visits(folder: Folder) -> tuple[list[_Visit], list[tuple[Path, str]], list[str]]:
    """What every subject has, the files that are there twice, and what was left out, in words."""
    visits, failed, spelling = {}, [], {}
    apart = _of_other_kinds(folder)
    leaves = [leaf for leaf in folder.leaves if leaf not in apart]
    for leaf, (subject, session) in subjects_of(folder, leaves).items():
        owners = (subject,) if naming.is_kind(leaf.name) else (subject, leaf.name)
        for path in folder.leaves[leaf]:
            visit, kind = naming.session_and_kind(filenames.stem(path), owners)
            key = subject, together(session, visit)
            held = visits.setdefault(key, _Visit(leaf, *key))
            what = naming.family(kind) if naming.is_kind(kind) else None
            if what == "labels":
                held.labels = first = held.labels or path
            elif what == "masks":
                held.mask = first = held.mask or path
            else:
                first = held.images.setdefault(spelling.setdefault(kind.lower(), kind), path)
            if first != path:
                failed.append((path, f"{path}: {first.name} shows the same; keep one"))
    names = naming.joined(sorted({leaf.name for leaf in apart}))
    notes = [f"{len(apart)} folders inside subjects' left out: {names}"] if apart else []
    visits = list(visits.values())
    kinds = [kind for visit in visits for kind in visit.images]
    if all(len(visit.images) == 1 for visit in visits) and not any(map(naming.family, kinds)):
        # One volume for each: then its name does not matter.
        for visit in visits:
            visit.images = dict.fromkeys([naming.PLAIN], *visit.images.values())
    return visits, failed, notes


def _of_other_kinds(folder: Folder) -> set[Path]:
    """The folders inside another with volumes that hold no kind which those outside hold."""

    def kinds(leaf: Path) -> set[str]:
        stems = map(filenames.stem, folder.leaves[leaf])
        return {naming.session_and_kind(stem, (leaf.name,))[1].lower() for stem in stems}

    inner = {
        leaf
        for leaf in folder.leaves
        if not {*leaf.parents}.isdisjoint(folder.leaves) and not naming.is_session(leaf.name)
    }
    outer = {kind for leaf in folder.leaves.keys() - inner for kind in kinds(leaf)}
    return {leaf for leaf in inner if kinds(leaf).isdisjoint(outer)}


def together(*names: str) -> str:
    """Names that are not '', joined to one."""
    return "_".join(filter(None, names))


def subjects_of(folder: Folder, leaves: Iterable[Path]) -> dict[Path, tuple[str, str]]:
    """Whose folder each is by the folders above it, up to `folder`: subject, and session or ''."""
    parts = {leaf: list(leaf.relative_to(folder.path).parts) for leaf in leaves}
    owners = set(_subjects_above(folder, leaves).values())
    sessions = {}
    for leaf, names in parts.items():
        # Beside a folder that says what it shows lie others of the same subject.
        above = (tuple(names[:end]) for end in range(1, len(names) + 1))
        owner = next((it for it in above if it in owners), None)
        session = [] if owner is None else names[len(owner) :]
        del names[len(names) if owner is None else len(owner) :]
        session = [name for name in session if not naming.is_kind(name)]
        while len(names) > 1 and naming.is_session(names[-1]):
            session.insert(0, names.pop())
        sessions[leaf] = session
    # A last folder that all have is not a subject's: p1/anat, p2/anat.
    while len(parts) > 1 and all(len(names) > 1 for names in parts.values()):
        if len({names[-1] for names in parts.values()}) > 1:
            break
        for names in parts.values():
            names.pop()
    for leaf, names in parts.items():
        person = next((at for at, name in enumerate(names, 1) if filenames.is_person(name)), None)
        sessions[leaf] = "_".join([*names[person:], *sessions[leaf]] if person else sessions[leaf])
        del names[person or len(names) :]
    # Where two subjects have one name, all of them are named by all the folders above.
    subjects = {tuple(names) for names in parts.values()}
    apart = len({names[-1:] for names in subjects}) == len(subjects)
    return {
        leaf: ("_".join(names[-1:] if apart else names) or folder.name, sessions[leaf])
        for leaf, names in parts.items()
    }


# --------------------------------------------------------------------------------------------------
# Pictures
# --------------------------------------------------------------------------------------------------


def picture_folders(folder: Folder) -> dict[Path, list[Path]]:
    """The pictures of two or more folders below that hold one subject's each; else empty."""
    held = {path: list(filter(is_picture, files)) for path, files in folder.below.items()}
    held = {path: pictures for path, pictures in held.items() if pictures}
    for path, pictures in held.items():
        names = {subject for subject, _ in recognise([filenames.stem(file) for file in pictures])}
        if len(names) > 1 or naming.is_collection(path.name):
            return {}
    return held if len(held) > 1 else {}


def of_pictures(folder: Folder, wanted: Wanted) -> Content:
    """The scans of folders with the slices of a subject each, which are of one kind."""
    wanted.among(folder.path, [naming.PLAIN])
    content = Content("slices", [], list(folder.failed))
    held = picture_folders(folder)
    for leaf, (subject, session) in subjects_of(folder, held).items():
        name = together(subject, session)
        made = stacked(held[leaf], wanted, content.failed, owner=subject, name=name)
        for number, one in enumerate(made, start=1):
            called = name if len(made) == 1 else f"{name}_{number}"
            content.scans.append(
                scan(subject, one.files, name=called, path=leaf, assumed=one.assumed)
            )
    content.notes.append(f"{len(held)} folders with pictures, each of one subject")
    return content


# --------------------------------------------------------------------------------------------------
# DICOM
# --------------------------------------------------------------------------------------------------


def holds_dicom(folder: Folder) -> bool:
    """Whether there is any DICOM file."""
    return any(is_dicom(path) for files in folder.below.values() for path in files)


def dicom(folder: Folder, wanted: Wanted) -> Content:
    """The scans of DICOM files at any depth: one for every series of images.

    The subject is the first folder that holds one patient's alone, or this folder where there is
    none. Headers tell one patient from another, but are not what these are called by.
    """
    files = [path for files in folder.below.values() for path in files]
    content = of_dicom(folder.path, [path for path in files if is_dicom(path)], wanted)
    content.failed.extend(folder.failed)
    if others := sum(is_volume(path) or is_picture(path) for path in files):
        content.notes.append(f"{others} files that are not DICOM left out")
    return content


def of_dicom(root: Path, files: Sequence[Path], wanted: Wanted) -> Content:
    """The scans of DICOM files below `root`."""
    from contourdiff_jax.volumes.formats import dicom

    series, failed = dicom.group(files)
    content = Content("dicom", [], failed)
    if not series:
        if content.failed:
            return content
        raise InputError(f"{root}: no images in its DICOM files, only other objects")
    owners = _owners(root, series, content.notes)
    scouts = 0
    for kind in wanted.among(root, {one.kind.lower() for one in series}):
        held = defaultdict(list)
        for one, owner in zip(series, owners, strict=True):
            if one.kind.lower() == kind:
                held[owner].append(one)
        for owner, those in held.items():
            kept = _without_scouts(those)
            scouts += len(those) - len(kept)
            for number, one in enumerate(kept, start=1):
                name = owner if len(kept) == 1 else f"{owner}_series{number}"
                path = Path(os.path.commonpath([file.parent for file in one.files]))
                rest = {"path": path, "kind": kind, "frames": one.frames}
                content.scans.append(scan(owner, one.files, name=name, **rest))
    if scouts:
        content.notes.append(f"{scouts} localizers or series of fewer than {FEW} slices left out")
    return content


def _owners(root: Path, series: Sequence, notes: list[str]) -> list[str]:
    """The subject of each DICOM series, by the folders of `root`: the first that is one patient's.

    Folders around those of several patients, and folders that say only what lies in them (CT,
    train), are not a patient's. Names of the former become part of the subject's: siteA_001.
    """
    inside = [one.files[0].relative_to(root).parts[:-1] for one in series]
    # One folder around those of several patients is not part of their names.
    while len({one.patient for one in series}) > 1 and all(inside):
        if len({parts[0] for parts in inside}) > 1:
            break
        root = root / inside[0][0]
        inside = [parts[1:] for parts in inside]
        notes.append(f"all lies in the folder {naming.legible(root.name)}")
    patients_in = defaultdict(set)
    for one, parts in zip(series, inside, strict=True):
        for depth in range(1, len(parts) + 1):
            patients_in[parts[:depth]].add(one.patient)
    own = [_patients_folder(parts, patients_in) for parts in inside]
    patients_of = defaultdict(set)  # of those alone that share their folder
    for one, folder in zip(series, own, strict=True):
        patients_of[folder].add(one.patient)
    mixed, numbered = {it for it in patients_of if len(patients_of[it]) > 1}, defaultdict(list)
    subjects = []
    for one, folder in zip(series, own, strict=True):
        subject = _called(folder, root)
        if folder in mixed:
            if one.patient not in numbered[subject]:
                numbered[subject].append(one.patient)
            subject += f"-{numbered[subject].index(one.patient) + 1}"
        subjects.append(subject)
    notes += _doubts(root, series, own, subjects, mixed)
    return subjects


def _called(folder: tuple[str, ...], root: Path) -> str:
    """The name of a subject with this folder of `root`."""
    own = "_".join(name for name in folder if not _says_what_only(name))
    names = (own, Folder(root).name, *folder[-1:])
    return next((name for name in names if name and not _says_what_only(name)), names[-1])


def _doubts(root: Path, series, own, subjects: list[str], mixed) -> Iterator[str]:
    """What headers say against the folders, in words without anything of a header."""
    names = {folder: "/".join(folder) or Folder(root).name for folder in own}
    folders_of, patients_of = defaultdict(set), defaultdict(dict)
    for one, folder, subject in zip(series, own, subjects, strict=True):
        folders_of[one.patient].add((subject, names[folder]))
        patients_of[subject].setdefault(one.patient, names[folder])
    several = [those for those in folders_of.values() if len({whose for whose, _ in those}) > 1]
    if twice := {name for those in several for _, name in those}:
        yield (
            f"headers in the folders {naming.joined(sorted(twice))} name the same patient; they "
            "count as several subjects"
        )
    for subject, folders in sorted(patients_of.items()):
        if len(folders) > 1:
            yield (
                f"headers in the folders {naming.joined(sorted(set(folders.values())))} name "
                f"different patients; they count as one subject, {naming.legible(subject)}"
            )
    if mixed:
        where = naming.joined(sorted(names[folder] for folder in mixed))
        yield (
            f"several patients lie in {where}: they are numbered, which may change when others "
            "are added; give each a folder"
        )


def _patients_folder(parts: tuple[str, ...], patients_in: dict) -> tuple[str, ...]:
    """The folders down to the first that is one patient's, or to the last."""
    for depth in range(1, len(parts)):
        if len(patients_in[parts[:depth]]) == 1 and not _says_what_only(parts[depth - 1]):
            return parts[:depth]
    return parts


def _says_what_only(name: str) -> bool:
    """Whether a folder says only what lies in it: CT, train; but A and B may be patients."""
    return len(name) > 1 and naming.is_collection(name)


def _without_scouts(series: Sequence) -> list:
    """Those of one subject's DICOM series that are no overviews, if there are others."""
    long = [one for one in series if not one.localizer and _depth(one) >= FEW]
    return long or list(series)


def _depth(series) -> int:
    """The slices of a DICOM series, as far as they are fewer than FEW."""
    if len(series.files) >= FEW:
        return len(series.files)
    try:
        return io.opened(series.files, frames=series.frames).native.shape3[2]
    except InputError:  # it will be reported when its turn comes to be read
        return FEW
