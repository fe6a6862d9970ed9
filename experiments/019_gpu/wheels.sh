#!/usr/bin/env bash
# Fills a folder with the wheels that a machine with JAX, Flax, PyTorch and OpenCV lacks for run.sh.
#
#   experiments/019_gpu/wheels.sh DIR [PYTHON_VERSION]
#
# Run where there is a network, with a Python that has pip. What the steps do not import (SimpleITK, which reads
# other files than theirs) is left out. Of contourdiff itself only the name and version count: run.sh takes the code
# of the checkout.
set -euo pipefail
out=${1:?usage: wheels.sh DIR [PYTHON_VERSION]}
version=${2:-3.12}
root=$(cd "$(dirname "$0")/../.." && pwd)
packages=(ml_collections clu grain array_record cloudpickle portpicker importlib_resources nibabel pydicom)
platforms=()
for platform in manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_24_x86_64 manylinux2014_x86_64; do
    platforms+=(--platform "$platform")
done
mkdir -p "$out"
rm -f "$out"/contourdiff_jax-*.whl
"${PYTHON:-python3}" -m pip download --quiet --disable-pip-version-check --only-binary=:all: --no-deps --implementation cp \
    --python-version "$version" "${platforms[@]}" --constraint "$root/constraints.txt" --dest "$out" "${packages[@]}"
"${PYTHON:-python3}" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$out" "$root"
ls "$out"
du -sh "$out"
