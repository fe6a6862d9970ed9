# SPDX-License-Identifier: Apache-2.0
"""Tables of a report: methods by metrics with their intervals, in HTML; what a metric is called."""

import html

from contourdiff_jax.evaluation.metrics import bootstrap
from contourdiff_jax.volumes.grid import AXES

REFERENCES = ("truth", "real", "upper", "grid")  # rows that do not compete

TITLES = {
    "ssim_mask": "SSIM in the body",
    "psnr_mask": "PSNR in the body [dB]",
    "mae_mask": "MAE in the body",
    "mae_hu_mask": "MAE in the body [HU]",
    "contour_f1": "contour F1",
    "synthrad_mae": "MAE, SynthRAD",
    "synthrad_psnr": "PSNR, SynthRAD [dB]",
    "synthrad_ssim": "SSIM, SynthRAD",
    "synthrad_ms_ssim": "MS-SSIM, SynthRAD",
    "dice": "Dice",
    "assd": "ASSD [mm]",
    "hd95": "HD95 [mm]",
    "kid": "KID",
    "fid": "FID",
    **{f"ssim_mask_{axis}": f"SSIM, {axis}" for axis in AXES},
    "slice_difference": "slice difference [1/mm]",
    "error_flicker": "flicker of the error",
    "error_drift": "drift of the error",
    "uncertainty_spearman": "Spearman of standard deviation and error",
    "ause": "AUSE",
    "ause_chance": "AUSE by lot",
    "memory_distance": "distance from the nearest training slice",
    "memory_closer": "closer than unseen real slices",
    "memory_ratio": "ratio to the nearest of another subject",
    "memory_closer_ratio": "lower ratio than unseen real slices",
    "memory_low_ratios": "share of low ratios",
}
# Beginnings of the names of metrics; what is in neither is better the higher it is.
LOWER_IS_BETTER = ("mae", "synthrad_mae", "kid", "fid", "assd", "hd95", "error", "ause")


LOWER_IS_BETTER += ("kernel", "frechet")


# These are right at the value that a right volume has, neither lower nor higher.
NEITHER = ("slice_difference", "gradient_ratio", "flicker", "level", "bias", "contrast")


NEITHER += ("ause_chance", "memory")


def table(methods: dict, metrics: list[str]) -> str:
    """HTML table of methods by metrics with intervals; the best of each column is bold.

    Methods that have none of the metrics have no row.
    """
    head = "".join(f"<th>{html.escape(label(metric))}</th>" for metric in metrics)
    methods = {
        name: scores for name, scores in methods.items() if not scores.keys().isdisjoint(metrics)
    }
    counts = {
        name: max(scores[metric]["n"] for metric in metrics if metric in scores)
        for name, scores in methods.items()
    }
    # Real volumes are those of other subjects, and as many as there are.
    most = max([n for name, n in counts.items() if name != "real"] or counts.values())
    lines = []
    for method, scores in methods.items():
        cells = []
        for metric in metrics:
            entry = scores.get(metric)
            if entry is None:
                cells.append("<td>–</td>")
                continue
            few = f" n = {entry['n']}" if entry["n"] != most else ""
            cells.append(f"<td>{number(entry, method in _best(methods, metric), few)}</td>")
        ours = ' class="ours"' if method == "translation" else ""
        lines.append(f"<tr{ours}><th>{html.escape(method)}</th>{''.join(cells)}</tr>")
    return wide(f"{most} subject{'s' * (most != 1)}", head, lines)


def wide(corner: str, head: str, lines: list[str]) -> str:
    """The HTML of a table that may be wider than the page: of its head's cells and its rows."""
    return (
        f'<div class="wide"><table><thead><tr><th>{html.escape(corner)}</th>{head}</tr>'
        f"</thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def number(entry: dict, bold: bool = False, note: str = "") -> str:
    """An interval in a cell: its value, below it the rest."""
    value, _, interval = bootstrap.text(entry).partition(" ")
    return f"{f'<b>{value}</b>' if bold else value} <small>{interval}{note}</small>"


def label(metric: str) -> str:
    """What a metric is called, with an arrow to where it is better."""
    arrow = {min: " ↓", max: " ↑", None: ""}[better(metric)]
    name, _, number = metric.rpartition("_")
    if number.isdigit() and name in TITLES:
        return f"{TITLES[name]}, label {number}{arrow}"
    return f"{TITLES.get(metric, metric.replace('_', ' '))}{arrow}"


def better(metric: str):
    """Whether a metric is better low or high: min, max, or None for neither."""
    if metric.startswith(NEITHER):
        return None
    return min if metric.startswith(LOWER_IS_BETTER) else max


def _best(methods: dict, metric: str) -> set[str]:
    """The methods with the best mean; none where there is nothing to be better than."""
    better_of = better(metric)
    values = {
        method: scores[metric]["value"]
        for method, scores in methods.items()
        if metric in scores and method not in REFERENCES
    }
    if better_of is None or len(values) < 2:
        return set()
    best = better_of(values.values())
    return {method for method, value in values.items() if value == best}
