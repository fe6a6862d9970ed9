# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML page about training runs and evaluations."""

import csv
import html
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from contourdiff_jax import figures
from contourdiff_jax.errors import InputError
from contourdiff_jax.evaluation import records
from contourdiff_jax.evaluation.metrics import bootstrap
from contourdiff_jax.reports import comparison, labels, model, tables, volumes
from contourdiff_jax.reports import html as webpage
from contourdiff_jax.runtime import disk
from contourdiff_jax.translation.sidecars import NOTICE

SAMPLES = 3  # sample grids shown of a run, the last ones
PANELS = 4  # panels shown of an evaluation, the first ones

READING = (
    "A row is one way to make the target's image of each subject. A number is the mean over the "
    "subjects, below it its 95% bootstrap interval, and how many subjects where some are missing. "
    "Bold: the best mean of its column; whether it is better than another is for the intervals to "
    "say."
)
ROWS = {
    "translation": "what the model draws from the source's contours alone",
    "source": "the source itself, its greys as they are shown",
    "histogram": "the source, with the histogram of real target volumes",
    "mean": "the mean of real target volumes, which knows nothing of the subject but its extent",
    "truth": "the true target volume: its contours, and its own coherence; it does not compete",
    "real": "real target volumes of other subjects: their coherence, and how far apart halves of "
    "them lie (KID, FID); they do not compete",
}
CONTOURS = (
    "Read contour F1 against the rows mean and truth, not against 0 and 1: dense contours agree by "
    "chance, so that even the mean image scores far above 0, and the true image shows edges that "
    "the source lacks. A score above that of the truth says that the given contours were copied, "
    "not that the image is better."
)
NEEDED = {"mean": "--real", "truth": "--truth"}  # by evaluate, for these rows

# Metrics of the headline, in order, and beginnings of the names of more; others are folded away.
HEADLINE = ("ssim_mask", "psnr_mask", "mae_mask", "mae_hu_mask", "contour_f1", "kid", "fid")


HEADLINE += ("dice", "assd", "hd95")


HEADLINE_TOO = ("synthrad", "fid_at", "kernel", "frechet")


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
    described = sorted((_recognise(Path(path)) for path in inputs), key=lambda e: e[0] is _run)
    drawn = {}
    sections = _compared([path for describe, path in described if describe is _evaluation])
    sections += [
        describe(path, f"{number:02d}", drawn)
        for number, (describe, path) in enumerate(described, start=1)
    ]
    _write(out, webpage.page("contourdiff report", NOTICE, sections), folder, drawn)
    return out


def _recognise(path: Path) -> tuple[Callable, Path]:
    """What describes an input, and the path that it takes.

    The function has the arguments (path, prefix, drawn) and returns the input's section, HTML. The
    figures that it draws go to `drawn`, by file names that begin with `prefix`.
    """
    if path.is_file() and path.suffix == ".json":
        return _evaluation, path
    if (path / "metrics.json").is_file():
        return _evaluation, path / "metrics.json"
    if (path / "config.json").is_file():
        return _run, path
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    raise InputError(f"{path}: neither a run (config.json) nor an evaluation (metrics.json)")


# ----------------------------------------------------------------------------------------------
# Evaluations
# ----------------------------------------------------------------------------------------------


def _evaluation(path: Path, prefix: str, drawn: dict[str, bytes]) -> str:
    """The section of an evaluation, with what lies beside its metrics.json."""
    metrics, folder = read_metrics(path), path.resolve().parent
    whole = path.name == "metrics.json"  # another name is a copy, and belongs to nothing around it
    methods = metrics["methods"]
    names = dict.fromkeys(name for scores in methods.values() for name in scores)
    elsewhere = (model, labels, volumes)
    names = [name for name in names if not any(part.concerns(name) for part in elsewhere)]
    headline = headlines(names)
    parts = [f"<h2>Evaluation: {html.escape(folder.name if whole else path.stem)}</h2>"]
    if names:
        parts.append(tables.table(methods, headline or names))
    parts.append(_reading(methods, names))
    if headline and len(names) > len(headline):
        parts.append(webpage.details("All metrics", tables.table(methods, names)))
    if whole:
        parts.append(_panels(folder))
        scores = _read_rows(folder / "rows.csv")
        strips = figures.subjects(scores, {name: tables.label(name) for name in HEADLINE})
        points = figures.slices(scores)
        for name, figure, caption in (
            ("subjects", strips, "Every subject by itself; a line joins one subject's scores."),
            ("slices", points, "Every slice by itself."),
        ):
            if figure is not None:
                drawn[f"{prefix}_{name}.png"] = png = figures.png(figure)
                parts.append(webpage.picture(png, caption))
    parts += labels.sections(methods)
    parts += volumes.sections(methods, folder if whole else None)
    parts += model.sections(metrics, folder if whole else None)
    compared = webpage.definitions(metrics.get("data", {}))
    if "command" in metrics:
        compared += f"<pre>{html.escape(str(metrics['command']))}</pre>"
    parts.append(webpage.details("What was compared, and how", compared))
    if "versions" in metrics:
        parts.append(webpage.details("Versions", webpage.definitions(metrics["versions"])))
    return "\n".join(parts)


