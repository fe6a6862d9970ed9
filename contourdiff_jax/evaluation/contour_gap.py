# SPDX-License-Identifier: Apache-2.0
"""How contours of a source differ from those a model is trained on, before it is trained.

The gap is 1 where the source's contours are as unlike the target's as those of the target's own
subjects are unlike each other.
"""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
from tqdm import tqdm

from contourdiff_jax import __version__
from contourdiff_jax.contours import settings as contour_settings
from contourdiff_jax.contours.settings import ContourSettings
from contourdiff_jax.data.store import Store, open_store
from contourdiff_jax.errors import InputError
from contourdiff_jax.evaluation.metrics import gap
from contourdiff_jax.runtime import disk
from contourdiff_jax.volumes.intensity import Window

SCHEMA = 1  # of statistics.json
SLICES = 240  # of a store that are looked at, evenly spaced
SHEET = 6  # slices of a row of the contact sheet
SHOWN = {"ct": Window(-150, 250), "mr": Window(0, 1)}  # black and white on it

# What is searched: the presets' windows and curves, with these.
HIGH = (25, 35, 50, 70, 100, 140, 200)
LOW = (0.25, 0.5, 1.0)  # of high
BLUR = (3, 5)


# --------------------------------------------------------------------------------------------------
# Domains
# --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Domain:
    """The slices of a store that are looked at, and how their contours are taken."""

    store: Store
    rows: np.ndarray  # [n]
    settings: ContourSettings

    @property
    def masks(self) -> np.ndarray:
        """[n, H, W] bool."""
        return self.store.masks[self.rows] > 0

    def contours(self, settings: ContourSettings | None = None) -> np.ndarray:
        """[n, H, W] of 0 and 1, with the domain's settings or others."""
        return self.store.contours_of(self.rows, settings or self.settings)

    def counts(self, drawn: np.ndarray, frames: list) -> list[dict[str, np.ndarray]]:
        """Counts of every subject's contours [n, H, W], see `gap.measure`."""
        owners = self.store.index["subject"][self.rows]
        return [
            gap.measure(
                drawn[owners == name],
                [frame for frame, owner in zip(frames, owners, strict=True) if owner == name],
            )
            for name in np.unique(owners)
        ]


def domain(path: str | Path, given: str | None = None, split: str | None = None) -> Domain:
    """A store with the settings given, its own or its modality's; of `split`, if it has that.

    Raises InputError where no body or no contour is to be seen, or `given` cannot be had.
    """
    store = open_store(path)
    settings = store.contour_settings
    if given is not None:
        settings = contour_settings.named(given, store.preset.modality)
    elif settings is None:
        settings = contour_settings.preset("default", store.preset.modality)
    if not settings.served_by(store.contour_settings):
        name = given or "default"
        raise InputError(
            f"{path}: prepared without the contours of {name}, which need the volumes' own "
            f"voxels; prepare again with --contours={name}"
        )
    rows = np.arange(len(store))
    if split is not None and store.rows(split).size:
        rows = store.rows(split)
    rows = rows[store.masks[rows].mean((1, 2)) >= gap.LEAST_BODY]
    if not rows.size:
        raise InputError(f"{path}: no slice shows a body; look at it with `contourdiff inspect`")
    chosen = np.linspace(0, rows.size - 1, min(SLICES, rows.size)).round().astype(int)
    found = Domain(store, rows[chosen], settings)
    if not (found.contours() * found.masks).any():
        raise InputError(
            f"{path}: its contours are empty; lower the thresholds low={settings.low:g} and "
            f"high={settings.high:g}, or see whether its values lie in the windows"
        )
    return found


# --------------------------------------------------------------------------------------------------
# Measuring
# --------------------------------------------------------------------------------------------------


def describe(target: Domain) -> dict:
    """What statistics.json holds of one domain."""
    unit = gap.unit(target.masks)
    counts = target.counts(target.contours(), gap.frames(target.masks, unit))
    return _head(target, unit) | {"target": _entry(target, target.settings, unit, counts)}


