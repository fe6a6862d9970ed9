# SPDX-License-Identifier: Apache-2.0
"""Sources: the other image of every subject, laid on the slices of the target and judged.

    target volume -> the source of its subject -> its voxels by the affines of both -> its slices

Pictures say no place; those of a pair are laid on one another pixel by pixel, slice on slice by the
numbers in their names. How well a pair fits is measured, and what fits badly is left out.

Shapes: [X, Y, Z] volumes in closest-canonical RAS, [N, H, W] slices on the store's grid.
"""

import dataclasses
import functools
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from contourdiff_jax.data import fitting
from contourdiff_jax.data.inspection import guesses
from contourdiff_jax.data.layouts import pairs, scans, stacks
from contourdiff_jax.data.layouts.scans import Scan
from contourdiff_jax.errors import InputError
from contourdiff_jax.volumes import filenames, intensity, overlay
from contourdiff_jax.volumes.grid import Resampling
from contourdiff_jax.volumes.masks import body_mask
from contourdiff_jax.volumes.overlay import Overlay
from contourdiff_jax.volumes.volume import UNKNOWN, Assumed, Volume

REGISTRATIONS = ("rigid",)
COVERED = 0.5  # of a slice's body that the source must show, or it is missing there
REACH = 2.0  # times the largest shift that is accepted: how far is searched
HALF = 0.5  # of a pixel that the source must cover to be there
WHOLE = 0.999  # of a voxel that slices which there are must make up; the rest would be air
NOTABLE = 2.0  # pixels of shift that are told
NOTABLE_OVERLAP = 0.9  # likewise


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Which sources are wanted, and how well they must fit.

    Attributes:
      folder: of the sources: a volume, a folder in any layout, or a CSV file that says what is
        whose. It may be that of the targets, where it holds both.
      preset: name of their intensity preset.
      select: which of several kinds of scans, where the preset does not tell.
      assumed: what pictures do not say themselves.
      masks: folder of their body masks; default: the layout's, else they are computed.
      overlap: least Dice of the two bodies, of a slice and of all that are left.
      shift: most mm in plane by which the source may lie off.
      register: one of REGISTRATIONS, or None to take sources where they lie.
    """

    folder: str | Path
    preset: str
    select: str | None = None
    assumed: Assumed = UNKNOWN
    masks: str | Path | None = None
    overlap: float = 0.8
    shift: float = 5.0
    register: str | None = None

    def __post_init__(self):
        if not 0 <= self.overlap <= 1:
            raise InputError(f"--pairs_overlap={self.overlap:g} must lie between 0 and 1")
        if not 0 < self.shift <= 1000:
            raise InputError(f"--pairs_shift={self.shift:g} must be above 0 and at most 1000 mm")
        if self.register not in (None, *REGISTRATIONS):
            known = ", ".join(REGISTRATIONS)
            raise InputError(f"--register={self.register}: known are {known}; or leave it out")

    def to_dict(self, fits: Iterable["Fit"]) -> dict:
        """What a store says of its pairs: how they were judged, and how well each in it fits.

        Of those that are left out it says how many they are, and not their names.
        """
        judged = {name: getattr(self, name) for name in ("overlap", "shift", "register")}
        if self.assumed != UNKNOWN:
            judged["assumed"] = self.assumed.to_dict()
        fits = list(fits)
        kept = [dataclasses.asdict(fit) for fit in fits if not fit.why]
        return judged | {"fits": kept, "left_out": len(fits) - len(kept)}


@dataclasses.dataclass(frozen=True)
class Fit:
    """How well the source of a volume fits it.

    Attributes:
      name: of the pair.
      overlap: Dice of the bodies, over the slices that are kept.
      right, down: mm by which the source lies too far to the right and down, as slices are seen.
      information: mutual, in nats.
      slices: of the target.
      missing: of them, where the source shows less than half of the body, or has none.
      apart: of them, where the bodies overlap too little.
      registered: what registration did, '' without it.
      why: it is left out, '' where it is not.
    """

    name: str
    overlap: float
    right: float
    down: float
    information: float
    slices: int
    missing: int
    apart: int
    registered: str = ""
    why: str = ""

    @property
    def shift(self) -> float:
        """mm in all."""
        return float(np.hypot(self.right, self.down))

    def is_notable(self, spacing: float) -> bool:
        """Whether it is worth telling, on pixels of that many mm."""
        off = self.shift > NOTABLE * spacing or self.overlap < NOTABLE_OVERLAP
        return bool(self.why or self.missing or self.apart or off)


class Misfit(InputError):
    """A pair that fits too badly: `fit`."""

    def __init__(self, path: Path, fit: Fit):
        super().__init__(f"{path}: {fit.why}")
        self.fit = fit


@dataclasses.dataclass(frozen=True)
class Laid:
    """A source on the slices of its target.

    Attributes:
      values: [N, H, W] float32 in the units of its preset.
      masks: [N, H, W] bool, its body.
      kept: [N] bool, slices that fit.
      notes, failed: of its file, as of a volumes.Volume.
      doubts: why its values can hardly be what the preset takes them for.
    """

    values: np.ndarray
    masks: np.ndarray
    kept: np.ndarray
    fit: Fit
    notes: tuple[str, ...]
    failed: tuple[tuple[Path, str], ...]
    doubts: list[str]


@dataclasses.dataclass(frozen=True)
class _Placed:
    """A source on the voxels of its target: native units, body, and where there is any of it."""

    array: np.ndarray
    mask: np.ndarray
    inside: np.ndarray


@dataclasses.dataclass(frozen=True)
class Target:
    """A volume whose source is wanted, as it was cut.

    Attributes:
      values: [N, H, W] float32 on the grid.
      body: [N, H, W] bool.
    """

    scan: Scan
    volume: Volume
    resampling: Resampling
    values: np.ndarray
    body: np.ndarray


@dataclasses.dataclass(frozen=True)
class Sources:
    """The sources that there are, by the names of their scans; masks where they lie apart."""

    wanted: Pairs
    scans: dict[str, Scan]
    masks: dict[str, Scan] | None
    failed: tuple[tuple[Path, str], ...]

    def without_target(self, targets: Iterable[Scan]) -> list[str]:
        """Names of sources that none of the targets is of."""
        return sorted(self.scans.keys() - {pairs.plain(scan.name) for scan in targets})

    def of(self, target: Target) -> Laid:
        """The source of a target on its slices.

        Raises:
          InputError: there is none, it cannot be read, or nothing says where it lies.
          Misfit: it fits too badly.
        """
        preset = intensity.preset(self.wanted.preset)
        scan = pairs.partner_of(target.scan, self.scans, "pairs")
        if scan.files == target.scan.files and scan.assumed.half == target.scan.assumed.half:
            raise InputError(f"{scan.path}: --pairs has this file itself; give the other image")
        volume = scan.read()
        scans.check_unit(scan, volume, preset, "pairs_")
        window = preset.window_of(volume)
        mask = pairs.companion(volume, scan, self.masks, "masks", "pairs_masks")
        if mask is None:
            mask = body_mask(volume.array, volume.affine, preset.modality)
        doubts = guesses.doubts(preset, scan.assumed, volume, window, mask > 0)
        air = float(preset.native(np.float32(preset.air), window))

        def laid(placed: _Placed, registered: str = "") -> Laid:
            values = preset.values(placed.array, window)
            values = target.resampling.slices(values, preset.air)
            masks = target.resampling.masks(placed.mask)
            # An even slice is made of several: where one of them is not there, there is air in it.
            least = WHOLE if target.resampling.grid.slice_spacing else HALF
            inside = target.resampling.slices(placed.inside, 0) > least
            kept, fit = self._judged(target, values, masks, inside, preset.air, registered)
            return Laid(values, masks, kept, fit, volume.notes, volume.failed, doubts)

        if scan.is_picture or target.scan.is_picture:
            placed = _by_pixels(target, scan, volume, mask > 0, air)
            even = dataclasses.replace(volume, array=placed.array, affine=target.volume.affine)
            even_mask, there = placed.mask, placed.inside
        else:
            even, even_mask = _even(volume, mask)
            _check_placed(target, scan, even)
            placed, there = _by_affines(target.volume, even, even_mask, air), None
        found = laid(placed)
        if self.wanted.register:
            place = functools.partial(_by_affines, target.volume, even, even_mask, air, there)
            # A slice that is not there spoils those beside it.
            spoilt = 0 if there is None else 2 * int((~there.any((0, 1))).sum())
            found = self._registered(target, even, place, spoilt, found, laid)
        if found.fit.why:
            raise Misfit(scan.path, found.fit)
        return found

    def _registered(
        self, target: Target, volume: Volume, place, spoilt: int, at_rest: Laid, laid
    ) -> Laid:
        """The source after registration, where it fits better then.

        Args:
          place: motion -> _Placed.
          spoilt: slices that may be lost by it.
        """
        from contourdiff_jax.data import registration  # SimpleITK takes its time

        fixed = target.volume.even()
        start = np.zeros(3)
        if not at_rest.kept.any():  # begin where the middles of both are one
            start = _middle(volume) - _middle(fixed)
        motion = registration.rigid(fixed, volume, start)
        if motion is None:
            words = "rigid: found no motion"
        else:
            words = f"rigid: moved {motion.moved:.1f} mm, turned {motion.turned:.1f} degrees"
            moved = laid(place(motion=motion.matrix), words)
            as_many = moved.kept.any() and moved.kept.sum() + spoilt >= at_rest.kept.sum()
            if as_many and (
                moved.fit.information > at_rest.fit.information or not at_rest.kept.any()
            ):
                return moved
            words += ", fits no better and is left where it lay"
        return dataclasses.replace(at_rest, fit=dataclasses.replace(at_rest.fit, registered=words))

    def _judged(self, target: Target, values, masks, inside, air: float, registered: str):
        """[N] bool slices that fit, and the `Fit`."""
        body, wanted, spacing = target.body, self.wanted, target.resampling.grid.spacing
        seen, size = (inside & body).sum((1, 2)), body.sum((1, 2))
        there = np.where(size > 0, seen > COVERED * size, inside.any((1, 2)))
        apart = there & (fitting.dice(body, masks, (1, 2)) < wanted.overlap)
        kept = there & ~apart
        count = {"slices": len(body), "missing": int((~there).sum()), "apart": int(apart.sum())}
        if not kept.any():
            why = "the source does not overlap: no slice of it shows the body where the target does"
            if apart.any():
                why = f"in no slice do the bodies overlap by {wanted.overlap:g} (Dice)"
            best = float(fitting.dice(body, masks))
            fit = Fit(target.scan.name, best, 0.0, 0.0, 0.0, **count, why=why)
            return kept, dataclasses.replace(fit, registered=registered)
        reach = int(np.ceil(REACH * wanted.shift / spacing))
        reach = min(reach, body.shape[1] // 4)
        off = fitting.shift(target.values[kept], values[kept], body[kept], reach, air)
        right, down = (round(pixels * spacing, 2) for pixels in (off.columns, off.rows))
        overlap = round(float(fitting.dice(body[kept], masks[kept])), 4)
        fit = Fit(
            target.scan.name,
            overlap,
            right,
            down,
            round(off.information, 4),
            **count,
            registered=registered,
        )
        if fit.shift > wanted.shift:
            why = f"lies off by {fit.shift:.1f} mm, more than {wanted.shift:g}"
            fit = dataclasses.replace(fit, why=f"{why}{_advice(wanted)}")
        return kept, fit


def _advice(wanted: Pairs) -> str:
    return "" if wanted.register else "; --register=rigid may help"


def find(wanted: Pairs) -> Sources:
    """The sources that are wanted; InputError where there are none, or a name has two."""
    preset, failed = intensity.preset(wanted.preset), []
    found = pairs.by_name(
        wanted.folder, preset.modality, wanted.assumed, failed, select=wanted.select
    )
    # Their spacing is that of the targets, which may be pictures alone.
    scans.check_assumed(found.values(), dataclasses.replace(wanted.assumed, spacing=None), "pairs_")
    masks = (
        None
        if wanted.masks is None
        else pairs.by_name(wanted.masks, "masks", wanted.assumed.of_companions)
    )
    return Sources(wanted, found, masks, tuple(failed))


# --------------------------------------------------------------------------------------------------
# Where a source lies
# --------------------------------------------------------------------------------------------------


def _even(volume: Volume, mask: np.ndarray) -> tuple[Volume, np.ndarray]:
    """A volume with even slices, and its mask [X, Y, Z] bool on these."""
    even = volume.even()
    if even is volume:
        return volume, mask > 0
    body = dataclasses.replace(volume, array=(mask > 0).astype(np.float32)).even()
    return even, body.array > 0.5


def _check_placed(target: Target, scan: Scan, volume: Volume) -> None:
    """Raise InputError where grids differ, and a header does not say where its voxels lie."""
    for path, one in ((target.scan.path, target.volume), (scan.path, volume)):
        header = one.native.header
        placed = header is None or header["qform_code"] > 0 or header["sform_code"] > 0
        if not placed and not overlay.same_grid(target.volume, volume):
            raise InputError(
                f"{path}: its header does not say where it lies (qform_code and sform_code are "
                f"0), and its pair has another grid; give both on one grid"
            )


def _by_affines(
    target: Volume, volume: Volume, mask, air: float, there=None, motion=None
) -> _Placed:
    """By the affines of both, and a motion; `there` is where the volume is no filling."""
    way = Overlay(volume, target, motion)
    inside = way.inside if there is None else way.inside & (way(there, 0) > WHOLE)
    return _Placed(way(volume.array, air), way(mask, 0) > 0.5, inside)


def _by_pixels(target: Target, scan: Scan, volume: Volume, mask, air: float) -> _Placed:
    """Pictures on pictures: slices by the numbers in their names, else in their order."""
    ours, theirs = (array.shape for array in (target.volume.array, volume.array))
    if not (scan.is_picture and target.scan.is_picture):
        raise InputError(
            f"{scan.path}: of {target.scan.path} and this one is made of pictures, which do not "
            f"say where they lie; give both as volumes, or both as pictures"
        )
    if ours[:2] != theirs[:2]:
        raise InputError(
            f"{scan.path}: {theirs[0]} x {theirs[1]} pixels, and {ours[0]} x {ours[1]} in "
            f"{target.scan.path}: pictures do not say where they lie, so make both of one size"
        )
    numbers, others = _numbers(target.scan, target.volume), _numbers(scan, volume)
    if len(set(numbers)) < len(numbers) or not {*numbers} & {*others}:
        numbers, others = list(range(ours[2])), list(range(theirs[2]))
        if len(numbers) != len(others):
            raise InputError(
                f"{scan.path}: {len(others)} slices, and {len(numbers)} in {target.scan.path}, "
                f"without numbers to tell which belong together"
            )
    place = {number: row for row, number in enumerate(others)}
    array, inside = np.full(ours, air, np.float32), np.zeros(ours, bool)
    body = np.zeros(ours, bool)
    for row, number in enumerate(numbers):
        if number in place:
            array[:, :, row] = volume.array[:, :, place[number]]
            body[:, :, row] = mask[:, :, place[number]]
            inside[:, :, row] = True
    return _Placed(array, body, inside)


def _numbers(scan: Scan, volume: Volume) -> list:
    """What tells the slices of pictures apart, in their order: the numbers in their names."""
    unread = {path for path, _ in volume.failed}
    files = [path for path in scan.files if path not in unread]
    if len(files) != volume.array.shape[2]:  # a file of several
        return list(range(volume.array.shape[2]))
    return [number for _, number in stacks.recognise([filenames.stem(path) for path in files])]


def _middle(volume: Volume) -> np.ndarray:
    """[3] mm, the middle of a volume."""
    centre = (np.array(volume.array.shape) - 1) / 2
    return volume.affine[:3, :3] @ centre + volume.affine[:3, 3]
