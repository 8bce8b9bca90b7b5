#!/usr/bin/env bash
# Compiles every kernel source of kernels/ in every variant for Turing, Ampere, Ada and Hopper, without a GPU, and prints
# registers, shared memory and spills. Exits with 1 when one does not compile. The first run installs the compiler
# (NVRTC, 60 MB) into ~/.cache/firebrick/cuda; results are kept there by the hash of what was compiled.
#
#   scripts/check-kernels.sh [source ...]      e.g. scripts/check-kernels.sh linear.cu
set -euo pipefail
cache="${XDG_CACHE_HOME:-$HOME/.cache}/firebrick"
toolkit="$cache/cuda"
if ! ls "$toolkit"/nvidia/cu13/lib/libnvrtc.so.* >/dev/null 2>&1; then
    python3 -m pip install --quiet --no-deps --target "$toolkit" nvidia-cuda-nvrtc
fi
here="$(cd "$(dirname "$0")" && pwd)"
exec python3 "$here/check_kernels.py" "$here/../kernels" "$toolkit/nvidia/cu13/lib" "$cache/kernel-check" "$@"
