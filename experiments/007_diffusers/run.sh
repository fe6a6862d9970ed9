#!/usr/bin/env bash
# Import of the full published network from diffusers: how long, how much memory, and is it the same network?
#
#   experiments/007_diffusers/run.sh OUT
#
# Needs the environment of `make test-parity` (PyTorch and diffusers); its python and contourdiff come first on PATH.
set -euo pipefail
out=${1:?usage: run.sh OUT}
python "$(dirname "$0")/measure.py" "$out"
