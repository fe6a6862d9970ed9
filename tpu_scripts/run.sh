#!/usr/bin/env bash
# Trains on all VMs of a TPU until it is done: makes the TPU, sets it up, trains, and after a
# preemption does so again, which resumes. Interrupted, it is continued by repeating it.
#
#   (variables of create.sh and setup.sh) RUN=runs/mr tpu_scripts/run.sh [flags of `train`]
#
# RUN is a folder of the bucket. Configurations are those of this copy: --config=configs/mine.py.
set -euo pipefail
: "${TPU_NAME:?what to call the TPU}"
: "${ZONE:?zone, such as us-west4-a}"
: "${ACCELERATOR_TYPE:?such as v5litepod-16}"
: "${RUNTIME_VERSION:?of the VMs, such as v2-alpha-tpuv5-lite}"
: "${BUCKET:?bucket with the store and the run, without gs://}"
: "${STORE:?folder of the store in the bucket}"
: "${RUN:?folder of the run in the bucket}"

here=$(dirname "$0")
vms=(gcloud compute tpus tpu-vm)
printf -v train '%q ' "RUN=$RUN" bash contourdiff/tpu_scripts/vm/train.sh "$@"
while true; do
    "$here/create.sh"
    status=0
    "$here/setup.sh" || status=$?
    if [ "$status" -eq 0 ]; then
        "${vms[@]}" ssh "$TPU_NAME" --zone="$ZONE" --worker=all --command="$train" && exit || status=$?
    fi
    sleep "${POLL:-120}" # a preemption shows in the state after a while
    state=$("${vms[@]}" describe "$TPU_NAME" --zone="$ZONE" --format='value(state)' 2>/dev/null || true)
    # 255: the connection was lost. Anything else where the TPU is well will not mend by itself.
    [ "$status" -eq 255 ] || [ "$state" != READY ] || exit "$status"
    echo "run.sh: $TPU_NAME: ended with status $status, the TPU is ${state:-gone}; going on" >&2
done
