# SPDX-License-Identifier: Apache-2.0
"""What a report says of a model itself: whether it repeats what it was trained on, and its cost."""

import html
from pathlib import Path

from contourdiff_jax.reports import html as webpage
from contourdiff_jax.reports import tables

MEMORY = ("memory_distance", "memory_closer", "memory_ratio", "memory_closer_ratio")


MEMORY += ("memory_low_ratios",)


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


def concerns(metric: str) -> bool:
    """Whether a metric is shown here."""
    return metric in MEMORY


def sections(metrics: dict, folder: Path | None) -> list[str]:
    """HTML of what a metrics.json holds; its folder is None where nothing there belongs to it."""
    return [_memorisation(metrics["methods"], folder), cost(metrics.get("cost", {}))]


def _memorisation(methods: dict, folder: Path | None) -> str:
    shown = [name for name in MEMORY if name in methods.get("translation", {})]
    if not shown:
        return ""
    parts = ["<h3>Memorisation</h3>", tables.table(methods, shown)]
    parts.append(f'<p class="note">{MEMORY_READING}</p>')
    picture = folder / "nearest.png" if folder is not None else None
    if picture is not None and picture.is_file():
        text = "The slice of the lowest ratio of each subject, and below it what it is nearest to."
        parts.append(webpage.picture(webpage.read_png(picture), text))
    return "\n".join(parts)


def cost(found: dict) -> str:
    """HTML of the "cost" of a metrics.json; TypeError, ValueError or KeyError where damaged."""
    if not found:
        return ""
    cells = {
        "seconds a slice": tables.number(found["seconds a slice"]),
        "seconds a volume": tables.number(found["seconds a volume"]),
        "host memory": gibibytes(found.get("host_bytes")),
        "device memory": gibibytes(found.get("device_bytes")),
        "parameters": f"{found['parameters']:,}" if "parameters" in found else "–",
    }
    device = str(found.get("device", "device not recorded"))
    several = f"{found['devices']} x " if found.get("devices", 1) > 1 else ""
    head = "".join(f"<th>{title}</th>" for title in cells)
    row = "".join(f"<td>{cell}</td>" for cell in cells.values())
    row = f"<tr><th>{html.escape(several + device)}</th>{row}</tr>"
    return "\n".join(
        (
            "<h3>Cost of a translation</h3>",
            tables.wide("", head, [row]),
            f'<p class="note">{COST_READING}</p>',
        )
    )


def gibibytes(size: int | None) -> str:
    """A size as people read it."""
    return "–" if size is None else f"{size / 2**30:.2f} GiB"
