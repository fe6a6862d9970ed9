# SPDX-License-Identifier: Apache-2.0
"""The model's grid: square slices of one pixel spacing, cut from volumes and put back into them.

A slice is resampled along rows and columns by two sparse matrices of linear weights; the way back
is two more, made so that what is put back and cut again is the same slice. Both ways share the
centre: the middle of the field of view is the middle of the grid. Nothing is stretched; what is too
large is cropped, what is too small is filled. An oblique volume is cut along its own axes.

Slices are those of the volume itself, wherever they lie. With a slice spacing they are even, and
as many as cover the volume: along the slicing axis there is a pair of matrices, too, with the
middle in common. What reaches beyond the volume's ends shows these: a body that ends where the scan
does would be darkened by air there.

Shapes: [X, Y, Z] a volume in closest-canonical RAS, [N, H, W] slices in increasing coordinate of
the slicing axis, seen radiologically (axial: row 0 anterior, column 0 the patient's right; coronal:
superior, right; sagittal: superior, anterior).
"""

import dataclasses
import functools
import math
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.sparse import csr_array, eye_array
from scipy.sparse.linalg import splu

from contourdiff_jax.errors import InputError
from contourdiff_jax.volumes import geometry
from contourdiff_jax.volumes.volume import Volume

# Volume axes of (slices, rows, columns). Rows and columns run against the axes: radiological
# pictures begin at the patient's anterior, superior and right ends, which in RAS are the far ends.
AXES = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}

KEPT_WHOLE = 0.995  # less inside the grid than this, which is told as 99%, is worth a warning
CHUNK = 32  # slices resampled at a time, which bounds the memory of the intermediate products
LEAST, MOST = 1e-5, 1e4  # mm of a pixel; others are a slip, whatever is cut
LARGEST = 2**14  # pixels of a side, likewise
COARSER = 1.25  # times a voxel: a grid of this spacing is markedly coarser than the volume
SMOOTH = 0.03  # share of a slice as it is in what is put back: the gain is at most 3.4
LIGHT = 1e-4  # weights below are left out


@dataclasses.dataclass(frozen=True)
class Grid:
    """Square slices of size x size pixels of `spacing` mm, cut across `axis`."""

    axis: str  # 'axial', 'coronal' or 'sagittal'
    spacing: float  # [mm]
    size: int  # [px]
    slice_spacing: float = 0.0  # [mm] from slice to slice; 0: slices are those of each volume

    def __post_init__(self):
        if self.axis not in AXES:
            raise InputError(f"no slicing axis {self.axis!r}; known: {', '.join(AXES)}")
        if not LEAST <= self.spacing <= MOST:
            raise InputError(
                f"the grid's spacing must lie between {LEAST:g} and {MOST:g} mm, not {self.spacing}"
            )
        if not 1 <= self.size <= LARGEST:
            raise InputError(f"the grid's size must be 1 to {LARGEST} pixels, not {self.size}")
        if self.slice_spacing and not LEAST <= self.slice_spacing <= MOST:
            raise InputError(
                f"the grid's slice spacing must lie between {LEAST:g} and {MOST:g} mm, or be 0, "
                f"not {self.slice_spacing}"
            )

    def to_dict(self) -> dict:
        """As JSON; the slice spacing only where there is one, as in files of before."""
        fields = dataclasses.asdict(self)
        return fields if self.slice_spacing else {n: fields[n] for n in ("axis", "spacing", "size")}

    @property
    def every(self) -> str:
        """How far apart slices are, to be added to words about the grid; "" where they differ."""
        return f", every {self.slice_spacing:g} mm" if self.slice_spacing else ""

    def fit(self, shape, affine, offsets=None) -> "Resampling":
        """The resampling between volumes of that shape and affine [4, 4], and this grid.

        `offsets` [N] says where the slices lie along the slicing axis, in voxels; without it they
        are even.
        """
        return Resampling(self, tuple(shape), np.asarray(affine, np.float64), offsets)

    def fit_volume(self, volume: Volume) -> tuple[Volume, "Resampling"]:
        """The volume as it can be cut across the grid's axis, and its resampling.

        Slices that were acquired along this axis stay as they are and where they are, however
        uneven. Across another axis unevenly spaced slices are first interpolated to even ones.

        Raises:
          InputError: slices are to be even, and would be interpolated across a gap.
        """
        axis, offsets = volume.offsets or (None, None)
        if self.slice_spacing and offsets is not None:
            _check_gaps(volume, offsets * geometry.spacing(volume.affine)[axis])
        if axis not in (None, AXES[self.axis][0]):
            volume, offsets = volume.even(), None
        return volume, self.fit(volume.array.shape, volume.affine, offsets)


