#!/usr/bin/env bash
# Installs what the tests need and passes them all: format, lints, tests on every backend this machine can run (CPU, and
# wgpu on software Vulkan), docs, CUDA sources compiled without a GPU, and real clients against a real server.
#
#   ./scripts/test.sh
#
# Build results are kept in $CARGO_TARGET_DIR (default ~/.cache/firebrick/target), models in ~/.cache/firebrick/models.
set -euo pipefail
cd "$(dirname "$0")/.."
cache="${XDG_CACHE_HOME:-$HOME/.cache}/firebrick"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$cache/target}"
export CARGO_TERM_COLOR=never

step() { printf '\n== %s (%s s)\n' "$1" "$SECONDS"; }

step "system packages"
./scripts/install-tools.sh

step "format"
cargo fmt --all --check

step "models"
./scripts/fetch-models.sh smollm2 gemma3

step "build and test"
export FIREBRICK_TEST_MODELS=required FIREBRICK_TEST_BACKENDS=cpu,wgpu
# Software Vulkan, whatever other adapters there are: the same everywhere.
export VK_DRIVER_FILES="${VK_DRIVER_FILES:-/usr/share/vulkan/icd.d/lvp_icd.x86_64.json}"
# Always the whole workspace: a narrower selection gives shared dependencies other features and builds Burn again.
cargo nextest run --workspace --no-fail-fast
cargo test --workspace --doc --quiet

step "lints"
cargo clippy --workspace --all-targets --quiet -- -D warnings

step "docs"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet

step "tidy"
cargo run --quiet --package xtask -- tidy

step "CUDA kernels, compiled without a GPU"
./scripts/check-kernels.sh

step "the binary"
cargo build --workspace --bins --quiet

step "a real client against a real server"
./scripts/test-server.sh "$CARGO_TARGET_DIR/debug/firebrick"

step "other real clients"
./scripts/test-clients.sh "$CARGO_TARGET_DIR/debug/firebrick"

step "the real process against faults and hostile requests"
python3 tests/real_server/run.py "$CARGO_TARGET_DIR/debug/firebrick"

step "load, for a minute: nothing is lost, mixed up or left behind"
FIREBRICK="$CARGO_TARGET_DIR/debug/firebrick" python3 bench/load/run.py

# The fuzz targets need instrumented dependencies; once they are built, each runs for ten seconds.
if [ -n "${FIREBRICK_FUZZ:-}" ] || [ -d "${FUZZ:-$cache/fuzz}/target" ]; then
  step "fuzz targets"
  ./scripts/fuzz.sh 10
else
  step "fuzz targets are not run here: FIREBRICK_FUZZ=1 builds and runs them, as does scripts/fuzz.sh"
fi

step "deploy/ against a live server"
./scripts/test-deploy.sh "$CARGO_TARGET_DIR/debug/examples/scripted_server"

step "what the browser runs, checked for wasm"
./scripts/check-wasm.sh

# Compiling the page's program takes as long as everything above; where that has been done, the page is tested too.
if [ -n "${FIREBRICK_WEB:-}" ] || [ -e "${FIREBRICK_WEB_TARGET:-$cache/web/target}/wasm32-unknown-unknown/release/firebrick_web.wasm" ]; then
  step "the page in a browser"
  ./scripts/test-web.sh "$CARGO_TARGET_DIR/debug/firebrick"
else
  step "the page in a browser is not tested here: FIREBRICK_WEB=1 builds and tests it, as does scripts/test-web.sh"
fi

step "not tested here"
echo "Load at full length: bench/load/run.py --full."

step "done"
