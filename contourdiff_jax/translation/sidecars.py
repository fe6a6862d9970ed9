# SPDX-License-Identifier: Apache-2.0
"""Sidecars: the JSON beside every translated volume that says what it is and how it was made.

    {"schema", "notice", "subject", "source": {"name", "sha256"}, "preset": {"source", "target"},
     "assumed": {"spacing", "range"}, "window": [low, high], "grid",
     "contours": {"source", "target"}, "checkpoint": {"step", "images", "digest"}, "sampler",
     "seed", "training_subjects_sha256", "slices", "seconds", "cost", "versions", "config"}

Nothing of the source's header is in it. "window" is the translation's in its native units.
"""

import dataclasses
import json
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

from contourdiff_jax.contours.settings import ContourSettings
from contourdiff_jax.data.layouts.scans import Scan
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk
from contourdiff_jax.volumes import filenames, intensity
from contourdiff_jax.volumes.grid import Grid
from contourdiff_jax.volumes.intensity import Preset, Window
from contourdiff_jax.volumes.volume import UNKNOWN, Assumed

SCHEMA = 1
NOTICE = "Synthetic images, not for diagnosis."


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all translated volumes of a folder have in common."""

    source: Preset | None
    target: Preset
    grid: Grid
    contours: dict[str, ContourSettings]  # of 'source' and 'target'
    assumed: Assumed = UNKNOWN  # what the source's pictures, if it was such, do not say


@dataclasses.dataclass(frozen=True)
class Sidecar:
    """What `translate` wrote beside a volume."""

    settings: Settings
    window: Window  # of the translation, in its native units
    seconds: float  # that a slice took to translate
    slices: int
    cost: dict  # see `cost`; empty in those written before it was recorded
    training_subjects: frozenset[str]  # SHA-256 of their names
    weights: str = ""  # digest of the model's


def beside(scan: Scan) -> Path:
    """Where the sidecar of a translated scan lies: beside its file, or beside a series' folder."""
    first = scan.files[0]
    suffix = filenames.suffix_of(first)
    if suffix in filenames.DICOM:
        return scan.path.with_name(f"{scan.path.name}.json")
    if suffix in filenames.PICTURES:  # several pictures share a folder with those of others
        return first.with_name(f"{scan.stem}.json")
    return first.with_name(f"{filenames.stem(first)}.json")


def read(scan: Scan) -> Sidecar | None:
    """The sidecar of a translated scan, None where there is none; InputError if damaged."""
    file = beside(scan)
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read as JSON: {disk.reason(error)}") from error
    if not isinstance(fields, dict) or fields.get("schema") != SCHEMA:
        raise InputError(f"{file}: not a sidecar of schema {SCHEMA}; translate again")
    try:
        low, high = map(float, fields["window"])
        if not low < high:
            raise ValueError(f"window {low} to {high}")
        settings = Settings(
            **{side: intensity.preset(fields["preset"][side]) for side in ("source", "target")},
            grid=Grid(**fields["grid"]),
            contours={
                side: ContourSettings.from_dict(fields["contours"][side])
                for side in ("source", "target")
            },
            assumed=Assumed.from_dict(fields.get("assumed", {})),
        )
        return Sidecar(
            settings,
            window=Window(low, high),
            seconds=fields["seconds"] / fields["slices"],
            slices=fields["slices"],
            cost=dict(fields.get("cost", {})),
            training_subjects=frozenset(fields.get("training_subjects_sha256", ())),
            weights=fields.get("checkpoint", {}).get("digest", ""),
        )
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(
            f"{file}: a damaged sidecar ({type(error).__name__}: {error}); translate again"
        ) from error


# --------------------------------------------------------------------------------------------------
# Cost
# --------------------------------------------------------------------------------------------------

# JAX is imported where a translation has it anyway: summaries do without.


def cost(parameters: int) -> dict:
    """What a sidecar says of a network with so many parameters and of the machine, so far."""
    import jax

    return {
        "parameters": parameters,
        "device": jax.devices()[0].device_kind,
        "devices": jax.local_device_count(),
        "host_bytes": _host_bytes(),
        "device_bytes": _device_bytes(),
    }


def _host_bytes() -> int | None:
    try:
        import resource
    except ImportError:  # of Unix alone
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # Linux counts in KiB


def _device_bytes() -> int | None:
    """None on CPUs, whose memory is the host's."""
    import jax

    counted = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [stats["peak_bytes_in_use"] for stats in counted if "peak_bytes_in_use" in stats]
    return max(peaks, default=None)


def cost_summary(sidecars: Iterable[Sidecar | None]) -> dict:
    """What the sidecars of an evaluation say; empty where there is none.

    Returns:
      {"seconds a slice", "seconds a volume": {"value": median, "low": least, "high": most, "n"}},
      and where sidecars have them "parameters", "device", "devices", and the largest "host_bytes"
      and "device_bytes".
    """
    known = [sidecar for sidecar in sidecars if sidecar is not None]
    if not known:
        return {}
    found = {
        "seconds a slice": _spread([sidecar.seconds for sidecar in known]),
        "seconds a volume": _spread([sidecar.seconds * sidecar.slices for sidecar in known]),
    }
    recorded = [sidecar.cost for sidecar in known if sidecar.cost]
    for name in ("parameters", "device", "devices"):
        values = {cost.get(name) for cost in recorded}
        if len(values) == 1 and None not in values:
            found[name] = values.pop()
    for name in ("host_bytes", "device_bytes"):
        peaks = [cost[name] for cost in recorded if cost.get(name) is not None]
        if peaks:
            found[name] = max(peaks)
    return found


def _spread(values: list[float]) -> dict:
    middle, least, most = statistics.median(values), min(values), max(values)
    return {"value": middle, "low": least, "high": most, "n": len(values)}