class Resampling:
    """The way from one volume's voxels to the grid's slices, and back.

    Attributes:
      plane_spacing: mm between the rows and between the columns of the volume's own planes.
      gap: mm between the slices, along the volume's own axis; their mean where they are uneven.
      positions: [N] float64, mm: coordinate along the slicing axis of every slice's centre.
      needed: pixels a side of a grid that would hold all of it.
    """

    def __init__(self, grid: Grid, shape: tuple[int, int, int], affine: np.ndarray, offsets=None):
        self.grid = grid
        self.shape = shape
        self.axes = AXES[grid.axis]
        sizes = geometry.spacing(affine)

        depth, *plane = self.axes
        offsets = np.arange(shape[depth]) if offsets is None else offsets
        self.gap = float(sizes[depth])
        self._along = None
        if grid.slice_spacing and not _are_so_far_apart(offsets, self.gap, grid.slice_spacing):
            self._along = _Along(offsets, self.gap, grid.slice_spacing)
            offsets = (shape[depth] - 1) / 2 + self._along.centres / self.gap
            self.gap = grid.slice_spacing
        centre = (np.array(shape) - 1) / 2
        centres = np.repeat(centre[None], len(offsets), axis=0)
        centres[:, depth] = offsets
        self.positions = centres @ affine[depth, :3] + affine[depth, 3]

        grid_side = (grid.size, grid.spacing)
        self.plane_spacing = tuple(float(sizes[axis]) for axis in plane)
        sides = [(shape[axis], sizes[axis]) for axis in plane]
        self._forward = [_weights(*side, *grid_side) for side in sides]
        self._backward = [_weights(*grid_side, *side) for side in sides]
        self._nearest = [_nearest(*side, *grid_side) for side in sides]
        self.needed = math.ceil(max(round(n * mm / grid.spacing, 4) for n, mm in sides))

    @functools.cached_property
    def _sharp(self) -> list[tuple[csr_array, np.ndarray]]:
        """What `volume` puts back with: to take slices alone needs none of it."""
        ways = zip(self.plane_spacing, self._forward, self._backward, strict=True)
        return [
            _consistent(linear, forward) if self.grid.spacing >= COARSER * mm else linear
            for mm, (forward, _), linear in ways
        ]

    def slices(self, array, fill: float) -> np.ndarray:
        """Volume [X, Y, Z] -> slices [N, H, W] float32; `fill` outside the field of view.

        Linear, antialiased where the grid is coarser. Without a slice spacing the array may also be
        a part of the volume along the slicing axis: slices do not mix.
        """
        return self.shrink(self.planes(array), fill)

    def shrink(self, planes, fill: float) -> np.ndarray:
        """`slices` of planes [n, R, C] that are on the volume's own voxels."""
        slices = _apply(self._forward, planes, fill)
        return slices if self._along is None else _mixed(self._along.forward, slices)

    def kept_of(self, mask) -> float:
        """Fraction of a mask [X, Y, Z] that lies inside the grid; 1 where it is empty."""
        seen = self.planes(mask).sum(0, dtype=np.float64)
        (_, rows), (_, columns) = self._backward
        return float(rows @ seen @ columns / seen.sum()) if seen.any() else 1.0

    def volume(self, slices, fill: float) -> np.ndarray:
        """Slices [N, H, W] -> volume [X, Y, Z] float32, the way back; `fill` outside the grid.

        Where the grid is markedly coarser than the volume, `slices` of it gives them again, up to
        what linear weights cannot show. No value goes beyond those of its slice, or of all slices
        where these mix, and `fill`.
        """
        if self._along is not None:
            bounds = slices.min(), slices.max()
            slices = np.clip(_mixed(self._along.sharp, slices), *bounds)
        planes = _apply(self._sharp, slices, fill)
        for plane, image in zip(planes, slices, strict=True):
            np.clip(plane, min(image.min(), fill), max(image.max(), fill), out=plane)
        return self._upright(planes)

    def interpolated(self, slices, fill: float) -> np.ndarray:
        """`volume` by linear weights alone: for what is no image, as probabilities."""
        if self._along is not None:
            slices = _mixed(self._along.backward, slices)
        return self._upright(_apply(self._backward, slices, fill))

    def _upright(self, planes) -> np.ndarray:
        return np.ascontiguousarray(np.transpose(np.flip(planes, (1, 2)), np.argsort(self.axes)))

    def masks(self, array) -> np.ndarray:
        """Mask [X, Y, Z] -> masks [N, H, W] bool: where more than half of a pixel is covered."""
        return self.slices(array, 0) > 0.5

    def body(self, mask, path: Path, remedy: str) -> np.ndarray:
        """`masks` of the body in a file's volume; InputError where none of it is on the grid."""
        body, side = self.masks(mask), self.grid.size
        if not body.any():
            raise InputError(
                f"{path}: nothing of the body lies on the grid of {side} x {side} px of "
                f"{self.grid.spacing:g} mm; {remedy}"
            )
        return body

    def labels(self, array) -> np.ndarray:
        """Label volume [X, Y, Z] of whole numbers -> labels [N, H, W] uint16; 0 outside.

        Every pixel gets the label that covers most of it, so that none is favoured by where the
        pixel's centre falls.
        """
        planes = self.planes(array)
        labels = np.zeros((len(self.positions), self.grid.size, self.grid.size), np.uint16)
        share = np.zeros(labels.shape, np.float32)
        for label in np.unique(array):
            here = planes == label
            rows = np.flatnonzero(here.any((1, 2)))
            covered = _apply(self._forward, here[rows], fill=float(label == 0))
            if self._along is not None:
                shares = self._along.forward[:, rows]
                rows = np.flatnonzero(shares.sum(1))
                covered = _mixed(shares[rows], covered)
            labels[rows] = np.where(covered > share[rows], np.uint16(label), labels[rows])
            share[rows] = np.maximum(covered, share[rows])
        return labels

    def nearest(self, planes) -> np.ndarray:
        """Planes [n, R, C] on the volume's own voxels -> slices [N, H, W]; 0 outside.

        Every pixel is the voxel that its centre lies in. Where the grid covers just the plane, that
        is how PIL resizes to the nearest. An even slice is the plane that is nearest to it.
        """
        if self._along is not None:
            planes = planes[self._along.nearest]
        rows, columns = self._nearest
        inside = np.outer(rows >= 0, columns >= 0)
        return np.where(inside, planes[:, rows[:, None], columns], planes.dtype.type(0))

    def planes(self, array) -> np.ndarray:
        """Volume [X, Y, Z] -> its planes [n, R, C] turned as the slices, on their own voxels."""
        return planes_across(self.grid.axis, array)


