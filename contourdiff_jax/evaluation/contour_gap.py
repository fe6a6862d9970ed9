# SPDX-License-Identifier: Apache-2.0
"""How contours of a source differ from those that a model is trained on, before it is trained.

The gap is 1 where the source's contours are as unlike the target's as those of the target's own
subjects are unlike each other.

Shapes: n slices looked at, H rows, W columns.
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
from contourdiff_jax.runtime import disk, ownership
from contourdiff_jax.volumes.intensity import Window

SCHEMA = 1  # of statistics.json
MADE = "a comparison of contours"  # by which the folder of one is known
SLICES = 240  # of a store that are looked at, evenly spaced
SHEET = 6  # slices of a row of the contact sheet
SHOWN = {"ct": Window(-150, 250), "mr": Window(0, 1)}  # black and white on it

# Of the translations of experiments/009_gap those with a gap below NEAR had four fifths or more of
# the SSIM that the target's own contours gave, those above FAR three quarters at best.
NEAR, FAR = 3.0, 6.0
CLEARLY = 0.8  # of the gap as it is: settings that leave less are worth taking
FEWEST = {"target": 5, "source": 3}  # subjects without whom a gap says little; so many it had there

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

    def counts(self, contours: np.ndarray, frames: list) -> list[dict[str, np.ndarray]]:
        """Counts of every subject's contours [n, H, W], see `gap.measure`."""
        owners = self.store.index["subject"][self.rows]
        return [
            gap.measure(
                contours[owners == name],
                [frame for frame, owner in zip(frames, owners, strict=True) if owner == name],
            )
            for name in np.unique(owners)
        ]


def domain(path: str | Path, contours: str | None = None, split: str | None = None) -> Domain:
    """The slices of a store that are looked at.

    Args:
      path: of the store.
      contours: a JSON file of settings or the name of a preset; default: those that the store was
        prepared with, else its modality's.
      split: whose slices; all where the store has none of it.

    Raises InputError where no body or no contour is to be seen, and for contours that need voxels
    which the store does not hold.
    """
    store = open_store(path)
    settings = store.contour_settings
    if contours is not None:
        settings = contour_settings.named(contours, store.preset.modality)
    elif settings is None:
        settings = contour_settings.preset("default", store.preset.modality)
    if not settings.served_by(store.contour_settings):
        name = contours or "default"
        raise InputError(
            f"{path}: prepared without the contours of {name}, which need the volumes' own "
            f"voxels; `prepare --contours={name}` again"
        )
    rows = np.arange(len(store))
    if split is not None and store.rows(split).size:
        rows = store.rows(split)
    rows = rows[store.masks[rows].mean((1, 2)) >= gap.LEAST_BODY]
    if not rows.size:
        raise InputError(f"{path}: no slice shows a body; look at it with `contourdiff inspect`")
    chosen = np.linspace(0, rows.size - 1, min(SLICES, rows.size)).round().astype(int)
    looked_at = Domain(store, rows[chosen], settings)
    if not (looked_at.contours() * looked_at.masks).any():
        raise InputError(
            f"{path}: its contours are empty; lower the thresholds low={settings.low:g} and "
            f"high={settings.high:g}, or see whether its values lie in the windows"
        )
    return looked_at


# --------------------------------------------------------------------------------------------------
# Measuring
# --------------------------------------------------------------------------------------------------


def describe(target: Domain) -> dict:
    """The content of statistics.json for one domain."""
    unit = gap.unit(target.masks)
    counts = target.counts(target.contours(), gap.frames(target.masks, unit))
    return _head(target, unit) | {"target": _entry(target, target.settings, unit, counts)}


def compare(source: Domain, target: Domain) -> dict:
    """The content of statistics.json for two domains: the gap, and settings that make it smaller.

    Raises InputError for stores on different grids, and for a target of one subject or of copies.
    """
    if source.store.grid != target.store.grid:
        grids = [_grid(domain.store) for domain in (source, target)]
        raise InputError(
            f"{source.store.path}: on a grid of {grids[0]}, but {target.store.path} is on one of "
            f"{grids[1]}; prepare it again on that"
        )
    unit = gap.unit(target.masks)
    target_counts = target.counts(target.contours(), gap.frames(target.masks, unit))
    if len(target_counts) < 2:
        raise InputError(
            f"{target.store.path}: holds one subject only; the gap is measured in differences "
            "between subjects of the target, of which it takes two"
        )
    yardstick, target_total = gap.yardstick(target_counts), gap.total(target_counts)
    if min(yardstick.values()) == 0:
        raise InputError(
            f"{target.store.path}: its subjects are the same to the bit, so that they cannot be "
            "what the gap is measured in; leave out the copies"
        )
    frames = gap.frames(source.masks, unit)

    def entry_of(settings):
        counts = source.counts(source.contours(settings), frames)
        return _entry(source, settings, unit, counts) | {
            "gap": gap.gap(gap.total(counts), target_total, yardstick)
        }

    current = entry_of(source.settings)
    settings_tried = tqdm(candidates(source), unit=" settings", disable=None)
    search = [entry_of(settings) for settings in settings_tried]
    best = min([current, *search], key=lambda entry: entry["gap"]["gap"])
    return _head(target, unit) | {
        "target": _entry(target, target.settings, unit, target_counts),
        "source": current,
        "suggested": best,
        "structural_bias": {
            "value": gap.structural_bias(source.masks, target.masks),
            "formula": gap.STRUCTURAL_BIAS,
        },
        "search": [{"contours": entry["contours"], "gap": entry["gap"]["gap"]} for entry in search],
    }


