# SPDX-License-Identifier: Apache-2.0
"""Head-like CT and MR volumes with labels: unpaired for training, paired for testing."""

import dataclasses
import itertools
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from contourdiff_jax.config import SEEDS
from contourdiff_jax.data.phantoms import anatomy, rendering, xrays
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import ownership
from contourdiff_jax.volumes import io

FIELD_OF_VIEW = 230.0  # mm, in plane
CENTRE = (0.0, 4.0)  # mm, of the field of view in plane: the nose counts
LEVEL = 4.0  # mm, height of the middle slice: the face counts, the neck does not
MOST = 4096  # voxels along an axis
OVERSAMPLING = (2, 2, 2)  # anatomy samples per voxel along each axis, for partial volume
PICTURES = {  # how each kind of picture is drawn
    "ct": xrays.CLINICAL,
    "mr": rendering.T1_WEIGHTED,
    "t2": rendering.T2_WEIGHTED,
    "pd": rendering.PD_WEIGHTED,
    "flair": rendering.FLAIR,
    "cbct": xrays.CONE_BEAM,
}
UNSEEN = ("pd", "flair", "cbct")  # further sources of the test subjects, which are asked for
KINDS = {  # what is written of a subject, by its role
    "train_mr": ("mr", "labels"),
    "train_ct": ("ct", "labels"),
    "test": ("ct", "t2", "mr", "labels"),
}


@dataclasses.dataclass(frozen=True)
class Scanner:
    """How the scanner of one domain shows heads."""

    field_of_view: float = 1.0  # factor
    scale: float = 1.0  # factor on the size of the heads
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)  # mm, of the heads


def scanners(bias: float) -> dict[str, Scanner]:
    """The scanner of each role; all alike without structural bias.

    At 1 the CT shows a field of view 15% larger, and in it heads 6% larger, nearer to the table and
    to one side. The MR shows 18% less, which cuts off scalp. Test subjects belong to the CT's
    domain in all their pictures.
    """
    ct = Scanner(1 + 0.15 * bias, 1 + 0.06 * bias, (5 * bias, -12 * bias, 0))
    return {"train_mr": Scanner(1 - 0.18 * bias), "train_ct": ct, "test": ct}


def folder_of(role: str, kind: str) -> str:
    """Where in OUT the pictures of a role lie."""
    if kind == "labels":
        return f"{role}_labels"
    return f"test_{kind}" if role == "test" else role