def planes_across(axis: str, array) -> np.ndarray:
    """Volume [X, Y, Z] -> its planes [N, R, C] across an axis of AXES, on their own voxels."""
    return np.flip(np.transpose(array, AXES[axis]), (1, 2))


class _Along:
    """The way along the slicing axis, from a volume's n slices to N even ones and back.

    Attributes:
      centres: [N] mm from the volume's middle, of the even slices.
      forward: [N, n] weights: averages where the even slices are the thicker ones.
      backward: [n, N] weights.
      nearest: [N] numbers of the volume's slices that are nearest to the even ones.
    """

    def __init__(self, offsets: np.ndarray, gap: float, slice_spacing: float):
        """
        Args:
          offsets: [n] where the volume's slices lie, from 0 to n - 1 in units of their mean `gap`.
          gap, slice_spacing: mm.
        """
        n = len(offsets)
        count = math.ceil(round(n * gap / slice_spacing, 4))
        if count > LARGEST:
            raise InputError(
                f"every {slice_spacing:g} mm are {count} slices of a volume; take a slice spacing "
                f"of {n * gap / LARGEST:.2g} mm or more"
            )
        self.centres = _centres(count, slice_spacing)
        own = (offsets - (n - 1) / 2) * gap
        steps = np.diff(own)
        if np.ptp(steps) <= geometry.EVEN * gap:
            self.forward = _triangles(own, self.centres, max(gap, slice_spacing))
        else:
            # Uneven slices have no width that serves all: first straight lines between them, as
            # dense as they are themselves, and of these averages.
            finer = math.ceil(round(slice_spacing / np.median(steps), 4))
            fine = _centres(finer * count, slice_spacing / finer)
            average = _triangles(fine, self.centres, slice_spacing)
            self.forward = average @ _between(own, fine)
        self.backward = _triangles(self.centres, own, max(gap, slice_spacing))
        self.nearest = np.abs(self.centres[:, None] - own).argmin(1)
        self._coarser = slice_spacing >= COARSER * gap

    @functools.cached_property
    def sharp(self) -> csr_array:
        """`backward`, consistent with `forward` where the even slices are markedly thicker."""
        if not self._coarser:
            return self.backward
        return _consistent((self.backward, None), self.forward)[0]


