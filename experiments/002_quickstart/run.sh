#!/usr/bin/env bash
# The quickstart with its minutes of training, and what the README shows of it.
#
#   experiments/002_quickstart/run.sh OUT
set -euo pipefail
here=$(dirname "$0")
out=${1:?usage: run.sh OUT}
begin=$(date +%s)
contourdiff quickstart --workdir="$out" --minutes=5.5
seconds=$(($(date +%s) - begin))
python - "$out" "$here" "$seconds" <<'PYTHON'
import json
import sys
from pathlib import Path

from PIL import Image

out, here, seconds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
config = json.loads((out / "run/config.json").read_text())["config"]
methods = json.loads((out / "scores/metrics.json").read_text())["methods"]
result = {"seconds": seconds, "images": config["train"]["images"], "methods": methods}
(here / "result.json").write_text(json.dumps(result, indent=1) + "\n")
panel = Image.open(sorted((out / "scores/panels").glob("*.png"))[0]).convert("RGB")
panel.quantize(256).save(here / "figure.png", optimize=True)
PYTHON
