#!/usr/bin/env bash
# Compiles every kernel source of kernels/ in every variant for Turing, Ampere, Ada and Hopper, without a GPU, and prints
# registers, shared memory and spills. Exits with 1 when one does not compile, or when the compiler lets asynchronous
# multiplications wait for each other because it could not place their registers. The first run installs the compiler; results
# are kept in ~/.cache/firebrick by the hash of what was compiled.
#
#   scripts/check-kernels.sh [source ...]      e.g. scripts/check-kernels.sh linear.cu
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
compiler=$("$here/fetch-cuda-compiler.sh")
cache="${XDG_CACHE_HOME:-$HOME/.cache}/firebrick/kernel-check"
exec python3 "$here/check_kernels.py" "$here/../kernels" "$compiler/lib" "$cache" "$@"
