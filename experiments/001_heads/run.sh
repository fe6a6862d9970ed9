#!/usr/bin/env bash
# Rendered heads: train on the MR of five, translate the CT of three others, score against their MR.
#
#   CONTOURDIFF_DATA=DIR experiments/001_heads/run.sh OUT
#
# DIR/nifti/synthseg_labels holds the label maps (README.md says from where).
set -euo pipefail
here=$(dirname "$0")
out=${1:?usage: run.sh OUT}
heads=$out/heads
mkdir -p "$out"

[ -d "$heads" ] || python "$here/render_heads.py" \
    --labels "${CONTOURDIFF_DATA:?name the folder that holds nifti/synthseg_labels}/nifti/synthseg_labels" --out "$heads"
[ -d "$out/store" ] || contourdiff prepare --source="$heads/train_mr" --out="$out/store" --preset=mr \
    --spacing=2.4 --size=96 --validation=0
contourdiff train --config="$here/../../configs/heads.py" --store="$out/store" --workdir="$out/run"

score() { # NAME SOURCE PRESET: translate a folder of the test heads and compare with their MR
    contourdiff translate --run="$out/run" --source="$heads/$2" --preset="$3" --steps=2 --out="$out/$1"
    contourdiff evaluate --translated="$out/$1" --truth="$heads/test_mr" --source="$heads/$2" \
        --real="$heads/train_mr" --grid=model --overwrite --out="$out/scores_$1"
}
score ct test_ct ct  # what the method is for
score mr test_mr mr  # the ceiling: contours of the truth itself
score t2 test_t2 mr  # another source domain, which training never saw either

contourdiff report --overwrite --out="$out/report.html" "$out/run" "$out"/scores_{ct,mr,t2}
python - "$out" "$here" <<'PYTHON'
import json
import sys
from pathlib import Path

from PIL import Image

out, here = map(Path, sys.argv[1:])
scores = {
    name: json.loads((out / f"scores_{name}/metrics.json").read_text())["methods"]
    for name in ("ct", "mr", "t2")
}
lines = [json.loads(line) for line in (out / "run/stats.jsonl").read_text().splitlines()]
training = [line for line in lines if "images_per_second" in line][-1]
text = json.dumps({"training": training, "scores": scores}, indent=1)
(here / "result.json").write_text(text + "\n")
panel = Image.open(out / "scores_ct/panels/head05.png").convert("RGB")
panel.quantize(256).save(here / "figure.png", optimize=True)
PYTHON