def _compared(paths: list[Path]) -> list[str]:
    """The section that compares several evaluations; none of fewer."""
    # Copies of a metrics.json under another name have no rows to be compared by.
    paths = list(dict.fromkeys(p.resolve() for p in paths if p.name == "metrics.json"))
    if len(paths) < 2:
        return []
    scores = [
        comparison.Scores(name, read_metrics(path), _read_rows(path.with_name("rows.csv")))
        for name, path in zip(comparison.names(paths), paths, strict=True)
    ]
    every = dict.fromkeys(row["metric"] for one in scores for row in one.rows)
    return [comparison.section(scores, headlines(every))]


def headlines(names) -> list[str]:
    """Those of the metrics that stand in the first table, in order."""
    return [name for name in HEADLINE if name in names] + [
        name for name in names if name.startswith(HEADLINE_TOO)
    ]


def _reading(methods: dict, metrics: list[str]) -> str:
    """How the table is to be read: what its numbers and its rows are."""
    reading, known = READING, ROWS
    if "dice" in metrics:
        reading, known = labels.READING, labels.ROWS
    parts = [f'<p class="note">{reading}</p>']
    rows = [f"<dt>{name}</dt><dd>{text}</dd>" for name, text in known.items() if name in methods]
    if rows:
        parts.append(f"<dl>{''.join(rows)}</dl>")
    if "contour_f1" in metrics:
        missing = [f"{flag} for {row}" for row, flag in NEEDED.items() if row not in methods]
        hint = f" To have these rows here, evaluate with {' and '.join(missing)}."
        parts.append(f'<p class="note">{CONTOURS}{hint if missing else ""}</p>')
    return "\n".join(parts)


def _panels(folder: Path) -> str:
    """The first subject's panel; those of the next ones are folded away."""
    paths = sorted((folder / "panels").glob("*.png"))
    if not paths:
        return ""
    first, *others = (webpage.picture(webpage.read_png(path), path.stem) for path in paths[:PANELS])
    parts = ["<h3>Panels</h3>", first]
    if others:
        parts.append(webpage.details("More subjects", "".join(others)))
    if len(paths) > PANELS:
        more = f"{len(paths) - PANELS} more in {folder.name}/panels."
        parts.append(f'<p class="note">{html.escape(more)}</p>')
    return "\n".join(parts)


def read_metrics(path: Path) -> dict:
    metrics = _read_json(path)
    if not isinstance(metrics, dict) or metrics.get("schema") != records.SCHEMA:
        raise InputError(f"{path}: not metrics of schema {records.SCHEMA}; evaluate again")
    try:
        entries = [e for scores in metrics["methods"].values() for e in scores.values()]
        for entry in entries:
            bootstrap.text(entry)
            if not isinstance(entry["n"], int):
                raise TypeError(f"n is {entry['n']!r}")
        for name in ("data", "versions", "cost"):
            if not isinstance(metrics.get(name, {}), dict):
                raise TypeError(f"{name} is not an object")
        whose = metrics.get("data", {}).get(records.SUBJECTS, {})
        if not all(isinstance(subject, str) for subject in whose.values()):
            raise TypeError(f"{records.SUBJECTS}: not names")
        model.cost(metrics.get("cost", {}))
    except (KeyError, AttributeError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{path}: damaged metrics ({disk.reason(error)}); evaluate again"
        ) from error
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
        raise InputError(f"{path}: not the rows of an evaluation: {disk.reason(error)}") from error


# ----------------------------------------------------------------------------------------------
# Runs
# ----------------------------------------------------------------------------------------------


def _run(folder: Path, prefix: str, drawn: dict[str, bytes]) -> str:
    """The section of a training run."""
    config = _read_json(folder / "config.json")
    stats = read_stats(folder / "stats.jsonl")
    parts = [f"<h2>Training run: {html.escape(folder.resolve().name)}</h2>"]
    if stats:
        parts.append(f"<p>{html.escape(_progress(stats))}</p>")
        figure = figures.curves(stats)
        if figure is not None:
            drawn[f"{prefix}_training.png"] = png = figures.png(figure)
            parts.append(webpage.picture(png, "Training, against the images seen."))
    samples = sorted((folder / "samples").glob("*.png"))[-SAMPLES:]
    if samples:
        pictures = [
            webpage.picture(webpage.read_png(path), f"{path.stem.lstrip('0')} images")
            for path in samples
        ]
        parts.append(f'<h3>Samples</h3><div class="row">{"".join(pictures)}</div>')
        parts.append('<p class="note">From left: a slice, its contours, a sample from them.</p>')
    text = json.dumps(config, indent=2, ensure_ascii=False)
    parts.append(webpage.details("Configuration", f"<pre>{html.escape(text)}</pre>"))
    return "\n".join(parts)


def read_stats(path: Path) -> list[dict]:
    """Lines of stats.jsonl; none without the file. A last line cut short by a kill is skipped."""
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {disk.reason(error)}") from error
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


# ----------------------------------------------------------------------------------------------
# Files
# ----------------------------------------------------------------------------------------------


def _read_json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {disk.reason(error)}") from error


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


def _write(out: Path, page: str, folder: Path, drawn: dict[str, bytes]) -> None:
    """The figures, then the page; each appears whole or not at all."""
    with (
        disk.file(out) as partial,
        disk.folder(folder, lambda _: None) as pictures,
        disk.writing(out),
    ):
        for name, png in drawn.items():
            (pictures / name).write_bytes(png)
        partial.write_text(page, encoding="utf-8")
