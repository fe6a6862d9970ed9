# SPDX-License-Identifier: Apache-2.0
"""METRICS: what each metric is called, its unit, which way is better, and where reports show it.

Metrics whose names differ in a part are a family, listed once with that part in braces:

    {label}  number of a label          {axis}  'axial', 'coronal' or 'sagittal'
    {count}  number of images           {name}  of a network's weights, or of a file of features

A metric that is not listed is shown by its name, without a direction.
"""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from contourdiff_jax.volumes.grid import AXES

# Sections of what is printed and of a report, by their titles, in their order.
ERRORS, CONTOURS = "Against the truth", "Contours of the source"
DISTANCES, SEGMENTERS = "Distance from real images", "Segmenters"
OTHERS, CHALLENGES, LABELS = "Other scores", "As challenges score volumes", "By label"
COHERENCE, REGIONS = "Coherence along the slice axis", "Voxels of the body and of labels"
UNCERTAINTY, MEMORISATION = "Does the uncertainty rank the errors?", "Memorisation"
SCORES = (ERRORS, CONTOURS, DISTANCES, SEGMENTERS, OTHERS)
FIRST = (*SCORES, CHALLENGES)  # share one table of a report
SECTIONS = (*FIRST, LABELS, COHERENCE, REGIONS, UNCERTAINTY, MEMORISATION)

ARROWS = {min: " ↓", max: " ↑", None: ""}


class Metric(NamedTuple):
    """An entry of the catalogue: a metric, or a family.

    Attributes:
      better: min or max; None where neither is, but the value that a right volume has.
      title: in words; "" where its name will do.
      unit: of its values; "" for fractions of the intensity window, shares and ratios.
      section: of SECTIONS.
      headline: whether it stands in the section's first table, in the order of METRICS; others are
        folded away, or not printed.
    """

    better: Callable | None
    title: str = ""
    unit: str = ""
    section: str = ERRORS
    headline: bool = False

    @property
    def heading(self) -> str:
        """Title and unit."""
        return f"{self.title} [{self.unit}]" if self.unit else self.title


METRICS = {
    # Images against the truth: inside the body, over the whole slice.
    "ssim_mask": Metric(max, "SSIM in the body", headline=True),
    "psnr_mask": Metric(max, "PSNR in the body", "dB", headline=True),
    "mae_mask": Metric(min, "MAE in the body", headline=True),
    "mae_hu_mask": Metric(min, "MAE in the body", "HU", headline=True),
    # Where each slice fits its truth best, near its own place.
    "ssim_shifted": Metric(max, "SSIM in the body, shifted", headline=True),
    "psnr_shifted": Metric(max, "PSNR in the body, shifted", "dB", headline=True),
    "mae_shifted": Metric(min),
    "ssim": Metric(max),
    "psnr": Metric(max, unit="dB"),
    "mae": Metric(min),
    "mae_hu": Metric(min, unit="HU"),
    # Agreement with the source's contours.
    "contour_f1": Metric(max, "contour F1", section=CONTOURS, headline=True),
    "contour_precision": Metric(max, section=CONTOURS),
    "contour_recall": Metric(max, section=CONTOURS),
    # Distances from real images.
    "kid": Metric(min, "KID", section=DISTANCES, headline=True),
    "kid_{axis}": Metric(min, section=DISTANCES),
    "fid": Metric(min, "FID", section=DISTANCES, headline=True),
    "fid_{axis}": Metric(min, section=DISTANCES),
    # Segmenters: the mean over labels, and each label.
    "dice": Metric(max, "Dice", section=SEGMENTERS, headline=True),
    "assd": Metric(min, "ASSD", "mm", section=SEGMENTERS, headline=True),
    "hd95": Metric(min, "HD95", "mm", section=SEGMENTERS, headline=True),
    "dice_{label}": Metric(max, "Dice", section=LABELS),
    "assd_{label}": Metric(min, "ASSD", "mm", section=LABELS),
    "hd95_{label}": Metric(min, "HD95", "mm", section=LABELS),
    # As challenges score volumes.
    "synthrad_mae": Metric(min, "MAE, SynthRAD", section=CHALLENGES, headline=True),
    "synthrad_psnr": Metric(max, "PSNR, SynthRAD", "dB", section=CHALLENGES, headline=True),
    "synthrad_ssim": Metric(max, "SSIM, SynthRAD", section=CHALLENGES, headline=True),
    "synthrad_ms_ssim": Metric(max, "MS-SSIM, SynthRAD", section=CHALLENGES, headline=True),
    # Distances at the number of images of the floor, and by other features than KID's and FID's.
    "fid_at_{count}": Metric(min, section=DISTANCES, headline=True),
    "fid_at_{count}_{axis}": Metric(min, section=DISTANCES),
    "kernel_{name}": Metric(min, section=DISTANCES, headline=True),
    "kernel_{name}_{axis}": Metric(min, section=DISTANCES),
    "frechet_{name}": Metric(min, section=DISTANCES, headline=True),
    "frechet_{name}_{axis}": Metric(min, section=DISTANCES),
    # Along the slicing axis, and in planes across the slices.
    "ssim_mask_{axis}": Metric(max, "SSIM", section=COHERENCE, headline=True),
    "error_flicker": Metric(min, "flicker of the error", section=COHERENCE, headline=True),
    "error_drift": Metric(min, "drift of the error", section=COHERENCE, headline=True),
    "flicker": Metric(None, section=COHERENCE, headline=True),
    "slice_difference": Metric(None, "slice difference", "1/mm", COHERENCE, headline=True),
    "gradient_ratio": Metric(None, section=COHERENCE, headline=True),
    "gradient_energy": Metric(None, "gradient energy", "1/mm²", COHERENCE, headline=True),
    "level_step": Metric(None, section=COHERENCE, headline=True),
    **{
        f"{metric}_{of}": Metric(None, section=COHERENCE)
        for metric in (
            *("flicker", "slice_difference", "gradient_ratio"),
            *("gradient_energy", "level_step"),
        )
        for of in ("excess", "to_real")  # less the truth's, over that of real volumes
    },
    "psnr_mask_{axis}": Metric(max, unit="dB", section=COHERENCE),
    "mae_mask_{axis}": Metric(min, section=COHERENCE),
    # Inside the body and each label, over the voxels of a volume.
    **{
        f"{metric}_{region}": Metric(better, title, unit, REGIONS)
        for metric, better, title, unit in (
            *(("mae", min, "MAE", ""), ("psnr", max, "PSNR", "dB")),
            ("bias", None, "signed error", ""),
        )
        for region in ("body", "label_{label}")
    },
    "contrast_label_{label}": Metric(None, "contrast", section=REGIONS),
    # Whether the standard deviation knows the errors.
    "uncertainty_spearman": Metric(
        max, "Spearman of standard deviation and error", section=UNCERTAINTY, headline=True
    ),
    "ause": Metric(min, "AUSE", section=UNCERTAINTY, headline=True),
    "ause_chance": Metric(None, "AUSE by lot", section=UNCERTAINTY, headline=True),
    # Whether training slices are repeated.
    **{
        f"memory_{metric}": Metric(None, title, section=MEMORISATION, headline=True)
        for metric, title in (
            ("distance", "distance from the nearest training slice"),
            ("closer", "closer than unseen real slices"),
            ("ratio", "ratio to the nearest of another subject"),
            ("closer_ratio", "lower ratio than unseen real slices"),
            ("low_ratios", "share of low ratios"),
        )
    },
}
UNKNOWN = Metric(None, section=OTHERS)

