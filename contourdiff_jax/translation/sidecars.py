# SPDX-License-Identifier: Apache-2.0
"""Sidecars: the JSON files beside translated volumes, which say what these are and how made.

    {"schema", "notice", "subject", "source": {"name", "sha256"}, "preset": {"source", "target"},
     "assumed": {"spacing", "range", "half" where it was given}, "window": [low, high], "grid",
     "contours": {"source", "target"}, "checkpoint": {"step", "images", "digest"}, "sampler",
     "finishing": {"contrast", "normalise": [mean, std] or null}, "method",
     "sees": [what of the source], "training": "paired" or "unpaired",
     "seed", "training_subjects", "slices", "seconds", "cost", "versions", "config",
     "files": {path in OUT: seal}}

Nothing of the source's header is in it. "window" is the translation's in its native units.
"""

import dataclasses
import json
import os
import statistics
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from contourdiff_jax import config as configuration
from contourdiff_jax.contours.settings import ContourSettings
from contourdiff_jax.data import pseudonyms
from contourdiff_jax.data.layouts import marks
from contourdiff_jax.data.layouts.scans import Scan
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import forms
from contourdiff_jax.translation.finishing import Finishing
from contourdiff_jax.volumes import filenames, intensity
from contourdiff_jax.volumes.grid import Grid
from contourdiff_jax.volumes.intensity import Preset, Window
from contourdiff_jax.volumes.volume import UNKNOWN, Assumed

