#!/usr/bin/env bash
# Builds the fuzz targets and runs them, each for so long, from the corpus in fuzz/corpus and the seeds of the tests.
#
#   ./scripts/fuzz.sh [seconds for each, 10] [target …]
#
# What a run finds new stays in $FUZZ/corpus, where $FUZZ is ~/.cache/firebrick/fuzz; a finding is written there as
# crash-… or timeout-… and fails the script. `$FUZZ/target/*/release/TARGET FILE` tries that file again.
# FIREBRICK_FUZZ_KEEP=1 puts the smallest inputs that a run has learnt from, 64 KB of them, into fuzz/corpus.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds="${1:-10}"
shift || true
fuzz="${FUZZ:-${XDG_CACHE_HOME:-$HOME/.cache}/firebrick/fuzz}"
all=(request_body event_stream gguf safetensors tokenizer chat_template grammar)
targets=("${@:-${all[@]}}")
triple="$(rustc -vV | sed -n 's/^host: //p')"

# Coverage as libFuzzer reads it. The target triple keeps the flags away from build scripts and procedural macros.
flags="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
flags+=" -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
flags+=" -Cllvm-args=-sanitizer-coverage-trace-compares"
export CARGO_TARGET_DIR="$fuzz/target"
bins=()
for target in "${targets[@]}"; do bins+=(--bin "$target"); done
begun=$SECONDS
(cd fuzz && RUSTFLAGS="$flags" cargo build --locked --quiet --release --target "$triple" "${bins[@]}")
echo "built in $((SECONDS - begun)) s"

# One target, from its seeds to its line of figures.
try() {
  local target="$1" small
  local found="$fuzz/corpus/$target" kept="fuzz/corpus/$target" seeds="$fuzz/seeds/$target" log="$fuzz/$target.log"
  mkdir -p "$found" "$seeds" "$kept"
  python3 fuzz/seeds.py "$target" "$seeds"
  local binary="$CARGO_TARGET_DIR/$triple/release/$target"
  # What ends a run: a panic, 10 s for one input, 1 GB of memory. The corpus is data, so its files need no names.
  local limits=(-timeout=10 -rss_limit_mb=1024 -max_len=16384 -artifact_prefix="$fuzz/$target-" -verbosity=0 -print_final_stats=1)
  [ ! -e "fuzz/$target.dict" ] || limits+=(-dict="fuzz/$target.dict")
  if ! "$binary" "${limits[@]}" -max_total_time="$seconds" "$found" "$kept" "$seeds" > "$log" 2>&1; then
    echo "fuzz target $target FAILED:"
    tail -60 "$log"
    return 1
  fi
  echo "$target: $(sed -n 's/stat::number_of_executed_units: *//p' "$log") executions in $seconds s," \
    "at most $(sed -n 's/stat::peak_rss_mb: *//p' "$log") MB, slowest $(sed -n 's/stat::slowest_unit_time_sec: *//p' "$log") s"
  [ -n "${FIREBRICK_FUZZ_KEEP:-}" ] || return 0
  small="$(mktemp -d)"
  "$binary" "${limits[@]}" -set_cover_merge=1 "$small" "$kept" "$found" > "$log" 2>&1 || return 1
  rm -rf "$kept" && mkdir "$kept"
  # The smallest of them, as many as are no burden for the repository.
  find "$small" -type f -printf '%s %p\n' | sort -n | awk '(total += $1) <= 65536 { print $2 }' | head -100 | xargs mv -t "$kept"
  rm -rf "$small"
}

# Each keeps one core busy: as many at once as there are cores.
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
for target in "${targets[@]}"; do
  while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do wait -n || true; done
  (trap - EXIT; try "$target"; touch "$work/$target.passed") &
done
wait
for target in "${targets[@]}"; do [ -e "$work/$target.passed" ]; done
