#!/usr/bin/env bash
# Installs NVRTC and the headers of the CUDA toolkit (80 MB) into ~/.cache/firebrick, unless they are there, and prints
# the folder that CUDA_PATH can name. All at once: pip does not add to a folder that another call has made. Not the newest
# release, which takes sources that those on users' machines refuse.
set -euo pipefail
release=13.0
toolkit="${XDG_CACHE_HOME:-$HOME/.cache}/firebrick/cuda-$release"
compiler="$toolkit/nvidia/cu13"
if ! ls "$compiler"/lib/libnvrtc.so.* "$compiler/include/cuda_fp16.h" >/dev/null 2>&1; then
  rm -rf "$toolkit"
  python3 -m pip install --quiet --no-deps --root-user-action ignore --target "$toolkit" \
    nvidia-cuda-{nvrtc,runtime,crt,cccl}=="$release.*"
fi
echo "$compiler"
