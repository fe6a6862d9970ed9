# SPDX-License-Identifier: Apache-2.0
"""Sections of a report on an evaluation.

Each is a function of the evaluation that returns HTML, "" where nothing of the kind was measured.
SECTIONS lists them in the order of the page.
"""

import dataclasses
from collections.abc import Callable
from html import escape
from pathlib import Path

from contourdiff_jax.evaluation import verdict
from contourdiff_jax.evaluation.metrics import catalogue
from contourdiff_jax.reports import html, tables
from contourdiff_jax.runtime import disk

PANELS = 4  # panels shown, the first ones
VIEWS = 3  # subjects of which reformatted views are shown, the first ones


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a report shows of an evaluation.

    Attributes:
      metrics: content of metrics.json.
      folder: with its pictures; None where nothing that lies there belongs to it.
      figures: PNG files drawn of its rows, by the names of FIGURES.
    """

    metrics: dict
    folder: Path | None = None
    figures: dict[str, bytes] = dataclasses.field(default_factory=dict)

    @property
    def methods(self) -> dict:
        """{method: {metric: interval}}."""
        return self.metrics["methods"]

    @property
    def measured(self) -> list[str]:
        """The metrics that any method has."""
        return list(dict.fromkeys(name for scores in self.methods.values() for name in scores))

    def pictures(self, pattern: str) -> list[Path]:
        """Files of the folder that match, sorted."""
        return [] if self.folder is None else disk.entries(self.folder, pattern)


# --------------------------------------------------------------------------------------------------
# Scores
# --------------------------------------------------------------------------------------------------

READING = (
    "A row is one way to make the target's image of each subject. A number is the mean over the "
    "subjects, below it its 95% bootstrap interval, and how many subjects where some are missing. "
    "Bold: the best mean of its column; whether it is better than another is for the intervals to "
    "say."
)
ROWS = {
    "translation": "what the model draws from what it sees of the source, which its card says",
    "source": "the source itself, its greys as they are shown",
    "histogram": "the source, with the histogram of real target volumes",
    "curve": "likewise the picture in which the source's contours are sought, one table of greys",
    "mean": "the mean of real target volumes, which knows nothing of the subject but its extent",
    "truth": "the true target volume: its contours, and its own coherence; it does not compete",
    "real": "real target volumes of other subjects: their coherence, and how far apart halves of "
    "them lie (KID, FID); they do not compete",
}
SEGMENTERS_READING = (
    "A row is what segmenters were trained on; all are tested on the same real volumes. A number "
    "is the mean over the subjects of the mean over the seeds, below it its 95% bootstrap interval "
    "over the subjects, and how many subjects where some are missing: there is no distance from a "
    "label that was not found. Bold: the best mean of its column of the rows that compete."
)
SEGMENTERS_ROWS = {
    "translation": "segmenters trained on translations with the labels of what was translated, and "
    "tested on real volumes of the target",
    "lower": "segmenters trained on the untranslated sources: what the translation must beat",
    "upper": "segmenters trained on real volumes of the target with labels of their own: what it "
    "could reach at best; they do not compete",
    "grid": "the true labels through the segmenters' grid and back, which no segmenter on it can "
    "be much better than; it does not compete",
}
CONTOURS_READING = (
    "Read contour F1 against the rows mean and truth, not against 0 and 1: dense contours agree by "
    "chance, so that even the mean image scores far above 0, and the true image shows edges that "
    "the source lacks. A score above that of the truth says that the given contours were copied, "
    "not that the image is better."
)
NEEDED = {"mean": "--real", "truth": "--truth"}  # by evaluate, for these rows


def scores(evaluation: Evaluation) -> str:
    """The headline of all methods, how to read it, and other scores folded away."""
    methods = evaluation.methods
    metrics = catalogue.of_section(evaluation.measured, *catalogue.FIRST)
    headline = catalogue.headlines(metrics, *catalogue.FIRST)
    parts = [tables.table(methods, headline or metrics)] if metrics else []
    reading, rows = READING, ROWS
    if "dice" in metrics:
        reading, rows = SEGMENTERS_READING, SEGMENTERS_ROWS
    parts.append(_note(reading))
    terms = [f"<dt>{name}</dt><dd>{text}</dd>" for name, text in rows.items() if name in methods]
    if terms:
        parts.append(f"<dl>{''.join(terms)}</dl>")
    parts += [_note(escape(sentence)) for sentence in verdict.unbeaten(methods)]
    if "contour_f1" in metrics:
        missing = [f"{flag} for {row}" for row, flag in NEEDED.items() if row not in methods]
        hint = f" To have these rows here, evaluate with {' and '.join(missing)}."
        parts.append(_note(f"{CONTOURS_READING}{hint if missing else ''}"))
    if headline and len(metrics) > len(headline):
        parts.append(html.details("All metrics", tables.table(methods, metrics)))
    return "\n".join(parts)


def panels(evaluation: Evaluation) -> str:
    """The first subject's panel; those of the next ones are folded away."""
    paths = evaluation.pictures("panels/*.png")
    if not paths:
        return ""
    parts = ["<h3>Panels</h3>", *_pictures(paths[:PANELS])]
    if len(paths) > PANELS:
        more = f"{len(paths) - PANELS} more in {evaluation.folder.name}/panels."
        parts.append(_note(escape(more)))
    return "\n".join(parts)