@dataclasses.dataclass(frozen=True)
class Heads:
    """A set of heads to generate; InputError where there can be none such.

    Attributes:
        subjects: how many heads, in all.
        size: in-plane matrix.
        test: subjects with paired CT, T2 and T1; a quarter of all by default.
        train_ct: subjects with CT only; half of the rest by default. Those left have MR only.
        slices: along z.
        spacing: in-plane, in mm; by default what makes the field of view 230 mm.
        thickness: of the slices, in mm.
        level: height of the middle slice, in mm above the middle of the head.
        seed: with a subject's name it determines the subject.
        bias: structural bias between the domains, see `scanners`.
        unseen: of test subjects PD, FLAIR and cone-beam CT too.
    """

    subjects: int = 24
    size: int = 128
    test: int | None = None
    train_ct: int | None = None
    slices: int = 24
    spacing: float | None = None
    thickness: float = 6.0
    level: float = LEVEL
    seed: int = 0
    bias: float = 0.0
    unseen: bool = False

    def __post_init__(self):
        size, slices, level, seed, bias = self.size, self.slices, self.level, self.seed, self.bias
        if not 32 <= size <= MOST:
            raise InputError(f"phantoms: --size={size} shows no head; give 32 to {MOST}")
        if not 1 <= slices <= MOST:
            raise InputError(f"phantoms: --slices={slices} must lie between 1 and {MOST}")
        for name in ("spacing", "thickness"):
            value = getattr(self, name)
            if value is not None and not 0.01 <= value <= 100:
                raise InputError(f"phantoms: --{name}={value} must lie between 0.01 and 100 mm")
        if not abs(level) <= 100:
            raise InputError(f"phantoms: --level={level} misses the head; give -100 to 100 mm")
        if not 0 <= seed < SEEDS:
            raise InputError(f"phantoms: --seed={seed} must be at least 0 and below {SEEDS}")
        if not 0 <= bias <= 2:
            raise InputError(f"phantoms: --bias={bias} must lie between 0 (none) and 2")
        if self.subjects > 1e6:
            raise InputError(f"phantoms: --subjects={self.subjects} are too many; give 2 to 1e6")
        if self.subjects < 2:
            raise InputError(
                f"phantoms: --subjects={self.subjects} is too few; one to train and one to test "
                "are needed"
            )
        train_mr, train_ct, test = self._counts
        if test < 1 or train_ct < 0 or train_mr < 1:
            raise InputError(
                f"phantoms: {self.subjects} subjects cannot be {test} for testing, {train_ct} with "
                f"CT and {train_mr} with MR for training; raise --subjects or lower --test or "
                "--train_ct"
            )

    @property
    def _counts(self) -> tuple[int, int, int]:
        """Subjects to train on with MR, with CT, and to test."""
        test = max(1, round(self.subjects / 4)) if self.test is None else self.test
        train_ct = (self.subjects - test) // 2 if self.train_ct is None else self.train_ct
        return self.subjects - test - train_ct, train_ct, test

    @property
    def roles(self) -> dict[str, list[str]]:
        """Names of the subjects of each role: 'train_mr', 'train_ct', 'test'."""
        names = [f"phantom{number:03d}" for number in range(self.subjects)]
        ends = itertools.accumulate(self._counts)
        parts = zip(("train_mr", "train_ct", "test"), self._counts, ends, strict=True)
        return {role: names[end - count : end] for role, count, end in parts}

    @property
    def kinds(self) -> dict[str, tuple[str, ...]]:
        """What is written of a subject, by its role."""
        return KINDS | {"test": KINDS["test"] + UNSEEN * self.unseen}

    def render(
        self, subject: str, kinds: Sequence[str], scanner: Scanner = Scanner()
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Volumes of one subject, which its name determines.

        Args:
            kinds: any of PICTURES and 'labels'. None depends on the others.

        Returns:
            {kind: [X, Y, Z]} int16 (labels uint8), and the affine [4, 4] that they share.
        """
        name = zlib.crc32(subject.encode())
        streams = {
            purpose: np.random.default_rng((self.seed, name, number))
            for number, purpose in enumerate(("head", *PICTURES))
        }
        head = anatomy.draw_head(streams["head"])
        head = dataclasses.replace(
            head, scale=head.scale * scanner.scale, offset=head.offset + scanner.shift
        )
        in_plane = FIELD_OF_VIEW / self.size if self.spacing is None else self.spacing
        in_plane *= scanner.field_of_view
        shape = np.array((self.size, self.size, self.slices))
        voxel = np.array((in_plane, in_plane, self.thickness))
        fine = voxel / OVERSAMPLING  # spacing of the tissue map
        middle = np.array((*CENTRE, self.level))
        axes = [
            centre + step * (np.arange(count) - (count - 1) / 2)
            for centre, step, count in zip(middle, fine, shape * OVERSAMPLING, strict=True)
        ]
        parts = anatomy.tissue_map(head, axes)

        def picture(kind):
            if kind == "labels":
                return anatomy.majority_labels(parts, OVERSAMPLING)
            scene, how = (parts, fine, streams[kind]), PICTURES[kind]
            options = {"tissues": anatomy.TISSUES, "reduction": OVERSAMPLING}
            if isinstance(how, xrays.Beam):
                return rendering.render_ct(*scene, **options, beam=how)
            return rendering.render_mr(*scene, **options, weighting=how)

        affine = np.diag((*voxel, 1.0))
        affine[:3, 3] = middle - voxel * (shape - 1) / 2
        return {kind: picture(kind) for kind in kinds}, affine


def phantoms(
    out: str | os.PathLike,
    subjects: int = 24,
    size: int = 128,
    *,
    overwrite: bool = False,
    **options,
) -> dict[str, list[str]]:
    """Writes CT and MR phantoms with labels, in the layout that `contourdiff phantoms` shows.

    Args:
        out: folder to make; it appears under its name only when whole.
        subjects, size, options: fields of `Heads`.
        overwrite: replace the files of phantoms that `out` holds.

    Returns:
        The subjects of each role: 'train_mr', 'train_ct', 'test'.

    Raises:
        InputError: a number out of range, or `out` exists or cannot be written.
    """
    out, heads = Path(out), Heads(subjects, size, **options)
    roles = heads.roles
    work = [(role, subject) for role, names in roles.items() for subject in names]
    with ownership.folder(out, "phantoms", overwrite) as partial:
        for role, kinds in heads.kinds.items():
            for kind in kinds:
                (partial / folder_of(role, kind)).mkdir(exist_ok=True)
        for role, subject in tqdm(work, desc="phantoms", unit="head", disable=None):
            scanner = scanners(heads.bias)[role]
            pictures, affine = heads.render(subject, heads.kinds[role], scanner)
            for kind, array in pictures.items():
                path = partial / folder_of(role, kind) / f"{subject}_{kind}.nii.gz"
                io.save(path, array, affine, array.dtype)
    return roles
