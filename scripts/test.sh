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

# Two runs in one folder of build results would take each other's for their own.
lock="$CARGO_TARGET_DIR/tests.lock"
if [ "${FIREBRICK_TESTS_LOCK:-}" != "$lock" ]; then
  mkdir -p "$CARGO_TARGET_DIR"
  flock --nonblock "$lock" true || echo "waiting for other tests in $CARGO_TARGET_DIR"
  FIREBRICK_TESTS_LOCK="$lock" exec flock --close "$lock" ./scripts/test.sh "$@"
fi

fuzz="${FUZZ:-$cache/fuzz}"
web="${FIREBRICK_WEB_TARGET:-$cache/web/target}"
work="$(mktemp -d)"

# Says what begins, and how long what came before has taken.
name="" begun=0
step() {
  [ -z "$name" ] || took "$name" $((SECONDS - begun))
  name="$1" begun=$SECONDS
  printf '\n== %s\n' "$1"
}
took() {
  echo "-- $2 s"
  printf '%6d s  %s\n' "$2" "$1" >>"$work/times"
}

# Steps side by side, for those that mostly wait or keep one core busy: `beside FUNCTION` begins one that goes on while
# others do, `together` waits for all and prints what each has said. `part NAME COMMAND...` is a step within one.
lanes=()
beside() {
  lanes+=("$1")
  (
    trap - EXIT
    "$1" && touch "$work/$1.passed"
  ) >"$work/$1.log" 2>&1 &
}
part() {
  local begun=$SECONDS
  printf '\n== %s\n' "$1"
  "${@:2}" && took "$1 (beside others)" $((SECONDS - begun))
}
together() {
  local lane failed=""
  wait
  for lane in "${lanes[@]}"; do
    cat "$work/$lane.log"
    [ -e "$work/$lane.passed" ] || failed+=" $lane"
  done
  [ -z "$failed" ] || { echo "FAILED:$failed" >&2; exit 1; }
}

# Ends however the script ends: what was built is remembered, and the times are shown.
finish() {
  python3 scripts/file_times.py end "$times"
  printf '\n'
  [ ! -e "$work/times" ] || cat "$work/times"
  printf '%6d s  in all\n' "$SECONDS"
  rm -rf "$work"
}

step "system packages"
./scripts/install-tools.sh

times="$CARGO_TARGET_DIR/file-times.json"
python3 scripts/file_times.py begin "$times" "$CARGO_TARGET_DIR" "$fuzz/target" "$web"
trap finish EXIT

step "format"
cargo fmt --all --check

step "models"
./scripts/fetch-models.sh smollm2 gemma3 tokenizers vocabularies

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

binary="$CARGO_TARGET_DIR/debug/firebrick"
step "CUDA without a GPU: all but the kernels' work"
tests=$(cargo nextest list --workspace --list-type binaries-only --message-format json |
  python3 -c 'import json, sys; print(json.load(sys.stdin)["rust-binaries"]["firebrick-ops"]["binary-path"])')
./scripts/check-cuda-host.sh "$binary" "$tests" cuda::driver::tests

real_model() {
  part "a real client against a real server" ./scripts/test-server.sh "$binary"
}
# One after the other, because both install packages where they are missing.
clients() {
  part "other real clients" ./scripts/test-clients.sh "$binary" &&
    part "deploy/ against a live server" ./scripts/test-deploy.sh "$CARGO_TARGET_DIR/debug/examples/scripted_server"
}
load() {
  part "load, for a minute: nothing is lost, mixed up or left behind" env FIREBRICK="$binary" python3 bench/load/run.py
}
step "real clients and load against real processes, side by side"
beside real_model
beside clients
beside load
together

# By itself, and several tests at once: they judge how long others wait.
step "the real process against faults and hostile requests"
python3 tests/real_server/run.py "$binary"

# The fuzz targets need instrumented dependencies; once they are built, each runs for ten seconds.
if [ -n "${FIREBRICK_FUZZ:-}" ] || [ -d "$fuzz/target" ]; then
  step "fuzz targets"
  ./scripts/fuzz.sh 10
else
  step "fuzz targets are not run here: FIREBRICK_FUZZ=1 builds and runs them, as does scripts/fuzz.sh"
fi

step "what the browser runs, checked for wasm"
./scripts/check-wasm.sh

# Compiling the page's program takes as long as everything above; where that has been done, the page is tested too.
if [ -n "${FIREBRICK_WEB:-}" ] || [ -e "$web/wasm32-unknown-unknown/release/firebrick_web.wasm" ]; then
  step "the page in a browser"
  ./scripts/test-web.sh "$binary"
else
  step "the page in a browser is not tested here: FIREBRICK_WEB=1 builds and tests it, as does scripts/test-web.sh"
fi

step "not tested here"
echo "Load at full length: bench/load/run.py --full. Models at full length: FIREBRICK_TEST_LENGTH=full."

step "done"
