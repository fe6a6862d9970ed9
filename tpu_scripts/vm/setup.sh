#!/usr/bin/env bash
# On a TPU VM, called by ../setup.sh: Python, the package, the bucket at ~/bucket, and the store on
# the VM's own disk at ~/store, where memory maps are as fast as they should be.
#
#   BUCKET=mine STORE=stores/mr bash vm/setup.sh
set -euo pipefail
: "${BUCKET:?bucket with the store}"
: "${STORE:?folder of the store in the bucket}"
cd "$(dirname "$0")/../.."

# The VMs' own Python is older than 3.11.
if [ ! -x .venv/bin/pip ]; then
    python3 -m pip install --quiet --user uv
    python3 -m uv venv --quiet --seed --python=3.11 .venv
fi
.venv/bin/pip install --quiet --constraint=constraints.txt '.[tpu]'

if ! command -v gcsfuse >/dev/null; then
    key=/usr/share/keyrings/cloud.google.asc
    curl --fail --silent --show-error https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
    echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    sudo apt-get update --quiet && sudo apt-get install --quiet --yes gcsfuse
fi
mkdir -p ~/bucket ~/store
# The VMs write one run together: none may remember what was there a moment ago. A service, so that
# it outlives the training that saves when the VM is shut down.
if ! mountpoint --quiet ~/bucket; then
    sudo systemd-run --unit=bucket --uid="$(id -u)" --collect --quiet gcsfuse --foreground --implicit-dirs \
        --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "$BUCKET" "$HOME/bucket"
    timeout 60 bash -c 'until mountpoint --quiet ~/bucket; do sleep 1; done'
fi
gcloud storage rsync "gs://$BUCKET/$STORE" ~/store --recursive