def compare(source: Domain, target: Domain) -> dict:
    """What statistics.json holds of two domains: the gap, and settings that make it smaller.

    Raises InputError for stores on different grids and a target of one subject only.
    """
    if source.store.grid != target.store.grid:
        mine, other = (_grid(each.store) for each in (source, target))
        raise InputError(
            f"{source.store.path}: on a grid of {mine}, but {target.store.path} is on one of "
            f"{other}; prepare it again on that"
        )
    unit = gap.unit(target.masks)
    theirs = target.counts(target.contours(), gap.frames(target.masks, unit))
    if len(theirs) < 2:
        raise InputError(
            f"{target.store.path}: holds one subject only; the gap is measured in differences "
            "between subjects of the target, of which it takes two"
        )
    yardstick, target_total = gap.yardstick(theirs), gap.total(theirs)
    if min(yardstick.values()) == 0:
        raise InputError(
            f"{target.store.path}: its subjects are the same to the bit, so that they cannot be "
            "what the gap is measured in; leave out the copies"
        )
    frames = gap.frames(source.masks, unit)

    def tried(settings):
        counts = source.counts(source.contours(settings), frames)
        return _entry(source, settings, unit, counts) | {
            "gap": gap.gap(gap.total(counts), target_total, yardstick)
        }

    now = tried(source.settings)
    search = [
        tried(settings) for settings in tqdm(candidates(source), unit=" settings", disable=None)
    ]
    best = min([now, *search], key=lambda entry: entry["gap"]["gap"])
    return _head(target, unit) | {
        "target": _entry(target, target.settings, unit, theirs),
        "source": now,
        "suggested": best,
        "structural_bias": {
            "value": gap.structural_bias(source.masks, target.masks),
            "formula": gap.STRUCTURAL_BIAS,
        },
        "search": [{"contours": e["contours"], "gap": e["gap"]["gap"]} for e in search],
    }


def candidates(source: Domain) -> list[ContourSettings]:
    """Settings to be tried: windows and curves of the presets and the domain's, all thresholds."""
    modality = source.store.preset.modality
    known = [
        source.settings,
        *(contour_settings.preset(n, modality) for n in contour_settings.PRESETS),
    ]
    families = {
        dataclasses.replace(settings, low=0, high=0, blur=blur)
        for settings in known
        for blur in BLUR
        if not settings.native and settings.served_by(source.store.contour_settings)
    }
    return [
        dataclasses.replace(family, low=low * high, high=high)
        for family, high, low in itertools.product(sorted(families, key=repr), HIGH, LOW)
    ]


def _head(target: Domain, unit: int) -> dict:
    return {
        "schema": SCHEMA,
        "version": __version__,
        "grid": dataclasses.asdict(target.store.grid),
        "unit_mm": unit * target.store.grid.spacing,
    }


def _entry(domain: Domain, settings: ContourSettings, unit: int, counts: list[dict]) -> dict:
    width = unit * domain.store.grid.spacing
    return {
        "modality": domain.store.preset.modality,
        "subjects": len(counts),
        "slices": len(domain.rows),
        "contours": settings.to_dict(),
        "statistics": gap.statistics(gap.total(counts), width),
    }


def _grid(store: Store) -> str:
    grid = store.grid
    return f"{grid.size} px of {grid.spacing:g} mm, {grid.axis}"


def save(out: Path, found: dict, target: Domain, source: Domain | None) -> None:
    """Writes statistics.json and contact_sheet.png, and of two domains contours.json."""
    from contourdiff_jax import figures

    parts = [("target", target, target.settings)]
    if source is not None:
        suggested = ContourSettings.from_dict(found["suggested"]["contours"])
        parts += [("source", source, source.settings), ("suggested", source, suggested)]
    rows = []
    for name, part, settings in parts:
        title = f"{name}, {part.store.preset.modality.upper()}"
        if "gap" in found[name]:
            title += f"\ngap {found[name]['gap']['gap']:.2f}"
        rows.append((title, *_seen(part, settings)))
    with disk.folder(out) as folder:
        disk.write_json(folder / "statistics.json", found)
        (folder / "contact_sheet.png").write_bytes(figures.png(figures.contact_sheet(rows)))
        if source is not None:
            disk.write_json(folder / "contours.json", suggested.to_dict())


def _seen(domain: Domain, settings: ContourSettings) -> tuple[np.ndarray, np.ndarray]:
    """Pictures [n, H, W] in [0, 1] and contours of the first subject, evenly spaced."""
    owners = domain.store.index["subject"][domain.rows]
    first = np.flatnonzero(owners == owners[0])
    # The ends of a volume show little.
    shown = first[np.linspace(0.1, 0.9, SHEET).dot(len(first) - 1).round().astype(int)]
    window = SHOWN[domain.store.preset.modality]
    pictures = window.fraction(domain.store.values(domain.rows[shown]))
    return pictures, domain.contours(settings)[shown]
