# SPDX-License-Identifier: Apache-2.0
"""Several evaluations beside one another: the best first, and how far the others are from it.

Only evaluations of the same subjects that were scored alike are compared. Subjects are paired,
because they differ from one another by more than methods do.
"""

from html import escape
from pathlib import Path

from contourdiff_jax.evaluation import records
from contourdiff_jax.evaluation.metrics import bootstrap, catalogue
from contourdiff_jax.evaluation.records import Record
from contourdiff_jax.reports import tables

METHOD = "translation"
# Fields of the data that must be equal for numbers to be of one kind; labels are of segmenters.
ALIKE = (
    *("target preset", "grid of the comparison", "intensities", "body mask", "ssim", "psnr"),
    "labels",
)
GRID = "model grid"  # must be one too where images were compared on it
OWN_VOXELS = "the source's own"  # what evaluate says of the grid where they were not
# Agreement with the source's contours is of one kind where these are the same contours.
CONTOURS = ("contour_precision", "contour_recall", "contour_f1")
OF_CONTOURS = (GRID, "source preset", "contour settings")
READING = (
    "The best mean first. Below, each one's difference from the first, paired by subject: its mean "
    "with a 95% bootstrap interval over subjects, and the two-sided p of Wilcoxon's signed-rank "
    "test, adjusted by Holm's method for the number of tests in the table."
)


def names(paths: list[Path]) -> list[str]:
    """What to call evaluations by their metrics.json: as few folders as tell these apart."""
    folders = [path.parent.parts for path in paths]
    count = 1
    while len({parts[-count:] for parts in folders}) < len(set(folders)):
        count += 1
    return ["/".join(parts[-count:]) for parts in folders]


def section(compared: list[Record], metrics: list[str]) -> str:
    """The comparison, HTML, by those of `metrics` that all evaluations have of the same subjects.

    Where it would mislead it says why there is none.
    """
    means = {one.name: _by_subject(one) for one in compared}
    shared = _shared(compared, means, metrics)
    why = _obstacle(compared)
    if not why and not shared:
        why = "they have no metric of single subjects in common"
    if why:
        return f'<h2>Comparison</h2>\n<p class="note">Not compared: {escape(why)}.</p>'
    entries = {
        name: {metric: bootstrap.interval(list(values[metric].values())) for metric in shared}
        for name, values in means.items()
    }
    first = shared[0]
    highest = catalogue.of(first).better is max
    order = sorted(entries, key=lambda name: entries[name][first]["value"], reverse=highest)
    return "\n".join(
        (
            "<h2>Comparison</h2>",
            tables.table({name: entries[name] for name in order}, shared),
            f'<p class="note">{READING}{_few(entries[order[0]][first]["n"])}</p>',
            _differences(order, means, shared),
        )
    )


def _obstacle(compared: list[Record]) -> str:
    """Why evaluations cannot be compared; "" where they can."""
    subjects = {
        one.name: {row["subject"] for row in one.rows if row["method"] == METHOD}
        for one in compared
    }
    for name, scored in subjects.items():
        if not scored:
            return f"{name} has no rows.csv with scores of translations beside its metrics"
    every = set.union(*subjects.values())
    lacking = [
        f"{name} lacks {', '.join(sorted(every - scored))}"
        for name, scored in subjects.items()
        if scored != every
    ]
    if lacking:
        return f"the subjects differ ({'; '.join(lacking)}); evaluate the same ones for each"
    for field in ALIKE if _on_own_voxels(compared) else (*ALIKE, GRID):
        if not _alike(compared, field):
            listed = "; ".join(f"{one.name}: {_data(one).get(field)}" for one in compared)
            return f"they differ in the {field} ({listed})"
    return ""


def _shared(compared: list[Record], means: dict, metrics: list[str]) -> list[str]:
    """Metrics that all evaluations have, of the same subjects and with the same meaning."""
    shared = [
        metric
        for metric in metrics
        if all(metric in values for values in means.values())
        and len({tuple(values[metric]) for values in means.values()}) == 1
    ]
    if not all(_alike(compared, field) for field in OF_CONTOURS):
        shared = [metric for metric in shared if metric not in CONTOURS]
    return shared


def _alike(compared: list[Record], field: str) -> bool:
    """Whether a field of their data is the same in all."""
    first, *others = (_data(one).get(field) for one in compared)
    return all(other == first for other in others)


def _on_own_voxels(compared: list[Record]) -> bool:
    """Whether images were compared on the source's voxels, whatever the model's grid."""
    return all(_data(one).get("grid of the comparison") == OWN_VOXELS for one in compared)


def _data(one: Record) -> dict:
    return one.metrics.get("data", {})


def _by_subject(one: Record) -> dict[str, dict[str, float]]:
    """{metric: {subject: mean}} of the translations, subjects sorted."""
    fields = records.COLUMNS[:5]
    rows = [tuple(map(row.get, fields)) for row in one.rows if row["method"] == METHOD]
    return records.by_subject(rows, _data(one).get(records.SUBJECTS)).get(METHOD, {})


def _few(subjects: int) -> str:
    """A sentence on what so few subjects cannot show; "" where there are enough."""
    least = bootstrap.least_p(subjects)
    if least < 0.05:
        return ""
    return f" With {subjects} subjects no p, even of one test, can be below {least:.2g}."


def _differences(order: list[str], means: dict, metrics: list[str]) -> str:
    """The table of differences from the first."""
    best, *others = order
    tested = [
        [
            bootstrap.difference(*(list(means[name][metric].values()) for name in (other, best)))
            for metric in metrics
        ]
        for other in others
    ]
    adjusted = iter(bootstrap.holm([entry["p"] for line in tested for entry in line]))
    rows = []
    for other, line in zip(others, tested, strict=True):
        cells = [f"{tables.number(e)} <small>{_p(next(adjusted))}</small>" for e in line]
        rows.append(tables.row(other, cells))
    return tables.wide(f"less {best}", map(catalogue.directed, metrics), rows)


def _p(value: float) -> str:
    return "p &lt; 0.001" if value < 0.001 else f"p = {value:.2g}"
