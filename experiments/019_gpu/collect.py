# SPDX-License-Identifier: Apache-2.0
"""The result files of run.sh as Markdown, for README.md: targets met or not, and every number.

python collect.py OUT

What is not there, or failed, is said so.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

STEPS = ("machine", "published", "volume", "suite", "heads", "methods")
OURS, TORCH = "ours", "torch, compiled"
UNKNOWN = "not measured"


class Target(NamedTuple):
    """What is aimed at.

    Attributes:
      words: of the quantity.
      value: that is wanted.
      least: whether more is better.
      found: results -> number; KeyError or TypeError where it was not measured.
    """

    words: str
    value: float
    least: bool
    found: Callable[[dict], float]


def _batches(results: dict) -> Iterator[dict]:
    return iter(results["published"]["batches"].values())


def _volume(results: dict, steps: str) -> float:
    """Seconds of the volume that is aimed at, and of no smaller one."""
    found = results["volume"]
    if (found["slices"], found["pixels"]) != (150, 256):
        raise KeyError("of another size")
    return found["steps"][steps]["seconds"]


TARGETS = (
    Target(
        "training beside torch.compile, times as fast, batches of 16",
        1.3,
        True,
        lambda r: r["published"]["batches"]["16"][TORCH]["train_ours_is_faster_by"],
    ),
    Target(
        "model-flops utilisation in training, of the best batch",
        0.4,
        True,
        lambda r: max(
            found["train_utilisation"]
            for entry in _batches(r)
            for found in entry.values()
            if isinstance(found, dict) and isinstance(found.get("train_utilisation"), float)
        ),
    ),
    Target(
        "seconds a volume of 150 slices, 20 steps",
        6,
        False,
        lambda r: _volume(r, "20"),
    ),
    Target(
        "seconds a volume of 150 slices, a student's 2 steps",
        1,
        False,
        lambda r: _volume(r, "2"),
    ),
)


def read(out: Path) -> dict:
    """{step: its result}, of those that there are."""
    paths = {name: out / f"{name}.json" for name in STEPS}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def table(heads: list[str], rows: list[list]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(shown(cell) for cell in line) + " |" for line in lines)


def shown(value) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def targets(results: dict) -> str:
    rows = []
    for target in TARGETS:
        try:
            found = target.found(results)
        except (KeyError, TypeError, ValueError):
            rows.append([target.words, target.value, UNKNOWN, UNKNOWN])
            continue
        met = found >= target.value if target.least else found <= target.value
        rows.append([target.words, target.value, found, "met" if met else "**not met**"])
    return table(["", "target", "measured", ""], rows)


def steps(out: Path) -> str:
    lines = (out / "steps.jsonl").read_text().splitlines()
    words = {0: "done", 124: "out of time", 137: "out of time"}
    rows = [
        [it["step"], words.get(it["status"], f"failed ({it['status']})"), it["seconds"]]
        for it in map(json.loads, lines)
    ]
    return table(["step", "", "seconds"], rows)


def row(found: dict | str, columns: dict) -> list:
    """The values of an entry in these columns; why there are none, in the first of them."""
    trouble = found if isinstance(found, str) else found.get("failed") or found.get("absent")
    return [trouble, *[None] * (len(columns) - 1)] if trouble else [*map(found.get, columns)]


PUBLISHED = {
    "train_images_per_second": "training, images/s",
    "train_ours_is_faster_by": "ours is faster by",
    "train_utilisation": "utilisation",
    "roofline_over_step": "roofline",
    "draw_slices_per_second": "drawing, slices/s",
    "draw_ours_is_faster_by": "ours is faster by",
    "draw_utilisation": "utilisation",
    "peak_GiB": "GiB at most",
    "program_GiB": "GiB of the step",
    "compile_train_seconds": "compiling the step, s",
}


def published(result: dict) -> str:
    rows = []
    for batch, entry in result["batches"].items():
        for side, found in entry.items():
            if side == "profile":
                continue
            rows.append([batch, side, *row(found, PUBLISHED)])
    tables = [table(["batch", "side", *PUBLISHED.values()], rows)]
    for batch, entry in result["batches"].items():
        if isinstance(entry.get("profile"), list):
            costs = [list(row.values()) for row in entry["profile"]]
            heads = [f"kernels of three steps of {batch}", "ms", "share", "times"]
            tables.append(table(heads, costs))
    return "\n\n".join(tables)


def volume(result: dict) -> str:
    names = ("seconds", "drawing_seconds", "first_seconds")
    rows = [[steps, *map(found.get, names)] for steps, found in result["steps"].items()]
    return table(["steps", "s a volume", "of that drawing", "s with compiling"], rows)


def suite(result: dict) -> str:
    counts = f"{result['passed']} passed, {result['skipped']} skipped"
    failed = [f"- {name}: `{why.splitlines()[0]}`" for name, why in result["failed"].items()]
    return "\n".join([f"{counts}, {len(failed)} failed.", *failed])


def heads(result: dict) -> str:
    rows = [
        [method, *(found.get(name, {}).get("value") for name in ("ssim_mask", "psnr_mask"))]
        for method, found in result.get("scores", {}).items()
        if "ssim_mask" in found
    ]
    images = result.get("training", {}).get("images", UNKNOWN)
    return f"{images} images seen.\n\n" + table(["", "SSIM", "PSNR"], rows)


METHODS = {
    "batch": "batch",
    "of": "of",
    "step_seconds": "s a step",
    "program_GiB": "GiB",
    "drawn": "slices drawn",
    "draw_seconds": "in s",
    "compile_train_seconds": "compiling, s",
}


def methods(result: dict) -> str:
    rows = [[name, *row(found, METHODS)] for name, found in result["methods"].items()]
    return table(["configuration", *METHODS.values()], rows)


def page(out: Path) -> str:
    results = read(out)
    machine = results.get("machine", {})
    words = ("device", "driver", "GiB", "cores", "python", "measured_tflops")
    words = [*words, "measured_gigabytes_per_second", "peak_tflops", "peak_gigabytes_per_second"]
    parts = [
        "; ".join(f"{word} {shown(machine[word])}" for word in words if word in machine),
        "; ".join(f"{name} {number}" for name, number in machine.get("versions", {}).items()),
        targets(results),
        steps(out),
    ]
    for name, part in PARTS.items():
        whole = set(results.get(name, {"failed": 0})) != {"failed"}
        parts += [f"**{name}**", part(results[name]) if whole else UNKNOWN]
    return "\n\n".join(parts)


PARTS = {
    "published": published,
    "volume": volume,
    "suite": suite,
    "heads": heads,
    "methods": methods,
}

if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1], "steps.jsonl").exists():
        raise SystemExit("usage: collect.py OUT, the folder that run.sh has filled")
    print(page(Path(sys.argv[1])))
