# SPDX-License-Identifier: Apache-2.0
"""Tables of a report: methods by metrics with their intervals, in HTML."""

from html import escape

from contourdiff_jax.evaluation.metrics import bootstrap, catalogue

REFERENCES = ("truth", "real", "upper", "grid")  # rows that do not compete


def table(methods: dict, metrics: list[str]) -> str:
    """HTML table of methods by metrics with intervals; the best of each column is bold.

    Methods that have none of the metrics have no row.
    """
    methods = {
        name: scores for name, scores in methods.items() if not scores.keys().isdisjoint(metrics)
    }
    counts = {
        name: max(scores[metric]["n"] for metric in metrics if metric in scores)
        for name, scores in methods.items()
    }
    # Real volumes are those of other subjects, and as many as there are.
    most = max([n for name, n in counts.items() if name != "real"] or counts.values())
    best = {metric: _best(methods, metric) for metric in metrics}
    lines = []
    for method, scores in methods.items():
        cells = []
        for metric in metrics:
            entry = scores.get(metric)
            if entry is None:
                cells.append("–")
                continue
            few = f" n = {entry['n']}" if entry["n"] != most else ""
            cells.append(number(entry, method in best[metric], few))
        lines.append(row(method, cells, ' class="ours"' if method == "translation" else ""))
    return wide(f"{most} subject{'s' * (most != 1)}", map(catalogue.directed, metrics), lines)


def wide(corner: str, titles, rows: list[str]) -> str:
    """The HTML of a table that may be wider than the page, of its columns' titles and its rows."""
    head = "".join(f"<th>{escape(title, quote=False)}</th>" for title in titles)
    return (
        f'<div class="wide"><table><thead><tr><th>{escape(corner)}</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def row(title: str, cells: list[str], attributes: str = "") -> str:
    """The HTML of a row, of cells that are HTML."""
    cells = "".join(f"<td>{cell}</td>" for cell in cells)
    return f"<tr{attributes}><th>{escape(title)}</th>{cells}</tr>"


def number(entry: dict, bold: bool = False, note: str = "") -> str:
    """An interval in a cell: its value, below it the rest."""
    value, _, interval = bootstrap.text(entry).partition(" ")
    return f"{f'<b>{value}</b>' if bold else value} <small>{interval}{note}</small>"


def gibibytes(size: int | None) -> str:
    """A size as people read it."""
    return "–" if size is None else f"{size / 2**30:.2f} GiB"


def _best(methods: dict, metric: str) -> set[str]:
    """The methods with the best mean; none where there is nothing to be better than."""
    better = catalogue.of(metric).better
    values = {
        method: scores[metric]["value"]
        for method, scores in methods.items()
        if metric in scores and method not in REFERENCES
    }
    if better is None or len(values) < 2:
        return set()
    best = better(values.values())
    return {method for method, value in values.items() if value == best}
