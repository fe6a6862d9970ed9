# SPDX-License-Identifier: Apache-2.0
"""Writes one self-contained HTML page about training runs and evaluations.

Arguments are run folders (config.json, stats.jsonl, samples/), evaluation folders (metrics.json,
rows.csv, panels/) or metrics.json files, in the order in which they shall appear. What one of them
lacks is left out of the page. The figures are inside the page, and as PNG in a folder beside it.

Example:
  contourdiff report --out=report.html scores runs/mr
"""

import base64
import csv
import html
import io
import json
import math
import os
import shutil
import uuid
from collections import defaultdict
from pathlib import Path

import numpy as np
from absl import flags
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, StrMethodFormatter

import contourdiff_jax
from contourdiff_jax.data.volumes import reason
from contourdiff_jax.errors import InputError
from contourdiff_jax.metrics import bootstrap

SCHEMA = 1  # of metrics.json
NOTICE = "Synthetic images, not for diagnosis."
CEILING = "truth"  # a method that shows what could be reached, and does not compete
SAMPLES = 3  # sample grids shown of a run, the last ones
PANELS = 4  # panels shown of an evaluation, the first ones
COLOURS = colormaps["tab10"].colors
IMAGES = "images seen"
READING = (
    "Mean over subjects with its 95% bootstrap interval, and the number of subjects where some are "
    "missing. Bold: the best mean of its column; whether it is better than another is for the "
    "intervals to say."
)
CEILING_NOTE = " The truth is the ceiling, not a competitor."

# Metrics of the headline, in order, with their names; more detailed ones are folded away.
HEADLINE = {
    "ssim_mask": "SSIM in the body",
    "psnr_mask": "PSNR in the body [dB]",
    "mae_mask": "MAE in the body",
    "mae_hu_mask": "MAE in the body [HU]",
    "contour_f1": "contour F1",
    "kid": "KID",
    "fid": "FID",
}
LOWER_IS_BETTER = ("mae", "kid", "fid", "assd", "hd95")

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
       margin: 0 auto; max-width: 1100px; padding: 1rem; }
