#!/usr/bin/env bash
# Rendered heads: train on the MR of five, translate other scans of three others, score against their MR.
#
#   CONTOURDIFF_DATA=DIR experiments/001_heads/run.sh OUT
#
# DIR/nifti/synthseg_labels holds the label maps (README.md says from where).
set -euo pipefail
here=$(dirname "$0")
out=${1:?usage: run.sh OUT}
heads=$out/heads
mkdir -p "$out"

[ -d "$heads" ] || python "$here/render_heads.py" --unseen --pairs \
    --labels "${CONTOURDIFF_DATA:?name the folder that holds nifti/synthseg_labels}/nifti/synthseg_labels" --out "$heads"
[ -d "$out/store" ] || contourdiff prepare --source="$heads/train_mr" --out="$out/store" --preset=mr \
    --spacing=2.4 --size=96 --validation=0
[ -d "$out/store_pairs" ] || contourdiff prepare --source="$heads/train_mr" --out="$out/store_pairs" --preset=mr \
    --spacing=2.4 --size=96 --validation=0 --pairs="$heads/pairs_ct" --pairs_preset=ct

score() { # MODEL SOURCE PRESET [FLAG ..]: translate a folder of the test heads, compare with their MR
    local model=$1 source=$2 preset=$3
    shift 3
    contourdiff translate --run="$out/$model" --source="$heads/test_$source" --preset="$preset" \
        --out="$out/${model}_$source" "$@"
    contourdiff evaluate --translated="$out/${model}_$source" --truth="$heads/test_mr" \
        --source="$heads/test_$source" --real="$heads/train_mr" --grid=model --overwrite \
        --out="$out/scores_${model}_$source"
}
# Contours alone, by diffusion: CT is what the method is for, the MR's own contours are the ceiling,
# and of all the others training saw nothing either.
budget=(--config.train.images=8600 --config.train.sample=0)
contourdiff train --config="$here/../../configs/heads.py" --store="$out/store" --workdir="$out/contours" \
    --config.model.patch=2 --config.disturbance.thresholds=4.0 "${budget[@]}"
for source in ct cbct; do score contours $source ct --steps=2; done
for source in mr t2 pd flair; do score contours $source mr --steps=2; done
# With the picture in which they are sought, by regression: for sources with a curve to T1's greys.
contourdiff train --config="$here/../../configs/patients.py" --store="$out/store" --workdir="$out/pictures" \
    "${budget[@]}"
for source in ct cbct; do score pictures $source ct; done
score pictures mr mr
# The bound: the same network, taught by the CT of the heads that it is trained on.
contourdiff train --config="$here/../../configs/patients.py" --store="$out/store_pairs" --workdir="$out/pairs" \
    --config.model.conditions="('source',)" --config.disturbance.thresholds=0.0 "${budget[@]}"
score pairs ct ct

contourdiff report --overwrite --out="$out/report.html" "$out/contours" "$out"/scores_contours_{ct,mr,t2}
python - "$out" "$here" <<'PYTHON'
import json
import sys
from pathlib import Path

from PIL import Image

out, here = map(Path, sys.argv[1:])
result = {"training": {}, "scores": {}}
for model in ("contours", "pictures", "pairs"):
    lines = [json.loads(line) for line in (out / model / "stats.jsonl").read_text().splitlines()]
    result["training"][model] = [line for line in lines if "images_per_second" in line][-1]
    for place in sorted(out.glob(f"scores_{model}_*/metrics.json")):
        methods = json.loads(place.read_text())["methods"]
        kept = {"translation", "curve", "mean", "histogram", "source"} & methods.keys()
        name = place.parent.name.removeprefix(f"scores_{model}_")
        result["scores"].setdefault(model, {})[name] = {
            method: {m: methods[method][m] for m in ("ssim_mask", "psnr_mask", "mae_mask", "contour_f1")}
            for method in sorted(kept)
        }
(here / "result.json").write_text(json.dumps(result, indent=1) + "\n")
panel = Image.open(out / "scores_pictures_ct/panels/head05.png").convert("RGB")
panel.quantize(256).save(here / "figure.png", optimize=True)
PYTHON