PARTS = {"label": r"\d+", "axis": "|".join(AXES), "count": r"\d+", "name": ".+"}
FAMILIES = {
    family: re.compile(re.sub(r"{(\w+)}", lambda m: f"(?P<{m[1]}>{PARTS[m[1]]})", family))
    for family in METRICS
    if "{" in family
}
ORDER = {name: number for number, name in enumerate(METRICS)}


def _key(metric: str) -> tuple[str, dict[str, str]]:
    """The key of METRICS that a metric belongs to, and the parts of its name; "" of none."""
    if metric in METRICS:
        return metric, {}
    # The later, the more there is to match: kernel_{name} comes before kernel_{name}_{axis}.
    for family, pattern in reversed(FAMILIES.items()):
        if match := pattern.fullmatch(metric):
            return family, match.groupdict()
    return "", {}


def of(metric: str) -> Metric:
    """The entry of a metric."""
    return METRICS.get(_key(metric)[0], UNKNOWN)


def title(metric: str) -> str:
    """What a metric is called, with its unit: "PSNR in the body [dB]", "ASSD [mm], label 7"."""
    family, parts = _key(metric)
    entry = METRICS.get(family, UNKNOWN)
    if not entry.title:
        return entry._replace(title=metric.replace("_", " ")).heading
    member = [f"label {part}" if kind == "label" else part for kind, part in parts.items()]
    return ", ".join([entry.heading, *member])


def directed(metric: str) -> str:
    """What a metric is called, with an arrow to where it is better."""
    return f"{title(metric)}{ARROWS[of(metric).better]}"


def of_section(metrics: Iterable[str], *sections: str) -> list[str]:
    """Those of the metrics that belong to the sections, in the order given."""
    return [metric for metric in metrics if of(metric).section in sections]


def headlines(metrics: Iterable[str], *sections: str) -> list[str]:
    """Those of the metrics that stand in the sections' first table, in the order of METRICS."""
    shown = [metric for metric in of_section(metrics, *sections) if of(metric).headline]
    return sorted(shown, key=lambda metric: ORDER[_key(metric)[0]])


def label(metric: str, family: str) -> int | None:
    """The label of a metric of that family; None of another metric."""
    match = FAMILIES[family].fullmatch(metric)
    return match and int(match["label"])


def labels(metrics: Iterable[str], family: str) -> dict[int, str]:
    """{label: metric} of those of the metrics that belong to a family, in the order of labels."""
    numbers = {metric: label(metric, family) for metric in metrics}
    return dict(sorted((n, metric) for metric, n in numbers.items() if n is not None))
