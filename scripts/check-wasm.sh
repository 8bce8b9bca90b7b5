#!/usr/bin/env bash
# Checks that the engine, the text, the checkpoints, the model, the operations and the executor compile for the browser,
# with everything that web-demo adds. Installs the compiler where it is missing.
#
#   scripts/check-wasm.sh
set -euo pipefail
cd "$(dirname "$0")/.."
cache="${XDG_CACHE_HOME:-$HOME/.cache}/firebrick/web"
./scripts/install-web-tools.sh --compiler
export CARGO_TARGET_DIR="${FIREBRICK_WEB_TARGET:-$cache/target}" CARGO_TERM_COLOR=never
cd web-demo
cargo fmt --check
# Eight minutes of processor time from nothing; the program itself takes several times that (scripts/build-web.sh).
# shellcheck disable=SC2046  # an empty toolchain is no argument
cargo $(cat "$cache/toolchain") check --quiet
