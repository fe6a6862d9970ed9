# SPDX-License-Identifier: Apache-2.0
"""result.json and figure.png of what run.sh has scored: python summary.py FIRST OUT"""

import json
import sys
from pathlib import Path

import nibabel
import numpy as np
from matplotlib.figure import Figure

HERE = Path(__file__).parent
FIRST, OUT = map(Path, sys.argv[1:])
KEPT = ("ssim_mask", "psnr_mask", "mae_mask", "contour_f1", "kernel_segmenter")
KEPT += ("gradient_energy", "gradient_energy_to_real")
BATCH = 4
NYQUIST = 1 / (2 * 2.4)  # cycles per mm that the model's grid can hold
KINDS = {"steps": "one sample", "mean": "mean of samples"}


def scores(name: str) -> dict:
    methods = json.loads((OUT / "scores" / name / "metrics.json").read_text())["methods"]
    return {
        method: {metric: of[metric] for metric in KEPT if metric in of}
        for method, of in methods.items()
    }


def spectrum(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies [cycles/mm], and the mean power there of a folder's axial slices."""
    edges, powers = np.linspace(0.01, 1.2 * NYQUIST, 25), []
    for path in sorted(folder.glob("*.nii.gz")):
        image = nibabel.load(path)
        spacing = image.header.get_zooms()
        power = np.square(np.abs(np.fft.fft2(image.get_fdata(), axes=(0, 1)))).mean(2)
        axes = [np.fft.fftfreq(n, d) for n, d in zip(power.shape, spacing, strict=False)]
        bins = np.digitize(np.hypot(*np.meshgrid(*axes, indexing="ij")), edges)
        powers.append([power[bins == k].mean() for k in range(1, len(edges))])
    return (edges[1:] + edges[:-1]) / 2, np.mean(powers, axis=0)


def numbered(kind: str) -> list[tuple[int, str]]:
    """(number, name) of what was scored of a kind, in their order."""
    found = (name for name in result["scores"] if name.startswith(f"{kind}_"))
    return sorted((int(name.rpartition("_")[2]), name) for name in found)


def value(name: str, metric: str) -> float:
    return result["scores"][name][metric]["value"]


result = {"training": {}, "scores": {}, "baselines": {}}
for run in ("regression", "diffusion"):
    lines = [json.loads(line) for line in (OUT / run / "stats.jsonl").read_text().splitlines()]
    result["training"][run] = [line for line in lines if "images_per_second" in line][-1]
for place in sorted((OUT / "scores").iterdir()):
    found = scores(place.name)
    result["scores"][place.name] = found.pop("translation")
    result["baselines"] = found
(HERE / "result.json").write_text(json.dumps(result, indent=1) + "\n")

figure = Figure(figsize=(13, 3.6), layout="constrained")
budget, tradeoff, power = figure.subplots(1, 3)
snapshots = numbered("regression")
seen = [BATCH * step for step, _ in snapshots]
budget.plot(seen, [value(name, "ssim_mask") for _, name in snapshots], "o-")
for method in ("curve", "mean"):
    level = result["baselines"][method]["ssim_mask"]["value"]
    budget.axhline(level, color="grey", linestyle=":")
    budget.text(seen[0], level, method, va="bottom")
budget.set(xscale="log", xlabel="images seen by the regression", ylabel="SSIM in the body")
budget.minorticks_off()
budget.set_xticks(seen, [f"{count:,}" for count in seen], fontsize=8)

last = snapshots[-1][1]
for kind, label in KINDS.items():
    points = [point for point in numbered(kind) if point[0] > 1]  # one step is far beyond
    x, y = ([value(n, m) for _, n in points] for m in ("kernel_segmenter", "psnr_mask"))
    tradeoff.plot(x, y, "o-", label=label)
    for (count, _), *at in zip(points, x, y, strict=True):
        tradeoff.annotate(str(count), at, textcoords="offset points", xytext=(4, 4))
tradeoff.plot(value(last, "kernel_segmenter"), value(last, "psnr_mask"), "^", label="regression")
floor = result["baselines"]["real"]["kernel_segmenter"]["value"]
tradeoff.axvline(floor, color="grey", linestyle=":")
tradeoff.set(xlabel="KID of a segmenter's features (dotted: the floor)", ylabel="PSNR [dB]")
tradeoff.legend()

frequencies, truth = spectrum(FIRST / "heads/test_mr")
for name, label in (
    (last, "regression"),
    *((name, f"one sample, {count} steps") for count, name in numbered("steps")[1::2]),
):
    power.plot(frequencies, spectrum(OUT / name)[1] / truth, label=label)
power.axvline(NYQUIST, color="grey", linestyle=":")
power.axhline(1, color="grey", linestyle=":")
power.set(yscale="log", xlabel="cycles per mm (dotted: the model's grid)", ylabel="power / truth's")
power.legend()
figure.savefig(HERE / "figure.png", dpi=100)
