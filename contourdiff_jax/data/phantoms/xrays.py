# SPDX-License-Identifier: Apache-2.0
"""What X-rays make of a slice: the errors of a CT that is reconstructed from counted photons.

A picture in HU is taken for water and bone. Photons of several energies go through both on straight
lines, are counted, and the counts, corrected for water as a scanner does, are projected back. Only
the errors are: what the counts say too much or too little. They are those of clinical CT, each
where it belongs: noise that neighbours share, most of it in the middle and along rays that little
light gets through; brain that is brighter under the skull, and dark bands between dense bones,
because bone hardens the beam.

Parallel rays in the planes of the slices (Kak and Slaney, Principles of Computerized Tomographic
Imaging, 1988, chapter 3). Shapes: X, Y, Z voxels; A angles; T readings of the detector at an angle.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import fft, sparse

# Attenuation [1/mm] of water and of cortical bone of 1.92 g/cm3 (Hubbell and Seltzer, NISTIR 5632)
# at 40, 50, 60, 80 and 100 keV, and the shares of a filtered beam of 120 kVp with these energies.
WATER = np.array((0.02683, 0.02269, 0.02059, 0.01837, 0.01707))
BONE = np.array((0.1278, 0.0814, 0.0604, 0.0428, 0.0356))
SHARES = np.array((0.10, 0.22, 0.28, 0.25, 0.15))
LONGEST = 500.0  # mm of water that is told from more
HEAD = 150.0  # mm of water behind which bone is seen with its own HU
SOFT = 100.0  # HU, above which a voxel holds bone
SCANS = 0.7  # of the logarithm of photons
POINT_SPREAD = 1.2  # mm, full width at half maximum in plane


@dataclasses.dataclass(frozen=True)
class Beam:
    """How a scanner takes its readings.

    Attributes:
      photons: that would reach a mm2 of the detector through air, at all angles together: the
        median over scans, which differ by a standard deviation of SCANS in its logarithm.
      hardening: share of the error by hardening and scatter that the scanner's own corrections
        leave.
      scatter: scattered photons in every reading, as a share of those through air.
      gain: relative standard deviation of the detector's sensitivity; it draws rings.
    """

    photons: float
    hardening: float
    scatter: float = 0.0
    gain: float = 0.0


CLINICAL = Beam(photons=1e8, hardening=0.7)
# As radiotherapy has it: a flat panel that sees scatter, and a fraction of the dose.
CONE_BEAM = Beam(photons=3e6, hardening=0.5, scatter=0.002, gain=0.001)


def errors(
    image: np.ndarray, spacing: Sequence[float], rng: np.random.Generator, beam: Beam
) -> np.ndarray:
    """HU [X, Y, Z] float32 that `beam` adds to a picture in HU whose voxels are `spacing` mm."""
    pitch = min(spacing[:2])
    side = max(image.shape[:2])
    angles = np.pi * (np.arange(3 * side // 2) + 0.5) / (3 * side // 2)
    pixels = [
        (np.arange(n) - (n - 1) / 2) * s for n, s in zip(image.shape[:2], spacing, strict=False)
    ]
    detector = int(np.hypot(*(np.ptp(p) for p in pixels)) / pitch) + 4  # readings
    planes = image.reshape(-1, image.shape[2])

    def spread(angle):
        """[T, X Y]: how much of each pixel a reading at this angle sees, in readings."""
        at = np.cos(angle) * pixels[0][:, None] + np.sin(angle) * pixels[1]
        at = at.ravel() / pitch + (detector - 1) / 2
        first = at.astype(np.int32)
        share = (at - first).astype(np.float32)
        rows = np.stack([first, first + 1], 1).ravel()
        weights = np.stack([1 - share, share], 1).ravel()
        ends = np.arange(0, 2 * len(at) + 1, 2)
        return sparse.csc_array((weights, rows, ends), shape=(detector, len(at)))

    bone = np.clip(planes - SOFT, 0, None) / (1000 * (_seen_bone() - 1) - SOFT)
    water = 1 + planes / 1000 - bone * _seen_bone()
    both = np.concatenate([water, bone], 1).astype(np.float32)
    area = spacing[0] * spacing[1] / pitch  # mm that a pixel adds to a reading
    lengths = np.stack([spread(angle) @ both for angle in angles]) * area  # [A, T, 2 Z]
    photons = beam.photons * np.exp(SCANS * rng.standard_normal()) * pitch * spacing[2]
    readings = _misread(*np.split(lengths, 2, axis=2), rng, beam, photons / len(angles))
    readings = _filtered(readings, pitch)
    found = sum(spread(angle).T @ reading for angle, reading in zip(angles, readings, strict=True))
    return (1000 * np.pi / len(angles) * found).reshape(image.shape)


def _seen_bone() -> float:
    """Attenuation of bone over that of water, as the beam has it behind a head."""
    behind = SHARES * np.exp(-WATER * HEAD)
    return behind @ BONE / (behind @ WATER)


def _misread(water, bone, rng, beam, photons):
    """mm of water [A, T, Z] that readings say more than there is; `photons` each through air."""
    straight = sum(
        share * np.exp(-np.float32(of_water) * water - np.float32(of_bone) * bone)
        for share, of_water, of_bone in zip(SHARES, WATER, BONE, strict=True)
    )
    counted = straight + beam.scatter
    # The scanner's own table of water. It rises with length, and the logarithm with that.
    length = np.arange(0, LONGEST, 0.5)
    table = -np.log(SHARES @ np.exp(-np.outer(WATER, length)))
    told = np.interp(-np.log(counted), table, length)
    wrong = beam.hardening * (told - water - _seen_bone() * bone)
    # Counts are Poisson's: the relative error of n is the root of 1 / n. On a logarithm it is
    # absolute, and in mm the table's slope there.
    counts = np.maximum(photons * straight, 1)
    noise = rng.standard_normal(straight.shape, dtype=np.float32) / np.sqrt(counts)
    half = rng.standard_normal((straight.shape[1] + 1) // 2, dtype=np.float32)
    gain = beam.gain * np.concatenate([half[::-1], half[straight.shape[1] % 2 :]])
    slope = np.interp(told, length, np.gradient(table, length))
    return (wrong + (noise + gain[:, None]) / slope).astype(np.float32)


def _filtered(readings, pitch):
    """Readings [A, T, Z] through the ramp and a scanner's point spread, in 1/mm."""
    count = fft.next_fast_len(2 * readings.shape[1], real=True)
    n = np.minimum(np.arange(count), count - np.arange(count))
    # Kak and Slaney, eq. 61: the ramp's own samples, which keep its mean.
    ramp = np.where(n % 2 == 1, -1 / (np.pi * np.where(n == 0, 1, n) * pitch) ** 2, 0)
    ramp[0] = 1 / (4 * pitch**2)
    frequency = fft.rfftfreq(count, pitch)
    sharpness = np.exp(-2 * (np.pi * frequency * POINT_SPREAD / 2.355) ** 2)
    response = (fft.rfft(ramp).real * sharpness * pitch).astype(np.float32)
    spectrum = fft.rfft(readings, count, axis=1) * response[:, None]
    return fft.irfft(spectrum, count, axis=1)[:, : readings.shape[1]]