def _are_so_far_apart(offsets: np.ndarray, gap: float, slice_spacing: float) -> bool:
    """Whether a volume's slices lie where even ones of that spacing would, but for rounding."""
    own = (offsets - (len(offsets) - 1) / 2) * gap
    return bool(
        np.abs(own - _centres(len(own), slice_spacing)).max() < geometry.EVEN * slice_spacing
    )


def _check_gaps(volume: Volume, places: np.ndarray) -> None:
    """Raise InputError for slices at places [n] in mm that have a gap among them.

    It is wider than the usual step and than both beside it: those of a scanner, which takes a part
    of the head in thinner slices, are no gaps.
    """
    steps = np.abs(np.diff(places))
    if len(steps) < 2:
        return
    beside = np.pad(steps, 1, mode="reflect")
    others = np.maximum(np.maximum(beside[:-2], beside[2:]), np.median(steps))
    gaps = steps > geometry.GAP * others
    if gaps.any():
        raise InputError(
            f"{volume.path}: its slices have a gap of {steps[gaps].max():.3g} mm, in which even "
            f"ones would be made up; give it without the slices on one side of it"
        )


def _mixed(weights: csr_array, slices: np.ndarray) -> np.ndarray:
    """Slices [N, H, W] of slices [n, H, W] by weights [N, n]; float32."""
    flat = np.ascontiguousarray(slices, np.float32).reshape(len(slices), -1)
    return (weights @ flat).reshape(-1, *slices.shape[1:])


def _centres(n: int, size: float) -> np.ndarray:
    """[n] mm from their middle, of samples of `size` mm side by side."""
    return (np.arange(n) - (n - 1) / 2) * size


def _triangles(centres: np.ndarray, centres_out: np.ndarray, width: float) -> csr_array:
    """Weights [n_out, n] of samples by their distance, which sum to 1; none from `width` mm on."""
    distance = np.abs(centres_out[:, None] - centres[None, :])
    weights = np.maximum(0, 1 - distance / width)
    weights /= np.maximum(weights.sum(1, keepdims=True), 1e-9)
    # Sparse: few samples count for one. Unlike those of BLAS, products take one core, and threads
    # that resample several volumes stay out of each other's way.
    return csr_array(weights.astype(np.float32))


def _between(centres: np.ndarray, centres_out: np.ndarray) -> csr_array:
    """Weights [n_out, n] of straight lines between samples at any places; level beyond the ends."""
    hats = np.eye(len(centres), dtype=np.float32)
    return csr_array(np.stack([np.interp(centres_out, centres, hat) for hat in hats], 1))


