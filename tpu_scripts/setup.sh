#!/usr/bin/env bash
# Puts this copy of the package on all VMs of a TPU, with the bucket and the store (vm/setup.sh).
# Can be repeated: what is there already stays.
#
#   TPU_NAME=pod ZONE=us-west4-a BUCKET=mine STORE=stores/mr tpu_scripts/setup.sh
set -euo pipefail
: "${TPU_NAME:?what the TPU is called}"
: "${ZONE:?zone of the TPU}"
: "${BUCKET:?bucket with the store, for the run too, without gs://}"
: "${STORE:?folder of the store in the bucket}"

archive=$(mktemp)
trap 'rm -f "$archive"' EXIT
tar -czf "$archive" --exclude=__pycache__ -C "$(dirname "$0")/.." \
    pyproject.toml setup.py constraints.txt README.md LICENSE configs contourdiff_jax tpu_scripts
vms=(gcloud compute tpus tpu-vm)
"${vms[@]}" scp "$archive" "$TPU_NAME:contourdiff.tgz" --zone="$ZONE" --worker=all
printf -v given '%q ' "BUCKET=$BUCKET" "STORE=$STORE"
"${vms[@]}" ssh "$TPU_NAME" --zone="$ZONE" --worker=all --command="
    mkdir -p contourdiff && tar -xzf contourdiff.tgz -C contourdiff &&
    ${given}bash contourdiff/tpu_scripts/vm/setup.sh"