SCHEMA = 1
NOTICE = marks.NOTICE  # by which layouts know a translation
FORMERLY = {"training_subjects_sha256": "training_subjects"}  # fields by what they were called
SIDES = ("source", "target")
KINDS = {False: "unpaired", True: "paired"}  # of training data
TRANSLATE = "translate again"
FORM = {
    "preset": {"source": str, "target": str},
    "window": tuple[float, float],
    "grid": Grid,
    "contours": {"source": ContourSettings, "target": ContourSettings},
    "slices": int,
    "seconds": float,
    "assumed?": Assumed,
    "cost?": {
        **dict.fromkeys(("parameters?", "devices?"), int),
        **dict.fromkeys(("host_bytes?", "device_bytes?"), int | None),
        "device?": str,
    },
    **dict.fromkeys(("training_subjects?", "training_subjects_sha256?"), tuple[str, ...]),
    "checkpoint?": {"digest?": str},
    "subject?": str,
    **dict.fromkeys(("method?", "training?"), str),
    "sees?": tuple[str, ...],
    "finishing?": Finishing,
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all translated volumes of a folder have in common."""

    source: Preset | None  # None where nothing says it
    target: Preset
    grid: Grid
    contours: dict[str, ContourSettings]  # by side, 'source' and 'target'
    assumed: Assumed = UNKNOWN  # what the source, where it is of pictures, does not say

    def to_dict(self) -> dict:
        """As fields of a sidecar."""
        return {
            "preset": {"source": self.source.name, "target": self.target.name},
            "assumed": self.assumed.to_dict(),
            "grid": self.grid.to_dict(),
            "contours": {side: settings.to_dict() for side, settings in self.contours.items()},
        }


@dataclasses.dataclass(frozen=True)
class Sidecar:
    """What `translate` wrote beside a volume."""

    settings: Settings
    window: Window  # of the translation, in its native units
    seconds: float  # that a slice took to translate
    slices: int
    cost: dict  # see `cost`; empty where it was not recorded yet
    training_subjects: frozenset[str]  # their pseudonyms
    weights: str = ""  # digest of the model's
    subject: str = ""  # whose volume was translated, where it says


def beside(scan: Scan) -> Path:
    """The path of a translated scan's sidecar: beside its file, or a series' folder."""
    first = scan.files[0]
    suffix = filenames.suffix_of(first)
    if suffix in filenames.DICOM:
        return scan.path.with_name(f"{scan.path.name}.json")
    if suffix in filenames.PICTURES:  # those of several scans share a folder
        return first.with_name(f"{scan.stem}.json")
    return first.with_name(f"{filenames.stem(first)}.json")


def states(sidecar: Mapping, wanted: Mapping) -> bool:
    """Whether a sidecar, as its JSON is read, has all `wanted` fields.

    Those of the configuration that are newer than the sidecar have their defaults in it.
    """
    return _complete(wanted).items() <= _complete(sidecar).items()


def _complete(fields: Mapping) -> dict:
    """Fields as JSON has them, with all fields of today's configuration."""
    fields = _renamed(fields)
    try:
        config = configuration.from_dict(configuration.of_before(fields["config"]))
    except (KeyError, InputError):
        return dict(fields)
    sections = {"config": config.to_dict(), "sampler": config.sampler.to_dict()}
    # Before these were told, nothing was learnt from pairs, and nothing finished.
    seen = configuration.of_source(config.model.conditions)
    told = {"method": config.method, "sees": seen, "finishing": Finishing().to_dict()}
    fields = {**told, "training": KINDS[False], **fields}
    return forms.parsed(json.dumps({**fields, **sections}))


def _renamed(fields: Mapping) -> dict:
    return {FORMERLY.get(name, name): value for name, value in fields.items()}


def read(scan: Scan) -> Sidecar | None:
    """The sidecar of a translated scan, None where there is none; InputError if damaged."""
    file = beside(scan)
    if not os.path.exists(file):
        return None
    fields = forms.read(file, FORM, TRANSLATE, SCHEMA)
    with forms.naming(file, TRANSLATE):
        if "unfinished" in fields:
            raise InputError("its translation was interrupted")
        if fields["slices"] < 1:
            raise InputError(f"slices: {fields['slices']}, where there is one at least")
        source, target = (intensity.preset(fields["preset"][side]) for side in SIDES)
        assumed = fields.get("assumed", UNKNOWN)
        known = _renamed(fields).get("training_subjects", ())
        return Sidecar(
            Settings(source, target, fields["grid"], fields["contours"], assumed),
            window=Window(*fields["window"]),
            seconds=fields["seconds"] / fields["slices"],
            slices=fields["slices"],
            cost=fields.get("cost", {}),
            training_subjects=frozenset(pseudonyms.checked(known)),
            weights=fields.get("checkpoint", {}).get("digest", ""),
            subject=fields.get("subject", ""),
        )


def check_one_model(translated: Iterable[tuple[Path, Sidecar | None]]) -> None:
    """InputError for volumes that several models translated: their scores would be no model's."""
    path_of = {one.weights: path for path, one in translated if one is not None and one.weights}
    if len(path_of) > 1:
        first, second, *_ = path_of.values()
        raise InputError(
            f"{second}: translated by another model than {first.name}; give the translations of "
            f"one model"
        )


# --------------------------------------------------------------------------------------------------
# Cost
# --------------------------------------------------------------------------------------------------

# Only where a volume is translated is JAX imported: reports need none.


def cost(parameters: int) -> dict:
    """What a sidecar says of a run's networks and of the machine, up to now.

    Args:
      parameters: of all that is held to draw with: a ControlNet's base and a codec, too.
    """
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
    """The cost of the translations that sidecars are of; empty where there is no sidecar.

    Returns:
      {"seconds a slice", "seconds a volume": {"value": median, "low": least, "high": most, "n"}};
      "parameters", "device" and "devices" where all sidecars agree; the largest "host_bytes" and
      "device_bytes".
    """
    known = [sidecar for sidecar in sidecars if sidecar is not None]
    if not known:
        return {}
    summary = {
        "seconds a slice": _spread([sidecar.seconds for sidecar in known]),
        "seconds a volume": _spread([sidecar.seconds * sidecar.slices for sidecar in known]),
    }
    recorded = [sidecar.cost for sidecar in known if sidecar.cost]
    for name in ("parameters", "device", "devices"):
        values = {cost.get(name) for cost in recorded}
        if len(values) == 1 and None not in values:
            summary[name] = values.pop()
    for name in ("host_bytes", "device_bytes"):
        peaks = [cost[name] for cost in recorded if cost.get(name) is not None]
        if peaks:
            summary[name] = max(peaks)
    return summary


def _spread(values: list[float]) -> dict:
    middle, least, most = statistics.median(values), min(values), max(values)
    return {"value": middle, "low": least, "high": most, "n": len(values)}