FIGURES = {
    "subjects": "Every subject by itself; a line joins one subject's scores.",
    "slices": "Every slice by itself.",
}


def figures(evaluation: Evaluation) -> str:
    """The figures that were drawn of the rows."""
    return "\n".join(
        html.picture(evaluation.figures[name], caption)
        for name, caption in FIGURES.items()
        if name in evaluation.figures
    )


def labels(evaluation: Evaluation) -> str:
    """A table of methods by labels for each score of segmenters."""
    parts = []
    for family in catalogue.of_section(catalogue.METRICS, catalogue.LABELS):
        metrics = list(catalogue.labels(evaluation.measured, family).values())
        if metrics:
            parts.append(f"<h3>{catalogue.METRICS[family].heading} by label</h3>")
            parts.append(tables.table(evaluation.methods, metrics))
    return "\n".join(parts)


# --------------------------------------------------------------------------------------------------
# Whole volumes
# --------------------------------------------------------------------------------------------------

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
REGIONS_TITLES = (
    *("MAE", "MAE / body's", "PSNR [dB]", "signed error"),
    *("contrast, translation", "contrast, truth"),
)
UNCERTAINTY_READING = (
    "Inside the body. AUSE is the area between the two curves: 0 where the standard deviation "
    "ranks the errors right, as much as “by lot” where it knows nothing of them."
)


def coherence(evaluation: Evaluation) -> str:
    """Whether slices fit together: numbers, and views across the slices."""
    metrics = catalogue.of_section(evaluation.measured, catalogue.COHERENCE)
    headline = catalogue.headlines(metrics, catalogue.COHERENCE)
    if not headline:
        return ""
    parts = [f"<h3>{catalogue.COHERENCE}</h3>"]
    parts += [tables.table(evaluation.methods, headline), _note(COHERENCE_READING)]
    others = [metric for metric in metrics if metric not in headline]
    if others:
        text = "Differences from the truth (excess, 0 is right) and ratios to real volumes"
        parts.append(html.details(text, tables.table(evaluation.methods, others)))
    views = evaluation.pictures("views/*.png")[:VIEWS]
    if views:
        parts += [_note(VIEWS_READING), *_pictures(views)]
    return "\n".join(parts)


def regions(evaluation: Evaluation) -> str:
    """The labels beside the body: errors, and contrasts beside those of the truth."""
    ours, truth = (evaluation.methods.get(name, {}) for name in ("translation", "truth"))
    of_labels = catalogue.labels(ours, "mae_label_{label}")
    if not of_labels or "mae_body" not in ours:
        return ""
    rows = []
    for region in ("body", *(f"label_{number}" for number in of_labels)):
        entries = [ours.get(f"{metric}_{region}") for metric in ("mae", "psnr", "bias")]
        entries += [scores.get(f"contrast_{region}") for scores in (ours, truth)]
        cells = ["–" if entry is None else tables.number(entry) for entry in entries]
        body, here = ours["mae_body"]["value"], ours[f"mae_{region}"]["value"]
        cells.insert(1, f"{here / body:.2f}" if body else "–")
        rows.append(tables.row(region.replace("_", " "), cells))
    every = tables.table(evaluation.methods, list(of_labels.values()))
    return "\n".join(
        (
            "<h3>What the contours do not carry</h3>",
            tables.wide("translation", REGIONS_TITLES, rows),
            _note(REGIONS_READING),
            html.details("Labels of all methods", every),
        )
    )


