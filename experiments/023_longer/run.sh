#!/usr/bin/env bash
# Rendered heads: what more training, more steps and more samples give, in error and in likeness to real slices.
#
#   experiments/023_longer/run.sh FIRST OUT
#
# FIRST is the output of experiments/001_heads/run.sh: its heads and its store.
set -euo pipefail
here=$(dirname "$0")
usage="usage: run.sh FIRST OUT"
first=${1:?$usage} out=${2:?$usage}
heads=$first/heads
mkdir -p "$out"

train() { # NAME IMAGES [FLAG ..]: configs/patients.py for longer, with its parameters on the way
    local name=$1 images=$2
    shift 2
    contourdiff train --config="$here/../../configs/patients.py" --store="$first/store" --workdir="$out/$name" \
        --config.train.images="$images" --config.train.keep=50 --config.train.sample=0 "$@"
}
at() { # NAME STEP: the run as it was at a step
    local place=$out/$1_at_$2
    [ -d "$place" ] && return
    mkdir -p "$place/checkpoints"
    cp "$out/$1/config.json" "$out/$1/stats.jsonl" "$place"
    cp -r "$out/$1/checkpoints/$2" "$place/checkpoints"
}
score() { # RUN NAME [FLAG ..]: translate the CT of the test heads, compare with their MR and with other MR
    local run=$1 name=$2
    shift 2
    contourdiff translate --run="$out/$run" --source="$heads/test_ct" --preset=ct --out="$out/$name" --overwrite "$@"
    contourdiff evaluate --translated="$out/$name" --truth="$heads/test_mr" --source="$heads/test_ct" \
        --real="$heads/train_mr" --grid=model --features=segmenter --weights="$weights" --overwrite --out="$out/scores/$name"
}

# Features of slices: those of a segmenter of MR.
weights=$out/segmenter/weights/translation_0.safetensors
[ -f "$weights" ] || contourdiff segment --train_images="$heads/train_mr" --train_labels="$heads/train_mr_labels" --preset=mr \
    --test_images="$heads/test_mr" --test_labels="$heads/test_labels" --classes=1,2,3,4 --spacing=2.4 --size=96 \
    --seeds=1 --images=4000 --out="$out/segmenter"

# A regression, which is smooth, and diffusion that learns what little noise leaves open, too.
train regression 30000 --config.train.checkpoint=2000
train diffusion 16000 --config.method=diffusion --config.diffusion.weighting=min_snr --config.diffusion.time_exponent=1.0 \
    --config.train.checkpoint=4000

for step in 500 1000 2000 4000 7500; do
    at regression "$step"
    score "regression_at_$step" "regression_$step"
done
for steps in 1 2 5 10 25 50; do
    score diffusion "steps_$steps" --steps="$steps"
done
for samples in 4 8; do
    score diffusion "mean_$samples" --steps=10 --samples="$samples" --keep=mean
done
python "$here/put_back.py" "$first"
python "$here/summary.py" "$first" "$out"
