# SPDX-License-Identifier: Apache-2.0
"""What a report says of segmenters: Dice and surface distances of each label.

Arguments are the methods of a metrics.json, {method: {metric: interval}}.
"""

import re

from contourdiff_jax.reports import tables

OF_LABEL = re.compile(r"(dice|assd|hd95)_(\d+)")

ROWS = {
    "translation": "segmenters trained on translations with the labels of what was translated, and "
    "tested on real volumes of the target",
    "lower": "segmenters trained on the untranslated sources: what the translation must beat",
    "upper": "segmenters trained on real volumes of the target with labels of their own: what it "
    "could reach at best; they do not compete",
    "grid": "the true labels through the segmenters' grid and back, which no segmenter on it can "
    "be much better than; it does not compete",
}
READING = (
    "A row is what segmenters were trained on; all are tested on the same real volumes. A number "
    "is the mean over the subjects of the mean over the seeds, below it its 95% bootstrap interval "
    "over the subjects, and how many subjects where some are missing: there is no distance from a "
    "label that was not found. Bold: the best mean of its column of the rows that compete."
)


def concerns(metric: str) -> bool:
    """Whether a metric is shown here."""
    return OF_LABEL.fullmatch(metric) is not None


def sections(methods: dict) -> list[str]:
    """A table of methods by labels for each kind of score; none where nothing was segmented."""
    names = dict.fromkeys(name for scores in methods.values() for name in scores)
    of_kind = {}
    for name in names:
        if match := OF_LABEL.fullmatch(name):
            of_kind.setdefault(match[1], []).append((int(match[2]), name))
    parts = []
    for kind, numbered in of_kind.items():
        parts.append(f"<h3>{tables.TITLES[kind]} by label</h3>")
        parts.append(tables.table(methods, [name for _, name in sorted(numbered)]))
    return parts