def uncertainty(evaluation: Evaluation) -> str:
    """Whether standard deviations rank the errors."""
    metrics = catalogue.headlines(evaluation.measured, catalogue.UNCERTAINTY)
    if not metrics:
        return ""
    text = "Error left when the voxels of the largest standard deviation are left out."
    picture = ("sparsification.png", text)
    return _pictured(evaluation, catalogue.UNCERTAINTY, metrics, UNCERTAINTY_READING, picture)


# --------------------------------------------------------------------------------------------------
# The model
# --------------------------------------------------------------------------------------------------

MEMORY_READING = (
    "Distances of slices from the nearest training slice, in the model's range, and their ratio to "
    "that from the nearest slice of any other training subject: 0 for a copy. Closer, and lower, "
    "is the chance that a translated slice has the smaller number than a real slice that the model "
    "has not seen: 0.5 where they are alike. A smooth image is nearer to everything than a sharp "
    "one, by its distance; that does not make it a copy, and the ratio knows better. Low ratios "
    "are those below 95% of the real slices', which have 0.05 of them."
)
COST_READING = (
    "Median over the volumes, below it the fastest and the slowest. The first volume of a command "
    "includes the compilation; volumes that advance together share their time. Memory is the most "
    "that the command had held by then; –: not recorded, or not counted by the backend."
)


def memorisation(evaluation: Evaluation) -> str:
    """Whether the model repeats what it was trained on."""
    ours = evaluation.methods.get("translation", {})
    metrics = catalogue.headlines(ours, catalogue.MEMORISATION)
    if not metrics:
        return ""
    text = "The slice of the lowest ratio of each subject, and below it what it is nearest to."
    picture = ("nearest.png", text)
    return _pictured(evaluation, catalogue.MEMORISATION, metrics, MEMORY_READING, picture)


def cost(evaluation: Evaluation) -> str:
    """What a translation costs."""
    recorded = evaluation.metrics.get("cost")
    if not recorded:
        return ""
    cells = {
        "seconds a slice": tables.number(recorded["seconds a slice"]),
        "seconds a volume": tables.number(recorded["seconds a volume"]),
        "host memory": tables.gibibytes(recorded.get("host_bytes")),
        "device memory": tables.gibibytes(recorded.get("device_bytes")),
        "parameters": f"{recorded['parameters']:,}" if "parameters" in recorded else "–",
    }
    device = str(recorded.get("device", "device not recorded"))
    several = f"{recorded['devices']} x " if recorded.get("devices", 1) > 1 else ""
    row = tables.row(several + device, list(cells.values()))
    return "\n".join(
        ("<h3>Cost of a translation</h3>", tables.wide("", cells, [row]), _note(COST_READING))
    )


# --------------------------------------------------------------------------------------------------
# The record
# --------------------------------------------------------------------------------------------------


def provenance(evaluation: Evaluation) -> str:
    """What was compared, in words, and the command."""
    words = html.definitions(evaluation.metrics.get("data", {}))
    if "command" in evaluation.metrics:
        words += f"<pre>{escape(str(evaluation.metrics['command']))}</pre>"
    return html.details("What was compared, and how", words)


def versions(evaluation: Evaluation) -> str:
    """Versions of the packages that the numbers may depend on."""
    if "versions" not in evaluation.metrics:
        return ""
    return html.details("Versions", html.definitions(evaluation.metrics["versions"]))


SECTIONS: tuple[Callable[[Evaluation], str], ...] = (
    *(scores, panels, figures, labels),
    *(coherence, regions, uncertainty),
    *(memorisation, cost),
    *(provenance, versions),
)


def _note(text: str) -> str:
    """A paragraph of HTML that explains."""
    return f'<p class="note">{text}</p>'


def _pictures(paths: list[Path]) -> list[str]:
    """The first picture; others are folded away."""
    first, *others = (html.picture(html.read_png(path), path.stem) for path in paths)
    return [first] + ([html.details("More subjects", "".join(others))] if others else [])


def _pictured(evaluation: Evaluation, title: str, metrics, reading: str, picture) -> str:
    """A table of metrics, how to read it, and a picture: its file and its caption."""
    return "\n".join(
        (
            f"<h3>{title}</h3>",
            tables.table(evaluation.methods, metrics),
            _note(reading),
            *_captioned(evaluation, *picture),
        )
    )


def _captioned(evaluation: Evaluation, name: str, caption: str) -> list[str]:
    """The picture of that name, if there is one."""
    return [html.picture(html.read_png(path), caption) for path in evaluation.pictures(name)]