def _weights(n: int, size: float, n_out: int, size_out: float) -> tuple[csr_array, np.ndarray]:
    """Weights [n_out, n] from n samples of `size` mm to n_out of `size_out` mm, and cover [n_out].

    Both rows of samples share their middle. The weights are a triangle as wide as the larger
    sample, which interpolates when enlarging and averages when shrinking, and sum to 1, as in PIL
    and `jax.image.resize(antialias=True)`. The cover is the fraction of each output sample that
    lies inside the input's extent.
    """
    centre_out = _centres(n_out, size_out)
    weights = _triangles(_centres(n, size), centre_out, max(size, size_out))

    edge = n * size / 2
    left = np.maximum(centre_out - size_out / 2, -edge)
    right = np.minimum(centre_out + size_out / 2, edge)
    cover = np.clip((right - left) / size_out, 0, 1)
    return weights, cover.astype(np.float32)


def _consistent(backward, forward) -> tuple[csr_array, np.ndarray]:
    """`backward` with the weights that `forward` undoes: consistent sampling.

    Linear weights blur on the way to the volume, and averages blur again on the way to the grid: of
    a slice x, M x is left, M = forward backward. So x is replaced by the y that comes out nearest
    to it (consistent sampling, Unser & Aldroubi 1994, doi 10.1109/78.330352, for an M that has an
    inverse; the second term is for what linear weights cannot show):

        min_y |M y - x|^2 + SMOOTH |y - x|^2  =>  (M' M + SMOOTH) y = (M' + SMOOTH) x

    Rows sum to 1 as before.
    """
    weights, cover = backward
    product = (forward.astype(np.float64) @ weights).tolil()
    for row in np.flatnonzero(forward.sum(1) < 0.5):  # pixels beyond the volume stay as they are
        product[row, row] = 1
    product, same = product.tocsc(), SMOOTH * eye_array(product.shape[0], format="csc")
    normal = (product.T @ product + same).tocsc()
    sharp = ((product + same) @ splu(normal).solve(weights.T.toarray().astype(np.float64))).T
    sharp[np.abs(sharp) < LIGHT] = 0
    sharp /= np.maximum(sharp.sum(1, keepdims=True), 1e-9)
    return csr_array(sharp.astype(np.float32)), cover


def _nearest(n: int, size: float, n_out: int, size_out: float) -> np.ndarray:
    """Numbers [n_out] of the samples, n of `size` mm, that n_out of `size_out` mm have centres in.

    -1 where there is none. Both rows of samples share their middle. PIL picks, so that centres
    between two samples go where its resizing has them. Sizes come from headers, which round them: a
    row that covers the other up to rounding counts as covering it.
    """
    extent = round(n_out * size_out / size, 4)
    numbers = Image.fromarray(np.arange(1, n + 1, dtype=np.int32)[None])
    affine = (extent / n_out, 0, (n - extent) / 2, 0, 1, 0)
    nearest = Image.Resampling.NEAREST
    return np.asarray(numbers.transform((n_out, 1), Image.Transform.AFFINE, affine, nearest))[0] - 1


def _apply(sides, planes, fill: float) -> np.ndarray:
    """rows @ plane @ columns.T of planes [N, R, C], `fill` where not covered; float32 [N, H, W]."""
    (rows, row_cover), (columns, column_cover) = sides
    cover = np.outer(row_cover, column_cover)
    out = np.empty((len(planes), *cover.shape), np.float32)
    for first in range(0, len(planes), CHUNK):
        chunk = slice(first, first + CHUNK)
        # Put in order before the type changes: numpy does both at once far slower.
        part = np.ascontiguousarray(planes[chunk]).astype(np.float32, copy=False)
        for plane, target in zip(part, out[chunk], strict=True):
            target[:] = (columns @ (rows @ plane).T).T
    if cover.min() < 1:
        out *= cover
        if fill:
            out += np.float32(fill) * (1 - cover)
    return out
