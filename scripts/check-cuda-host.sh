#!/usr/bin/env bash
# Runs everything around the CUDA kernels where there is no GPU: small models with random weights, prompts, decode steps of one
# to 200 sequences as recorded graphs, on a driver that runs no kernels (tests/null_cuda). Kernels are compiled as they
# are asked for, launches are checked against what an H200 grants. What tokens come out says nothing.
#
#   scripts/check-cuda-host.sh path/to/firebrick
set -euo pipefail
cd "$(dirname "$0")/.."
binary="$1"
toolkit="${XDG_CACHE_HOME:-$HOME/.cache}/firebrick/cuda"
install() { python3 -m pip install --quiet --no-deps --target "$toolkit" "$@"; }
ls "$toolkit"/nvidia/cu13/lib/libnvrtc.so.* >/dev/null 2>&1 || install nvidia-cuda-nvrtc
# Burn's own kernels include headers of the toolkit.
[ -e "$toolkit/nvidia/cu13/include/cuda_fp16.h" ] || install nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cc -shared -fPIC -O1 -w -o "$work/libcuda.so" tests/null_cuda/driver.c
cc -shared -fPIC -O1 -w -o "$work/libcublasLt.so" tests/null_cuda/cublaslt.c

# suite OPTION...: every load of every model must end, and the driver must have nothing to say.
suite() {
  CUDA_PATH="$toolkit/nvidia/cu13" LD_LIBRARY_PATH="$work:$toolkit/nvidia/cu13/lib" XDG_CACHE_HOME="$work/cache" \
    "$binary" bench suite --device cuda --workloads tests/null_cuda/workloads.json --max-num-batched-tokens 2048 "$@" \
    >"$work/log" 2>&1 || { cat "$work/log"; echo "error: bench suite $* failed without a GPU" >&2; exit 1; }
  if grep "null CUDA driver" "$work/log"; then
    echo "error: bench suite $* asks the driver for what a GPU does not grant" >&2
    exit 1
  fi
  [ "$(grep -c 'output tok/s' "$work/log")" = 18 ] || { cat "$work/log"; echo "error: loads are missing" >&2; exit 1; }
}
mkdir -p "$work/cache"
suite
suite --enforce-eager
suite --deterministic
suite --kv-cache-dtype fp8
suite --quantization fp8
echo "18 loads of three models, in five ways: every kernel compiles, every launch and recording is granted"
