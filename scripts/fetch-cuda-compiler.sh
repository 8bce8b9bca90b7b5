#!/usr/bin/env bash
# Installs NVRTC and the headers of the CUDA toolkit (80 MB) into ~/.cache/firebrick/cuda, unless they are there, and prints
# the folder that CUDA_PATH can name. All at once: pip does not add to a folder that another call has made.
set -euo pipefail
toolkit="${XDG_CACHE_HOME:-$HOME/.cache}/firebrick/cuda"
compiler="$toolkit/nvidia/cu13"
if ! ls "$compiler"/lib/libnvrtc.so.* "$compiler/include/cuda_fp16.h" >/dev/null 2>&1; then
  rm -rf "$toolkit"
  python3 -m pip install --quiet --no-deps --root-user-action ignore --target "$toolkit" \
    nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl
fi
echo "$compiler"
