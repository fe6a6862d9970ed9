# SPDX-License-Identifier: Apache-2.0
"""What a report says of whole volumes: coherence along the axis, regions, and uncertainty.

Arguments are the methods of a metrics.json, {method: {metric: interval}}, and its folder, None
where nothing that lies there belongs to it. Results are HTML, "" where nothing was measured.
"""

import html
import re
from pathlib import Path

from contourdiff_jax.reports import html as webpage
from contourdiff_jax.reports import tables
from contourdiff_jax.volumes.grid import AXES

VIEWS = 3  # subjects of which reformatted views are shown, the first ones
ACROSS = tuple(f"_{axis}" for axis in AXES)  # ends of the names of metrics in reformatted planes
LABEL = re.compile(r"mae_label_\d+")

# Along the axis, in order; numbers of differences from the truth and real volumes are folded away.
COHERENCE = (
    "error_flicker",
    "error_drift",
    "flicker",
    "slice_difference",
    "gradient_ratio",
    "level_step",
)
COHERENCE_READING = (
    "Along the slicing axis, on the model's grid, inside the body; intensities are fractions of "
    "the window. Flicker is the mean second difference of neighbouring slices, the slice "
    "difference their mean absolute difference per mm, the gradient ratio that over the gradient "
    "within slices, and the level step the root mean square of the median change from slice to "
    "slice. None of these is better low: smooth the volume and they fall. They are right where "
    "those of the truth are, or without one, those of real volumes with the same distance between "
    "slices. Flicker and drift of the error are those of the difference from the truth, where "
    "anatomy drops out: lower is better, though an image that is smooth along the axis, however "
    "wrong, has no more flicker of the error than the truth has flicker."
)
VIEWS_READING = (
    "Planes through the middle of the body across the slices, in true proportions. What was drawn "
    "slice by slice and does not fit together shows as stripes."
)
REGIONS_READING = (
    "Over all voxels of a volume, mean of the subjects, in fractions of the intensity window. The "
    "signed error is the mean of translation - truth. The contrast is the mean inside the label "
    "less that of the most frequent label within a few mm: what the source's contours do not show "
    "has the truth's contrast only by chance, however small its error is."
)
UNCERTAINTY_READING = (
    "Inside the body. AUSE is the area between the two curves: 0 where the standard deviation "
    "ranks the errors right, as much as “by lot” where it knows nothing of them."
)


def concerns(metric: str) -> bool:
    """Whether a metric is shown here."""
    return (
        metric.startswith((*COHERENCE, "bias", "contrast", "uncertainty", "ause"))
        or metric.endswith(("_body", *ACROSS))
        or metric.startswith(("mae_label_", "psnr_label_"))
    )


def sections(methods: dict, folder: Path | None) -> list[str]:
    """Everything that the metrics allow."""
    return [_coherence(methods, folder), _regions(methods), _uncertainty(methods, folder)]


def _coherence(methods: dict, folder: Path | None) -> str:
    names = _names(methods)
    across = [name for name in names if name.endswith(ACROSS)]
    shown = [name for name in across if name.startswith("ssim")]
    shown += [name for name in COHERENCE if name in names]
    if not shown:
        return ""
    parts = ["<h3>Coherence along the slice axis</h3>", tables.table(methods, shown)]
    parts.append(f'<p class="note">{COHERENCE_READING}</p>')
    more = [name for name in names if name.startswith(COHERENCE) or name in across]
    more = [name for name in more if name not in shown]
    if more:
        words = "Differences from the truth (excess, 0 is right) and ratios to real volumes"
        parts.append(webpage.details(words, tables.table(methods, more)))
    views = sorted((folder / "views").glob("*.png"))[:VIEWS] if folder is not None else []
    if views:
        first, *others = (webpage.picture(webpage.read_png(path), path.stem) for path in views)
        parts += [f'<p class="note">{VIEWS_READING}</p>', first]
        if others:
            parts.append(webpage.details("More subjects", "".join(others)))
    return "\n".join(parts)


def _regions(methods: dict) -> str:
    """The labels beside the body: errors, and contrasts beside those of the truth."""
    ours, truth = methods.get("translation", {}), methods.get("truth", {})
    labels = sorted(int(name.removeprefix("mae_label_")) for name in ours if LABEL.fullmatch(name))
    if not labels or "mae_body" not in ours:
        return ""
    lines = []
    for region in ("body", *(f"label_{number}" for number in labels)):
        entries = [ours.get(f"{metric}_{region}") for metric in ("mae", "psnr", "bias")]
        entries += [scores.get(f"contrast_{region}") for scores in (ours, truth)]
        cells = ["–" if entry is None else tables.number(entry) for entry in entries]
        body, here = ours["mae_body"]["value"], ours[f"mae_{region}"]["value"]
        cells.insert(1, f"{here / body:.2f}" if body else "–")
        cells = "".join(f"<td>{cell}</td>" for cell in cells)
        lines.append(f"<tr><th>{region.replace('_', ' ')}</th>{cells}</tr>")
    titles = ("MAE", "MAE / body's", "PSNR [dB]", "signed error")
    titles += ("contrast, translation", "contrast, truth")
    head = "".join(f"<th>{title}</th>" for title in titles)
    metrics = [f"mae_label_{number}" for number in labels]
    return "\n".join(
        (
            "<h3>What the contours do not carry</h3>",
            tables.wide("translation", head, lines),
            f'<p class="note">{REGIONS_READING}</p>',
            webpage.details("Labels of all methods", tables.table(methods, metrics)),
        )
    )


def _uncertainty(methods: dict, folder: Path | None) -> str:
    shown = [name for name in _names(methods) if name.startswith(("uncertainty", "ause"))]
    if not shown:
        return ""
    parts = ["<h3>Does the uncertainty rank the errors?</h3>", tables.table(methods, shown)]
    parts.append(f'<p class="note">{html.escape(UNCERTAINTY_READING)}</p>')
    curve = folder / "sparsification.png" if folder is not None else None
    if curve is not None and curve.is_file():
        text = "Error left when the voxels of the largest standard deviation are left out."
        parts.append(webpage.picture(webpage.read_png(curve), text))
    return "\n".join(parts)


def _names(methods: dict) -> list[str]:
    return list(dict.fromkeys(name for scores in methods.values() for name in scores))