h1 { font-size: 1.7rem; margin: .5rem 0; }
h2 { margin: 2.5rem 0 .5rem; border-bottom: 2px solid #ddd; }
h3 { margin: 1.5rem 0 .5rem; }
.notice { background: #fff4d6; border-left: 4px solid #d90; padding: .5rem 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem;
         border-bottom: 1px solid #ddd; }
thead th { border-bottom: 2px solid #999; }
td small { color: #666; white-space: nowrap; }
.note, figcaption, footer { color: #555; font-size: .9rem; }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; }
pre { background: #f6f6f6; padding: .8rem; font-size: .85rem; white-space: pre-wrap;
      overflow-wrap: anywhere; }
summary { cursor: pointer; color: #06c; margin: .5rem 0; }
"""


def report(out, inputs, *, overwrite: bool = False) -> Path:
    """Writes the page `out` and its figures in the folder <stem>_figures beside it.

    Args:
      out: the .html file to write.
      inputs: run folders, evaluation folders and metrics.json files.
      overwrite: replace a page of that name and its figures.

    Returns the page's path. Raises InputError for an input that is none of these or is damaged.
    """
    out = Path(out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{out}: name the page .html")
    if not inputs:
        raise InputError("nothing to report: name run folders, evaluation folders or metrics.json")
    folder = out.with_name(f"{out.stem}_figures")
    _check_free(out, folder, overwrite)
    figures = {}
    sections = [
        _section(Path(path), f"{number:02d}", figures)
        for number, path in enumerate(inputs, start=1)
    ]
    _write(out, _page(sections), folder, figures)
    return out


def _section(path: Path, prefix: str, figures: dict[str, bytes]) -> str:
    """HTML about one input; its figures go to `figures`, by file names that begin with `prefix`."""
    if path.is_file() and path.suffix == ".json":
        return _evaluation(path, prefix, figures)
    if (path / "metrics.json").is_file():
        return _evaluation(path / "metrics.json", prefix, figures)
    if (path / "config.json").is_file():
        return _run(path, prefix, figures)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    raise InputError(f"{path}: neither a run (config.json) nor an evaluation (metrics.json)")


# ----------------------------------------------------------------------------------------------
# Evaluations
# ----------------------------------------------------------------------------------------------


def _evaluation(path: Path, prefix: str, figures: dict[str, bytes]) -> str:
    """The section of an evaluation, with what lies beside its metrics.json."""
    metrics, folder = _read_metrics(path), path.resolve().parent
    whole = path.name == "metrics.json"  # another name is a copy, and belongs to nothing around it
    methods = metrics["methods"]
    names = list(dict.fromkeys(name for scores in methods.values() for name in scores))
    headline = [name for name in HEADLINE if name in names]
    headline += [name for name in names if name.startswith("dice")]
    parts = [f"<h2>Evaluation {html.escape(folder.name if whole else path.stem)}</h2>"]
    parts.append(_table(methods, headline or names))
    parts.append(f'<p class="note">{READING}{CEILING_NOTE if CEILING in methods else ""}</p>')
    if headline and len(names) > len(headline):
        parts.append(_details("All metrics", _table(methods, names)))
    parts.append("<h3>What was compared, and how</h3>")
    parts.append(_definitions(metrics.get("data", {})))
    if "command" in metrics:
        parts.append(f"<pre>{html.escape(str(metrics['command']))}</pre>")

    rows = _read_rows(folder / "rows.csv") if whole else []
    for name, caption, figure in (
        ("subjects", "Every subject by itself; a line joins one subject's scores.", _subjects),
        ("slices", "Every slice by itself.", _slices),
    ):
        drawn = figure(rows)
        if drawn is not None:
            figures[f"{prefix}_{name}.png"] = png = _png(drawn)
            parts.append(_picture(png, caption))
    panels = sorted((folder / "panels").glob("*.png")) if whole else []
    if panels:
        parts.append("<h3>Panels</h3>")
        parts += [_picture(_read_png(path), path.stem) for path in panels[:PANELS]]
        if len(panels) > PANELS:
            more = f"{len(panels) - PANELS} more in {folder.name}/panels."
            parts.append(f'<p class="note">{html.escape(more)}</p>')
    if "versions" in metrics:
        parts.append(_details("Versions", _definitions(metrics["versions"])))
    return "\n".join(parts)


def _read_metrics(path: Path) -> dict:
    metrics = _read_json(path)
    if not isinstance(metrics, dict) or metrics.get("schema") != SCHEMA:
        raise InputError(f"{path}: not metrics of schema {SCHEMA}; evaluate again")
    try:
        entries = [e for scores in metrics["methods"].values() for e in scores.values()]
        for entry in entries:
            bootstrap.text(entry)
            if not isinstance(entry["n"], int):
                raise TypeError(f"n is {entry['n']!r}")
        for name in ("data", "versions"):
            if not isinstance(metrics.get(name, {}), dict):
                raise TypeError(f"{name} is not an object")
    except (KeyError, AttributeError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: damaged metrics ({reason(error)}); evaluate again") from error
    if not entries:
        raise InputError(f"{path}: no method has a metric; evaluate again")
    return metrics


def _read_rows(path: Path) -> list[dict]:
    """Rows of rows.csv with value and seconds as floats, NaN where empty; none without the file."""
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return [
                {name: row[name] for name in ("subject", "slice", "method", "metric")}
                | {"value": float(row["value"]), "seconds": float(row["seconds"] or "nan")}
                for row in csv.DictReader(stream)
            ]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(f"{path}: not the rows of an evaluation: {reason(error)}") from error


def _table(methods: dict, metrics: list[str]) -> str:
    """HTML table of methods by metrics with intervals; the best of each column is bold."""
    head = "".join(f"<th>{html.escape(_label(metric))}</th>" for metric in metrics)
    most = max(entry["n"] for scores in methods.values() for entry in scores.values())
    lines = []
    for method, scores in methods.items():
        cells = []
        for metric in metrics:
            entry = scores.get(metric)
            if entry is None:
                cells.append("<td>–</td>")
                continue
            value, _, interval = bootstrap.text(entry).partition(" ")
            if method in _best(methods, metric):
                value = f"<b>{value}</b>"
            few = f" n = {entry['n']}" if entry["n"] != most else ""
            cells.append(f"<td>{value} <small>{interval}{few}</small></td>")
        lines.append(f"<tr><th>{html.escape(method)}</th>{''.join(cells)}</tr>")
    return (
        f'<div class="wide"><table><thead><tr><th>{most} subject{"s" * (most != 1)}</th>{head}</tr>'
        f"</thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _label(metric: str) -> str:
    arrow = "↓" if metric.startswith(LOWER_IS_BETTER) else "↑"
    return f"{HEADLINE.get(metric, metric)} {arrow}"


def _best(methods: dict, metric: str) -> set[str]:
    """The methods with the best mean; none where there is nothing to be better than."""
    values = {
        method: scores[metric]["value"]
        for method, scores in methods.items()
        if metric in scores and method != CEILING
    }
    if len(values) < 2:
        return set()
    best = (min if metric.startswith(LOWER_IS_BETTER) else max)(values.values())
    return {method for method, value in values.items() if value == best}


def _subjects(rows: list[dict]) -> Figure | None:
    """Strip plot: one axis for each metric of the headline, methods across, a point a subject."""
    values = defaultdict(list)
    for row in rows:
        values[row["metric"], row["method"], row["subject"]].append(row["value"])
    metrics = [m for m in HEADLINE if any(key[0] == m for key in values)]
    if not metrics:
        return None
    figure = Figure(figsize=(3.2 * len(metrics), 3.4), layout="constrained")
    subjects = list(dict.fromkeys(row["subject"] for row in rows))
    for axis, metric in zip(
        figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True
    ):
        methods = list(dict.fromkeys(key[1] for key in values if key[0] == metric))
        means = np.array(
            [[np.mean(values.get((metric, m, s), np.nan)) for m in methods] for s in subjects]
        )
        # A small sideways offset for each subject, so that equal scores stay visible.
        offset = 0.25 * (np.arange(len(subjects)) - (len(subjects) - 1) / 2) / len(subjects)
        places = np.arange(len(methods)) + offset[:, None]
        axis.plot(places.T, means.T, color="0.8", linewidth=0.8, zorder=1)
        for column in range(len(methods)):
            colour = _colour(rows, methods[column])
            axis.scatter(places[:, column], means[:, column], s=22, color=colour, zorder=2)
        axis.set_xticks(range(len(methods)), methods, rotation=35, ha="right")
        axis.set_title(_label(metric), fontsize=10)
        _tidy(axis)
    return figure


def _slices(rows: list[dict]) -> Figure | None:
    """PSNR against SSIM of every slice: by method, and by the seconds that a slice took."""
    points = defaultdict(dict)
    for row in rows:
        if row["metric"] in ("psnr_mask", "ssim_mask"):
            key = (row["method"], row["subject"], row["slice"])
            points[key][row["metric"]] = row["value"]
            points[key]["seconds"] = row["seconds"]
    points = {key: p for key, p in points.items() if {"psnr_mask", "ssim_mask"} <= p.keys()}
    if not points:
        return None
    timed = [p for p in points.values() if math.isfinite(p["seconds"])]
    by_time = len({p["seconds"] for p in timed}) > 1
    figure = Figure(figsize=(11 if by_time else 6.5, 4.4), layout="constrained")
    axes = figure.subplots(1, 1 + by_time, squeeze=False, sharex=True, sharey=True)[0]
    for method in dict.fromkeys(key[0] for key in points):
        of_method = [p for key, p in points.items() if key[0] == method]
        axes[0].scatter(
            *_columns(of_method, "ssim_mask", "psnr_mask"),
            **{"s": 12, "alpha": 0.6, "linewidths": 0, "label": method},
            color=_colour(rows, method),
        )
    axes[0].legend(fontsize=9)
    axes[0].set_ylabel("PSNR in the body [dB]")
    if by_time:
        ssim, psnr, seconds = _columns(timed, "ssim_mask", "psnr_mask", "seconds")
        shown = axes[1].scatter(ssim, psnr, c=seconds, s=12, linewidths=0, cmap="viridis")
        figure.colorbar(shown, ax=axes[1], label="seconds per slice")
    for axis in axes:
        axis.set_xlabel("SSIM in the body")
        _tidy(axis)
    return figure


def _columns(points: list[dict], *names: str) -> list[list[float]]:
    return [[point[name] for point in points] for name in names]


def _colour(rows: list[dict], method: str):
    """One colour for a method in all figures of an evaluation."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    return COLOURS[methods.index(method) % len(COLOURS)]


# ----------------------------------------------------------------------------------------------
# Runs
# ----------------------------------------------------------------------------------------------


def _run(folder: Path, prefix: str, figures: dict[str, bytes]) -> str:
    """The section of a training run."""
    config = _read_json(folder / "config.json")
    stats = _read_stats(folder / "stats.jsonl")
    parts = [f"<h2>Training run {html.escape(folder.resolve().name)}</h2>"]
    if stats:
        parts.append(f"<p>{html.escape(_progress(stats))}</p>")
        drawn = _curves(stats)
        if drawn is not None:
            figures[f"{prefix}_training.png"] = png = _png(drawn)
            parts.append(_picture(png, "Training, against the images seen."))
    samples = sorted((folder / "samples").glob("*.png"))[-SAMPLES:]
    if samples:
        parts.append("<h3>Samples</h3>")
        parts += [_picture(_read_png(path), f"{path.stem.lstrip('0')} images") for path in samples]
    text = json.dumps(config, indent=2, ensure_ascii=False)
    parts.append(_details("Configuration", f"<pre>{html.escape(text)}</pre>"))
    return "\n".join(parts)


def _read_stats(path: Path) -> list[dict]:
    """Lines of stats.jsonl; none without the file. A last line cut short by a kill is skipped."""
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error
    stats = []
    for number, line in enumerate(lines, start=1):
        try:
            fields = json.loads(line)
            stats.append(fields | {"images": int(fields["images"])})
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise InputError(f"{path}: line {number} is not a JSON object with images") from error
    if not stats:
        raise InputError(f"{path}: empty, nothing was trained; leave this run out or train it")
    return stats


def _progress(stats: list[dict]) -> str:
    """One sentence on how far the run went."""
    speeds = [line["images_per_second"] for line in stats if "images_per_second" in line]
    speed = f", {np.median(speeds):,.3g} a second" if speeds else ""
    return f"{stats[-1]['images']:,} images seen{speed}."


def _curves(stats: list[dict]) -> Figure | None:
    """Loss, held-out loss by timestep and learning rate, as far as they were recorded."""
    draws = [
        draw
        for draw, names in (
            (_losses, ("loss", "heldout_loss")),
            (_timesteps, ("heldout_loss_t",)),
            (_learning_rate, ("learning_rate",)),
        )
        if any(name in line for line in stats for name in names)
    ]
    if not draws:
        return None
    figure = Figure(figsize=(4.2 * len(draws), 3.4), layout="constrained")
    for draw, axis in zip(draws, figure.subplots(1, len(draws), squeeze=False)[0], strict=True):
        draw(axis, stats)
        if axis.get_yscale() == "log":
            # Losses span a decade or two: name 1, 2 and 5 of each, as plain numbers.
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.yaxis.set_minor_formatter(NullFormatter())
        if axis.get_xlabel() == IMAGES:
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        _tidy(axis)
    return figure


def _losses(axis, stats: list[dict]) -> None:
    for name, label, style in (
        ("loss", "training", {"linewidth": 1}),
        ("heldout_loss", "held out", {"marker": "o", "markersize": 4}),
    ):
        found = [line for line in stats if name in line]
        if found:
            axis.plot(*_columns(found, "images", name), label=label, **style)
    axis.set(yscale="log", xlabel=IMAGES, title="loss")
    axis.legend(fontsize=9)


def _timesteps(axis, stats: list[dict]) -> None:
    """Held-out loss in equal bins of t, of up to six times of training: later is darker."""
    found = [line for line in stats if "heldout_loss_t" in line]
    shown = np.unique(np.linspace(0, len(found) - 1, 6).round().astype(int))
    for order, index in enumerate(shown):
        losses = found[index]["heldout_loss_t"]
        middle = (np.arange(len(losses)) + 0.5) / len(losses)
        colour = colormaps["viridis_r"]((order + 1) / len(shown))
        label = f"{found[index]['images']:,} images"
        axis.plot(middle, losses, marker="o", markersize=3, color=colour, label=label)
    axis.set(yscale="log", xlabel="t / T", title="held-out loss by timestep")
    axis.legend(fontsize=8)


def _learning_rate(axis, stats: list[dict]) -> None:
    found = [line for line in stats if "learning_rate" in line]
    axis.plot(*_columns(found, "images", "learning_rate"), linewidth=1)
    axis.set(xlabel=IMAGES, title="learning rate")
    axis.set_ylim(bottom=0)


# ----------------------------------------------------------------------------------------------
# HTML
# ----------------------------------------------------------------------------------------------


def _page(sections: list[str]) -> str:
    body = "\n".join(f"<section>{section}</section>" for section in sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>contourdiff report</title>
<style>{STYLE}</style>
</head>
<body>
<h1>contourdiff report</h1>
<p class="notice"><b>{NOTICE}</b></p>
{body}
<footer><p>contourdiff_jax {html.escape(contourdiff_jax.__version__)}</p></footer>
</body>
</html>
"""


def _picture(png: bytes, caption: str) -> str:
    data, text = base64.b64encode(png).decode("ascii"), html.escape(caption)
    return (
        f'<figure><img alt="{text}" src="data:image/png;base64,{data}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def _details(summary: str, content: str) -> str:
    return f"<details><summary>{html.escape(summary)}</summary>{content}</details>"


def _definitions(fields: dict) -> str:
    """A table of names and what they are; lists in one line, anything deeper as JSON."""
    rows = []
    for name, value in fields.items():
        if value is None:
            continue
        if isinstance(value, dict):
            shown = "<br>".join(
                f"{html.escape(str(k))}: {html.escape(json.dumps(v))}" for k, v in value.items()
            )
        elif isinstance(value, list):
            shown = html.escape(", ".join(map(str, value)))
        else:
            shown = html.escape(str(value))
        rows.append(f"<tr><th>{html.escape(str(name))}</th><td>{shown}</td></tr>")
    return f'<div class="wide"><table><tbody>{"".join(rows)}</tbody></table></div>'


def _tidy(axis) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.3)
    axis.set_axisbelow(True)


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    # Without the software's version in it, equal inputs make equal files.
    figure.savefig(stream, format="png", dpi=120, metadata={"Software": None})
    return stream.getvalue()


# ----------------------------------------------------------------------------------------------
# Files
# ----------------------------------------------------------------------------------------------


def _read_json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {reason(error)}") from error


def _read_png(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error


def _check_free(out: Path, folder: Path, overwrite: bool) -> None:
    """InputError where the page or its figures may not be written."""
    for path in (out, folder):
        if path.exists() and not overwrite:
            raise InputError(f"{path}: exists already; pass --overwrite to replace it")
    if out.is_dir():
        raise InputError(f"{out}: is a folder; give another --out")
    if folder.exists() and not (
        folder.is_dir() and all(p.suffix == ".png" for p in folder.iterdir())
    ):
        raise InputError(f"{folder}: holds more than a report's figures; give another --out")


def _write(out: Path, page: str, folder: Path, figures: dict[str, bytes]) -> None:
    """The figures, then the page; each appears whole or not at all."""
    token = uuid.uuid4().hex
    partial, partial_page = (path.with_name(f".{path.name}.{token}") for path in (folder, out))
    old = folder.with_name(f".{folder.name}.{token}.old")
    try:
        partial.mkdir(parents=True)
        for name, png in figures.items():
            (partial / name).write_bytes(png)
        partial_page.write_text(page, encoding="utf-8")
        if folder.exists():
            os.rename(folder, old)
        os.rename(partial, folder)
        os.replace(partial_page, out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {reason(error)}") from error
    finally:
        partial_page.unlink(missing_ok=True)
        for left in (partial, old):
            shutil.rmtree(left, ignore_errors=True)


# ----------------------------------------------------------------------------------------------
# Command line
# ----------------------------------------------------------------------------------------------


def define_flags(values: flags.FlagValues) -> None:
    """The flags of `contourdiff report`."""
    flags.DEFINE_string("out", None, "The .html file to write.", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "Replace a report of that name.", flag_values=values)


def main(values: flags.FlagValues, arguments: list[str]) -> int:
    """Runs the command on the run folders and evaluations named after the flags."""
    if values.out is None:
        raise InputError("--out is required, see `contourdiff report --help`")
    print(report(values.out, arguments, overwrite=values.overwrite))
    return 0
