#!/usr/bin/env bash
# Submits training, the translation that waits for it, and the evaluation that waits for that.
#
#   STORE=stores/mr RUN=runs/mr SOURCE=scans/ct PRESET=ct OUT=translated SCORES=scores \
#       slurm/submit.sh [flags of `train`]
#
# TRAIN, TRANSLATE and EVALUATE are flags of sbatch for each: TRAIN="--nodes=4 --gpus-per-node=8".
set -euo pipefail
: "${STORE:?store to train on}"
: "${RUN:?folder of the run}"
: "${SOURCE:?folder of the volumes to translate}"
: "${PRESET:?modality of the source, ct or mr}"
: "${OUT:?folder for the translations}"
: "${SCORES:?folder for the scores}"
here=$(dirname "$0")
read -ra train <<<"${TRAIN:-}"
read -ra translate <<<"${TRANSLATE:-}"
read -ra evaluate <<<"${EVALUATE:-}"

job=$(sbatch --parsable "${train[@]}" "$here/train.sbatch" "$@")
job=$(sbatch --parsable --dependency="afterok:${job%%;*}" "${translate[@]}" "$here/translate.sbatch")
job=$(sbatch --parsable --dependency="afterok:${job%%;*}" "${evaluate[@]}" "$here/evaluate.sbatch")
echo "the scores will be made by job ${job%%;*}"
