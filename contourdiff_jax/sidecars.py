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
from pathlib import Path

from contourdiff_jax.data import intensity, volumes
from contourdiff_jax.data.contours import ContourSettings
from contourdiff_jax.data.grid import Grid
from contourdiff_jax.data.intensity import Preset, Window
from contourdiff_jax.data.volumes import UNKNOWN, Assumed
from contourdiff_jax.errors import InputError
from contourdiff_jax.layouts.scans import Scan

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
    cost: dict  # see cost.py; empty in those written before it was recorded
    training_subjects: frozenset[str]  # SHA-256 of their names
    weights: str = ""  # digest of the model's


def beside(scan: Scan) -> Path:
    """Where the sidecar of a translated scan lies: beside its file, or beside a series' folder."""
    first = scan.files[0]
    suffix = volumes.suffix_of(first)
    if suffix in volumes.DICOM:
        return scan.path.with_name(f"{scan.path.name}.json")
    if suffix in volumes.PICTURES:  # several pictures share a folder with those of others
        return first.with_name(f"{scan.stem}.json")
    return first.with_name(f"{volumes.stem(first)}.json")


def read(scan: Scan) -> Sidecar | None:
    """The sidecar of a translated scan, None where there is none; InputError if damaged."""
    file = beside(scan)
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read as JSON: {volumes.reason(error)}") from error
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
