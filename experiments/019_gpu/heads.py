# SPDX-License-Identifier: Apache-2.0
"""Generated heads of 256 px: four minutes of training on their MR, then CT of others, scored.

python heads.py [--small] RESULT WORK

As 001_heads does with rendered heads, by the documented commands: contours alone, by diffusion,
with a network of twice the default's features in bf16 and patches of 2 px. Scores are those inside
the body mask, beside baselines. Writes heads.png beside the result, too.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import results
from PIL import Image

sys.path.append(str(results.HERE.parent))

from commands import contourdiff, stats

KEPT = ("ssim_mask", "psnr_mask", "mae_mask", "contour_f1")


def generate(heads: Path, count: int, size: int, slices: int) -> float:
    """Heads with MR to train on, and two to test, each pair by a process of its own; seconds."""
    began = time.monotonic()
    command = [sys.executable, "-m", "contourdiff_jax", "phantoms", "--subjects=2", "--test=1"]
    command += ["--train_ct=0", f"--size={size}", f"--slices={slices}"]
    command += [f"--thickness={144 / slices}"]
    places = [heads / str(seed) for seed in range(count)]
    heads.mkdir()
    rendering = [
        subprocess.Popen([*command, f"--out={place}", f"--seed={place.name}"]) for place in places
    ]
    if any([process.wait() for process in rendering]):
        raise SystemExit("phantoms failed")
    for number, place in enumerate(places):
        for kind in ("train_mr", *(("test_ct", "test_mr") if number < 2 else ())):
            (heads / kind).mkdir(exist_ok=True)
            for path in (place / kind).glob("*.nii.gz"):
                path.rename(heads / kind / f"head{number}{path.name}")
    return time.monotonic() - began


def main() -> None:
    step = results.arguments(__doc__)
    heads, store, run, out, scores = (
        step.work / name for name in ("heads", "store", "run", "translated", "scores")
    )
    size = 32 if step.small else 256
    grid = (f"--spacing={230 / size}", f"--size={size}")
    result = {"pixels": size, "seconds": {}}

    def do(command: str, *flags: str) -> None:
        result["seconds"][command] = results.rounded(contourdiff(command, *flags)["seconds"])
        results.keep(step.result, result)

    count, slices = (3, 4) if step.small else (8, 24)
    result["seconds"]["phantoms"] = results.rounded(generate(heads, count, size, slices))
    given = (f"--source={heads / 'train_mr'}", f"--out={store}", "--preset=mr", "--validation=0")
    do("prepare", *given, *grid)
    small = ("--config.model.channels=(8, 16)", "--config.model.attention=(False, False)")
    small += ("--config.model.groups=4", "--config.model.middle_attention=False", "--images=16")
    large = ("--config.model.channels=(32, 64, 128, 256)", "--config.train.batch=16")
    large += ("--config.model.dtype=bfloat16", "--minutes=4")
    do(
        "train",
        *(f"--config={results.CONFIGS / 'heads.py'}", f"--store={store}", f"--workdir={run}"),
        *("--config.grid.size=0", "--config.grid.spacing=0.0", "--config.model.patch=2"),
        *("--config.disturbance.thresholds=4.0", "--config.train.sample=0"),
        *(small if step.small else large),
    )
    result["training"] = stats(run)[-1]
    source, truth = heads / "test_ct", heads / "test_mr"
    do("translate", f"--run={run}", f"--source={source}", "--preset=ct", f"--out={out}")
    given = (f"--translated={out}", f"--source={source}", f"--truth={truth}", f"--out={scores}")
    do("evaluate", *given, f"--real={heads / 'train_mr'}", "--grid=model")
    metrics = json.loads((scores / "metrics.json").read_text())
    result["subjects"] = metrics["data"]["subjects"]
    result["scores"] = {
        method: {name: found[name] for name in KEPT if name in found}
        for method, found in metrics["methods"].items()
    }
    results.keep(step.result, result)
    panel = Image.open(sorted((scores / "panels").glob("*.png"))[0]).convert("RGB")
    panel.quantize(256).save(step.result.with_suffix(".png"), optimize=True)


if __name__ == "__main__":
    main()