def taken(statistics: dict) -> str:
    """Which settings to translate with: suggested where they are clearly nearer, or source."""
    own, suggested = (statistics[name]["gap"]["gap"] for name in ("source", "suggested"))
    return "suggested" if suggested < CLEARLY * own else "source"


def lacking(statistics: dict) -> list[str]:
    """Words for each domain of too few subjects to judge by."""
    return [
        f"{statistics[name]['subjects']} of the {name} where it takes {least}"
        for name, least in FEWEST.items()
        if statistics[name]["subjects"] < least
    ]


def verdict(statistics: dict) -> str:
    """A sentence on two domains: how near their contours are, and which settings to take."""
    if few := lacking(statistics):
        return f"none, with {' and '.join(few)} subjects: look at the contact sheet instead."
    choice, own = taken(statistics), statistics["source"]["gap"]["gap"]
    gap = statistics[choice]["gap"]["gap"]
    numbers = f"{gap:.1f}{f' instead of {own:.1f}' if choice == 'suggested' else ''}"
    numbers = f"gap {numbers}; near is below {NEAR:g}, far above {FAR:g}"
    if gap > FAR:
        return (
            f"far, whatever is set ({numbers}): translations would follow wrong outlines; look at "
            "the contact sheet, prepare both of the same region, or try settings of your own."
        )
    place = "near" if gap < NEAR else "neither near nor far"
    advice = {"source": "keep the source's settings", "suggested": "take the suggested settings"}
    return f"{place} ({numbers}): {advice[choice]}."


def candidates(source: Domain) -> list[ContourSettings]:
    """Settings to try: the windows and curves of the domain and the presets, at all thresholds."""
    modality = source.store.preset.modality
    presets = (contour_settings.preset(name, modality) for name in contour_settings.PRESETS)
    families = {
        dataclasses.replace(settings, low=0, high=0, blur=blur)
        for settings in (source.settings, *presets)
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
        "grid": target.store.grid.to_dict(),
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
    return f"{grid.size} px of {grid.spacing:g} mm, {grid.axis}{grid.every}"


def save(out: Path, statistics: dict, target: Domain, source: Domain | None) -> None:
    """Writes statistics.json and contact_sheet.png, and for two domains contours.json."""
    from contourdiff_jax import figures

    parts = [("target", target, target.settings)]
    if source is not None:
        suggested = ContourSettings.from_dict(statistics["suggested"]["contours"])
        parts += [("source", source, source.settings), ("suggested", source, suggested)]
    rows = []
    for name, domain, settings in parts:
        title = f"{name}, {domain.store.preset.modality.upper()}"
        if "gap" in statistics[name]:
            title += f"\ngap {statistics[name]['gap']['gap']:.2f}"
        rows.append((title, *_sheet(domain, settings)))
    with ownership.folder(out, MADE) as folder:
        disk.write_json(folder / "statistics.json", statistics)
        (folder / "contact_sheet.png").write_bytes(figures.png(figures.contact_sheet(rows)))
        if source is not None:
            disk.write_json(folder / "contours.json", suggested.to_dict())


def _sheet(domain: Domain, settings: ContourSettings) -> tuple[np.ndarray, np.ndarray]:
    """Pictures [n, H, W] in [0, 1] and contours of the first subject, evenly spaced."""
    owners = domain.store.index["subject"][domain.rows]
    first = np.flatnonzero(owners == owners[0])
    # The ends of a volume show little.
    shown = first[np.linspace(0.1, 0.9, SHEET).dot(len(first) - 1).round().astype(int)]
    window = SHOWN[domain.store.preset.modality]
    pictures = window.fraction(domain.store.values(domain.rows[shown]))
    return pictures, domain.contours(settings)[shown]
