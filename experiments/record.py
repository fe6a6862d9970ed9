# SPDX-License-Identifier: Apache-2.0
"""What an experiment keeps of its output: result.json and figure.png.

    python record.py OUT EXPERIMENT

OUT/scores is required; of OUT/run the speed is kept, of OUT/places.json everything.
"""

import json
import sys
from pathlib import Path

from PIL import Image


def read(path: Path) -> dict:
    return json.loads(path.read_text())


out, experiment = map(Path, sys.argv[1:])
result = {}
if (out / "run").is_dir():
    lines = [json.loads(line) for line in (out / "run/stats.jsonl").read_text().splitlines()]
    result["training"] = [line for line in lines if "images_per_second" in line][-1]
if (out / "places.json").is_file():
    result["places"] = read(out / "places.json")
metrics = read(out / "scores/metrics.json")
result |= {"subjects": metrics["data"]["subjects"], "methods": metrics["methods"]}
(experiment / "result.json").write_text(json.dumps(result, indent=1) + "\n")
panel = Image.open(sorted((out / "scores/panels").glob("*.png"))[0]).convert("RGB")
panel.quantize(256, kmeans=2).save(experiment / "figure.png", optimize=True)
